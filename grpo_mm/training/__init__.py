"""The one training loop, with rollout, credit, updates, evaluation, checkpoints and the run folder around it.

No method and no modality: no `if method ==` comes in.
"""
