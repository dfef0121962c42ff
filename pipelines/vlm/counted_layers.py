"""The ledger of a model whose language layers repeat a pattern, of its first and its second repetition: all of it grows by as much with each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

from grpo_mm.ledger.entries import Entry, Ledger

FEWEST = 4
"""Repetitions below which all layers are counted."""


def by_pattern(count: Callable[[Any], Ledger], config: Any) -> Ledger:
    """What `count` says of a model's settings; counted for one and for two repetitions of its kinds of layers (`layer_types`) instead,
    where there are several. What is kept of weights, and operations, are those of all layers; of activations those whose peak is at the same
    place in few layers as in many: of the published sizes to the last byte, of tiny models to a tenth (`tests/vlm_families/`)."""
    kinds = list(config.get_text_config().layer_types)
    period = _period(kinds)
    if len(kinds) < FEWEST * period:
        return count(config)
    one, two = (count(_cut(config, times * period)) for times in (1, 2))
    return _grown(one, two, len(kinds) // period - 1)


def _period(kinds: Sequence[str]) -> int:
    """Layers of the shortest pattern that the kinds repeat."""
    return next(n for n in range(1, len(kinds) + 1) if len(kinds) % n == 0 and kinds == kinds[:n] * (len(kinds) // n))


def _cut(config: Any, layers: int) -> Any:
    config = deepcopy(config)
    text = config.get_text_config()
    text.layer_types, text.num_hidden_layers = text.layer_types[:layers], layers
    return config


def _grown(one: Ledger, two: Ledger, times: int) -> Ledger:
    """`one` and so many times what `two` has more."""

    def number(a: float, b: float) -> Any:
        return a + times * (b - a)

    def entries(some: Sequence[Entry], others: Sequence[Entry]) -> tuple[Entry, ...]:
        pairs = list(zip(some, others, strict=True))
        assert all(replace(a, bytes=0) == replace(b, bytes=0) for a, b in pairs)
        return tuple(replace(a, bytes=number(a.bytes, b.bytes)) for a, b in pairs)

    return replace(
        one,
        resident=entries(one.resident, two.resident),
        phases=tuple(replace(a, parts=entries(a.parts, b.parts)) for a, b in zip(one.phases, two.phases, strict=True)),
        flops={name: number(one.flops[name], two.flops[name]) for name in one.flops},
        token_bytes=number(one.token_bytes, two.token_bytes),
        token_seconds=number(one.token_seconds, two.token_seconds),
        trained=number(one.trained, two.trained),
        weights=number(one.weights, two.weights),
    )
