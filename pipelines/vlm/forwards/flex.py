"""Attention of answers by FlexAttention: one call, in which blocks that nobody sees are skipped. For CUDA devices.

The library does not offer it for these models; so the prompt and everything else goes through SDPA, and answers through this.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from grpo_mm.pipelines.vlm.forwards.prefix_attention import KeysValues

NAME = "sdpa_with_flex_answers"
"""In the library's table of attention functions."""


@dataclass(frozen=True)
class FlexPrompts:
    """What the tokens of a forward attend to before themselves, and which of the keys they see."""

    layers: tuple[KeysValues, ...]
    blocks: Any
    """A BlockMask over the keys of the prompts, then those of the tokens."""

    @staticmethod
    def of(layers: tuple[KeysValues, ...], row_cT: Tensor, length_c: tuple[int, ...]) -> FlexPrompts:
        """`row_cT`: the row of each token, -1 for fill, which sees itself alone; the same as `prefix_attention.sees`."""
        from torch.nn.attention.flex_attention import create_block_mask

        device, longest = layers[0][0].device, layers[0][0].shape[2]
        row_cT, length = row_cT.to(device), torch.tensor(length_c, device=device)

        def seen(context: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            own = (key - longest).clamp_min(0)
            row = row_cT[context, query]
            prompt = (key < length[context]) & (row >= 0)
            before = (row_cT[context, own] == row) & (row >= 0) & (own <= query)
            return torch.where(key < longest, prompt, before | (own == query))

        c, tokens = row_cT.shape
        return FlexPrompts(layers, create_block_mask(seen, c, None, tokens, longest + tokens, device=device))


def attend_answers(
    module: Any, query: Tensor, key: Tensor, value: Tensor, shared_prompts: FlexPrompts, scaling: float | None
) -> Tensor:
    """As `prefix_attention.install` wants it."""
    prompt_key, prompt_value = shared_prompts.layers[module.layer_idx]
    parts = [query, torch.cat([prompt_key, key], dim=2), torch.cat([prompt_value, value], dim=2)]
    kind = query.device.type
    if torch.is_autocast_enabled(kind):  # rotary positions leave queries and keys in float32
        parts = [part.to(torch.get_autocast_dtype(kind)) for part in parts]
    return _function(kind)(*parts, block_mask=shared_prompts.blocks, scale=scaling, enable_gqa=True)


@cache
def _function(kind: str) -> Any:
    """Compiled on a GPU. On a CPU it has no backward pass; there it is for comparison."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if kind == "cuda" else flex_attention
