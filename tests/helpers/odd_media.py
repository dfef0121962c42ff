"""Pictures and videos of our own making in every format that is read, ways to damage them, and reading many in a child process."""

from __future__ import annotations

import io
import multiprocessing
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

COLOURS = {"R": (220, 30, 30), "G": (30, 200, 30), "B": (30, 30, 220), "W": (240, 240, 240), "K": (0, 0, 0)}
SECONDS = 60
"""For one portion of damaged files; each takes milliseconds."""


def quarters(height: int = 48, width: int = 96, order: str = "RGBW") -> np.ndarray:
    """[H, W, 3]: upper left, upper right, lower left, lower right."""
    picture = np.zeros((height, width, 3), np.uint8)
    for k, colour in enumerate(order):
        y, x = k // 2 * height // 2, k % 2 * width // 2
        picture[y : y + height // 2, x : x + width // 2] = COLOURS[colour]
    return picture


def seen(picture_HWC: Any) -> str:
    """The colours of the quarters, as they are seen."""
    picture = np.asarray(picture_HWC).astype(float)
    height, width = picture.shape[:2]
    found = ""
    for y, x in ((0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75)):
        colour = picture[int(height * y), int(width * x)]
        found += min(COLOURS, key=lambda name: float(np.abs(colour - COLOURS[name]).sum()))
    return found


def encoded(picture: Any, form: str, **settings: Any) -> bytes:
    """A PIL picture or an array as a file of the format."""
    from PIL import Image

    buffer = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(buffer, form, **settings)
    return buffer.getvalue()


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One of: bits flipped (anywhere, or in the head), a hole, cut, bytes put in, taken out, or exchanged."""
    found = bytearray(data)
    way = rng.randrange(7)
    if way in (0, 1):
        for _ in range(rng.choice((1, 3, 10, 40))):
            found[rng.randrange(len(found) if way else min(64, len(found)))] ^= 1 << rng.randrange(8)
    elif way == 2:
        at = rng.randrange(len(found))
        length = min(rng.choice((4, 64, 1000)), len(found) - at)
        found[at : at + length] = bytes(length)
    elif way == 3:
        del found[rng.randrange(1, len(found)) :]
    elif way == 4:
        at = rng.randrange(len(found))
        found[at:at] = rng.randbytes(rng.choice((1, 4, 100)))
    elif way == 5:
        at = rng.randrange(len(found))
        del found[at : at + rng.choice((1, 4, 100))]
    else:
        at = rng.randrange(len(found))
        found[at : at + 4] = rng.choice(
            (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x00", b"\x80\x00\x00\x00")
        )
    return bytes(found) or b"\0"


def read_in_a_child(names: Iterable[str], read: Callable[[str], str]) -> dict[str, str]:
    """Name → what `read` says of it, from a process that may die or hang without harm: these are "died" and "hung"."""
    names, found = list(names), {}
    context = multiprocessing.get_context("fork")
    while names:
        here, there = context.Pipe(duplex=False)
        child = context.Process(target=_read_all, args=(names, read, there))
        child.start()
        there.close()
        for name in list(names):
            try:
                found[name] = here.recv() if here.poll(SECONDS) else "hung"
            except EOFError:
                found[name] = "died"
            names.remove(name)
            if found[name] in ("hung", "died"):
                break
        child.kill()
        child.join()
    return found


def _read_all(names: list[str], read: Callable[[str], str], there: Any) -> None:
    for name in names:
        there.send(read(name))


def save(folder: Path, name: str, data: bytes) -> str:
    path = folder / name
    path.write_bytes(data)
    return str(path)
