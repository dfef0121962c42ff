"""Sample sheets: a few pictures of each step beside the curves, so that a person sees what is being reinforced.

A sheet is a grid of tiles in a PNG and the words to it in a JSON of the same name. Of clips a tile is a row of frames with their
times, and the clip itself a file in `clips/`. The picture that a prompt brings, as that to be edited, stands in front of what was made
of it. Equal input gives equal bytes, so a resumed run writes the same files again.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from grpo_mm.looking.clips.video_file import ending
from grpo_mm.looking.own_files import MAX_NAME, is_own_file, is_step, json_object, numbers
from grpo_mm.outside import plain, reason, shown

MAX_TILE_PX = 256
MAX_ROW_PX = 640
"""Of a tile that is a clip's frames in a row."""
FILM = re.compile(r"clips/[\w-]{1,80}\.(?:mp4|webp)")
"""How a sheet names the file of a clip."""
MAX_COLUMNS = 24
"""A wider group keeps its best and its worst dozen."""
GAP_PX = 2
MAX_CELLS, MAX_PIXELS, MAX_PROMPT = 4096, 300 * 10**6, 4000
"""Of a sheet that is read: more is none of ours."""


SETTLED = ("depth", "advantage", "compared", "value", "low", "high")


@dataclass(frozen=True)
class Cell:
    """One tile of a sheet and what is known about it."""

    prompt: str
    rewards: Mapping[str, float | None]
    """By name; None = could not be scored."""
    advantage: float | None
    """None on an evaluation sheet, and where it was not a number."""
    box_px: tuple[int, int, int, int]
    """Left, top, right, bottom in the PNG."""
    truth: str | None = None
    """What the picture is to show, in words; None where nothing is known beside the prompt."""
    settled: Sequence[Mapping[str, Any]] = ()
    """Of a tree, what settled the advantage at each depth: see `write_rollout_sheet`."""
    source_px: tuple[int, int, int, int] | None = None
    """Where in the PNG the picture is that the prompt brings; None without one."""
    film: Path | None = None
    """The clip to the tile, to be played."""


@dataclass(frozen=True)
class Sheet:
    """What `read_sheets` finds. Example: Sheet("step_000010", "rollout", 10, Path("…/step_000010.png"), rows)."""

    name: str
    kind: Literal["rollout", "eval"]
    step: int
    png: Path
    rows: tuple[tuple[Cell, ...], ...]
    """A rollout sheet has a row per group, best advantage first."""
    row_sizes: tuple[int, ...]
    """How many samples each row stands for: more than its cells where a group was too wide."""

    @property
    def cells(self) -> list[Cell]:
        return [cell for row in self.rows for cell in row]


