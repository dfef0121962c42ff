"""The table of a published benchmark from files alone: predictions that any program has written, and the annotations."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo_mm import registry
from grpo_mm.config.typed_yaml import component
from grpo_mm.errors import ConfigError
from grpo_mm.registry import Role

log = logging.getLogger(__name__)


def score_files(
    kind: str, *, predictions: Sequence[Path], annotations: Sequence[Path], answered_only: bool = False
) -> dict[str, float]:
    """Metric → its figure, in per cent but for the counts ("queries").

    Args:
        kind: a form of files, of the role "prediction_file".
        annotations: as the form's reader wants them.
        answered_only: leave out annotations without a prediction, as some published scripts do; else they count as 0.

    Raises:
        ConfigError: a file that is missing or broken, or a prediction for none of the annotations.
    """
    form = registry.lookup("prediction_file", kind)()
    if not 1 <= len(annotations) <= len(form.annotations):
        raise ConfigError(f"--as {kind} reads {' and '.join(form.annotations)}; found {len(annotations)} annotations.")
    files = {name: str(path) for name, path in zip(form.annotations, annotations)}
    prompts = component(Role("prompts"), {"kind": form.reader, **files}, path="--annotations").load()
    found = form.predictions([_read(path) for path in predictions])
    keys = [prompt.id.partition("/")[2] for prompt in prompts]
    if not set(found) & set(keys) and all("/" in key for key in keys):
        keys = [str(number) for number in range(len(keys))]
    if surplus := sorted(set(found) - set(keys)):
        raise ConfigError(
            f"{len(surplus)} of {len(found)} predictions are for none of {len(keys)} annotations, e.g. {surplus[0]!r} (there "
            f"is {keys[0]!r}); score them against their own split."
        )
    asked = [i for i, key in enumerate(keys) if key in found or not answered_only]
    if not asked:
        raise ConfigError(f"{', '.join(map(str, predictions))}: there is no prediction.")
    missing = len(keys) - len(found)
    if missing:
        log.warning("%d of %d queries have no prediction: %s", missing, len(keys), _fate(answered_only))
    return form.score([found.get(keys[i]) for i in asked], [prompts[i] for i in asked])


def _fate(answered_only: bool) -> str:
    return "they are left out" if answered_only else "they count as 0 (--answered-only leaves them out)"


def _read(path: Path) -> Any:
    """The value of a .json file, or the list of those of a .jsonl file."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file (looked in {path.absolute().parent}).")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be read as JSON in UTF-8: {error}.") from error
