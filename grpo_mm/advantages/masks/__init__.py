"""Which rows and actions are trained at all, and the control that trains on the wrong ones.

Nothing here changes what a row earned.
"""

from grpo_mm.registry import Entry

KINDS = (
    Entry("advantage", "keep_extremes", "grpo_mm.advantages.masks.select:KeepExtremes", "arXiv:2505.07818"),
    Entry("advantage", "drop_degenerate", "grpo_mm.advantages.masks.drop_degenerate:DropDegenerate", "arXiv:2503.14476"),
    Entry("advantage", "overlong_mask", "grpo_mm.advantages.masks.truncation:OverlongMask", "arXiv:2503.14476"),
    Entry("advantage", "conditional_truncation_mask", "grpo_mm.advantages.masks.truncation:ConditionalTruncationMask", "arXiv:2603.07777"),
    Entry("advantage", "leave_out", "grpo_mm.advantages.masks.leave_out:LeaveOut", "arXiv:2505.07686"),
    Entry("advantage", "shuffle", "grpo_mm.advantages.masks.shuffle:Shuffle"),
)  # fmt: skip
"""What a config can name of this room."""
