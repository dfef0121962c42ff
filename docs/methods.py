"""Writes docs/methods.md.

.venv/bin/python docs/methods.py
"""

from pathlib import Path

from grpo_mm.tools.method_table import methods_page

if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(methods_page(), encoding="utf-8")
