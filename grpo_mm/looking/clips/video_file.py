"""A clip as a file that browsers play: mp4 (H.264) where PyAV has an encoder for it, else an animated WebP by Pillow."""

from __future__ import annotations

import os
import tempfile
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from grpo_mm.types import Clip

ENDINGS = (".mp4", ".webp")
ENCODERS = {
    # Trees of macroblocks and looking ahead compute in floats whose sums differ from call to call: equal clips, other bytes.
    "libx264": {"crf": "18", "preset": "veryfast", "threads": "1", "rc-lookahead": "0", "x264-params": "mbtree=0"},
    "libopenh264": {"threads": "1"},
}
"""Of H.264, with what they are told; each gives equal bytes for equal clips."""


@cache
def ending() -> str:
    """ ".mp4", or ".webp" where PyAV was built without an encoder for H.264."""
    return ".mp4" if _encoder() else ".webp"


@cache
def _encoder() -> str | None:
    try:
        import av
    except ImportError:
        return None
    return next((name for name in ENCODERS if name in av.codecs_available and _opens(av, name)), None)


def _opens(av: Any, name: str) -> bool:
    try:
        return bool(av.codec.Codec(name, "w"))
    except Exception:  # a codec that only decodes
        return False


def write_clip(path: Path, clip: Clip, *, max_px: int | None = None) -> Path:
    """Writes a clip beside its final name, then renames it; the ending of `path` is replaced by `ending()`. Gives the file.

    Equal clips give equal bytes on one machine. H.264 halves the resolution of colours and is not lossless; a side that is odd gets a
    line more, as that format asks for. max_px: of the longer side, larger ones are scaled down; None: as it is.
    """
    path = path.with_suffix(ending())
    frames = fitted(clip.frames_FCHW, max_px)
    aside = path.with_name(f".writing_{path.name}")
    _write_mp4(aside, frames, clip.fps) if path.suffix == ".mp4" else _write_webp(aside, frames, clip.fps)
    os.replace(aside, path)
    return path


def clip_bytes(clip: Clip, *, max_px: int | None = None) -> bytes:
    """What `write_clip` writes: small enough to be gathered."""
    with tempfile.TemporaryDirectory() as folder:
        return write_clip(Path(folder) / "clip", clip, max_px=max_px).read_bytes()


def fitted(frames_FCHW: Tensor, max_px: int | None) -> Tensor:
    """uint8 [F, 3, h, w] with no side above max_px, in their shape."""
    height, width = frames_FCHW.shape[2:]
    if max_px is None or max(height, width) <= max_px:
        return frames_FCHW.cpu()
    shrink = max_px / max(height, width)
    size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    parts = [F.interpolate(part.float(), size, mode="bilinear", antialias=True) for part in frames_FCHW.cpu().split(16)]
    return torch.cat(parts).round().clamp(0, 255).to(torch.uint8)


def _write_mp4(path: Path, frames_FCHW: Tensor, fps: float) -> None:
    import av

    height, width = frames_FCHW.shape[2:]
    frames = F.pad(frames_FCHW.float(), (0, width % 2, 0, height % 2), mode="replicate").to(torch.uint8)
    rate, name = Fraction(fps).limit_denominator(60_000), _encoder()
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(str(path), "w", format="mp4", options=options) as container:
        stream: Any = container.add_stream(name, rate=rate, options=dict(ENCODERS[str(name)]))
        stream.height, stream.width, stream.pix_fmt = frames.shape[2], frames.shape[3], "yuv420p"
        for number, frame in enumerate(frames):
            shown = av.VideoFrame.from_ndarray(frame.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
            shown.pts, shown.time_base = number, 1 / rate
            container.mux(stream.encode(shown))
        container.mux(stream.encode())


def _write_webp(path: Path, frames_FCHW: Tensor, fps: float) -> None:
    from PIL import Image

    first, *others = [Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()) for frame in frames_FCHW]
    lasts = [round(1000 * (i + 1) / fps) - round(1000 * i / fps) for i in range(len(frames_FCHW))]
    first.save(path, format="WEBP", save_all=True, append_images=others, duration=lasts, loop=0, quality=85, method=2)
