"""Rewards of a run that services of its launch score: the entry in the config stays as it is, and the service is asked."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from grpo_mm.errors import ConfigError
from grpo_mm.processes.services import FILE, SCHEME, NotUp, served_rewards
from grpo_mm.rewards.service.remote import Remote
from grpo_mm.rollout.reward_use import as_reward
from grpo_mm.types import is_relative

TOKEN = "GRPO_MM_TOKEN"
MORE_SECONDS = 600.0
"""Than its own limit, which holds where it scores, a reward elsewhere may take: a service may be starting again."""
OF_THE_SERVER = {
    "timeout_seconds": None, "isolate": False, "device": None, "workers": 1, "environment": None, "golden": None,
}  # fmt: skip
"""What an entry says of how it is scored holds there, and nothing of it here."""
log = logging.getLogger(__name__)
Entry = TypeVar("Entry")
"""Of `rewards` or `watch`."""


def scored_elsewhere(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """The same entries; those that a service of this launch scores ask it. Everything at once, as it would be asked here, so that the
    scores are the same to the last bit.

    Raises:
        ConfigError: what the launch says of its services cannot be read.
    """
    try:
        by = served_rewards()
    except NotUp as error:
        raise ConfigError(f"{FILE}: {error}.") from error
    return {name: _asking(name, by[name], entry) if name in by else entry for name, entry in entries.items()}


def _asking(name: str, service: str, entry: Any) -> Any:
    log.info("%s is scored by the service %s of this launch", name, service)
    use = Remote(
        f"{SCHEME}{service}",
        name,
        token_env=TOKEN,
        timeout_seconds=MORE_SECONDS + (entry.timeout_seconds or 0.0),
        batch=None,
        scope="set" if is_relative(as_reward(entry.use)) else "output",
        constant_steps=None,
    )
    there = {field.name for field in fields(entry)}
    said = {name: value for name, value in OF_THE_SERVER.items() if name in there}
    if "constant_steps" in there and entry.constant_steps is None:  # what it says of itself holds wherever it scores
        said["constant_steps"] = getattr(entry.use, "constant_steps", None)
    return replace(entry, use=use, **said)
