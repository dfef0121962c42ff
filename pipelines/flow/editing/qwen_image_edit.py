"""Qwen-Image-Edit and Edit-Plus (2509, 2511): names only. The language model sees the pictures in its template, and so does its empty text;
their latents stand behind those that are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpo_mm.pipelines.flow.models.family import Condition
from grpo_mm.pipelines.flow.models.qwen_image import NO_TEXT, QwenImage
from grpo_mm.pipelines.flow.models.sources import AREA, Sources, area_of, encoded, grids_of, of_sources, with_sources

PICTURE = "Picture {}: <|vision_start|><|image_pad|><|vision_end|>"


@dataclass(frozen=True)
class QwenImageEdit(QwenImage):
    """A QwenImageEditPipeline by hub name or folder, e.g. Qwen/Qwen-Image-Edit."""

    pipeline = "QwenImageEditPipeline"
    pictures = (1, 1)
    cuts_texts = False
    sources: Sources = "as_pipeline"
    """as_pipeline: the picture keeps its shape, and has about 1024 × 1024 pixels. as_output: as many as are drawn, rounded alike; the plain
    pipeline does so where 1024 × 1024 are drawn."""

    def plain_pictures(self, pipe: Any, pictures: list[Any], size: tuple[int, int]) -> dict[str, Any]:
        return {"image": pictures[0]}

    def plain_lines(self, size: tuple[int, int]) -> list[str]:
        words = f"# the run's pictures had about {size[0]} × {size[1]} pixels; this pipeline brings them to about 1024 × 1024"
        return [] if self.sources == "as_pipeline" or area_of(self.sources, size) == AREA else [words]

    def encode(
        self, pipe: Any, text: str, *, text_length: int, guidance: float, pictures: list[Any], size: tuple[int, int]
    ) -> Condition:
        sizes = [self._size(picture, size) for picture in pictures]
        seen = self._seen(pipe, pictures, sizes)
        tokens, mask = _states(pipe, self._words(text, len(seen)), seen)
        condition = {"tokens": tokens, "mask": mask}
        if self.network_rows(guidance) == 2:
            words = self._words(NO_TEXT, len(seen))
            condition["negative_tokens"], condition["negative_mask"] = _states(pipe, words, seen)
        packed, grids = [], []
        for picture, (height, width) in zip(pictures, sizes, strict=True):
            latents = encoded(
                pipe,
                pipe.image_processor.preprocess(self._before(pipe, picture, height, width), height, width)[:, :, None],
            )
            packed.append(pipe._pack_latents(latents, 1, latents.shape[1], *latents.shape[3:]))
            grids.append((latents.shape[3] // 2, latents.shape[4] // 2))
        return condition | of_sources(packed, grids)

    def _size(self, picture: Any, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) that the picture has beside drawn ones of `size`."""
        from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as plain

        width, height, _ = plain.calculate_dimensions(area_of(self.sources, size), picture.width / picture.height)
        return height, width

    def _seen(self, pipe: Any, pictures: list[Any], sizes: list[tuple[int, int]]) -> list[Any]:
        """The pictures as the language model is given them."""
        return [pipe.image_processor.resize(picture, *size) for picture, size in zip(pictures, sizes, strict=True)]

    def _before(self, pipe: Any, picture: Any, height: int, width: int) -> Any:
        """The picture before it becomes pixels."""
        return pipe.image_processor.resize(picture, height, width)

    def _words(self, text: str, pictures: int) -> str:
        """What stands in the template."""
        return text

    def half(
        self, pipe: Any, x: Tensor, sigma: Tensor, condition: Condition, *, size: tuple[int, int], text: bool
    ) -> Tensor:
        return super().half(pipe, with_sources(x, condition), sigma, condition, size=size, text=text)[:, : x.shape[1]]

    def shapes(self, pipe: Any, condition: Condition, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        return super().shapes(pipe, condition, size) + [(1, rows, columns) for rows, columns in grids_of(condition)]


@dataclass(frozen=True)
class QwenImageEditPlus(QwenImageEdit):
    """A QwenImageEditPlusPipeline by hub name or folder, e.g. Qwen/Qwen-Image-Edit-2509; it reads several pictures."""

    pipeline = "QwenImageEditPlusPipeline"
    pictures = (1, 10)

    def plain_pictures(self, pipe: Any, pictures: list[Any], size: tuple[int, int]) -> dict[str, Any]:
        return {"image": pictures}

    def _size(self, picture: Any, size: tuple[int, int]) -> tuple[int, int]:
        from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plain

        area = plain.VAE_IMAGE_SIZE if self.sources == "as_pipeline" else area_of(self.sources, size)
        width, height = plain.calculate_dimensions(area, picture.width / picture.height)
        return height, width

    def _seen(self, pipe: Any, pictures: list[Any], sizes: list[tuple[int, int]]) -> list[Any]:
        from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plain

        small = [plain.calculate_dimensions(plain.CONDITION_IMAGE_SIZE, p.width / p.height) for p in pictures]
        return [
            pipe.image_processor.resize(p, height, width) for p, (width, height) in zip(pictures, small, strict=True)
        ]

    def _before(self, pipe: Any, picture: Any, height: int, width: int) -> Any:
        return picture

    def _words(self, text: str, pictures: int) -> str:
        return "".join(PICTURE.format(i + 1) for i in range(pictures)) + text


@torch.no_grad()
def _states(pipe: Any, words: str, pictures: list[Any]) -> tuple[Tensor, Tensor]:
    """(last hidden states of words in their template [1, T, D], which of them are text [1, T]), the pictures among them."""
    given = pipe.processor(text=[pipe.prompt_template_encode.format(words)], images=pictures, return_tensors="pt")
    on = pipe.text_encoder.device
    read = pipe.text_encoder(
        input_ids=given["input_ids"].to(on), attention_mask=given["attention_mask"].to(on),
        pixel_values=given["pixel_values"].to(on), image_grid_thw=given["image_grid_thw"].to(on), output_hidden_states=True,
    )  # fmt: skip
    tokens = read.hidden_states[-1][:, pipe.prompt_template_encode_start_idx :]
    return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
