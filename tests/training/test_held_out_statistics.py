"""What is measured of held-out samples, whatever is rewarded."""

import pytest
import torch

from grpo_mm.looking.image_statistics import QUARTERS
from grpo_mm.looking.truth import next_unlike
from grpo_mm.training.held_out_statistics import held_out_statistics
from grpo_mm.types import Prompt, Rows


class Alone:
    """One rank."""

    def gather(self, value):
        return [value]

    def max(self, value):
        return value


def rows_of(prompts, samples=1):
    n = len(prompts)
    prompt_N = torch.arange(n).repeat_interleave(samples)
    return Rows(tuple(prompts), prompt_N, torch.arange(samples).repeat(n), samples)


def measured(prompts, items, *, samples=1):
    rows = rows_of(prompts, samples)
    return held_out_statistics(items, rows, [prompts[p] for p in rows.prompt_N], sketch=None, processes=Alone())


ASKED = [Prompt(str(i), "?", target={"answer": answer}) for i, answer in enumerate(("red", "red", "left", "blue"))]


def test_pictures_are_measured_prompt_by_prompt_and_against_each_other():
    prompts = [Prompt("a", "?"), Prompt("b", "?")]
    dark, light = torch.zeros(3, 8, 8, dtype=torch.uint8), torch.full((3, 8, 8), 255, dtype=torch.uint8)
    half = dark.clone()
    half[0, :, :4] = 255  # the left half red
    metrics, alone = measured(prompts, torch.stack([dark, light, half, half]), samples=2)
    assert alone["image/luminance"] == [pytest.approx(0.5), pytest.approx(0.299 / 2)]
    assert {name: alone[f"image/{name}"][1] for name in QUARTERS} == {
        name: float(name.endswith("left_red")) for name in QUARTERS
    }
    assert metrics["eval/image/luminance"] == pytest.approx((0.5 + 0.1495) / 2)
    assert metrics["eval/image/spread"] == pytest.approx(
        (1 / 6) ** 0.5
    )  # between the first samples: one channel of half the pixels


def test_an_answer_that_suits_all_prompts_agrees_with_none_beyond_chance():
    _, honest = measured(ASKED, [f"<answer>{p.target['answer']}</answer>" for p in ASKED])
    assert honest["text/agreement"] == honest["text/agreement_beyond_chance"] == [1, 1, 1, 1]
    metrics, dumped = measured(ASKED, ["<answer>red left blue</answer>"] * 4)
    assert dumped["text/agreement"] == [1, 1, 1, 1] and dumped["text/agreement_beyond_chance"] == [0, 0, 0, 0]
    assert metrics["eval/text/most_frequent"] == 1 and metrics["eval/text/most_frequent_truth"] == 0.5
    _, constant = measured(ASKED, ["<answer>red</answer>"] * 4)
    assert sum(constant["text/agreement_beyond_chance"]) == 2 - 1  # the fourth prompt's next is the first


class Boxes:
    """A sketch: four numbers a box."""

    def truth(self, prompt):
        return {"boxes": prompt.target["boxes"]}

    def __call__(self, prompt, text):
        numbers = [float(word) for word in text.split()]
        return {"boxes": [numbers[i : i + 4] for i in range(0, len(numbers) - 3, 4)]}


def test_where_only_boxes_are_true_boxes_are_compared():
    prompts = [Prompt(str(i), "?", target={"boxes": [[10 * i, 0, 10 * i + 10, 10]]}) for i in range(3)]
    texts = ["0 0 10 10", "10 0 20 5", "0 0 10 10 20 0 30 10"]
    rows = rows_of(prompts)
    _, alone = held_out_statistics(texts, rows, prompts, sketch=Boxes(), processes=Alone())
    assert alone["text/agreement"] == [1, 0.5, 0.5]  # right, half of it, one of two
    assert alone["text/agreement_beyond_chance"] == [1, 0.5, 0]
    assert "text/agreement" not in measured(prompts, texts)[1]  # without a sketch


def test_the_next_prompt_is_one_of_which_something_else_is_true():
    assert [other and other.id for other in next_unlike(ASKED)] == ["2", "2", "3", "0"]
    assert next_unlike([Prompt("a", "?"), ASKED[0], ASKED[1]]) == [None, None, None]


def test_a_text_that_could_not_be_asked_is_left_out():
    metrics, alone = measured(ASKED, ["<answer>red</answer>", None, "<answer>left</answer>", "blue"])
    assert alone["text/agreement"] == [1, None, 1, 1] and alone["text/characters"][1] is None
    assert metrics["eval/text/tagged"] == pytest.approx(2 / 3)
