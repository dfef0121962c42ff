"""Several components to one value: sums, means, gates, outcomes.

No comparison with other rows.
"""

from grpo_mm.registry import Entry

_FLOW = "configs/flow/"

KINDS = (
    Entry("advantage", "weighted_sum", "grpo_mm.advantages.combination.combine:WeightedSum", "", _FLOW + "flow_grpo_sd35.yaml"),
    Entry("advantage", "clamp", "grpo_mm.advantages.combination.combine:Clamp", "", _FLOW + "flow_grpo_sd35.yaml"),
    Entry("advantage", "average", "grpo_mm.advantages.combination.average:Average", "arXiv:2506.02864"),
    Entry("advantage", "mark_positive", "grpo_mm.advantages.combination.outcome:MarkPositive", "arXiv:2505.12366"),
    Entry("advantage", "shortness", "grpo_mm.advantages.combination.outcome:Shortness", "arXiv:2510.04474"),
    Entry("advantage", "gate", "grpo_mm.advantages.combination.gate:Gate", "arXiv:2508.05170"),
)  # fmt: skip
"""What a config can name of this room."""
