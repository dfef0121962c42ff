"""What only clips need: frames that are noised or shuffled, difficulty, demonstrations; the published settings for
temporal grounding.

Whatever a picture needs too lives in `vlm`.
"""

from grpo_mm.registry import Entry

_VIDEO = "configs/video/"

KINDS = (
    Entry("preset", "temp_samp_r1", _VIDEO + "tempsamp_qwen25vl_7b.yaml", "arXiv:2509.18056", _VIDEO + "tempsamp_qwen25vl_7b.yaml"),
    Entry("preset", "temp_samp_r1_downscaling", _VIDEO + "tempsamp_downscaling_qwen25vl_7b.yaml", "arXiv:2509.18056", _VIDEO + "tempsamp_downscaling_qwen25vl_7b.yaml"),
    Entry("preset", "temp_samp_r1_anchoring", _VIDEO + "tempsamp_anchoring_qwen25vl_7b.yaml", "arXiv:2509.18056", _VIDEO + "tempsamp_anchoring_qwen25vl_7b.yaml"),
    Entry("preset", "temp_samp_r1_second", _VIDEO + "tempsamp_second_qwen3vl_4b.yaml", "arXiv:2509.18056", _VIDEO + "tempsamp_second_qwen3vl_4b.yaml"),
    Entry("preset", "deep_video_r1", _VIDEO + "deepvideo_r1_qwen25vl_3b.yaml", "arXiv:2506.07464", _VIDEO + "deepvideo_r1_qwen25vl_3b.yaml"),
    Entry("preset", "grpo_care", _VIDEO + "care_qwen25vl_7b.yaml", "arXiv:2506.16141", _VIDEO + "care_qwen25vl_7b.yaml"),
    Entry("preset", "time_r1", _VIDEO + "time_r1_qwen25vl_7b.yaml", "arXiv:2503.13377", _VIDEO + "time_r1_qwen25vl_7b.yaml"),
    Entry("preset", "time_r1_finetune", _VIDEO + "time_r1_finetune_qwen25vl_7b.yaml", "arXiv:2503.13377", _VIDEO + "time_r1_finetune_qwen25vl_7b.yaml"),
    Entry("preset", "video_chat_r1", _VIDEO + "videochat_r1_qwen25vl_7b.yaml", "arXiv:2504.06958", _VIDEO + "videochat_r1_qwen25vl_7b.yaml"),
    Entry("preset", "video_r1", _VIDEO + "video_r1_qwen25vl_7b.yaml", "arXiv:2503.21776", _VIDEO + "video_r1_qwen25vl_7b.yaml"),
    Entry("preset", "time_lens", _VIDEO + "timelens_qwen25vl_7b.yaml", "arXiv:2512.14698", _VIDEO + "timelens_qwen25vl_7b.yaml"),
    Entry("preset", "time_lens_qwen3vl", _VIDEO + "timelens_qwen3vl_8b.yaml", "arXiv:2512.14698", _VIDEO + "timelens_qwen3vl_8b.yaml"),
    Entry("demonstration", "last_row", "grpo_mm.pipelines.video_grounding.demonstrations:LastRow", "arXiv:2509.18056"),
    Entry("strategy", "shuffled_frames", "grpo_mm.pipelines.video_grounding.shuffled_frames:MeasureShuffled", "arXiv:2503.21776", _VIDEO + "video_r1_qwen25vl_7b.yaml"),
    Entry("strategy", "difficulty", "grpo_mm.pipelines.video_grounding.difficulty:DifficultyAugmentation", "arXiv:2506.07464", _VIDEO + "deepvideo_r1_qwen25vl_3b.yaml"),
)  # fmt: skip
"""What a config can name of this room."""
