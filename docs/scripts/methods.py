"""Writes docs/methods.md.

.venv/bin/python docs/scripts/methods.py
"""

from pathlib import Path

from grpo_mm.tools.method_table import methods_page

if __name__ == "__main__":
    (Path(__file__).parents[1] / "methods.md").write_text(methods_page(), encoding="utf-8")
