"""What families share: where the checkpoint is, how it is called in plain diffusers, and guidance by two halves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from grpo_mm.identity import FREE
from grpo_mm.pipelines.flow.models.family import Condition, Size, check_pipeline, guided, load_pipeline


@dataclass(frozen=True)
class Checkpoint:
    """A diffusers pipeline by hub name or folder; a family says which, and how its names are to be read."""

    path: str
    """A folder or hub name of a diffusers checkpoint, or zoo:NAME."""
    revision: str | None = None
    """A commit, branch or tag of the hub; null: its main branch."""
    variant: str | None = None
    """Ending of the files of weights, such as fp16; null: the plain ones."""
    distilled: bool | None = field(default=None, metadata=FREE)
    """Whether it is distilled to few steps, which `show` and a run then speak of; null: as its files and its name say."""

    pipeline: ClassVar[str]
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    may_lack: ClassVar[tuple[str, ...]] = ()
    even_sigmas: ClassVar[bool] = True
    tables: ClassVar[tuple[str, ...]] = ()
    ragged: ClassVar[bool] = False
    pictures: ClassVar[tuple[int, int]] = (0, 0)
    cuts_texts: ClassVar[bool] = True
    alike_in_a_batch: ClassVar[bool] = True
    for_comparison: ClassVar[Mapping[str, Any]] = {}

    def check(self) -> None:
        check_pipeline(self.path, self.pipeline)

    def load(self, dtype: torch.dtype, *, full: bool) -> Any:
        import diffusers

        return load_pipeline(getattr(diffusers, self.pipeline), self, dtype, full=full)

    def network_rows(self, guidance: float) -> int:
        return 1

    def plain_call(self, *, guidance: float, text_length: int) -> dict[str, Any]:
        return {"guidance_scale": guidance, "max_sequence_length": text_length}

    def plain_size(self, size: Size) -> dict[str, Any]:
        """What makes the plain pipeline draw this size."""
        return {"height": size[0], "width": size[1]}

    def plain_pictures(self, pipe: Any, pictures: list[Any], size: Size) -> dict[str, Any]:
        """What gives a prompt's pictures to the plain pipeline, as they are encoded here where `size` is drawn."""
        return {"image": pictures} if pictures else {}


class Guided(Checkpoint):
    """Guided from outside: two network calls, one of the text and one of the empty text; a family has `half`."""

    def network_rows(self, guidance: float) -> int:
        return 2 if guidance > 1 else 1

    def guided(self, of_none: Tensor, of_text: Tensor, guidance: float) -> Tensor:
        return guided(of_none, of_text, guidance)

    def velocity(
        self, pipe: Any, x: Tensor, sigma: Tensor, condition: Condition, *, guidance: float, size: Size
    ) -> Tensor:
        if self.network_rows(guidance) == 1:
            return self.half(pipe, x, sigma, condition, size=size, text=True)
        return self.guided(*self.halves(pipe, x, sigma, condition, size=size), guidance)

    def halves(self, pipe: Any, x: Tensor, sigma: Tensor, condition: Condition, *, size: Size) -> tuple[Tensor, Tensor]:
        """What the network says of the empty text and of the text, [n, ...] each, as precise as `sigma`."""
        of_text = self.half(pipe, x, sigma, condition, size=size, text=True)
        return self.half(pipe, x, sigma, condition, size=size, text=False), of_text

    def half(self, pipe: Any, x: Tensor, sigma: Tensor, condition: Condition, *, size: Size, text: bool) -> Tensor:
        """One of the two."""
        raise NotImplementedError


@dataclass(frozen=True)
class Planes(Guided):
    """One whose network takes latents as they are, [C, h, w], and cuts them into patches itself."""

    def latent_shape(self, pipe: Any, height: int, width: int) -> tuple[int, ...]:
        factor = pipe.vae_scale_factor
        return (pipe.transformer.config.in_channels, height // factor, width // factor)

    def image_tokens(self, pipe: Any, height: int, width: int) -> int:
        side = pipe.vae_scale_factor * pipe.transformer.config.patch_size
        return (height // side) * (width // side)
