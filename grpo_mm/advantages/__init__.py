"""Group-relative advantages: pure functions of tensors, and the stages that apply them to the table."""

from grpo_mm.advantages.combine import Clamp, WeightedSum, weighted_sum
from grpo_mm.advantages.credit import credit
from grpo_mm.advantages.group_norm import GroupNorm, group_norm
from grpo_mm.advantages.select import KeepExtremes, keep_extremes
from grpo_mm.advantages.shuffle import Shuffle

__all__ = [
    "Clamp", "GroupNorm", "KeepExtremes", "Shuffle", "WeightedSum", "credit", "group_norm", "keep_extremes", "weighted_sum",
]  # fmt: skip
