"""What readers of several modalities need: rows of files and hubs, checked fields, prompts gathered with what was left
out, controls.

A reader of one published form lives in the room of its modality.
"""

from grpo_mm.registry import Entry

KINDS = (
    Entry("prompts", "file", "grpo_mm.datasets.shared.files:PromptFile"),
    Entry("prompts", "hub", "grpo_mm.datasets.shared.hub:HubPrompts"),
    Entry("prompts", "swapped", "grpo_mm.datasets.shared.swapped:Swapped"),
    Entry("prompts", "blanked", "grpo_mm.datasets.shared.blanked:Blanked"),
)  # fmt: skip
"""What a config can name of this room."""
