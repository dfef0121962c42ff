"""Conversations of other tool kits as turns {"role", "content"}."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from grpo_mm.errors import ConfigError
from grpo_mm.outside import BadJson, parse_json, shown

_OBJECT = re.compile("<ref-object>|<bbox>")
SPEAKERS = {
    "system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "model": "assistant",
    "bot": "assistant", "chatgpt": "assistant",
}  # fmt: skip


def turns_of(value: Any, where: str, *, system: Any = None, history: Any = None) -> list[dict[str, Any]]:
    """Turns of OpenAI's form, from those themselves, ShareGPT's and LLaVA's {"from": "human", "value"}, pairs {"user", "assistant"},
    or a text of JSON of these.

    Args:
        system: the row's system prompt, put first unless the turns begin with one.
        history: earlier [question, answer] pairs, as ms-swift has them.

    Raises:
        ConfigError: another form, or a speaker that is none of system, user and assistant.
    """
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except BadJson as error:
            raise ConfigError(f"{where}: the conversation is a text that is {error.reason}.") from error
    if not isinstance(value, list):
        raise ConfigError(f"{where}: the conversation is {shown(value)}, wanted a list of turns.")
    turns = [turn for one in value for turn in _turns(one, where)]
    earlier = [turn for pair in history or () for turn in _pair(pair, where)]
    has_system = bool(turns) and turns[0]["role"] == "system"
    first = (
        [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() and not has_system else []
    )
    return [*first, *(turns[:1] if has_system else []), *earlier, *(turns[1:] if has_system else turns)]


def with_objects(turns: list[dict[str, Any]], objects: Any, where: str) -> list[dict[str, Any]]:
    """Turns with ms-swift's <ref-object> and <bbox> replaced, in order, by the names and boxes of {"ref": […], "bbox": […]}.

    Raises:
        ConfigError: there are more of them than objects.
    """
    held = objects if isinstance(objects, Mapping) else {}
    left = {"<ref-object>": list(held.get("ref") or []), "<bbox>": list(held.get("bbox") or [])}

    def put(match: re.Match[str]) -> str:
        if not left[match[0]]:
            raise ConfigError(f"{where}: its text has a {match[0]} more than the row has objects.")
        value = left[match[0]].pop(0)
        return value if isinstance(value, str) else str(value)

    return [
        turn | {"content": _OBJECT.sub(put, turn["content"])} if isinstance(turn["content"], str) else turn
        for turn in turns
    ]


def said_last(value: Any, where: str) -> str | None:
    """What the assistant says in a completion that is a list of turns; None if it says nothing."""
    told = [turn["content"] for turn in turns_of(value, where) if turn["role"] == "assistant"]
    texts = [_text(content) for content in told[-1:]]
    return texts[0] if texts else None


def _turns(turn: Any, where: str) -> list[dict[str, Any]]:
    if isinstance(turn, Mapping) and {"user", "assistant"} <= set(turn):
        return _pair([turn["user"], turn["assistant"]], where)
    if not isinstance(turn, Mapping):
        raise ConfigError(f"{where}: a turn is {shown(turn)}, wanted an object with role and content.")
    role = turn.get("role") or turn.get("from")
    content = turn.get("content") if turn.get("content") is not None else turn.get("value")
    speaker = SPEAKERS.get(role.lower()) if isinstance(role, str) else None
    if speaker is None:
        raise ConfigError(
            f"{where}: a turn is of {shown(role)}; wanted one of {', '.join(SPEAKERS)}. Tools and functions are not called here."
        )
    rest = {
        name: one
        for name, one in turn.items()
        if name not in ("role", "from", "content", "value", "weight", "loss", "name") and one not in (None, [], "", {})
    }
    return [{**rest, "role": speaker, "content": content}]


def _pair(pair: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        raise ConfigError(f"{where}: an earlier exchange is {shown(pair)}, wanted a question and its answer.")
    return [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(part.get("text") or "") for part in parts if isinstance(part, Mapping))
