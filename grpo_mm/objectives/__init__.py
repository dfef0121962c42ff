"""Losses: pure functions of tensors, and the terms that an objective is a sum of."""

from grpo_mm.objectives.aggregate import aggregate_weight
from grpo_mm.objectives.awm import Awm, awm_logprob
from grpo_mm.objectives.clipped_ratio import ClippedRatio, clipped_ratio
from grpo_mm.objectives.divergence_mask import DivergenceMask, divergence_mask
from grpo_mm.objectives.kl import Kl, gaussian_kl, k1, k2, k3
from grpo_mm.objectives.nft import Nft, nft_loss, optimality
from grpo_mm.objectives.ratio_norm import RatioNorm, ratio_norm

__all__ = [
    "Awm", "ClippedRatio", "DivergenceMask", "Kl", "Nft", "RatioNorm", "aggregate_weight", "awm_logprob", "clipped_ratio",
    "divergence_mask", "gaussian_kl", "k1", "k2", "k3", "nft_loss", "optimality", "ratio_norm",
]  # fmt: skip
