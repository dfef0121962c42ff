"""The one way from a picture file, or its bytes, to pixels: upright, on white, 8 bits of red, green and blue."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import IO, Any

from grpo_mm.datasets.media.picture_checks import about_other_formats, check_jpeg, check_png, without_long_texts
from grpo_mm.datasets.media.picture_modes import to_rgb
from grpo_mm.datasets.media.regular_files import LONGEST_PATH, check_regular
from grpo_mm.datasets.media.unsaid_clear import load_with_clear
from grpo_mm.datasets.media.written_media import is_data_url, written_bytes
from grpo_mm.errors import UserError
from grpo_mm.outside import plain, reason

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What may be decoded. No bytes choose another decoder: PostScript would start a program."""
MAX_PIXELS = 100_000_000
"""Of a picture, by its head: 300 MB in RGB. Checked before anything is decoded."""
ORIENTATION = 0x0112
"""The EXIF tag, 1 to 8: how the stored picture is to be turned and mirrored."""
SIDEWAYS = (5, 6, 7, 8)
SHOWN = 80
"""Characters of a picture given as text that a message quotes."""

Source = str | os.PathLike | bytes
"""A path, a data URL (data:image/png;base64,…), or the bytes of a picture file."""


class PictureError(ValueError, OSError):
    """A picture that cannot be read; the message names it and the reason."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{plain(path, LONGEST_PATH)}: {reason}")
        self.path, self.reason = path, reason


def open_picture(source: Source) -> Any:
    """A PIL picture in RGB, as a viewer shows it.

    Turned as its EXIF says (or XMP, where there is no EXIF tag). Transparent parts lie on white. Of several pages or moving
    pictures the first. Whole numbers of 16 bits from 0 to 65535, floats from 0 to 1, or what the file's tags
    SMinSampleValue and SMaxSampleValue say; whole numbers of 32 bits by these tags only. Colour profiles are not applied
    (numbers count as sRGB, as in the models' own tools). The content says which format it is, not the name.

    Raises:
        PictureError: no regular file, empty, no picture of `FORMATS`, larger than `MAX_PIXELS`, cut off, damaged as far as its
            format can tell, or numbers outside of their range.
    """
    with _opened(source) as (picture, file):
        _check_whole(picture, file)
        if getattr(picture, "default_image", False):  # of a moving PNG: for viewers that show it at rest
            picture.seek(1)
        return to_rgb(_upright(picture, file))


def picture_size(source: Source) -> tuple[int, int]:
    """(width, height) of the picture that `open_picture` gives, from its head.

    Raises:
        PictureError: as `open_picture`, as far as the head tells.
    """
    with _opened(source) as (picture, file):
        if picture.format == "TIFF":  # already that of the upright picture
            return picture.size
        if picture.format == "PNG" and not check_png(file, sums=False) & {b"eXIf", b"iTXt", b"tEXt", b"zTXt"}:
            return picture.size  # Pillow would decode it to look for EXIF data at its end
        turned = _orientation(picture) in SIDEWAYS
        return picture.size[::-1] if turned else picture.size


def is_picture(path: str) -> bool:
    """Whether the head of a file is that of a picture of `FORMATS`, whatever its name."""
    try:
        picture_size(path)
    except PictureError:
        return False
    return True


def picture_format(source: Source) -> str:
    """PNG, JPEG, …, as the content says, of a picture whose head is sound.

    Raises:
        PictureError: as `open_picture`, as far as the head tells.
    """
    with _opened(source) as (picture, file):
        _check_whole(picture, file)
        return picture.format


def picture_data(source: Source) -> bytes:
    """The encoded bytes of a picture, as they are.

    Raises:
        PictureError: no regular file, or empty.
    """
    name = _name(source)
    with _named(name), _file(name, source) as file:
        return file.read()


def as_shown(picture: Any, name: str = "a picture in memory") -> Any:
    """A PIL picture of any mode as `open_picture` gives it.

    Raises:
        PictureError: larger than `MAX_PIXELS`, or of a mode whose numbers have no range.
    """
    with _named(name):
        _check_size(name, picture)
        return to_rgb(_upright(picture))


@contextmanager
def _opened(source: Source) -> Iterator[tuple[Any, IO[bytes]]]:
    """The picture with its head read, and the file it comes from; all that goes wrong is a PictureError."""
    from PIL import Image, ImageFile, UnidentifiedImageError

    # Other packages switch this on for the whole process: half a picture would be filled up with grey.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    name = _name(source)
    with _named(name), _file(name, source) as stored, without_long_texts(stored) as file:
        try:
            picture = Image.open(file, formats=FORMATS)
        except UnidentifiedImageError:
            file.seek(0)
            raise PictureError(name, about_other_formats(file.read(4096), FORMATS)) from None
        except Image.DecompressionBombError:
            raise PictureError(name, f"has more than the {MAX_PIXELS:,} pixels that a picture may have") from None
        with picture:
            _check_size(name, picture)
            yield picture, file


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Pillow raises nearly anything: SyntaxError, struct.error, EOFError, ZeroDivisionError, MemoryError, …"""
    try:
        yield
    except (UserError, PictureError):
        raise
    except Exception as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else reason(error)
        raise PictureError(name, f"cannot be read as a picture ({what})") from error


def _name(source: Source) -> str:
    if isinstance(source, bytes):
        return f"{len(source)} bytes"
    path = os.fspath(source)
    return f"{path[:SHOWN]}…" if is_data_url(path) and len(path) > SHOWN else path


def _file(name: str, source: Source) -> IO[bytes]:
    if isinstance(source, bytes):
        data = source
    elif is_data_url(path := os.fspath(source)):
        data = _data_of(name, path)
    else:
        check_regular(path, PictureError)
        return open(path, "rb")
    if not data:
        raise PictureError(name, "is empty (0 bytes)")
    return BytesIO(data)


def _data_of(name: str, url: str) -> bytes:
    try:
        return written_bytes(url) or b""
    except ValueError as error:
        raise PictureError(name, str(error)) from error


def _check_whole(picture: Any, file: IO[bytes]) -> None:
    if picture.format == "PNG":
        check_png(file)
    elif picture.format in ("JPEG", "MPO"):
        check_jpeg(file)


def _check_size(name: str, picture: Any) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise PictureError(name, f"has {width} × {height} pixels; a picture may have {MAX_PIXELS:,}")
    if not width or not height:
        raise PictureError(name, f"has {width} × {height} pixels")


def _upright(picture: Any, file: IO[bytes] | None = None) -> Any:
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
    }  # fmt: skip
    load_with_clear(picture, file)  # a TIFF turns itself
    turn = turns.get(_orientation(picture))
    if turn is None:
        return picture
    turned = picture.transpose(turn)
    turned.info, turned.format = picture.info, picture.format
    return turned


def _orientation(picture: Any) -> int | None:
    """1 to 8; None without one, or with EXIF data that nobody can read."""
    try:
        return picture.getexif().get(ORIENTATION)
    except Exception:  # viewers show such pictures as they are stored
        return None
