"""Models that judge: which of two pictures is better, verdicts on texts, what they are asked, servers, stored answers,
win rates.

Rules without a model live with their modality.
"""

from grpo_mm.moved import former_names
from grpo_mm.registry import Entry

KINDS = (
    Entry("reward", "win_rate", "grpo_mm.rewards.judges.win_rate:WinRate", "arXiv:2508.20751"),
    Entry("reward", "unified_reward", "grpo_mm.rewards.judges.unified_reward:UnifiedReward", "arXiv:2503.05236"),
    Entry("judge", "pointwise", "grpo_mm.rewards.judges.comparing:PointwiseJudge"),
    Entry("judge", "transformers", "grpo_mm.rewards.judges.comparing:TransformersJudge", "arXiv:2505.03318"),
    Entry("judge", "server", "grpo_mm.rewards.judges.comparing:ServerJudge", "arXiv:2505.03318"),
    Entry("verdict", "model", "grpo_mm.rewards.judges.verdicts:ModelJudge", "arXiv:2604.08476"),
    Entry("vlm", "transformers", "grpo_mm.rewards.judges.vlm:TransformersVlm"),
    Entry("vlm", "server", "grpo_mm.rewards.judges.vlm_server:ServerVlm"),
)  # fmt: skip
"""What a config can name of this room."""

__getattr__ = former_names(__name__)
