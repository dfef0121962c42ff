"""Losses: pure functions of tensors, and the terms that an objective is a sum of."""

from grpo_mm.objectives.aggregate import aggregate_weight
from grpo_mm.objectives.awm import Awm, awm_logprob
from grpo_mm.objectives.cispo import Cispo, cispo
from grpo_mm.objectives.clipped_ratio import ClippedRatio, clipped_ratio
from grpo_mm.objectives.disco import Disco, group_contrast, row_score
from grpo_mm.objectives.divergence_mask import DivergenceMask, divergence_mask
from grpo_mm.objectives.gmpo import Gmpo, gmpo
from grpo_mm.objectives.grao import Grao, grao, grao_coefficients
from grpo_mm.objectives.hinge_kl import HingeKl, hinge_kl
from grpo_mm.objectives.kl import Kl, gaussian_kl, k1, k2, k3, straight_through
from grpo_mm.objectives.kl_cov import KlCov, high_covariance, kl_cov
from grpo_mm.objectives.nft import Nft, nft_loss, optimality
from grpo_mm.objectives.ratio import log_ratio, row_mean
from grpo_mm.objectives.ratio_norm import RatioNorm, ratio_norm
from grpo_mm.objectives.sapo import Sapo, sapo
from grpo_mm.objectives.truncated import Truncated, truncated_weight

__all__ = [
    "Awm", "Cispo", "ClippedRatio", "Disco", "DivergenceMask", "Gmpo", "Grao", "HingeKl", "Kl", "KlCov", "Nft", "RatioNorm",
    "Sapo", "Truncated", "aggregate_weight", "awm_logprob", "cispo", "clipped_ratio", "divergence_mask", "gaussian_kl", "gmpo",
    "grao", "grao_coefficients", "group_contrast", "high_covariance", "hinge_kl", "k1", "k2", "k3", "kl_cov", "log_ratio",
    "nft_loss", "optimality", "ratio_norm", "row_mean", "row_score", "sapo", "straight_through", "truncated_weight",
]  # fmt: skip
