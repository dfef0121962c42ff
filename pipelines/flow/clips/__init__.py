"""Families that draw clips, from a text or from a picture and a text; one small file each, names only.

No reward and no sampler: to those a clip's latents are latents, whatever their axes.
"""

from grpo_mm.registry import Entry

KINDS = (
    Entry("flow_model", "wan", "grpo_mm.pipelines.flow.clips.wan:Wan", "arXiv:2503.20314", "configs/clips/flow_grpo_wan21_1b.yaml"),
    Entry("flow_model", "wan_i2v", "grpo_mm.pipelines.flow.clips.wan_i2v:WanI2V", "arXiv:2503.20314", "configs/clips/dance_wan21_i2v.yaml"),
)  # fmt: skip
"""What a config can name of this room."""
