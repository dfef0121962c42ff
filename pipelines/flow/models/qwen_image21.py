"""Qwen-Image 2.1: names only. Text and picture are one sequence; latents are [tokens, channels], pictures have an opaque channel.

In a batch the plain pipeline counts a shorter text as long as the longest, and so places its picture elsewhere than it would be
alone; here every text is as it is alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpo_mm.pipelines.flow.models.checkpoint import Guided
from grpo_mm.pipelines.flow.models.family import Condition

NO_TEXT = " "
"""What the pipeline reads in the place of an empty text; it guides only where it is given one."""
IN_A_SLOT = 4
"""Latent tokens that stand where the language model would see one piece of a picture."""


@dataclass(frozen=True)
class QwenImage21(Guided):
    """A QwenImage21Pipeline by hub name or folder, e.g. Qwen/Qwen-Image-2.1; its texts are never cut."""

    pipeline = "QwenImage21Pipeline"
    lora_targets = ("attn.to_k", "attn.to_out.0", "attn.to_q", "attn.to_v")
    ragged = True
    cuts_texts = False
    alike_in_a_batch = False
    for_comparison = {"use_kv_cache": False}

    def plain_call(self, *, guidance: float, text_length: int) -> dict[str, Any]:
        return {"true_cfg_scale": guidance, "negative_prompt": NO_TEXT}

    def encode(self, pipe: Any, text: str, *, text_length: int, guidance: float) -> Condition:
        condition = _states(pipe, text, "")
        if self.network_rows(guidance) == 2:
            condition |= _states(pipe, NO_TEXT, "negative_")
        return condition

    def latent_shape(self, pipe: Any, height: int, width: int) -> tuple[int, ...]:
        return (self.image_tokens(pipe, height, width), pipe.transformer.config.in_channels)

    def image_tokens(self, pipe: Any, height: int, width: int) -> int:
        return (height // pipe.vae_scale_factor) * (width // pipe.vae_scale_factor)

    def half(
        self, pipe: Any, x: Tensor, sigma: Tensor, condition: Condition, *, size: tuple[int, int], text: bool
    ) -> Tensor:
        kind = "" if text else "negative_"
        tokens, mask = condition[f"{kind}tokens"], condition[f"{kind}mask"]
        lengths = [tokens.shape[1]] * len(tokens) if mask.is_meta else mask.sum(1).tolist()
        alike = [[i for i, other in enumerate(lengths) if other == length] for length in sorted(set(lengths))]
        if len(alike) == 1:
            return _network(pipe, x, sigma, tokens[:, : lengths[0]], size)
        said = [_network(pipe, x[rows], sigma[rows], tokens[rows, : lengths[rows[0]]], size) for rows in alike]
        return torch.cat(said)[torch.tensor(sum(alike, [])).argsort()]

    def decode(self, pipe: Any, latents: Tensor, *, size: tuple[int, int]) -> Tensor:
        config = pipe.vae.config
        latents = pipe._unpack_latents(latents, size[0], size[1], pipe.vae_scale_factor)  # [n, C, 1 frame, H, W]
        mean, std = (latents.new_tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
        return self.in_three(pipe.vae.decode((latents * std + mean).to(pipe.vae.dtype), return_dict=False)[0][:, :, 0])

    @staticmethod
    def in_three(decoded: Tensor) -> Tensor:
        """[n, 4, H, W] in [-1, 1], the last channel opaque at 1: laid on white, as the pipeline's reader sees such a picture."""
        if decoded.shape[1] == 3:
            return decoded
        opaque = (decoded[:, 3:] / 2 + 0.5).clamp(0, 1)
        return decoded[:, :3] * opaque + (1 - opaque)


def _network(pipe: Any, x: Tensor, sigma: Tensor, tokens: Tensor, size: tuple[int, int]) -> Tensor:
    side, n, image_tokens = pipe.vae_scale_factor, *x.shape[:2]
    length = tokens.shape[1]
    # Its values are asked for, also where nothing but sizes is counted.
    is_picture = torch.arange(length + image_tokens // IN_A_SLOT, device="cpu" if x.is_meta else x.device) >= length
    said = pipe.transformer(
        hidden_states=x,
        timestep=sigma,
        encoder_hidden_states=tokens.to(x.dtype),
        img_shapes=[[(1, size[0] // side, size[1] // side)]] * n,
        img_mask=is_picture.expand(n, -1),
        return_dict=False,
    )[0]
    return said[:, -image_tokens:].to(sigma.dtype)


@torch.no_grad()
def _states(pipe: Any, text: str, kind: str) -> dict[str, Tensor]:
    """The last layer's states before their norm, [1, T, D], without those of the system's message.

    As `encode_prompt` of one text, which asks for the values of the mask and so cannot be counted without them.
    """
    tokens, _, _ = pipe._get_qwen_prompt_embeds(text, device=pipe.text_encoder.device)
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    return {f"{kind}tokens": tokens, f"{kind}mask": mask}
