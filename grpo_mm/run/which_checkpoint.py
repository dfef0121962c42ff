"""Which checkpoint of a run is meant: the last, the best on the held-out prompts, or one by its step."""

from __future__ import annotations

import re
from pathlib import Path

from grpo_mm.errors import CheckpointError
from grpo_mm.looking.own_files import is_step, json_object
from grpo_mm.outside import shown
from grpo_mm.run.run_folder import RunFolder
from grpo_mm.weights import checkpoint


def chosen_checkpoint(folder: RunFolder, which: str | int = "last") -> Path:
    """The folder of a checkpoint that is there.

    Args:
        which: "last", "best", a step (20 or "20"), or the name of a checkpoint ("step_000020").

    Raises:
        CheckpointError: there is none, or no such one; it tells which there are.
    """
    there = checkpoint.steps(folder.checkpoints)
    if not there:
        raise CheckpointError(f"{folder.path} has no checkpoint yet. Train it to its first one.")
    step = there[-1] if which == "last" else _best(folder, there) if which == "best" else _step_of(which)
    if step not in there:
        names = ", ".join(map(checkpoint.name_of, there))
        raise CheckpointError(
            f"{folder.path} has no checkpoint {shown(which)}; there are: {names}. `last`, `best` and a step's number do as well."
        )
    return folder.checkpoints / checkpoint.name_of(step)


def best_step(folder: RunFolder) -> int | None:
    """The step with the best held-out score so far, by the summary or the newest checkpoint; None if none was measured."""
    there = checkpoint.steps(folder.checkpoints)
    newest = [folder.checkpoints / checkpoint.name_of(there[-1]) / "state.json"] if there else []
    for path in (folder.summary, *newest):
        found = json_object(path, path.parent, []).get("best_step") if path.is_file() else None
        if is_step(found):
            return found
    return None


def _best(folder: RunFolder, there: list[int]) -> int:
    step, names = best_step(folder), ", ".join(map(checkpoint.name_of, there))
    if step is None:
        raise CheckpointError(
            f"{folder.path} has no held-out score that says which checkpoint is the best: it has no `eval_prompts`, or none was "
            f"measured yet. There are: {names}; name one, or `last`."
        )
    if step not in there:
        why = "before training" if step == 0 else "`checkpoints.keep_best` keeps it, and is off"
        raise CheckpointError(
            f"the best held-out score of {folder.path} was that of step {step}, of which there is no checkpoint ({why}). There are: "
            f"{names}; name one, or `last`."
        )
    return step


def _step_of(which: str | int) -> int | None:
    if isinstance(which, int):
        return None if isinstance(which, bool) else which
    found = re.fullmatch(r"(?:step_)?([0-9]{1,18})", which)
    return int(found[1]) if found else None
