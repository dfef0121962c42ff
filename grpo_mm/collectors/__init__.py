"""Collectors: the one rollout-side seam, from prompts to scored batches."""
