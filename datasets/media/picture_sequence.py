"""A video that is published as a folder of pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from grpo_mm.datasets.media.frame_sampling import FrameSampling, plan_frames
from grpo_mm.datasets.media.media_files import Frames, resize
from grpo_mm.datasets.media.video_index import VideoError
from grpo_mm.errors import ConfigError

SUFFIXES = (".jpg", ".jpeg", ".png")
ALMOST = 1e-9
"""Above the rounding of a place, so that 3/6 of six pictures' gaps is the third."""


@dataclass(frozen=True)
class PictureSequence:
    """Some pictures of a folder, in the order of their names, as the frames of a video.

    Example: PictureSequence("val/GOT-10k_Val_000010", at=(0.0, 0.5, 1.0)): the first, the middle and the last picture.
    """

    path: str
    at: tuple[float, ...]
    """Where each frame lies between the first picture (0) and the last (1), rounded down to a picture. May repeat."""
    fps: float = 2.0
    """What a frame's number is in seconds: frame k stands for k / fps. Qwen's tools take 2 for pictures without a clock."""

    is_video: ClassVar[bool] = True


def chosen_pictures(sequence: PictureSequence) -> list[tuple[int, Path]]:
    """The number and the file of each frame.

    Raises:
        VideoError: no such folder, or no picture in it.
    """
    folder = Path(sequence.path)
    if not folder.is_dir():
        raise VideoError(sequence.path, "no such folder")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise VideoError(sequence.path, f"a folder without pictures ({', '.join(SUFFIXES)})")
    numbers = [int(place * (len(files) - 1) + ALMOST) for place in sequence.at]
    return [(number, files[number]) for number in numbers]


def read_pictures(sequence: PictureSequence, sampling: FrameSampling) -> Frames:
    """The frames, resized within the bounds of `sampling`, whose numbers of frames have no say: all are shown.

    Raises:
        VideoError: as `chosen_pictures`, or a picture that cannot be read.
        ConfigError: the pixel budget does not hold all frames, or a temporal patch would be left incomplete.
    """
    from PIL import Image

    chosen, count = chosen_pictures(sequence), len(sequence.at)
    opened: dict[int, torch.Tensor] = {}
    for number, file in chosen:
        if number not in opened:
            try:
                with Image.open(file) as picture:
                    opened[number] = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
            except (OSError, SyntaxError, ValueError) as error:
                raise VideoError(sequence.path, f"{file.name} cannot be read: {error}") from error
    height, width = opened[chosen[0][0]].shape[1:]
    duration = count / sequence.fps
    wanted = replace(sampling, frames=count, min_frames=1, max_frames=None)
    plan = plan_frames(wanted, duration=duration, available=count, height=height, width=width)
    if plan.count != count:
        raise ConfigError(
            f"{sequence.path}: {count} pictures are asked for, of which {plan.count} fit: max_pixels_total = "
            f"{sampling.max_pixels_total}, frames in multiples of temporal_patch = {sampling.temporal_patch}. Raise the budget or "
            "lower min_pixels_frame; none is left out, as what is told of each would no longer fit."
        )
    resized = {number: resize(picture, plan.height, plan.width) for number, picture in opened.items()}
    return Frames(
        frames_FCHW=torch.stack([resized[number] for number, _ in chosen]),
        time_F=torch.arange(count, dtype=torch.float64) / sequence.fps,
        index_F=torch.tensor([number for number, _ in chosen]),
        fps=sequence.fps,
        duration=duration,
        source_fps=sequence.fps,
        decoder="pictures",
    )
