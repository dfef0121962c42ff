"""What happens to the weights: the exact gradient of an update, the optimiser, copies, checkpoints, and parts that
learn beside them.

No config and no loop; those call what is here.
"""
