"""Golden pictures: what a scorer whose weights are published gives for three small pictures that are drawn here, and whether it still does.

The scores lie in a file beside each scorer; no scorer is known here, and nothing is trained.
"""
