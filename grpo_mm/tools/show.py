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
from grpo_mm.config.without_effect import remarks, without_effect
from grpo_mm.environments.words import of_scorers
from grpo_mm.errors import ConfigError
from grpo_mm.golden.comparing import lines as golden_lines
from grpo_mm.ledger.cards import card
from grpo_mm.ledger.words import Asked
from grpo_mm.looking.changes import read_changes
from grpo_mm.outside import place
from grpo_mm.run.data import data_lines
from grpo_mm.tools.serving.launch import as_launched
from grpo_mm.training.ahead import ahead_lines
from grpo_mm.training.forecast import cost_lines


def shown_lines(
    config: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    trust: bool = False,
    asked: Asked | None = None,
    memory: bool = True,
) -> Iterator[str]:
    """The config as YAML, in which what it does not say itself is marked, then a line for each thing that follows from it.

    memory: with the ledger, which counts the forwards of the real classes.

    Raises:
        ConfigError: settings that contradict each other, before the first line; what else keeps it from training (data that
            are not set, files that are not there), after the last.
        UserError: a card or a file of timings in `asked` that is not known, before the first line.
    """
    asked = asked or Asked()
    card(asked.gpu)
    unset: list[str] = []
    source = config if isinstance(config, Mapping) else config_file(place(config, what="the config"))
    settings = run_config.read(source, overrides, trust=trust, unset=unset)
    launched = as_launched(settings)  # a config for `launch` names no servers of its own
    launched.check_settings()
    if isinstance(source, Path) and source.is_dir():  # a run keeps all values, wherever they came from
        yield yaml.safe_dump(run_config.plain(settings), sort_keys=False)
        yield from (f"changed {change}" for change in read_changes(source))
    else:
        yield marked_yaml(source, overrides, settings)
    yield from lines(settings, asked.devices)
    yield from remarks(settings)
    yield from ahead_lines(settings, asked.devices)
    yield from of_scorers(settings.rewards | settings.watched_rewards)
    yield from golden_lines(settings.rewards | settings.watched_rewards)
    if launched is not settings:
        yield "engine.generator asks the servers of launch.engines, which `grpo-mm launch` starts; `grpo-mm train` wants its urls or start"
    if memory:
        yield from cost_lines(settings, asked)
    if unset:
        names = ", ".join(f"data.{name}" for name in unset)
        raise ConfigError(f"{names} not set; what stands above assumes the data. Set data.{unset[0]}=… to train.")
    launched.check()
    yield from without_effect(settings)
    yield from data_lines(settings)
