"""Where the services of a launch are at this moment: a run names them, and they may come back somewhere else.

`grpo-mm launch` keeps a small file beside each trainer up to date; its name stands in the environment. Anybody may write such a file:

    {"services": {"eyes": [{"url": "http://10.0.0.7:40211", "start": "1764410000.1"}]}, "rewards": {"quality": "eyes"}, "engines": []}
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_mm.outside import BadJson, parse_json, reason, shown

FILE = "GRPO_MM_SERVICES"
SCHEME = "service://"
STARTS = "GRPO_MM_STARTS"
"""In the environment of trainers: which start of the run by its launch this is, from 1."""
_lock = threading.Lock()
_starts: dict[str, str] = {}
"""URL of a service -> which start of it was asked last."""


class NotUp(Exception):
    """A service that is nowhere at this moment; it may come back."""


def is_named(url: str) -> bool:
    """Whether an address names a service instead of a host."""
    return url.startswith(SCHEME)


def address_of(url: str) -> str:
    """Where to ask: `service://NAME` as the http address of that service now, others as they are.

    Of several that share a name a process asks its own, number rank modulo how many there are; `service://NAME/2` is number 2. One that has started again since it was
    asked last is counted (`calls/service_restarts`).

    Raises:
        NotUp: it is nowhere at this moment, or nobody says where.
    """
    if not is_named(url):
        return url
    name, _, number = url.removeprefix(SCHEME).rstrip("/").partition("/")
    there = _read().services.get(name)
    if not there or number and not (number.isdecimal() and int(number) < len(there)):
        raise NotUp(f"no service {shown(url.removeprefix(SCHEME), 80)} is known to this launch")
    one = there[int(number) if number else int(os.environ.get("RANK", "0")) % len(there)]
    if one.get("url") is None:
        raise NotUp(f"{name} is not up")
    with _lock:
        before, _starts[url] = _starts.get(url), one["start"]
    if before not in (None, one["start"]):
        from grpo_mm.processes.clock import count  # with torch, which those do without that only keep this file

        count("service_restarts", 1)
    return str(one["url"])


def begun_again() -> dict[str, float]:
    """What the record says of a run that its launch has begun again: `launch/starts`, from 2; else nothing."""
    said = os.environ.get(STARTS, "1")
    return {"launch/starts": float(said)} if said.isdecimal() and int(said) > 1 else {}


def served_rewards() -> dict[str, str]:
    """Reward -> the service of this launch that scores it; empty where no launch says so."""
    return _read().rewards if FILE in os.environ else {}


def engine_services() -> tuple[str, ...]:
    """Addresses of the services of this launch that draw; none where no launch says so."""
    return tuple(_read().engines) if FILE in os.environ else ()


@dataclass(frozen=True)
class _Found:
    services: dict[str, list[dict[str, Any]]]
    rewards: dict[str, str]
    engines: list[str]


def _read() -> _Found:
    path = os.environ.get(FILE)
    if path is None:
        raise NotUp(f"the environment variable {FILE}, which `grpo-mm launch` sets, is not set")
    try:
        found = parse_json(Path(path).read_text(encoding="utf-8"))
        return _Found(dict(found["services"]), dict(found["rewards"]), list(found.get("engines", ())))
    except (OSError, BadJson, LookupError, TypeError, ValueError) as error:
        raise NotUp(f"{path} cannot be read ({reason(error, 100)})") from error
