"""What a picture's bytes tell that Pillow does not ask: check sums, an end, and which format it is that is not read."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from io import BytesIO
from typing import IO

PNG = b"\x89PNG\r\n\x1a\n"
PNG_HEAD = len(PNG)
TEXTS = (b"zTXt", b"iTXt", b"iCCP")
"""Parts of a PNG that are compressed on their own: texts and a colour profile. Nothing of them is shown."""
LONG_TEXT = 1 << 20
"""Bytes, unfolded, above which Pillow refuses the picture."""
FOLDED = 1032
"""Times that compressed data may grow at most."""
OTHERS = (
    (b"%PDF", "a PDF document"), (b"%!PS", "PostScript"), (b"\xc5\xd0\xd3\xc6", "PostScript"), (b"<svg", "an SVG drawing"),
    (b"<?xml", "XML (an SVG drawing?)"), (b"\x00\x00\x01\x00", "an icon (ICO)"), (b"8BPS", "a Photoshop document"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"), (b"\xff\x4f\xff\x51", "JPEG 2000"), (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"), (b"version https://git-lfs", "a git-lfs pointer: fetch the file itself (git lfs pull)"),
    (b"<!DOCTYPE", "a web page"), (b"<!doctype", "a web page"), (b"<html", "a web page"), (b"{", "JSON"), (b"PK\x03\x04", "a zip archive"),
)  # fmt: skip
READ = (
    (PNG, "PNG"), (b"\xff\xd8\xff", "JPEG"), (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"II+\0", "TIFF"), (b"MM\0+", "TIFF"),
    (b"GIF8", "GIF"), (b"BM", "BMP"),
)  # fmt: skip
"""Formats of which nearly all is read."""
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
    if kind := next((name for magic, name in READ if head.startswith(magic)), ""):
        return f"is a {kind} of a kind that is not read, or damaged in its head; save it with 8 or 16 bits a channel, grey or RGB"
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


def without_long_texts(file: IO[bytes]) -> IO[bytes]:
    """The file; of a PNG with a text or profile that is too long for Pillow a copy in memory without these."""
    if file.read(PNG_HEAD) != PNG:
        file.seek(0)
        return file
    size, at = file.seek(0, 2), PNG_HEAD
    left_out: list[tuple[int, int]] = []
    while at + 12 <= size:
        file.seek(at)
        head = file.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if (
            kind in TEXTS
            and length * FOLDED > LONG_TEXT
            and at + length + 12 <= size
            and _is_long(kind, file.read(length))
        ):
            left_out.append((at, at + length + 12))
        at += length + 12
    file.seek(0)
    if not left_out:
        return file
    data = bytearray(file.read())
    for start, end in reversed(left_out):
        del data[start:end]
    return BytesIO(data)


def _is_long(kind: bytes, data: bytes) -> bool:
    _, _, rest = data.partition(b"\0")
    if kind == b"iTXt":
        if rest[:1] != b"\1":  # not compressed
            return False
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    else:
        rest = rest[1:]
    try:
        return len(zlib.decompressobj().decompress(rest, LONG_TEXT + 1)) > LONG_TEXT
    except zlib.error:
        return False


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
