"""docs/methods.md: every method in a row, from the table of methods, its presets and the registry."""

from __future__ import annotations

from typing import Any

from grpo_mm.methods import METHODS, OTHERS, Method, preset
from grpo_mm.registry import entries

HEAD = """# Methods

Made by `python docs/methods.py` from the table of methods, their presets and the registry; a test fails when it is stale.
`method: NAME` in a config fills in what the preset says, and whatever the file says stands above it. Evidence: A the authors' code,
B the text of the paper, C third parties that quote it, D an abstract, uncertain.
"""


def methods_page() -> str:
    """The whole page as Markdown."""
    lines = [
        HEAD,
        "## Estimators and objectives",
        "",
        "| method | changes | blocks | paper | grade | preset | tested in |",
    ]
    lines.append("| --- " * 7 + "|")
    lines += [_row(method) for method in sorted(METHODS, key=lambda m: m.key)]
    lines += ["", "## Flow models", "", "| preset | paper | config |", "| --- | --- | --- |"]
    lines += [f"| `{e.kind}` | {e.paper} | `{e.config}` |" for e in entries("preset")]
    lines += ["", "## Parts", "", "| kind | role | paper | module |", "| --- | --- | --- | --- |"]
    for role in ("advantage", "objective", "strategy", "tree", "noise", "sampler", "engine"):
        lines += [f"| `{e.kind}` | {role} | {e.paper} | `{e.target}` |" for e in entries(role)]
    lines += ["", "## Names that several papers use", ""]
    lines += [f"- `{name}`: not here are {'; '.join(others)}." for name, others in sorted(OTHERS.items())]
    return "\n".join(lines) + "\n"


def blocks(settings: dict[str, Any]) -> list[str]:
    """The kinds that a preset is made of, in order."""
    return [part["kind"] for key in ("collector", "advantage", "objective") for part in _list(settings.get(key))]


def _list(value: Any) -> list[dict[str, Any]]:
    parts = value if isinstance(value, list) else [value] if value else []
    return [part if isinstance(part, dict) else {"kind": part} for part in parts]


def _row(method: Method) -> str:
    kinds = " → ".join(f"`{kind}`" for kind in blocks(preset(method.key)))
    link = f"[{method.arxiv}](https://arxiv.org/abs/{method.arxiv})"
    return (
        f"| `{method.name}` | {method.title}: {method.changes} | {kinds} | {link} | {method.grade} | "
        f"`grpo_mm/presets/{method.file.name}` | `{method.tested}` |"
    )
