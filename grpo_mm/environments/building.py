"""Making a scorer's environment: a virtual environment with what its file pins, once for each file, whoever asks."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from grpo_mm.environments.requirements import Requirements
from grpo_mm.errors import UserError
from grpo_mm.outside import BadJson, parse_json, plain, reason

READY = "grpo_mm_ready.json"
"""Written last: an environment without it is half made, and is made anew."""
BUILD_SECONDS = 3600.0
"""For making one, and for waiting until another process has made it."""
LOOK_SECONDS = 0.5
LAST_LINES = 6
"""Of pip, in the message."""
log = logging.getLogger(__name__)


def folder() -> Path:
    """Where all environments lie: ~/.cache/grpo_mm/environments, or below XDG_CACHE_HOME."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "grpo_mm" / "environments"


def place_of(wanted: Requirements) -> Path:
    """Where this one lies, or will."""
    return folder() / wanted.key


def python_of(wanted: Requirements) -> Path:
    """Its interpreter."""
    return place_of(wanted) / "bin" / "python"


def is_ready(wanted: Requirements) -> bool:
    """Whether it is made: its mark names these pins, and its interpreter is there."""
    try:
        said = parse_json((place_of(wanted) / READY).read_text(encoding="utf-8"))
    except (OSError, BadJson, UnicodeDecodeError):
        return False
    return said == _mark(wanted) and os.access(python_of(wanted), os.X_OK)


def made(wanted: Requirements) -> Path:
    """The interpreter of an environment, which is made first if it is not there; one process makes it, others wait.

    Raises:
        UserError: it cannot be made, with the last lines of pip; another process is at it for more than an hour.
    """
    if is_ready(wanted):
        return python_of(wanted)
    home = place_of(wanted)
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder of environments, {home.parent}, cannot be made: {reason(error)}.") from error
    with _alone(home.with_name(f"{home.name}.lock"), wanted):
        if not is_ready(wanted):
            log.info("making the environment %s in %s (pip install -r %s)", wanted.name, home, wanted.file)
            begun = time.monotonic()
            _make(wanted, home)
            log.info("the environment %s is there, after %.0f s", wanted.name, time.monotonic() - begun)
    return python_of(wanted)


def _make(wanted: Requirements, home: Path) -> None:
    try:
        shutil.rmtree(home, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "--python", str(python_of(wanted))] if find_spec("pip") else None
        venv = [sys.executable, "-m", "venv", *(["--without-pip"] if pip else []), str(home)]
        _run(wanted, venv, "a virtual environment cannot be made")
        pip = pip or [str(python_of(wanted)), "-m", "pip"]
        listed = home / "requirements.txt"
        listed.write_text("\n".join(wanted.lines) + "\n", encoding="utf-8")
        if not wanted.stands_alone:
            _see_ours(home)
        flags = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
        _run(wanted, [*pip, "install", *flags, "-r", str(listed)], "pip cannot install it")
        (home / READY).write_text(json.dumps(_mark(wanted)), encoding="utf-8")
    except OSError as error:
        raise UserError(f"the environment {wanted.name} cannot be written to {home}: {reason(error)}.") from error


def _see_ours(home: Path) -> None:
    """The run's packages behind its own, so that what the file pins stands in front."""
    own = next(home.glob("lib/python*/site-packages"), None)
    if own is None:
        raise UserError(f"{home} is no virtual environment: it has no lib/python*/site-packages.")
    ours = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (own / "zz_grpo_mm_run.pth").write_text("".join(f"{path}\n" for path in ours), encoding="utf-8")


def _run(wanted: Requirements, command: list[str], failed: str) -> None:
    settings = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=BUILD_SECONDS,
            env=settings,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UserError(
            f"the environment {wanted.name} ({wanted.file}) was not made within {BUILD_SECONDS:g} seconds: {failed}."
        ) from None
    if done.returncode:
        said = [
            plain(line.strip(), 300) for line in done.stdout.decode("utf-8", "replace").splitlines() if line.strip()
        ]
        said = [line for line in said if line.startswith("ERROR")] or said
        raise UserError(
            f"the environment {wanted.name} ({wanted.file}): {failed} (exit code {done.returncode}): "
            f"{' | '.join(said[-LAST_LINES:])}. A machine without a way out gets it by "
            f"`grpo-mm environment {wanted.asked}` where there is one, from the same folder, {place_of(wanted)}."
        )


def _mark(wanted: Requirements) -> dict[str, object]:
    return {"pins": [list(pin) for pin in wanted.pins], "python": sys.version.split()[0]}


@contextlib.contextmanager
def _alone(lock: Path, wanted: Requirements) -> Iterator[None]:
    """One process of all on this machine, or on all that share the folder."""
    until, told = time.monotonic() + BUILD_SECONDS, False
    try:
        held = open(lock, "w")  # noqa: SIM115 - closed below, which frees the lock
    except OSError as error:
        raise UserError(f"{lock} cannot be written: {reason(error)}.") from error
    with held:
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise UserError(
                        f"another process has been making the environment {wanted.name} for {BUILD_SECONDS:g} seconds ({lock})."
                    ) from None
                if not told:
                    log.info("another process makes the environment %s; waiting for it", wanted.name)
                    told = True
                time.sleep(LOOK_SECONDS)
            except OSError as error:
                raise UserError(f"{lock} cannot be locked: {reason(error)}.") from error
        yield
