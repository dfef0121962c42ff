"""Wan, text to video: names only. Latents are [C, F, h, w], F latent frames; two network calls, and texts filled up with zeros.

A text is read up to 512 tokens, and the network sees what fills it up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpo_mm.pipelines.flow.models.checkpoint import Guided
from grpo_mm.pipelines.flow.models.family import Condition, Size, said_of_pipeline


@dataclass(frozen=True)
class Wan(Guided):
    """A WanPipeline by hub name or folder, e.g. Wan-AI/Wan2.1-T2V-1.3B-Diffusers."""

    negative_prompt: str = ""
    """What guidance leads away from, as the plain pipeline is given it."""

    pipeline = "WanPipeline"
    lora_targets = ("add_k_proj", "add_v_proj", "to_k", "to_out.0", "to_q", "to_v")
    even_sigmas = False

    @property
    def one_time_a_token(self) -> bool:
        """As model_index.json says of the network's timesteps; by name where it is not on this disk (Wan2.2-TI2V-5B)."""
        said = said_of_pipeline(self.path, "expand_timesteps", revision=self.revision)
        return "TI2V-5B" in self.path if said is None else bool(said)

    @property
    def frames(self) -> int:
        return 121 if self.one_time_a_token else 81

    @property
    def fps(self) -> float:
        return 24.0 if self.one_time_a_token else 16.0

    def plain_call(self, *, guidance: float, text_length: int) -> dict[str, Any]:
        negative = {"negative_prompt": self.negative_prompt} if self.negative_prompt else {}
        return {"guidance_scale": guidance, "max_sequence_length": text_length, **negative}

    def encode(self, pipe: Any, text: str, *, text_length: int, guidance: float) -> Condition:
        condition = {"tokens": _states(pipe, text, text_length)}
        if self.network_rows(guidance) == 2:
            condition["negative_tokens"] = _states(pipe, self.negative_prompt, text_length)
        return condition

    def latent_shape(self, pipe: Any, frames: int, height: int, width: int) -> tuple[int, ...]:
        side = pipe.vae_scale_factor_spatial
        return (
            pipe.vae.config.z_dim,
            1 + (frames - 1) // pipe.vae_scale_factor_temporal,
            height // side,
            width // side,
        )

    def image_tokens(self, pipe: Any, frames: int, height: int, width: int) -> int:
        shape = self.latent_shape(pipe, frames, height, width)[1:]
        return torch.Size(n // p for n, p in zip(shape, pipe.transformer.config.patch_size)).numel()

    def half(self, pipe: Any, x: Tensor, sigma: Tensor, condition: Condition, *, size: Size, text: bool) -> Tensor:
        time = sigma * 1000
        if self.one_time_a_token:
            time = time[:, None].expand(-1, self.image_tokens(pipe, *size))
        return pipe.transformer(
            hidden_states=x,
            timestep=time,
            encoder_hidden_states=condition["tokens" if text else "negative_tokens"],
            return_dict=False,
        )[0].to(sigma.dtype)

    def decode(self, pipe: Any, latents: Tensor, *, size: Size) -> Tensor:
        config = pipe.vae.config
        mean, std = (latents.new_tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
        return pipe.vae.decode((latents * std + mean).to(pipe.vae.dtype), return_dict=False)[0]


@torch.no_grad()
def _states(pipe: Any, text: str, text_length: int) -> Tensor:
    """[1, T, D], 0 behind the text: as `encode_prompt`, which asks for the values of tensors on the way."""
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    read = pipe.tokenizer(
        prompt_clean(text), padding="max_length", max_length=text_length, truncation=True, return_tensors="pt"
    ).to(pipe.text_encoder.device)
    tokens = pipe.text_encoder(read.input_ids, read.attention_mask).last_hidden_state
    return tokens.where(read.attention_mask[..., None].bool(), 0)
