"""Qwen-Image (also 2512): names only. Latents are packed, [tokens, 4 · channels]; two network calls, the result as long as that of the text.

A text has its own length: the language model reads it in a template, and the template's first tokens are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpo_mm.pipelines.flow.models.checkpoint import Guided
from grpo_mm.pipelines.flow.models.family import Condition, trimmed

NO_TEXT = " "
"""What stands for the empty text in the authors' examples; the pipeline guides only where it is given one."""


@dataclass(frozen=True)
class QwenImage(Guided):
    """A QwenImagePipeline by hub name or folder, e.g. Qwen/Qwen-Image."""

    pipeline = "QwenImagePipeline"
    lora_targets = (
        "attn.add_k_proj", "attn.add_q_proj", "attn.add_v_proj", "attn.to_add_out",
        "attn.to_k", "attn.to_out.0", "attn.to_q", "attn.to_v",
    )  # fmt: skip
    ragged = True

    def plain_call(self, *, guidance: float, text_length: int) -> dict[str, Any]:
        return {"true_cfg_scale": guidance, "negative_prompt": NO_TEXT, "max_sequence_length": text_length}

    def encode(self, pipe: Any, text: str, *, text_length: int, guidance: float) -> Condition:
        tokens, mask = _states(pipe, text, text_length)
        condition = {"tokens": tokens, "mask": mask}
        if self.network_rows(guidance) == 2:
            condition["negative_tokens"], condition["negative_mask"] = _states(pipe, NO_TEXT, text_length)
        return condition

    def latent_shape(self, pipe: Any, height: int, width: int) -> tuple[int, ...]:
        return (self.image_tokens(pipe, height, width), pipe.transformer.config.in_channels)

    def image_tokens(self, pipe: Any, height: int, width: int) -> int:
        side = pipe.vae_scale_factor * 2
        return (height // side) * (width // side)

    def guided(self, of_none: Tensor, of_text: Tensor, guidance: float) -> Tensor:
        """With the length, token by token, of what the network says of the text."""
        combined = super().guided(of_none, of_text, guidance)
        return combined * (of_text.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True))

    def half(
        self, pipe: Any, x: Tensor, sigma: Tensor, condition: Condition, *, size: tuple[int, int], text: bool
    ) -> Tensor:
        kind = "" if text else "negative_"
        tokens, mask = trimmed(condition[f"{kind}tokens"], condition[f"{kind}mask"])
        return pipe.transformer(
            hidden_states=x,
            timestep=sigma,
            encoder_hidden_states=tokens,
            encoder_hidden_states_mask=mask,
            img_shapes=[self.shapes(pipe, condition, size)] * x.shape[0],
            return_dict=False,
        )[0].to(sigma.dtype)

    def shapes(self, pipe: Any, condition: Condition, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """(frames, rows, columns) of a row's tokens, piece by piece: positions follow from them."""
        side = pipe.vae_scale_factor * 2
        return [(1, size[0] // side, size[1] // side)]

    def decode(self, pipe: Any, latents: Tensor, *, size: tuple[int, int]) -> Tensor:
        config = pipe.vae.config
        latents = pipe._unpack_latents(latents, size[0], size[1], pipe.vae_scale_factor)  # [n, C, 1 frame, H, W]
        mean, std = (latents.new_tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
        return pipe.vae.decode((latents * std + mean).to(pipe.vae.dtype), return_dict=False)[0][:, :, 0]


@torch.no_grad()
def _states(pipe: Any, text: str, text_length: int) -> tuple[Tensor, Tensor]:
    """(last hidden states of a text in its template [1, T, D], which of them are text [1, T]).

    As `encode_prompt` of one text, which asks for the values of tensors on the way and so cannot be counted without them.
    """
    dropped = pipe.prompt_template_encode_start_idx
    ids = pipe.tokenizer(
        pipe.prompt_template_encode.format(text),
        max_length=pipe.tokenizer_max_length + dropped,
        truncation=True,
        return_tensors="pt",
    ).input_ids.to(pipe.text_encoder.device)
    read = pipe.text_encoder(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
    tokens = read.hidden_states[-1][:, dropped : dropped + text_length]
    return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
