"""The product of a run: the adapter or the model, with the card that says whose weights it holds."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from grpo_mm.config.run_config import RunConfig
from grpo_mm.looking.model_card import write_model_card
from grpo_mm.looking.origin import FILE, Origin, read_product
from grpo_mm.processes.distributed import Processes
from grpo_mm.processes.rng import stream_seed
from grpo_mm.run.mark import replace_text
from grpo_mm.weights.pieces import full, put

LARGEST_AT_AN_INTERRUPT = 2 * 2**30
"""Bytes. What is larger takes longer than the seconds that clusters leave between SIGTERM and SIGKILL; `export` makes it."""


def save_product(
    policy: Any,
    folder: Path,
    *,
    origin: Origin,
    summary: Mapping[str, Any],
    usage: Mapping[str, str],
    asked: Mapping[str, str],
) -> None:
    """Writes the policy's product, with the weights that it has now, and its card into `folder`.

    All is written aside first, then moved over what an earlier product left there: a process that ends meanwhile leaves the
    earlier one. What else lies in the folder stays.

    Args:
        summary, usage, asked: what `write_model_card` takes.
    """
    aside = folder.with_name(f".writing_{folder.name}")
    _remove(aside)
    try:
        policy.save(aside)
        write_model_card(aside, summary, usage=usage, origin=origin, asked=asked)
        _move_over(aside, folder)
    except BaseException:
        with suppress(OSError):
            _remove(aside)
        raise


def whole_policy(config: RunConfig, policy: Any, processes: Processes) -> Any:
    """The policy where its weights are whole; else another one in the main memory of the main process, which the present weights
    are put into one by one, and None on the others. All processes call it together."""
    if getattr(policy, "shards", None) is None:
        return policy
    made: list[Any] = []

    def load() -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(config.seed, "init"))  # what a model of random weights is made of
            made.append(config.policy.load(torch.device("cpu")))

    processes.by_main(load)
    for name, p in policy.trainable.items():
        value = full(p.detach())
        if made:
            put(made[0].trainable[name], value)
    return made[0] if made else None


def note_product(run: Path, product: str, origin: Origin) -> None:
    """Writes into a run folder which step the product that lies there is of."""
    replace_text(run / FILE, json.dumps({"product": product, **asdict(origin)}, indent=1) + "\n")


def forget_later_product(run: Path, *, step: int) -> None:
    """A run that goes on from `step` has no later one: what product.json says of it is of another course."""
    found = read_product(run, [])
    if found is not None and found[1].step > step:
        (run / FILE).unlink()


def _remove(aside: Path) -> None:
    shutil.rmtree(aside) if aside.is_dir() and not aside.is_symlink() else aside.unlink(missing_ok=True)


def _move_over(aside: Path, folder: Path) -> None:
    if not os.path.lexists(folder):
        os.replace(aside, folder)
        return
    for top, _, files in os.walk(aside):
        place = folder / os.path.relpath(top, aside)
        place.mkdir(exist_ok=True)
        for file in files:
            os.replace(os.path.join(top, file), place / file)
    _remove(aside)
