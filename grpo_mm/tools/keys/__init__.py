"""What the keys of a config mean: `grpo-mm explain`, the reference, the texts they are made of.

Nothing that reads a config of a run comes in here.
"""
