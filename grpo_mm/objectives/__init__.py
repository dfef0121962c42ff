"""Losses: pure functions of tensors, and the terms that an objective is a sum of, one file each.

No sampling, no optimiser; what several losses share is in `ratio`, `aggregate`, `logprob_term` and `clipped_ratio`.
"""

from grpo_mm.objectives.aggregate import aggregate_weight
from grpo_mm.objectives.awm import Awm, awm_logprob
from grpo_mm.objectives.cispo import Cispo, cispo
from grpo_mm.objectives.clipped_ratio import ClippedRatio, clipped_ratio
from grpo_mm.objectives.disco import Disco, group_contrast, row_score
from grpo_mm.objectives.divergence_mask import DivergenceMask, divergence_mask
from grpo_mm.objectives.gmpo import Gmpo, gmpo
from grpo_mm.objectives.grao import Grao, grao, grao_coefficients
from grpo_mm.objectives.hinge_kl import HingeKl, hinge_kl
from grpo_mm.objectives.kl import Kl, abs_k1, gaussian_kl, k1, k2, k3, straight_through, weighted_k3
from grpo_mm.objectives.kl_cov import KlCov, high_covariance, kl_cov
from grpo_mm.objectives.nft import Nft, nft_loss, optimality
from grpo_mm.objectives.ratio import log_ratio, row_mean
from grpo_mm.objectives.ratio_norm import RatioNorm, ratio_norm
from grpo_mm.objectives.regression import Regression, predicted_advantage
from grpo_mm.objectives.sapo import Sapo, sapo
from grpo_mm.objectives.top_entropy import TopEntropy, top_entropy
from grpo_mm.objectives.truncated import Truncated, truncated_weight

__all__ = [
    "Awm", "Cispo", "ClippedRatio", "Disco", "DivergenceMask", "Gmpo", "Grao", "HingeKl", "Kl", "KlCov", "Nft",
    "RatioNorm", "Regression", "Sapo", "TopEntropy", "Truncated", "abs_k1", "aggregate_weight", "awm_logprob", "cispo", "clipped_ratio",
    "divergence_mask", "gaussian_kl", "gmpo", "grao", "grao_coefficients", "group_contrast", "high_covariance",
    "hinge_kl", "k1", "k2", "k3", "kl_cov", "log_ratio", "nft_loss", "optimality", "predicted_advantage",
    "ratio_norm", "row_mean", "row_score", "sapo", "straight_through", "top_entropy", "truncated_weight",
    "weighted_k3",
]  # fmt: skip

from grpo_mm.registry import Entry

_FLOW = "configs/flow/"
_VIDEO = "configs/video/"

KINDS = (
    Entry("objective", "clipped_ratio", "grpo_mm.objectives.clipped_ratio:ClippedRatio", "arXiv:1707.06347", _FLOW + "flow_grpo_sd35.yaml"),
    Entry("objective", "ratio_norm", "grpo_mm.objectives.ratio_norm:RatioNorm", "arXiv:2510.22319", _FLOW + "guard_sd35.yaml"),
    Entry("objective", "divergence_mask", "grpo_mm.objectives.divergence_mask:DivergenceMask", "arXiv:2606.11025", _FLOW + "dppo_sd35.yaml"),
    Entry("objective", "nft", "grpo_mm.objectives.nft:Nft", "arXiv:2509.16117", _FLOW + "nft_sd35.yaml"),
    Entry("objective", "awm", "grpo_mm.objectives.awm:Awm", "arXiv:2509.25050", _FLOW + "awm_sd35.yaml"),
    Entry("objective", "cispo", "grpo_mm.objectives.cispo:Cispo", "arXiv:2506.13585"),
    Entry("objective", "sapo", "grpo_mm.objectives.sapo:Sapo", "arXiv:2511.20347"),
    Entry("objective", "gmpo", "grpo_mm.objectives.gmpo:Gmpo", "arXiv:2507.20673"),
    Entry("objective", "kl_cov", "grpo_mm.objectives.kl_cov:KlCov", "arXiv:2505.22617"),
    Entry("objective", "truncated", "grpo_mm.objectives.truncated:Truncated", "arXiv:1802.01561"),
    Entry("objective", "top_entropy", "grpo_mm.objectives.top_entropy:TopEntropy", "arXiv:2506.01939"),
    Entry("objective", "disco", "grpo_mm.objectives.disco:Disco", "arXiv:2505.12366"),
    Entry("objective", "hinge_kl", "grpo_mm.objectives.hinge_kl:HingeKl", "arXiv:2505.12366"),
    Entry("objective", "grao", "grpo_mm.objectives.grao:Grao", "arXiv:2508.07750"),
    Entry("objective", "regression", "grpo_mm.objectives.regression:Regression", "arXiv:2506.07464", _VIDEO + "deepvideo_r1_qwen25vl_3b.yaml"),
    Entry("objective", "kl", "grpo_mm.objectives.kl:Kl", "arXiv:2402.03300", _FLOW + "flow_grpo_sd35.yaml"),
)  # fmt: skip
"""What a config can name of this room."""
