"""metrics.jsonl is the record of a run; console and trackers are views of it."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo_mm.looking.own_files import json_rows

log = logging.getLogger(__name__)


def to_json(metrics: Mapping[str, Any]) -> str:
    """One line; NaN and infinity become null, so that every reader can parse it."""
    clean = {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in metrics.items()}
    return json.dumps(clean)


def append(path: Path, metrics: Mapping[str, Any]) -> None:
    """Adds a row and flushes it."""
    with path.open("a", encoding="utf-8") as file:
        file.write(to_json(metrics) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[dict[str, float]]:
    """All whole rows; a torn last line (the run was killed while it wrote) is left out, and damaged ones are logged."""
    damage: list[str] = []
    rows = json_rows(path, damage)
    for said in damage:
        log.warning("%s: %s", path.parent, said)
    return rows


def cut_back(path: Path, *, step: int, without_eval: bool = False) -> None:
    """Keeps the rows up to `step`: a resumed run writes the later ones again.

    `without_eval` also drops the evaluation at `step` itself, which comes after the last checkpoint.
    """
    rows = [row for row in read(path) if row["step"] <= step]
    if without_eval:
        rows = [row for row in rows if row["step"] < step or "eval/score" not in row]
    aside = path.with_suffix(".writing")
    aside.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(aside, path)
