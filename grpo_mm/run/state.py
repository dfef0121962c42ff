"""The plain values of a checkpoint, checked before a run goes on with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo_mm.errors import CheckpointError
from grpo_mm.outside import finite_number, shown


def check_state(state: Mapping[str, Any], begun: Mapping[str, Any], *, name: str) -> None:
    """Raises CheckpointError for values that no run writes; `begun` is the state of one that begins, `name` the checkpoint."""
    absent = sorted({*begun, "learner"} - set(state))
    if absent:
        raise CheckpointError(f"{name} was not written by a training run: its state has no {absent[0]}.")
    step = state["step"]
    if not _is_count(step) or f"step_{step:06d}" != Path(name).name:
        raise _wrong(name, "step", step, "the step that the folder is named after")
    for key, wanted in (("best_step", "a step"), ("evaluations_without_gain", "a number of evaluations")):
        if not _is_count(state[key]) and (key != "best_step" or state[key] is not None):
            raise _wrong(name, key, state[key], wanted)
    if state["best_score"] is not None and finite_number(state["best_score"]) is None:
        raise _wrong(name, "best_score", state["best_score"], "a number or null")
    if state["stopped_early"] is not None and not isinstance(state["stopped_early"], str):
        raise _wrong(name, "stopped_early", state["stopped_early"], "a text or null")
    for key in ("calls", "seconds", "learner"):
        if not isinstance(state[key], Mapping) or not set(begun.get(key) or ()) <= set(state[key]):
            raise _wrong(name, key, state[key], "named values")
    for key in ("calls", "seconds"):
        if any(finite_number(value) is None or value < 0 for value in state[key].values()):
            raise _wrong(name, key, state[key], "numbers of at least 0")
    _check_evaluations(state, name)
    counters = state["learner"].get("counters")
    if not isinstance(counters, Mapping) or not all(_is_count(value) for value in counters.values()):
        raise _wrong(name, "learner.counters", counters, "counts")


def _check_evaluations(state: Mapping[str, Any], name: str) -> None:
    before, last = state["eval_before"], state["eval_last"]
    if before is not None and not _are_measures(before):
        raise _wrong(name, "eval_before", before, "measures or null")
    if last is not None and not (
        isinstance(last, Mapping) and _is_count(last.get("step")) and _are_measures(last.get("metrics"))
    ):
        raise _wrong(name, "eval_last", last, "a step with its measures, or null")


def _are_measures(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(v, (int, float)) for v in value.values())


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _wrong(name: str, key: str, value: Any, wanted: str) -> CheckpointError:
    return CheckpointError(
        f"{name}/state.json: {key} is {shown(value, 60)}, wanted {wanted}. Go on from another one: --checkpoint."
    )
