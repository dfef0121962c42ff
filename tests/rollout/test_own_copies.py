"""A user's reward gets copies; this package's own, which change nothing, are spared them."""

import logging
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image

from grpo_mm.processes import clock
from grpo_mm.rewards.images.jpeg import JpegSize
from grpo_mm.rollout.function_reward import FunctionReward
from grpo_mm.rollout.own_copies import is_own, own_prompt
from grpo_mm.rollout.scoring import Scorer, Scoring
from grpo_mm.types import Pictures, Prompt


@dataclass
class Mine:
    def __call__(self, items, prompts):
        for prompt in prompts:
            prompt.target["seen"] = True
        return [1.0] * len(prompts)


class MineOfTheirs(JpegSize):
    pass


@dataclass
class Holder:
    """Stands for a reward of the package around something of a user."""

    __module__ = "grpo_mm.rewards.shared.holder"
    part: Any


def test_ours_are_told_from_those_of_a_user_or_around_something_of_a_user():
    assert is_own(JpegSize()) and is_own(partial(JpegSize(), 1)) and is_own(Holder(JpegSize()))
    for use in (
        FunctionReward("a:b"),
        Mine(),
        MineOfTheirs(),
        print,
        lambda: 0,
        partial(JpegSize(), Mine()),
        Holder(Mine()),
        Holder([Mine()]),
    ):
        assert not is_own(use), use


def test_a_picture_of_a_prompt_is_copied_with_its_mode_palette_and_notes():
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 0, 9, 8, 7])
    picture.info["transparency"] = 1
    prompt = Prompt("a", "x", media=(picture,), target={"picture": picture})
    own = own_prompt(prompt)
    (shown,) = own.media
    assert shown is not picture and shown is own.target["picture"] and shown.mode == "P"
    assert shown.convert("RGB").getpixel((0, 0)) == (9, 8, 7) and shown.info == {"transparency": 1}
    shown.putpixel((0, 0), 0)
    assert picture.getpixel((0, 0)) == 1


def test_a_reward_is_asked_once_about_a_prompt_that_many_rows_share():
    asked = []

    @dataclass
    class Asked(Mine):
        def applies_to(self, prompt):
            asked.append(prompt.id)
            return prompt.id != "b"

    a, b = Prompt("a", "x", target={}), Prompt("b", "x", target={})
    scores = Scoring({"r": Scorer(Asked())}, torch.device("cpu"))(["t"] * 5, [a, a, b, a, b])["r"]["score"].tolist()
    assert (
        asked == ["a", "b"] and [math.isnan(s) for s in scores] == [False, False, True, False, True] and a.target == {}
    )


def test_a_picture_that_is_none_is_counted_and_told_once_however_many_rewards_there_are(caplog):
    counter = clock.use(clock.Clock())
    scoring = Scoring({"a": Scorer(JpegSize()), "b": Scorer(Mine())}, torch.device("cpu"))
    with caplog.at_level(logging.WARNING):
        found = scoring(Pictures([None, torch.zeros(3, 8, 8, dtype=torch.uint8)]), [Prompt("a", "x", target={})] * 2)
    assert counter.take()[1] == {"failed_pictures": 1, "rewards": 2}
    assert [found[name]["score"].isnan().tolist() for name in "ab"] == [[True, False]] * 2
    assert [r.getMessage() for r in caplog.records] == [
        "1 of 2 pictures hold NaN or infinities and are not scored; prompts 'a'"
    ]
    assert not scoring.first_error  # the other one was scored
    scoring(Pictures([None]), [Prompt("a", "x", target={})])
    assert set(scoring.first_error) == {"a", "b"}
