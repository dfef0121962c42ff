"""What only grounded pictures need: the sizes by which boxes are read; the published settings for spatial and grounded
reasoning.

Whatever a clip needs too lives in `vlm`.
"""

from grpo_mm.registry import Entry

_SPATIAL = "configs/spatial/"

KINDS = (
    Entry("preset", "faithful_grpo_7b", _SPATIAL + "fgrpo_qwen25vl_7b.yaml", "arXiv:2604.08476", _SPATIAL + "fgrpo_qwen25vl_7b.yaml"),
    Entry("preset", "faithful_grpo_3b", _SPATIAL + "fgrpo_qwen25vl_3b.yaml", "arXiv:2604.08476", _SPATIAL + "fgrpo_qwen25vl_3b.yaml"),
    Entry("preset", "grit", _SPATIAL + "grit_qwen25vl_3b.yaml", "arXiv:2505.15879", _SPATIAL + "grit_qwen25vl_3b.yaml"),
    Entry("preset", "grit_judge", _SPATIAL + "grit_judge_qwen25vl_3b.yaml", "arXiv:2505.15879", _SPATIAL + "grit_judge_qwen25vl_3b.yaml"),
    Entry("preset", "grpo_care_image", _SPATIAL + "care_image_qwen25vl_7b.yaml", "arXiv:2506.16141", _SPATIAL + "care_image_qwen25vl_7b.yaml"),
    Entry("preset", "tree_vgr", _SPATIAL + "treevgr_qwen25vl_7b.yaml", "arXiv:2507.07999", _SPATIAL + "treevgr_qwen25vl_7b.yaml"),
    Entry("preset", "vlm_r1_rec", _SPATIAL + "vlm_r1_rec_qwen25vl_3b.yaml", "arXiv:2504.07615", _SPATIAL + "vlm_r1_rec_qwen25vl_3b.yaml"),
    Entry("preset", "vlm_r1_detection", _SPATIAL + "vlm_r1_detection_qwen25vl_3b.yaml", "arXiv:2504.07615", _SPATIAL + "vlm_r1_detection_qwen25vl_3b.yaml"),
    Entry("preset", "visual_rft", _SPATIAL + "visual_rft_qwen2vl_2b.yaml", "arXiv:2503.01785", _SPATIAL + "visual_rft_qwen2vl_2b.yaml"),
    Entry("preset", "perception_r1", _SPATIAL + "perception_r1_qwen2vl_2b.yaml", "arXiv:2504.07954", _SPATIAL + "perception_r1_qwen2vl_2b.yaml"),
    Entry("preset", "spacer", _SPATIAL + "spacer_qwen25vl_7b.yaml", "arXiv:2504.01805", _SPATIAL + "spacer_qwen25vl_7b.yaml"),
    Entry("preset", "vigorl", _SPATIAL + "vigorl_qwen25vl_7b.yaml", "arXiv:2505.23678", _SPATIAL + "vigorl_qwen25vl_7b.yaml"),
)  # fmt: skip
"""What a config can name of this room."""
