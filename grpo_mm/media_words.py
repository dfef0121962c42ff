"""How rows of data say that a picture, a video or a sound belongs to them: names of keys, file names, markers in texts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

MEDIA = frozenset(
    [
        "image",
        "img",
        "picture",
        "pic",
        "photo",
        "photograph",
        "figure",
        "screenshot",
        "video",
        "clip",
        "movie",
        "audio",
        "sound",
        "speech",
        "frame",
        "pixel",
        "media",
    ]
)
"""What a key of media is called, in the singular."""
BESIDE = frozenset(
    [
        "path",
        "file",
        "filename",
        "filepath",
        "name",
        "url",
        "uri",
        "link",
        "byte",
        "data",
        "array",
        "tensor",
        "list",
        "value",
        "content",
        "encoded",
        "raw",
        "input",
        "query",
        "question",
        "original",
        "decoded",
        "local",
        "left",
        "right",
        "first",
        "second",
        "last",
        "before",
        "after",
        "reference",
        "ref",
        "main",
        "full",
    ]
)
"""What else its name may say: "image_path", "input_img", "pixel_values"; "image_id" and "num_frames" hold no media."""
SUFFIXES = tuple(
    [
        ".png",
        ".jpg",
        ".jpeg",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".heic",
        ".heif",
        ".avif",
        ".jfif",
        ".ppm",
        ".mp4",
        ".mkv",
        ".webm",
        ".avi",
        ".mov",
        ".m4v",
        ".mpg",
        ".mpeg",
        ".wmv",
        ".flv",
        ".ts",
        ".wav",
        ".mp3",
        ".flac",
        ".ogg",
        ".opus",
        ".m4a",
        ".aac",
    ]
)
LONGEST_NAME = 4096
PARTS = ("image", "video", "audio", "image_url", "video_url", "input_image", "input_video", "input_audio")
"""Types of the parts of a turn that are no text."""
WORDS = frozenset(
    [
        "answer",
        "solution",
        "response",
        "output",
        "label",
        "text",
        "prompt",
        "question",
        "query",
        "caption",
        "problem",
        "title",
    ]
)
"""Keys whose values are words, even where they end like the name of a file."""
MARKER = re.compile(
    r"<(?:image|img|video|audio)(?:[ _-]?\d+)?>"  # <image>, <image_1>, <image 2>, <video>
    r"|<\|(?:image|video|audio|vision)(?:_pad|_\d+|_start|_soft_token)?\|>"  # <|image_pad|>, <|image_1|>, <|image|>
    r"|<(?:image|video|audio)[_-]?(?:placeholder|here|token|soft_token)>|<start_of_image>|<im_(?:start|patch|end)>"
    r"|\[(?:IMG|IMAGE|VIDEO|AUDIO)(?:[ _]?\d+)?\]|!\[[^\]\n]*\]\([^)\n]+\)|<img\s[^>\n]*src=|data:(?:image|video)/",
    re.IGNORECASE,
)
"""How texts of other tools say that a picture, video or sound stands there."""


def media_key(values: Any) -> str | None:
    """The first key of a mapping whose value is a picture, a video or a sound, or the name of one; None if there is none.

    Example: media_key({"image_id": 7, "input_img": "a/b"}) is "input_img"; so is any key whose value is "a.png".
    """
    if not isinstance(values, Mapping):
        return None
    return next((str(key) for key, value in values.items() if _is_medium(str(key), value)), None)


@lru_cache(4096)
def names_media(key: str) -> bool:
    """Whether a key is called after media alone: "image", "Images", "imagePath", "img_2", "source_image"; not "image_source"."""
    found = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", re.sub(r"base64|b64", "_encoded_", key, flags=re.IGNORECASE))
    words = [word.lower() for word in found]
    words = words[1:] if words[:1] in (["source"], ["src"]) else words
    words = [word if word in BESIDE else word.removesuffix("s") for word in words]
    return any(word in MEDIA for word in words) and all(word in MEDIA or word in BESIDE for word in words)


def _is_medium(key: str, value: Any) -> bool:
    if isinstance(value, str):
        return _names_a_file(value, named=key.lower() not in WORDS) or (names_media(key) and bool(value.strip()))
    if isinstance(value, Mapping):
        has_file = any(value.get(name) for name in ("bytes", "path"))
        return has_file or value.get("type") in PARTS or (names_media(key) and bool(value)) or bool(media_key(value))
    if isinstance(value, (list, tuple)):
        if value and isinstance(value[0], (int, float, type(None))):
            return "pixel" in key.lower()  # numbers of frames or clips are no pictures
        return any(_is_medium(key, one) for one in value[:100])
    if isinstance(value, (bytes, bytearray)) or hasattr(value, "to_pybytes"):  # the latter: bytes of an arrow table
        return len(value) > 0
    return hasattr(value, "convert") or hasattr(value, "frames_FCHW") or (names_media(key) and hasattr(value, "shape"))


def _names_a_file(value: str, *, named: bool) -> bool:
    text = value.strip()
    if text[:5].lower() == "data:":
        return text[:11].lower() in ("data:image/", "data:video/", "data:audio/")
    if not named or len(text) > LONGEST_NAME or "\n" in text:
        return False
    return text.lower().split("?")[0].endswith(SUFFIXES) and (" " not in text or "/" in text)
