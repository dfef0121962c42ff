"""GenEval: are the objects there, as many as asked for, in the right colours and places?"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from grpo_mm.registry import Role
from grpo_mm.rewards.images.colors import PaletteColors
from grpo_mm.rewards.images.detectors import Detection
from grpo_mm.rewards.shared.pictures import takes_pictures
from grpo_mm.types import Prompt

logger = logging.getLogger(__name__)

COCO_ALIASES = {
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "hair dryer": "hair drier",
}
"""Other spellings of COCO's classes -> GenEval's."""

Box = Sequence[float]
ColorsOf = Callable[[Sequence[Detection]], list[str]]
NAN = float("nan")


def score_detections(
    detections: Sequence[Detection],
    metadata: Mapping[str, Any],
    *,
    colors_of: ColorsOf | None = None,
    threshold: float = 0.3,
    counting_threshold: float = 0.9,
    max_objects: int = 16,
    position_threshold: float = 0.1,
) -> dict[str, float]:
    """How well detections show what GenEval's metadata ask for.

    Args:
        detections: of one picture, in any order.
        metadata: {"tag", "include", "exclude"}, as GenEvalPrompts gives.
        colors_of: objects of one class -> their colours; needed if a clause names a colour.
        threshold, counting_threshold: the score an object must exceed; the second if the tag is "counting".
        max_objects: per class, the best ones count.
        position_threshold: slack in summed object sizes, see `relations`.

    Returns:
        score: 0 to 1, the mean of all parts: per clause of `include` the count, and the colour and position it names.
            It is 1 exactly if everything is right (Flow-GRPO's strict flag). `exclude` plays no role: counts are exact.
        count, color, position: means of these parts; NaN if nothing of the kind was asked for.
        strict: 0 or 1, GenEval's benchmark rule: at least as many as asked for, the best of them have the colour and
            the place, and no clause of `exclude` is met.

    Source: strict: arXiv:2310.11513, evaluate() in evaluation/evaluate_images.py. score: Flow-GRPO, arXiv:2505.05470
    (compositional generation); evaluate_reward() in yifan123/reward-server. Deviates from that code: the count part is
    floored at 0 (theirs falls to -14 for fifteen surplus objects), and a wrong position gives 0 (theirs a 0 and a 1).
    """
    limit = counting_threshold if metadata.get("tag") == "counting" else threshold
    found: dict[str, list[Detection]] = {}
    for one in sorted(detections, key=lambda d: -d.score):
        if one.score > limit and len(found.setdefault(one.label, [])) < max_objects:
            found[one.label].append(one)
    rule = _Rule(found, colors_of, position_threshold)
    parts = rule.graded(metadata["include"])
    together = [value for values in parts.values() for value in values]
    return {
        "score": sum(together) / len(together),
        "strict": float(rule.strict(metadata["include"], metadata.get("exclude", ()))),
        **{name: sum(values) / len(values) if values else NAN for name, values in parts.items()},
    }


def relations(box: Box, other: Box, *, threshold: float = 0.1) -> set[str]:
    """Where `box` lies as seen from `other` (both xyxy): up to two of "left of", "right of", "above", "below".

    The offset of centres is shortened on each axis by threshold × (sum of both sizes); a relation holds if what is
    left exceeds half the length of the whole offset. Source: GenEval, relative_position().
    """
    size = [(b[2] - b[0], b[3] - b[1]) for b in (box, other)]
    offset = [(box[a] + box[a + 2] - other[a] - other[a + 2]) / 2 for a in (0, 1)]
    left_over = [max(abs(offset[a]) - threshold * (size[0][a] + size[1][a]), 0) for a in (0, 1)]
    if max(left_over) < 1e-3:
        return set()
    length = (offset[0] ** 2 + offset[1] ** 2) ** 0.5
    names = (("left of", "right of"), ("above", "below"))
    return {names[a][offset[a] > 0] for a in (0, 1) if left_over[a] / length > 0.5}


@dataclass(frozen=True)
class _Rule:
    found: Mapping[str, list[Detection]]
    colors_of: ColorsOf | None
    position_threshold: float
    asked: dict[tuple[str, int], list[str]] = field(default_factory=dict)
    """Colours of the best n objects of a class: both rules ask, a classifier may be slow."""

    def graded(self, include: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
        parts: dict[str, list[float]] = {"count": [], "color": [], "position": []}
        matched: list[list[Detection] | None] = []
        for clause in include:
            objects, wanted = self.found.get(clause["class"], []), clause["count"]
            parts["count"].append(_closeness(len(objects), wanted))
            right = len(objects) == wanted
            if "color" in clause:
                same = self._colors(objects).count(clause["color"]) if right else 0
                parts["color"].append(_closeness(same, wanted))
                right = right and same == wanted
            if "position" in clause:
                right = right and self._in_place(objects, clause["position"], matched)
                parts["position"].append(float(right))
            matched.append(objects if right else None)
        return parts

    def strict(self, include: Sequence[Mapping[str, Any]], exclude: Sequence[Mapping[str, Any]]) -> bool:
        matched: list[list[Detection] | None] = []
        for clause in include:
            objects = self.found.get(clause["class"], [])[: clause["count"]]
            right = len(objects) == clause["count"]
            right = right and ("color" not in clause or set(self._colors(objects)) == {clause["color"]})
            right = right and ("position" not in clause or self._in_place(objects, clause["position"], matched))
            matched.append(objects if right else None)
        surplus = any(len(self.found.get(clause["class"], [])) >= clause["count"] for clause in exclude)
        return None not in matched and not surplus

    def _colors(self, objects: Sequence[Detection]) -> list[str]:
        if self.colors_of is None:
            raise ValueError("the metadata name a colour: colors_of is needed")
        key = (objects[0].label, len(objects))
        if key not in self.asked:
            self.asked[key] = self.colors_of(objects)
        return self.asked[key]

    def _in_place(
        self, objects: list[Detection], position: Sequence[Any], matched: list[list[Detection] | None]
    ) -> bool:
        relation, target = position[0], matched[position[1]]
        return target is not None and all(
            relation in relations(one.box_xyxy_px, other.box_xyxy_px, threshold=self.position_threshold)
            for one in objects
            for other in target
        )


def _closeness(found: int, wanted: int) -> float:
    return max(0.0, 1 - abs(found - wanted) / wanted)


@dataclass
class GenEvalReward:
    """`score_detections` on pictures.

    NaN for a prompt without GenEval metadata, or with a class that the detector does not know. The thresholds are
    GenEval's, for Mask2Former; other detectors are scaled otherwise, so set them together (FastestDet rarely exceeds
    0.8, so that nothing could ever be counted at 0.9).
    """

    detector: Annotated[Any, Role("detector")]
    """What finds the objects in a picture."""
    color: Annotated[Any, Role("color")] = field(default_factory=PaletteColors)
    """What tells the colour of an object."""
    rule: Literal["graded", "strict"] = "graded"
    """Which of the two is the score: Flow-GRPO's mean of parts, or the benchmark's 0 or 1. The other one is a part."""
    threshold: float = 0.3
    """Confidence of the detector above which an object is there."""
    counting_threshold: float = 0.9
    """The same where objects are counted."""
    max_objects: int = 16
    """Objects of a class that are looked at, the most confident first."""
    position_threshold: float = 0.1
    """Slack of left of, above …, in summed sizes of the two objects."""
    aliases: dict[str, str] = field(default_factory=lambda: dict(COCO_ALIASES))
    """The detector's label -> the class name in the metadata; what is not here keeps its name."""

    def check(self) -> None:
        """Raises ConfigError if the detector or the colour classifier lacks a file or a package."""
        for part in (self.detector, self.color):
            if hasattr(part, "check"):
                part.check()

    def to(self, device: torch.device | str) -> GenEvalReward:
        for part in (self.detector, self.color):
            if hasattr(part, "to"):
                part.to(device)
        return self

    @takes_pictures
    def __call__(self, items: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """uint8 [M, 3, H, W] and M prompts -> score, graded, strict, count, color, position, each [M]."""
        detections = self.detector(items)
        labels = getattr(self.detector, "labels", None)
        known = None if labels is None else {self._name(label) for label in labels}
        rows = [self._row(*row, known) for row in zip(items, detections, prompts)]
        names = ("graded", "strict", "count", "color", "position")
        parts = {name: torch.tensor([row.get(name, NAN) for row in rows], dtype=torch.float32) for name in names}
        return {"score": parts[self.rule], **parts}

    def _row(
        self, image: Tensor, detections: Sequence[Detection], prompt: Prompt, known: set[str] | None
    ) -> dict[str, float]:
        target = prompt.target
        if not isinstance(target, Mapping) or not target.get("include"):
            return {}
        unknown = {clause["class"] for clause in target["include"]} - known if known is not None else set()
        if unknown:
            _warn_unknown(", ".join(sorted(unknown)))
            return {}
        named = [Detection(self._name(d.label), d.score, d.box_xyxy_px, d.mask_HW) for d in detections]
        found = score_detections(
            named,
            target,
            colors_of=lambda objects: self.color(image, objects),
            threshold=self.threshold,
            counting_threshold=self.counting_threshold,
            max_objects=self.max_objects,
            position_threshold=self.position_threshold,
        )
        return {"graded": found.pop("score"), **found}

    def _name(self, label: str) -> str:
        return self.aliases.get(label, label)


@functools.cache
def _warn_unknown(classes: str) -> None:
    logger.warning("the detector does not know %s: such prompts are not scored (NaN); set `aliases`", classes)
