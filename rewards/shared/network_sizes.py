"""How many weights the published networks of rewards have, so that memory can be counted before they are loaded."""

from __future__ import annotations

NUMBERS = {
    "ViT-B-32": 151_277_313, "ViT-L-14": 427_616_513, "ViT-L-14-336": 427_944_193, "ViT-H-14": 986_109_441,
    "ViT-g-14": 1_366_678_273, "ViT-bigG-14": 2_539_567_362, "yuvalkirstain/PickScore_v1": 986_109_441,
}  # fmt: skip
"""CLIP towers of picture and text with their scale, by open_clip's names; a test builds them without numbers."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def network_bytes(name: str, dtype: str = "float32") -> int | None:
    """None for a name that is not in the table."""
    numbers = NUMBERS.get(name.removesuffix("-quickgelu"))
    return None if numbers is None else numbers * BYTES[dtype]
