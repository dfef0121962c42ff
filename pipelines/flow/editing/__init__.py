"""Families that edit: a picture of the prompt goes through the network beside what is drawn; one small file each, names only.

No reward, no reader and no sampler: these see a prompt with media as any other.
"""

from grpo_mm.registry import Entry

_EDIT = "configs/edit/"
KINDS = (
    Entry("flow_model", "flux_kontext", "grpo_mm.pipelines.flow.editing.flux_kontext:FluxKontext", "arXiv:2506.15742"),
    Entry("flow_model", "qwen_image_edit", "grpo_mm.pipelines.flow.editing.qwen_image_edit:QwenImageEdit", "arXiv:2508.02324"),
    Entry("flow_model", "qwen_image_edit_plus", "grpo_mm.pipelines.flow.editing.qwen_image_edit:QwenImageEditPlus", "arXiv:2508.02324"),
    Entry("preset", "flow_grpo_kontext", _EDIT + "flow_grpo_kontext.yaml", "arXiv:2505.05470", _EDIT + "flow_grpo_kontext.yaml"),
    Entry("preset", "flow_grpo_fast_qwen_image_edit", _EDIT + "fast_qwen_image_edit.yaml", "arXiv:2505.05470", _EDIT + "fast_qwen_image_edit.yaml"),
    Entry("preset", "diffusion_nft_kontext", _EDIT + "nft_kontext.yaml", "arXiv:2510.16888", _EDIT + "nft_kontext.yaml"),
    Entry("preset", "diffusion_nft_qwen_image_edit_plus", _EDIT + "nft_qwen_image_edit_plus.yaml", "arXiv:2510.16888", _EDIT + "nft_qwen_image_edit_plus.yaml"),
    Entry("preset", "pref_grpo_flux2_klein_edits", _EDIT + "pref_flux2_klein.yaml", "arXiv:2508.20751", _EDIT + "pref_flux2_klein.yaml"),
)  # fmt: skip
"""What a config can name of this room."""
