"""Engine servers that a launch has placed: the engine in the config stays as it is, and they are asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from grpo_mm.errors import ConfigError
from grpo_mm.processes.services import FILE, NotUp, engine_services

TOKEN = "GRPO_MM_TOKEN"


def drawn_elsewhere(engine: Any) -> Any:
    """The same engine; where this launch has servers that draw, its generator asks them instead of those that it names or starts.

    Raises:
        ConfigError: what the launch says of its services cannot be read.
    """
    try:
        urls = engine_services()
    except NotUp as error:
        raise ConfigError(f"{FILE}: {error}.") from error
    return (
        replace(engine, generator=replace(engine.generator, urls=urls, start=None, token_env=TOKEN)) if urls else engine
    )
