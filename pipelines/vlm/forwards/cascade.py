"""Attention of answers in two calls, over their prompt and over themselves, put together by the sums of their exponentials.

Of a query, part k of the keys gives an output O_k and L_k = log Σ exp(score). The whole is

    L = log Σ_k exp(L_k),    O = Σ_k exp(L_k - L) O_k

and the gradient is each part's own backward kernel, given the O and L of the whole. No key or value is copied for an answer, and
no mask is made: the queries of all answers are one long sequence before the prompt's keys (form C of arXiv:2506.05433's
attention; the merge is our own arithmetic, checked against the other forms).

    c contexts   n rows   H heads   T answer tokens of a context, in one line   A longest answer   K prompt tokens   D width
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpo_mm.pipelines.vlm.forwards.prefix_attention import KeysValues

NAME = "sdpa_with_shared_prompts"
"""In the library's table of attention functions: SDPA, and for answers what stands here."""

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class SharedPrompts:
    """Where the answers of a forward stand, and what they attend to before themselves."""

    layers: tuple[KeysValues, ...]
    length_c: tuple[int, ...]
    """Tokens of each prompt; the keys are filled up to the longest."""
    tokens_c: tuple[int, ...]
    """Answer tokens of each context, in its line."""
    place_nA: Tensor
    """Flat place [c · T] of each token of each row; 0 where the row has ended."""
    inside_nA: Tensor

    @staticmethod
    def of(layers: tuple[KeysValues, ...], row_cT: Tensor, length_c: tuple[int, ...]) -> SharedPrompts:
        """`row_cT`: the row of each token, -1 for fill. A row's tokens follow each other."""
        flat = row_cT.flatten()
        places = [torch.nonzero(flat == row).flatten() for row in flat[flat >= 0].unique()]
        place_nA = torch.nn.utils.rnn.pad_sequence(places, batch_first=True)
        inside_nA = torch.arange(place_nA.shape[1]) < torch.tensor([len(place) for place in places])[:, None]
        tokens_c = tuple((row_cT >= 0).sum(1).tolist())
        return SharedPrompts(layers, length_c, tokens_c, place_nA, inside_nA)


def attend_answers(
    module: Any, query: Tensor, key: Tensor, value: Tensor, shared_prompts: SharedPrompts, scaling: float | None
) -> Tensor:
    """As `prefix_attention.install` wants it."""
    parts = (query, key, value, *shared_prompts.layers[module.layer_idx])
    if torch.is_autocast_enabled("cpu"):  # which casts for SDPA: rotary positions leave queries and keys in float32
        parts = tuple(part.to(torch.get_autocast_dtype("cpu")) for part in parts)
    return _Cascade.apply(*parts, shared_prompts, scaling)


