"""`export`: any checkpoint of a run as a product that plain diffusers, transformers and peft load."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo_mm.config.recorded import read_recorded
from grpo_mm.errors import ConfigError
from grpo_mm.looking import metrics
from grpo_mm.looking.origin import Origin
from grpo_mm.outside import finite_number, place
from grpo_mm.run.product import save_product
from grpo_mm.run.run_folder import RunFolder, failing_disk_stops
from grpo_mm.run.which_checkpoint import best_step, chosen_checkpoint
from grpo_mm.tools.asking import templates
from grpo_mm.tools.inference import Loaded
from grpo_mm.training.ending import short_metrics
from grpo_mm.weights.checkpoint import name_of

FOLDER = "export"
"""Within the run, unless another place is named."""


def export(
    run: str | Path,
    checkpoint: str | int = "last",
    to: str | Path | None = None,
    merged: bool = False,
    trust: bool = False,
) -> Path:
    """Writes the product of one checkpoint, with its card, and returns the folder.

    The weights are those that the run evaluates: the averaged ones where it keeps them (`ema.evaluate`).

    Args: those of `grpo_mm.export`.

    Raises:
        ConfigError: there is something in the folder already, or the run has no adapter to merge.
        CheckpointError: no such checkpoint, or a damaged one.
    """
    path = place(run, what="the run")
    if not path.is_dir():
        raise ConfigError(f"{path} is no run folder; export takes a folder such as runs/NAME, which holds checkpoints.")
    folder = RunFolder(path)
    step = int(chosen_checkpoint(folder, checkpoint).name.removeprefix("step_"))
    out = path / FOLDER / (name_of(step) + "_merged" * merged) if to is None else place(to, what="--to")
    _check_free(out, within=path if to is None else None)
    overrides = ["policy.save_merged=true"] if merged else []
    loaded = Loaded(path, overrides=overrides, checkpoint=step, scores=False, trust=trust)
    origin = Origin(
        step, loaded.config.steps, "averaged" if loaded.averaged else "trained", _why(checkpoint), best_step(folder)
    )
    policy, engine = loaded.policy, loaded.config.engine
    usage = engine.usage(policy) if hasattr(engine, "usage") else policy.usage()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the product cannot be written to {out}: {error}. Give another --to.") from error
    asked = templates(read_recorded(path).get("prompts"), run=path, trust=trust)
    summary = _summary(folder, loaded, step)
    with failing_disk_stops(folder), loaded.weights():
        save_product(policy, out, origin=origin, summary=summary, usage=usage, asked=asked)
    return out


def _why(checkpoint: str | int) -> str:
    return f"exported as the {checkpoint} one" if checkpoint in ("best", "last") else "exported by its number"


def _check_free(out: Path, *, within: Path | None) -> None:
    """Raises ConfigError where something would be overwritten, or written through a link of the run folder."""
    link = next((p for p in (out, out.parent) if p.is_symlink()), None) if within else out if out.is_symlink() else None
    if link is not None:
        raise ConfigError(f"{link} is a link to {os.readlink(link)}, which is not written through. Give another --to.")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(
            f"{out} is there already, and nothing in it is overwritten. Give another --to, or move it away."
        )


def _summary(folder: RunFolder, loaded: Loaded, step: int) -> dict[str, Any]:
    """What the card says of the run, with the held-out scores of these weights where they were measured."""
    return {
        "name": loaded.config.name,
        "steps": step,
        "eval_before": short_metrics(_numbers(loaded.state.get("eval_before"))),
        "eval_after": short_metrics(_numbers(_measured(folder, step))),
        "versions": _versions(folder),
    }


def _numbers(found: Any) -> dict[str, float]:
    """Of files that may be damaged; NaN for what is none."""
    named = found.items() if isinstance(found, Mapping) else ()
    return {str(key): float("nan") if finite_number(value) is None else value for key, value in named}


def _measured(folder: RunFolder, step: int) -> dict[str, Any]:
    """The evaluation of that step in the record; none where a watch rule put other weights in place after it."""
    events = metrics.read(folder.events) if folder.events.is_file() else []
    if any(event["step"] == step and event.get("action") == "rollback" for event in events):
        return {}
    rows = [row for row in metrics.read(folder.metrics) if row["step"] == step and "eval/score" in row]
    return {key: value for key, value in (rows[-1] if rows else {}).items() if key.startswith("eval/")}


def _versions(folder: RunFolder) -> dict[str, Any]:
    try:
        found = json.loads((folder.path / "versions.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
