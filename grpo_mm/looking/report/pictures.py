"""Sample sheets as tiles for the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from grpo_mm.looking.report.changes import by_change, change_between, counted_changes, spread_in_words
from grpo_mm.looking.report.words import score, sign, signed
from grpo_mm.looking.samples import MAX_ROW_PX, Sheet

FILM_BYTES = 24 * 2**20
"""Of all clips that stand in the page itself; those with the largest change come first, others are played from beside it."""
PIXEL_ART_PX = 96
"""Tiles up to this size are enlarged with hard pixels; larger ones are photographs."""


def before_and_after(evals: Sequence[Sheet]) -> dict[str, Any] | None:
    """The same prompts before training and at the last evaluation, in pairs, the largest change first."""
    before = next((sheet for sheet in evals if sheet.name == "eval_before"), None)
    after = next((sheet for sheet in reversed(evals) if sheet is not before), None)
    if before is None and after is None:
        return None
    left, right = (_by_prompt(sheet) if sheet else {} for sheet in (before, after))
    pairs = []
    for key in left | right:
        sides = left.get(key), right.get(key)
        change = None if None in sides else change_between(*(side["plain"] for side in sides))
        truth = next((side["truth"] for side in sides if side and side["truth"]), None)
        source = next((side["source"] for side in sides if side and side["source"]), None)
        pairs.append({
            "prompt": key[0], "before": sides[0], "after": sides[1], "change": change, "truth": truth, "source": source,
        })  # fmt: skip
    pairs, room = by_change(pairs), FILM_BYTES
    for side in (pair[name] for pair in pairs for name in ("before", "after") if pair[name]):
        side["film"] = _film(side["film"], room)
        room -= len(side["film"]["src"]) if side["film"] and side["film"]["inside"] else 0
    return {
        "after_step": after.step if after else None,
        "has_before": before is not None,
        "pairs": pairs,
        "changes": counted_changes(pairs),
        "has_films": any(side and side["film"] for pair in pairs for side in (pair["before"], pair["after"])),
        "has_sources": any(pair["source"] for pair in pairs),
    }


def _by_prompt(sheet: Sheet) -> dict[tuple[str, int], dict[str, Any]]:
    """Tiles by prompt and by how often that prompt came before."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for cell, tile in zip(sheet.cells, _tiles(sheet, max_px=_largest(sheet, 256))):
        found[cell.prompt, sum(prompt == cell.prompt for prompt, _ in found)] = tile
    return found


def rollout_strip(sheet: Sheet) -> dict[str, Any]:
    """One row of tiles per group; no signal: every advantage is zero or missing."""
    tiles = iter(_tiles(sheet, max_px=_largest(sheet, 128)))
    groups = []
    for row, size in zip(sheet.rows, sheet.row_sizes):
        signal = any(cell.advantage for cell in row)
        spread = spread_in_words([cell.rewards for cell in row])
        group = {"prompt": row[0].prompt, "truth": row[0].truth, "size": size, "signal": signal, "spread": spread}
        own = [next(tiles) for _ in row]
        for tile in own:
            tile["film"] = _film(tile["film"], 0)
        groups.append(group | {"tiles": own, "source": own[0]["source"]})
    return {"step": sheet.step, "columns": max((len(row) for row in sheet.rows), default=1), "groups": groups}


def _largest(sheet: Sheet, px: int) -> int:
    """Pixels of a tile: a row of frames needs more."""
    return MAX_ROW_PX if any(cell.film for cell in sheet.cells) else px


def _film(path: Path | None, room: int) -> dict[str, Any] | None:
    """A clip to be played: within the page as far as there is room, else from the file beside it."""
    if path is None:
        return None
    kind = f"image/{path.suffix[1:]}" if path.suffix == ".webp" else f"video/{path.suffix[1:]}"
    found = {"still": path.suffix == ".webp", "kind": kind, "inside": False, "src": f"samples/clips/{path.name}"}
    if path.stat().st_size * 4 / 3 + 100 > room:
        return found
    return found | {"inside": True, "src": f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"}


def _tiles(sheet: Sheet, *, max_px: int) -> list[dict[str, Any]]:
    largest = max((abs(cell.advantage or 0) for cell in sheet.cells), default=0) or 1
    tiles, sources = [], {}
    with Image.open(sheet.png) as png:
        for cell in sheet.cells:
            left, top, right, bottom = cell.box_px
            if cell.source_px is not None and cell.source_px not in sources:
                sources[cell.source_px] = _data_uri(_without_margin(png.crop(cell.source_px)), 256)
            advantage, rewards = cell.advantage, {name: score(value) for name, value in cell.rewards.items()}
            tiles.append({
                "src": _data_uri(png.crop(cell.box_px), max_px),
                "pixelated": max(right - left, bottom - top) <= PIXEL_ART_PX,
                "score": next((text for text in rewards.values() if text != "–"), "–"),
                "rewards": rewards,
                "plain": cell.rewards,
                "truth": cell.truth,
                "source": sources.get(cell.source_px),
                "film": cell.film,
                "settled": [settled_in_words(one) for one in cell.settled],
                "advantage": None if advantage is None else signed(advantage),
                "sign": sign(advantage or 0),
                "bar": 100 * abs(advantage or 0) / largest,
            })  # fmt: skip
    return tiles


def settled_in_words(one: Mapping[str, Any]) -> str:
    """ "depth 2: +0.31, one of 3 compared, whose values go from 0.21 to 0.80"."""
    value = (
        "" if one["value"] is None else f", {score(one['value'])} against {score(one['low'])} to {score(one['high'])}"
    )
    return f"depth {one['depth']}: {signed(one['advantage'])}, one of {one['compared']} compared{value}"


def _data_uri(tile: Image.Image, max_px: int) -> str:
    """Small tiles stay exact (PNG), photographs become JPEG."""
    kind = "png" if max(tile.size) <= PIXEL_ART_PX else "jpeg"
    tile.thumbnail((max_px, max_px))
    file = io.BytesIO()
    tile.save(file, format=kind, quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _without_margin(tile: Image.Image) -> Image.Image:
    """A picture without the white that stands left and right, or above and below, of it in its tile."""
    inside = ImageChops.invert(tile.convert("RGB")).getbbox()
    return tile if inside is None else tile.crop(inside)


def spread_over(items: Sequence[Any], most: int) -> list[Any]:
    """The first, the last and some in between."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
