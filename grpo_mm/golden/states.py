"""What golden pictures said of scorers, kept in the run folder for its report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from grpo_mm.golden.comparing import State
from grpo_mm.looking.own_files import SCORERS


def write_states(folder: Path, states: Mapping[str, State]) -> None:
    """Name -> class, whether it is verified, and in words; no file where no scorer has golden pictures, also of an earlier start."""
    if not states:
        (folder / SCORERS).unlink(missing_ok=True)
    else:
        rows = {
            name: {"kind": state.kind, "verified": state.verified, "said": state.said} for name, state in states.items()
        }
        (folder / SCORERS).write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
