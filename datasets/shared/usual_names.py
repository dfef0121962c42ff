"""What columns are usually called, by what they hold."""

from __future__ import annotations

import re

USUAL: dict[str, tuple[str, ...]] = {
    "question": (
        "question", "query", "problem", "prompt", "instruction", "edit_prompt", "edit_instruction", "edited_prompt_list", "edit", "sentence", "expression",
        "caption", "text", "prompt_en", "input",
    ),
    "image": (
        "image", "images", "image_path", "image_paths", "img", "imgs", "img_path", "image_file", "image_name", "picture",
        "pictures", "photo", "file_name",
    ),
    "video": ("video", "videos", "video_path", "video_paths", "video_file", "video_name", "clip", "clip_path", "file_name"),
    "answer": (
        "answer", "answers", "solution", "ground_truth", "correct_answer", "multiple_choice_answer", "gt_answer", "gt", "label",
        "target", "response", "completion", "output",
    ),
    "span": (
        "span", "spans", "timestamp", "timestamps", "relevant_windows", "gt_span", "gt_spans", "time_span", "segment", "segments",
        "window", "windows", "moment", "moments",
    ),
    "boxes": ("boxes", "bbox", "bboxes", "box", "bboxs", "bbox_2d", "objects"),
    "id": ("id", "question_id", "qid", "uid", "sample_id", "problem_id", "idx", "pid"),
    "options": ("options", "choices", "candidates"),
    "answer_type": ("answer_type", "problem_type"),
    "duration": ("duration", "video_duration", "duration_seconds", "video_length"),
    "width": ("width", "image_width", "img_width"),
    "height": ("height", "image_height", "img_height"),
}  # fmt: skip
"""What a column holds → its names, the likeliest first."""
EDITS: dict[str, tuple[str, ...]] = {
    "source_image": (
        "source_image", "source_img", "src_image", "src_img", "input_image", "original_image", "original_img", "source_images",
        "input_images", "image_before", "source", "original", "before", "input",
    ),
    "reference_image": ("reference_image", "reference_images", "ref_image", "ref_images", "reference", "references"),
    "edited_image": (
        "edited_image", "edited_img", "target_image", "target_img", "output_image", "output_img", "image_after", "edited_file",
        "target", "output", "edited", "after", "result",
    ),
    "mask": ("mask", "mask_img", "mask_image", "edit_mask"),
}  # fmt: skip
"""Of an edit: the picture before, further ones that the model is shown, the picture after, where it was edited."""
SPAN_PAIRS = (
    ("start", "end"), ("start_time", "end_time"), ("start_sec", "end_sec"), ("start_seconds", "end_seconds"),
    ("start_s", "end_s"), ("t_start", "t_end"), ("begin", "end"), ("start", "stop"), ("start_timestamp", "end_timestamp"), ("from", "to"),
)  # fmt: skip
"""Two columns of one span."""


def folded(name: str) -> str:
    """Without case, and with one kind of gap: "Image Path", "imagePath" and "image-path" are "image_path"."""
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[\s_-]+", "_", parts).lower()


def same_meaning(one: str, other: str) -> bool:
    """Whether two names are usual for one thing."""
    a, b = folded(one), folded(other)
    groups = [*USUAL.values(), *EDITS.values(), *(tuple(names) for names in zip(*SPAN_PAIRS))]
    return any(a in names and b in names for names in groups)
