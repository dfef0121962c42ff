"""Collectors: the one rollout-side seam, from prompts to scored batches.

A collector says what is sampled and how often; it never looks into a modality.
"""
