"""The model card beside the product of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_mm.looking.origin import Origin
from grpo_mm.looking.same_figures import shown_once
from grpo_mm.outside import finite_number, plain

LONGEST_CELL, LONGEST_LINE, MOST_LINES = 200, 2000, 60
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_MARKDOWN = re.compile(r"[\\`*{}\[\]()#+!|~<>&$:@]|(?<!\w)_|_(?!\w)|^\d+(?=[.)]\s)|^[-=]+(?=\s|$)", re.ASCII)


def write_model_card(
    folder: Path,
    summary: Mapping[str, Any],
    *,
    usage: Mapping[str, str],
    origin: Origin | None = None,
    asked: Mapping[str, str] = {},  # noqa: B006
) -> Path:
    """Writes README.md: what it is, how to load it without this package, held-out scores before and after.

    Args:
        usage: "base_model", the "library" that loads the product, the "code" that does, the settings that the code draws at in
            words ("drawn"), and unless it makes pictures of texts the hub's "tags" for what it does.
        origin: which weights of the run they are.
        asked: source → template, where training put one around its questions.
    """
    before, after = summary["eval_before"], summary["eval_after"]
    rows = [
        f"| {markdown(' = '.join(names))} | {_number(before.get(name))} | {_number(after[name])} |"
        for name, names in shown_once(list(after), before, after).items()
    ]
    table = (
        "\n".join(["| held-out | before | after |", "| --- | --- | --- |", *rows])
        if rows
        else "These weights were not evaluated on the held-out prompts."
        if before
        else "No held-out prompts."
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
            *(_of(origin) if origin is not None else []),
            "```python",
            usage["code"],
            "```",
            "",
            *(_asked(asked) if asked else []),
            *([f"{usage['drawn']} These are the settings of the run's evaluation.", ""] if "drawn" in usage else []),
            table,
            "",
            *_verdict(summary.get("verdict")),
            *_changes(summary.get("changes") or []),
        ]
    )
    path = folder / "README.md"
    path.write_text(text, encoding="utf-8")
    return path


def _verdict(found: Any) -> list[str]:
    """The gain with its error and the number of prompts, and what else moved: a table alone promises more than it knows."""
    sentence = found.get("sentence") if isinstance(found, Mapping) else None
    if not sentence:
        return []
    words = markdown(sentence).replace("&#58; ", ": ")  # a colon before a blank begins no link
    for sign in "()+":  # within a sentence these are no markup
        words = words.replace(f"&#{ord(sign)};", sign)
    return [words, ""]


def _changes(said: Sequence[Any]) -> list[str]:
    """What was changed while the run was trained, so that nobody takes its config for that of all steps."""
    return ["Changed on the way:", "", *(f"- {markdown(one)}" for one in said), ""] if said else []


def _of(origin: Origin) -> list[str]:
    better = re.sub(r"grpo-mm .+", r"`\g<0>`", origin.better() or "")
    return [f"These are the {markdown(origin.words())}." + (f" Within the run, {better}." if better else ""), ""]


def _asked(templates: Mapping[str, str]) -> list[str]:
    """As indented code, which needs no escapes."""
    lines = ["Its questions were put like this in training; ask it the same way:", ""]
    for template in dict.fromkeys(templates.values()):
        lines += [*(f"    {plain(line, LONGEST_LINE)}" for line in template.splitlines()[:MOST_LINES]), ""]
    return lines


def markdown(text: Any) -> str:
    """A foreign text as one line of words: no markup, no link, no cell of a table; what is too long is cut off."""
    words = plain(" ".join(str(text).split()), LONGEST_CELL)
    return _MARKDOWN.sub(lambda found: "".join(f"&#{ord(c)};" for c in found[0]), words)


def _number(value: Any) -> str:
    number = finite_number(value)
    return "–" if number is None else f"{number:.4f}" if abs(number) < 1e9 else f"{number:.4g}"
