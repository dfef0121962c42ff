"""Reward models that are a chat model for pictures with a head on it: what people would prefer of pictures, clips and edits.

CLIP and BLIP with heads live in `images`; models that answer in words in `judges`.
"""

from grpo_mm.registry import Entry

KINDS = (
    Entry("reward", "hpsv3", "grpo_mm.rewards.reward_models.hpsv3:Hpsv3", "arXiv:2508.03789", "configs/scorers/preference.yaml"),
    Entry("reward", "video_align", "grpo_mm.rewards.reward_models.video_align:VideoAlign", "arXiv:2501.13918", "configs/scorers/clips.yaml"),
    Entry("reward", "edit_reward", "grpo_mm.rewards.reward_models.edit_reward:EditReward", "arXiv:2509.26346", "configs/scorers/edits.yaml"),
    Entry("reward", "edit_score", "grpo_mm.rewards.reward_models.edit_score:EditScore", "arXiv:2509.23909", "configs/scorers/edits.yaml"),
)  # fmt: skip
"""What a config can name of this room."""
