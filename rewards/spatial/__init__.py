"""Scores of texts about places in pictures: boxes, points, maps, how they are read and compared, and drawn in reports.

Whether a reasoning bears out its answer is scored in `faithfulness`.
"""

from grpo_mm.registry import Entry

TAKES = "texts"
"""What the rewards of this room score."""
KINDS = (
    Entry("reward", "spatial_grounding", "grpo_mm.rewards.spatial.box_grounding:SpatialGrounding", "arXiv:2604.08476"),
    Entry("reward", "dual_box_iou", "grpo_mm.rewards.spatial.box_grounding:DualBoxIou", "arXiv:2507.07999"),
    Entry("reward", "union_box_iou", "grpo_mm.rewards.spatial.box_grounding:UnionBoxIou", "arXiv:2505.15879"),
    Entry("reward", "grit_format", "grpo_mm.rewards.spatial.grit:GritFormat", "arXiv:2505.15879"),
    Entry("reward", "grit_count", "grpo_mm.rewards.spatial.grit:GritCount", "arXiv:2505.15879"),
    Entry("reward", "grit_answer", "grpo_mm.rewards.spatial.grit:GritAnswer", "arXiv:2505.15879"),
    Entry("reward", "referring_box", "grpo_mm.rewards.spatial.referring_box:ReferringBox", "arXiv:2504.07615"),
    Entry("reward", "box_answer_format", "grpo_mm.rewards.spatial.referring_box:BoxAnswerFormat", "arXiv:2504.07615"),
    Entry("reward", "detection_map", "grpo_mm.rewards.spatial.detection_map:DetectionMap", "arXiv:2504.07615"),
    Entry("reward", "detection_confidence", "grpo_mm.rewards.spatial.detection_confidence:DetectionConfidence", "arXiv:2503.01785"),
    Entry("reward", "perception_boxes", "grpo_mm.rewards.spatial.perception_boxes:PerceptionBoxes", "arXiv:2504.07954"),
    Entry("reward", "spacer", "grpo_mm.rewards.spatial.spacer:SpacerAnswer", "arXiv:2504.01805"),
    Entry("reward", "vigorl", "grpo_mm.rewards.spatial.vigorl:Vigorl", "arXiv:2505.23678"),
    Entry("sketch", "boxes", "grpo_mm.rewards.spatial.box_sketch:BoxSketch"),
)  # fmt: skip
"""What a config can name of this room."""
