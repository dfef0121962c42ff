"""docs/methods.md: every method in a row, from the table of methods, its presets and the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grpo_mm.config.methods import METHODS, OTHERS, Method, preset
from grpo_mm.registry import entries

HEAD = """# Methods

Made by `python docs/scripts/methods.py` from the table of methods, their presets and the registry; a test fails when it is stale.
`method: NAME` in a config fills in what the preset says, and whatever the file says stands above it. A name that several papers
use is refused; its row says the key to write instead. Evidence: A the authors' or a library's code, B the text of the paper, C third
parties that quote it, D an abstract, uncertain; two letters: some of it from each.

A preset holds what the source prints of the group size, the updates of a rollout, the collector, the advantage stages and the
objective, and the weights of rewards that are part of the method. It never holds a learning rate or another setting of the
optimiser: these belong to the model and its adapter; printed ones stand in the comment of the preset. Where a source does not say
how the loss is averaged, whether there is a KL, or which std is meant, the comment says what was chosen and that it is ours.
"""

PROCESS = """## Rewards of steps

GRPO's process supervision (arXiv:2402.03300, section 4.1.3): every step's reward is compared with those of all steps of the group,
and a token earns what its step and the later ones are worth. An engine whose outputs credit single steps, and the stages

```yaml
advantage:
  - {kind: weighted_sum}
  - {kind: group_norm, key: [prompt], ddof: 1}
  - {kind: reward_to_go}
```
"""


CONFIGS = {
    "flow": "flow models",
    "edit": "edits of pictures",
    "video": "video temporal grounding",
    "spatial": "spatial and grounded reasoning",
    "vlm": "families of vision-language models",
}
"""Folder of configs -> its heading."""


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
    lines += ["", *PROCESS.splitlines()]
    for folder, title in CONFIGS.items():
        lines += ["", f"## Published settings: {title}", "", "| preset | paper | config |", "| --- | --- | --- |"]
        found = [e for e in entries("preset") if e.config.startswith(f"configs/{folder}/")]
        lines += [f"| `{e.kind}` | {e.paper} | [`{e.config}`](../{e.config}) |" for e in found]
    lines += ["", "## Parts", "", "| kind | role | paper | module |", "| --- | --- | --- | --- |"]
    for role in ("advantage", "objective", "strategy", "tree", "noise", "sampler", "engine"):
        lines += [f"| `{e.kind}` | {role} | {e.paper} | {_module(e.target)} |" for e in entries(role)]
    lines += ["", "## Names that several papers use", ""]
    lines += [f"- `{name}`: not here are {'; '.join(others)}." for name, others in sorted(OTHERS.items())]
    return "\n".join(lines) + "\n"


def blocks(settings: dict[str, Any]) -> list[str]:
    """The kinds that a preset is made of, in order."""
    return [part["kind"] for key in ("collector", "advantage", "objective") for part in _list(settings.get(key))]


def _list(value: Any) -> list[dict[str, Any]]:
    parts = value if isinstance(value, list) else [value] if value else []
    return [part if isinstance(part, dict) else {"kind": part} for part in parts]


def _module(target: str) -> str:
    """`module:Name` as a link to its file."""
    module, _, name = target.partition(":")
    folder = module.removeprefix("grpo_mm.") if module.split(".")[1] in ("pipelines", "rewards") else module
    return f"[`{module}`](../{folder.replace('.', '/')}.py) `{name}`"


def _row(method: Method) -> str:
    kinds = " → ".join(f"`{kind}`" for kind in blocks(preset(method.key)))
    link = f"[{method.arxiv}](https://arxiv.org/abs/{method.arxiv})"
    name = method.key if method.name in OTHERS else method.name
    return (
        f"| `{name}` | {method.title}: {method.changes} | {kinds} | {link} | {method.grade} | "
        f"[`{method.file.name}`](../grpo_mm/presets/{method.file.name}) | [`{Path(method.tested).name}`](../{method.tested}) |"
    )
