"""Did the picture change the way the captions change? CLIP's directional similarity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from grpo_mm.errors import UserError
from grpo_mm.identity import FREE
from grpo_mm.outside import shown
from grpo_mm.rewards.edits.edited_region import sized
from grpo_mm.rewards.images.clip_score import Clip, check_clip
from grpo_mm.rewards.shared.network_sizes import network_bytes
from grpo_mm.rewards.shared.pictures import takes_pictures
from grpo_mm.rewards.shared.prompt_target import target_of
from grpo_mm.source_picture import source_of
from grpo_mm.types import Prompt


def directional_similarity(before: Tensor, after: Tensor, text_before: Tensor, text_after: Tensor) -> Tensor:
    """[M] cosine of after - before and text_after - text_before, features [M, D] of length 1 each.

    NaN where one of them did not change: a picture left as it was has no direction.

    Source: StyleGAN-NADA, arXiv:2108.00946, eq. 2; InstructPix2Pix, arXiv:2211.09800, measures edits by it.
    """
    picture, text = after - before, text_after - text_before
    still = (picture.norm(dim=-1) < 1e-6) | (text.norm(dim=-1) < 1e-6)
    return torch.where(still, torch.nan, F.cosine_similarity(picture, text, dim=-1))


@dataclass
class ClipDirection:
    """score = `directional_similarity` of source and result, and of the captions before and after, -1 to 1; 0 where nothing changed.

    The captions are target.source_caption and target.edited_caption of the row; it does not apply to rows without both. There is no
    form with the instruction alone: an instruction is no caption, and CLIP knows no direction for it.
    The part `caption` is the cosine of the result with the caption after, as `clip_score` takes it.
    """

    constant_steps: ClassVar[int] = 3
    """As of other networks."""
    needs_source: ClassVar[bool] = True
    model: str = "ViT-L-14-quickgelu"
    """As for `clip_score`."""
    pretrained: str | None = "openai"
    """A tag known to open_clip or a file with weights."""
    source_caption: str = "source_caption"
    """The entry of a row's target that says what the source shows."""
    edited_caption: str = "edited_caption"
    """That which says what the result is to show."""
    batch_size: int = field(default=32, metadata=FREE)
    """Pictures in one forward; changes memory and speed, not the scores."""

    def network_bytes(self) -> int | None:
        """Of its weights; None where it is no published network whose size is known."""
        return network_bytes(self.model)

    def __post_init__(self) -> None:
        self._clip = Clip(self.model, self.pretrained)

    def check(self) -> None:
        """Raises ConfigError if open_clip or a local file is missing."""
        check_clip(self.model, self.pretrained)

    def to(self, device: torch.device | str) -> ClipDirection:
        self._clip.to(device)
        return self

    def applies_to(self, prompt: Prompt) -> bool:
        """Whether the prompt brings a picture, and both captions."""
        return bool(prompt.media) and self._captions(prompt) is not None

    def _captions(self, prompt: Prompt) -> tuple[str, str] | None:
        target = target_of(prompt)
        found = target.get(self.source_caption), target.get(self.edited_caption)
        return found if all(isinstance(one, str) and one.strip() for one in found) else None  # type: ignore[return-value]

    @takes_pictures
    def __call__(self, items: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """uint8 [M, 3, H, W] and M prompts -> score, caption, [M] each.

        Raises:
            UserError: a prompt without a picture or a caption.
        """
        captions = [self._captions(prompt) for prompt in prompts]
        lacking = next((p for p, said in zip(prompts, captions) if said is None), None)
        if lacking is not None:
            raise UserError(
                f"prompt {shown(lacking.id)} lacks {self.source_caption} or {self.edited_caption} in its target, both captions are needed."
            )
        size = (items.shape[2], items.shape[3])
        known = {id(prompt): sized(source_of(prompt), size) for prompt in {id(p): p for p in prompts}.values()}
        before = self._pictures(torch.stack([known[id(prompt)] for prompt in prompts]))
        after = self._pictures(items)
        text_before, text_after = (self._texts([said[i] for said in captions if said]) for i in (0, 1))
        score = directional_similarity(before, after, text_before, text_after).nan_to_num(0.0)
        return {"score": score, "caption": (after * text_after).sum(-1)}

    def _pictures(self, images: Tensor) -> Tensor:
        return torch.cat([self._clip.image_features(part).cpu() for part in images.split(self.batch_size)])

    def _texts(self, texts: Sequence[str]) -> Tensor:
        different = list(dict.fromkeys(texts))  # a group shares its captions
        parts = [self._clip.text_features(different[i : i + 256]).cpu() for i in range(0, len(different), 256)]
        return torch.cat(parts)[[different.index(text) for text in texts]]
