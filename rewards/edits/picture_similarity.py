"""How alike is the result to another picture of the row: the source, or the one that is wanted?"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError, UserError
from grpo_mm.identity import FREE
from grpo_mm.outside import shown
from grpo_mm.rewards.edits.edited_region import EDITED, MASK, edited_region, says_region, sized, wanted_picture
from grpo_mm.rewards.images.picture_features import PictureFeatures
from grpo_mm.rewards.shared.pictures import takes_pictures
from grpo_mm.rewards.shared.prompt_target import target_of
from grpo_mm.source_picture import source_of
from grpo_mm.types import Prompt

GREY = 128
log = logging.getLogger(__name__)


def pixel_similarity(result: Tensor, other: Tensor, region_HW: Tensor | None = None) -> float:
    """1 - the mean absolute difference / 255 of two uint8 pictures [3, H, W], 0 to 1; where region_HW is False, if it is given.

    NaN where the region is the whole picture.
    """
    apart_HW = (result.float() - other.float()).abs().mean(0)
    return 1 - float((apart_HW if region_HW is None else apart_HW[~region_HW]).mean()) / 255


@dataclass
class _Similarity:
    by: Literal["clip", "dino", "pixels"] = "clip"
    """clip, dino: the cosine of features. pixels: 1 - mean absolute difference / 255, no weights."""
    model: str | None = None
    """As `clip_score` takes it, or an image model in transformers' format; null: ViT-L-14-quickgelu, or facebook/dinov2-base."""
    pretrained: str | None = "openai"
    """Of clip: a tag known to open_clip or a file with weights."""
    batch_size: int = field(default=32, metadata=FREE)
    """Pictures in one forward; changes memory and speed, not the scores."""

    needs_source: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._features = None if self.by == "pixels" else PictureFeatures(self.by, self.model, self.pretrained)

    def check(self) -> None:
        """Raises ConfigError if a package or a local file is missing."""
        if self._features is not None:
            self._features.check()

    @property
    def needs_device(self) -> bool:
        return self._features is not None

    def to(self, device: torch.device | str) -> _Similarity:
        if self._features is not None:
            self._features.to(device)
        return self

    def _alike(self, items: Tensor, others: Sequence[Tensor], regions: Sequence[Tensor | None]) -> Tensor:
        """[M]: of each picture with its other one, of the same size, outside of its region."""
        if self._features is None:
            return torch.tensor([pixel_similarity(a.cpu(), b.cpu(), r) for a, b, r in zip(items, others, regions)])
        painted = [
            (a.cpu(), b.cpu()) if r is None else (torch.where(r, GREY, a.cpu()), torch.where(r, GREY, b.cpu()))
            for a, b, r in zip(items, others, regions)
        ]
        results, sources = (torch.stack(side).to(torch.uint8) for side in zip(*painted))
        found = self._features(results, batch_size=self.batch_size) * self._features(
            sources, batch_size=self.batch_size
        )
        whole = torch.tensor([r is not None and bool(r.all()) for r in regions])
        return torch.where(whole, torch.nan, found.sum(-1))


@dataclass
class SourceSimilarity(_Similarity):
    """score = likeness of the result and the source, the picture that the prompt brings: of the whole, or outside of what was to be edited.

    Nothing done is the highest score: it guards what the edit should keep, and takes a reward of the edit beside it, as Flow-GRPO's
    .2 likeness + .8 task. A source of another size is stretched to the result's.

    outside: where is said by target.mask of the row (light: to be edited), else by where target.edited_image differs from the source. It
    does not apply to rows that have neither, which is told once; NaN where all of the picture was to be edited. Of features, what
    was to be edited is grey in both pictures. The part `outside` is the share of the picture that was looked at.

    Source: image_similarity of Flow-GRPO (yifan123/flow_grpo): the cosine of CLIP ViT-L/14's features.
    """

    where: Literal["all", "outside"] = "all"
    """outside: of what was to be edited."""
    threshold: float = 0.1
    """Of 0 to 1: how far a channel of source and wanted picture may be apart where nothing was to be edited."""
    margin: float = 0.02
    """Of the shorter side, by which what was to be edited is made larger all round."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.threshold < 1 or not 0 <= self.margin < 0.5:
            raise ConfigError(
                f"source_similarity: threshold = {self.threshold} (wanted 0 to below 1), margin = {self.margin} (wanted 0 to below 0.5)."
            )
        self._told = False

    def applies_to(self, prompt: Prompt) -> bool:
        """Whether the prompt brings a picture, and with where: outside says where it is to be edited."""
        if not prompt.media:
            return False
        if self.where == "all" or says_region(prompt):
            return True
        if not self._told:
            self._told = True
            log.warning(
                "source_similarity, where: outside: prompt %s has neither %s nor %s in its target, so it is not asked about such rows",
                shown(prompt.id), MASK, EDITED,
            )  # fmt: skip
        return False

    @takes_pictures
    def __call__(self, items: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """uint8 [M, 3, H, W] and M prompts with a picture -> score, and with where: outside the part outside, [M].

        Raises:
            UserError: a prompt brings no picture, or says not where it is to be edited.
        """
        size = (items.shape[2], items.shape[3])
        known = {id(prompt): prompt for prompt in prompts}
        sources = {key: sized(source_of(prompt), size) for key, prompt in known.items()}
        if self.where == "all":
            return {"score": self._alike(items, [sources[id(p)] for p in prompts], [None] * len(prompts))}
        regions = {key: self._region(prompt, size) for key, prompt in known.items()}
        picked = [regions[id(prompt)] for prompt in prompts]
        share = torch.tensor([1 - float(region.float().mean()) for region in picked])
        return {"score": self._alike(items, [sources[id(p)] for p in prompts], picked), "outside": share}

    def _region(self, prompt: Prompt, size: tuple[int, int]) -> Tensor:
        region = edited_region(prompt, size, threshold=self.threshold, margin=self.margin)
        if region is None:
            raise UserError(
                f"prompt {shown(prompt.id)} says not where it is to be edited: no {MASK} or {EDITED} in its target."
            )
        return region


@dataclass
class TargetSimilarity(_Similarity):
    """score = likeness of the result and the picture that is wanted, target.edited_image of the row, stretched to the result's size.

    It does not apply to rows without one.
    """

    needs_source: ClassVar[bool] = False

    def applies_to(self, prompt: Prompt) -> bool:
        """Whether the row has the picture that is wanted."""
        return target_of(prompt).get(EDITED) is not None

    @takes_pictures
    def __call__(self, items: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """uint8 [M, 3, H, W] and M prompts -> score [M]; raises UserError for a row without the picture."""
        size = (items.shape[2], items.shape[3])
        found = {}
        for prompt in {id(prompt): prompt for prompt in prompts}.values():
            wanted = wanted_picture(prompt)
            if wanted is None:
                raise UserError(f"prompt {shown(prompt.id)} has no {EDITED} in its target.")
            found[id(prompt)] = sized(wanted, size)
        return {"score": self._alike(items, [found[id(prompt)] for prompt in prompts], [None] * len(prompts))}
