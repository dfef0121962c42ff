"""Short answers: one that is right earns 1 whatever its type, and how it is written does not count."""

from __future__ import annotations

import pytest
from linear_time import slow_kinds

from grpo_mm.rewards.text.short_answer import same_short_answer
from grpo_mm.rewards.text.typed_answer import ACCURACY, TypedAnswer, answer_accuracy, mean_rouge
from grpo_mm.types import Prompt


@pytest.mark.parametrize("kind", [*ACCURACY, "free-form", "mcq", "SHORT_ANSWER"])
@pytest.mark.parametrize("answer", ["red", "Two dogs", "3.50", "about 3", "(B)", "yes", "12:30", "?", "红色", "A"])
def test_an_exact_answer_is_right_whatever_its_type(kind, answer):
    assert answer_accuracy(f" {answer} ", answer, kind) == 1


def test_the_published_rule_of_free_texts_still_gives_parts():
    assert mean_rouge("red", "red") == pytest.approx(2 / 3)  # as published, for a word alone
    assert answer_accuracy("Red!", "red", "free text") == 1
    assert answer_accuracy("a red car", "red", "free text") == mean_rouge("a red car", "red") == pytest.approx(1 / 3)
    assert answer_accuracy("", "", "free text") == 0 == answer_accuracy("Stop", "STOP", "ocr")


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("The Red car.", "a red car"), ("**red**", "Red"), ("three", "3"), ("3.0", "3"), ("1,000", "one thousand"),
        ("twenty-one", "21"), ("two hundred and five", "205"), ("a hundred", "100"), ("3 hundred", "300"), ("½", "0.5"),
        ("minus three", "-3"), ("5km", "5 km"), ("U.S.A.", "USA"), ("don’t know", "dont know"), ("well-known", "well known"),
        ("vitamin A", "Vitamin a"), ("The", "the"), ("two thousand and twenty five dogs", "2025 dogs"), ("10 %", "10%"),
    ],
)  # fmt: skip
def test_case_articles_punctuation_and_ways_of_writing_numbers_do_not_count(prediction, answer):
    assert same_short_answer(prediction, answer) == 1 == same_short_answer(answer, prediction)


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("dark red", "red"), ("the red one", "red"), ("", "red"), ("", ""), ("3", "-3"), ("C", "C++"), ("C#", "C"), ("50", "50%"),
        ("5 km", "5 mm"), ("one two", "3"), ("6'2", "62"), ("1:20", "120"), ("10-12", "10"), ("A", "the"), ("vitamin", "vitamin A"),
        ("x2", "2"), ("1/0", "10"), ("not red", "red"), ("3rd", "3"), ("twenty five", "205"),
    ],
)  # fmt: skip
def test_what_is_another_answer_earns_nothing(prediction, answer):
    assert same_short_answer(prediction, answer) == 0 == same_short_answer(answer, prediction)


def test_the_best_of_several_right_answers_counts():
    targets = [
        {"answer": ["red", "crimson"], "answer_type": "short answer"},
        {"answer": "red", "accepted": ["red", "crimson"], "answer_type": "free text"},
        {"answer": [3, "three or so"], "answer_type": "numerical"},
        {"answer": ["(A)", "(C)"], "answer_type": "multiple choice"},
        {"answer": ("open late", "open"), "answer_type": "ocr"},
        {"answer": []},
    ]
    prompts = [Prompt(str(i), "?", target=target) for i, target in enumerate(targets)]
    said = ["Crimson.", "crimson", "3", "C", "open late now", "x"]
    scores = TypedAnswer(tag=None)(said, prompts)["score"].tolist()
    assert scores[:5] == [1, 1, 1, 1, 0.5] and scores[5] != scores[5]
    assert [TypedAnswer().applies_to(prompt) for prompt in prompts] == [True] * 5 + [False]


def test_hostile_texts_take_linear_time():
    parts = ("twenty ", "1 ", "a.", "the ", "1.", "-", "million ", "hundred and ", "'")
    texts = {part: (part * 2_000, part * 8_000) for part in parts}
    assert slow_kinds(lambda text: same_short_answer(text, "3"), texts, allowed=8, floor=0.02) == {}
