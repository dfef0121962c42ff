"""What `grpo-mm show` prints: the resolved config, then the arithmetic of a step; no model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from grpo_mm.config import run_config
from grpo_mm.config.arithmetic import lines
from grpo_mm.config.origins import marked_yaml
from grpo_mm.config.shipped import config_file
from grpo_mm.config.without_effect import without_effect
from grpo_mm.looking.changes import read_changes
from grpo_mm.outside import place
from grpo_mm.training.data import data_lines


def shown_lines(
    config: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), *, trust: bool = False
) -> Iterator[str]:
    """The config as YAML, in which what it does not say itself is marked, then a line for each thing that follows from it.

    Raises:
        ConfigError: settings that contradict each other, before the first line; what else keeps it from training (files that
            are not there), after the last.
    """
    source = config if isinstance(config, Mapping) else config_file(place(config, what="the config"))
    settings = run_config.read(source, overrides, trust=trust)
    settings.check_settings()
    if isinstance(source, Path) and source.is_dir():  # a run keeps all values, wherever they came from
        yield yaml.safe_dump(run_config.plain(settings), sort_keys=False)
        yield from (f"changed {change}" for change in read_changes(source))
    else:
        yield marked_yaml(source, overrides, settings)
    yield from lines(settings)
    settings.check()
    yield from without_effect(settings)
    yield from data_lines(settings)
