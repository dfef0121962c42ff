"""Worlds that the package draws itself: shapes, scenes, clips, with questions whose answers are known.

No files of others.
"""

from grpo_mm.registry import Entry

KINDS = (
    Entry("prompts", "shape_world", "grpo_mm.datasets.worlds.shape_world:ShapeWorldPrompts", "", "configs/quickstart/flow.yaml"),
    Entry("prompts", "clip_world", "grpo_mm.datasets.worlds.clip_world:ClipWorld", "", "configs/quickstart/video.yaml"),
    Entry("prompts", "scene_world", "grpo_mm.datasets.worlds.scene_world:SceneWorld", "", "configs/quickstart/spatial.yaml"),
    Entry("prompts", "moving_shapes", "grpo_mm.datasets.worlds.moving_shapes:MovingShapesPrompts", "", "configs/quickstart/clips.yaml"),
)  # fmt: skip
"""What a config can name of this room."""
