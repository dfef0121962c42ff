"""With what else than it began a run goes on: which changes are asked for, and the lines of changes.jsonl that tell them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from grpo_mm.config.differences import Difference, differences_of
from grpo_mm.config.recorded import as_of_today, read_recorded
from grpo_mm.config.run_config import RunConfig
from grpo_mm.config.sources import Digests, changed
from grpo_mm.errors import ConfigError
from grpo_mm.looking.changes import FILE, Change, read_changes
from grpo_mm.outside import parse_json, shown
from grpo_mm.run.mark import replace_text

SOURCES = "sources.json"
MOST_SHOWN = 6


def compare(folder: Path, config: RunConfig, sources: Mapping[str, Digests]) -> list[Difference]:
    """Settings, code and data that differ from those of the run in a folder."""
    return differences_of(as_of_today(read_recorded(folder)), config) + changed(_read(folder / SOURCES), sources)


def check_changes(folder: Path, found: Sequence[Difference], *, accept: bool) -> None:
    """Raises ConfigError for what makes it another run, and for noted changes that nobody has accepted."""
    refused = [each for each in found if each.identity == "refused"]
    noted = [each for each in found if each.identity == "noted"]
    if refused:
        raise ConfigError(
            f"{folder} holds a run with another config ({words([*refused, *noted])}). Use another name, or start over with --fresh, "
            "which moves the old run aside."
        )
    if noted and not accept:
        raise ConfigError(
            f"{folder} holds a run that was trained otherwise ({words(noted)}). To go on with it all the same add --accept (in "
            "Python accept=True): the run's record and report then say so. Or use another name, or start over with --fresh, which "
            "moves the old run aside."
        )


def words(found: Sequence[Difference | Change]) -> str:
    return "; ".join(map(str, found[:MOST_SHOWN])) + (
        f"; and {len(found) - MOST_SHOWN} more" * (len(found) > MOST_SHOWN)
    )


def note(folder: Path, found: Sequence[Difference], *, step: int) -> None:
    """Writes the noted ones of `found` into the record, once: a run that is killed right after is not asked again in vain."""
    there = read_changes(folder)
    told = {(each.step, each.key, each.here) for each in there}
    when = datetime.now(UTC).isoformat(timespec="seconds")
    new = [Change(step, when, d.key, _plain(d.there), _plain(d.here)) for d in found if d.identity == "noted"]
    _write(folder, [*there, *(each for each in new if (each.step, each.key, each.here) not in told)])


def cut_back_changes(folder: Path, *, step: int) -> None:
    """After going back to `step` all that was changed later is in force from there on; a run from the start has changed nothing."""
    there = read_changes(folder)
    if there:
        earlier = [Change(min(e.step, step), e.when, e.key, e.there, e.here) for e in there]
        _write(folder, earlier if step > 0 else [])


def write_sources(folder: Path, sources: Mapping[str, Digests], *, places: Mapping[str, Any]) -> None:
    """Digests, and where what the config names is found (`sources.places_of`)."""
    replace_text(folder / SOURCES, json.dumps({**sources, "places": places}, indent=1) + "\n")


def _write(folder: Path, changes: Sequence[Change]) -> None:
    path = folder / FILE
    if changes:
        replace_text(path, "".join(json.dumps(vars(each)) + "\n" for each in changes))
    else:
        path.unlink(missing_ok=True)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else shown(value)


def _read(path: Path) -> Mapping[str, Any]:
    """Of a version that kept none, or damaged: nothing is known, so nothing differs."""
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, Mapping) else {}
