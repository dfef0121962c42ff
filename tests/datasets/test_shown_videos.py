"""Videos as players show them: eight display matrices, pixels that are not square, transparency, frame files in order."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from grpo_mm.datasets.media.frame_sampling import FrameSampling
from grpo_mm.datasets.media.frame_store import FrameStore
from grpo_mm.datasets.media.media_files import VideoError, VideoFile, read_video
from grpo_mm.datasets.media.picture_sequence import PictureSequence, read_pictures
from grpo_mm.errors import ConfigError, UserError
from grpo_mm.rewards.shared.pictures import FloatPictures, ready, takes_pictures

COLOURS = {"R": (220, 30, 30), "G": (30, 200, 30), "B": (30, 30, 220), "W": (240, 240, 240)}
WHOLE = FrameSampling(fps=2.0, min_pixels_frame=1, max_pixels_frame=10**6, max_pixels_total=None, multiple_of=4)


def quarters(height=64, width=128, order="RGBW"):
    picture_HWC = np.zeros((height, width, 3), np.uint8)
    for k, colour in enumerate(order):
        y, x = k // 2 * height // 2, k % 2 * width // 2
        picture_HWC[y : y + height // 2, x : x + width // 2] = COLOURS[colour]
    return picture_HWC


def seen(picture_CHW):
    shown = np.asarray(picture_CHW).astype(float)
    _, height, width = shown.shape
    places = [(y, x) for y in (0.25, 0.75) for x in (0.25, 0.75)]
    at = [shown[:, int(height * y), int(width * x)] for y, x in places]
    return "".join(min(COLOURS, key=lambda c: np.abs(value - COLOURS[c]).sum()) for value in at)


def clip(path: Path, *, pixel=None, size=(64, 128), codec="libx264", form="yuv420p", pictures=None):
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *size, form
        if pixel is not None:
            stream.codec_context.sample_aspect_ratio = pixel
        for picture in pictures or [quarters(*size)] * 10:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24" if picture.shape[-1] == 3 else "rgba")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def shown_by(path: Path, matrix) -> Path:
    """The .mp4 with another display matrix (a, b, c, d)."""
    a, b, c, d = (value << 16 for value in matrix)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


MATRICES = {  # a point (x, y) is shown at (a x + c y, b x + d y)
    (1, 0, 0, 1): "RGBW",
    (-1, 0, 0, 1): "GRWB",
    (1, 0, 0, -1): "BWRG",
    (-1, 0, 0, -1): "WBGR",
    (0, 1, -1, 0): "BRWG",
    (0, -1, 1, 0): "GWRB",
    (0, 1, 1, 0): "RBGW",
    (0, -1, -1, 0): "WGBR",
}


@pytest.mark.parametrize("matrix", MATRICES)
def test_a_video_is_turned_and_mirrored_as_its_display_matrix_says(matrix, tmp_path):
    video = read_video(VideoFile(str(shown_by(clip(tmp_path / "a.mp4"), matrix))), WHOLE)
    assert seen(video.frames_FCHW[0]) == MATRICES[matrix]
    assert video.frames_FCHW.shape[2:] == ((64, 128) if matrix[0] else (128, 64))


@pytest.mark.parametrize(
    ("pixel", "matrix", "size"),
    [
        (Fraction(2), (1, 0, 0, 1), (64, 256)),
        (Fraction(1, 2), (1, 0, 0, 1), (128, 128)),
        (Fraction(4, 3), (1, 0, 0, 1), (64, 172)),
        (Fraction(2), (0, 1, -1, 0), (256, 64)),
        (None, (1, 0, 0, 1), (64, 128)),
    ],
)
def test_pixels_that_are_not_square_are_stretched_as_players_do(pixel, matrix, size, tmp_path):
    path = clip(tmp_path / "a.mp4", pixel=pixel)
    video = read_video(VideoFile(str(shown_by(path, matrix) if matrix[1] else path)), WHOLE)
    assert video.frames_FCHW.shape[2:] == size
    assert seen(video.frames_FCHW[0]) == MATRICES[matrix]


def test_a_video_with_transparency_lies_on_white(tmp_path):
    picture = np.dstack([quarters(), np.full((64, 128), 255, np.uint8)])
    picture[:32, :64] = (220, 30, 30, 0)  # red, but nothing of it is to be seen
    path = clip(tmp_path / "a.mov", codec="qtrle", form="argb", pictures=[picture[..., [0, 1, 2, 3]]] * 5)
    assert seen(read_video(VideoFile(str(path)), WHOLE).frames_FCHW[0]) == "WGBW"


@pytest.mark.parametrize(
    "names",
    [
        ["frame_1", "frame_2", "frame_10", "frame_11"],
        ["0001", "0002", "0010", "0011"],
        ["f9", "f10", "f99", "f100"],
        ["a1b2", "a1b10", "a2b1", "a10b0"],
        ["1", "2", "10", "20"],
        ["007", "8", "09", "10"],
        ["x-1.5", "x-1.10", "x-2.0", "x-10.0"],
        ["Bild 2", "Bild 10", "Bild 21", "Bild 100"],
        ["1²2", "2²1", "10²1", "11²1"],
    ],
)
def test_frame_files_come_in_the_order_of_their_numbers(names, tmp_path):
    for name, order in zip(names, ["RGBW", "GBWR", "BWRG", "WRGB"], strict=True):
        Image.fromarray(quarters(order=order)).save(tmp_path / f"{name}.png")
    sequence = PictureSequence(str(tmp_path), at=(0.0, 1 / 3, 2 / 3, 1.0), fps=1.0)
    frames = read_pictures(sequence, WHOLE).frames_FCHW
    assert [seen(frame) for frame in frames] == ["RGBW", "GBWR", "BWRG", "WRGB"]


def test_frame_files_of_another_size_are_refused_by_name(tmp_path):
    Image.fromarray(quarters()).save(tmp_path / "1.png")
    Image.fromarray(quarters(32, 64)).save(tmp_path / "2.png")
    with pytest.raises(VideoError, match=r"2\.png"):
        read_pictures(PictureSequence(str(tmp_path), at=(0.0, 1.0), fps=1.0), WHOLE)


def test_a_file_that_is_replaced_is_read_anew(tmp_path):
    store, path = FrameStore(sampling=WHOLE), tmp_path / "a.mp4"
    assert seen(store.get(VideoFile(str(clip(path)))).frames_FCHW[0]) == "RGBW"
    assert seen(store.get(VideoFile(str(shown_by(path, (-1, 0, 0, 1))))).frames_FCHW[0]) == "GRWB"


class Brightness:
    @takes_pictures
    def __call__(self, items, prompts):
        return {"score": items.float().mean((1, 2, 3)) / 255}


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
def test_floats_are_scored_by_the_range_that_is_declared(low, high):
    whole = (torch.rand(3, 3, 8, 12, generator=torch.Generator().manual_seed(0)) * 255).round().byte()
    floats = whole.double() / 255 * (high - low) + low
    right = Brightness()(whole, [None] * 3)["score"]
    assert torch.equal(Brightness()(FloatPictures(floats, low, high), [None] * 3)["score"], right)
    floats[1, 0, 0, 0] = torch.nan
    scores = Brightness()(FloatPictures(floats, low, high), [None] * 3)["score"]
    assert scores.isnan().tolist() == [False, True, False] and scores[0] == right[0]


def test_floats_without_a_range_are_no_pictures():
    with pytest.raises(ValueError, match="FloatPictures"):
        ready(torch.rand(2, 3, 8, 8))


@pytest.mark.parametrize("name", ["a.ts", "a.mkv", "a.flv"])
def test_a_video_without_its_first_key_frame_starts_with_the_next_one(name, tmp_path, caplog):
    import av

    orders = ["RGBW"] * 6 + ["GBWR"] * 6 + ["BWRG"] * 6
    options = {"g": "6", "bf": "0", "sc_threshold": "0"}
    whole = tmp_path / f"whole-{name}"
    with av.open(str(whole), "w") as container:
        stream = container.add_stream("libx264", rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = 64, 128, "yuv420p"
        for order in orders:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(quarters(order=order), format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(whole)) as source, av.open(str(tmp_path / name), "w") as cut:
        (stream,) = source.streams.video
        copy = cut.add_stream_from_template(stream)
        for number, packet in enumerate(p for p in source.demux(stream) if p.size):
            if number >= 2:
                packet.stream = copy
                cut.mux(packet)
    video = read_video(VideoFile(str(tmp_path / name)), replace(WHOLE, fps=5.0))
    assert [seen(frame) for frame in video.frames_FCHW] == ["GBWR"] * 5 + ["BWRG"] * 3
    assert video.duration == pytest.approx(1.6, abs=0.01) and video.time_F[0] == pytest.approx(0.4, abs=0.01)
    assert "does not begin with a key frame: its first 4 frames" in caplog.text


def test_a_moving_avif_moves_and_a_still_one_is_no_video(tmp_path):
    pictures = [Image.fromarray(quarters(order=order)) for order in ("RGBW", "GBWR", "BWRG")]
    pictures[0].save(tmp_path / "a.avif", save_all=True, append_images=pictures[1:], duration=500)
    frames = read_video(VideoFile(str(tmp_path / "a.avif")), WHOLE).frames_FCHW
    assert [seen(frame) for frame in frames[:3]] == ["RGBW", "GBWR", "BWRG"][: len(frames)] and len(frames) >= 2
    pictures[0].save(tmp_path / "b.avif")
    with pytest.raises(VideoError, match="is a still picture"):
        read_video(VideoFile(str(tmp_path / "b.avif")), WHOLE)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP"])
def test_a_still_picture_is_no_video(form, tmp_path):
    Image.fromarray(quarters()).save(tmp_path / "a.mp4", form)
    with pytest.raises(VideoError, match="a still picture is none"):
        read_video(VideoFile(str(tmp_path / "a.mp4")), WHOLE)


@pytest.mark.parametrize(
    ("at", "fps"),
    [((), 1.0), ((-0.1,), 1.0), ((1.1,), 1.0), ((float("nan"),), 1.0)]
    + [((0.0,), fps) for fps in (0.0, -1.0, float("nan"), float("inf"), None)],
)
def test_frame_files_at_no_place_or_rate_are_refused(at, fps):
    with pytest.raises(ConfigError, match="^frames/a: "):
        PictureSequence("frames/a", at=at, fps=fps)


@pytest.mark.parametrize("bad", ["link", "folder", "pipe", "empty"])
def test_a_frame_file_that_is_none_is_named(bad, tmp_path):
    Image.fromarray(quarters()).save(tmp_path / "1.png")
    place = tmp_path / "2.png"
    {
        "link": lambda: place.symlink_to("nowhere"),
        "folder": place.mkdir,
        "pipe": lambda: os.mkfifo(place),
        "empty": place.touch,
    }[bad]()
    with pytest.raises(VideoError, match=r"2\.png: "):
        FrameStore(sampling=WHOLE).get(PictureSequence(str(tmp_path), at=(0.0, 1.0)))


@pytest.mark.parametrize("turn", ["upside down", "mirrored", "read only", "not in a row"])
def test_arrays_are_scored_as_they_lie(turn):
    upright = np.ascontiguousarray(quarters().transpose(2, 0, 1))
    if turn == "read only":
        picture = upright.copy()
        picture.flags.writeable = False
    else:
        picture = {
            "upside down": upright[:, ::-1],
            "mirrored": upright[:, :, ::-1],
            "not in a row": upright[:, :, ::2],
        }[turn]
    (found,) = ready([picture])
    assert np.array_equal(found.numpy(), picture)
    (found,) = ready(FloatPictures([picture / 255.0]))
    assert np.array_equal(found.numpy(), picture)


@pytest.mark.parametrize(
    "images", [None, 3, [Image.new("RGB", (4, 4))], ["a.png"], [np.array([[["a"]]] * 3)], [np.full((3, 2, 2), None)]]
)
def test_floats_that_are_none_are_refused(images):
    with pytest.raises(UserError, match="FloatPictures"):
        ready(FloatPictures(images))


@pytest.mark.parametrize(("low", "high"), [(1, 0), (0, 0), (0, "1"), (None, 1), (float("-inf"), 1), (0, float("nan"))])
def test_a_range_without_numbers_is_refused(low, high):
    with pytest.raises(UserError, match="wanted low < high"):
        FloatPictures(torch.zeros(1, 3, 2, 2), low, high)
