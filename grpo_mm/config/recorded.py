"""The config that a run folder keeps of its run: data, whose names of code are not followed without being asked."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import sys
from pathlib import Path
from typing import Any

from grpo_mm.config.beside import with_files_beside
from grpo_mm.config.yaml_text import read_yaml_file
from grpo_mm.errors import ConfigError
from grpo_mm.moved import present_target
from grpo_mm.outside import expanded, parse_json

BESIDE = ("run.json", "versions.json")
"""Files of which one lies beside the config.yaml of a run."""


def is_recorded(path: Path) -> bool:
    """Whether a path is a run folder, or the config.yaml of one."""
    folder = path.parent if path.name == "config.yaml" and not path.is_dir() else path
    return (folder / "config.yaml").is_file() and (path.is_dir() or any((folder / name).is_file() for name in BESIDE))


def is_recorded_run(folder: Path) -> bool:
    """Whether a folder holds config.yaml and the files that a run writes beside it, or its record."""
    return is_recorded(folder) and any((folder / name).is_file() for name in (*BESIDE, "metrics.jsonl"))


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


def read_places(folder: Path) -> dict[str, Any]:
    """Where a run was started, and where the modules of its components lay (`sources.places_of`); {} where nothing says so."""
    try:
        found = parse_json((folder / "sources.json").read_text(encoding="utf-8"))
        places = found.get("places")
    except (OSError, ValueError, AttributeError):
        return {}
    return places if isinstance(places, dict) else {}


def with_places(config: Any, folder: Path, *, key: str = "") -> Any:
    """A config, or its part `key`, that lies in this user's own run folder, wherever the command is given: names of files that are not in the current
    folder are those of the folder in which the run was started, and modules are found where they lay."""
    places = read_places(folder)
    for place in places.get("modules", []):
        if isinstance(place, str) and os.path.isdir(place) and place not in sys.path:
            sys.path.append(place)
    began = places.get("started_in")
    if not isinstance(began, str) or not os.path.isdir(began):
        return config
    return with_files_beside(config, Path(began), key, where="where the run was started")


def signature(folder: Path, *, make_key: bool = False) -> str:
    """What only this user can write of the config, and of the places of its code, in that place: a run that was moved, copied or edited has another one.

    The key lies in the user's own settings (`~/.config/grpo_mm/key`, or below XDG_CONFIG_HOME) and is made with the first run.
    Empty where there is none.
    """
    try:
        key = _key(make=make_key)
        content = (folder / "config.yaml").read_bytes()
    except (OSError, ValueError):  # no home that can be written: such a user says --trust
        return ""
    said = os.fsencode(os.path.realpath(folder)) + b"\0" + hashlib.sha256(content).digest()
    if places := read_places(folder):
        said += json.dumps(places, sort_keys=True).encode(errors="replace")
    return hmac.new(key, said, "sha256").hexdigest()


def is_own(folder: Path) -> bool:
    """Whether this user's own training wrote the config that lies there now, in that place."""
    try:
        found = parse_json((folder / "run.json").read_text(encoding="utf-8"))
        signed = found.get("signed")
    except (OSError, ValueError, AttributeError):
        return False
    wanted = signature(folder)
    return bool(wanted) and isinstance(signed, str) and hmac.compare_digest(signed.encode(), wanted.encode())


def _key(*, make: bool) -> bytes:
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    if not os.path.isabs(base):
        raise ValueError("no home")
    file = Path(base) / "grpo_mm" / "key"
    if make and not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f".writing_key_{os.getpid()}")
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(secrets.token_bytes(32))
        try:
            os.link(aside, file)  # of two runs that begin at once one key stays
        except FileExistsError:
            pass
        finally:
            aside.unlink()
    key = file.read_bytes()
    if len(key) != 32:
        raise ValueError("no key")
    return key
