"""Thousands of texts that were made to mislead, each through every reader of texts and every reward and benchmark that reads them."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from linear_time import no_more_than, slow_kinds

from grpo_mm import registry
from grpo_mm.rewards.answers import choices, numbers, tags, times, writing
from grpo_mm.rewards.benchmarks.spatial import Blink, Vsr
from grpo_mm.rewards.benchmarks.tallyqa import TallyQa
from grpo_mm.rewards.benchmarks.temporal_grounding import TemporalGrounding
from grpo_mm.rewards.benchmarks.vsi_bench import VsiBench
from grpo_mm.rewards.faithfulness.conclusions import concludes
from grpo_mm.rewards.faithfulness.sentences import reasoning_and_answer, sentences
from grpo_mm.rewards.images.ocr import quoted_text, text_similarity
from grpo_mm.rewards.judges.unified_reward import parse_flex, parse_point, parse_think
from grpo_mm.rewards.judges.verdicts import parse_verdict
from grpo_mm.rewards.spatial.box_text import names_nothing, parse_boxes, parse_points, strict_box_list
from grpo_mm.rewards.spatial.spacer import parse_map
from grpo_mm.rewards.text.spans import parse_spans
from grpo_mm.rewards.text.tag_format import follows_template
from grpo_mm.rewards.text.text_overlap import words
from grpo_mm.rewards.text.typed_answer import ACCURACY
from grpo_mm.rewards.video.timestamp_matching import parse_highlights
from grpo_mm.types import Prompt

SIZE = {"width": 84, "height": 84}
TARGETS = [
    {"answer": "(B)", "answer_type": "multiple choice", "choices": ["left", "right"], "question_type": "relation", "benchmark": "blink", "task": "x"},
    {"answer": "yes", "answer_type": "multiple choice", "benchmark": "vsr", "task": "on"},
    {"answer": "2", "answer_type": "numerical", "question_type": "count", "map": {"chair": [[2, 3]]}, "benchmark": "tallyqa"},
    {"answer": "3.5", "answer_type": "regression"},
    {"answer": "STOP 12", "answer_type": "ocr", "text": "STOP 12"},
    {"answer": "a red cup", "answer_type": "free text"},
    {"spans": [[80, 95]], "duration": 120.0, "saliency": [0, 2, 3], "answer": "(C)"},
    {"boxes": [[1, 2, 30, 40]], "box_names": ["cat"], **SIZE},
    {"boxes": [[1, 2, 30, 40], [44, 40, 80, 80]], "box_names": ["red circle", "blue square"], **SIZE},
    {"boxes": [], **SIZE},
    {"track": [[0.1, 0.2, 0.3, 0.4]] * 2},
]  # fmt: skip
PROMPTS = [Prompt(str(i), 'Where is the "sign"?', target=target) for i, target in enumerate(TARGETS)]


def _rewards() -> dict[str, object]:
    """Every reward of a room that scores texts, with its defaults."""
    rooms = (
        "grpo_mm.rewards.text.",
        "grpo_mm.rewards.spatial.",
        "grpo_mm.rewards.video.",
        "grpo_mm.rewards.faithfulness.",
    )
    made = {}
    for entry in registry.entries("reward"):
        if entry.target.startswith(rooms):
            settings = {"information_consistency": {"max_gap": 3.0}, "response_length": {"low": 1, "high": 100}}.get(
                entry.kind, {}
            )
            made[entry.kind] = registry.lookup("reward", entry.kind)(**settings)
    return made


REWARDS = _rewards()
BENCHMARKS = {
    "blink": Blink(),
    "vsr": Vsr(),
    "vsi": VsiBench(),
    "vsi ours": VsiBench(official=False),
    "spans": TemporalGrounding(),
}
READERS = {
    "letter": lambda t: choices.read_letter(t, 4),
    "letter of texts": lambda t: choices.read_letter(t, ["left", "right", "a dog"]),
    "named letter": choices.named_letter,
    "truth": choices.read_truth,
    "whole number": numbers.whole_number,
    "number": numbers.read_number,
    "count": numbers.read_count,
    "decimals": numbers.has_decimals,
    "spans": times.spans_in,
    "spans in a tag": parse_spans,
    "numbers": times.numbers_in,
    "glue": times.strict_span_list,
    "highlights": parse_highlights,
    "element": lambda t: tags.last_element(t, "answer"),
    "after thinking": tags.after_thinking,
    "left open": tags.left_open,
    "template": lambda t: follows_template(t, ("think", "answer"), match="search"),
    **{f"boxes, {form}": lambda t, form=form: parse_boxes(t, form=form) for form in ("brackets", "element", "json", "integers")},
    "box list": strict_box_list,
    "points": parse_points,
    "nothing": names_nothing,
    "map": parse_map,
    "plain": writing.plain_signs,
    "unmarked": writing.unmarked,
    "normal": writing.normal_form,
    "words": words,
    "quoted": quoted_text,
    "similarity": lambda t: text_similarity(t, "STOP 12"),
    "sentences": sentences,
    "reasoning": reasoning_and_answer,
    "concludes": lambda t: [concludes(t, answer, choices=("left", "right")) for answer in ("(B)", "12", "3 to 7", "[1,2,3,4]", "red", "yes")],
    "judge's score": parse_point,
    "judge's choice": parse_think,
    "judge's list": parse_flex,
    "judge's verdict": lambda t: parse_verdict(t, ("yes", "no")),
    **{f"answer: {kind}": lambda t, rule=rule: rule(t, "12.5 the cat") for kind, rule in ACCURACY.items() if kind != "math" or find_spec("math_verify")},
}  # fmt: skip

PIECES = [
    "12", "3,5", "1,000", "1.000,5", "−3", "-7", "½", "1/0", "10**400", "1e999", "0x10", "1_000", "NaN", "inf", "12%", "99999999999999999999",
    "1:20", "00:01:20.5", "1m20s", "1 minute", "2 min", "500 ms", "80秒", "five seconds", "frame 12", "2023-05-12", "5th", "to", "-", "–", "and", "or",
    "between", "(A)", "(B)", "B.", "**B**", "В", "E", "not", "A dog", "yes", "no", r"\boxed{", "}", "$", "[1, 2, 30, 40]", "(1,2),(30,40)", "<box>",
    "</box>", '{"bbox_2d": [1,2,3,4], "label": "cat"}', '{"bbox": "1,2"', "[[", "]]", "[]", "<answer>", "</answer>", "<ANSWER>", "<think>", "</think>",
    "<glue>", "</glue>", "[(80, 95)]", "\u200b", "\u202e", "\ud800", "\x00", "\x1b[31m", "e\u0301", "ﬁ", "’", "\n", "\t", "\u00a0", "🙂", "[[0.1,0.2,0.3,0.4]]",
    "Final Score: 4", "Image 1 is better", "<verdict>yes</verdict>", '{"winner": "Image 1"}', "score", "the", "red", "because", ".", ",", ":",
]  # fmt: skip
FRAMES = (
    "{}",
    "<answer>{}</answer>",
    "<think>{}</think><answer>{}</answer>",
    "<think>{}",
    "{}</think>\n<answer>{}</answer>",
)


def hostile_texts(count: int) -> Iterator[str]:
    rng = random.Random(0)
    for number in range(count):
        inner = rng.choice(("", " ", " ")).join(rng.choices(PIECES, k=rng.randint(1, 9)))
        if number % 7 == 0:  # a piece of it is lost or doubled
            cut = rng.randint(0, len(inner))
            inner = inner[:cut] + inner[cut + rng.randint(0, 4) :] + inner[cut // 2 : cut]
        yield FRAMES[number % len(FRAMES)].replace("{}", inner)


TEXTS = list(hostile_texts(3000))


def digits_of(text: str) -> str:
    return "".join(re.findall(r"\d", writing.plain_signs(text)))


def nobody_wrote(text: str) -> list[object]:
    """What readers give that is made of no sign of the text."""
    wrong: list[object] = []
    for reader in (numbers.whole_number, numbers.read_number):
        value = reader(text)
        is_long = re.search(r"\d{15}", text) is not None  # more digits than a float holds
        if value is not None and value not in (0, 1, 0.5) and not is_long and not _is_written(value, text):
            wrong.append((reader.__name__, value))
    letter = choices.read_letter(text, 4)
    if letter is not None and letter not in writing.plain_signs(text).upper():
        wrong.append(("letter", letter))
    for value in itertools.chain.from_iterable(times.spans_in(text)):
        if value < 0 or (value and not re.search(r"\d", writing.plain_signs(text))):
            wrong.append(("time", value))
    return wrong


def _is_written(value: float, text: str) -> bool:
    """Whether the digits of a number stand in the text in their order, signs between them apart; fractions of two numbers too."""
    own = f"{abs(value):.12g}".replace(".", "").rstrip("0").lstrip("0")
    return "e" in own or own in digits_of(text) or "/" in writing.unmarked(text)


@pytest.mark.slow
def test_thousands_of_texts_raise_nothing_and_say_nothing_that_nobody_wrote():
    for text in TEXTS:
        for name, read in READERS.items():
            try:
                read(text)
            except Exception as error:
                pytest.fail(f"{name}: {type(error).__name__}: {error} of {text!r}")
        assert nobody_wrote(text) == [], text


@pytest.mark.slow
@pytest.mark.parametrize("kind", REWARDS)
def test_thousands_of_texts_are_scored_with_finite_numbers_or_not_at_all(kind):
    reward = REWARDS[kind]
    group = (torch.arange(len(TEXTS)) // 4,) if getattr(reward, "scope", "") == "set" else ()
    for prompt in PROMPTS:
        if not hasattr(reward, "applies_to") or reward.applies_to(prompt):
            asked = [replace(prompt, id=f"{prompt.id}/{row // 4}") for row in range(len(TEXTS))]
            found = reward(TEXTS, asked, *group)
            assert not any(value.isinf().any() for value in found.values())
            assert all(value.shape == (len(TEXTS),) for value in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_thousands_of_texts_give_finite_figures(name):
    benchmark = BENCHMARKS[name]
    asked = [prompt for prompt in PROMPTS if benchmark.applies_to(prompt)] or [
        Prompt("v", "?", target={"benchmark": "vsi_bench", "answer": "3", "question_type": "object_counting"})
    ]
    found = benchmark(TEXTS, [asked[0]] * len(TEXTS))
    assert all(math.isfinite(value) for value in found.values())


@pytest.mark.slow
def test_thousands_of_texts_count_almost_nothing():
    assert TallyQa()(TEXTS, [PROMPTS[2]] * len(TEXTS))["all/accuracy"] < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_large_texts_take_time_in_proportion(name):
    """From 15 kB to 120 kB of each piece; what goes back over the text would take 64 times."""
    pieces = [
        *PIECES,
        " ",
        "(",
        "[(1, ",
        "1,",
        "1.",
        "1 ",
        "٣",
        "１",
        "answer is ",
        "or B ",
        "A. x\n",
        "*",
        "\\text{",
        "\\frac{1}{",
        "1m ",
        "not ",
        "{",
        "tie\n",
    ]
    texts = {piece: tuple("[" + piece * (size // len(piece)) for size in (15_000, 120_000)) for piece in pieces}
    assert slow_kinds(READERS[name], texts, allowed=24, floor=2e-3) == {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", REWARDS)
def test_a_megabyte_is_scored_in_seconds(kind):
    reward = REWARDS[kind]
    asked = [prompt for prompt in PROMPTS if not hasattr(reward, "applies_to") or reward.applies_to(prompt)]
    assert asked
    group = (torch.zeros(1, dtype=torch.int64),) if getattr(reward, "scope", "") == "set" else ()
    for piece in ("<", "9", "1:20 to ", "(B) ", "１", '{"bbox_2d": [1,2,3,4]}, '):
        text = f"<think>{piece}</think><answer>" + piece * (2**20 // len(piece)) + "</answer>"
        with no_more_than(20):
            reward([text], [asked[0]], *group)


def test_a_few_texts_raise_nothing():
    for text in hostile_texts(150):
        for name, read in READERS.items():
            try:
                read(text)
            except Exception as error:
                pytest.fail(f"{name}: {type(error).__name__}: {error} of {text!r}")
        assert nobody_wrote(text) == [], text


@pytest.mark.parametrize(
    "name",
    ["letter", "number", "spans", "judge's choice", "judge's score", "judge's list", "judge's verdict", "unmarked"],
)
def test_readers_take_time_in_proportion(name):
    pieces = [
        "\n",
        " ",
        "１",
        "tie\n",
        "image 1 ",
        "final score ",
        "{",
        "<answer>",
        "1 m ",
        "(B) ",
        "1,",
        "-",
        "**",
        "not ",
    ]
    texts = {piece: tuple("[" + piece * (size // len(piece)) for size in (3_000, 24_000)) for piece in pieces}
    assert slow_kinds(READERS[name], texts, allowed=24, floor=1e-3) == {}
