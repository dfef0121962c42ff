"""The folder a run lives in: starting, going on, starting over."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from grpo_mm import checkpoint, metrics
from grpo_mm.errors import CheckpointError, ConfigError
from grpo_mm.run_config import RunConfig, differences, plain

PACKAGES = ("grpo_mm", "torch", "diffusers", "transformers", "accelerate", "peft", "numpy")


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

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
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def check_same_config(config: RunConfig) -> None:
    """Raises ConfigError if the folder holds a run of another config."""
    if (config.folder / "config.yaml").is_file():
        different = differences(read_config(config.folder), plain(config))
        if different:
            raise ConfigError(
                f"{config.folder} holds a run with another config ({'; '.join(different[:4])}"
                f"{'; …' if len(different) > 4 else ''}). Use another name, or start over with --fresh."
            )


def open_folder(config: RunConfig, *, fresh: bool) -> RunFolder:
    """Makes the folder, or finds the one of an interrupted run with the same config. Main process only."""
    folder = RunFolder(config.folder)
    if fresh and (folder.path / "config.yaml").is_file():
        shutil.rmtree(folder.path)
    if folder.path.exists() and any(folder.path.iterdir()) and not (folder.path / "config.yaml").is_file():
        raise ConfigError(f"{folder.path} exists and is no run folder (it has no config.yaml). Use another name.")
    check_same_config(config)
    folder.samples.mkdir(parents=True, exist_ok=True)
    folder.checkpoints.mkdir(exist_ok=True)
    (folder.path / "versions.json").write_text(json.dumps(versions(), indent=1))
    (folder.path / "config.yaml").write_text(yaml.safe_dump(plain(config), sort_keys=False), encoding="utf-8")
    return folder


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


def cut_back(folder: RunFolder, *, step: int, finished: bool) -> None:
    """Forgets everything after `step`, so that a resumed run writes it again; of a `finished` one the last evaluation."""
    metrics.cut_back(folder.metrics, step=step, without_eval=finished)
    checkpoint.prune(folder.checkpoints, keep={s for s in checkpoint.steps(folder.checkpoints) if s <= step})


def versions() -> dict[str, str]:
    """Main packages, Python, and the git commit of the working directory if there is one."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if git.returncode == 0:
        found["git_commit"] = git.stdout.strip()
    return found
