"""What a server of rewards is asked and what it answers, as JSON: outputs, prompts, groups; scores and failures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpo_mm.errors import UserError
from grpo_mm.outside import finite_number, is_text, plain, reason, shown
from grpo_mm.rewards.service.png import Pixels, Refused, image_of, picture_of, png_of, png_of_image
from grpo_mm.rewards.service.values import packed, unpacked
from grpo_mm.rollout.returned_scores import MOST_PARTS
from grpo_mm.rollout.safe_call import MOST_ERRORS
from grpo_mm.types import Clip, Clips, Prompt

MOST_ROWS = 4096
"""Outputs, or prompts, of one request."""
MOST_FRAMES = 4096
"""Of one clip."""
LONGEST_ERROR = 10_000


class Unsent:
    """Stands on the server for something of a prompt that cannot be sent, such as a video: whoever looks at it fails."""

    def __init__(self, what: str) -> None:
        object.__setattr__(self, "_what", what)

    def _refuse(self, *_: Any) -> Any:
        raise UserError(f"{object.__getattribute__(self, '_what')} was not sent to the server of rewards.")

    def __getattribute__(self, name: str) -> Any:
        if name in ("__class__", "_refuse", "__deepcopy__", "__dict__"):
            return object.__getattribute__(self, name)
        return object.__getattribute__(self, "_refuse")()

    def __deepcopy__(self, memo: Any) -> Unsent:
        return self

    __bool__ = __len__ = __iter__ = __getitem__ = __eq__ = __array__ = __fspath__ = __str__ = _refuse
    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{object.__getattribute__(self, '_what')}, not sent>"


@dataclass(frozen=True)
class Asked:
    """One request, read. `items` is None where only `applies_to` is asked; then `prompts` are asked one by one."""

    reward: str
    prompts: list[Prompt]
    """One for each output; rows of one prompt share it."""
    items: Any = None
    group_U: Tensor | None = None
    alone: bool = False
    """Whether it must not be scored together with what others ask."""


def pack_items(items: Any) -> dict[str, Any]:
    """Texts, uint8 pictures [U, 3, H, W] or a list of [3, H, W], `Clips`, clips [U, F, 3, H, W] or a list of [F, 3, H, W].

    Raises:
        Refused: anything else.
    """
    if isinstance(items, Clips):
        return _pack_clips(items)
    stacked = isinstance(items, Tensor)
    values = list(items)
    if not stacked and all(isinstance(one, str) for one in values):
        for i, text in enumerate(values):
            if not is_text(text):
                raise Refused(f"output {i} is {shown(text, 80)}, which holds half of a character and cannot be sent.")
        return {"kind": "texts", "values": [str(one) for one in values]}
    if all(isinstance(one, Tensor) and one.ndim == 4 for one in values):
        clips = [
            [png_of(frame, f"output {i}, frame {f}") for f, frame in enumerate(one)] for i, one in enumerate(values)
        ]
        if any(not clip for clip in clips):
            raise Refused("a clip without a frame cannot be sent.")
        return {"kind": "clips", "stacked": stacked, "values": clips}
    return {
        "kind": "pictures",
        "stacked": stacked,
        "values": [png_of(one, f"output {i}") for i, one in enumerate(values)],
    }


def _pack_clips(clips: Clips) -> dict[str, Any]:
    """With the frames a second of each, which a list of tensors does not have."""
    for i, clip in enumerate(clips):
        if clip is None or not len(clip.frames_FCHW) or not (finite_number(clip.fps) or 0) > 0:
            raise Refused(
                f"output {i} is {shown(clip, 80)}, which cannot be sent; wanted a clip with a frame, and its fps."
            )
    frames = [
        [png_of(frame, f"output {i}, frame {f}") for f, frame in enumerate(c.frames_FCHW)] for i, c in enumerate(clips)
    ]
    return {"kind": "clips", "stacked": False, "values": frames, "fps": [float(clip.fps) for clip in clips]}


def pack_prompt(prompt: Prompt, *, with_media: bool = True) -> dict[str, Any]:
    """A prompt as JSON. Media that are no pictures, and demonstrations, are named and not sent; a reward that looks at one fails
    on the server.

    Raises:
        Refused: a target that holds what cannot be sent.
    """
    where = f"prompt {shown(prompt.id, 80)}"
    found = {
        "id": prompt.id, "text": prompt.text, "source": prompt.source, "repeat_of": prompt.repeat_of,
        "messages": packed([dict(turn) for turn in prompt.messages], f"{where}: messages"),
        "target": packed(prompt.target, f"{where}: target"),
        "media": [_pack_medium(m, f"{where}: medium {i}", send=with_media) for i, m in enumerate(prompt.media)],
        "demo": None if prompt.demo is None else {"unsent": f"{where}: its demonstration"},
    }  # fmt: skip
    for name in ("id", "text", "source", "repeat_of"):
        if not isinstance(found[name], str) or not is_text(found[name]):
            raise Refused(f"{where}: its {name} is {shown(found[name], 80)}, which cannot be sent.")
    return found


def _pack_medium(medium: Any, where: str, *, send: bool) -> dict[str, str]:
    named = {"unsent": plain(f"{where} ({type(medium).__name__})", 300)}
    if not send:
        return named
    try:
        opened = medium.open() if hasattr(medium, "open") and not hasattr(medium, "convert") else medium
        if hasattr(opened, "convert"):
            return {"image": png_of_image(opened, where)}
        return {"picture": png_of(opened, where)}
    except (UserError, ValueError, OSError):  # videos, damaged files: named to whoever looks
        return named


def read_request(body: Any, pixels: Pixels, *, applies: bool, most_rows: int = MOST_ROWS) -> Asked:
    """What was asked, of at most so many outputs; raises Refused, which names the first thing that is wrong."""
    wanted = {"reward", "prompts"} | (set() if applies else {"row_prompt", "items", "groups"})
    if not isinstance(body, dict) or set(body) - {"alone"} != wanted or not isinstance(body.get("alone", False), bool):
        keys = sorted(body) if isinstance(body, dict) else type(body).__name__
        raise Refused(f"the request is {shown(keys, 100)}; wanted an object with {', '.join(sorted(wanted))}.")
    name, prompts = body["reward"], body["prompts"]
    if not isinstance(name, str):
        raise Refused(f"reward is {shown(name, 80)}; wanted a name.")
    if not isinstance(prompts, list) or not 1 <= len(prompts) <= most_rows:
        raise Refused(f"prompts: wanted a list of 1 to {most_rows}.")
    read = [_read_prompt(one, pixels, f"prompts[{i}]") for i, one in enumerate(prompts)]
    if applies:
        return Asked(name, read)
    index, groups = body["row_prompt"], body["groups"]
    if not _whole_numbers(index, len(read)) or not 1 <= len(index) <= most_rows:
        raise Refused(f"row_prompt: wanted 1 to {most_rows} numbers below {len(read)}, a prompt for each output.")
    items = _read_items(body["items"], len(index), pixels)
    if groups is not None and not (_whole_numbers(groups, 2**62) and len(groups) == len(index)):
        raise Refused(f"groups: wanted null or {len(index)} whole numbers, one for each output.")
    group_U = None if groups is None else torch.tensor(groups, dtype=torch.int64)
    return Asked(name, [read[i] for i in index], items, group_U, body.get("alone", False))


def _whole_numbers(value: Any, below: int) -> bool:
    return isinstance(value, list) and all(type(one) is int and 0 <= one < below for one in value)


def _read_prompt(value: Any, pixels: Pixels, where: str) -> Prompt:
    names = {"id", "text", "source", "repeat_of", "messages", "target", "media", "demo"}
    if not isinstance(value, dict) or set(value) != names:
        raise Refused(f"{where}: wanted an object with {', '.join(sorted(names))}.")
    for name in ("id", "text", "source", "repeat_of"):
        if not isinstance(value[name], str):
            raise Refused(f"{where}.{name} is {shown(value[name], 80)}; wanted a text.")
    messages, media = value["messages"], value["media"]
    if not isinstance(messages, list) or not all(isinstance(turn, dict) for turn in messages):
        raise Refused(f"{where}.messages: wanted a list of objects.")
    if not isinstance(media, list) or len(media) > MOST_ROWS:
        raise Refused(f"{where}.media: wanted a list.")
    return Prompt(
        id=value["id"],
        text=value["text"],
        source=value["source"],
        repeat_of=value["repeat_of"],
        messages=tuple(unpacked(messages, pixels, f"{where}.messages")),
        target=unpacked(value["target"], pixels, f"{where}.target"),
        media=tuple(_read_medium(one, pixels, f"{where}.media[{i}]") for i, one in enumerate(media)),
        demo=None if value["demo"] is None else _read_medium(value["demo"], pixels, f"{where}.demo"),
    )


def _read_medium(value: Any, pixels: Pixels, where: str) -> Any:
    if isinstance(value, dict) and len(value) == 1:
        ((kind, inner),) = value.items()
        if kind == "image":
            return image_of(inner, pixels, where)
        if kind == "picture":
            return picture_of(inner, pixels, where)
        if kind == "unsent" and isinstance(inner, str):
            return Unsent(plain(inner, 300))
    raise Refused(f"{where}: wanted a picture, or what was not sent.")


def _read_items(value: Any, rows: int, pixels: Pixels) -> Any:
    kind = value.get("kind") if isinstance(value, dict) else None
    values = value.get("values") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in ("texts", "pictures", "clips") or not isinstance(values, list):
        raise Refused("items: wanted an object with kind (texts, pictures or clips) and values.")
    if len(values) != rows:
        raise Refused(f"items: {len(values)} values for {rows} outputs.")
    if kind == "texts":
        if not all(isinstance(one, str) for one in values):
            raise Refused("items: wanted texts.")
        return values
    if kind == "pictures":
        read = [picture_of(one, pixels, f"output {i}") for i, one in enumerate(values)]
    else:
        if not all(isinstance(one, list) and 1 <= len(one) <= MOST_FRAMES for one in values):
            raise Refused(f"items: wanted clips, lists of 1 to {MOST_FRAMES} frames.")
        read = [_read_clip(one, pixels, f"output {i}") for i, one in enumerate(values)]
        if "fps" in value:
            fps = _read_fps(value["fps"], rows)
            return Clips(Clip(_in_colour(one, i), rate) for i, (one, rate) in enumerate(zip(read, fps)))
    return _stacked(read, "items") if value.get("stacked") is True else read


def _read_fps(value: Any, rows: int) -> list[float]:
    found = [finite_number(one) for one in value] if isinstance(value, list) else []
    if len(found) != rows or not all(one is not None and one > 0 for one in found):
        raise Refused(f"items: fps is {shown(value, 80)}; wanted {rows} numbers above 0, one for each clip.")
    return [float(one) for one in found if one is not None]


def _in_colour(frames_FCHW: Tensor, i: int) -> Tensor:
    if frames_FCHW.shape[1] != 3:
        raise Refused(f"output {i}: a clip of {frames_FCHW.shape[1]} channels; wanted 3.")
    return frames_FCHW


def _read_clip(frames: list[Any], pixels: Pixels, where: str) -> Tensor:
    return _stacked([picture_of(one, pixels, f"{where}, frame {f}") for f, one in enumerate(frames)], where)


def _stacked(pictures: list[Tensor], where: str) -> Tensor:
    if len({tuple(one.shape) for one in pictures}) > 1:
        raise Refused(f"{where}: its pictures differ in size.")
    return torch.stack(pictures)


def pack_answer(scores: Mapping[str, Tensor], errors: Sequence[str]) -> dict[str, Any]:
    """Scores [U] by part, null for NaN; and why rows have none."""
    numbers = {name: [None if math.isnan(one) else one for one in value.tolist()] for name, value in scores.items()}
    return {"scores": numbers, "errors": list(errors)}


def read_answer(body: Any, rows: int) -> tuple[dict[str, Tensor], list[str]]:
    """The inverse of `pack_answer`; raises Refused for an answer of another form."""
    try:
        found = {str(name): _numbers(values, rows) for name, values in body["scores"].items()}
        errors = [plain(error, LONGEST_ERROR) for error in body["errors"]]
        if "score" not in found or len(found) > MOST_PARTS or len(errors) > MOST_ERRORS + 1:
            raise ValueError(f"it has {len(found)} parts and {len(errors)} failures")
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise Refused(f"it answered what cannot be read ({reason(error, 100)}).") from error
    return found, errors


def _numbers(values: Any, rows: int) -> Tensor:
    if not isinstance(values, list) or len(values) != rows:
        raise ValueError(f"not {rows} numbers")
    if not all(one is None or type(one) in (int, float) for one in values):
        raise TypeError("something is no number")
    return torch.tensor([math.nan if one is None else one for one in values], dtype=torch.float64).to(torch.float32)
