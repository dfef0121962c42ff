"""Which prompts a step trains on: a weighted mixture of sources, as a pure function of seed and step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Annotated, Any

import torch

from grpo_mm.errors import ConfigError
from grpo_mm.processes.rng import stream
from grpo_mm.registry import Role
from grpo_mm.types import Prompt


@dataclass(frozen=True)
class Source:
    """A named set of prompts, its share of the mixture, and the steps in which it is drawn."""

    use: Annotated[Any, Role("prompts")]
    """What reads the prompts."""
    weight: float = 1.0
    """Share of the mixture, relative to the other sources."""
    from_step: int = 0
    until_step: int | None = None
    """Steps [from_step, until_step), counted from 0: a curriculum by phases. None: to the end."""


class PromptStream:
    """An endless stream of prompts that can be entered at any step; it keeps no position.

    Each source is gone through without replacement, in a new seeded order every epoch. After any number of steps a
    source has given its weight's share to within a prompt or so, and exactly its share whenever that is whole for all.

    Within a batch no prompt comes twice as long as its source is large enough to allow it. A source smaller than three
    batches is gone through in the same order every epoch, which is what guarantees that. A source smaller than its
    share of one batch has to repeat; the repeats get the ids "x#2", "x#3", …: groups of their own, with noise of
    their own. If two sources use the same id, all ids of both get the source's name in front.

    Example: PromptStream({"a": prompts_a, "b": prompts_b}, {"a": 3, "b": 1}).batch(step=7, count=8, seed=0)
    """

    def __init__(self, sources: Mapping[str, Sequence[Prompt]], weights: Mapping[str, float] | None = None) -> None:
        """`weights` need not sum to one; None weighs all sources alike, whatever their size. Raises ConfigError."""
        weights = dict.fromkeys(sources, 1.0) if weights is None else weights
        _check(sources, weights)
        # Heaviest first, then by name: the stream does not depend on the order in the config.
        names = sorted((n for n in sources if weights[n] > 0), key=lambda n: (-weights[n], n))
        exact = [Fraction(weights[n]) for n in names]
        self._prompts = _with_sources({n: sources[n] for n in names})
        self._share_of_rest = [w / sum(exact[k:]) for k, w in enumerate(exact)]
        self._orders: dict[tuple[str, int, int, int], list[int]] = {}

    def batch(self, step: int, count: int, seed: int) -> list[Prompt]:
        """The `count` prompts of a step (from 0), in an order in which sources are mixed; the same on every rank.

        Steps follow on from each other only for one `count`; changing it later begins another stream.
        """
        if count < 1:
            raise ValueError(f"count = {count}, wanted at least 1")
        starts, ends = self._positions(step * count), self._positions((step + 1) * count)
        drawn = [
            self._prompts[name][self._index(name, position, count, seed)]
            for name, start, end in zip(self._prompts, starts, ends)
            for position in range(start, end)
        ]
        drawn = _number_repeats(drawn)
        order = torch.randperm(count, generator=stream(seed, "prompts/mix", step))
        return [drawn[i] for i in order.tolist()]

    def epochs(self, steps: int, count: int) -> dict[str, float]:
        """How often each source has been gone through after so many steps of `count` prompts: prompts drawn over prompts there are."""
        drawn = self._positions(steps * count)
        return {name: number / len(self._prompts[name]) for name, number in zip(self._prompts, drawn)}

    def _positions(self, total: int) -> list[int]:
        """How many of the first `total` prompts each source gives.

        Rounded source against rest, then the next source against what is left: unlike rounding all shares at once by
        largest remainder, this never takes a prompt back as the total grows.
        """
        positions = []
        for share in self._share_of_rest:
            positions.append(int(total * share + Fraction(1, 2)))
            total -= positions[-1]
        return positions

    def _index(self, name: str, position: int, count: int, seed: int) -> int:
        size = len(self._prompts[name])
        epoch, offset = divmod(position, size)
        if size < 3 * count:
            return self._order(name, 0, 0, seed)[offset]
        return self._order(name, epoch, count, seed)[offset]

    def _order(self, name: str, epoch: int, count: int, seed: int) -> list[int]:
        """The order of an epoch. Its first prompts are none of the last `count` - 1 of the epoch before, so that a
        batch across the border has no prompt twice; only the first 2 (count - 1) change places, so the end of an
        epoch is known without asking for the epochs before it."""
        key = (name, epoch, count, seed)
        if key not in self._orders:
            order = self._shuffled(name, epoch, seed)
            if epoch > 0 and count > 1:
                last = set(self._shuffled(name, epoch - 1, seed)[-(count - 1) :])
                head = order[: 2 * (count - 1)]
                order[: len(head)] = [i for i in head if i not in last] + [i for i in head if i in last]
            while len(self._orders) >= 2 * len(self._prompts):  # a batch sees at most two epochs of a source
                del self._orders[next(iter(self._orders))]
            self._orders[key] = order
        return self._orders[key]

    def _shuffled(self, name: str, epoch: int, seed: int) -> list[int]:
        return torch.randperm(len(self._prompts[name]), generator=stream(seed, "prompts", name, epoch)).tolist()


class PhasedStream:
    """Streams that follow each other: sources may be drawn in some steps only.

    Example: PhasedStream({"direct": a, "think": b}, {"direct": 1, "think": 1}, {"direct": (0, 100), "think": (100, None)})
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[Prompt]],
        weights: Mapping[str, float],
        steps: Mapping[str, tuple[int, int | None]],
    ) -> None:
        """`steps`: source → the first step in which it is drawn, and the first in which it no longer is (None: never).

        Raises ConfigError.
        """
        _check(sources, weights)
        sources = _with_sources(sources)
        self._phases = [
            (start, PromptStream({n: sources[n] for n in names}, {n: weights[n] for n in names}) if names else None)
            for start, names in phases({name: span for name, span in steps.items() if weights[name] > 0})
        ]

    def batch(self, step: int, count: int, seed: int) -> list[Prompt]:
        """As `PromptStream.batch`; each phase begins its stream anew. ConfigError where nothing is drawn."""
        start, drawn = [phase for phase in self._phases if phase[0] <= step][-1]
        if drawn is None:
            raise ConfigError(f"no prompt source is drawn in step {step}; look at from_step and until_step.")
        return drawn.batch(step - start, count, seed)

    def epochs(self, steps: int, count: int) -> dict[str, float]:
        """As `PromptStream.epochs`, over all phases that the first `steps` steps went through."""
        found: dict[str, float] = {}
        ends = [start for start, _ in self._phases[1:]] + [steps]
        for (start, drawn), end in zip(self._phases, ends):
            if drawn is not None and start < steps:
                for name, share in drawn.epochs(min(end, steps) - start, count).items():
                    found[name] = found.get(name, 0.0) + share
        return found


