"""Upper bounds of sizes, looked at before anything is rehearsed with them: a slip of a few zeros takes all memory there is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from grpo_mm.config.settings import Settings
from grpo_mm.errors import ConfigError
from grpo_mm.outside import shown

MOST = {
    "steps": 10**9, "prompts_per_step": 10**6, "group_size": 10**5, "updates.count": 10**6, "updates.passes": 10**4,
    "threads": 4096, "evaluation.samples_per_prompt": 10**5, "evaluation.show": 10**6,
}  # fmt: skip
MOST_ROWS = 10**6
"""Prompts × samples of a step."""
MOST_OF_A_PART = {
    "max_new_tokens": 10**6, "eval_max_new_tokens": 10**6, "steps": 10**5, "eval_steps": 10**5, "height": 16384, "width": 16384,
    "eval_height": 16384, "eval_width": 16384, "text_length": 10**6, "rank": 10**5, "rollout_batch": 10**6, "micro_batch": 10**6,
    "decode_batch": 10**6, "max_frames": 10**6, "seeds": 10**6, "most": 10**6, "first": 10**6, "samples": 10**6,
}  # fmt: skip
"""Of policy, engine and collector, and of what they are made of, by the name of the field."""
LARGEST_FLOAT = 3.4028234663852886e38
"""What float32 holds: the optimiser takes nothing larger."""
LONGEST_NAME = 200
"""Bytes of `name`: the lock beside the folder, and files that are being written, have a few more; file systems take 255."""


def check_sizes(config: Settings) -> None:
    """Raises ConfigError for sizes beyond what any machine holds."""
    for key, most in MOST.items():
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        _check(key, value, most)
    for key, _, value in _settings(config.optim, "optim"):
        _check(key, value, LARGEST_FLOAT)
    rows = config.prompts_per_step * config.group_size
    if rows > MOST_ROWS:
        raise ConfigError(f"prompts_per_step × group_size = {rows:,} rows of a step; wanted at most {MOST_ROWS:,}.")
    for part in ("policy", "engine", "collector"):
        for key, name, value in _settings(getattr(config, part), part):
            if name in MOST_OF_A_PART:
                _check(key, value, MOST_OF_A_PART[name])
    name = os.fsencode(config.name) if config.name.isprintable() else b""
    if len(config.name) <= 100 and len(name) > LONGEST_NAME:
        raise ConfigError(
            f"name is {shown(config.name, 40)}, {len(name)} bytes; wanted a folder name of at most {LONGEST_NAME}."
        )
    if "\0" in config.runs_dir:
        raise ConfigError(f"runs_dir is {shown(config.runs_dir)}, which can be no path.")


def _check(key: str, value: Any, most: int) -> None:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value > most:
        raise ConfigError(
            f"{key} = {shown(value, 60)}; wanted at most {most if isinstance(most, float) else format(most, ',')}."
        )


def _settings(part: Any, path: str, depth: int = 0) -> Iterator[tuple[str, str, Any]]:
    if depth < 20 and is_dataclass(part) and not isinstance(part, type):
        for field in fields(part):
            value = getattr(part, field.name, None)
            yield f"{path}.{field.name}", field.name, value
            yield from _settings(value, f"{path}.{field.name}", depth + 1)