class _Cascade(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, prompt_key: Tensor, prompt_value: Tensor,
        shared: SharedPrompts, scaling: float | None,
    ) -> Tensor:  # fmt: skip
        part_cHTD, lse_cHT = torch.zeros_like(query), query.new_zeros(query.shape[:3], dtype=_wide(query))
        for c, (keys, tokens) in enumerate(zip(shared.length_c, shared.tokens_c)):
            if tokens:
                found, lse = _forward(*_prompt_part(query, prompt_key, prompt_value, c, keys, tokens), scale=scaling)
                part_cHTD[c, :, :tokens] = found.reshape(query.shape[1], tokens, -1)
                lse_cHT[c, :, :tokens] = lse.reshape(query.shape[1], tokens)
        own_nHAD, own_lse_nHA = _forward(*_own_part(query, key, value, shared), 0.0, True, scale=scaling)
        own_cHTD = _to_lines(own_nHAD, shared, like=query)
        own_lse_cHT = _to_lines(own_lse_nHA[..., None], shared, like=lse_cHT[..., None])[..., 0]
        whole_cHT = torch.logaddexp(lse_cHT, own_lse_cHT)
        first, second = ((lse - whole_cHT).exp()[..., None] for lse in (lse_cHT, own_lse_cHT))
        out = (first * part_cHTD + second * own_cHTD).to(query.dtype)
        ctx.save_for_backward(query, key, value, prompt_key, prompt_value, out, whole_cHT)
        ctx.shared, ctx.scaling = shared, scaling
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, prompt_key, prompt_value, out, whole_cHT = ctx.saved_tensors
        shared, scale, heads = ctx.shared, ctx.scaling, key.shape[1]
        grad_query = torch.zeros_like(query)
        grad_prompt_key, grad_prompt_value = torch.zeros_like(prompt_key), torch.zeros_like(prompt_value)
        for c, (keys, tokens) in enumerate(zip(shared.length_c, shared.tokens_c)):
            if tokens:
                part = _prompt_part(query, prompt_key, prompt_value, c, keys, tokens)
                rest = [_of_heads(tensor, c, tokens, heads) for tensor in (out, whole_cHT[..., None])]
                dq, dk, dv = _backward(
                    _of_heads(grad, c, tokens, heads), *part, rest[0], rest[1][..., 0], 0.0, False, scale=scale
                )
                grad_query[c, :, :tokens] = dq.reshape(query.shape[1], tokens, -1)
                grad_prompt_key[c, :, :keys], grad_prompt_value[c, :, :keys] = dk[0], dv[0]
        grad_nHAD, out_nHAD = (_to_rows(tensor, shared) for tensor in (grad, out))
        # Where a row has ended its scores may be anything; an infinite sum leaves nothing of them.
        whole_nHA = _to_rows(whole_cHT[..., None], shared)[..., 0].where(shared.inside_nA[:, None], torch.inf)
        grad_nHAD = grad_nHAD.where(shared.inside_nA[:, None, :, None], 0)
        dq, dk, dv = _backward(
            grad_nHAD, *_own_part(query, key, value, shared), out_nHAD, whole_nHA, 0.0, True, scale=scale
        )
        grad_query = grad_query + _to_lines(dq, shared, like=query)
        dk, dv = (_to_lines(_sum_heads(tensor, heads), shared, like=key) for tensor in (dk, dv))
        return grad_query, dk, dv, grad_prompt_key, grad_prompt_value, None, None


def _wide(query: Tensor) -> torch.dtype:
    return torch.promote_types(query.dtype, torch.float32)


def _prompt_part(
    query: Tensor, prompt_key: Tensor, prompt_value: Tensor, c: int, keys: int, tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of a context's answers, those of heads with the same keys in one sequence, and its prompt's keys and values."""
    heads = prompt_key.shape[1]
    return _of_heads(query, c, tokens, heads), prompt_key[c : c + 1, :, :keys], prompt_value[c : c + 1, :, :keys]


def _of_heads(tensor: Tensor, c: int, tokens: int, heads: int) -> Tensor:
    """[c, H, T, D] → [1, heads, H / heads · tokens, D] of one context."""
    return tensor[c, :, :tokens].reshape(1, heads, -1, tensor.shape[-1])


def _own_part(query: Tensor, key: Tensor, value: Tensor, shared: SharedPrompts) -> tuple[Tensor, Tensor, Tensor]:
    """By row; every head with keys and values of its own."""
    times = query.shape[1] // key.shape[1]
    key_nHAD, value_nHAD = (_to_rows(tensor, shared).repeat_interleave(times, dim=1) for tensor in (key, value))
    return _to_rows(query, shared), key_nHAD, value_nHAD


def _sum_heads(tensor: Tensor, heads: int) -> Tensor:
    n, _, actions, width = tensor.shape
    return tensor.view(n, heads, -1, actions, width).sum(2)


def _to_rows(tensor: Tensor, shared: SharedPrompts) -> Tensor:
    """[c, H, T, D] → [n, H, A, D]; what stands beyond a row's end is that of the first token."""
    flat = tensor.transpose(1, 2).flatten(0, 1)
    return flat[shared.place_nA].transpose(1, 2)


def _to_lines(tensor: Tensor, shared: SharedPrompts, *, like: Tensor) -> Tensor:
    """[n, H, A, D] → [c, H, T, D], the shape of `like`; 0 for fill."""
    c, heads, tokens, width = like.shape
    flat = tensor.new_zeros(c * tokens, heads, width)
    flat[shared.place_nA[shared.inside_nA]] = tensor.transpose(1, 2)[shared.inside_nA]
    return flat.view(c, tokens, heads, width).transpose(1, 2)
