"""How well are all things of a picture found? Average precision of the listed boxes, and what VLM-R1 makes of it.

R listed boxes   W references
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.rewards.answers.tags import last_element, tagged_text
from grpo_mm.rewards.answers.writing import normal_form, plain_signs
from grpo_mm.rewards.shared.named_scores import table
from grpo_mm.rewards.shared.prompt_target import target_of
from grpo_mm.rewards.spatial.box_matching import greedy_by_score
from grpo_mm.rewards.spatial.box_reading import BoxReading, annotated_boxes
from grpo_mm.rewards.spatial.box_text import Form, names_nothing
from grpo_mm.rewards.spatial.boxes import iou
from grpo_mm.types import Prompt

Version = Literal["map", "od_length", "weighted"]
# The scorer's own numbers to the last bit: 7 things of 10 do not reach its recall of 0.7, which stands a rounding above.
THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
_RECALLS = torch.from_numpy(np.linspace(0, 1, 101))


def mean_average_precision(
    iou_RW: Tensor, labels_R: Sequence[str], labels_W: Sequence[str], *, thresholds: Sequence[float] = THRESHOLDS
) -> float:
    """COCO's mAP of one picture whose boxes all have score 1, in [0, 1]: over labels of references and IoU thresholds.

    Boxes count in the order in which they are listed. A label that no reference has is no box. 0 without references.

    Args:
        thresholds: at least one; COCO's 0.5, 0.55, …, 0.95.

    Raises:
        ValueError: there is no threshold.

    Source: the COCO scorer (101 recalls), as arXiv:2504.07615 (VLM-R1) calls it. Grade A.
    """
    if not len(thresholds):
        raise ValueError("mean_average_precision: thresholds is empty; wanted at least one IoU.")
    labels = list(dict.fromkeys(labels_W))
    if not labels:
        return 0.0
    precisions = []
    for label in labels:
        own = [i for i, other in enumerate(labels_R) if other == label]
        references = [i for i, other in enumerate(labels_W) if other == label]
        part_RW = iou_RW[own][:, references]
        precisions += [average_precision(_hits(part_RW, threshold), len(references)) for threshold in thresholds]
    return sum(precisions) / len(precisions)


def average_precision(is_hit_R: Sequence[bool], num_references: int) -> float:
    """Mean over 101 recalls of the best precision that is reached at that recall or beyond it, 0 where none is."""
    hits_R = torch.tensor(is_hit_R, dtype=torch.float64).cumsum(dim=0)
    if len(hits_R) == 0:
        return 0.0
    precision_R = hits_R / torch.arange(1, len(hits_R) + 1)
    best_R = precision_R.flip(0).cummax(dim=0).values.flip(0)
    place = torch.searchsorted(hits_R / num_references, _RECALLS)
    return torch.cat([best_R, torch.zeros(1)])[place].mean().item()


def weighted_detection(
    iou_RW: Tensor, labels_R: Sequence[str], labels_W: Sequence[str], *, threshold: float = 0.5, position: float = 0.7
) -> float:
    """position · mean IoU over references + (1 - position) · completeness, in [0, 1].

    Pairs are made greedily from the best IoU on, down to the threshold; one with another label has IoU 0. Completeness is
    1 - (share of references without a box + share of boxes without a reference) / 2. Both sides empty: 1; one: 0.

    Source: arXiv:2504.07615 (VLM-R1), repository. Grade A.
    """
    rows, columns = iou_RW.shape
    if 0 in (rows, columns):
        return float(rows == columns)
    pairs = greedy_by_score(iou_RW, threshold=threshold)
    total = sum(iou_RW[r, w].item() for r, w in pairs if labels_R[r].lower() == labels_W[w].lower())
    completeness = 1 - ((columns - len(pairs)) / columns + (rows - len(pairs)) / rows) / 2
    return position * total / columns + (1 - position) * completeness


@dataclass(frozen=True)
class DetectionMap(BoxReading):
    """score of the boxes that the answer lists as JSON, with labels, against target["boxes"] and target["box_names"].

    `map`: `mean_average_precision`. `od_length`: that times min(1, W / R), against lists of everything. `weighted`:
    `weighted_detection`. A prompt whose boxes are an empty list wants an empty list, or "None": 1 for that alone
    (`names_nothing`), 0 for boxes and for what cannot be read. A text without an answer element scores 0. Without names, labels
    do not matter. Parts: "map", "length" (the factor), "boxes" (R).

    Trap: plain mAP hardly falls for boxes behind the right ones, and not at all for labels that nothing has.

    Source: arXiv:2504.07615 (VLM-R1), repository. Grade A. Deviates: a broken list is read as far as it is whole, where the
    repository gives 0, and a code fence is not asked for.
    """

    version: Version = "od_length"
    form: Form = "json"
    tag: str | None = "answer"
    require_tag: bool = True
    merge_iou: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.version not in get_args(Version):
            raise ConfigError(f"version = {self.version!r}; wanted one of {', '.join(get_args(Version))}.")

    def applies_to(self, prompt: Prompt) -> bool:
        """Whether boxes are annotated, be it none."""
        return target_of(prompt).get("boxes") is not None

    def __call__(self, items: Sequence[str], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """M texts -> score and parts, [M] each; NaN where nothing is annotated. Raises ValueError: a size is missing."""
        rows = [self._one(text, prompt) for text, prompt in zip(items, prompts, strict=True)]
        return table(rows, ("score", "map", "length", "boxes"))

    def _one(self, text: str, prompt: Prompt) -> dict[str, float]:
        if not self.applies_to(prompt):
            return {}
        if self.tag and last_element(text, self.tag) is None:
            return {"score": 0.0, "map": 0.0, "length": 0.0, "boxes": 0.0}
        found, references_W4 = self.found(text), annotated_boxes(prompt)
        if len(references_W4) == 0:
            is_right = float(not found and names_nothing(tagged_text(text, self.tag)))
            return {"score": is_right, "map": is_right, "length": float(not found), "boxes": float(len(found))}
        names = [normal_form(plain_signs(str(name))) for name in prompt.target.get("box_names") or ()]
        labels_W = names if names else [""] * len(references_W4)
        labels_R = [normal_form(one.label) if names else "" for one in found]
        iou_RW = iou(self.in_pixels(found, prompt), references_W4)
        precision = mean_average_precision(iou_RW, labels_R, labels_W) if found else 0.0
        length = min(1.0, len(labels_W) / len(found)) if found else 1.0
        score = {"map": precision, "od_length": precision * length, "weighted": 0.0}[self.version]
        if self.version == "weighted":
            score = weighted_detection(iou_RW, labels_R, labels_W)
        return {"score": score, "map": precision, "length": length, "boxes": float(len(found))}


def _hits(iou_RW: Tensor, threshold: float) -> list[bool]:
    """Whether each box, in its order, takes a reference that is still free: the best at or above the threshold."""
    taken: set[int] = set()
    hits = []
    for row in iou_RW.tolist():
        reach = [(value, w) for w, value in enumerate(row) if value >= min(threshold, 1 - 1e-10) and w not in taken]
        hits.append(bool(reach))
        if reach:
            taken.add(max(reach)[1])
    return hits
