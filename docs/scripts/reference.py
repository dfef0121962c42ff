"""Writes docs/reference.md.

.venv/bin/python docs/scripts/reference.py
"""

from pathlib import Path

from grpo_mm.tools.keys.reference import reference_page

if __name__ == "__main__":
    (Path(__file__).parents[1] / "reference.md").write_text(reference_page(), encoding="utf-8")
