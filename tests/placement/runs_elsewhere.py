"""Small runs on the CPU and on the pretended accelerator, and whether they say the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from pretended_accelerator import DEVICE, Crossings, counted
from safetensors.torch import load_file
from tiny_runs import record

from grpo_mm.entry import train
from grpo_mm.processes.distributed import Processes

STEPS = 2
UNTIMED = ("time/", "calls/")


@contextmanager
def runs_there() -> Iterator[Crossings]:
    """Runs of the block are on the pretended accelerator."""
    made = Processes.__init__

    def init(self: Processes, **settings: Any) -> None:
        made(self, **settings | {"device": "cpu"})
        self.device = DEVICE

    with counted() as crossings, mock.patch.object(Processes, "__init__", init):
        yield crossings


class _Broken(Exception):
    pass


def _breaks(step: int, _row: Mapping[str, float]) -> None:
    if step == STEPS:
        raise _Broken


def assert_same_run(config: str | Path | Mapping[str, Any], overrides: Sequence[str], folder: Path) -> Crossings:
    """Trains `STEPS` steps with evaluation and product on the CPU, and there again, broken off in the last step and gone on with
    from the checkpoint before it; metrics, weights, moments and product agree. Returns what crossed."""
    every = [f"steps={STEPS}", "checkpoints.every=1", "checkpoints.keep_last=9", "threads=1", f"runs_dir={folder}"]
    train(config, [*overrides, *every, "name=here", "device=cpu"])
    with runs_there() as crossings:
        there = [*overrides, *every, "name=there"]
        with pytest.raises(_Broken):
            train(config, there, on_step=_breaks)
        train(config, there)
    here, there = folder / "here", folder / "there"
    _assert_close(record(here), record(there))
    for file in sorted((here / f"checkpoints/step_{STEPS:06d}").glob("*.safetensors")):
        _assert_same_tensors(file, there / file.relative_to(here))
    left = sorted(path.relative_to(here) for path in here.rglob("*.safetensors"))
    assert left == sorted(path.relative_to(there) for path in there.rglob("*.safetensors"))
    for file in left:
        _assert_same_tensors(here / file, there / file)
    return crossings


def _assert_close(here: list[dict[str, Any]], there: list[dict[str, Any]]) -> None:
    assert len(here) == len(there) > STEPS
    for row, other in zip(here, there, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            # Adam makes much of rounding, and rounding may move a pixel by one of its 256 steps.
            bound = 1e-2 if "/image/" in name or name.startswith("eval/") else 1e-4
            close = pytest.approx(value, rel=bound, abs=1e-5, nan_ok=True) if isinstance(value, float) else value
            assert other[name] == close, name


def _assert_same_tensors(file: Path, other: Path) -> None:
    """Adam's first steps have nearly the length of the learning rate, whatever the gradient: rounding moves an element whose gradient
    is nothing but rounding by as much."""
    here, there = load_file(file), load_file(other)
    assert here.keys() == there.keys()
    for name, tensor in here.items():
        near = torch.isclose(there[name].float(), tensor.float(), rtol=1e-3, atol=1e-5)
        assert near.float().mean() > 0.99, (file.name, name)
