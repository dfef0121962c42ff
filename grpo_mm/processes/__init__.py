"""What a run stands on: one process or many, random streams that do not depend on them, and the clock.

Nothing here knows what is sampled, scored or trained.
"""
