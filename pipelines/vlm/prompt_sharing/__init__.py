"""Prompts read once for all of their answers: replay of stored tokens, what sharing costs, and the check against the
repeated form.

Sampling has its own room.
"""
