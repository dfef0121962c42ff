"""Attention of a vision tower: all windows of one length in one call.

A tower attends within windows, frames and pictures. Under SDPA the library asks for each of them by itself, thousands of calls for
one picture, while their lengths are few.

    H heads   T tokens of the tower   w windows of one length   L tokens of a window   D width of a head
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.weak import WeakIdKeyDictionary

NAME = "windows_in_place_of_flash"
"""Where the name of an attention holds "flash", the library hands over all windows at once, with their borders."""


@dataclass(frozen=True)
class Windows:
    """How tokens are put so that windows of one length are neighbours.

    Example: windows of 2, 3 and 2 tokens: sizes [(2, 2), (1, 3)], order 0 1 5 6 2 3 4, back 0 1 4 5 6 2 3.
    """

    sizes: list[tuple[int, int]]
    """(w, L) of each length, the shortest first."""
    order_T: Tensor | None
    """Where each token comes from; None: they stand so already."""
    back_T: Tensor | None


def windows_of(border_W: Tensor) -> Windows:
    """From the first token of each window, and the end of the last, as int [W + 1]. Empty windows count for nothing."""
    borders = border_W.tolist()
    starts: dict[int, list[int]] = {}
    for start, end in zip(borders, borders[1:]):
        if end > start:
            starts.setdefault(end - start, []).append(start)
    lengths = sorted(starts)
    sizes = [(len(starts[length]), length) for length in lengths]
    if len(lengths) < 2:
        return Windows(sizes, None, None)
    parts = [(torch.tensor(starts[length])[:, None] + torch.arange(length)).flatten() for length in lengths]
    order_T = torch.cat(parts)
    return Windows(sizes, order_T.to(border_W.device), order_T.argsort().to(border_W.device))


def attend_windows(query: Tensor, key: Tensor, value: Tensor, windows: Windows, scaling: float | None) -> Tensor:
    """[H, T, D] each to [H, T, D]: every token attends to the tokens of its window."""
    parts = [query, key, value]
    if windows.order_T is not None:
        parts = [part.index_select(1, windows.order_T) for part in parts]
    spans = [w * length for w, length in windows.sizes]
    found = []
    for (w, length), *given in zip(windows.sizes, *(part.split(spans, dim=1) for part in parts)):
        q, k, v = (part.unflatten(1, (w, length)).transpose(0, 1) for part in given)
        found.append(scaled_dot_product_attention(q, k, v, scale=scaling).transpose(0, 1).flatten(1, 2))
    out = found[0] if len(found) == 1 else torch.cat(found, dim=1)
    return out if windows.back_T is None else out.index_select(1, windows.back_T)


def install(config: Any) -> None:
    """Gives the tower of this vision config such an attention; its blocks share what is known of a prompt's windows."""
    from transformers import AttentionInterface

    known: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, *, cu_seq_lens_q: Tensor,
        scaling: float | None = None, **_: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        windows = known.get(cu_seq_lens_q)
        if windows is None:
            windows = known[cu_seq_lens_q] = windows_of(cu_seq_lens_q)
        out = attend_windows(query[0], key[0], value[0], windows, scaling)
        return out.transpose(0, 1)[None].contiguous(), None

    AttentionInterface.register(NAME, attention)
    config._attn_implementation = NAME
