"""changes.jsonl: what was changed of a run on its way, and from which step on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from grpo_mm.looking.own_files import json_rows

FILE = "changes.jsonl"


@dataclass(frozen=True)
class Change:
    """A line of changes.jsonl. Example: Change(20, "2026-11-29T10:00:00+00:00", "optim.lr", "0.001", "0.0005")."""

    step: int
    """After this many steps it took effect."""
    when: str
    key: str
    there: str
    here: str

    def __str__(self) -> str:
        return f"after step {self.step}: {self.key} {self.there} → {self.here}"


def read_changes(folder: Path, damage: list[str] | None = None) -> list[Change]:
    """The whole lines of a run folder's changes.jsonl; others are named in `damage`."""
    said: list[str] = [] if damage is None else damage
    rows = json_rows(folder / FILE, said)
    names = ("when", "key", "there", "here")
    whole = [
        row for row in rows if isinstance(row.get("step"), int) and all(isinstance(row.get(n), str) for n in names)
    ]
    if len(whole) < len(rows):
        said.append(f"{FILE}: {len(rows) - len(whole)} lines tell of no change; they were skipped")
    return [Change(row["step"], *(row[name] for name in names)) for row in whole]
