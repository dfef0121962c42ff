"""Pictures beside the texts of a comparison: which prompts have which, and what is said of one prompt after the other put together.

Plain pipelines take the pictures of one prompt at a time, ours those of a batch: the whole drawing shows whether that is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpo_mm.findings import Finding, row
from grpo_mm.pipelines.flow.conforming.heard import Call, Heard, Step

SHAPES = ((96, 160), (128, 64), (80, 80))
"""(height, width) in pixels of the pictures, in turn: no two prompts have alike ones."""
NAME = "pictures of the prompt"


@dataclass(frozen=True)
class AsGiven:
    """Media that are pictures already."""

    def load(self, item: Any) -> Any:
        return item


def example_pictures(family: Any, prompts: int) -> tuple[tuple[Any, ...], ...]:
    """PIL pictures for each prompt: as few as the family reads for the first, more for the others if it reads many; no two are alike."""
    from PIL import Image

    least, most = getattr(family, "pictures", (0, 0))
    numbers = [least, *[max(least, min(most, 2 if most > 2 else 1))] * (prompts - 1)]
    made = iter(range(sum(numbers)))

    def picture(i: int) -> Any:
        height, width = SHAPES[i % len(SHAPES)]
        rows, columns = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
        centre = ((rows - 0.4) ** 2 + (columns - 0.3 - 0.1 * i) ** 2 < 0.06).float()
        pixels = torch.stack([rows, centre, (columns + 0.3 * i) % 1], dim=-1)
        return Image.fromarray((pixels * 255).round().to(torch.uint8).numpy())

    return tuple(tuple(picture(next(made)) for _ in range(number)) for number in numbers)


def in_turn(heard: Sequence[Heard]) -> Heard:
    """What was said of each prompt alone, as if of a batch: calls step by step and there prompt by prompt, latents joined."""
    if len(heard) == 1:
        return heard[0]
    steps = [Step(*(torch.cat(parts) for parts in zip(*map(_parts, same)))) for same in zip(*(h.steps for h in heard))]
    each = len(heard[0].calls) // len(steps)
    calls = [call for s in range(len(steps)) for h in heard for call in h.calls[s * each : (s + 1) * each]]
    return Heard(calls, steps, [torch.cat(parts) for parts in zip(*(h.decoded for h in heard))])


def _parts(step: Step) -> tuple[Tensor, Tensor, Tensor]:
    return step.velocity, step.before, step.after


def picture_row(
    ours: Sequence[Call], plain: Sequence[Call], shape: Sequence[int], bound: float, apart_of: Any, of_network: str = ""
) -> Iterator[Finding]:
    """What stands behind latents of `shape` in the network's input, on axis 1: the pictures of a prompt."""
    here, there = [_behind(call, shape) for call in ours], [_behind(call, shape) for call in plain]
    if not any(part is not None for part in (*here, *there)):
        return
    apart = max(apart_of(a, b) for a, b in zip(here, there))
    words = "behind the latents, as the network is given them"
    if apart > bound and all(part is None for part in here):
        words += "; none are given here"
    elif apart > bound and max(apart_of(a, b) for a, b in zip(here, reversed(there))) <= bound:
        words += "; they are those of another prompt"
    cause = "forgotten, those of another prompt, of another size, not normalised, or in another order"
    yield row(NAME + of_network, apart, bound, words, cause)


def _behind(call: Call, shape: Sequence[int]) -> Tensor | None:
    x = call.inputs.get("hidden_states")
    longer = isinstance(x, Tensor) and x.dim() == len(shape) + 1 and x.shape[1] > shape[0]
    return x[:, shape[0] :] if longer else None
