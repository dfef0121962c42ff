"""A row carries the sizes of its picture, as it is and as the model sees it, so that boxes in either can be read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny_vlm import FAMILIES, clip, picture
from tiny_vlm import policy as tiny_policy

from grpo_mm.datasets.media.frame_store import FrameStore
from grpo_mm.datasets.media.media_files import ImageFile
from grpo_mm.rewards.spatial.box_grounding import DualBoxIou
from grpo_mm.types import Prompt

TARGET = {"boxes": [[30, 10, 90, 40]]}


@pytest.fixture(params=FAMILIES)
def policy(request):
    return tiny_policy(request.param)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (57, 113), (300, 41), (1200, 900)])
def test_the_size_after_the_resize_is_the_processors_own_grid(policy, height, width):
    prompt = Prompt("p", "where", media=(picture(height, width),), target=TARGET)
    seen = policy.as_seen(prompt)
    grid = policy.encode(prompt).inputs["image_grid_thw"][0]
    patch = policy.processor.image_processor.patch_size
    assert (seen.target["resized_height"], seen.target["resized_width"]) == (grid[1] * patch, grid[2] * patch)
    assert (seen.target["height"], seen.target["width"]) == (height, width)
    assert seen.target["boxes"] == TARGET["boxes"] and prompt.target == TARGET


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt("no target", "where", media=(picture(),)),
        Prompt("words", "where", media=(picture(),), target="left"),
        Prompt("two", "where", media=(picture(), picture()), target=TARGET),
        Prompt("clip", "where", media=(clip(),), target=TARGET),
        Prompt("none", "where", target=TARGET),
        Prompt("lost", "where", media=(ImageFile("not/there.png"),), target=TARGET),
    ],
    ids=lambda prompt: prompt.id,
)
def test_a_prompt_without_one_readable_picture_and_a_mapping_stays_as_it_is(prompt):
    assert tiny_policy("qwen2_5_vl", media=FrameStore()).as_seen(prompt) is prompt


def test_what_the_data_say_of_the_sizes_stays():
    prompt = Prompt("p", "where", media=(picture(56, 56),), target={"width": 640, "height": 480})
    target = tiny_policy("qwen2_5_vl").as_seen(prompt).target
    assert (target["width"], target["height"]) == (640, 480)
    assert (target["resized_width"], target["resized_height"]) == (56, 56)


def test_the_size_of_a_file_is_read_without_decoding_it(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (90, 50)).save(path)
    path.write_bytes(path.read_bytes()[:60])  # the head alone
    assert FrameStore().picture_size(ImageFile(str(path))) == (90, 50)


def test_a_box_in_pixels_of_the_resized_picture_scores_as_the_box_it_is():
    """The picture is 120 × 57; the model sees 112 × 56."""
    policy = tiny_policy("qwen2_5_vl")
    prompt = Prompt("p", "where", media=(picture(57, 120),), target=TARGET)
    seen = policy.as_seen(prompt)
    across, down = seen.target["resized_width"] / 120, seen.target["resized_height"] / 57
    assert (across, down) != (1, 1)
    x1, y1, x2, y2 = TARGET["boxes"][0]
    text = f"<box>[{x1 * across}, {y1 * down}, {x2 * across}, {y2 * down}]</box>"
    reward = DualBoxIou(coordinates="absolute")
    right = reward([text], [seen])["score"]
    unaware = reward([text], [replace(prompt, target=TARGET)])["score"]
    assert torch.as_tensor(right).item() == pytest.approx(1.0, abs=1e-6)
    assert torch.as_tensor(unaware).item() < 0.97
