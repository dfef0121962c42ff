"""Which of GenEval's ten colours does a detected object have?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from grpo_mm.rewards.images.clip_score import Clip, check_clip
from grpo_mm.rewards.images.detectors import Detection

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")


class ColorClassifier(Protocol):
    def __call__(self, image: Tensor, detections: Sequence[Detection]) -> list[str]:
        """uint8 [3, H, W] and objects in it, all of one class -> a name out of COLORS for each, "" for none."""
        ...


@dataclass
class PaletteColors:
    """By a vote of pixels, without a network: cheap, deterministic, and fooled by shadows and busy backgrounds.

    Pixels of the object's mask vote, or those of the ellipse in the middle of its box. Deviates from GenEval, which
    asks CLIP; use `ClipColors` for numbers to be compared with published ones.
    """

    middle: float = 0.7
    """Diameter of the voting ellipse in boxes, for detections without a mask."""

    def __call__(self, image: Tensor, detections: Sequence[Detection]) -> list[str]:
        return [palette_color(image.cpu()[:, self._voters(d, image.shape[1:])]) for d in detections]

    def _voters(self, detection: Detection, size: Sequence[int]) -> Tensor:
        if detection.mask_HW is not None and detection.mask_HW.any():
            return detection.mask_HW.cpu()
        left, top, right, bottom = detection.box_xyxy_px
        y = (torch.arange(size[0]) + 0.5 - (top + bottom) / 2) / max(bottom - top, 1e-6)
        x = (torch.arange(size[1]) + 0.5 - (left + right) / 2) / max(right - left, 1e-6)
        return y[:, None] ** 2 + x[None, :] ** 2 <= (self.middle / 2) ** 2


def palette_color(pixels_3K: Tensor) -> str:
    """The colour name that most of [3, K] uint8 pixels have; "" if they are grey or none.

    Colourful pixels win over black and white as soon as they are a quarter of all: highlights, shadows and background
    are colourless. Our own boundaries in hue, saturation and value.
    """
    if pixels_3K.shape[1] == 0:
        return ""
    r, g, b = (pixels_3K.float() / 255).unbind(0)
    value = torch.stack([r, g, b]).amax(0)
    saturation = (value - torch.stack([r, g, b]).amin(0)) / value.clamp_min(1e-6)
    hue = torch.rad2deg(torch.atan2(3**0.5 * (g - b), 2 * r - g - b)) % 360
    dark, grey = value < 0.2, saturation < 0.15
    pale, dull, reddish = saturation < 0.55, value < 0.7, (hue < 15) | (hue >= 345)
    tan = (hue >= 15) & (hue < 45) & (saturation < 0.45)
    brown = ((hue >= 15) & (hue < 45) & dull) | tan | (reddish & dull & (saturation < 0.8))
    name_of = {
        "black": dark | (grey & (value < 0.3)),
        "white": ~dark & grey & (value > 0.75),
        "brown": brown,
        "pink": (reddish & pale & ~dull) | ((hue >= 290) & (hue < 345) & (value >= 0.65)),
        "red": reddish,
        "orange": (hue >= 15) & (hue < 42),
        "yellow": (hue >= 42) & (hue < 70),
        "green": (hue >= 70) & (hue < 170),
        "blue": (hue >= 170) & (hue < 255),
        "purple": (hue >= 255) & (hue < 345),
    }
    votes, free = {}, torch.ones_like(dark)
    for name, holds in name_of.items():  # the first that holds has the pixel
        counts = holds & free & (~grey | (name in ("black", "white")))
        votes[name], free = int(counts.sum()), free & ~counts
    colorful = {name: n for name, n in votes.items() if name not in ("black", "white")}
    electorate = colorful if sum(colorful.values()) >= 0.25 * pixels_3K.shape[1] else votes
    winner = max(electorate, key=electorate.__getitem__)
    return winner if electorate[winner] else ""


@dataclass
class ClipColors:
    """By CLIP, zero-shot, as GenEval does: the crop, everything outside the object's mask painted grey (#999).

    A detector without masks gives plain crops, as in GenEval's own code. Source: arXiv:2310.11513,
    evaluation/evaluate_images.py (color_classification).
    """

    model: str = "ViT-L-14-quickgelu"
    """As for `clip_score`."""
    pretrained: str | None = "openai"
    """A tag known to open_clip or a file with weights."""

    def __post_init__(self) -> None:
        self._clip = Clip(self.model, self.pretrained)
        self._text_features: dict[str, Tensor] = {}

    def check(self) -> None:
        """Raises ConfigError if open_clip or a local file is missing."""
        check_clip(self.model, self.pretrained)

    def to(self, device: torch.device | str) -> ClipColors:
        self._clip.to(device)
        return self

    def __call__(self, image: Tensor, detections: Sequence[Detection]) -> list[str]:
        if not detections:
            return []
        features = torch.cat([self._clip.image_features(_crop(image, d)[None]) for d in detections]).cpu()
        best = (features @ self._colors_of(detections[0].label).T).argmax(1)
        return [COLORS[i] for i in best.tolist()]

    def _colors_of(self, label: str) -> Tensor:
        """[10, D]: for each colour the mean over templates, normalised before and after."""
        if label not in self._text_features:
            templates = [f"a photo of a {{}} {label}", f"a photo of a {{}}-colored {label}", "a photo of a {} object"]
            per_color = [self._clip.text_features([t.format(c) for t in templates]).mean(0) for c in COLORS]
            self._text_features[label] = torch.nn.functional.normalize(torch.stack(per_color), dim=-1).cpu()
        return self._text_features[label]


def _crop(image: Tensor, detection: Detection) -> Tensor:
    if detection.mask_HW is not None:
        grey = torch.full_like(image, 0x99)
        image = torch.where(detection.mask_HW.to(image.device), image, grey)
    _, height, width = image.shape
    left, top, right, bottom = (round(edge) for edge in detection.box_xyxy_px)
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    return image[:, top : max(bottom, top + 1), left : max(right, left + 1)]
