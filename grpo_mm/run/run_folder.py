"""The folder a run lives in: starting, going on, starting over."""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError

from grpo_mm.config.differences import Difference
from grpo_mm.config.recorded import is_own, signature
from grpo_mm.config.recorded import read_recorded as read_config
from grpo_mm.config.run_config import RunConfig, plain
from grpo_mm.config.sources import Digests, places_of, sources_of
from grpo_mm.errors import CheckpointError, ConfigError, TrainingStopped
from grpo_mm.looking import held_out, metrics
from grpo_mm.outside import BadJson, parse_json, reason, shown
from grpo_mm.processes.run_lock import lock_of
from grpo_mm.run import mark
from grpo_mm.run.changes import check_changes, compare, cut_back_changes, note, words, write_sources
from grpo_mm.run.clearing import clear
from grpo_mm.run.clearing import links as links_within
from grpo_mm.run.data import RunData
from grpo_mm.run.mark import replace_text
from grpo_mm.weights import checkpoint
from grpo_mm.weights.checkpoint import RunId

__all__ = [
    "RunFolder", "check_folder", "cut_back", "exclusive", "failing_disk_stops", "find_checkpoint", "finished", "open_folder",
    "read_config", "replace_text", "versions",
]  # fmt: skip

log = logging.getLogger(__name__)

PACKAGES = ("grpo_mm", "torch", "diffusers", "transformers", "accelerate", "peft", "numpy")


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def held_out(self) -> Path:
        """The held-out scores of each evaluation, prompt by prompt."""
        return self.path / held_out.NAME

    @property
    def events(self) -> Path:
        """What watch rules did, a line for each action; not there before the first."""
        return self.path / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def run(self) -> RunId | None:
        """Which run it is; None where nothing says so, as in a folder that holds a part of one."""
        found = mark.owner(self.path)
        return None if found is None else found.run


def folder_of(config: RunConfig) -> RunFolder:
    """By its whole path: the working folder may be another one before the run ends."""
    return RunFolder(config.folder.absolute())


LINKED_TO = (
    "checkpoints",
    "samples",
    "adapter",
    "model",
    "metrics.jsonl",
    "held_out.jsonl",
    "events.jsonl",
    "summary.json",
    "changes.jsonl",
    "sources.json",
    "product.json",
    "checkpoints.jsonl",
)
"""What is never written or deleted through a link."""
PRODUCTS = ("adapter", "model")


@dataclass(frozen=True)
class Start:
    """How a run begins in its folder."""

    over: bool = False
    """From the start, in an empty folder: what lies there is moved aside, or cleared where it protects nothing."""
    changes: tuple[Difference, ...] = ()
    """With what else it goes on than it was trained with, from `step` on."""
    step: int = 0
    sources: Mapping[str, Digests] | None = None
    """Digests of the code and the data of this config."""
    done: dict[str, Any] | None = None
    """The summary of a run that has come to its end and does not go on, with what is to be said of it under "nothing_was_run"."""


def check_folder(
    config: RunConfig,
    *,
    fresh: bool,
    checkpoint_name: str | None = None,
    accept: bool = False,
    data: RunData | None = None,
) -> Start:
    """How the run begins. Raises UserError if it cannot live in its folder: another run, another thing, no right to write.

    A folder is a run's if it carries its mark, or is the run of a version without marks (`mark.owner`); only then anything in
    it is overwritten, moved or deleted. A run that has neither a checkpoint nor come to its end gives way to another config (a product
    that it left moves aside with it); others go on with the same one, but for what is free, and for what is noted if that is accepted.
    """
    folder = folder_of(config)
    if fresh and checkpoint_name is not None:
        raise ConfigError(
            f"--fresh starts over without any checkpoint, so --checkpoint {shown(checkpoint_name)} contradicts it."
        )
    try:
        _check_place(folder.path)
        is_run = _check_owned(folder.path, fresh=fresh)
        sources = sources_of(config)
        if fresh or not is_run:
            _check_no_others(folder) if is_run else None
            return Start(over=fresh, sources=sources)
        if not goes_on(folder):
            _check_no_others(folder)
            return Start(over=not _is_of(folder, config, sources), sources=sources)
        done = None if checkpoint_name else finished(folder)
        changes = compare(folder.path, config, _with_rows(sources, data or RunData(config), done=done is not None))
        ended = done is not None and not (checkpoint.steps(folder.checkpoints) and _goes_further(done, config, changes))
        check_changes(folder.path, changes, accept=accept or ended)
        if done is not None and ended:
            return Start(done=_told(folder, done, changes))
        path = find_checkpoint(folder, checkpoint_name)
        checkpoint.verify(path, folder.run) if path is not None else None
        _check_no_others(folder)
    except OSError as error:
        raise ConfigError(
            f"{folder.path} cannot be read: {reason(error)}. Choose another `runs_dir` or `name`."
        ) from error
    return Start(
        changes=tuple(changes), step=0 if path is None else int(path.name.removeprefix("step_")), sources=sources
    )


