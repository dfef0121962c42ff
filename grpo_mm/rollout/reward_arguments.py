"""What a user's function is handed: by the names of its arguments, or the three of old by position."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from grpo_mm.errors import UserError
from grpo_mm.outside import shown
from grpo_mm.types import Clips, Pictures, Prompt, is_pictures

OF_PICTURES, OF_CLIPS, OF_TEXTS = ("images",), ("clips",), ("texts", "completions")
OF_PROMPTS = ("prompts", "metadata", "target", "media", "ids", "sources")
FPS = "fps"
"""Beside clips; elsewhere it is a column as others are."""
OUTPUTS = (*OF_PICTURES, *OF_CLIPS, *OF_TEXTS)
NAMES = (*OUTPUTS, *OF_PROMPTS)


def arguments(
    function: Callable[..., Any], items: Any, prompts: Sequence[Prompt]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) for M outputs. Every argument is a list of M:

    - `images`: PIL pictures that the policy drew. For a policy that writes they are the pictures of each prompt, a list of PIL
      pictures for each output.
    - `texts` or `completions`: what the policy wrote.
    - `clips`: uint8 tensors [F, 3, H, W] that the policy drew.  `fps`: frames a second of each.
    - `prompts`: texts.  `ids`, `sources`: of the prompts.  `media`: a tuple for each, as the reader gave it.
    - `target`: what the reader kept for rewards.  `metadata`: the same, {} where there is nothing.
    - any other name: that column of the data (an entry of `target`), None for a prompt that lacks it.

    A function with `**kwargs` gets `prompts`, `ids`, `metadata`, what the policy made, and all columns besides. One of three
    arguments that are not all such names, or whose arguments cannot be known, gets (outputs, prompts, metadata) by position.

    Raises:
        UserError: an argument that is none of these; `images`, `texts` or `completions` where clips are scored.
    """
    moves = isinstance(items, Clips)
    columns = [*_columns(prompts), *([FPS] if moves else [])]
    by_position = (_outputs(items), [prompt.text for prompt in prompts], _metadata(prompts))
    wanted = _parameters(function)
    if wanted is None:
        return by_position, {}
    required, optional, everything = wanted
    unknown = [name for name in required if name not in NAMES and name not in columns]
    if len(required) == 3 and not everything and (unknown or not set(required) & set(OUTPUTS)):
        return by_position, {}
    if unknown:
        raise UserError(_what_is_there(function, unknown[0], columns))
    other = next((name for name in required if moves and name in OUTPUTS and name not in OF_CLIPS), None)
    if other is not None:
        raise UserError(
            f"the reward function {shown(getattr(function, '__name__', function))} asks for {other}, and these are clips: take `clips` "
            "(and `fps`), or, for `images`, say frames: mean, or min, beside its `use`."
        )
    asked = [*required, *(name for name in optional if name in NAMES or name in columns)]
    if everything:
        made = OF_CLIPS if moves else OF_PICTURES if is_pictures(items) else OF_TEXTS[1:]
        asked += [name for name in (*made, "prompts", "ids", "metadata", *columns) if name not in asked]
    writes = not is_pictures(items) and any(name in asked for name in OF_TEXTS)
    return (), {name: _value(name, items, prompts, writes=writes) for name in asked}


def needed_names(function: Callable[..., Any]) -> list[str]:
    """Of its arguments without a default; none where they are not known, or by position only."""
    found = _parameters(function)
    return [] if found is None else found[0]


def _parameters(function: Callable[..., Any]) -> tuple[list[str], list[str], bool] | None:
    """(needed, with a default, whether it takes any other); None: not known, or by position only."""
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of a function in C
        return None
    if any(p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL) for p in found):
        return None
    bound = function.keywords if isinstance(function, partial) else {}
    named = [p for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in bound]
    required = [p.name for p in named if p.default is p.empty]
    return required, [p.name for p in named if p.default is not p.empty], any(p.kind is p.VAR_KEYWORD for p in found)


def _value(name: str, items: Any, prompts: Sequence[Prompt], *, writes: bool) -> Any:
    if name == "images" and writes:
        return [_pictures_of(prompt) for prompt in prompts]
    if name in OUTPUTS:
        return _outputs(items)
    if name == FPS and isinstance(items, Clips):
        return [clip.fps for clip in items]
    if name == "metadata":
        return _metadata(prompts)
    plain = {"prompts": "text", "ids": "id", "sources": "source", "media": "media", "target": "target"}
    if name in plain:
        return [getattr(prompt, plain[name]) for prompt in prompts]
    return [entry.get(name) for entry in _metadata(prompts)]


def _columns(prompts: Sequence[Prompt]) -> list[str]:
    """Of all prompts, in the order in which they come."""
    return list(
        dict.fromkeys(
            name
            for prompt in prompts
            if isinstance(prompt.target, Mapping)
            for name in prompt.target
            if name not in NAMES
        )
    )


def _metadata(prompts: Sequence[Prompt]) -> list[Any]:
    return [{} if prompt.target is None else prompt.target for prompt in prompts]


def _outputs(items: Any) -> list[Any]:
    if isinstance(items, Clips):
        return [clip.frames_FCHW for clip in items]
    if isinstance(items, Pictures):
        return [None if item is None else as_pictures(item[None])[0] for item in items]
    return as_pictures(items) if isinstance(items, Tensor) and items.ndim == 4 else list(items)


def _pictures_of(prompt: Prompt) -> list[Any]:
    """The pictures among a prompt's media; files are opened, videos left out."""
    opened = [item.open() if hasattr(item, "open") else item for item in prompt.media]
    return [item for item in opened if hasattr(item, "convert")]


def as_pictures(images: Tensor) -> list[Any]:
    """uint8 [M, 3, H, W] -> M PIL pictures."""
    from PIL import Image

    return [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).contiguous().cpu().numpy()]


def _what_is_there(function: Callable[..., Any], name: str, columns: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, [*NAMES, *columns], n=1)
    of_data = f"those of the data: {', '.join(shown(c, 40) for c in columns[:20])}" if columns else "the data have none"
    return (
        f"the reward function {shown(getattr(function, '__name__', function))} has an argument {shown(name)}"
        f"{f' (did you mean {shown(near[0])}?)' if near else ''}; wanted one of {', '.join(NAMES)}, or a column ({of_data})."
    )
