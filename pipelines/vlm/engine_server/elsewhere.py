"""Engine servers that a launch has placed: the engine in the config stays as it is, and they are asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from grpo_mm.errors import ConfigError
from grpo_mm.processes.services import FILE, NotUp, engine_services
from grpo_mm.registry import kind_of

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
    return drawn_by(engine, urls, token_env=TOKEN) if urls else engine


def drawn_by(engine: Any, urls: Sequence[str], *, token_env: str | None) -> Any:
    """The same engine with a generator that asks these; one that asks no servers as it is."""
    generator = engine.generator
    if kind_of("generator", generator) != "vllm_server":
        return engine
    return replace(engine, generator=replace(generator, urls=tuple(urls), start=None, token_env=token_env))