def _with_rows(sources: Mapping[str, Digests], data: RunData, *, done: bool) -> Mapping[str, Digests]:
    """What a run that is done says does not need its data."""
    try:
        return data.digests(sources)
    except Exception:  # readers are a user's code too
        if done:
            return sources
        raise


def goes_on(folder: RunFolder) -> bool:
    """Whether a run lies there that has a checkpoint to go on from, or came to its end."""
    return bool(checkpoint.steps(folder.checkpoints)) or finished(folder) is not None


def protects(folder: RunFolder) -> bool:
    """Whether something lies there that would be lost: a checkpoint, or a product, also of a run that could not go on."""
    return goes_on(folder) or any((folder.path / name).exists() for name in PRODUCTS)


def _is_of(folder: RunFolder, config: RunConfig, sources: Mapping[str, Digests]) -> bool:
    """Whether what lies in a folder without a checkpoint is of this very config, whose run writes it again."""
    try:
        return all(each.identity == "free" for each in compare(folder.path, config, sources))
    except ConfigError:  # no config.yaml, or half a one
        return False


def _goes_further(done: Mapping[str, Any], config: RunConfig, changes: Sequence[Difference]) -> bool:
    """Whether a run that came to its end has more to do: more steps, and where patience ended it another patience."""
    waits = done.get("stopped_early") == "patience" and any(each.key == "evaluation.patience" for each in changes)
    return config.steps > done["steps"] and (done.get("stopped_early") is None or waits)


def _told(folder: RunFolder, done: dict[str, Any], changes: Sequence[Difference]) -> dict[str, Any]:
    when = datetime.fromtimestamp(folder.summary.stat().st_mtime, UTC)  # it is written last, and once
    early = f" ({done['stopped_early']} ended it early)" if done.get("stopped_early") else ""
    text = f"{folder.path}: finished on {when:%Y-%m-%d %H:%M} UTC after {done['steps']} steps{early}, nothing was run"
    if changes:
        text += (
            f"; these differ: {words(changes)}. To train with them use another name, or start over with --fresh, which moves "
            "this run aside"
        )
    return done | {"nothing_was_run": f"{text}.", "differs": [str(each) for each in changes]}


def _check_no_others(folder: RunFolder) -> None:
    others = [] if starts_over(folder) else sorted(checkpoint.of_others(folder.checkpoints, folder.run))
    if others:
        raise CheckpointError(
            f"{folder.checkpoints / checkpoint.name_of(others[0])} is a checkpoint of another run, which is neither overwritten nor "
            "deleted. Move it away."
        )


def _check_place(path: Path) -> None:
    there = next(p for p in (path, *path.parents) if os.path.lexists(p))
    if there.is_symlink() and not there.exists():
        raise ConfigError(f"{path} cannot be made: {there} is a link to {os.readlink(there)}, which is not there.")
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{path} cannot be made or written: {there} is {'read-only' if there.is_dir() else 'a file'}."
        )


