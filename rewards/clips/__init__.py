"""Rewards that look at clips: what moves in them, and how.

No engine, no policy; pictures and texts are scored elsewhere.
"""

from grpo_mm.registry import Entry

KINDS = (
    Entry("reward", "moving_shapes", "grpo_mm.rewards.clips.moving_shapes:MovingShapesReward", "", "configs/quickstart/clips.yaml"),
)  # fmt: skip
"""What a config can name of this room."""
