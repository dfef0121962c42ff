"""The folder a run lives in: starting, going on, starting over."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError

from grpo_mm.config.run_config import RunConfig, differences, plain
from grpo_mm.errors import CheckpointError, ConfigError, TrainingStopped
from grpo_mm.looking import metrics
from grpo_mm.moved import present_target
from grpo_mm.weights import checkpoint

PACKAGES = ("grpo_mm", "torch", "diffusers", "transformers", "accelerate", "peft", "numpy")


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

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


def read_config(path: Path) -> dict[str, Any]:
    """The resolved config that a run was started with."""
    file = path / "config.yaml"
    if not file.is_file():
        raise ConfigError(f"{path} is not a run folder: it has no config.yaml.")
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is damaged: {error}. Restore it, or start over with --fresh.") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{file} is damaged: it holds no settings. Restore it, or start over with --fresh.")
    return _with_present_paths(found)


def _with_present_paths(value: Any) -> Any:
    """Settings in which `package.module:Name` of before there were rooms reads as it does now."""
    if isinstance(value, dict):
        return {key: _with_present_paths(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_with_present_paths(part) for part in value]
    return present_target(value) if isinstance(value, str) else value


def check_folder(config: RunConfig, *, fresh: bool, checkpoint_name: str | None = None) -> None:
    """Raises UserError if the run cannot live in its folder: another config's run, another thing, no right to write.

    A run that has written neither a metric nor a checkpoint gives way to another config.
    """
    folder = RunFolder(config.folder)
    if fresh and checkpoint_name is not None:
        raise ConfigError(
            f"--fresh starts over without any checkpoint, so --checkpoint {checkpoint_name} contradicts it."
        )
    there = next(p for p in (folder.path, *folder.path.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{folder.path} cannot be made or written: {there} is {'read-only' if there.is_dir() else 'a file'}."
        )
    is_run = (folder.path / "config.yaml").is_file()
    if folder.path.exists() and not is_run and any(not p.name.startswith(".writing_") for p in folder.path.iterdir()):
        raise ConfigError(f"{folder.path} exists and is no run folder (it has no config.yaml). Use another name.")
    if fresh:
        return
    if is_run and (metrics.read(folder.metrics) or checkpoint.steps(folder.checkpoints)):
        different = differences(read_config(folder.path), _with_present_paths(plain(config)))
        if different:
            raise ConfigError(
                f"{folder.path} holds a run with another config ({'; '.join(different[:4])}"
                f"{'; …' if len(different) > 4 else ''}). Use another name, or start over with --fresh."
            )
    path = find_checkpoint(folder, checkpoint_name)
    checkpoint.verify(path) if path is not None else None


def open_folder(config: RunConfig, *, fresh: bool) -> RunFolder:
    """Makes the folder, or finds the one of an interrupted run; `check_folder` comes first. Main process only."""
    folder = RunFolder(config.folder)
    if fresh and folder.path.exists():
        gone = folder.path.with_name(f".deleting_{folder.path.name}")
        shutil.rmtree(gone, ignore_errors=True)
        os.replace(folder.path, gone)  # at once: a kill while files are deleted leaves no half a run behind
        shutil.rmtree(gone)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        replace_text(folder.path / "config.yaml", yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True))
        replace_text(folder.path / "versions.json", json.dumps(versions(), indent=1))
        folder.samples.mkdir(exist_ok=True)
        folder.checkpoints.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder.path} cannot be made or written: {error}. Choose another `runs_dir` or `name`."
        ) from error
    return folder


def finished(folder: RunFolder) -> dict[str, Any] | None:
    """The summary of a run that came to its end: it is written last, and deleted when training goes on."""
    return json.loads(folder.summary.read_text(encoding="utf-8")) if folder.summary.is_file() else None


@contextmanager
def exclusive(folder: RunFolder) -> Iterator[None]:
    """Keeps other processes out of the run, such as one that survived its launcher; a lock goes with its process.

    Raises:
        ConfigError: another process is in there.
    """
    path = folder.path.with_name(f".lock_{folder.path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise ConfigError(f"{path.parent} cannot be made or written: {error}. Choose another `runs_dir`.") from error
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
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def replace_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    aside = path.with_name(f".writing_{path.name}")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


@contextmanager
def full_disk_stops(folder: RunFolder) -> Iterator[None]:
    """Whatever could not be written for lack of space stops the run with a sentence; checkpoints are untouched."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not checkpoint.is_no_space(error):
            raise
        what = getattr(error, "filename", None) or "a file of the run"
        raise TrainingStopped(
            f"{what} could not be written: there is no space left on the device. {checkpoint.last_intact(folder.checkpoints)} "
            "Free some space and give the same command again to go on."
        ) from error


def find_checkpoint(folder: RunFolder, named: str | None) -> Path | None:
    """The checkpoint to go on from: the newest, or the one the user names. Later ones than a named one are deleted
    when the run goes on."""
    steps = checkpoint.steps(folder.checkpoints)
    if named is not None:
        if named not in [checkpoint.name_of(s) for s in steps]:
            there = ", ".join(checkpoint.name_of(s) for s in steps) or "none"
            raise CheckpointError(f"{folder.path} has no checkpoint {named!r}; there are: {there}.")
        return folder.checkpoints / named
    return folder.checkpoints / checkpoint.name_of(steps[-1]) if steps else None


def cut_back(folder: RunFolder, *, step: int, without_eval: bool, events: int = 0) -> None:
    """Forgets everything after `step`, and on request the evaluation there, so that a resumed run writes it again.

    events: so many lines of events.jsonl had been written by then.
    """
    folder.summary.unlink(missing_ok=True)
    metrics.cut_back(folder.metrics, step=step, without_eval=without_eval)
    lines = folder.events.read_text(encoding="utf-8").splitlines(keepends=True) if folder.events.is_file() else []
    if lines[:events]:
        replace_text(folder.events, "".join(lines[:events]))
    else:
        folder.events.unlink(missing_ok=True)
    checkpoint.prune(folder.checkpoints, keep={s for s in checkpoint.steps(folder.checkpoints) if s <= step})


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