def _check_owned(path: Path, *, fresh: bool) -> bool:
    """Whether a run of ours lies there, which may go on or be started over; False: nothing does."""
    if path.is_symlink() and (fresh or mark.owner(path) is None):
        raise ConfigError(
            f"{path} is a link to {os.path.realpath(path)}, which is not followed {'to delete' if fresh else 'to start a run'}. Give "
            "`runs_dir` and `name` of that folder itself, or use another name."
        )
    if not path.exists():
        return False
    names = sorted(os.listdir(path))
    found = mark.owner(path)
    if found is None:
        if all(name == f".writing_{mark.NAME}" and not (path / name).is_symlink() for name in names):
            return False
        has = "its config.yaml is not that of a run" if "config.yaml" in names else "it has no config.yaml"
        raise ConfigError(f"{path} exists and is no run folder ({has}). Nothing in it is touched. Use another name.")
    links = [
        name for name in names if (path / name).is_symlink() and (name in LINKED_TO or name.startswith(".writing_"))
    ]
    links = links or links_within(path)
    if links:
        raise ConfigError(
            f"{path / links[0]} is a link to {os.readlink(path / links[0])}. A run writes and deletes nothing through a link: put what "
            "it leads to in its place, or use another name."
        )
    return True


def open_folder(
    config: RunConfig, *, fresh: bool, start: Start | None = None, data: RunData | None = None
) -> RunFolder:
    """Makes the folder, or finds the one of an interrupted run; `check_folder` comes first. Main process only.

    start: what `check_folder` gave; None: nothing there has changed. data: what its rows bring in is
        recorded as well.
    """
    folder, start = folder_of(config), start or Start()
    try:
        _move_aside(folder) if fresh and folder.path.is_dir() and not starts_over(folder) and protects(folder) else None
        folder.path.mkdir(parents=True, exist_ok=True)
        found = mark.owner(folder.path)
        if found is None:
            found = mark.new_mark()
            mark.write_mark(folder.path, found)
        elif fresh or found.clearing:
            # At once, and until it is done: a kill while files are deleted leaves no half a run that goes on.
            found = replace(mark.new_mark(), clearing=True)
            mark.write_mark(folder.path, found)
            left = clear(folder.path, name=config.name)
            if left:
                log.warning("%s: not of a run, so it stays: %s", folder.path, ", ".join(left[:10]))
            found = replace(found, clearing=False)
            mark.write_mark(folder.path, found)
        elif mark.read_mark(folder.path) is None:
            mark.write_mark(folder.path, found)
        if start.changes:
            note(folder.path, start.changes, step=start.step)
        sources = sources_of(config) if start.sources is None else start.sources
        sources = sources if data is None else data.digests(sources)
        write_sources(folder.path, sources, places=places_of(config))
        replace_text(folder.path / "config.yaml", yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True))
        replace_text(folder.path / "versions.json", json.dumps(versions(), indent=1))
        signed = replace(found, signed=signature(folder.path, make_key=True))
        mark.write_mark(folder.path, signed) if signed != found else None
        folder.samples.mkdir(exist_ok=True)
        folder.checkpoints.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder.path} cannot be made or written: {error}. Choose another `runs_dir` or `name`."
        ) from error
    return folder


def _move_aside(folder: RunFolder) -> None:
    """To NAME.1, or the next number that is free; in one step, so that a kill leaves the run here or there."""
    if mark.owner(folder.path) is None or folder.path.is_symlink():
        raise ConfigError(f"{folder.path} is no run folder that can be moved aside.")
    own, number = is_own(folder.path), 1
    while os.path.lexists(aside := folder.path.with_name(f"{folder.path.name}.{number}")):
        number += 1
    os.rename(folder.path, aside)
    found = mark.read_mark(aside)
    if own and found is not None:  # its place is a part of what was signed
        mark.write_mark(aside, replace(found, signed=signature(aside)))
    log.warning("the run that lay in %s was moved to %s", folder.path, aside)


def starts_over(folder: RunFolder) -> bool:
    """Whether starting over was begun there and not ended."""
    found = mark.read_mark(folder.path) if folder.path.is_dir() else None
    return found is not None and found.clearing


def finished(folder: RunFolder) -> dict[str, Any] | None:
    """The summary of a run that came to its end: it is written last, and deleted when training goes on.

    One that is damaged counts as none: the run goes on from its last checkpoint and writes it again.
    """
    if not folder.summary.is_file():
        return None
    try:
        found = parse_json(folder.summary.read_text(encoding="utf-8"))
        absent = SUMMARY - set(found) if isinstance(found, dict) else SUMMARY
        if absent:
            raise BadJson(f"it has no {sorted(absent)[0]}")
    except (OSError, ValueError) as error:
        log.warning("%s is damaged (%s); it is written again", folder.summary, reason(error))
        return None
    return found


