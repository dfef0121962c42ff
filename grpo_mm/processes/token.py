"""The secret that a server and those who ask it share, from the environment."""

from __future__ import annotations

import os

from grpo_mm.errors import ConfigError
from grpo_mm.outside import shown


def token_of(name: str, *, must: bool = False) -> str | None:
    """The token in an environment variable.

    Raises:
        ConfigError: one that no header can carry; none, where there `must` be one.
    """
    token = os.environ.get(name)
    if token is None and not must:
        return None
    if not token:
        raise ConfigError(f"the environment variable {shown(name)}, which holds the token, is not set or empty.")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"the environment variable {shown(name)} holds a blank, a line end or what is not ASCII.")
    return token
