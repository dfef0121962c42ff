"""A video that is published as a folder of pictures."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from grpo_mm.datasets.media.frame_sampling import FrameSampling, plan_frames
from grpo_mm.datasets.media.media_files import Frames, resize
from grpo_mm.datasets.media.pictures import PictureError, open_picture, picture_size
from grpo_mm.datasets.media.video_index import VideoError
from grpo_mm.errors import ConfigError
from grpo_mm.outside import finite_number, plain, shown

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
ALMOST = 1e-9
"""Above the rounding of a place, so that 3/6 of six pictures' gaps is the third."""


@dataclass(frozen=True)
class PictureSequence:
    """Some pictures of a folder, in the order of their names, as the frames of a video.

    Numbers in names count as numbers: frame_2 comes before frame_10. Hidden files are none of them.

    Example: PictureSequence("val/GOT-10k_Val_000010", at=(0.0, 0.5, 1.0)): the first, the middle and the last picture.
    """

    path: str
    at: tuple[float, ...]
    """Where each frame lies between the first picture (0) and the last (1), rounded down to a picture. May repeat."""
    fps: float = 2.0
    """What a frame's number is in seconds: frame k stands for k / fps. Qwen's tools take 2 for pictures without a clock."""

    is_video: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raises ConfigError for places outside of 0 to 1, none at all, or a rate that is no number above 0."""
        if not self.at or not all(0 <= place <= 1 for place in self.at):
            raise ConfigError(f"{plain(self.path)}: frames at {shown(self.at)}; wanted places from 0 to 1.")
        if not (finite_number(self.fps) or 0) > 0:
            raise ConfigError(f"{plain(self.path)}: fps = {shown(self.fps)}; wanted a number above 0.")


def chosen_pictures(sequence: PictureSequence) -> list[tuple[int, Path]]:
    """The number and the file of each frame.

    Raises:
        VideoError: no such folder, or no picture in it.
    """
    folder = Path(sequence.path)
    if not folder.is_dir():
        raise VideoError(sequence.path, "no such folder")
    found = (file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
    files = sorted(found, key=lambda file: natural(file.name))
    if not files:
        raise VideoError(sequence.path, f"a folder without pictures ({', '.join(SUFFIXES)})")
    numbers = [int(place * (len(files) - 1) + ALMOST) for place in sequence.at]
    return [(number, files[number]) for number in numbers]


def natural(name: str) -> tuple[list[str | int], str]:
    """A key that sorts names by the numbers in them; of names with equal ones (7, 007) the plain order decides."""
    return [int(part) if part.isascii() and part.isdigit() else part for part in re.split("([0-9]+)", name)], name


def read_pictures(sequence: PictureSequence, sampling: FrameSampling) -> Frames:
    """The frames, resized within the bounds of `sampling`, whose numbers of frames have no say: all are shown.

    Raises:
        VideoError: as `chosen_pictures`, a picture that cannot be read, or one that has another size than the first.
        ConfigError: the pixel budget does not hold all frames, or a temporal patch would be left incomplete.
    """
    chosen, count = chosen_pictures(sequence), len(sequence.at)
    try:
        width, height = picture_size(str(chosen[0][1]))
    except PictureError as error:
        raise VideoError(sequence.path, f"{chosen[0][1].name} cannot be read: {error.reason}") from error
    duration = count / sequence.fps
    wanted = replace(sampling, frames=count, min_frames=1, max_frames=None)
    plan = plan_frames(wanted, duration=duration, available=count, height=height, width=width)
    if plan.count != count:
        raise ConfigError(
            f"{sequence.path}: {count} pictures are asked for, of which {plan.count} fit: max_pixels_total = "
            f"{sampling.max_pixels_total}, frames in multiples of temporal_patch = {sampling.temporal_patch}. Raise the budget or "
            "lower min_pixels_frame; none is left out, as what is told of each would no longer fit."
        )
    resized: dict[int, torch.Tensor] = {}  # at full size there is one picture at a time
    for number, file in chosen:
        if number not in resized:
            resized[number] = resize(_opened(sequence, file, (width, height)), plan.height, plan.width)
    return Frames(
        frames_FCHW=torch.stack([resized[number] for number, _ in chosen]),
        time_F=torch.arange(count, dtype=torch.float64) / sequence.fps,
        index_F=torch.tensor([number for number, _ in chosen]),
        fps=sequence.fps,
        duration=duration,
        source_fps=sequence.fps,
        decoder="pictures",
    )


def _opened(sequence: PictureSequence, file: Path, size: tuple[int, int]) -> torch.Tensor:
    """[3, H, W] uint8."""
    try:
        picture = open_picture(str(file))
    except PictureError as error:
        raise VideoError(sequence.path, f"{file.name} cannot be read: {error.reason}") from error
    if picture.size != size:
        sizes = f"{picture.width} × {picture.height}", f"{size[0]} × {size[1]}"
        raise VideoError(
            sequence.path, f"{file.name} has {sizes[0]} pixels, the first picture {sizes[1]}; wanted one size"
        )
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
