"""Readers of what a model wrote: choices, numbers, times, tagged elements, and the signs they are written in. Rewards, benchmarks
and held-out scoring read with these alone, so that they cannot disagree; boxes are read so in `spatial/box_text`.

No score, and nothing that knows a prompt. What cannot be read is None, or an empty list: never a value that nobody wrote.
"""
