"""Writes docs/memory.md: about ten seconds of processor time a config. Names such as flow/dance_flux print those rows only.

.venv/bin/python docs/scripts/memory.py
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from grpo_mm.config.run_config import read
from grpo_mm.errors import ConfigError
from grpo_mm.ledger.page import HEAD, line_of, row, table_head
from grpo_mm.training.forecast import ledger_of, plan_of

DOCS = Path(__file__).parents[1]
FOLDERS = ("flow", "edit", "clips", "vlm", "video", "spatial", "cards", "own_data", "quickstart", "bench")


def page(only: Sequence[str]) -> Iterator[str]:
    """Its lines, as they are counted; `only` of these configs, () for all that ship."""
    yield from HEAD
    yield from table_head()
    for folder in FOLDERS:
        for path in sorted((DOCS.parent / "configs" / folder).glob("*.yaml")):
            name = f"{folder}/{path.stem}"
            if not only or name in only:
                yield line_of(_cells(name, path))


def _cells(name: str, path: Path) -> list[str]:
    try:
        config = read(path, unset=[])
        ledger = ledger_of(config, plan_of(config, kind="cuda"))
    except ConfigError as error:
        return [name, str(error).replace("|", "/")]
    return [name, "its policy keeps no ledger"] if ledger is None else row(name, ledger).cells()


if __name__ == "__main__":
    lines = []
    for line in page(sys.argv[1:]):
        print(line, flush=True)
        lines.append(line)
    if not sys.argv[1:]:
        (DOCS / "memory.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
