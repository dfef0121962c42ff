"""Scores of edited pictures: what was kept of the source, in all and outside of what was to be edited; whether it changed the way the
captions say; how near it comes to the picture that was wanted; and a judge that sees both.

Networks that were taught on edits live in `reward_models`, the pairwise question in `judges`.
"""

from grpo_mm.registry import Entry

TAKES = "pictures"
"""What the rewards of this room score."""
KINDS = (
    Entry("reward", "source_similarity", "grpo_mm.rewards.edits.picture_similarity:SourceSimilarity", "arXiv:2505.05470"),
    Entry("reward", "target_similarity", "grpo_mm.rewards.edits.picture_similarity:TargetSimilarity"),
    Entry("reward", "clip_direction", "grpo_mm.rewards.edits.clip_direction:ClipDirection", "arXiv:2108.00946"),
    Entry("reward", "edit_judge", "grpo_mm.rewards.edits.edit_judge:EditJudge", "arXiv:2503.05236"),
)  # fmt: skip
"""What a config can name of this room."""
