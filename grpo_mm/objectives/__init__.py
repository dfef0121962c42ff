"""Losses: pure functions of tensors, and the terms that an objective is a sum of."""

from grpo_mm.objectives.aggregate import aggregate_weight
from grpo_mm.objectives.clipped_ratio import ClippedRatio, clipped_ratio
from grpo_mm.objectives.kl import Kl, gaussian_kl, k1, k2, k3
from grpo_mm.objectives.ratio_norm import RatioNorm, ratio_norm

__all__ = [
    "ClippedRatio", "Kl", "RatioNorm", "aggregate_weight", "clipped_ratio", "gaussian_kl", "k1", "k2", "k3", "ratio_norm",
]  # fmt: skip
