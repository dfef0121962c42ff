"""Prompts of a file as its readers hand them out: each id once, those without their media left out, counted and named."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from grpo_mm.errors import ConfigError
from grpo_mm.types import Prompt

NAMED = 5
"""So many unusable rows are named in the log."""
log = logging.getLogger(__name__)


def gathered(
    prompts: Iterable[tuple[str, Prompt]], path: str, *, check_files: bool = False, limit: int | None = None
) -> list[Prompt]:
    """The first `limit` of (where it stands, prompt), in order.

    Args:
        path: of the file, for messages.
        check_files: leave out prompts with a picture or video file that is not there.

    Raises:
        ConfigError: an id stands twice, or no prompt is left.
    """
    kept: list[Prompt] = []
    seen: set[str] = set()
    missing: list[str] = []
    for where, prompt in prompts:
        if prompt.id in seen:
            raise ConfigError(f"{where}: the id {prompt.id!r} stands twice.")
        seen.add(prompt.id)
        if check_files and not all(Path(item.path).exists() for item in prompt.media if hasattr(item, "path")):
            missing.append(prompt.id)
            continue
        kept.append(prompt)
        if len(kept) == limit:
            break
    if missing:
        log.warning("%s: %d rows left out: no such file (%s)", path, len(missing), ", ".join(missing[:NAMED]))
    if not kept:
        raise ConfigError(f"{path}: no row is left ({len(missing)} without their files).")
    return kept
