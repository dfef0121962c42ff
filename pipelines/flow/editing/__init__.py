"""Families that edit: a picture of the prompt goes through the network beside what is drawn; one small file each, names only.

No reward, no reader and no sampler: these see a prompt with media as any other.
"""

from grpo_mm.registry import Entry

KINDS = (
    Entry("flow_model", "flux_kontext", "grpo_mm.pipelines.flow.editing.flux_kontext:FluxKontext", "arXiv:2506.15742"),
    Entry("flow_model", "qwen_image_edit", "grpo_mm.pipelines.flow.editing.qwen_image_edit:QwenImageEdit", "arXiv:2508.02324"),
    Entry("flow_model", "qwen_image_edit_plus", "grpo_mm.pipelines.flow.editing.qwen_image_edit:QwenImageEditPlus", "arXiv:2508.02324"),
)  # fmt: skip
"""What a config can name of this room."""
