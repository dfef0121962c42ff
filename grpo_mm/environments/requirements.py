"""Which packages a scorer's environment holds: a file of names and versions, one a line."""

from __future__ import annotations

import hashlib
import re
import sys
import sysconfig
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from grpo_mm.errors import ConfigError
from grpo_mm.outside import place, plain, reason, shown

SHIPPED = Path(__file__).parents[1] / "rewards" / "environments"
"""Where the files lie that a config names without a path: NAME.txt."""
PIN = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)(?P<extras>\[[\w., -]+\])?\s*==\s*(?P<version>[\w.!+-]+)\s*(;[^#]*)?")
LONGEST_FILE = 2**16
TORCH = "torch"


@dataclass(frozen=True)
class Requirements:
    """A requirements file that was read.

    Example: Requirements("hpsv3", Path("…/rewards/environments/hpsv3.txt"), {"torch": "2.6.0", …}).
    """

    name: str
    file: Path
    pins: tuple[tuple[str, str], ...]
    """Normalised names and their versions, in the order of the file."""
    extras: tuple[str, ...] = ()
    """What the file has behind each name, such as "[sentencepiece]", or ""."""

    @property
    def lines(self) -> list[str]:
        """For pip."""
        extras = self.extras or ("",) * len(self.pins)
        return [f"{name}{more}=={version}" for (name, version), more in zip(self.pins, extras, strict=True)]

    @property
    def stands_alone(self) -> bool:
        """Whether it sees nothing of the run's own packages: where it pins torch. Others see them behind their own."""
        return TORCH in dict(self.pins)

    @property
    def asked(self) -> str:
        """What a config or a command names it by."""
        return self.name if self.file.parent == SHIPPED else str(self.file)

    @cached_property
    def key(self) -> str:
        """Name and digest of the pins, the Python and, where the run's packages are seen, their place: another one, another environment."""
        behind = "" if self.stands_alone else sys.prefix
        extras = [repr(self.extras)] if any(self.extras) else []
        parts = [repr(self.pins), *extras, sys.version.split()[0], sysconfig.get_platform(), sys.base_prefix, behind]
        return f"{self.name}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:12]}"


def requirements(name: str) -> Requirements:
    """Of a shipped environment by its name, or of a user's own file by its path.

    Raises:
        ConfigError: there is none; a line is no `name==version`.
    """
    file = _file(name)
    try:
        text = file.read_text(encoding="utf-8") if file.stat().st_size <= LONGEST_FILE else None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"environment: {file} cannot be read: {reason(error)}.") from error
    if text is None:
        raise ConfigError(f"environment: {file} has more than {LONGEST_FILE} bytes; is it a requirements file?")
    read = [_pin(file, number, line) for number, line in enumerate(text.splitlines(), 1) if _said(line)]
    pins, extras = tuple((name, version) for name, _, version in read), tuple(more for _, more, _ in read)
    if not pins:
        raise ConfigError(f"environment: {file} names no package; wanted lines such as hpsv3==1.0.0.")
    doubled = [name for name, _ in pins if [one for one, _ in pins].count(name) > 1]
    if doubled:
        raise ConfigError(f"environment: {file} names {doubled[0]} twice; leave one out.")
    return Requirements(re.sub(r"[^\w-]+", "_", file.stem) or "own", file, pins, extras)


def shipped() -> list[str]:
    """Names of the environments that come with the package."""
    return sorted(file.stem for file in SHIPPED.glob("*.txt"))


def _file(name: str) -> Path:
    if re.fullmatch(r"[\w-]+", name):
        if not (SHIPPED / f"{name}.txt").is_file():
            raise ConfigError(
                f"environment: {shown(name)} does not ship with the package; there are {', '.join(shipped())}. For a file of your own "
                "give its path, such as ./my_scorer.txt."
            )
        return SHIPPED / f"{name}.txt"
    file = place(name, what="environment")
    if not file.is_file():
        raise ConfigError(f"environment: {shown(name)}: no such file.")
    return file.absolute()


def _said(line: str) -> str:
    return line.partition("#")[0].strip()


def _pin(file: Path, number: int, line: str) -> tuple[str, str, str]:
    found = PIN.fullmatch(_said(line))
    if found is None:
        raise ConfigError(
            f"environment: {file}, line {number}: {shown(plain(line, 100))}; wanted name==version and nothing else (where pip looks for "
            "packages is a matter of its own settings)."
        )
    return re.sub(r"[-_.]+", "-", found["name"]).lower(), found["extras"] or "", _said(line).split("==", 1)[1].strip()
