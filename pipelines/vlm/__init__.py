"""Vision-language models that answer in text, as policies: one action is one token.

Here are the policy and the engine; their parts have rooms of their own, and what only clips or grounded pictures need lives beside.
"""

from grpo_mm.registry import Entry

_VLM = "configs/vlm/"

KINDS = (
    Entry("policy", "vlm", "grpo_mm.pipelines.vlm.policy:VlmPolicyConfig"),
    Entry("engine", "vlm", "grpo_mm.pipelines.vlm.engine:VlmEngine"),
    Entry("preset", "geometry_qwen3vl_moe", _VLM + "geometry_qwen3vl_30b_a3b.yaml", "arXiv:2402.03300", _VLM + "geometry_qwen3vl_30b_a3b.yaml"),
    Entry("preset", "geometry_qwen35", _VLM + "geometry_qwen35_35b_a3b.yaml", "arXiv:2402.03300", _VLM + "geometry_qwen35_35b_a3b.yaml"),
    Entry("preset", "geometry_internvl", _VLM + "geometry_internvl35_2b.yaml", "arXiv:2402.03300", _VLM + "geometry_internvl35_2b.yaml"),
    Entry("preset", "geometry_glm4v", _VLM + "geometry_glm41v_9b.yaml", "arXiv:2402.03300", _VLM + "geometry_glm41v_9b.yaml"),
)  # fmt: skip
"""What a config can name of this room."""
