"""What happens to the weights: the exact gradient of an update, the optimiser, copies, checkpoints, and parts that
learn beside them; and how weights come in whole from files of other tools (models, adapters).

No config and no loop; those call what is here. No model family: names of layers are handed in.
"""
