"""Models that judge: which of two pictures is better, verdicts on texts, what they are asked, servers, stored answers,
win rates.

Rules without a model live with their modality.
"""

from grpo_mm.moved import MOVED, hand_on
from grpo_mm.registry import Entry

KINDS = (
    Entry("reward", "win_rate", "grpo_mm.rewards.judges.win_rate:WinRate", "arXiv:2508.20751"),
    Entry("reward", "unified_reward", "grpo_mm.rewards.judges.unified_reward:UnifiedReward", "arXiv:2503.05236"),
    Entry("judge", "pointwise", "grpo_mm.rewards.judges.comparing:PointwiseJudge"),
    Entry("judge", "transformers", "grpo_mm.rewards.judges.comparing:TransformersJudge", "arXiv:2505.03318"),
    Entry("judge", "server", "grpo_mm.rewards.judges.comparing:ServerJudge", "arXiv:2505.03318"),
    Entry("judge", "first_token", "grpo_mm.rewards.judges.first_token:FirstTokenJudge", "arXiv:2509.08826"),
    Entry("verdict", "model", "grpo_mm.rewards.judges.verdicts:ModelJudge", "arXiv:2604.08476"),
    Entry("vlm", "transformers", "grpo_mm.rewards.judges.vlm:TransformersVlm"),
    Entry("vlm", "server", "grpo_mm.rewards.judges.vlm_server:ServerVlm"),
    Entry("reward", "vlm_yes_no", "grpo_mm.rewards.judges.vlm_yes_no:VlmYesNo", "arXiv:2404.01291"),
)  # fmt: skip
"""What a config can name of this room."""

hand_on(__name__, MOVED[__name__])