def write_rollout_sheet(
    folder: Path,
    *,
    step: int,
    images_MCHW: Tensor,
    prompt_M: Tensor,
    prompts: Sequence[str],
    advantage_M: Tensor,
    rewards: Mapping[str, Tensor],
    max_groups: int = 6,
    truths: Sequence[str | None] | None = None,
    settled_M: Sequence[Sequence[Mapping[str, Any]]] | None = None,
    sources: Sequence[Tensor | None] | None = None,
    films: Sequence[bytes | None] | None = None,
) -> Path:
    """Writes `step_000010.png` and `.json` into `folder`: a row per group, its cells sorted by advantage, best first.

    Args:
        images_MCHW: uint8, 1 or 3 channels; more than 256 px are scaled down.
        prompt_M: int, index into `prompts`; groups may have any size. The first `max_groups` are shown.
        advantage_M: NaN sorts last.
        rewards: each [M]; NaN = could not be scored or does not apply. The report shows the first number there is.
        truths: aligned with `prompts`: what a picture is to show, in words.
        sources: aligned with `prompts`: the picture that each brings, uint8 [3, h, w], in front of its row; None: no prompt brings any.
        films: of clips, whose rows of frames the images are then (up to 640 px), the file of each to play (`clip_bytes`).
        settled_M: where advantages differ from action to action, for each picture what settled them: {"depth", "advantage",
            "compared" (values that it was compared with, its own among them), "value", "low", "high"}.

    Raises:
        ValueError: lengths differ, or the images are not uint8 [M, C, H, W].
    """
    _check(images_MCHW, {"prompt_M": prompt_M, "advantage_M": advantage_M, **rewards})
    prompt, advantage = prompt_M.tolist(), advantage_M.tolist()
    best_first = sorted(range(len(prompt)), key=lambda m: math.inf if math.isnan(advantage[m]) else -advantage[m])
    groups = [[m for m in best_first if prompt[m] == p] for p in sorted(set(prompt))[:max_groups]]
    shown = [_best_and_worst(members) for members in groups]
    names = _names(f"step_{step:06d}", films, [m for cells in shown for m in cells])
    words = {
        "groups": [
            {
                "prompt": prompts[prompt[members[0]]],
                **_has_source(sources, prompt[members[0]]),
                "truth": None if truths is None else truths[prompt[members[0]]],
                "size": len(members),
                "cells": [
                    {"advantage": _plain(advantage[m]), "rewards": _rewards_of(rewards, m)}
                    | ({"settled": [_settled(one) for one in settled_M[m]]} if settled_M is not None else {})
                    | ({"film": names[m]} if m in names else {})
                    for m in cells
                ],
            }
            for members, cells in zip(groups, shown)
        ]
    }
    fronts = [[] if sources is None else [sources[prompt[cells[0]]]] for cells in shown]
    grid: list[list[_Entry]] = [[*front, *cells] for front, cells in zip(fronts, shown)]
    head = {"step": step, "kind": "rollout"} | ({} if sources is None else {"sources": True})
    _write_films(folder, names, films)
    return _write(folder, f"step_{step:06d}", images_MCHW, grid, head, words, max_px=_most(films))


def write_eval_sheet(
    folder: Path,
    *,
    name: str,
    step: int,
    images_MCHW: Tensor,
    prompts: Sequence[str],
    rewards: Mapping[str, Tensor],
    truths: Sequence[str | None] | None = None,
    sources: Sequence[Tensor | None] | None = None,
    films: Sequence[bytes | None] | None = None,
) -> Path:
    """Writes `<name>.png` and `.json` into `folder`, cells row by row.

    Args:
        name: "eval_before", "eval_after" or "eval_step_000020".
        prompts: aligned with the images, M of them; `truths` as well: what each is to show, in words; `sources` and `films`
            as for a rollout sheet.

    Raises:
        ValueError: lengths differ, or the images are not uint8 [M, C, H, W].
    """
    _check(images_MCHW, {"prompts": prompts, **rewards})
    count = len(prompts)
    columns = max(1, min(8, math.ceil(math.sqrt(count))))
    if sources is not None or films is not None:  # wider tiles, or two of them
        columns = max(1, columns // 2)
    tiles: list[list[_Entry]] = [[m] if sources is None else [sources[m], m] for m in range(count)]
    grid = [sum(tiles[start : start + columns], []) for start in range(0, count, columns)]
    true, names = [None] * count if truths is None else truths, _names(name, films, range(count))
    words = {
        "cells": [
            {"prompt": prompts[m], "truth": true[m], "rewards": _rewards_of(rewards, m)}
            | _has_source(sources, m)
            | ({"film": names[m]} if m in names else {})
            for m in range(count)
        ]
    }
    head = {"step": step, "kind": "eval"} | ({} if sources is None else {"sources": True})
    _write_films(folder, names, films)
    return _write(folder, name, images_MCHW, grid, head, words, max_px=_most(films))


_Entry = int | Tensor | None
"""A tile: the number of an image, a prompt's own picture, or nothing where a prompt brings none."""


def _most(films: Any) -> int:
    return MAX_TILE_PX if films is None else MAX_ROW_PX


def _has_source(sources: Sequence[Tensor | None] | None, p: int) -> dict[str, bool]:
    return {} if sources is None else {"source": sources[p] is not None}


def _names(sheet: str, films: Sequence[bytes | None] | None, cells: Sequence[int]) -> dict[int, str]:
    """The file of each cell that has a clip, from the folder of samples."""
    if films is None:
        return {}
    return {m: f"clips/{sheet}_{i:03d}{ending()}" for i, m in enumerate(cells) if films[m] is not None}


def _write_films(folder: Path, names: Mapping[int, str], films: Sequence[bytes | None] | None) -> None:
    for m, name in names.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".writing_{path.name}")
        aside.write_bytes((films or [])[m] or b"")
        os.replace(aside, path)


