"""Scores of texts about clips: spans of time, highlights, tracks; and what a report draws of them.

Whole benchmarks live in `benchmarks`.
"""

from grpo_mm.registry import Entry

_VIDEO = "configs/video/"

TAKES = "texts"
"""What the rewards of this room score."""
KINDS = (
    Entry("reward", "temporal_iou", "grpo_mm.rewards.video.temporal_iou:TemporalIou", "arXiv:2503.13377", _VIDEO + "time_r1_qwen25vl_7b.yaml"),
    Entry("reward", "timestamp_matching", "grpo_mm.rewards.video.timestamp_matching:TimestampMatching", "arXiv:2509.18056"),
    Entry("reward", "box_track", "grpo_mm.rewards.video.box_track:BoxTrack", "arXiv:2504.06958", _VIDEO + "videochat_r1_qwen25vl_7b.yaml"),
    Entry("reward", "box_track_format", "grpo_mm.rewards.video.box_track:BoxTrackFormat", "arXiv:2504.06958", _VIDEO + "videochat_r1_qwen25vl_7b.yaml"),
    Entry("sketch", "time_line", "grpo_mm.rewards.video.time_line:TimeLine", "", "configs/quickstart/video.yaml"),
)  # fmt: skip
"""What a config can name of this room."""
