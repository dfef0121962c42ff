"""Prompts for pictures that are to be made.

Questions about pictures live in `spatial` and `chat`.
"""

from grpo_mm.registry import Entry

KINDS = (
    Entry("prompts", "geneval", "grpo_mm.datasets.images.geneval:GenEvalPrompts", "arXiv:2310.11513"),
    Entry("prompts", "ocr", "grpo_mm.datasets.images.ocr:OcrPrompts", "arXiv:2505.05470"),
)  # fmt: skip
"""What a config can name of this room."""
