"""What joins or reshapes a reward: prices of length, bonuses for consistency, order, novelty, ladders, demonstrations.

The comparison itself lives in `baselines`.
"""
