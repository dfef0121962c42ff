"""What `grpo-mm show` prints: the resolved config, then the arithmetic of a step; no model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from grpo_mm.config import run_config
from grpo_mm.config.arithmetic import lines


def shown_lines(
    config: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), *, trust: bool = False
) -> Iterator[str]:
    """The config as YAML, then a line for each thing that follows from it.

    Raises:
        ConfigError: settings that contradict each other, before the first line; what else keeps it from training (files that
            are not there), after the last.
    """
    settings = run_config.read(config, overrides, trust=trust)
    settings.check_settings()
    yield yaml.safe_dump(run_config.plain(settings), sort_keys=False)
    yield from lines(settings)
    settings.check()
