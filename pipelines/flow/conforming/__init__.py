"""Whether a checkpoint is here what it is in plain diffusers: what both say is recorded and compared, row by row, for any family.

Nothing of a family comes in: what its pipeline does is read off the pipeline while it draws.
"""
