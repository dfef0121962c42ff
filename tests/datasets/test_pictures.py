"""A picture is what a viewer shows, or it is refused by its name."""

from __future__ import annotations

import base64
import io
import os

import numpy as np
import pytest
from odd_media import encoded, quarters, save, seen
from PIL import Image, ImageCms

from grpo_mm.datasets.media.frame_store import FrameStore
from grpo_mm.datasets.media.media_files import ImageFile
from grpo_mm.datasets.media.pictures import PictureError, as_shown, open_picture, picture_size
from grpo_mm.datasets.shared.annotated_rows import picture
from grpo_mm.datasets.shared.blanked import Blanked
from grpo_mm.errors import ConfigError, UserError
from grpo_mm.types import Prompt

SHOWN = quarters()
PICTURE = Image.fromarray(SHOWN)
STORED = {
    1: SHOWN, 2: SHOWN[:, ::-1], 3: SHOWN[::-1, ::-1], 4: SHOWN[::-1], 5: SHOWN.transpose(1, 0, 2),
    6: np.rot90(SHOWN), 7: SHOWN[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(SHOWN, -1),
}  # fmt: skip
"""By EXIF orientation: how the picture lies in the file."""


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [0, *STORED, 9])
def test_a_picture_and_its_size_are_upright(orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    told = {"tiffinfo": {0x0112: orientation}} if form == "TIFF" else {"exif": exif}
    data = encoded(np.ascontiguousarray(STORED.get(orientation, SHOWN)), form, **told)
    assert seen(open_picture(data)) == "RGBW" and picture_size(data) == open_picture(data).size == (96, 48)
    opened = Image.open(io.BytesIO(data))
    assert seen(as_shown(opened)) == "RGBW"


def see_through() -> Image.Image:
    """Red where it can be seen, in the upper left quarter; black and clear elsewhere."""
    layers = np.zeros((48, 96, 4), np.uint8)
    layers[:24, :48] = (220, 30, 30, 255)
    return Image.fromarray(layers)


def palette() -> Image.Image:
    return PICTURE.convert("P", palette=Image.Palette.ADAPTIVE)


RED = palette().getpixel((0, 0))
OPEN = {
    "alpha in PNG": (encoded(see_through(), "PNG"), "RWWW"),
    "alpha in WebP": (encoded(see_through(), "WEBP", lossless=True), "RWWW"),
    "alpha in TIFF": (encoded(see_through(), "TIFF"), "RWWW"),
    "palette": (encoded(palette(), "PNG"), "RGBW"),
    "palette with a clear colour": (encoded(palette(), "PNG", transparency=RED), "WGBW"),
    "palette with shades of clear": (encoded(palette(), "PNG", transparency=bytes(0 if i == RED else 255 for i in range(256))), "WGBW"),
    "GIF with a clear colour": (encoded(palette(), "GIF", transparency=RED), "WGBW"),
    "RGB with a clear colour": (encoded(PICTURE, "PNG", transparency=(220, 30, 30)), "WGBW"),
    "inks in JPEG": (encoded(PICTURE.convert("CMYK"), "JPEG", quality=95), "RGBW"),
    "inks in TIFF": (encoded(PICTURE.convert("CMYK"), "TIFF"), "RGBW"),
    "YCbCr in TIFF": (encoded(PICTURE.convert("YCbCr"), "TIFF"), "RGBW"),
    "moving GIF": (encoded(PICTURE, "GIF", save_all=True, append_images=[Image.new("RGB", (96, 48))]), "RGBW"),
    "moving WebP": (encoded(PICTURE, "WEBP", save_all=True, append_images=[Image.new("RGB", (96, 48))]), "RGBW"),
    "moving PNG": (encoded(PICTURE, "PNG", save_all=True, append_images=[Image.new("RGB", (96, 48))]), "RGBW"),
    "moving PNG with another still one": (encoded(Image.new("RGB", (96, 48)), "PNG", save_all=True, default_image=True, append_images=[PICTURE]), "RGBW"),
    "pages of a TIFF": (encoded(PICTURE, "TIFF", save_all=True, append_images=[Image.new("RGB", (96, 48))]), "RGBW"),
    "two cameras": (encoded(PICTURE, "MPO", save_all=True, append_images=[Image.new("RGB", (96, 48))]), "RGBW"),
    "BMP": (encoded(PICTURE, "BMP"), "RGBW"), "PPM": (encoded(PICTURE, "PPM"), "RGBW"),
}  # fmt: skip


@pytest.mark.parametrize("name", OPEN)
def test_a_picture_is_what_a_viewer_shows(name, tmp_path):
    data, wanted = OPEN[name]
    path = save(tmp_path, "no.suffix.that.fits.mp4", data)
    assert seen(FrameStore().load(ImageFile(path))) == wanted and picture_size(path) == (96, 48)
    url = "data:image/any;base64," + base64.b64encode(data).decode()
    for item in (data, ImageFile(url)):
        assert seen(FrameStore().load(item)) == wanted
    assert seen(picture(url, "no/folder", "row 1")) == seen(picture({"bytes": data}, "", "row 1")) == wanted


def test_half_clear_lies_on_white():
    layers = Image.new("LA", (2, 1), (0, 128))
    assert np.asarray(open_picture(encoded(layers, "PNG"))).tolist() == [[[127] * 3] * 2]


def test_lab_is_changed_to_rgb():
    lab = ImageCms.createProfile("LAB")
    changed = ImageCms.applyTransform(
        PICTURE, ImageCms.buildTransform(ImageCms.createProfile("sRGB"), lab, "RGB", "LAB")
    )
    assert seen(open_picture(encoded(changed, "TIFF"))) == "RGBW"


RAMP = np.tile(np.linspace(0, 65535, 96).astype(np.uint16), (8, 1))
UNIT = (RAMP / 65535).astype(np.float32)


@pytest.mark.parametrize(
    "data",
    [
        encoded(RAMP, "PNG"), encoded(RAMP, "TIFF"), encoded(RAMP.astype(">u2"), "TIFF"), encoded(UNIT, "TIFF"), encoded(UNIT, "PPM"),
        encoded(RAMP.astype(np.int32), "PPM"), encoded(RAMP.astype(np.int32), "TIFF", tiffinfo={340: 0, 341: 65535}),
        encoded(UNIT * 9 - 4, "TIFF", tiffinfo={340: -4.0, 341: 5.0}),
    ],
    ids=["16 bits", "TIFF", "big-endian", "float", "PFM", "PGM", "32 bits with a range", "float with a range"],
)  # fmt: skip
def test_numbers_beyond_8_bits_keep_their_range(data):
    assert np.abs(np.asarray(open_picture(data))[0, :, 0] - UNIT[0] * 255).max() <= 0.51


def cut(form: str, **settings: object) -> bytes:
    data = encoded(PICTURE, form, **settings)
    return data[: len(data) * 2 // 3]


def exchanged(form: str) -> bytes:
    """One bit of the last quarter is another."""
    data = bytearray(encoded(np.random.default_rng(0).integers(0, 255, (48, 96, 3), dtype=np.uint8), form))
    data[len(data) * 3 // 4] ^= 1
    return bytes(data)


REFUSED = {
    "floats to 255": (encoded(UNIT * 255, "TIFF"), "numbers go from 0 to 255, and its range is 0 to 1"),
    "floats below 0": (encoded(UNIT - 1, "TIFF"), "numbers go from -1 to 0"),
    "NaN": (encoded(UNIT * np.float32("nan"), "TIFF"), "NaN or infinite"),
    "32 bits without a range": (encoded(RAMP.astype(np.int32), "TIFF"), "32 bits"),
    "cut PNG": (cut("PNG"), "cut off"), "cut JPEG": (cut("JPEG"), "cut off|Truncated"), "cut GIF": (cut("GIF"), "truncated"),
    "cut JPEG in steps": (cut("JPEG", progressive=True), "cut off"), "cut WebP": (cut("WEBP"), "cannot be read"),
    "cut BMP": (cut("BMP"), "truncated"), "cut TIFF": (cut("TIFF"), "cannot be read"), "a bit in PNG": (exchanged("PNG"), "check sum"),
    "AVIF": (encoded(PICTURE, "AVIF"), "is AVIF"), "JPEG 2000": (encoded(PICTURE, "JPEG2000"), "is JPEG 2000"),
    "PDF": (encoded(PICTURE, "PDF"), "is a PDF"), "PostScript": (encoded(PICTURE, "EPS"), "is PostScript"), "ICO": (encoded(PICTURE, "ICO"), "is an icon"),
    "SVG": (b"<svg xmlns='x'></svg>", "is an SVG"), "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0", "is HEIC"), "HTML": (b"\n<!DOCTYPE html>", "is a web page"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"), "text": (b"hello", "no picture"), "empty": (b"", "empty"),
    "a bomb": (encoded(Image.new("1", (20000, 20000)), "PNG"), "100,000,000"), "a large one": (encoded(Image.new("1", (13000, 13000)), "PNG"), "100,000,000"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_sound_picture_is_refused_by_its_name(name, tmp_path, monkeypatch):
    from PIL import ImageFile as Pillow

    monkeypatch.setattr(Pillow, "LOAD_TRUNCATED_IMAGES", True)  # as other packages leave it behind
    data, message = REFUSED[name]
    path = save(tmp_path, "a.png", data)
    with pytest.raises(PictureError, match=message) as caught:
        FrameStore().load(ImageFile(path))
    assert str(caught.value).startswith(path) and not isinstance(caught.value, UserError)
    with pytest.raises(ConfigError, match=r"^row 3: .*" + message):
        picture(data or b" ", "", "row 3") if data else picture("data:image/png;base64,", "", "row 3")


@pytest.mark.parametrize("name", ["pipe", "folder", "/dev/zero", "gone.png", "http://x.y/a.png", "a\0b", "n" * 5000])
def test_only_regular_files_are_opened(name, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    path = str(tmp_path / name) if name in ("pipe", "folder") else name
    for ask in (open_picture, picture_size):
        with pytest.raises(PictureError, match="no file|no such file|cannot be opened|is an address"):
            ask(path)


def test_a_blanked_picture_has_the_upright_size_and_a_broken_one_stays(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = ImageFile(save(tmp_path, "a.jpg", encoded(np.ascontiguousarray(STORED[6]), "JPEG", exif=exif)))
    broken = ImageFile(save(tmp_path, "b.jpg", b"no picture"))

    class Source:
        def load(self):
            return [Prompt("p", "?", media=(turned, broken))]

    blank, other = Blanked(Source()).load()[0].media
    assert blank.size == (96, 48) and other is broken


def test_a_picture_in_memory_is_shown_alike():
    assert seen(FrameStore().load(see_through())) == "RWWW"
    with pytest.raises(PictureError, match="a picture in memory: .*32 bits"):
        FrameStore().load(Image.fromarray(RAMP.astype(np.int32)))
