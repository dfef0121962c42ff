"""Rows whose tokens are cut over processes: what the language model and the tower have to know of it.

Everything but attention looks at one token, so each process runs it for its own; around attention, tokens are exchanged for heads.
No model file is touched: the library hands `cut` through to the functions of attention, and hooks stand around the tower's blocks.

    n rows   H heads, K of keys and values   T tokens of all processes, t of one   D width of a head
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.weak import WeakIdKeyDictionary

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.vlm.forwards.cascade import attend_answers
from grpo_mm.pipelines.vlm.forwards.prefix_attention import AnswerCache
from grpo_mm.pipelines.vlm.forwards.windows import attend_windows, windows_of
from grpo_mm.pipelines.vlm.models.known import known_config
from grpo_mm.processes.sequence import SequenceGroup

NAME = "sdpa_of_cut_rows"
TOWER_NAME = "windows_of_cut_rows_in_place_of_flash"
"""As in `windows`: it has to hold "flash"."""


@dataclass(frozen=True, eq=False)
class CutText:
    """A forward of the language model whose tokens are cut."""

    group: SequenceGroup
    tokens: int
    """Without fill."""
    mask: Tensor | None
    cache: Any
    shared_prompts: Any


@dataclass(frozen=True, eq=False)
class CutTower:
    """A forward of the tower whose tokens are cut."""

    group: SequenceGroup
    windows: WeakIdKeyDictionary = field(default_factory=WeakIdKeyDictionary)


def check_heads(config: Any, size: int) -> None:
    """Raises ConfigError for a model whose heads cannot be dealt to `size` processes."""
    text, tower = config.get_text_config(), config.vision_config
    heads, shared = text.num_attention_heads, text.num_key_value_heads
    if heads % size or tower.num_heads % size or (shared % size and size % shared):
        raise ConfigError(
            f"distributed.sequence = {size}: the model's {heads} heads with {shared} of keys, and its tower's {tower.num_heads}, "
            f"cannot be dealt to {size} processes. Use a number that divides both numbers of heads, and divides {shared} or is a "
            "multiple of it."
        )


def check_heads_of(path: str, size: int) -> None:
    """The same before a checkpoint is loaded, where it is on this disk or of a known size."""
    try:
        config, _ = known_config(path)
    except ConfigError:
        return
    check_heads(config, size)


def own_tokens(cut: SequenceGroup, filled: int, visual_nL: Tensor, level_V: Tensor) -> tuple[Tensor, Tensor]:
    """(where our tokens are visual [n, t], their features [1 + D, v, width]) of features of all rows, in order."""
    number_nL = (visual_nL.flatten().cumsum(0) - 1).view(visual_nL.shape)
    own_nt = cut.own(visual_nL, 1, filled=filled)
    return own_nt, level_V[:, cut.own(number_nL, 1, filled=filled)[own_nt]]


def install(text: Any) -> None:
    """Gives the language model of this config an attention for cut rows, which is the one it has where rows are whole."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = text._attn_implementation
    whole = ALL_ATTENTION_FUNCTIONS[before]

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *,
        cut: CutText | None = None, scaling: float | None = None, **given: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        if cut is None:
            return whole(module, query, key, value, mask, scaling=scaling, **given)
        out = _attend(module, *exchanged(cut.group, query, key, value), cut, scaling)
        return cut.group.to_tokens(out).transpose(1, 2).contiguous(), None

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS[before])
    text._attn_implementation = NAME


def exchanged(group: SequenceGroup, *parts: Tensor) -> list[Tensor]:
    """Queries [n, H, t, D], keys and values [n, K, t, D] as all tokens of our heads; heads of keys that several processes need
    are sent to each."""
    times = max(1, group.size // parts[1].shape[1])
    return [group.to_heads(part if n == 0 else part.repeat_interleave(times, 1)) for n, part in enumerate(parts)]


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, cut: CutText, scaling: float | None) -> Tensor:
    """Of all tokens [n, h, T, D], those that a cache holds before them."""
    if isinstance(cut.cache, AnswerCache):
        key, value = cut.cache.update(key, value, module.layer_idx)
    elif cut.cache is not None:
        cut.cache.update(key[:, :, : cut.tokens], value[:, :, : cut.tokens], module.layer_idx)
    if cut.shared_prompts is not None:
        return attend_answers(module, query, key, value, cut.shared_prompts, scaling)
    times = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(times, 1) for part in (key, value))
    return scaled_dot_product_attention(query, key, value, cut.mask, is_causal=cut.mask is None, scale=scaling)


def install_tower(tower: Any) -> None:
    """The same for the tower: hooks cut what goes into its blocks, and put together what its mergers make of it."""
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    whole = ALL_ATTENTION_FUNCTIONS[tower.config._attn_implementation]

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, *, cut: CutTower | None = None,
        cu_seq_lens_q: Tensor, scaling: float | None = None, **given: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        if cut is None:
            return whole(
                module, query, key, value, attention_mask, cu_seq_lens_q=cu_seq_lens_q, scaling=scaling, **given
            )
        query, key, value = (cut.group.to_heads(part)[0] for part in (query, key, value))
        windows = cut.windows.get(cu_seq_lens_q)
        if windows is None:
            border_W = cu_seq_lens_q
            if (tokens := query.shape[1]) > int(border_W[-1]):
                border_W = torch.cat([border_W, border_W.new_tensor([tokens])])  # fill sees itself
            windows = cut.windows[cu_seq_lens_q] = windows_of(border_W)
        out = attend_windows(query, key, value, windows, scaling)
        return cut.group.to_tokens(out[None]).transpose(1, 2).contiguous(), None

    AttentionInterface.register(TOWER_NAME, attention)
    tower.config._attn_implementation = TOWER_NAME
    _hook(tower)


def _hook(tower: Any) -> None:
    now: dict[str, tuple[SequenceGroup, int, int]] = {}
    """Of the forward that is under way: its group, its tokens, and those with fill."""

    def before(module: Any, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[Any, ...] | None:
        cut = given.get("cut")
        if cut is None:
            return None
        hidden = args[0]
        if module is tower.blocks[0]:
            tokens = len(hidden)
            now["cut"] = cut.group, tokens, cut.group.filled(tokens, by=tower.spatial_merge_size**2)
            hidden = cut.group.own(hidden, 0, filled=now["cut"][2])
        positions = tuple(cut.group.own(part, 0, filled=now["cut"][2]) for part in given["position_embeddings"])
        return (hidden, *args[1:]), {**given, "position_embeddings": positions}

    def after(module: Any, args: tuple[Any, ...], found: Tensor) -> Tensor:
        if "cut" not in now:
            return found
        group, tokens, _ = now["cut"]
        return group.gathered(found, 0)[: tokens // tower.spatial_merge_size**2]

    def end(*_: Any) -> None:
        now.pop("cut", None)

    for block in tower.blocks:
        block.register_forward_pre_hook(before, with_kwargs=True)
    for merger in (tower.merger, *getattr(tower, "deepstack_merger_list", ())):
        merger.register_forward_hook(after)
    tower.register_forward_hook(end)
