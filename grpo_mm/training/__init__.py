"""The one training loop, with rollout, credit, updates, evaluation, their times and what a run leaves at its end.

No method and no modality: no `if method ==` comes in. What lies in the run folder is `run`'s.
"""
