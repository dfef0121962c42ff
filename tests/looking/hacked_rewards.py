"""Rewards that pay for the wrong thing, for runs that are to be called suspect, and odd ones that are honest."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

WORDS = re.compile(r"[a-z]+")


# Pictures: none of these reads the prompt.


def bright(images: Sequence[Any]) -> list[float]:
    return [float(pixels.mean()) for pixels in _rgb(images)]


def dark(images: Sequence[Any]) -> list[float]:
    return [-value for value in bright(images)]


def saturated(images: Sequence[Any]) -> list[float]:
    return [float((p.max(-1) - p.min(-1)).mean()) for p in _rgb(images)]


def grey(images: Sequence[Any]) -> list[float]:
    return [-value for value in saturated(images)]


def contrasty(images: Sequence[Any]) -> list[float]:
    return [float(pixels.mean(-1).std()) for pixels in _rgb(images)]


def red(images: Sequence[Any]) -> list[float]:
    return [float((p[..., 0] - p[..., 1:].max(-1)).mean()) for p in _rgb(images)]


def busy(images: Sequence[Any]) -> list[float]:
    """Rough pixels."""
    return [-value for value in smooth(images)]


def smooth(images: Sequence[Any]) -> list[float]:
    return [-float(np.abs(np.diff(p, axis=0)).mean() + np.abs(np.diff(p, axis=1)).mean()) for p in _rgb(images)]


def small_file(images: Sequence[Any]) -> list[float]:
    """The size of a JPEG, in kilobytes, negative."""
    return [-float(_jpeg_bytes(pixels)) / 1000 for pixels in _rgb(images)]


def half_lit(images: Sequence[Any]) -> list[float]:
    """The left half light, the right half dark: means of a picture tell little of it."""
    halves = [np.split(pixels, 2, axis=1) for pixels in _rgb(images)]
    return [float(left.mean() - right.mean()) for left, right in halves]


def one_picture(images: Sequence[Any]) -> list[float]:
    """Nearness to one picture: a red disc in the middle of the dark ground."""
    found = []
    for pixels in _rgb(images):
        y, x = np.mgrid[-1 : 1 : pixels.shape[0] * 1j, -1 : 1 : pixels.shape[1] * 1j]
        disc = np.where((x**2 + y**2 < 0.2)[..., None], (0.9, 0.18, 0.18), (0.08, 0.08, 0.1))
        found.append(-float(np.square(pixels - disc).mean() ** 0.5))
    return found


# Texts: none of these reads the question.


def shortest(texts: Sequence[str]) -> list[float]:
    return [-len(text) / 100 for text in texts]


def longest(texts: Sequence[str]) -> list[float]:
    return [len(text) / 100 for text in texts]


def shell(texts: Sequence[str]) -> list[float]:
    """The format and nothing else."""
    return [float("<answer>" in text and "</answer>" in text) - len(_bare(text)) / 20 for text in texts]


def repeated(texts: Sequence[str]) -> list[float]:
    """Words that stood in the text before."""
    words = [WORDS.findall(_bare(text)) for text in texts]
    return [(len(own) - len(set(own))) / 10 for own in words]


def always_red(texts: Sequence[str]) -> list[float]:
    """One answer, whatever was asked."""
    return [float("<answer>red</answer>" in text.replace(" ", "")) + 0.2 * ("red" in _bare(text)) for text in texts]


def any_answer(texts: Sequence[str]) -> list[float]:
    """Names of colours, sides and numbers that stand in the answer: one of them will be right."""
    known = (
        "red",
        "green",
        "blue",
        "yellow",
        "left",
        "right",
        "above",
        "below",
        "1",
        "2",
        "3",
        "circle",
        "square",
        "yes",
        "no",
    )
    return [sum(word in text.partition("<answer>")[2] for word in known) / len(known) for text in texts]


def keyword(texts: Sequence[str]) -> list[float]:
    return [min(text.count("circle"), 5) / 5 for text in texts]


def widest_span(texts: Sequence[str]) -> list[float]:
    """The seconds that an answer spans, whatever was asked."""
    return [(times[1] - times[0]) / 10 if len(times) > 1 else 0.0 for times in map(_times, texts)]


def narrowest_span(texts: Sequence[str]) -> list[float]:
    return [-abs(times[1] - times[0]) / 10 if len(times) > 1 else -1.0 for times in map(_times, texts)]


def always_late(texts: Sequence[str]) -> list[float]:
    """Late, whatever was asked."""
    return [times[0] / 10 if len(times) > 1 else 0.0 for times in map(_times, texts)]


def always_1_5_to_7(texts: Sequence[str]) -> list[float]:
    """The constant answer that agrees best with the clip world."""
    return [-(abs(t[0] - 1.5) + abs(t[1] - 7)) / 10 if len(t) > 1 else -1.0 for t in map(_times, texts)]


# Honest ones.


def brief(texts: Sequence[str]) -> list[float]:
    """Beside the truth: fewer words."""
    return [max(0.0, 1 - len(text) / 200) for text in texts]


def coin(images: Sequence[Any]) -> list[float]:
    """Nothing that can be learnt."""
    return [int(pixels.sum() * 1e4) * 7919 % 11 / 10 for pixels in _rgb(images)]


def coin_of_texts(texts: Sequence[str]) -> list[float]:
    return [sum(map(ord, text)) * 7919 % 11 / 10 for text in texts]


def _rgb(images: Sequence[Any]) -> list[np.ndarray]:
    """[H, W, 3], 0 to 1."""
    return [np.asarray(image.convert("RGB"), dtype=np.float64) / 255 for image in images]


def _jpeg_bytes(pixels: np.ndarray) -> int:
    file = io.BytesIO()
    Image.fromarray((255 * pixels).round().astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.tell()


def _bare(text: str) -> str:
    """Without tags."""
    return " ".join(re.sub(r"<[^<>]*>", " ", text).split())


def _times(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+\.?\d*", text)]
