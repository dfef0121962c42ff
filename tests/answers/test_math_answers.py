"""Answers of the type math: the same by value in any writing, others not, and nothing that takes for ever."""

import time

import pytest
import torch

pytest.importorskip("math_verify", reason='needs math-verify: pip install "grpo_mm[math]"')

from grpo_mm.rewards.text.math_answer import same_math  # noqa: E402
from grpo_mm.rewards.text.typed_answer import TypedAnswer, answer_accuracy  # noqa: E402
from grpo_mm.types import Prompt  # noqa: E402

SAME = [
    (r"\frac{1}{2}", "1/2"), (r"\frac{1}{2}", "0.5"), (r"\dfrac12", ".5"), (r"$\frac{2}{4}$", r"\(\frac12\)"), (r"2\sqrt{3}", r"\sqrt{12}"),
    ("√3", r"\sqrt{3}"), (r"30^\circ", "30"), ("30°", "30 degrees"), (r"50\%", "50%"), (r"50\%", "0.5"), ("{5}", "5"), (r"\text{5}", "5"),
    (r"\boxed{7}", "7"), ("x = 3", "3"), ("1,000", "1000"), ("(1,2)", "(1, 2)"), (r"\{1,2\}", r"\{2,1\}"), ("2x+1", "1+2x"),
    (r"-\frac{3}{4}", "-0.75"), ("2^3", "8"), (r"3\frac{1}{2}", "3.5"), (r"5 \text{ cm}", "5"), (r"5\,\mathrm{cm}", r"5 \text{ cm}"),
    (r"\text{red}", "Red"), (r"12\text{ cm}^2", "12"), (r"\frac{a}{b}", "a/b"), (r"\pi/2", r"\frac{\pi}{2}"), ("1.5e3", "1500"),
]  # fmt: skip
OTHERS = [
    (r"\frac{1}{2}", "2"), (r"\sqrt{2}", "1.414"), (r"\frac{1}{3}", "0.33"), ("3", "4"), ("A", "B"), (r"5 \text{ cm}", r"5 \text{ m}"),
    ("", "3"), ("I do not know", "3"), ("3 or 4", "3"), (r"2\sqrt{3}", r"3\sqrt{2}"), ("x^2", "x^3"), ("(1,2)", "(2,1)"), (r"50\%", "5"),
    ("-3", "3"), (r"\frac{1}{0}", "1"), (r"\frac{", "1"), (r"\pi", "3"), ("2x+1", "2x-1"), (r"\text{red}", "blue"), ("1/2", "1/20"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), SAME)
def test_the_same_by_value_is_right_whichever_is_the_answer(one, other):
    assert same_math(one, other) == same_math(other, one) == 1.0


@pytest.mark.parametrize(("one", "other"), OTHERS)
def test_another_value_is_wrong_whichever_is_the_answer(one, other):
    assert same_math(one, other) == same_math(other, one) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "9^{9^{9^{9}}}", "9^9^9^9", "9**9**9**9", "((((9^9)^9)^9)^9)^9", "2^{1000000000}", "100000000!", r"\sum_{i=1}^{10^9} i", "9" * 10_000,
        r"\int_0^1 x^{x} dx", "(" * 5000, r"\frac{1}{" * 60, "x" * 190, "^" * 150, r"\sqrt{" * 40 + "2" + "}" * 40, "\ud800", "\0",
    ],
)  # fmt: skip
def test_what_could_take_for_ever_is_wrong_at_once(text):
    begun = time.process_time()
    assert same_math(text, "12345") == same_math("12345", text) == 0.0
    assert time.process_time() - begun < 20  # for ever else


def test_it_is_a_type_of_an_answer():
    assert answer_accuracy(r"\frac{1}{2}", 0.5, "math") == answer_accuracy(r"\frac{1}{2}", "1/2", "LaTeX") == 1.0
    prompts = [Prompt("a", "a", target={"answer": r"2\sqrt{3}", "answer_type": "math"})] * 3
    reward = TypedAnswer()
    found = reward([r"<answer>$\sqrt{12}$</answer>", "<answer>3.46</answer>", r"<answer>\sqrt{</answer>"], prompts)
    assert found["score"].tolist() == [1.0, 0.0, 0.0] and torch.equal(found["parse_failed"], torch.zeros(3).double())
