"""Stable Diffusion 3 and 3.5 (medium, large): names only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpo_mm.pipelines.flow.models.checkpoint import Planes
from grpo_mm.pipelines.flow.models.family import Condition, encode_prompt


@dataclass(frozen=True)
class Sd3(Planes):
    """A StableDiffusion3Pipeline by hub name or folder, e.g. stabilityai/stable-diffusion-3.5-medium."""

    pipeline = "StableDiffusion3Pipeline"
    lora_targets = (
        "attn.add_k_proj", "attn.add_q_proj", "attn.add_v_proj", "attn.to_add_out",
        "attn.to_k", "attn.to_out.0", "attn.to_q", "attn.to_v",
    )  # fmt: skip
    encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    may_lack = ("text_encoder_3", "tokenizer_3")
    even_sigmas = False
    tables = ("pos_embed.pos_embed",)

    def encode(self, pipe: Any, text: str, *, text_length: int, guidance: float) -> Condition:
        return encode_prompt(
            pipe,
            text,
            ("tokens", "negative_tokens", "pooled", "negative_pooled"),
            prompt_2=None,
            prompt_3=None,
            do_classifier_free_guidance=guidance > 1,
            max_sequence_length=text_length,
        )

    def halves(
        self, pipe: Any, x: Tensor, sigma: Tensor, condition: Condition, *, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """In one call."""
        rows = zip(_with_none(x, sigma, condition), _with_text(x, sigma, condition))
        of_none, of_text = _network(pipe, *(torch.cat(pair) for pair in rows)).to(sigma.dtype).chunk(2)
        return of_none, of_text

    def half(
        self, pipe: Any, x: Tensor, sigma: Tensor, condition: Condition, *, size: tuple[int, int], text: bool
    ) -> Tensor:
        return _network(pipe, *(_with_text if text else _with_none)(x, sigma, condition)).to(sigma.dtype)

    def decode(self, pipe: Any, latents: Tensor, *, size: tuple[int, int]) -> Tensor:
        config = pipe.vae.config
        latents = latents / config.scaling_factor + config.shift_factor
        return pipe.vae.decode(latents.to(pipe.vae.dtype), return_dict=False)[0]


def _with_text(x: Tensor, sigma: Tensor, condition: Condition) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return x, sigma * 1000, condition["tokens"], condition["pooled"]


def _with_none(x: Tensor, sigma: Tensor, condition: Condition) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return x, sigma * 1000, condition["negative_tokens"], condition["negative_pooled"]


def _network(pipe: Any, x: Tensor, timestep: Tensor, tokens: Tensor, pooled: Tensor) -> Tensor:
    return pipe.transformer(
        hidden_states=x,
        timestep=timestep,
        encoder_hidden_states=tokens,
        pooled_projections=pooled,
        return_dict=False,
    )[0]
