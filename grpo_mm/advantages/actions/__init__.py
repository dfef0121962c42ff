"""Which action of a row earned it: gains of steps, trees, prefixes, choices, rewards to go.

Stages that give one value to a whole row live elsewhere.
"""