def read_sheets(folder: Path, damage: list[str] | None = None) -> list[Sheet]:
    """All whole sheets in a folder, by step; one whose PNG is missing or whose JSON is damaged is left out, and named in
    `damage`."""
    sheets = []
    for path in sorted(folder.glob("*.json")):
        try:
            sheets.append(read_sheet(path))
        except Exception as error:  # whatever a damaged sheet makes of its reader
            if damage is not None:
                damage.append(f"samples/{plain(path.name, MAX_NAME)} is left out ({reason(error)})")
    return sorted(sheets, key=lambda sheet: sheet.step)


def _check(images_MCHW: Tensor, aligned: Mapping[str, Tensor | Sequence[str]]) -> None:
    dtype, shape = images_MCHW.dtype, tuple(images_MCHW.shape)
    if dtype != torch.uint8 or len(shape) != 4 or shape[1] not in (1, 3):
        raise ValueError(f"images have dtype {dtype} and shape {shape}; wanted torch.uint8 [M, 1 or 3, H, W].")
    for name, values in aligned.items():
        if len(values) != len(images_MCHW):
            raise ValueError(f"{name} has {len(values)} entries for {len(images_MCHW)} images; wanted one for each.")


def _best_and_worst(members: list[int]) -> list[int]:
    half = MAX_COLUMNS // 2
    return members if len(members) <= MAX_COLUMNS else members[:half] + members[-half:]


def _plain(value: float) -> float | None:
    """JSON has no NaN; six digits are what a float32 holds."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _rewards_of(rewards: Mapping[str, Tensor], m: int) -> dict[str, float | None]:
    return {name: _plain(float(value_M[m])) for name, value_M in rewards.items()}


def _write(
    folder: Path, name: str, images_MCHW: Tensor, grid: list[list[_Entry]], head: dict[str, Any], words: dict[str, Any],
    *, max_px: int,
) -> Path:  # fmt: skip
    height, width = images_MCHW.shape[2:]
    shrink = min(1.0, max_px / max(height, width))
    tile_px = [max(1, round(height * shrink)), max(1, round(width * shrink))]
    columns = max((len(row) for row in grid), default=0)
    layout = {"tile_px": tile_px, "gap_px": GAP_PX, "columns": columns}
    size_px = (columns * (tile_px[1] + GAP_PX), len(grid) * (tile_px[0] + GAP_PX))
    sheet = Image.new("RGB", size_px if all(size_px) else (1, 1), "white")
    for r, row in enumerate(grid):
        for c, entry in enumerate(row):
            if entry is not None:
                tile = _tile(images_MCHW[entry], tile_px) if isinstance(entry, int) else _within(entry, tile_px)
                sheet.paste(tile, _box(layout, r, c)[:2])
    folder.mkdir(parents=True, exist_ok=True)
    png, aside = folder / f"{name}.png", folder / f".writing_{name}"
    sheet.save(aside, format="PNG")
    os.replace(aside, png)
    aside.write_text(json.dumps(head | layout | words, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    os.replace(aside, png.with_suffix(".json"))
    return png


def _tile(image_CHW: Tensor, tile_px: list[int]) -> Image.Image:
    height, width = tile_px
    tile = Image.fromarray(image_CHW.expand(3, -1, -1).permute(1, 2, 0).contiguous().cpu().numpy())
    return tile if tile.size == (width, height) else tile.resize((width, height), Image.Resampling.LANCZOS)


def _within(picture_CHW: Tensor, tile_px: list[int]) -> Image.Image:
    """A picture of any size in its own shape, in the middle of a white tile."""
    height, width = tile_px
    picture = Image.fromarray(picture_CHW.permute(1, 2, 0).contiguous().cpu().numpy())
    shrink = min(width / picture.width, height / picture.height)
    size = (max(1, round(picture.width * shrink)), max(1, round(picture.height * shrink)))
    tile = Image.new("RGB", (width, height), "white")
    small = picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)
    tile.paste(small, ((width - size[0]) // 2, (height - size[1]) // 2))
    return tile


def _box(layout: Mapping[str, Any], row: int, column: int) -> tuple[int, int, int, int]:
    (height, width), gap = layout["tile_px"], layout["gap_px"]
    left, top = column * (width + gap), row * (height + gap)
    return left, top, left + width, top + height


def read_sheet(path: Path) -> Sheet:
    said: list[str] = []
    found = json_object(path, path.parent, said)
    if said:
        raise ValueError(said[0])
    if found["kind"] not in ("rollout", "eval") or not is_step(found["step"]):
        raise ValueError(f"it is a {shown(found['kind'], 40)} of step {shown(found['step'], 40)}")
    png = path.with_suffix(".png")
    if found["kind"] == "rollout":
        rows = [
            [
                cell | {"prompt": group["prompt"], "truth": group.get("truth"), "source": group.get("source")}
                for cell in group["cells"]
            ]
            for group in found["groups"]
        ]
        sizes = [group["size"] for group in found["groups"]]
    else:
        step = max(1, found["columns"] // (2 if found.get("sources") is True else 1))
        rows = [found["cells"][start : start + step] for start in range(0, len(found["cells"]), step)]
        sizes = [len(row) for row in rows]
    if sum(map(len, rows)) > MAX_CELLS:
        raise ValueError(f"it has {sum(map(len, rows))} tiles, more than {MAX_CELLS}")
    width, height = _png_size(png)
    cells = tuple(
        tuple(_cell(words, *_places(found, r, c), folder=path.parent) for c, words in enumerate(row))
        for r, row in enumerate(rows)
    )
    for box in (box for row in cells for cell in row for box in (cell.box_px, cell.source_px) if box is not None):
        left, top, right, bottom = box
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise ValueError(f"a tile lies at {list(box)}, outside of its {width} × {height} pixels")
    if not all(is_step(size) for size in sizes) or not all(rows):
        raise ValueError("a row has no tile, or no size")
    return Sheet(path.stem, found["kind"], found["step"], png, cells, tuple(sizes))


Box = tuple[int, int, int, int]


def _places(found: Mapping[str, Any], row: int, column: int) -> tuple[Box, Box | None]:
    """Of a cell, and of the picture in front of it, where the sheet has some: of a group one for all of its cells."""
    if found.get("sources") is not True:
        return _box(found, row, column), None
    if found["kind"] == "rollout":
        return _box(found, row, column + 1), _box(found, row, 0)
    return _box(found, row, 2 * column + 1), _box(found, row, 2 * column)


def _film(name: Any, folder: Path) -> Path | None:
    """A clip's file; None where it is none of this folder, or is gone."""
    if not isinstance(name, str) or not FILM.fullmatch(name):
        return None
    return folder / name if is_own_file(folder / name, folder) else None


