"""Readers of published annotations of clips: temporal grounding, questions, tracking.

Decoding lives in `media`.
"""

from grpo_mm.moved import MOVED, hand_on
from grpo_mm.registry import Entry

_VIDEO = "configs/video/"

KINDS = (
    Entry("prompts", "charades_sta", "grpo_mm.datasets.video.charades_sta:CharadesSta", "arXiv:1705.02101", _VIDEO + "tempsamp_qwen25vl_7b.yaml"),
    Entry("prompts", "activitynet_captions", "grpo_mm.datasets.video.activitynet_captions:ActivityNetCaptions", "arXiv:1705.00754"),
    Entry("prompts", "qvhighlights", "grpo_mm.datasets.video.qvhighlights:QVHighlights", "arXiv:2107.09609"),
    Entry("prompts", "tvgbench", "grpo_mm.datasets.video.tvgbench:TvgBench", "arXiv:2503.13377"),
    Entry("prompts", "timelens_bench", "grpo_mm.datasets.video.timelens:TimeLensBench", "arXiv:2512.14698", _VIDEO + "timelens_qwen25vl_7b.yaml"),
    Entry("prompts", "timelens_100k", "grpo_mm.datasets.video.timelens:TimeLens100K", "arXiv:2512.14698", _VIDEO + "timelens_qwen25vl_7b.yaml"),
    Entry("prompts", "got10k", "grpo_mm.datasets.video.got10k:Got10k", "arXiv:2504.06958", _VIDEO + "videochat_r1_qwen25vl_7b.yaml"),
    Entry("prompts", "video_quality", "grpo_mm.datasets.video.video_quality:VideoQuality", "arXiv:2504.06958"),
    Entry("prompts", "time_r1", "grpo_mm.datasets.video.tvgbench:TimeR1Rows", "arXiv:2503.13377", _VIDEO + "time_r1_qwen25vl_7b.yaml"),
    Entry("prompts", "nextgqa", "grpo_mm.datasets.video.nextgqa:NextGqa", "arXiv:2309.01327", _VIDEO + "videochat_r1_qwen25vl_7b.yaml"),
    Entry("prompts", "video_r1", "grpo_mm.datasets.video.video_r1:VideoR1Questions", "arXiv:2503.21776", _VIDEO + "video_r1_qwen25vl_7b.yaml"),
    Entry("prompts", "vsi_bench", "grpo_mm.datasets.video.vsi_bench:VsiBench", "arXiv:2412.14171"),
)  # fmt: skip
"""What a config can name of this room."""

hand_on(__name__, MOVED[__name__])
