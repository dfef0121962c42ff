"""Rewards as a user writes them, for tests."""

import os
import time

import numpy as np


def bright(images, prompts, metadata):
    return [float(np.asarray(image).mean()) / 255 for image in images]


def dark(images, prompts, metadata):
    return [-score for score in bright(images, prompts, metadata)]


def level(images, prompts, metadata):
    return [entry["level"] for entry in metadata]


def broken(images, prompts, metadata):
    return [1 / 0 for _ in images]


def rank(images, prompts, metadata):
    return [float(os.environ.get("RANK", 0))] * len(images)


def letters(texts, prompts, metadata):
    """A number that differs between any two texts of a tiny model, so that there is something to learn from."""
    return [sum(map(ord, text)) % 97 / 97 for text in texts]


def slept(images, prompts, metadata):
    """The number in each prompt's text, after a nap for each; the process dies at "die"."""
    for prompt in prompts:
        if prompt == "die":
            os._exit(3)
        time.sleep(0.01)
    return [float(prompt) for prompt in prompts]


def by_place(images, prompts, metadata):
    """Blind to what was sampled: rounding, which moves a pixel by a level now and then, moves no advantage."""
    return [i % 4 / 4 for i in range(len(images))]


def hangs_beside_main(images, prompts, metadata):
    """Blind to what was sampled; on all processes but the main one it never returns."""
    while os.environ.get("RANK", "0") != "0":
        time.sleep(60)
    return by_place(images, prompts, metadata)