def _cell(words: Mapping[str, Any], box_px: Box, source_px: Box | None, *, folder: Path) -> Cell:
    """Raises ValueError, KeyError or TypeError for what is no tile."""
    advantage = words.get("advantage")
    if not isinstance(words["prompt"], str) or numbers({"advantage": advantage}) is None:
        raise ValueError(f"the prompt is {shown(words['prompt'], 40)}")
    truth, settled = words.get("truth"), words.get("settled") or ()
    if not isinstance(truth, str | None) or len(settled) > MAX_CELLS:
        raise ValueError(f"the truth is {shown(truth, 40)}")
    return Cell(
        words["prompt"][:MAX_PROMPT], numbers(words["rewards"]), advantage, box_px,
        None if truth is None else truth[:MAX_PROMPT], [numbers({key: one[key] for key in SETTLED}) for one in settled],
        source_px if words.get("source") is True else None, _film(words.get("film"), folder),
    )  # fmt: skip


def _settled(one: Mapping[str, Any]) -> dict[str, float | None]:
    return {key: one[key] if one[key] is None or isinstance(one[key], int) else _plain(one[key]) for key in SETTLED}


def _png_size(png: Path) -> tuple[int, int]:
    """From its header alone. Raises ValueError or OSError for what is no PNG of this folder, or a huge one."""
    if not is_own_file(png, png.parent):
        raise ValueError(f"{shown(png.name)} is missing, or leads out of the folder")
    with Image.open(png, formats=("PNG",)) as opened:
        size = opened.size
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"{shown(png.name)} has {size[0]} × {size[1]} pixels")
    return size
