"""Files that a config names are looked for where the command is started, then beside the config."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo_mm.outside import expanded, is_text

FOLDERS = frozenset(
    {"path", "folder", "images", "videos", "video_folders", "gsub", "start_from", "model", "pretrained"}
)
"""Keys that may name a folder. A file may be named by any key: a name that a file beside the config has is no accident."""
MADE = frozenset({"name", "runs_dir", "unpack", "cache", "kind", "method"})
"""Keys of what a run makes itself, or that never name a file."""
MADE_BY = frozenset({"clip_world", "frame_store"})
"""Kinds whose `folder` is written by the run."""

log = logging.getLogger(__name__)


def with_files_beside(value: Any, folder: Path, key: str = "") -> Any:
    """A plain config in which names that exist beside it, in `folder`, and not in the current folder, are whole paths.

    Each is told in the log. Names that exist in neither place stay as they are.
    """
    if isinstance(value, Mapping):
        made = MADE | ({"folder"} if value.get("kind") in MADE_BY else set())
        return {
            name: part if name in made else with_files_beside(part, folder, f"{key}.{name}" if key else str(name))
            for name, part in value.items()
        }
    if isinstance(value, list):
        return [with_files_beside(part, folder, key) for part in value]
    if not isinstance(value, str) or not _is_only_beside(value, folder, key):
        return value
    found = str((folder / value).absolute())
    log.info("%s: %s is not in the current folder, so the one beside the config is taken: %s", key, value, found)
    return found


def _is_only_beside(text: str, folder: Path, key: str) -> bool:
    if not text.strip() or "\0" in text or not is_text(text) or text != expanded(text) or os.path.isabs(text):
        return False
    try:
        beside = folder / text
        there = beside.is_file() or (key.rpartition(".")[2] in FOLDERS and beside.is_dir())
        return there and not os.path.lexists(text)
    except (OSError, ValueError):  # too long for a name
        return False
