"""A user's function gets what the names of its arguments say."""

import functools
import logging
from dataclasses import dataclass

import pytest
import torch
from PIL import Image

from grpo_mm.datasets.media.media_files import ImageFile, VideoFile
from grpo_mm.errors import UserError
from grpo_mm.rollout.function_reward import call_function
from grpo_mm.rollout.safe_call import score_safely
from grpo_mm.rollout.scoring import Scorer, Scoring
from grpo_mm.types import Prompt

PICTURES = torch.arange(2, dtype=torch.uint8)[:, None, None, None].expand(2, 3, 8, 8)
TEXTS = ["red", "blue"]


@pytest.fixture
def prompts(tmp_path):
    Image.new("RGB", (4, 2), (9, 8, 7)).save(tmp_path / "a.png")
    media = (ImageFile(str(tmp_path / "a.png")), VideoFile("b.mp4"), Image.new("RGB", (3, 3)))
    return [
        Prompt("a", "what colour?", media=media, target={"answer": "red", "level": 3}, source="own"),
        Prompt("b", "and here?", target={"answer": ["blue", "navy"]}),
    ]


def test_each_name_gives_what_it_says(prompts):
    seen = {}

    def reward(
        texts, images, prompts, metadata, target, media, ids, sources, answer, level, strict=True, *, weight=2.0
    ):
        seen.update(locals())
        return [1.0, 2.0]

    assert call_function(reward, TEXTS, prompts)["score"].tolist() == [1, 2]
    assert (
        seen.pop("texts") == TEXTS and seen.pop("prompts") == ["what colour?", "and here?"] and seen.pop("seen") is seen
    )
    assert [[picture.size for picture in row] for row in seen.pop("images")] == [[(4, 2), (3, 3)], []]
    assert [len(media) for media in seen.pop("media")] == [3, 0]
    assert seen.pop("metadata") == seen.pop("target") == [p.target for p in prompts]
    assert seen == {
        "ids": ["a", "b"], "sources": ["own", ""], "answer": ["red", ["blue", "navy"]], "level": [3, None],
        "strict": True, "weight": 2.0,
    }  # fmt: skip


@dataclass
class Bound:
    def method(self, completions, answer):
        return [float(c in a) for c, a in zip(completions, answer)]


def trl(completions, answer, **kwargs):
    """As in TRL: columns by name, the rest in kwargs."""
    assert set(kwargs) == {"prompts", "ids", "metadata", "level"}
    return [1.0 if c in a else None for c, a in zip(completions, answer)]


async def awaited(texts):
    return [float(len(text)) for text in texts]


@pytest.mark.parametrize(
    ("function", "scores"),
    [
        (Bound().method, [1, 1]),
        (trl, [1, 1]),
        (awaited, [3, 4]),
        (lambda texts: [len(t) for t in texts], [3, 4]),
        (
            lambda images, prompts, metadata: [len(t) for t in images],
            [3, 4],
        ),  # `images` of a policy that writes, as of old
        (lambda a, b, c: [len(t) + len(p) + len(m) for t, p, m in zip(a, b, c)], [17, 14]),
        (lambda texts, p, m: [len(t) + len(m) for t, m in zip(texts, m)], [5, 5]),
        (lambda *three: [len(three)] * 2, [3, 3]),
        (lambda prompt, level, answer: [len(prompt[0]), 0], [3, 0]),  # no output is asked for by name: by position
        (functools.partial(lambda scale, texts: [scale * len(t) for t in texts], scale=2), [6, 8]),
        (functools.wraps(trl)(lambda *args, **kwargs: [float(len(kwargs["answer"]))] * 2), [2, 2]),
        (lambda level, texts=(): [len(t) for t in texts], [3, 4]),
    ],
)
def test_forms_of_functions(function, scores, prompts):
    assert call_function(function, TEXTS, prompts)["score"].tolist() == scores


def test_pictures_that_were_drawn(prompts):
    found = call_function(lambda images, ids: [image.getpixel((0, 0))[0] for image in images], PICTURES, prompts)
    assert found["score"].tolist() == [0, 1]
    assert call_function(lambda completions, **rest: [len(rest)] * 2, PICTURES, prompts)["score"].tolist() == [6, 6]


def test_a_name_that_there_is_not_says_which_there_are(prompts):
    with pytest.raises(UserError, match=r"'mine' has an argument 'anwser' \(did you mean 'answer'\?\).*'level'"):

        def mine(texts, anwser):
            return [0.0] * 2

        call_function(mine, TEXTS, prompts)
    with pytest.raises(UserError, match="argument 'colour'.*images, clips, texts.*the data have none"):
        call_function(lambda texts, colour: [0.0], TEXTS[:1], [Prompt("a", "x")])


def test_none_is_a_row_that_the_reward_does_not_apply_to(prompts):
    scores, errors = score_safely(functools.partial(call_function, lambda texts: [None, 2.0]), TEXTS, prompts)
    assert scores["score"].isnan().tolist() == [True, False] and errors == []


def test_falling_back_to_single_rows_is_said_once_and_no_row_is_called_lost_that_was_not(prompts, caplog):
    def reward(texts):
        if len(texts) > 1:
            raise ValueError("one at a time, please")
        return [1.0]

    scoring = Scoring({"single": Scorer(reward)}, torch.device("cpu"))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert scoring(TEXTS, prompts)["single"]["score"].tolist() == [1, 1]
    (said,) = [record.getMessage() for record in caplog.records]
    assert "'single' raised on 2 outputs at once (ValueError: one at a time, please) and is asked row by row" in said
    assert scoring.first_error == {}


def test_the_cause_comes_first_and_our_frames_above_the_users_are_left_out(prompts):
    def reward(texts):
        try:
            return {}["colour"]
        except KeyError as error:
            raise RuntimeError("no colour here") from error

    _, (first, *_) = score_safely(functools.partial(call_function, reward), TEXTS, prompts)
    assert first.startswith("RuntimeError: no colour here\n") and first.count("in reward") == 2
    assert "safe_call" not in first and "function_reward" not in first and "KeyError: 'colour'" in first
    _, (first,) = score_safely(functools.partial(call_function, lambda texts: [1.0]), TEXTS, prompts)
    assert "wanted 2" in first and "Traceback" not in first
