"""Scores of clips that a policy draws: how steady, how moving, how even; what is written in them, and what a model says of their frames.

Rewards of single pictures live in `images` and are asked about frames by `frames`; answers about videos are scored in `video`.
"""

from grpo_mm.registry import Entry

TAKES = "clips"
"""What the rewards of this room score."""
KINDS = (
    Entry("reward", "temporal_consistency", "grpo_mm.rewards.clips.temporal_consistency:TemporalConsistency", "arXiv:2311.17982"),
    Entry("reward", "temporal_flicker", "grpo_mm.rewards.clips.pixel_movement:TemporalFlicker", "arXiv:2311.17982"),
    Entry("reward", "motion_amount", "grpo_mm.rewards.clips.pixel_movement:MotionAmount", "arXiv:2311.17982"),
    Entry("reward", "motion_smoothness", "grpo_mm.rewards.clips.pixel_movement:MotionSmoothness", "arXiv:2311.17982"),
    Entry("reward", "video_ocr", "grpo_mm.rewards.clips.video_ocr:VideoOcr", "arXiv:2505.05470"),
    Entry("reward", "clip_judge", "grpo_mm.rewards.clips.clip_judge:ClipJudge", "arXiv:2503.05236"),
)  # fmt: skip
"""What a config can name of this room."""
