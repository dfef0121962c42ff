"""Writes docs/memory.md: about ten seconds of processor time a config. Names such as flow/dance_flux print those rows only.

.venv/bin/python docs/scripts/memory.py
"""

import sys
from pathlib import Path

from grpo_mm.tools.memory_page import memory_page

if __name__ == "__main__":
    docs = Path(__file__).parents[1]
    lines = []
    for line in memory_page(docs.parent / "configs", sys.argv[1:]):
        print(line, flush=True)
        lines.append(line)
    if not sys.argv[1:]:
        (docs / "memory.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
