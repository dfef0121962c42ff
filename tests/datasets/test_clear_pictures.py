"""Clear parts of a picture as viewers show them, and texts beside a picture that are no reason to refuse it."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from odd_media import COLOURS, encoded, quarters, seen
from PIL import Image

from grpo_mm.datasets.media.frame_store import FrameStore
from grpo_mm.datasets.media.pictures import PictureError, as_shown, open_picture, picture_size

HEIGHT, WIDTH = 8, 16


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def png(depth: int, colour: int, row: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress((b"\0" + row) * HEIGHT))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunk(*one) for one in extra) + pixels + chunk(b"IEND", b"")


def halves(left: int, right: int, depth: int) -> bytes:
    """A row of grey, left and right."""
    bits = "".join(f"{value:0{depth}b}" for value in [left] * (WIDTH // 2) + [right] * (WIDTH // 2))
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def colours(left: tuple[int, ...], right: tuple[int, ...]) -> bytes:
    return np.array([left] * (WIDTH // 2) + [right] * (WIDTH // 2), ">u2").tobytes()


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("clear", ["left", "right"])
def test_the_grey_that_is_named_as_clear_is_white(depth, clear):
    dark, darker = (2**depth // 4, 0) if depth > 1 else (1, 0)
    named = struct.pack(">H", dark if clear == "left" else darker)
    shown = np.asarray(open_picture(png(depth, 0, halves(dark, darker, depth), (b"tRNS", named))))
    left, right = shown[0, 0, 0], shown[0, -1, 0]
    rest = round(dark / (2**depth - 1) * 255)
    assert (left, right) == ((255, 0) if clear == "left" else (rest, 255))


@pytest.mark.parametrize(
    ("left", "right"), [((0, 0, 5), (0, 0, 5 << 8)), ((0x1234, 0, 0), (0x1299, 0, 0)), ((65535, 0, 0), (65534, 0, 0))]
)
def test_a_clear_colour_of_16_bits_is_compared_by_all_of_them(left, right):
    shown = np.asarray(open_picture(png(16, 2, colours(left, right), (b"tRNS", struct.pack(">HHH", *left)))))
    assert shown[0, 0].tolist() == [255] * 3 and shown[0, -1].tolist() == [value >> 8 for value in right]


@pytest.mark.parametrize("change", ["quantize", "convert"])
def test_a_palette_with_alpha_in_memory_lies_on_white(change):
    layers = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    layers[:, : WIDTH // 2] = (*COLOURS["R"], 255)
    picture = Image.fromarray(layers)
    picture = picture.quantize(8, method=Image.Quantize.FASTOCTREE) if change == "quantize" else picture.convert("P")
    assert picture.mode == "P" and seen(FrameStore().load(picture)) == "RWRW"


def gif(box: tuple[int, int, int, int], clear: int | None) -> bytes:
    """A screen of WIDTH × HEIGHT with one blue frame at x, y, width, height."""
    x, y, width, height = box
    palette = b"".join(bytes(COLOURS[name]) for name in "RGBW")
    bits, used, codes = 0, 0, [code for _ in range(width * height) for code in (4, 2)] + [5]
    for code in codes:
        bits, used = bits | code << used, used + 3
    data = bits.to_bytes((used + 7) // 8, "little")
    blocks = b"".join(bytes([len(data[k : k + 255])]) + data[k : k + 255] for k in range(0, len(data), 255))
    control = b"\x21\xf9\x04" + bytes([int(clear is not None), 9, 0, clear or 0, 0])
    frame = b"\x2c" + struct.pack("<HHHHB", *box, 0) + b"\x02" + blocks + b"\0"
    return b"GIF89a" + struct.pack("<HHBBB", WIDTH, HEIGHT, 0xF1, 0, 0) + palette + control + frame + b";"


@pytest.mark.parametrize("clear", [None, 1])
def test_around_the_first_frame_of_a_gif_nothing_is_shown(clear):
    data = gif((WIDTH // 2, HEIGHT // 2, WIDTH // 2, HEIGHT // 2), clear)
    assert seen(open_picture(data)) == "WWWB" and picture_size(data) == (WIDTH, HEIGHT)
    assert seen(open_picture(gif((0, 0, WIDTH, HEIGHT), clear))) == "BBBB"
    with Image.open(BytesIO(data)) as opened:
        assert seen(as_shown(opened)) == "WWWB"


LONG = zlib.compress(bytes(3 << 20))
TEXTS = {
    "zTXt": (b"zTXt", b"workflow\0\0" + LONG),
    "iTXt": (b"iTXt", b"workflow\0\1\0\0\0" + LONG),
    "profile": (b"iCCP", b"printer\0\0" + LONG),
    "plain": (b"tEXt", b"workflow\0" + b"{}" * (1 << 20)),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_long_text_beside_a_picture_does_not_refuse_it(name):
    exif = Image.Exif()
    exif[0x0112] = 3
    data = png(8, 2, bytes(COLOURS["R"]) * 8 + bytes(COLOURS["G"]) * 8, TEXTS[name], (b"eXIf", exif.tobytes()[6:]))
    assert seen(open_picture(data)) == "GRGR" and picture_size(data) == (WIDTH, HEIGHT)


def test_a_tiff_of_a_kind_that_is_not_read_is_called_so():
    data = bytearray(encoded(quarters(), "TIFF"))
    place = data.index(struct.pack("<HHI", 258, 3, 3)) + 8  # bits of a sample
    (at,) = struct.unpack_from("<I", data, place)
    struct.pack_into("<HHH", data, at, 32, 32, 32)
    with pytest.raises(PictureError, match="is a TIFF of a kind that is not read"):
        open_picture(bytes(data))
