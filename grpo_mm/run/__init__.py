"""What a run reads before it begins and what lies in its folder: prompts and their digests, the mark, checkpoints, the product, the state.

Nothing that samples, scores or trains comes in: the loop hands over what is to be written.
"""
