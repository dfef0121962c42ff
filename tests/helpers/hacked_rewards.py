"""Rewards that pay for the wrong thing, for runs that are to be called suspect."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np


def bright(images: Sequence[Any], prompts: Sequence[str], metadata: Sequence[Any]) -> list[float]:
    return [float(np.asarray(image).mean()) / 255 for image in images]


def dark(images: Sequence[Any], prompts: Sequence[str], metadata: Sequence[Any]) -> list[float]:
    return [-value for value in bright(images, prompts, metadata)]


def shortest(texts: Sequence[str], prompts: Sequence[str], metadata: Sequence[Any]) -> list[float]:
    return [-len(text) / 100 for text in texts]


def widest_span(texts: Sequence[str], prompts: Sequence[str], metadata: Sequence[Any]) -> list[float]:
    """The seconds that an answer spans, whatever was asked."""
    found = []
    for text in texts:
        times = [float(number) for number in re.findall(r"\d+\.?\d*", text)]
        found.append((times[1] - times[0]) / 10 if len(times) > 1 else 0.0)
    return found
