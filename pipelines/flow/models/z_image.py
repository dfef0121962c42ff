"""Z-Image: names only. The network counts time from noise to picture and says the velocity with the other sign; texts have their own lengths.

Its pipeline guides above 0, and counts guidance from there: 4 is what others call 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpo_mm.pipelines.flow.models.checkpoint import Guided
from grpo_mm.pipelines.flow.models.family import Condition

PATCH = 2


@dataclass(frozen=True)
class ZImage(Guided):
    """A ZImagePipeline by hub name or folder, e.g. Tongyi-MAI/Z-Image; policy.guidance is the pipeline's guidance_scale, 0 is none."""

    pipeline = "ZImagePipeline"
    lora_targets = ("attention.to_k", "attention.to_out.0", "attention.to_q", "attention.to_v")
    ragged = True

    def network_rows(self, guidance: float) -> int:
        return 2 if guidance > 0 else 1

    def encode(self, pipe: Any, text: str, *, text_length: int, guidance: float) -> Condition:
        condition = _states(pipe, text, text_length, "")
        if self.network_rows(guidance) == 2:
            condition |= _states(pipe, "", text_length, "negative_")
        return condition

    def latent_shape(self, pipe: Any, height: int, width: int) -> tuple[int, ...]:
        factor = pipe.vae_scale_factor
        return (pipe.transformer.config.in_channels, height // factor, width // factor)

    def image_tokens(self, pipe: Any, height: int, width: int) -> int:
        side = pipe.vae_scale_factor * PATCH
        return (height // side) * (width // side)

    def guided(self, of_none: Tensor, of_text: Tensor, guidance: float) -> Tensor:
        return of_text + guidance * (of_text - of_none)

    def halves(
        self, pipe: Any, x: Tensor, sigma: Tensor, condition: Condition, *, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """In one call, the text first."""
        texts = _texts(condition, "") + _texts(condition, "negative_")
        of_text, of_none = _network(pipe, torch.cat([x, x]), torch.cat([sigma, sigma]), texts).chunk(2)
        return of_none, of_text

    def half(
        self, pipe: Any, x: Tensor, sigma: Tensor, condition: Condition, *, size: tuple[int, int], text: bool
    ) -> Tensor:
        return _network(pipe, x, sigma, _texts(condition, "" if text else "negative_"))

    def decode(self, pipe: Any, latents: Tensor, *, size: tuple[int, int]) -> Tensor:
        config = pipe.vae.config
        latents = latents / config.scaling_factor + config.shift_factor
        return pipe.vae.decode(latents.to(pipe.vae.dtype), return_dict=False)[0]


def _network(pipe: Any, x: Tensor, sigma: Tensor, texts: list[Tensor]) -> Tensor:
    said = pipe.transformer(list(x.unsqueeze(2).unbind()), 1 - sigma, texts, return_dict=False)[0]  # one frame each
    return -torch.stack([one.to(sigma.dtype) for one in said]).squeeze(2)


def _texts(condition: Condition, kind: str) -> list[Tensor]:
    """Each without what fills it up."""
    tokens, mask = condition[f"{kind}tokens"], condition[f"{kind}mask"]
    lengths = [tokens.shape[1]] * len(tokens) if mask.is_meta else mask.sum(1).tolist()
    return [one[:length] for one, length in zip(tokens, lengths)]


@torch.no_grad()
def _states(pipe: Any, text: str, text_length: int, kind: str) -> dict[str, Tensor]:
    """The last hidden states but one of a text in its template, [1, T, D], and which of them are text, [1, T].

    As `encode_prompt` of one text, which asks for the values of tensors on the way and so cannot be counted without them.
    """
    turns = [{"role": "user", "content": text}]
    asked = pipe.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    ids = pipe.tokenizer(asked, max_length=text_length, truncation=True, return_tensors="pt").input_ids
    ids = ids.to(pipe.text_encoder.device)
    read = pipe.text_encoder(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
    tokens = read.hidden_states[-2]
    return {
        f"{kind}tokens": tokens,
        f"{kind}mask": torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device),
    }
