"""Pictures and videos by path: decoding, frames and their times, stores.

Nothing here knows a data set.
"""

from grpo_mm.registry import Entry

KINDS = (
    Entry("media", "frame_store", "grpo_mm.datasets.media.frame_store:FrameStore", "", "configs/quickstart/video.yaml"),
)  # fmt: skip
"""What a config can name of this room."""
