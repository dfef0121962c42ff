"""How far an advantage counts: densities, ranks, weights of signs, diversity.

What is added to a reward before it is compared lives in `bonuses`.
"""
