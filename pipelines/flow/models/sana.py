"""Sana and Sana-1.5: names only. A latent stands for 32 × 32 pixels; the text comes after an instruction, whose tokens are dropped.

Their checkpoints are sampled by DPM-Solver++ on whole timesteps; evaluation does the same, see `OfCheckpoint`.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpo_mm.pipelines.flow.models.checkpoint import Planes
from grpo_mm.pipelines.flow.models.family import Condition, encode_prompt


@dataclass(frozen=True)
class Sana(Planes):
    """A SanaPipeline by hub name or folder, e.g. Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers."""

    pipeline = "SanaPipeline"
    lora_targets = (
        "attn1.to_k", "attn1.to_out.0", "attn1.to_q", "attn1.to_v", "attn2.to_k", "attn2.to_out.0", "attn2.to_q", "attn2.to_v",
    )  # fmt: skip
    even_sigmas = False

    def plain_call(self, *, guidance: float, text_length: int) -> dict[str, Any]:
        # Binning would draw another size than asked for, and shrink it.
        return super().plain_call(guidance=guidance, text_length=text_length) | {"use_resolution_binning": False}

    def encode(self, pipe: Any, text: str, *, text_length: int, guidance: float) -> Condition:
        """`text_length` tokens each: the first of all, then the last ones, which hold the text and what fills it up."""
        asked = inspect.signature(type(pipe).__call__).parameters["complex_human_instruction"].default
        return encode_prompt(
            pipe,
            text,
            ("tokens", "mask", "negative_tokens", "negative_mask"),
            do_classifier_free_guidance=self.network_rows(guidance) == 2,
            max_sequence_length=text_length,
            complex_human_instruction=asked,
        )

    def halves(
        self, pipe: Any, x: Tensor, sigma: Tensor, condition: Condition, *, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """In one call."""
        kinds = ("negative_", "")
        tokens, mask = (torch.cat([condition[f"{kind}{name}"] for kind in kinds]) for name in ("tokens", "mask"))
        of_none, of_text = _network(pipe, torch.cat([x, x]), torch.cat([sigma, sigma]), tokens, mask).chunk(2)
        return of_none, of_text

    def half(
        self, pipe: Any, x: Tensor, sigma: Tensor, condition: Condition, *, size: tuple[int, int], text: bool
    ) -> Tensor:
        kind = "" if text else "negative_"
        return _network(pipe, x, sigma, condition[f"{kind}tokens"], condition[f"{kind}mask"])

    def decode(self, pipe: Any, latents: Tensor, *, size: tuple[int, int]) -> Tensor:
        latents = latents.to(pipe.vae.dtype) / pipe.vae.config.scaling_factor
        return pipe.vae.decode(latents, return_dict=False)[0]


def _network(pipe: Any, x: Tensor, sigma: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    said = pipe.transformer(
        hidden_states=x,
        encoder_hidden_states=tokens.to(x.dtype),
        encoder_attention_mask=mask,
        timestep=sigma * 1000 * pipe.transformer.config.timestep_scale,
        return_dict=False,
    )[0].to(sigma.dtype)
    return said.chunk(2, dim=1)[0] if said.shape[1] == 2 * x.shape[1] else said  # the second half is a learnt variance