def phases(steps: Mapping[str, tuple[int, int | None]]) -> list[tuple[int, list[str]]]:
    """The steps at which the set of drawn sources changes, in order from 0, with the sources drawn from there on."""
    edges = sorted({0, *(end for span in steps.values() for end in span if end is not None)})
    drawn = [
        [n for n, (begin, end) in steps.items() if begin <= edge and (end is None or edge < end)] for edge in edges
    ]
    return list(zip(edges, drawn, strict=True))


def _check(sources: Mapping[str, Sequence[Prompt]], weights: Mapping[str, float]) -> None:
    if set(sources) != set(weights):
        raise ConfigError(f"weights are given for {sorted(weights)}, the sources are {sorted(sources)}; name the same.")
    for name, prompts in sources.items():
        if not prompts:
            raise ConfigError(f"prompt source {name!r} is empty.")
        if not 0 <= weights[name] < float("inf"):
            raise ConfigError(f"weight of {name!r} = {weights[name]}, wanted a number of at least 0.")
        ids = [prompt.id for prompt in prompts]
        if len(set(ids)) < len(ids):
            repeated = next(i for i in ids if ids.count(i) > 1)
            raise ConfigError(f"prompt source {name!r} uses the id {repeated!r} more than once; ids are unique.")
    if not any(weights.values()):
        raise ConfigError(f"all weights are 0 ({sorted(weights)}); at least one source needs a weight.")


def _with_sources(sources: Mapping[str, Sequence[Prompt]]) -> dict[str, list[Prompt]]:
    owners: dict[str, set[str]] = {}
    for name, prompts in sources.items():
        for prompt in prompts:
            owners.setdefault(prompt.id, set()).add(name)
    shared = {name for names in owners.values() if len(names) > 1 for name in names}
    return {
        name: [replace(p, source=name, id=f"{name}/{p.id}" if name in shared else p.id) for p in prompts]
        for name, prompts in sources.items()
    }


def _number_repeats(prompts: list[Prompt]) -> list[Prompt]:
    seen: dict[str, int] = {}
    numbered = []
    for prompt in prompts:
        seen[prompt.id] = seen.get(prompt.id, 0) + 1
        repeat = seen[prompt.id]
        numbered.append(prompt if repeat == 1 else replace(prompt, id=f"{prompt.id}#{repeat}", repeat_of=prompt.id))
    return numbered
