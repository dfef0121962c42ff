"""Wan, a first frame and a text to video: names only. The frame's latents are a part of the condition, in one of two ways.

Beside the noisy latents as more channels (Wan2.1, Wan2.2 A14B), perhaps with a last frame; or in the place of the first latent frame, at time 0
(Wan2.2 TI2V-5B).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.flow.models.family import Condition, Size, check_pipeline, read_index, resolve
from grpo_mm.pipelines.flow.models.wan import TEXT_LENGTH, Wan, spread
from grpo_mm.pipelines.weight_files import on_this_disk
from grpo_mm.weights.weight_files import read_settings


@dataclass(frozen=True)
class WanI2V(Wan):
    """A WanImageToVideoPipeline by hub name or folder, e.g. Wan-AI/Wan2.1-I2V-14B-480P-Diffusers; Wan-AI/Wan2.2-TI2V-5B-Diffusers too.

    `Prompt.media` is the first frame; a second picture, where the checkpoint takes one, the last.
    """

    pipeline = "WanImageToVideoPipeline"
    encoders = ("image_encoder", "text_encoder")

    @property
    def pictures(self) -> tuple[int, int]:
        if self.one_time_a_token:
            return (1, 1)
        settings = _settings(self)
        if settings.get("pos_embed_seq_len") is not None or "FLF2V" in self.path:
            return (2, 2)  # it was trained on both
        return (1, 1) if settings.get("image_dim") is not None else (1, 2)

    def check(self) -> None:
        folder = Path(resolve(self.path))
        is_text = (folder / "model_index.json").is_file() and read_index(folder).get("_class_name") == Wan.pipeline
        check_pipeline(self.path, Wan.pipeline if is_text and self.one_time_a_token else self.pipeline)

    def check_policy(self, policy: Any) -> None:
        super().check_policy(policy)
        if policy.text_length != TEXT_LENGTH and _settings(self).get("image_dim") is not None:
            raise ConfigError(
                f"policy.text_length = {policy.text_length}; wanted {TEXT_LENGTH}: the checkpoint's network takes the last {TEXT_LENGTH} tokens "
                "for the text, and what is before them for the picture."
            )

    def plain_pictures(self, pipe: Any, pictures: list[Any], size: Size) -> dict[str, Any]:
        return dict(zip(("image", "last_image"), pictures))

    def encode(
        self, pipe: Any, text: str, *, text_length: int, guidance: float, pictures: list[Any], size: Size
    ) -> Condition:
        condition = dict(super().encode(pipe, text, text_length=text_length, guidance=guidance))
        if pipe.transformer.config.image_dim is not None:
            condition["seen"] = _seen(pipe, pictures)
        return condition | {"given": self._given(pipe, pictures, size)}

    @torch.no_grad()
    def _given(self, pipe: Any, pictures: list[Any], size: Size) -> Tensor:
        """Latents of the frames that are given: of the first alone, or of a clip that is grey between them, below channels that tell
        which they are, [1, C, F, h, w]."""
        frames, height, width = size
        sides = {"height": height, "width": width}
        shown = [pipe.video_processor.preprocess(one, **sides).unsqueeze(2).to(pipe.vae.device) for one in pictures]
        if not self.one_time_a_token:
            between = frames - len(shown)
            shown.insert(1, shown[0].new_zeros(*shown[0].shape[:2], between, height, width))
        latents = pipe.vae.encode(torch.cat(shown, dim=2).to(pipe.vae.dtype)).latent_dist.mode()
        mean, std = spread(pipe, latents)
        latents = (latents - mean) * (1 / std)
        if self.one_time_a_token:
            return latents
        each = pipe.vae_scale_factor_temporal
        known = latents.new_zeros(1, each * latents.shape[2], *latents.shape[3:])
        known[:, :each] = 1  # the first latent frame is one frame, said so many times
        if len(pictures) > 1:
            known[:, -1] = 1
        known = known.view(1, latents.shape[2], each, *latents.shape[3:]).transpose(1, 2)
        return torch.cat([known, latents], dim=1)

    def half(self, pipe: Any, x: Tensor, sigma: Tensor, condition: Condition, *, size: Size, text: bool) -> Tensor:
        given = condition["given"].to(x)
        if not self.one_time_a_token:
            more = {"encoder_hidden_states_image": _rows(pipe, condition["seen"])} if "seen" in condition else {}
            return self.call(pipe, torch.cat([x, given], dim=1), sigma, condition, time=sigma * 1000, text=text, **more)
        time = (sigma * 1000)[:, None].expand(-1, self.image_tokens(pipe, *size)).clone()
        time[:, : time.shape[1] // x.shape[2]] = 0  # tokens of the first latent frame
        velocity = self.call(pipe, torch.cat([given, x[:, :, 1:]], dim=2), sigma, condition, time=time, text=text)
        # What is given is no choice of the network: its velocity is the one that leads there from wherever the noise has it.
        leads = (x[:, :, :1].to(sigma.dtype) - given.to(sigma.dtype)) / sigma.view(-1, 1, 1, 1, 1)
        return torch.cat([leads, velocity[:, :, 1:]], dim=2)

    def drawn(self, latents: Tensor) -> Tensor:
        """What of latents [n, ...] the network draws; the rest is given."""
        return latents[:, :, 1:] if self.one_time_a_token else latents


def _settings(family: WanI2V) -> dict[str, Any]:
    """Of the network, where they are on this disk."""
    folder = on_this_disk(resolve(family.path), revision=family.revision, file="model_index.json")
    file = None if folder is None else folder / "transformer" / "config.json"
    if file is not None and file.is_file():
        return read_settings(file)
    return {"image_dim": 1280} if "Wan2.1" in family.path else {}


@torch.no_grad()
def _seen(pipe: Any, pictures: list[Any]) -> Tensor:
    """The last hidden states but one of the image encoder, of all pictures one after the other, [1, T, D]."""
    read = pipe.image_processor(images=pictures, return_tensors="pt").to(
        pipe.image_encoder.device, pipe.image_encoder.dtype
    )
    states = pipe.image_encoder(**read, output_hidden_states=True).hidden_states[-2]
    return states.reshape(1, -1, states.shape[-1])


def _rows(pipe: Any, seen: Tensor) -> Tensor:
    """As the network takes them, whose table of positions is for two pictures: one row a picture."""
    both = pipe.transformer.config.pos_embed_seq_len
    return seen if both is None else seen.reshape(-1, both // 2, seen.shape[-1])
