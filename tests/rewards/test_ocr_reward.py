"""The OCR rule on strings, and RapidOCR on rendered text."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from grpo_mm.rewards.images.ocr import OcrReward, edit_distance, target_text, text_similarity
from grpo_mm.types import Prompt


@pytest.mark.parametrize(
    ("recognised", "target", "score"),
    [
        ("Hello World", "hello world", 1.0),
        ("xxHELLO  WORLDyy", "Hello World", 1.0),  # a substring costs nothing
        ("", "hello", 0.0),
        ("helo", "hello", 0.8),
        ("hallo welt", "hello world", 0.6),  # a to e; e to o, r in, t to d: four edits of ten letters
        ("completely different", "abc", 0.0),  # edits are cut at the length
        ("h e l l o", "HELLO", 1.0),
    ],
)
def test_text_similarity_by_hand(recognised, target, score):
    assert text_similarity(recognised, target) == pytest.approx(score)


def test_an_empty_target_has_no_similarity():
    with pytest.raises(ValueError, match="empty"):
        text_similarity("x", "  ")


def slow_distance(a: str, b: str) -> int:
    if not a or not b:
        return len(a) + len(b)
    return min(slow_distance(a[1:], b) + 1, slow_distance(a, b[1:]) + 1, slow_distance(a[1:], b[1:]) + (a[0] != b[0]))


def test_edit_distance_agrees_with_its_definition():
    rng = np.random.default_rng(0)
    for _ in range(60):
        a, b = ("".join(rng.choice(list("abc"), rng.integers(0, 6))) for _ in range(2))
        assert edit_distance(a, b) == slow_distance(a, b) == edit_distance(b, a)


def test_the_target_text_is_the_given_one_or_the_first_quoted():
    assert target_text(Prompt("0", 'a sign "OPEN"', target={"text": "CLOSED"})) == "CLOSED"
    assert target_text(Prompt("0", 'a sign "OPEN" and "no"', target={"tag": "x"})) == "OPEN"
    assert target_text(Prompt("0", "a sign")) is None


def sign(*lines: str, side_px: int, font_px: int, color: str = "navy") -> torch.Tensor:
    image = Image.new("RGB", (side_px, side_px), "white")
    for row, line in enumerate(lines):
        place = (side_px // 12, side_px // 6 + row * font_px * 2)
        ImageDraw.Draw(image).text(place, line, fill=color, font=ImageFont.load_default(font_px))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_rendered_text_is_read_and_scored():
    pytest.importorskip("rapidocr")
    reward = OcrReward()
    reward.check()
    large = torch.stack(
        [sign("Hello World", side_px=512, font_px=64), sign("Step", "Goal 42", side_px=512, font_px=70)]
    )
    scores = reward(large, [Prompt("0", 'a sign "hello world"'), Prompt("1", "x", target={"text": "Step Goal 42"})])
    assert scores["score"].tolist() == [1, 1] == scores["found"].tolist()
    small = torch.stack([sign(text, side_px=256, font_px=48, color="crimson") for text in ("OPEN", "OPEM", "", "OPEN")])
    prompts = [Prompt(str(i), 'a sign "OPEN"') for i in range(3)] + [Prompt("3", "no text asked for")]
    scores = reward(small, prompts)
    assert scores["score"][:3].tolist() == [1, 0.75, 0] and scores["found"][:3].tolist() == [1, 0, 0]
    assert scores["score"][3].isnan() and scores["found"][3].isnan()
