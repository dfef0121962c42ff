"""What crosses between a run and its engine: safetensors, with what is asked as JSON in their head. Read with the same checks on both sides."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from grpo_mm.errors import UserError
from grpo_mm.outside import BadJson, parse_json, reason, shown
from grpo_mm.pipelines.vlm.sampling.vllm_inputs import CLOCK, PIXELS, EngineInput, Item, Place
from grpo_mm.pipelines.vlm.sampling.vllm_settings import Drawn

DOOR = "grpo_mm.pipelines.vlm.engine_server.door.Door"
"""What vLLM is told to answer through."""
PREFIX = "/grpo_mm/"
ASKED = "asked"
MOST_ROWS = 4096
"""Answers of one request."""
MOST_BYTES = 2**32
"""Of one request, or one file of weights."""
TENSORS = {*PIXELS.values(), *(f"{kind}_grid_thw" for kind in PIXELS), CLOCK}


class Unreadable(UserError):
    """What is no request or answer of this form: it is named."""


@dataclass(frozen=True)
class Asked:
    """Answers to one prompt."""

    version: str
    """Of the weights that shall draw them."""
    settings: dict[str, Any]
    """As `settings_of`."""
    temperature: float
    seeds: list[int | None]
    """One for each answer; None: the most probable token each time."""
    prompt: EngineInput


@dataclass(frozen=True)
class Answered:
    """What came of it."""

    rows: list[Drawn]
    versions: list[list[str]]
    """Of each row: of all weights that drew a token of it, as the engine itself noted with each token."""
    prompt_ids: list[int]
    """As the engine read it."""
    queued_seconds: list[float]
    """Of each row, before the engine began with it."""


def pack_asked(asked: Asked) -> bytes:
    from safetensors.torch import save

    head = {name: getattr(asked, name) for name in ("version", "settings", "temperature", "seeds")}
    head |= {
        "ids": asked.prompt.ids,
        "items": {k: [asdict(i) for i in items] for k, items in asked.prompt.items.items()},
    }
    tensors = {name: value.cpu().contiguous() for name, value in asked.prompt.tensors.items()}
    return save(tensors, metadata={ASKED: json.dumps(head, allow_nan=False)})  # fmt: skip


def read_asked(body: bytes) -> Asked:
    """Raises Unreadable."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        head, tensors = _head(body), load(body)
    except (SafetensorError, BadJson, ValueError, KeyError, TypeError, struct.error) as error:
        raise Unreadable(f"not safetensors with a request in their head: {reason(error)}") from None
    try:
        items = {
            kind: [Item(_text(i["name"]), _place(i["place"], len(head["ids"]))) for i in found]
            for kind, found in head["items"].items()
        }
        seeds = head["seeds"]
        if (
            not isinstance(seeds, list)
            or not 0 < len(seeds) <= MOST_ROWS
            or not all(s is None or _is_whole(s) for s in seeds)
        ):
            raise ValueError(f"seeds: wanted 1 to {MOST_ROWS} whole numbers")
        if not isinstance(head["settings"], dict) or not isinstance(head["settings"].get("logit_bias"), dict):
            raise ValueError("settings: wanted those of `settings_of`")
        prompt = EngineInput([_id(i) for i in head["ids"]], items, tensors)
        _check_media(prompt)
        return Asked(_text(head["version"]), head["settings"], float(head["temperature"]), seeds, prompt)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise Unreadable(f"a request that cannot be read: {reason(error)}") from None  # fmt: skip


def pack_answered(answered: Answered) -> dict[str, Any]:
    """A value of JSON."""
    return asdict(answered)


def read_answered(value: Any, rows: int) -> Answered:
    """Raises Unreadable."""
    try:
        found = Answered(
            [Drawn(list(map(int, r["ids"])), list(map(float, r["logprobs"])), int(r["cached"])) for r in value["rows"]],
            [list(map(_text, v)) for v in value["versions"]],
            list(map(int, value["prompt_ids"])),
            list(map(float, value["queued_seconds"])),
        )
    except (LookupError, TypeError, ValueError) as error:
        raise Unreadable(f"an answer that cannot be read: {reason(error)}") from None
    if not len(found.rows) == len(found.versions) == rows or any(len(r.ids) != len(r.logprobs) for r in found.rows):
        raise Unreadable(f"{len(found.rows)} answers to {rows} questions")
    return found


def _head(body: bytes) -> Mapping[str, Any]:
    (length,) = struct.unpack("<Q", body[:8])
    if length > len(body) - 8:
        raise ValueError("it ends before its head does")
    return parse_json(parse_json(body[8 : 8 + length].decode())["__metadata__"][ASKED])


def _check_media(prompt: EngineInput) -> None:
    """An engine ends, for all who ask it, on pixels that do not fit."""
    strange = set(prompt.tensors) - TENSORS
    if strange or set(prompt.items) - set(PIXELS):
        raise ValueError(f"unknown media: {shown(sorted(strange | set(prompt.items) - set(PIXELS)))}")
    wanted = {name for kind in prompt.items for name in (PIXELS[kind], f"{kind}_grid_thw")}
    if wanted - set(prompt.tensors) or (prompt.tensors and not prompt.items):
        raise ValueError(f"pixels and grids of {sorted(prompt.items)}: found {sorted(prompt.tensors)}")
    for kind, items in prompt.items.items():
        grid, pixels = prompt.tensors[f"{kind}_grid_thw"], prompt.tensors[PIXELS[kind]]
        if grid.ndim != 2 or grid.shape[1] != 3 or grid.is_floating_point() or int(grid.min()) < 1 or pixels.ndim != 2:
            raise ValueError(
                f"{kind}_grid_thw: wanted whole numbers [media, 3] from 1 on, and pixels in two dimensions"
            )
        if len(items) != len(grid) or int(grid.prod(-1).sum()) != len(pixels):
            raise ValueError(
                f"{len(items)} places, {len(grid)} grids and {len(pixels)} rows of pixels do not fit ({kind})"
            )
        inside = [item.place.length if item.place.inside is None else sum(item.place.inside) for item in items]
        factors = {int(size) / max(tokens, 1) for size, tokens in zip(grid.prod(-1), inside)}
        if len(factors) > 1:
            raise ValueError(f"the places of {kind} hold other numbers of tokens than their grids")
    clock = prompt.tensors.get(CLOCK)
    if clock is not None and tuple(clock.shape) != (len(prompt.items.get("video", ())),):
        raise ValueError(f"{CLOCK}: wanted one number for each video")


def _place(value: Mapping[str, Any], ids: int) -> Place:
    first, length, inside = value["first"], value["length"], value["inside"]
    if not (_is_whole(first) and _is_whole(length)) or first < 0 or length < 1 or first + length > ids:
        raise ValueError(f"a place outside of the {ids} tokens")
    if inside is None:
        return Place(first, length)
    if not isinstance(inside, Sequence) or len(inside) != length or not all(isinstance(one, bool) for one in inside):
        raise ValueError("a place whose mask does not fit it")
    return Place(first, length, tuple(inside))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _id(value: Any) -> int:
    if not _is_whole(value) or value < 0:
        raise ValueError(f"a token {shown(value, 40)}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 200:
        raise ValueError(f"{shown(value, 40)} is no short text")
    return value
