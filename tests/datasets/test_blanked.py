"""Blanked prompts ask the same about pictures of the same size that show nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from grpo_mm.config.typed_yaml import component
from grpo_mm.datasets.media.media_files import ImageFile, VideoFile
from grpo_mm.datasets.shared.blanked import Blanked
from grpo_mm.errors import ConfigError
from grpo_mm.registry import Role
from grpo_mm.types import Prompt


class Source:
    def __init__(self, *media):
        self.media = media

    def load(self):
        return [Prompt("p", "which", media=self.media, target={"answer": "left"})]


def test_pictures_of_every_kind_become_grey_ones_of_their_size(tmp_path):
    Image.new("RGB", (9, 5), "red").save(tmp_path / "a.png")
    array = torch.zeros(3, 5, 9, dtype=torch.uint8)
    source = Source(ImageFile(str(tmp_path / "a.png")), Image.new("RGB", (9, 5), "blue"), array, array.numpy())
    (prompt,) = Blanked(source).load()
    assert all(np.array_equal(np.asarray(picture), np.full((5, 9, 3), 128)) for picture in prompt.media)
    assert len(prompt.media) == 4 and (prompt.id, prompt.text, prompt.target) == ("p", "which", {"answer": "left"})


def test_videos_are_refused_by_name():
    with pytest.raises(ConfigError, match="'p' shows VideoFile"):
        Blanked(Source(VideoFile("a.mp4"))).load()


def test_a_shade_out_of_range_is_refused():
    with pytest.raises(ConfigError, match="shade = 300"):
        component(Role("prompts"), {"kind": "blanked", "of": {"kind": "scene_world"}, "shade": 300}, path="x")
