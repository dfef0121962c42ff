"""Does the picture show what the caption asks for? Reads pixels only: which coloured shapes are there, and where.

Written against reward hacking: a fragment is no shape (its outline fits none), things nobody asked for and stray
pixels cost, and leaving a thing out never pays more than drawing it wrongly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from grpo_mm.rewards.shared.pictures import takes_pictures
from grpo_mm.types import Prompt

PALETTE = {
    "red": (230, 45, 45),
    "green": (45, 225, 80),
    "blue": (50, 90, 235),
    "yellow": (235, 215, 45),
    "purple": (185, 55, 230),
    "cyan": (50, 215, 230),
}
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}

_HUES_K3 = np.array([np.array(rgb) / max(rgb) for rgb in PALETTE.values()])
_DARK, _BRIGHT = 26, 230
"""Brightest channel of the ground and of a thing."""
_MIN_AREA, _MAX_AREA = 0.006, 0.25
"""Share of the image: below it is a speck, above it no shape."""
_MAX_THINGS = 8
_RING = np.ones((3, 3), bool)


@dataclass(frozen=True)
class Detection:
    """A connected patch of one colour. Example: Detection("circle", "red", x=0.3, y=0.5, area=0.09, fit=0.97)."""

    shape: str
    """The ideal shape that it resembles most."""
    color: str
    x: float
    """Centre of mass, 0 to 1 from the left."""
    y: float
    """0 to 1 from the top."""
    area: float
    """Share of the image."""
    fit: float
    """Overlap (intersection over union) with that ideal shape at the same area and centre of mass; 1 is perfect."""


def detect(image_HWC: np.ndarray) -> list[Detection]:
    """Things in a uint8 picture, the largest first and at most eight; never raises on any picture."""
    return read(np.asarray(image_HWC))[0]


def score(image_HWC: np.ndarray, target: Mapping[str, Any]) -> dict[str, float]:
    """How well a picture shows a target such as
    {"things": [{"shape": "circle", "color": "red"}, {"shape": "square", "color": "blue"}], "relation": "left of"}.

    Returns:
        score: 0 to 1. Each thing earns half for its colour and half for its shape (scaled by how clean the outline
            is; half of that if the colour is wrong); things make 70 %, the relation between the first two 30 % (only
            if both colours are there). Every thing nobody asked for multiplies by 0.8, stray colour by its share.
        all_correct: 1 if everything is right, outlines are clean and nothing else is there.
        extras: number of things that are not of a wanted colour, or are surplus.
    """
    found, stray = read(np.asarray(image_HWC))
    wanted = target["things"]
    matched = match(found, wanted)
    credits = [credit(thing, want) for thing, want in zip(matched, wanted)]
    right_color = [thing is not None and thing.color == want["color"] for thing, want in zip(matched, wanted)]
    extras = len(found) - sum(right_color)
    relation = target.get("relation")
    holds = relation is None or (all(right_color[:2]) and _relation_holds(matched[0], matched[1], relation))
    parts = 0.7 * sum(credits) / len(credits) + 0.3 * holds
    clean = all(right and thing.shape == want["shape"] and thing.fit > 0.8
                for right, thing, want in zip(right_color, matched, wanted))  # fmt: skip
    return {
        "score": parts * 0.8**extras * (1 - stray),
        "all_correct": float(clean and holds and extras == 0 and stray < 0.1),
        "extras": float(extras),
    }


@dataclass(frozen=True)
class ShapeWorldReward:
    """`score` for a batch of pictures; `scope` says that it looks at one output at a time."""

    scope = "output"

    @takes_pictures
    def __call__(self, images_MCHW: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """uint8 [M, 3, H, W] and M prompts -> {"score", "all_correct", "extras"}, each float32 [M]."""
        images_MHWC = images_MCHW.permute(0, 2, 3, 1).cpu().numpy()
        rows = [score(image, prompt.target) for image, prompt in zip(images_MHWC, prompts, strict=True)]
        return {name: torch.tensor([row[name] for row in rows]) for name in ("score", "all_correct", "extras")}


def read(image_HW3: np.ndarray) -> tuple[list[Detection], float]:
    """Things as `detect` gives them, and the share of bright pixels that belong to none of them."""
    brightness_HW = image_HW3.max(axis=-1).astype(np.float32)
    coverage_HW = np.clip((brightness_HW - _DARK) / (_BRIGHT - _DARK), 0, 1)
    bright_HW = coverage_HW > 0.5
    hue_HW = np.where(bright_HW, _nearest_hue(image_HW3 / np.maximum(brightness_HW, 1)[..., None]), -1)
    patches = []
    for hue in np.unique(hue_HW[hue_HW >= 0]):
        label_HW, _ = ndimage.label(hue_HW == hue)
        sizes = np.bincount(label_HW.ravel())
        large = np.flatnonzero(sizes >= _MIN_AREA * label_HW.size)
        patches += [(sizes[label], hue, label_HW == label) for label in large if label > 0]
    patches = sorted(patches, key=lambda patch: -patch[0])[:_MAX_THINGS]
    things = []
    for _, hue, mask_HW in patches:
        # The half-covered pixels of its outline belong to a thing as well, those of its neighbours do not.
        around_HW = ndimage.binary_dilation(mask_HW, _RING) & (mask_HW | ~bright_HW)
        things.append(_describe(list(PALETTE)[hue], coverage_HW * around_HW))
    in_things = sum(size for size, _, _ in patches)
    return things, float(1 - in_things / max(bright_HW.sum(), in_things, 1)) if bright_HW.any() else 0.0


def _nearest_hue(chroma_HW3: np.ndarray, furthest: float = 0.45) -> np.ndarray:
    """Index into the palette, or -1 for greys and other colours that are near none of it."""
    distance_HWK = np.square(chroma_HW3[..., None, :] - _HUES_K3).sum(axis=-1)
    nearest_HW = distance_HWK.argmin(axis=-1)
    return np.where(distance_HWK.min(axis=-1) < furthest**2, nearest_HW, -1)


def _describe(color: str, cover_HW: np.ndarray) -> Detection:
    """Compares a soft mask with the ideal shapes of the same area and centre of mass.

    Area over bounding box alone confuses shapes, and one stray pixel changes it.
    """
    height, width = cover_HW.shape
    area = cover_HW.sum()
    x_W, y_H = np.arange(width) + 0.5, np.arange(height) + 0.5
    x, y = cover_HW.sum(axis=0) @ x_W / area, cover_HW.sum(axis=1) @ y_H / area
    fits = {}
    for shape, distance_HW in _ideal_distances((x_W - x)[None, :], (y_H - y)[:, None], area).items():
        ideal_HW = np.clip(0.5 - distance_HW, 0, 1)
        fits[shape] = np.minimum(cover_HW, ideal_HW).sum() / np.maximum(cover_HW, ideal_HW).sum()
    best = max(fits, key=fits.get)
    return Detection(best, color, float(x / width), float(y / height), float(area / cover_HW.size), float(fits[best]))


def _ideal_distances(dx: np.ndarray, dy: np.ndarray, area: float) -> dict[str, np.ndarray]:
    """Signed distance in pixels to the outline of each shape of that area around its centre of mass."""
    size = (2 * area) ** 0.5  # of the triangle: as high as wide, centre of mass a third above its base
    return {
        "circle": np.hypot(dx, dy) - (area / np.pi) ** 0.5,
        "square": np.maximum(abs(dx), abs(dy)) - area**0.5 / 2,
        "triangle": np.maximum((abs(dx) - (dy + 2 / 3 * size) / 2) / 1.25**0.5, dy - size / 3),
    }


def match(found: Sequence[Detection], wanted: Sequence[Mapping[str, str]]) -> list[Detection | None]:
    """The detection that stands for each wanted thing: same colour and the best shape first, then what is left over."""
    left = list(found)
    matched: list[Detection | None] = [None] * len(wanted)
    for same_color in (True, False):
        for index, want in enumerate(wanted):
            candidates = [thing for thing in left if not same_color or thing.color == want["color"]]
            if matched[index] is None and candidates:
                matched[index] = max(candidates, key=lambda thing: (credit(thing, want), thing.area))
                left.remove(matched[index])
    return matched


def credit(thing: Detection | None, want: Mapping[str, str]) -> float:
    """0 to 1: half for the colour, half for the shape, scaled by how clean its outline is; half of that in a wrong colour."""
    if thing is None:
        return 0.0
    plausible = thing.shape == want["shape"] and thing.area < _MAX_AREA
    shape = min(max((thing.fit - 0.7) / 0.2, 0.0), 1.0) * plausible
    return 0.5 + 0.5 * shape if thing.color == want["color"] else 0.25 * shape


def _relation_holds(a: Detection, b: Detection, relation: str) -> bool:
    """`a` lies in that direction from `b`, more than to either side of it."""
    step_x, step_y = RELATIONS[relation]
    dx, dy = a.x - b.x, a.y - b.y
    along, across = dx * step_x + dy * step_y, abs(dx * step_y) + abs(dy * step_x)
    return along > max(across, 0.1)
