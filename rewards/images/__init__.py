"""Scores of pictures: preference and aesthetic networks, object checks, text in pictures, plain statistics.

A judge that is a language model lives in `judges`.
"""

from grpo_mm.registry import Entry

KINDS = (
    Entry("reward", "shape_world", "grpo_mm.rewards.images.shape_world:ShapeWorldReward", "", "configs/quickstart/flow.yaml"),
    Entry("reward", "geneval", "grpo_mm.rewards.images.geneval:GenEvalReward", "arXiv:2310.11513"),
    Entry("reward", "ocr", "grpo_mm.rewards.images.ocr:OcrReward", "arXiv:2505.05470"),
    Entry("reward", "clip_score", "grpo_mm.rewards.images.clip_score:ClipScore", "arXiv:2104.08718"),
    Entry("reward", "pick_score", "grpo_mm.rewards.images.pick_score:PickScore", "arXiv:2305.01569"),
    Entry("reward", "hps", "grpo_mm.rewards.images.hps:Hps", "arXiv:2306.09341"),
    Entry("reward", "image_reward", "grpo_mm.rewards.images.image_reward:ImageReward", "arXiv:2304.05977"),
    Entry("reward", "aesthetic", "grpo_mm.rewards.images.aesthetic:Aesthetic", "arXiv:2305.13301"),
    Entry("reward", "nearest_neighbour", "grpo_mm.rewards.images.nearest_neighbour:NearestNeighbour", "arXiv:2512.24138"),
    Entry("reward", "quality_guard", "grpo_mm.rewards.images.quality_guard:QualityGuard"),
    Entry("reward", "jpeg", "grpo_mm.rewards.images.jpeg:JpegSize", "arXiv:2305.13301"),
    Entry("reward", "image_quality", "grpo_mm.rewards.images.image_quality:ImageQuality", "", "configs/quickstart/flow.yaml"),
    Entry("color", "palette", "grpo_mm.rewards.images.colors:PaletteColors"),
    Entry("color", "clip", "grpo_mm.rewards.images.colors:ClipColors", "arXiv:2310.11513"),
    Entry("detector", "onnx", "grpo_mm.rewards.images.detectors:OnnxDetector"),
    Entry("detector", "transformers", "grpo_mm.rewards.images.detectors:TransformersDetector"),
)  # fmt: skip
"""What a config can name of this room."""
