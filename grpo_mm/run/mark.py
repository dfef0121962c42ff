"""The mark of a run folder: a small file that says whose it is. What carries it may be overwritten and deleted, nothing else."""

from __future__ import annotations

import json
import os
import re
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from grpo_mm.config.recorded import read_recorded
from grpo_mm.errors import ConfigError
from grpo_mm.outside import BadJson, parse_json
from grpo_mm.weights import checkpoint
from grpo_mm.weights.checkpoint import RunId

NAME, FORMAT = "run.json", "grpo_mm run 1"
EVERY_CONFIG = frozenset(
    ["name", "policy", "engine", "prompts", "rewards", "steps", "prompts_per_step", "group_size", "seed", "optim", "updates", "checkpoints", "evaluation", "runs_dir"]
)  # fmt: skip
"""Keys that config.yaml of a run has had in all versions, because it is written with the defaults."""
EVERY_VERSIONS = frozenset({"python", "platform", "torch"})


@dataclass(frozen=True)
class Mark:
    """Example: Mark(id="0f3c…", adopted=False, clearing=False) lies in run.json."""

    id: str
    """32 hexadecimal digits, drawn when the run starts; every checkpoint repeats them."""
    adopted: bool = False
    """The folder is of a version without marks, and so are its first checkpoints."""
    clearing: bool = False
    """The run is being started over: what lies there is deleted before anything else."""
    signed: str = ""
    """See `recorded.signature`; empty in a run folder whose config.yaml is not written yet."""

    @property
    def run(self) -> RunId:
        return RunId(self.id, self.adopted)


def new_mark() -> Mark:
    return Mark(uuid.uuid4().hex)


def read_mark(folder: Path) -> Mark | None:
    """The mark of a folder; None where there is no file of its name.

    Raises:
        ConfigError: the file is damaged, or another program's.
    """
    file = folder / NAME
    if not os.path.lexists(file):
        return None
    try:
        if file.is_symlink() or not file.is_file() or file.stat().st_size > 10_000:
            raise BadJson("no small file")
        found = parse_json(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise BadJson("another format")
        mark = Mark(
            found["id"], found.get("adopted", False), found.get("clearing", False), str(found.get("signed", ""))
        )
        if not isinstance(mark.id, str) or not re.fullmatch(r"[0-9a-f]{32}", mark.id):
            raise BadJson("no id")
        if not isinstance(mark.adopted, bool) or not isinstance(mark.clearing, bool):
            raise BadJson("no answer to yes or no")
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{folder} is no run folder that can be used: {file} is not the mark of this program, or damaged ({error}). Use another "
            "name; or, if you know that the folder is a run, remove that file, and the mark is made again."
        ) from error
    return mark


def write_mark(folder: Path, mark: Mark) -> None:
    replace_text(folder / NAME, json.dumps({"format": FORMAT} | asdict(mark), indent=1) + "\n")


def owner(folder: Path) -> Mark | None:
    """Whose a folder is: its mark, or the one that a run of a version without marks is to get; None: not ours.

    Such a run is known by config.yaml with the keys that every run writes, and by versions.json beside it. Where its
    checkpoints name a run, because the mark was lost, it is that one.
    """
    mark = read_mark(folder)
    if mark is not None or not _is_earlier_run(folder):
        return mark
    ids = {
        checkpoint.run_of(folder / "checkpoints" / checkpoint.name_of(s))
        for s in checkpoint.steps(folder / "checkpoints")
    }
    named = {one for one in ids if isinstance(one, str) and re.fullmatch(r"[0-9a-f]{32}", one)}
    if len(named) > 1:
        raise ConfigError(
            f"{folder} has no {NAME}, and its checkpoints are of {len(named)} runs. Leave those of one, or use another name."
        )
    if named:
        return Mark(named.pop(), adopted="" in ids)
    return replace(new_mark(), adopted=True)


def _is_earlier_run(folder: Path) -> bool:
    files = (folder / "config.yaml", folder / "versions.json")
    if not all(file.is_file() and not file.is_symlink() for file in files):
        return False
    try:
        config, versions = read_recorded(folder), parse_json(files[1].read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return set(config) >= EVERY_CONFIG and isinstance(versions, dict) and set(versions) >= EVERY_VERSIONS


def replace_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all; a link of the name that is used meanwhile is not followed."""
    aside = path.with_name(f".writing_{path.name}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with os.fdopen(os.open(aside, flags, 0o666), "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(aside, path)
