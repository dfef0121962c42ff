"""A run as one HTML page.

Reads the files of a run folder and nothing else.
"""

from grpo_mm.moved import hand_on

hand_on(__name__, f"{__name__}.page")
