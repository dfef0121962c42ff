"""Drawing answers token by token: what a sampler is asked, and the reference one with continuous batching.

Faster engines come in as files of their own behind the same protocol; replay and training do not.
"""

from grpo_mm.registry import Entry

KINDS = (
    Entry("generator", "hf", "grpo_mm.pipelines.vlm.sampling.generation:HfGenerator"),
    Entry("generator", "vllm", "grpo_mm.pipelines.vlm.sampling.vllm_generator:VllmGenerator"),
)  # fmt: skip
"""What a config can name of this room."""
