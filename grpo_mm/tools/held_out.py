"""`eval`: held-out scores of a checkpoint with their standard errors, and the evidence row by row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from grpo_mm.errors import ConfigError
from grpo_mm.looking.metrics import append
from grpo_mm.outside import place
from grpo_mm.tools.inference import Loaded, evaluated, place_of
from grpo_mm.tools.numbered import new_folder, numbered_folder
from grpo_mm.tools.prediction_rows import json_value, prediction_rows, standard_errors, write_pictures

FOLDER, RECORD = "evals", "evals.jsonl"
"""Within a run: a numbered folder for each evaluation, and a line for each."""


@dataclass(frozen=True)
class HeldOut:
    """Example: metrics {"eval/score": 0.417}, standard_errors {"eval/score": 0.031}, of 16 prompts asked once."""

    metrics: dict[str, float]
    standard_errors: dict[str, float]
    """Over prompts, of those metrics that are means over prompts."""
    prompts: int
    samples_per_prompt: int
    step: int
    """Of the checkpoint; 0: the untrained model."""
    weights: str
    """trained, averaged (`ema`) or untrained."""
    folder: Path | None
    """With predictions.jsonl and result.json, and for pictures some of them; None: nothing was written."""

    def as_json(self) -> dict[str, Any]:
        """Plain values; the metrics stand under their own names."""
        rest = {key: value for key, value in asdict(self).items() if key != "metrics"}
        return json_value({**self.metrics, **rest, "folder": None if self.folder is None else str(self.folder)})


def held_out(
    run: str | Path | Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    checkpoint: str | int | None = None,
    out: str | Path | None = None,
    trust: bool = False,
) -> HeldOut:
    """Scores the held-out prompts and keeps what was said to each.

    predictions.jsonl has a line for each prompt and sample: {"id", "source", "sample", "prompt", "prediction": the text, "picture":
    a file beside it, for those that an evaluation shows (`evaluation.show`), "truth": the prompt's target, "rewards", "watched"}.
    latents.safetensors has the noise that these pictures started from, in their order.

    Args:
        run: a run folder, or a config for the untrained model.
        checkpoint: "last" (as None), "best", a step, or the name of a checkpoint.
        out: a new folder; None: the next number in RUN/evals, with a line in RUN/evals.jsonl. Of a config nothing is written
            without it.
        trust: import code that a run folder's config names.

    Raises:
        ConfigError: there are no held-out prompts, or nothing can be written there.
    """
    run = place_of(run)
    path = run if isinstance(run, Path) and run.is_dir() else None
    record = path / RECORD if path is not None and out is None else None
    if record is not None and record.is_symlink():
        raise ConfigError(f"{record} is a link, which is not written through. Give --out.")
    folder = None if out is None else new_folder(place(out, what="--out"))
    loaded = Loaded(run, overrides=overrides, checkpoint=checkpoint, scores=True, trust=trust)
    is_main = loaded.processes.is_main
    if is_main and folder is None and path is not None:
        folder = numbered_folder(path / FOLDER)
    try:
        result = evaluated(loaded)
        rows = prediction_rows(result.scored, loaded.processes)
        found = HeldOut(
            metrics=result.metrics,
            standard_errors=standard_errors(rows, result.metrics, result.scored.score_weights),
            prompts=len({(row["source"], row["id"]) for row in rows}),
            samples_per_prompt=loaded.config.evaluation.samples_per_prompt,
            step=loaded.step,
            weights="averaged" if loaded.averaged else "trained" if loaded.trained else "untrained",
            folder=folder,
        )
        if folder is not None and is_main:
            write_pictures(loaded, result.scored, rows, folder)
            _write(found, folder, rows, loaded, overrides)
            if record is not None:
                append(record, _line(found, loaded, overrides) | {"folder": f"{FOLDER}/{folder.name}"})
    except BaseException:
        with suppress(OSError):
            folder.rmdir() if folder is not None else None  # if nothing is in it
        raise
    return found


def _line(found: HeldOut, loaded: Loaded, overrides: Sequence[str]) -> dict[str, Any]:
    """One evaluation in the record; what was asked of the run's config beside it stands in it too."""
    return {
        "step": found.step,
        "weights": found.weights,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "overrides": list(overrides),
        "seed": loaded.config.evaluation.seed,
        "prompts": found.prompts,
        "samples_per_prompt": found.samples_per_prompt,
        "metrics": json_value(found.metrics),
        "standard_errors": json_value(found.standard_errors),
    }


def _write(
    found: HeldOut, folder: Path, rows: Sequence[Mapping[str, Any]], loaded: Loaded, overrides: Sequence[str]
) -> None:
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    (folder / "predictions.jsonl").write_text("".join(lines), encoding="utf-8", errors="replace")
    (folder / "result.json").write_text(json.dumps(_line(found, loaded, overrides), indent=1, allow_nan=False) + "\n")
