"""Collectors: the one rollout-side seam, from prompts to scored batches.

A collector says what is sampled and how often; it never looks into a modality.
"""

from grpo_mm.registry import Entry

_VIDEO = "configs/video/"

KINDS = (
    Entry("strategy", "dynamic_sampling", "grpo_mm.rollout.collectors.dynamic_sampling:DynamicSampling", "arXiv:2503.14476"),
    Entry("strategy", "prioritised", "grpo_mm.rollout.collectors.prioritised:Prioritised", "arXiv:2509.13232"),
    Entry("strategy", "allocate", "grpo_mm.rollout.collectors.allocate:Allocate", "arXiv:2602.03584"),
    Entry("strategy", "unsolved", "grpo_mm.rollout.collectors.unsolved:Unsolved", "arXiv:2503.13377", _VIDEO + "time_r1_qwen25vl_7b.yaml"),
    Entry("allocation", "by_success", "grpo_mm.rollout.collectors.allocate:BySuccess", "arXiv:2602.03584"),
    Entry("allocation", "by_uncertainty", "grpo_mm.rollout.collectors.allocate:ByUncertainty", "arXiv:2510.06672"),
    Entry("allocation", "look_ahead", "grpo_mm.rollout.collectors.allocate:LookAhead", "arXiv:2603.10848"),
    Entry("strategy", "sample_and_score", "grpo_mm.rollout.collectors.sample_and_score:SampleAndScore"),
)  # fmt: skip
"""What a config can name of this room."""
