"""Wan, text to video: names only. Latents are [C, F, h, w], F latent frames; two network calls, and texts filled up with zeros.

Of two networks (Wan2.2 A14B) `transformer` says the velocity from `boundary_ratio` up, `transformer_2` below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.flow.models.checkpoint import Guided
from grpo_mm.pipelines.flow.models.family import Condition, Size, said_of_pipeline
from grpo_mm.pipelines.flow.models.networks import NETWORKS, SECOND, networks_of

TEXT_LENGTH = 512
"""What the plain pipeline fills a text up to; the network sees what fills it up."""


@dataclass(frozen=True)
class Wan(Guided):
    """A WanPipeline by hub name or folder, e.g. Wan-AI/Wan2.1-T2V-1.3B-Diffusers, Wan-AI/Wan2.2-T2V-A14B-Diffusers."""

    negative_prompt: str = ""
    """What guidance leads away from, as the plain pipeline is given it."""
    guidance_2: float | None = None
    """Of two networks, the guidance of that of low noise (the plain pipeline's guidance_scale_2); null: as policy.guidance."""
    trained: tuple[Literal["transformer", "transformer_2"], ...] = ()
    """Of two networks, which are trained: transformer at high noise, transformer_2 at low noise; none named: both. The other stays as it is,
    and steps at its noise levels are sampled and not trained."""

    pipeline = "WanPipeline"
    lora_targets = ("add_k_proj", "add_v_proj", "to_k", "to_out.0", "to_q", "to_v")
    even_sigmas = False
    text_tokens = TEXT_LENGTH

    @property
    def one_time_a_token(self) -> bool:
        """As model_index.json says of the network's timesteps; by name where it is not on this disk (Wan2.2-TI2V-5B)."""
        said = said_of_pipeline(self.path, "expand_timesteps", revision=self.revision)
        return "TI2V-5B" in self.path if said is None else bool(said)

    @property
    def experts(self) -> bool:
        """Whether there are two networks."""
        said = said_of_pipeline(self.path, SECOND, revision=self.revision)
        return "A14B" in self.path if said is None else said != [None, None]

    @property
    def frames(self) -> int:
        return 121 if self.one_time_a_token else 81

    @property
    def fps(self) -> float:
        return 24.0 if self.one_time_a_token else 16.0

    def check_policy(self, policy: Any) -> None:
        if not self.experts and (self.guidance_2 is not None or SECOND in self.trained):
            given = f"trained={list(self.trained)}" if SECOND in self.trained else f"guidance_2={self.guidance_2:g}"
            raise ConfigError(
                f"policy.model.{given}: {self.path} has one network; leave it out. Two are in checkpoints such as Wan2.2's A14B."
            )
        if self.guidance_2 is not None and policy.guidance <= 1:
            raise ConfigError("policy.model.guidance_2: the plain pipeline guides where policy.guidance is above 1.")

    def said(self, pipe: Any, policy: Any) -> list[str]:
        found = []
        if policy.text_length != TEXT_LENGTH:
            found.append(
                f"texts are filled up to {policy.text_length} tokens, which the network sees; the plain pipeline fills them up to "
                f"{TEXT_LENGTH} unless it is told max_sequence_length (policy.text_length)"
            )
        if SECOND in networks_of(pipe):
            two = policy.guidance if self.guidance_2 is None else self.guidance_2
            found.append(
                f"two networks: transformer from σ = {pipe.config.boundary_ratio:g} up, guidance {policy.guidance:g}; transformer_2 "
                f"below, guidance {two:g}; trained: {' and '.join(self.trained or NETWORKS)}"
            )
        return found

    def load(self, dtype: torch.dtype, *, full: bool) -> Any:
        pipe = super().load(dtype, full=full)
        found = list(networks_of(pipe))
        if found[:1] != ["transformer"] or (SECOND in found) != (pipe.config.boundary_ratio is not None):
            raise ConfigError(
                f"{self.path} holds {' and '.join(found) or 'no network'}, and boundary_ratio = {pipe.config.boundary_ratio}; wanted "
                "transformer, and transformer_2 where there is a boundary."
            )
        return pipe

    def plain_call(self, *, guidance: float, text_length: int) -> dict[str, Any]:
        named = {"negative_prompt": self.negative_prompt or None, "guidance_scale_2": self.guidance_2}
        given = {name: value for name, value in named.items() if value is not None}
        return {"guidance_scale": guidance, "max_sequence_length": text_length, **given}

    def plain_size(self, size: Size) -> dict[str, Any]:
        return dict(zip(("num_frames", "height", "width"), size, strict=True))

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

    def expert_of(self, pipe: Any, sigma: Tensor) -> Tensor:
        return (sigma * 1000 < pipe.config.boundary_ratio * 1000).long()

    def trains_at(self, sigma: Tensor) -> Tensor | None:
        """Whether a network that is trained says the velocity at noise levels [n]; None where no file on this disk tells, or both are."""
        boundary = said_of_pipeline(self.path, "boundary_ratio", revision=self.revision)
        if boundary is None or len(set(self.trained)) != 1:
            return None
        is_second = sigma * 1000 < boundary * 1000
        return is_second if SECOND in self.trained else ~is_second

    def guidance_at(self, pipe: Any, sigma: Tensor, guidance: float) -> float:
        """Of rows of one network."""
        is_second = self.network(pipe, sigma) is getattr(pipe, SECOND, None)
        return guidance if self.guidance_2 is None or not is_second else self.guidance_2

    def network(self, pipe: Any, sigma: Tensor) -> Any:
        """The one that says the velocity there; where noise levels have no values, one that is trained."""
        if SECOND not in networks_of(pipe):
            return pipe.transformer
        if sigma.is_meta:
            return getattr(pipe, (self.trained or NETWORKS)[0])
        return getattr(pipe, NETWORKS[int(self.expert_of(pipe, sigma[:1]))])

    def velocity(
        self, pipe: Any, x: Tensor, sigma: Tensor, condition: Condition, *, guidance: float, size: Size
    ) -> Tensor:
        if self.network_rows(guidance) == 1:
            return self.half(pipe, x, sigma, condition, size=size, text=True)
        halves = self.halves(pipe, x, sigma, condition, size=size)
        return self.guided(*halves, self.guidance_at(pipe, sigma, guidance))

    def half(self, pipe: Any, x: Tensor, sigma: Tensor, condition: Condition, *, size: Size, text: bool) -> Tensor:
        time = sigma * 1000
        if self.one_time_a_token:
            time = time[:, None].expand(-1, self.image_tokens(pipe, *size))
        return self.call(pipe, x, sigma, condition, time=time, text=text)

    def call(
        self, pipe: Any, x: Tensor, sigma: Tensor, condition: Condition, *, time: Tensor, text: bool, **more: Any
    ) -> Tensor:
        return self.network(pipe, sigma)(
            hidden_states=x,
            timestep=time,
            encoder_hidden_states=condition["tokens" if text else "negative_tokens"],
            return_dict=False,
            **more,
        )[0].to(sigma.dtype)

    def decode(self, pipe: Any, latents: Tensor, *, size: Size) -> Tensor:
        mean, std = spread(pipe, latents)
        return pipe.vae.decode((latents * std + mean).to(pipe.vae.dtype), return_dict=False)[0]


def spread(pipe: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, standard deviation) of the autoencoder's latents, [1, C, 1, 1, 1] each."""
    config = pipe.vae.config
    mean, std = (like.new_tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
    return mean, std


@torch.no_grad()
def _states(pipe: Any, text: str, text_length: int) -> Tensor:
    """[1, T, D], 0 behind the text: as `encode_prompt`, which asks for the values of tensors on the way."""
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    read = pipe.tokenizer(
        prompt_clean(text), padding="max_length", max_length=text_length, truncation=True, return_tensors="pt"
    ).to(pipe.text_encoder.device)
    tokens = pipe.text_encoder(read.input_ids, read.attention_mask).last_hidden_state
    return tokens.where(read.attention_mask[..., None].bool(), 0)
