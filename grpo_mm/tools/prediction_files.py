"""The table of a published benchmark from files alone: predictions that any program has written, and the annotations."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grpo_mm import registry
from grpo_mm.config.typed_yaml import component
from grpo_mm.datasets.shared.row_files import check_file, read_json, read_values
from grpo_mm.errors import ConfigError, UserError
from grpo_mm.outside import plain, reason, shown
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
    values = [_read(path) for path in predictions]
    with _named(predictions):
        return _scored(form, values, prompts, answered_only=answered_only)


def _scored(form: Any, values: Sequence[Any], prompts: Sequence[Any], *, answered_only: bool) -> dict[str, float]:
    found = form.predictions(values)
    keys = [prompt.id.partition("/")[2] for prompt in prompts]
    if not set(found) & set(keys) and all("/" in key for key in keys):
        keys = [str(number) for number in range(len(keys))]
    if surplus := sorted(set(found) - set(keys)):
        raise ConfigError(
            f"{len(surplus)} of {len(found)} predictions are for none of {len(keys)} annotations, e.g. {shown(surplus[0])} (there "
            f"is {shown(keys[0])}); score them against their own split."
        )
    asked = [i for i, key in enumerate(keys) if key in found or not answered_only]
    if not asked:
        raise ConfigError("there is no prediction.")
    missing = len(keys) - len(found)
    if missing:
        log.warning("%d of %d queries have no prediction: %s", missing, len(keys), _fate(answered_only))
    return form.score([found.get(keys[i]) for i in asked], [prompts[i] for i in asked])


def _fate(answered_only: bool) -> str:
    return "they are left out" if answered_only else "they count as 0 (--answered-only leaves them out)"


def _read(path: Path) -> Any:
    """The value of a .json file, or the list of those of a .jsonl file."""
    check_file(str(path), (path.suffix,))
    return [row for _, row in read_values(str(path))] if path.suffix == ".jsonl" else read_json(str(path))


@contextmanager
def _named(predictions: Sequence[Path]) -> Iterator[None]:
    """What is wrong with predictions is told with the names of their files, whatever it is."""
    files = ", ".join(plain(str(path)) for path in predictions)
    try:
        yield
    except UserError as error:
        raise ConfigError(f"{files}: {error}") from error
    except Exception as error:
        raise ConfigError(f"{files}: these predictions cannot be scored ({reason(error)}).") from error
