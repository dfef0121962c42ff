"""FLUX.1 Kontext: names only. The picture to be edited is packed as latents are, behind them, at positions of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpo_mm.pipelines.flow.models.family import Condition
from grpo_mm.pipelines.flow.models.flux import Flux
from grpo_mm.pipelines.flow.models.sources import (
    Sources,
    area_of,
    encoded,
    grids_of,
    of_sources,
    resizing,
    with_sources,
)


@dataclass(frozen=True)
class FluxKontext(Flux):
    """A FluxKontextPipeline by hub name or folder, e.g. black-forest-labs/FLUX.1-Kontext-dev."""

    pipeline = "FluxKontextPipeline"
    pictures = (1, 1)
    sources: Sources = "as_pipeline"
    """as_pipeline: the picture is resized to that of the sizes Kontext was trained on (about 1024 × 1024 pixels) whose shape is nearest.
    as_output: it keeps its shape, and has as many pixels as what is drawn; the plain pipeline does so with _auto_resize=False."""

    def plain_size(self, size: tuple[int, int]) -> dict[str, Any]:
        as_given = {} if self.sources == "as_pipeline" else {"_auto_resize": False}
        return super().plain_size(size) | {"max_area": size[0] * size[1]} | as_given

    def plain_pictures(self, pipe: Any, pictures: list[Any], size: tuple[int, int]) -> dict[str, Any]:
        if self.sources == "as_pipeline":
            return {"image": pictures[0]}
        return {"image": pipe.image_processor.resize(pictures[0], *self._size(pipe, pictures[0], size))}

    def plain_lines(self, size: tuple[int, int]) -> list[str]:
        return [] if self.sources == "as_pipeline" else resizing(size)

    def encode(
        self, pipe: Any, text: str, *, text_length: int, guidance: float, pictures: list[Any], size: tuple[int, int]
    ) -> Condition:
        condition = super().encode(pipe, text, text_length=text_length, guidance=guidance)
        height, width = self._size(pipe, pictures[0], size)
        picture = pipe.image_processor.resize(pictures[0], height, width)
        latents = encoded(pipe, pipe.image_processor.preprocess(picture, height, width))
        packed = pipe._pack_latents(latents, 1, *latents.shape[1:])
        return {**condition, **of_sources([packed], [(latents.shape[2] // 2, latents.shape[3] // 2)])}

    def _size(self, pipe: Any, picture: Any, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) that the picture is resized to."""
        from diffusers.pipelines.flux import pipeline_flux_kontext as plain

        side, shape = pipe.vae_scale_factor * 2, picture.width / picture.height
        if self.sources == "as_pipeline":
            if (
                min(picture.size) >= side
            ):  # the plain pipeline compares the shape in whole tokens, and divides by 0 below one
                shape = (picture.width // side) / (picture.height // side)
            _, width, height = min((abs(shape - w / h), w, h) for w, h in plain.PREFERRED_KONTEXT_RESOLUTIONS)
        else:
            area = area_of(self.sources, size)
            width, height = round((area * shape) ** 0.5), round((area / shape) ** 0.5)
        return max(height // side, 1) * side, max(width // side, 1) * side

    def velocity(
        self, pipe: Any, x: Tensor, sigma: Tensor, condition: Condition, *, guidance: float, size: tuple[int, int]
    ) -> Tensor:
        return super().velocity(pipe, with_sources(x, condition), sigma, condition, guidance=guidance, size=size)[
            :, : x.shape[1]
        ]

    def positions(self, pipe: Any, x: Tensor, condition: Condition, size: tuple[int, int]) -> Tensor:
        ids = [super().positions(pipe, x, condition, size)]
        for rows, columns in grids_of(condition):
            ids.append(pipe._prepare_latent_image_ids(None, rows, columns, x.device, x.dtype))
            ids[-1][..., 0] = 1
        return torch.cat(ids)
