"""Contexts that begin alike: questions on one video, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from grpo_mm.pipelines.vlm.prompting.contexts import Context

SAMPLED = 64
"""Values of a tensor that tell most different ones apart, before they are compared in full."""


_LOOKS: WeakKeyDictionary[Context, object] = WeakKeyDictionary()


@dataclass(frozen=True)
class Root:
    """What some contexts have in common: all of their media, and the tokens up to where they part."""

    contexts: tuple[Context, ...]
    length: int
    """Tokens in common; less than any of the contexts has. 0 for a context alone."""


def roots(contexts: Sequence[Context]) -> list[Root]:
    """The contexts by what they share, in the order in which they first come. Without media a context stands alone."""
    sets: list[list[Context]] = []
    by_start: dict[object, list[list[Context]]] = {}
    for context in dict.fromkeys(contexts):
        alike = by_start.setdefault(_start(context) or context, [])
        joined = next((found for found in alike if begin_alike(found[0], context)), None)
        if joined is not None:
            joined.append(context)
            continue
        alike.append([context])
        sets.append(alike[-1])
    return [Root(tuple(found), _common(found) if len(found) > 1 else 0) for found in sets]


def begin_alike(one: Context, other: Context) -> bool:
    """Whether two contexts have the same media at the same places, in the same time, and the same tokens before and between."""
    last = _media_tokens(one)
    if not last or last != _media_tokens(other) or last >= min(len(one), len(other)):
        return False
    if not torch.equal(one.input_ids_L[:last], other.input_ids_L[:last]):
        return False
    return torch.equal(one.position_3L[:, :last], other.position_3L[:, :last]) and same_media(one, other)


def same_media(one: Context, other: Context) -> bool:
    """Whether two contexts show the same pixels."""
    if media_look(one) != media_look(other):
        return False
    first, second = (_of_media(context) for context in (one, other))
    return (
        bool(first) and first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    )


def _start(context: Context) -> object:
    """What contexts that begin alike have in common, and few others; None without media."""
    look = media_look(context)
    return look and (look, context.input_ids_L[: _media_tokens(context)].numpy().tobytes())


def _of_media(context: Context) -> dict[str, Tensor]:
    return {name: value for name, value in context.inputs.items() if name != "mm_token_type_ids"}


def _media_tokens(context: Context) -> int:
    """Tokens up to and with the last of a picture or video; 0 without any."""
    types = context.inputs.get("mm_token_type_ids")
    places = torch.zeros(0) if types is None else torch.nonzero(types[0])
    return int(places.max()) + 1 if len(places) else 0


def media_look(context: Context) -> object:
    """What contexts with the same media have in common, and hardly any others; None without media."""
    if context not in _LOOKS:
        flat = (
            {name: value.flatten() for name, value in sorted(_of_media(context).items())}
            if _media_tokens(context)
            else {}
        )
        parts = [(name, len(v), tuple(v[:: max(1, len(v) // SAMPLED)].tolist())) for name, v in flat.items()]
        _LOOKS[context] = tuple(parts) or None
    return _LOOKS[context]


def _common(contexts: Sequence[Context]) -> int:
    most = min(len(context) for context in contexts) - 1
    first = contexts[0].input_ids_L[:most]
    alike = torch.stack([context.input_ids_L[:most] == first for context in contexts]).all(0)
    return int(alike.long().cumprod(0).sum())
