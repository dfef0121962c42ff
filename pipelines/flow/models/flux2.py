"""FLUX.2 (klein; dev in `Flux2`): names only. Latents are packed, [tokens, 4 · channels], and normalised by the decoder's batch norm.

All texts are `text_length` tokens long, and the network sees what fills them up: the released checkpoints are sampled at 512.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpo_mm.pipelines.flow.models.checkpoint import Checkpoint, Guided
from grpo_mm.pipelines.flow.models.family import Condition, encode_prompt, said_of_pipeline
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
class _Packed(Checkpoint):
    """What both share."""

    pictures = (0, 10)
    sources: Sources = "as_pipeline"
    """References keep their shape. as_pipeline: those of more than 1024 × 1024 pixels are made as small; as_output: those of more pixels
    than are drawn, which is what they are if they are given to the plain pipeline in that size."""

    lora_targets = (
        "attn.add_k_proj", "attn.add_q_proj", "attn.add_v_proj", "attn.to_add_out",
        "attn.to_k", "attn.to_out.0", "attn.to_q", "attn.to_qkv_mlp_proj", "attn.to_v",
    )  # fmt: skip

    def shift_exponent(self, config: Any, image_tokens: int, steps: int) -> float:
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        return compute_empirical_mu(image_seq_len=image_tokens, num_steps=steps)

    def latent_shape(self, pipe: Any, height: int, width: int) -> tuple[int, ...]:
        return (self.image_tokens(pipe, height, width), pipe.transformer.config.in_channels)

    def image_tokens(self, pipe: Any, height: int, width: int) -> int:
        rows, columns = _grid(pipe, (height, width))
        return rows * columns

    def plain_pictures(self, pipe: Any, pictures: list[Any], size: tuple[int, int]) -> dict[str, Any]:
        fitting = [_fitting(pipe, picture, area_of(self.sources, size)) for picture in pictures]
        return {"image": fitting} if fitting else {}

    def plain_lines(self, size: tuple[int, int]) -> list[str]:
        return [] if self.sources == "as_pipeline" else resizing(size, only_smaller=True)

    def references(self, pipe: Any, pictures: list[Any], size: tuple[int, int]) -> dict[str, Tensor]:
        """What a condition says of the pictures of a prompt; nothing if there are none."""
        packed, grids = [], []
        for picture in pictures:
            pipe.image_processor.check_image_input(picture)
            picture = _fitting(pipe, picture, area_of(self.sources, size))
            rows, columns = _grid(pipe, picture.size[::-1])
            side = pipe.vae_scale_factor * 2
            pixels = pipe.image_processor.preprocess(picture, rows * side, columns * side, resize_mode="crop")
            packed.append(pipe._pack_latents(encoded(pipe, pixels)))
            grids.append((rows, columns))
        return of_sources(packed, grids)

    def decode(self, pipe: Any, latents: Tensor, *, size: tuple[int, int]) -> Tensor:
        vae = pipe.vae
        latents = latents.transpose(1, 2).unflatten(2, _grid(pipe, size))  # [n, 4 · channels, rows, columns]
        variance = vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps
        latents = latents * variance.sqrt().to(latents) + vae.bn.running_mean.view(1, -1, 1, 1).to(latents)
        return vae.decode(pipe._unpatchify_latents(latents).to(vae.dtype), return_dict=False)[0]


@dataclass(frozen=True)
class Flux2(_Packed):
    """A Flux2Pipeline by hub name or folder, e.g. black-forest-labs/FLUX.2-dev; guidance is an input of its network."""

    pipeline = "Flux2Pipeline"

    def encode(
        self, pipe: Any, text: str, *, text_length: int, guidance: float, pictures: list[Any], size: tuple[int, int]
    ) -> Condition:
        condition = encode_prompt(pipe, text, ("tokens", "text_ids"), max_sequence_length=text_length)
        return condition | self.references(pipe, pictures, size)

    def velocity(
        self, pipe: Any, x: Tensor, sigma: Tensor, condition: Condition, *, guidance: float, size: tuple[int, int]
    ) -> Tensor:
        told = torch.full((x.shape[0],), guidance, device=x.device, dtype=torch.float32)
        return _network(pipe, x, sigma, condition, "", size, told)


@dataclass(frozen=True)
class Flux2Klein(_Packed, Guided):
    """A Flux2KleinPipeline by hub name or folder, e.g. black-forest-labs/FLUX.2-klein-base-4B; a distilled one is not guided."""

    pipeline = "Flux2KleinPipeline"

    def network_rows(self, guidance: float) -> int:
        return 2 if guidance > 1 and not self.is_distilled else 1

    @property
    def is_distilled(self) -> bool:
        """As model_index.json says; by the names of the released ones where it is not on this disk."""
        said = said_of_pipeline(self.path, "is_distilled", revision=self.revision)
        return "klein" in self.path and "base" not in self.path if said is None else bool(said)

    def encode(
        self, pipe: Any, text: str, *, text_length: int, guidance: float, pictures: list[Any], size: tuple[int, int]
    ) -> Condition:
        condition = encode_prompt(pipe, text, ("tokens", "text_ids"), max_sequence_length=text_length)
        if self.network_rows(guidance) == 2:
            condition |= encode_prompt(
                pipe, "", ("negative_tokens", "negative_text_ids"), max_sequence_length=text_length
            )
        return condition | self.references(pipe, pictures, size)

    def half(
        self, pipe: Any, x: Tensor, sigma: Tensor, condition: Condition, *, size: tuple[int, int], text: bool
    ) -> Tensor:
        kind = "" if text else "negative_"
        return _network(pipe, x, sigma, condition, kind, size, None)


def _network(
    pipe: Any,
    x: Tensor,
    sigma: Tensor,
    condition: Condition,
    kind: str,
    size: tuple[int, int],
    guidance: Tensor | None,
) -> Tensor:
    ids = [pipe._prepare_latent_ids(x.new_empty(x.shape[0], 1, *_grid(pipe, size))).to(x.device)]
    grids = [torch.empty(1, 1, *grid, device="cpu") for grid in grids_of(condition)]
    if grids:
        ids.append(pipe._prepare_image_ids(grids).to(x.device).expand(x.shape[0], -1, -1))
    return pipe.transformer(
        hidden_states=with_sources(x, condition),
        timestep=sigma,
        guidance=guidance,
        encoder_hidden_states=condition[f"{kind}tokens"],
        txt_ids=condition[f"{kind}text_ids"],
        img_ids=torch.cat(ids, dim=1),
        return_dict=False,
    )[0][:, : x.shape[1]].to(sigma.dtype)


def _fitting(pipe: Any, picture: Any, area: int) -> Any:
    """The picture, made smaller if it has more pixels than `area`."""
    return (
        picture
        if picture.width * picture.height <= area
        else pipe.image_processor._resize_to_target_area(picture, area)
    )


def _grid(pipe: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Image tokens along height and width."""
    side = pipe.vae_scale_factor * 2
    return size[0] // side, size[1] // side
