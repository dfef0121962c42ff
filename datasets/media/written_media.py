"""Texts that stand for a picture or video: names of files as rows write them, and pictures in base64."""

from __future__ import annotations

import base64
import binascii
import os
import re
from urllib.parse import unquote

HEADS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "SUkqA", "TU0AK")
"""How PNG, JPEG, GIF, WebP and TIFF begin in base64."""
SHORTEST = 64
"""Characters of a picture in base64; names may begin alike."""
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]+=*\s*")


def written_bytes(text: str) -> bytes | None:
    """The bytes that a data URL (data:image/png;base64,…) or a picture's bare base64 stands for; None for any other text.

    Raises:
        ValueError: a data URL without base64 data, or base64 that is broken.
    """
    stripped = text.strip()
    if is_data_url(stripped):
        head, comma, body = stripped.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise ValueError("is a data URL without base64 data; wanted data:image/png;base64,…")
        return from_base64(body)
    if stripped.startswith(HEADS) and len(stripped) >= SHORTEST and _BASE64.fullmatch(stripped):
        return from_base64(stripped)
    return None


def is_data_url(text: str) -> bool:
    return text[:5].lower() == "data:"


def from_base64(text: str) -> bytes:
    """Of either alphabet, in lines or in one, with or without its padding, or as URLs escape it; ValueError if it is broken."""
    text = "".join((unquote(text) if "%" in text else text).split()).translate({ord("-"): "+", ord("_"): "/"})
    try:
        return base64.b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"its base64 data are broken ({error})") from error


def file_name(text: str) -> str:
    """A name as it stands, without blanks around; of a file:// address its path."""
    name = text.strip()
    if name[:5].lower() != "file:":
        return name
    path = re.sub(r"^file:(//(localhost)?(?=/)|//)?", "", name, flags=re.IGNORECASE)
    return path if "%" not in path or os.path.exists(path) else unquote(path)
