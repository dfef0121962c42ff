"""What goes between a prompt's forward and those of its answers: keys and values of every layer or its state, and who sees whom.

The library's attention asks a cache for the keys and values that it attends to. The two caches here are all that sharing a
prefix needs of it, so it works with eager, SDPA and flash attention, in every family, and no model file is touched.

    c contexts   n rows   K keys   T answer tokens of a context, those of all its rows in one line
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

KeysValues = tuple[Tensor, Tensor]
"""Of one layer, [c, key/value heads, K, width of a head] each, with positions applied to the keys."""


class States(NamedTuple):
    """Of one layer with linear attention, in place of keys and values: what stands for all tokens so far. Of the prompt's last token,
    so that what goes on from there is a function of the prompt, and its gradient goes back into it."""

    conv: Tensor
    """[c, channels, length of the kernel - 1]: the last inputs of the convolution."""
    recurrent: Tensor
    """[c, heads, width of a key, width of a value]"""


Layer = KeysValues | States


def each(layer: Layer, of: Callable[[Tensor], Tensor]) -> Layer:
    """The layer with a function applied to both of its tensors."""
    one, other = map(of, layer)
    return States(one, other) if isinstance(layer, States) else (one, other)


def keys_held(layers: Iterable[Layer]) -> int:
    """For how many tokens there are keys, those that prompts are filled up with included."""
    return next(layer for layer in layers if not isinstance(layer, States))[0].shape[2]


class PromptCache:
    """Keeps the keys and values of a forward over prompts, inside the graph if there is one.

    No dataclass: of those FSDP hands a copy to each layer.
    """

    def __init__(self) -> None:
        self.layers: dict[int, Layer] = {}
        self._conv: dict[int, Tensor] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object) -> KeysValues:
        # A layer that is computed again in the backward pass comes by a second time; the graph is that of the first.
        self.layers.setdefault(layer, (keys, values))
        return keys, values

    def in_order(self) -> tuple[Layer, ...]:
        return tuple(self.layers[layer] for layer in sorted(self.layers))

    def get_conv_state(self, layer: int, **_: int) -> None:
        return None

    def get_recurrent_state(self, layer: int, **_: int) -> None:
        return None

    def is_recording_past(self, layer: int) -> bool:
        return True  # else a single token is put into the state in place

    def update_conv_state(self, inputs: Tensor, layer: int, *, conv_kernel_size: int, **_: Any) -> Tensor:
        self._conv.setdefault(layer, _last(inputs, conv_kernel_size - 1))
        return inputs

    def update_recurrent_state(self, state: Tensor, layer: int, **_: Any) -> Tensor:
        self.layers.setdefault(layer, States(self._conv[layer], state))
        return state

    def get_query_offset(self, layer: int = 0) -> int:
        return 0

    def get_seq_length(self, layer: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer: int = 0) -> tuple[int, int]:
        return query_length, 0


@dataclass(frozen=True)
class AnswerCache:
    """Puts a prompt's keys and values before those of its answers. It may be asked any number of times."""

    layers: Sequence[Layer]
    context_b: Tensor
    """The context of each line of answers."""
    kept: PromptCache | None = None
    """Where the answers' own keys and values are put down."""

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object) -> KeysValues:
        prompt_keys, prompt_values = self.layers[layer]
        if self.kept is not None:
            self.kept.update(keys, values, layer)
        prompt_keys, prompt_values = self._of_lines(prompt_keys), self._of_lines(prompt_values)
        return torch.cat([prompt_keys, keys], dim=2), torch.cat([prompt_values, values], dim=2)

    def get_conv_state(self, layer: int, **_: int) -> Tensor:
        return self._of_lines(self.layers[layer].conv)

    def get_recurrent_state(self, layer: int, **_: int) -> Tensor:
        return self._of_lines(self.layers[layer].recurrent)

    def is_recording_past(self, layer: int) -> bool:
        return True

    def update_conv_state(self, inputs: Tensor, layer: int, **_: Any) -> Tensor:
        return torch.cat([self.get_conv_state(layer).to(inputs.dtype), inputs], dim=-1)

    def update_recurrent_state(self, state: Tensor, layer: int, **_: Any) -> Tensor:
        return state

    def _of_lines(self, tensor: Tensor) -> Tensor:
        return tensor[self.context_b] if len(self.context_b) > len(tensor) else tensor

    def get_query_offset(self, layer: int = 0) -> int:
        return keys_held(self.layers)

    def get_seq_length(self, layer: int = 0) -> int:
        return keys_held(self.layers)

    def get_mask_sizes(self, query_length: int, layer: int = 0) -> tuple[int, int]:
        return self.get_seq_length(layer) + query_length, 0


def _last(inputs: Tensor, count: int) -> Tensor:
    """The last so many of [c, channels, T], with zeros before them where there are fewer."""
    return torch.nn.functional.pad(inputs, (max(0, count - inputs.shape[-1]), 0))[..., -count:]


def sees(row_cT: Tensor, length_c: Tensor, *, longest: int) -> Tensor:
    """Which keys the answers of a context attend to: its prompt, and what came before in the same row.

    Args:
        row_cT: [c, T] the row of each answer token, in order; -1 for fill, which sees itself alone.
        length_c: [c] tokens of each prompt. longest: keys that prompts are filled up to.

    Returns:
        [c, 1, T, longest + T] bool.

    Example: a prompt of 2 tokens and the rows a b | c give

        1 1 | 1 0 0
        1 1 | 1 1 0
        1 1 | 0 0 1
    """
    tokens = row_cT.shape[1]
    prompt_cTK = (torch.arange(longest, device=row_cT.device) < length_c[:, None])[:, None].expand(-1, tokens, -1)
    prompt_cTK = prompt_cTK & (row_cT >= 0)[..., None]
    at_T = torch.arange(tokens, device=row_cT.device)
    same_cTT = (row_cT[:, :, None] == row_cT[:, None]) & (row_cT >= 0)[:, None]
    own_cTT = (same_cTT & (at_T <= at_T[:, None])) | (at_T == at_T[:, None])
    return torch.cat([prompt_cTK, own_cTT], dim=-1)[:, None]


def install(config: Any, name: str, attend_answers: Callable[..., Tensor]) -> None:
    """Gives the language model of this text config an attention that is SDPA but for answers, under a name of its own.

    Where a forward is handed `shared_prompts`, `attend_answers(module, query, key, value, shared_prompts, scaling)` is asked:
    query [c, H, T, D], keys and values with fewer heads, to [c, H, T, D].
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *,
        shared_prompts: Any = None, scaling: float | None = None, **given: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        if shared_prompts is None:
            return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **given)
        out = attend_answers(module, query, key, value, shared_prompts, scaling)
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, sdpa_mask)
    config._attn_implementation = name
