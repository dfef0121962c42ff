"""Vision-language models that answer in text, as policies: one action is one token.

Here are the policy and the engine; their parts have rooms of their own, and what only clips or grounded pictures need lives beside.
"""

from grpo_mm.registry import Entry

KINDS = (
    Entry("policy", "vlm", "grpo_mm.pipelines.vlm.policy:VlmPolicyConfig"),
    Entry("engine", "vlm", "grpo_mm.pipelines.vlm.engine:VlmEngine"),
)  # fmt: skip
"""What a config can name of this room."""
