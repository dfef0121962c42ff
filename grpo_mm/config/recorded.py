"""The config that a run folder keeps of its run: data, whose names of code are not followed without being asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grpo_mm.config.yaml_text import read_yaml_file
from grpo_mm.errors import ConfigError
from grpo_mm.moved import present_target
from grpo_mm.outside import expanded

BESIDE = ("run.json", "versions.json")
"""Files of which one lies beside the config.yaml of a run."""


def is_recorded(path: Path) -> bool:
    """Whether a path is a run folder, or the config.yaml of one."""
    folder = path.parent if path.name == "config.yaml" and not path.is_dir() else path
    return (folder / "config.yaml").is_file() and (path.is_dir() or any((folder / name).is_file() for name in BESIDE))


def read_recorded(folder: Path) -> dict[str, Any]:
    """The resolved config that a run was started with.

    Raises:
        ConfigError: no such file, or a damaged one.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        raise ConfigError(f"{folder} is not a run folder: it has no config.yaml.")
    try:
        found = read_yaml_file(file)
    except ConfigError as error:
        raise ConfigError(f"{file} is damaged: {error} Restore it, or start over with --fresh.") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{file} is damaged: it holds no settings. Restore it, or start over with --fresh.")
    return as_of_today(found)


def as_of_today(value: Any) -> Any:
    """Settings in which paths of code and of home folders read as they do now."""
    if isinstance(value, dict):
        return {key: as_of_today(part) for key, part in value.items()}
    if isinstance(value, list):
        return [as_of_today(part) for part in value]
    return expanded(present_target(value)) if isinstance(value, str) else value
