"""Conversations as prompts: chat messages, and the forms of LLaVA and VLM-R1.

Published benchmarks live with their modality.
"""

from grpo_mm.registry import Entry

KINDS = (
    Entry("prompts", "messages", "grpo_mm.datasets.chat.messages:Messages"),
    Entry("prompts", "conversations", "grpo_mm.datasets.chat.conversations:Conversations", "arXiv:2504.07615"),
)  # fmt: skip
"""What a config can name of this room."""
