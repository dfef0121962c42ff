"""A sheet or a transcript of a run folder as a table: for programs that show tables and pictures of their own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from grpo_mm.looking.samples import read_sheet

MAX_ROWS, MAX_CELL = 200, 4000
"""Of a table, and characters of a text in it; the rest is in the run folder, which the caption says."""


@dataclass(frozen=True)
class SampleTable:
    """What one file of samples shows. Example: columns ("prompt", "shape", "advantage"), rows (("a red circle", 0.5, -1.2),).

    Where something is known beside the prompt there is a column "truth", and where the advantage of a picture was settled at
    several depths of a tree, "why".
    """

    kind: str
    """rollout or eval."""
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | None, ...], ...]
    pictures: tuple[Image.Image | None, ...]
    """One for each row, where the row has one: what was sampled, or what was asked about."""
    sheet: Image.Image | None = None
    """All pictures in one, where a picture is what is sampled."""


def sample_table(folder: Path, name: str) -> SampleTable | None:
    """Of `name`.png and .json, or `name`.jsonl, in the folder of samples; None where neither is there.

    Raises:
        OSError, ValueError, KeyError, TypeError: a file that this run did not write.
    """
    if (folder / f"{name}.png").is_file():
        return _of_sheet(folder / f"{name}.json")
    path = folder / f"{name}.jsonl"
    return _of_transcript(path) if path.is_file() else None


def _of_sheet(path: Path) -> SampleTable:
    sheet = read_sheet(path)
    with Image.open(sheet.png) as opened:
        png = opened.convert("RGB")
    rewards = list(dict.fromkeys(name for cell in sheet.cells for name in cell.rewards))
    cells = sheet.cells[:MAX_ROWS]
    has_truth, has_depths = any(cell.truth for cell in sheet.cells), any(cell.settled for cell in sheet.cells)
    rows = tuple(
        (
            cell.prompt, *([_short(cell.truth)] if has_truth else []), *(cell.rewards.get(name) for name in rewards), cell.advantage,
            *(["; ".join(map(_depth, cell.settled))] if has_depths else []),
        )
        for cell in cells
    )  # fmt: skip
    crops = tuple(png.crop(cell.box_px) for cell in cells)
    caption = _caption(path.stem, len(sheet.cells))
    columns = ("prompt", *["truth"] * has_truth, *rewards, "advantage", *["why"] * has_depths)
    return SampleTable(sheet.kind, caption, columns, rows, crops, png)


def _depth(one: Mapping[str, Any]) -> str:
    """ "depth 2: +0.31, one of 3, 0.700 against 0.210 to 0.800"."""
    numbers = [one[name] for name in ("value", "low", "high")]
    values = "" if None in numbers else ", {:.3f} against {:.3f} to {:.3f}".format(*numbers)
    return f"depth {one['depth']}: {one['advantage']:+.2f}, one of {one['compared']}{values}"


def _of_transcript(path: Path) -> SampleTable:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    answers = [(line, answer) for line in lines for answer in line["answers"]]
    rewards = list(dict.fromkeys(name for _, answer in answers for name in answer["rewards"]))
    # What else a question says in words, such as what is right, which a reward may be called as well.
    more = [key for key in (lines[0] if lines else {}) if key not in ("id", "question", "kind")]
    more = [key for key in more if any(isinstance(line.get(key), str) for line in lines)]
    rows = tuple(
        (
            line["id"], _short(line["question"]), *(_short(line.get(key)) for key in more), _short(answer["text"]),
            *(answer["rewards"].get(name) for name in rewards), answer["advantage"],
        )
        for line, answer in answers[:MAX_ROWS]
    )  # fmt: skip
    media = {line["picture"]["file"] for line in lines if line["picture"]}
    opened = {file: _open(path.parent / file) for file in media}
    pictures = tuple(opened[line["picture"]["file"]] if line["picture"] else None for line, _ in answers[:MAX_ROWS])
    named = ("truth" if key == "right" else key for key in more)
    columns = ("id", "question", *named, "answer", *rewards, "advantage")
    return SampleTable(
        lines[0]["kind"] if lines else "eval", _caption(path.stem, len(answers)), columns, rows, pictures
    )


def _open(path: Path) -> Image.Image | None:
    if not path.is_file():
        return None
    with Image.open(path) as opened:
        return opened.convert("RGB")


def _short(text: Any) -> Any:
    return f"{text[:MAX_CELL]} …" if isinstance(text, str) and len(text) > MAX_CELL else text


def _caption(name: str, count: int) -> str:
    return f"samples/{name}" if count <= MAX_ROWS else f"samples/{name}: the first {MAX_ROWS} of {count}"


def markdown(table: SampleTable) -> str:
    """The table for programs that read Markdown; what stands in it is no markup."""
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return table.caption + "\n\n" + "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    for sign, plain in (
        ("&", "&amp;"),
        ("<", "&lt;"),
        (">", "&gt;"),
        ("\\", "\\\\"),
        ("|", "\\|"),
        ("*", "\\*"),
        ("_", "\\_"),
        ("`", "\\`"),
    ):
        text = text.replace(sign, plain)
    return " ".join(text.split())


def flat_settings(config: object, prefix: str = "") -> dict[str, bool | int | float | str]:
    """{"optim": {"lr": 1e-4}} → {"optim.lr": 1e-4}; lists and None as text."""
    if isinstance(config, dict) and config:
        return {
            name: value
            for key, part in config.items()
            for name, value in flat_settings(part, f"{prefix}.{key}" if prefix else str(key)).items()
        }
    if isinstance(config, Sequence) and not isinstance(config, str) and any(isinstance(part, dict) for part in config):
        return flat_settings({str(i): part for i, part in enumerate(config)}, prefix)
    return {prefix: config if isinstance(config, (bool, int, float, str)) else str(config)}
