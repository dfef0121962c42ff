"""What a picture's bytes tell that Pillow does not ask: check sums, an end, and which format it is that is not read."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import IO

PNG_HEAD = 8
"""Bytes of the signature."""
OTHERS = (
    (b"%PDF", "a PDF document"), (b"%!PS", "PostScript"), (b"\xc5\xd0\xd3\xc6", "PostScript"), (b"<svg", "an SVG drawing"),
    (b"<?xml", "XML (an SVG drawing?)"), (b"\x00\x00\x01\x00", "an icon (ICO)"), (b"8BPS", "a Photoshop document"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"), (b"\xff\x4f\xff\x51", "JPEG 2000"), (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"), (b"version https://git-lfs", "a git-lfs pointer: fetch the file itself (git lfs pull)"),
    (b"<!DOCTYPE", "a web page"), (b"<!doctype", "a web page"), (b"<html", "a web page"), (b"{", "JSON"), (b"PK\x03\x04", "a zip archive"),
)  # fmt: skip
BRANDS = (
    (b"heic", "HEIC"),
    (b"heix", "HEIC"),
    (b"mif1", "HEIC"),
    (b"msf1", "HEIC"),
    (b"avif", "AVIF"),
    (b"avis", "AVIF"),
)


def about_other_formats(head: bytes, formats: Sequence[str]) -> str:
    """Why a file that begins so is not read."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    found = next((name for magic, name in OTHERS if head.startswith(magic) or text.startswith(magic)), "")
    if head[4:8] == b"ftyp":
        found = next(
            (name for brand, name in BRANDS if head[8:12] == brand), "a video, or a picture in a video's format"
        )
    wanted = f"no picture that can be read; wanted {', '.join(formats)}"
    return f"is {found}, {wanted}" if found else f"is {wanted}, or damaged at its beginning"


def check_png(file: IO[bytes], *, sums: bool = True) -> set[bytes]:
    """The kinds of a PNG's chunks, up to its end; without `sums` as far as there are any.

    Raises:
        ValueError: a check sum is wrong, or the file ends before its end.
    """
    place = file.tell()
    size = file.seek(0, 2)
    kinds: set[bytes] = set()
    at = PNG_HEAD
    while b"IEND" not in kinds:
        file.seek(at)
        head = file.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if len(head) < 8 or at + length + 12 > size:
            if not sums:
                break
            raise ValueError("cut off: the file ends before its picture does")
        if sums:
            data = file.read(length)
            if zlib.crc32(data, zlib.crc32(kind)) != int.from_bytes(file.read(4), "big"):
                raise ValueError(f"damaged: the check sum of its part {kind!r} is wrong")
        kinds.add(kind)
        at += length + 12
    file.seek(place)
    return kinds


def check_jpeg(file: IO[bytes]) -> None:
    """Raises ValueError for a JPEG without the mark of its end after its pixels: the rest would be grey."""
    place = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(place)
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            at += 1
        elif data[at + 1] in (0xFF, 0x00, 0x01) or 0xD0 <= data[at + 1] <= 0xD8:  # fill, or a mark without a length
            at += 1 if data[at + 1] == 0xFF else 2
        elif data[at + 1] == 0xDA:
            break
        else:
            at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
    if data.find(b"\xff\xd9", at) < 0:
        raise ValueError("cut off: its pixels have no end mark")
