"""FLUX.1 (dev, schnell): names only. Latents are packed, [tokens, 4 · channels]; guidance is an input of the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpo_mm.pipelines.flow.models.checkpoint import Checkpoint
from grpo_mm.pipelines.flow.models.family import Condition, encode_prompt


@dataclass(frozen=True)
class Flux(Checkpoint):
    """A FluxPipeline by hub name or folder, e.g. black-forest-labs/FLUX.1-dev."""

    pipeline = "FluxPipeline"
    lora_targets = (
        "attn.add_k_proj", "attn.add_q_proj", "attn.add_v_proj", "attn.to_add_out",
        "attn.to_k", "attn.to_out.0", "attn.to_q", "attn.to_v",
    )  # fmt: skip
    encoders = ("text_encoder", "text_encoder_2")

    def encode(self, pipe: Any, text: str, *, text_length: int, guidance: float) -> Condition:
        names = ("tokens", "pooled", "text_ids")
        condition = encode_prompt(pipe, text, names, prompt_2=None, max_sequence_length=text_length)
        # Positions of text tokens carry no batch axis in diffusers; rows need one to be selected.
        return condition | {"text_ids": condition["text_ids"][None]}

    def latent_shape(self, pipe: Any, height: int, width: int) -> tuple[int, ...]:
        return (self.image_tokens(pipe, height, width), pipe.transformer.config.in_channels)

    def image_tokens(self, pipe: Any, height: int, width: int) -> int:
        side = pipe.vae_scale_factor * 2
        return (height // side) * (width // side)

    def velocity(
        self, pipe: Any, x: Tensor, sigma: Tensor, condition: Condition, *, guidance: float, size: tuple[int, int]
    ) -> Tensor:
        embedded = pipe.transformer.config.guidance_embeds
        return pipe.transformer(
            hidden_states=x,
            timestep=sigma,
            guidance=torch.full((x.shape[0],), guidance, device=x.device, dtype=torch.float32) if embedded else None,
            pooled_projections=condition["pooled"],
            encoder_hidden_states=condition["tokens"],
            txt_ids=condition["text_ids"][0],
            img_ids=self.positions(pipe, x, condition, size),
            return_dict=False,
        )[0]

    def positions(self, pipe: Any, x: Tensor, condition: Condition, size: tuple[int, int]) -> Tensor:
        """Of the tokens of a picture, [tokens, 3]: alike for all rows."""
        side = pipe.vae_scale_factor * 2
        return pipe._prepare_latent_image_ids(None, size[0] // side, size[1] // side, x.device, x.dtype)

    def decode(self, pipe: Any, latents: Tensor, *, size: tuple[int, int]) -> Tensor:
        config = pipe.vae.config
        latents = pipe._unpack_latents(latents, size[0], size[1], pipe.vae_scale_factor)
        latents = latents / config.scaling_factor + config.shift_factor
        return pipe.vae.decode(latents.to(pipe.vae.dtype), return_dict=False)[0]
