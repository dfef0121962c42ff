"""A thousand damaged pictures and videos: each is read or refused by its name. None ends a run, hangs, or shows what is not in it."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")

from odd_media import damaged, encoded, quarters, read_in_a_child, save
from tiny_videos import number_of, remux, write_video

from grpo_mm.datasets.media.media_files import FrameSampling, VideoError, VideoFile, read_video
from grpo_mm.datasets.media.pictures import PictureError, open_picture, picture_size

pytestmark = pytest.mark.slow
CAN_TELL = ("a.mp4", "f.mkv", "g.ts")
"""H.264 notices damage. VP8 and VP9 have no check sums, .avi knows frames by their order alone, MPEG-4 part 2 notices some."""
SAMPLING = FrameSampling(frames=6, min_pixels_frame=1, multiple_of=1, max_pixels_total=None)


def pictures() -> dict[str, bytes]:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (48, 96, 3), dtype=np.uint8)
    noise[:24] = quarters()[:24]
    plain, other = Image.fromarray(noise), Image.fromarray(quarters())
    exif = Image.Exif()
    exif[0x0112] = 6
    see_through = plain.copy()
    see_through.putalpha(Image.fromarray(noise[..., 0]))
    return {
        "plain.png": encoded(plain, "PNG"), "alpha.png": encoded(see_through, "PNG", exif=exif),
        "palette.png": encoded(other.convert("P"), "PNG", transparency=1),
        "deep.png": encoded((noise[..., 0].astype(np.uint16) * 257), "PNG"),
        "moving.png": encoded(plain, "PNG", save_all=True, append_images=[other]),
        "base.jpg": encoded(plain, "JPEG", exif=exif), "steps.jpg": encoded(plain, "JPEG", progressive=True),
        "inks.jpg": encoded(plain.convert("CMYK"), "JPEG"), "lossy.webp": encoded(plain, "WEBP"),
        "exact.webp": encoded(see_through, "WEBP", lossless=True), "moving.webp": encoded(plain, "WEBP", save_all=True, append_images=[other]),
        "plain.gif": encoded(plain, "GIF"), "moving.gif": encoded(plain, "GIF", save_all=True, append_images=[other]),
        "plain.bmp": encoded(plain, "BMP"), "raw.tif": encoded(plain, "TIFF", tiffinfo={0x0112: 6}),
        "deflate.tif": encoded(plain, "TIFF", compression="tiff_adobe_deflate"), "lzw.tif": encoded(plain, "TIFF", compression="tiff_lzw"),
        "float.tif": encoded(noise[..., 0].astype(np.float32) / 255, "TIFF"), "plain.ppm": encoded(plain, "PPM"),
    }  # fmt: skip


def read_picture(path: str) -> str:
    try:
        picture_size(path)
    except PictureError:
        pass
    except BaseException as error:
        return f"size: {error!r}"
    try:
        found = open_picture(path)
    except PictureError as error:
        return "refused" if str(error).startswith(path) else f"without its name: {error}"
    except BaseException as error:
        return f"open: {error!r}"
    return f"read {hash(np.asarray(found).tobytes())}"


def test_damaged_pictures(tmp_path):
    rng, wrong, told = random.Random(1), {}, Counter()
    for name, data in pictures().items():
        whole = read_picture(save(tmp_path, f"whole-{name}", data))
        assert whole.startswith("read"), (name, whole)
        paths = [save(tmp_path, f"{k}-{name}", damaged(data, rng)) for k in range(40)]
        for path, said in read_in_a_child(paths, read_picture).items():
            told[said.split()[0]] += 1
            fine = said == "refused" or (said == whole if name.endswith(".png") else said.startswith("read "))
            wrong |= {} if fine else {Path(path).name: said}
    assert not wrong and told["refused"] > 300, (wrong, told)


def videos(folder: Path) -> dict[str, str]:
    times = [n / 25 for n in range(60)]
    made = {
        "a.mp4": write_video(folder / "a.mp4", times, noise=True), "b.mp4": write_video(folder / "b.mp4", times, b_frames=2, codec="mpeg4"),
        "vp8.webm": write_video(folder / "c.webm", times, codec="libvpx", noise=True),
        "vp9.webm": write_video(folder / "d.webm", times[:20], codec="libvpx-vp9"),
        "e.avi": write_video(folder / "e.avi", times, codec="mpeg4"), "f.mkv": write_video(folder / "f.mkv", times, b_frames=2, noise=True),
    }  # fmt: skip
    made["g.ts"] = remux(made["a.mp4"], folder / "g.ts")
    return made


def read_frames(path: str) -> str:
    try:
        found = read_video(VideoFile(path), SAMPLING)
    except VideoError as error:
        return "refused" if str(error).startswith(path) else f"without its name: {error}"
    except BaseException as error:
        return f"raised {error!r}"
    right = [number_of(picture) for picture in found.frames_FCHW] == [round(25 * t) for t in found.time_F.tolist()]
    return "read right" if right else "read wrong"


def test_damaged_videos(tmp_path):
    rng, wrong, told = random.Random(2), {}, Counter()
    for name, source in videos(tmp_path).items():
        assert read_frames(source) == "read right", name
        data = Path(source).read_bytes()
        paths = [save(tmp_path, f"{k}-{name}", damaged(data, rng)) for k in range(50)]
        for path, said in read_in_a_child(paths, read_frames).items():
            told[said] += 1
            fine = said in ("refused", "read right") or (said == "read wrong" and name not in CAN_TELL)
            wrong |= {} if fine else {Path(path).name: said}
    assert not wrong, (wrong, told)
