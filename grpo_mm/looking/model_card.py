"""The model card beside the product of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_model_card(folder: Path, summary: Mapping[str, Any], *, usage: Mapping[str, str]) -> Path:
    """Writes README.md: what it is, how to load it without this package, held-out scores before and after.

    `usage`: "base_model", the "library" that loads the product, the "code" that does, and where it makes no pictures the
    hub's "tags" for what it does.
    """
    before, after = summary["eval_before"], summary["eval_after"]
    rows = [f"| {k} | {_number(before.get(k))} | {_number(after[k])} |" for k in after]
    table = (
        "\n".join(["| held-out | before | after |", "| --- | --- | --- |", *rows]) if rows else "No held-out prompts."
    )
    base = usage["base_model"]
    header = [
        "---",
        f"library_name: {usage['library']}",
        f"tags: [{usage.get('tags', 'text-to-image')}, grpo, grpo_mm]",
    ]
    if not base.startswith((".", "/")) and base.count("/") == 1:
        header.append(f"base_model: {base}")
    text = "\n".join(
        [
            *header,
            "---",
            f"# {summary['name']}",
            "",
            f"{base}, aligned in {summary['steps']} steps of group-relative policy optimisation with grpo_mm "
            f"{summary.get('versions', {}).get('grpo_mm', '')}.",
            "",
            "```python",
            usage["code"],
            "```",
            "",
            table,
            "",
        ]
    )
    path = folder / "README.md"
    path.write_text(text, encoding="utf-8")
    return path


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
