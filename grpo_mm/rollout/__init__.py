"""From prompts to scored rows: which prompts a step asks, which rank samples what, how rewards are called, and the
table they give.

No estimator and no model; those read what is made here.
"""