SUMMARY = frozenset({"name", "steps", "eval_before", "eval_after", "seconds", "product"})


@contextmanager
def exclusive(folder: RunFolder) -> Iterator[None]:
    """Keeps other processes out of the run, such as one that survived its launcher; a lock goes with its process.

    Raises:
        ConfigError: another process is in there.
    """
    path = lock_of(folder.path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666), "r+")
    except OSError as error:
        raise ConfigError(f"{path.parent} cannot be made or written: {error}. Choose another `runs_dir`.") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode) or not re.fullmatch(r"[0-9]{0,20}", _start_of(file)):
        file.close()
        raise ConfigError(f"{path} is no lock of this program. Move it away, or choose another `runs_dir` or `name`.")
    with file:
        try:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone: its children do not keep it
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise ConfigError(
                f"process {file.read().strip() or '?'} is training in {folder.path} at this moment. Wait for it, or end it."
            ) from None
        except (ImportError, OSError):  # a system or a file system without locks
            pass
        file.seek(0)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _start_of(file: Any) -> str:
    try:
        return file.read(64)
    except (OSError, ValueError):
        return "?"


@contextmanager
def failing_disk_stops(folder: RunFolder) -> Iterator[None]:
    """Whatever of the run could not be read or written stops it with a sentence; checkpoints are untouched."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        full, what = checkpoint.is_no_space(error), getattr(error, "filename", None)
        ours = what is None or os.path.abspath(os.fsdecode(what)).startswith(f"{folder.path.absolute()}{os.sep}")
        if not full and not ours and str(what) != str(folder.path):
            raise
        why = "there is no space left on the device" if full else getattr(error, "strerror", None) or reason(error)
        raise TrainingStopped(
            f"{what or 'a file of the run'} could not be {'written' if full else 'written or read'}: {why}. {checkpoint.last_intact(folder.checkpoints)} "
            f"{'Free some space' if full else 'Mend that'} and give the same command again to go on."
        ) from error


def find_checkpoint(folder: RunFolder, named: str | None) -> Path | None:
    """The checkpoint to go on from: the newest, or the one the user names. Later ones than a named one are deleted
    when the run goes on."""
    steps = checkpoint.steps(folder.checkpoints)
    if named is not None:
        if named not in [checkpoint.name_of(s) for s in steps]:
            there = ", ".join(checkpoint.name_of(s) for s in steps) or "none"
            raise CheckpointError(f"{folder.path} has no checkpoint {shown(named)}; there are: {there}.")
        return folder.checkpoints / named
    return folder.checkpoints / checkpoint.name_of(steps[-1]) if steps else None


def cut_back(folder: RunFolder, *, step: int, without_eval: bool, events: int = 0) -> None:
    """Forgets everything after `step`, and on request the evaluation there, so that a resumed run writes it again.

    events: so many lines of events.jsonl had been written by then.
    """
    folder.summary.unlink(missing_ok=True)
    metrics.cut_back(folder.metrics, step=step, without_eval=without_eval)
    said = folder.events.read_text(encoding="utf-8", errors="replace") if folder.events.is_file() else ""
    lines = said.splitlines(keepends=True)
    cut_back_changes(folder.path, step=step)
    held_out.cut_back(folder.held_out, step=step, without_eval=without_eval)
    if lines[:events]:
        replace_text(folder.events, "".join(lines[:events]))
    else:
        folder.events.unlink(missing_ok=True)
    later = {s for s in checkpoint.steps(folder.checkpoints) if s > step} - checkpoint.of_others(
        folder.checkpoints, folder.run
    )
    checkpoint.prune(folder.checkpoints, keep=set(checkpoint.steps(folder.checkpoints)) - later)


def versions() -> dict[str, str]:
    """Main packages, Python, and the git commit of the working directory if there is one."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    with suppress(OSError):  # no git on this machine
        git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        if git.returncode == 0:
            found["git_commit"] = git.stdout.strip()
    return found
