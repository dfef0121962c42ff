"""Published files of predictions of spatial benchmarks; what a form is, `prediction_files` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from grpo_mm.errors import ConfigError
from grpo_mm.outside import plain, shown
from grpo_mm.rewards.answers.choices import LETTERS, read_letter
from grpo_mm.rewards.benchmarks.spatial import Blink
from grpo_mm.types import Prompt


class BlinkFile:
    """BLINK's saved outputs, {"val": [{"idx": "val_Spatial_Relation_1", "answer": "(B)", "full_prediction": "(B) no …",
    "prediction": "(B)"}, …], "test": […]}, or a list of such rows; one file for each sub-task or several.

    "prediction" counts, and without it what is read in "full_prediction". Annotations: the questions with their answers, or
    a file of outputs, which holds the answers too. Rows of the test split, whose answers are hidden, are left out.
    """

    reader: ClassVar[str] = "grpo_mm.datasets.spatial.blink:BlinkAnswers"
    annotations: ClassVar[tuple[str, ...]] = ("path",)

    def predictions(self, files: Sequence[Any]) -> dict[str, str | None]:
        found: dict[str, str | None] = {}
        for where, row in (row for rows in files for row in _rows(rows)):
            given = row.get("prediction", row.get("full_prediction"))
            if not isinstance(row.get("idx"), str) or not isinstance(given, str | None):
                raise ConfigError(
                    f"{where}: a prediction is {shown(row)}; wanted idx, and prediction or full_prediction."
                )
            if row.get("answer") == "hidden":
                continue
            if row["idx"] in found:
                raise ConfigError(
                    f"{where}: {shown(row['idx'])} is predicted twice; wanted one prediction for each question."
                )
            found[row["idx"]] = None if given is None else read_letter(given, len(LETTERS))
        return found

    def score(self, predictions: Sequence[str | None], prompts: Sequence[Prompt]) -> dict[str, float]:
        return Blink().score(predictions, prompts)


def _rows(value: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """("val, entry 3", row) of all splits."""
    parts = dict(value) if isinstance(value, Mapping) else {"": value}
    found: list[tuple[str, Mapping[str, Any]]] = []
    for split, rows in parts.items():
        of_split = f"{plain(split, 60)}, " if split else ""
        if not isinstance(rows, list):
            raise ConfigError(
                f"{of_split}the predictions are {shown(rows, 100)}; wanted lists of objects by split, or one list."
            )
        for number, row in enumerate(rows):
            where = f"{of_split}entry {number}"
            if not isinstance(row, Mapping):
                raise ConfigError(f"{where}: a prediction is {shown(row)}; wanted an object.")
            found.append((where, row))
    return found
