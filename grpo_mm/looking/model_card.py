"""The model card beside the product of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_mm.outside import finite_number, plain

LONGEST_CELL = 200
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_MARKDOWN = re.compile(r"[\\`*{}\[\]()#+!|~<>&$:@]|(?<!\w)_|_(?!\w)|^\d+(?=[.)]\s)|^[-=]+(?=\s|$)", re.ASCII)


def write_model_card(folder: Path, summary: Mapping[str, Any], *, usage: Mapping[str, str]) -> Path:
    """Writes README.md: what it is, how to load it without this package, held-out scores before and after.

    `usage`: "base_model", the "library" that loads the product, the "code" that does, and where it makes no pictures the
    hub's "tags" for what it does.
    """
    before, after = summary["eval_before"], summary["eval_after"]
    rows = [f"| {markdown(k)} | {_number(before.get(k))} | {_number(after[k])} |" for k in after]
    table = (
        "\n".join(["| held-out | before | after |", "| --- | --- | --- |", *rows]) if rows else "No held-out prompts."
    )
    base = usage["base_model"]
    header = [
        "---",
        f"library_name: {usage['library']}",
        f"tags: [{usage.get('tags', 'text-to-image')}, grpo, grpo_mm]",
    ]
    on_hub = HUB_NAME.fullmatch(base) is not None and not Path(base).exists()
    if on_hub:
        header.append(f"base_model: {base}")
    text = "\n".join(
        [
            *header,
            "---",
            f"# {markdown(summary['name'])}",
            "",
            # Of a folder only its name: where it lies is nobody's business, and stands in the code where that needs it.
            f"{base if on_hub else markdown(Path(base).name)}, aligned in {summary['steps']} steps of group-relative policy "
            f"optimisation with grpo_mm {markdown(summary.get('versions', {}).get('grpo_mm', ''))}.",
            "",
            "```python",
            usage["code"],
            "```",
            "",
            table,
            "",
            *_changes(summary.get("changes") or []),
        ]
    )
    path = folder / "README.md"
    path.write_text(text, encoding="utf-8")
    return path


def _changes(said: Sequence[Any]) -> list[str]:
    """What was changed while the run was trained, so that nobody takes its config for that of all steps."""
    return ["Changed on the way:", "", *(f"- {markdown(one)}" for one in said), ""] if said else []


def markdown(text: Any) -> str:
    """A foreign text as one line of words: no markup, no link, no cell of a table; what is too long is cut off."""
    words = plain(" ".join(str(text).split()), LONGEST_CELL)
    return _MARKDOWN.sub(lambda found: "".join(f"&#{ord(c)};" for c in found[0]), words)


def _number(value: Any) -> str:
    number = finite_number(value)
    return "–" if number is None else f"{number:.4f}" if abs(number) < 1e9 else f"{number:.4g}"
