"""Group-relative advantages: pure functions of tensors, and the stages that apply them to the table."""

from grpo_mm.advantages.combine import Clamp, WeightedSum, weighted_sum
from grpo_mm.advantages.credit import credit
from grpo_mm.advantages.gains import Gains, gains
from grpo_mm.advantages.gardo import DiversityScale, GardoGate, batch_win_rate, diversity_scaled, uncertainty
from grpo_mm.advantages.group_norm import GroupNorm, group_norm
from grpo_mm.advantages.select import KeepExtremes, keep_extremes
from grpo_mm.advantages.shuffle import Shuffle
from grpo_mm.advantages.sum_tags import SumTags, sum_within
from grpo_mm.advantages.tree_backup import TreeBackup, tree_backup

__all__ = [
    "Clamp", "DiversityScale", "Gains", "GardoGate", "GroupNorm", "KeepExtremes", "Shuffle", "SumTags", "TreeBackup",
    "WeightedSum", "batch_win_rate", "credit", "diversity_scaled", "gains", "group_norm", "keep_extremes", "sum_within",
    "tree_backup", "uncertainty", "weighted_sum",
]  # fmt: skip
