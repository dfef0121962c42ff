"""How large the model sees a prompt's picture: what boxes in pixels of the resized picture are read by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from grpo_mm.errors import UserError
from grpo_mm.outside import reason
from grpo_mm.pipelines.vlm.prompting.open_media import is_video, open_media
from grpo_mm.types import Prompt

SIZES = ("width", "height", "resized_width", "resized_height")


def with_picture_size(prompt: Prompt, media: Any, image_processor: Any) -> Prompt:
    """The prompt with `SIZES` in its target: of the picture as it is, and after the processor's resize, in pixels.

    What the target holds already stays. Prompts without a mapping as target, with more or less than one of the media, with
    a video, or with a picture that cannot be read stay as they are.
    """
    if not isinstance(prompt.target, Mapping) or len(prompt.media) != 1 or all(s in prompt.target for s in SIZES):
        return prompt
    try:
        size = _size(media, prompt.media[0])
        seen = None if size is None else (*size, *resized(*size, image_processor))
    except (
        ValueError,
        OSError,
    ):  # the engine meets it again and names it: no picture, or of a shape that no model takes
        return prompt
    if seen is None:
        return prompt
    found = dict(zip(SIZES, seen, strict=True))
    return replace(prompt, target=found | dict(prompt.target))


def resized(width: int, height: int, image_processor: Any) -> tuple[int, int]:
    """(width, height) of the picture that a processor makes of one of that size; of one that cuts tiles, the picture's own.

    Raises:
        ValueError: the processor refuses such a shape.
    """
    if not hasattr(image_processor, "merge_size"):
        return width, height
    if type(image_processor).__name__.startswith("Glm"):  # a picture counts as the frames of a step
        return _of_glm(width, height, image_processor)
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    factor, size = image_processor.patch_size * image_processor.merge_size, image_processor.size
    down, across = smart_resize(
        height, width, factor, min_pixels=size["shortest_edge"], max_pixels=size["longest_edge"]
    )
    return across, down


def _of_glm(width: int, height: int, image_processor: Any) -> tuple[int, int]:
    from transformers.models.glm4v.image_processing_glm4v import smart_resize

    frames, size = image_processor.temporal_patch_size, image_processor.size
    down, across = smart_resize(
        frames, height, width, temporal_factor=frames, factor=image_processor.patch_size * image_processor.merge_size,
        min_pixels=size["shortest_edge"], max_pixels=size["longest_edge"],
    )  # fmt: skip
    return across, down


def _size(media: Any, item: Any) -> tuple[int, int] | None:
    """(width, height) of a picture; None for a video. Media that know it from the file's head need not decode."""
    if is_video(item):
        return None
    try:
        known = media.picture_size(item) if hasattr(media, "picture_size") else None
    except (UserError, ValueError, OSError):
        raise
    except Exception as error:
        raise ValueError(reason(error)) from error
    return known or open_media(media, item).size
