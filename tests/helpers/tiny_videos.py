"""Small videos whose every frame says its own number, and ways to damage them."""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

BITS = 8
MILLISECOND = Fraction(1, 1000)
STEADY = [n / 25 for n in range(50)]
"""Two seconds at 25 frames a second."""
UNEVEN = [n * 0.04 for n in range(20)] + [0.8 + n * 0.2 for n in range(10)] + [2.8 + n * 0.05 for n in range(30)]
"""25, then 5, then 20 frames a second; the last frame begins at 4.25 s."""


def numbered(number: int, height: int, width: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """[H, W, 3]: bars of `number` in binary, most significant first, above a blue floor."""
    picture = np.zeros((height, width, 3), np.uint8)
    for bit in range(BITS):
        bar = slice(bit * width // BITS, (bit + 1) * width // BITS)
        picture[:, bar] = 255 if number >> (BITS - 1 - bit) & 1 else 0
    picture[3 * height // 4 :] = (0, 0, 255)
    if rng is not None:  # something to compress, so that damage has something to hit
        picture[height // 2 : 3 * height // 4] = rng.integers(0, 256, (3 * height // 4 - height // 2, width, 3))
    return picture


def number_of(picture_CHW) -> int:
    """The number that a decoded frame shows."""
    row = np.asarray(picture_CHW)[0, picture_CHW.shape[1] // 4].astype(float)
    width = len(row)
    bars = [row[int((bit + 0.5) * width / BITS)] > 127 for bit in range(BITS)]
    return sum(on << (BITS - 1 - bit) for bit, on in enumerate(bars))


def write_video(
    path: Path | str,
    times: Sequence[float] = STEADY,
    *,
    sizes: Sequence[tuple[int, int]] = ((48, 64),),
    codec: str = "libx264",
    b_frames: int = 0,
    key_every: int = 12,
    noise: bool = False,
    default: int | None = None,
    first_number: int = 0,
    options: Mapping[str, str] | None = None,
) -> str:
    """A video with one stream per (height, width) of `sizes`; stream k shows the numbers from first_number + 100 k."""
    import av

    rng = np.random.default_rng(0) if noise else None
    with av.open(str(path), "w") as container:
        streams = []
        for height, width in sizes:
            settings = {"g": str(key_every), "bf": str(b_frames)}
            settings |= {"crf": "10", "preset": "ultrafast"} if codec == "libx264" else {}
            stream = container.add_stream(codec, rate=25, options=settings | dict(options or {}))
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            stream.codec_context.time_base = stream.time_base = MILLISECOND
            streams.append(stream)
        if default is not None:
            for number, stream in enumerate(streams):
                stream.disposition = av.stream.Disposition.default if number == default else av.stream.Disposition(0)
        for number, seconds in enumerate(times):
            for place, stream in enumerate(streams):
                shown = numbered(first_number + 100 * place + number, stream.height, stream.width, rng)
                frame = av.VideoFrame.from_ndarray(shown, format="rgb24")
                frame.pts, frame.time_base = round(seconds * 1000), MILLISECOND
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())
    return str(path)


def write_pictures(folder: Path, *, count: int, size: tuple[int, int] = (48, 64)) -> str:
    """A folder with JPEGs 00000001.jpg, …, which show the numbers from 0, and a text file, as tracking benchmarks have them."""
    from PIL import Image

    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(numbered(number, *size)).save(folder / f"{number + 1:08d}.jpg", quality=95)
    (folder / "groundtruth.txt").write_text("1,2,3,4\n" * count)
    return str(folder)


def write_sound(path: Path | str) -> str:
    """A second of silence, without any picture."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts = 16000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


def remux(source: str, path: Path | str, **options: str) -> str:
    """The same packets in another container."""
    import av

    with av.open(source) as given, av.open(str(path), "w", options=options) as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(given.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                made.mux(packet)
    return str(path)


def turn(source: str, path: Path, degrees: int) -> str:
    """The same .mp4 with the instruction to show it turned clockwise, as phones write it."""
    one = 1 << 16
    matrix = {90: (0, one, 0, -one, 0, 0), 180: (-one, 0, 0, 0, -one, 0), 270: (0, -one, 0, one, 0, 0)}[degrees]
    data = bytearray(Path(source).read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0: times, track, duration, layer and volume stand before the matrix
    assert struct.unpack(">9i", data[at : at + 36])[::4] == (one, one, 1 << 30)
    data[at : at + 36] = struct.pack(">9i", *matrix, 0, 0, 1 << 30)
    path.write_bytes(data)
    return str(path)


def cut(source: str, path: Path, share: float) -> str:
    data = Path(source).read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return str(path)


def blank_middle(source: str, path: Path, num_bytes: int) -> str:
    """A hole of zeros, as an interrupted download leaves it."""
    data = bytearray(Path(source).read_bytes())
    middle = len(data) // 2
    data[middle : middle + num_bytes] = bytes(num_bytes)
    path.write_bytes(data)
    return str(path)


def flip_bytes(source: str, path: Path, count: int) -> str:
    data, rng = bytearray(Path(source).read_bytes()), random.Random(0)
    for _ in range(count):
        data[rng.randrange(len(data) // 3, len(data) * 9 // 10)] ^= 255
    path.write_bytes(data)
    return str(path)
