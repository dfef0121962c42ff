"""Reading what a server with the chat API sent: bounded, and without the key in anything that is passed on."""

from __future__ import annotations

import email.utils
import json
import time
import zlib
from collections.abc import Mapping
from typing import Any

from grpo_mm.outside import is_text, plain, shown

MOST_BYTES = 2**20
"""Of one answer, unpacked."""
LONGEST_PAUSE = 60.0
"""Seconds that a server may ask to wait (Retry-After)."""
LONGEST_QUOTED = 200


class NoAnswer(Exception):
    """Why there is none."""

    def __init__(self, reason: str, *, may_pass: bool = True, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.may_pass = may_pass
        """Another try may go better."""
        self.pause = pause
        """Seconds that the server asks to wait."""


async def read_text(response: Any, key: str | None) -> str:
    """The body of a streamed response, with *** for the key.

    Raises:
        NoAnswer: longer than 1 MiB, or packed in a way that was not asked for or is broken.
    """
    packed = (response.headers.get("content-encoding") or "identity").strip().lower()
    if packed not in ("identity", "gzip", "x-gzip", "deflate"):
        raise NoAnswer(f"packed as {shown(packed, 40)}, which was not asked for")
    unpack = None if packed == "identity" else zlib.decompressobj(zlib.MAX_WBITS | 32)
    body = bytearray()
    async for chunk in response.aiter_raw():
        try:
            body += chunk if unpack is None else unpack.decompress(chunk, MOST_BYTES + 1)
        except zlib.error as error:
            raise NoAnswer(f"packed as {packed}, and broken") from error
        if len(body) > MOST_BYTES:
            raise NoAnswer(f"more than {MOST_BYTES} bytes", may_pass=False)
    return hidden(bytes(body).decode("utf-8", "replace"), key)


def hidden(text: str, key: str | None) -> str:
    """The text without the key, also as JSON may write it. What is shorter than six characters is a word and no secret."""
    for form in {key, json.dumps(key)[1:-1], key.replace("/", "\\/")} if key and len(key) > 5 else ():
        text = text.replace(form, "***")
    return text


def status_failure(status: int, headers: Mapping[str, str], text: str) -> NoAnswer:
    """Of an answer that is not 200: time-outs, too many requests and faults of the server may pass."""
    may_pass = status in (408, 429) or status >= 500
    quoted = plain(text, LONGEST_QUOTED)
    return NoAnswer(f"status {status}: {quoted}", may_pass=may_pass, pause=asked_pause(headers.get("retry-after")))


def asked_pause(value: str | None) -> float:
    """Seconds of a Retry-After header, a number or a date; 0 where there is none that can be read, at most 60."""
    try:
        seconds = float(value or 0)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value or "").timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), LONGEST_PAUSE) if seconds == seconds else 0.0


def read_completion(text: str) -> tuple[str, dict[str, int], bool]:
    """The answer, the tokens that were counted by name, and whether the answer was cut off at its greatest length.

    Raises:
        NoAnswer: no chat completion, or one without a text.
    """
    try:
        completion = json.loads(text)
    except (ValueError, RecursionError):
        completion = None
    choices = completion.get("choices") if isinstance(completion, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("message")
    if not isinstance(message, dict):
        raise NoAnswer(f"no chat completion: {plain(text, LONGEST_QUOTED)}")
    answer = _text_of(message.get("content"))
    if answer is None:
        asked = next((name for name in ("refusal", "tool_calls", "function_call") if message.get(name)), None)
        why = f"a {asked.replace('_', ' ')} instead" if asked else f"its content is {shown(message.get('content'), 80)}"
        raise NoAnswer(f"a chat completion without a text, {why}")
    usage = completion.get("usage")
    return answer, _tokens(usage if isinstance(usage, dict) else {}), choice.get("finish_reason") == "length"


def _text_of(content: Any) -> str | None:
    """A text, or the texts of a list of parts; halves of characters are replaced."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        content = "".join(texts) if texts else None
    if not isinstance(content, str):
        return None
    return content if is_text(content) else content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _tokens(usage: dict[str, Any]) -> dict[str, int]:
    counted = {name: usage.get(name) for name in ("prompt_tokens", "completion_tokens")}
    return {name: n for name, n in counted.items() if type(n) is int and 0 <= n < 10**9}
