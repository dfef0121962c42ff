"""Rewards as a user writes them, for tests."""

import os

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
