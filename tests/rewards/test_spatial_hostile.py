"""Whatever a model writes, every reward of this topic gives a number or leaves the row out, in time that grows with the text."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_time import slow_kinds

from grpo_mm import registry
from grpo_mm.rewards.judges.verdicts import ModelJudge, Query
from grpo_mm.rollout.safe_call import score_safely
from grpo_mm.types import Prompt

SIZE = {"width": 84, "height": 84, "resized_width": 56, "resized_height": 56}
BOXES = {"boxes": [[1, 2, 30, 40], [44, 40, 80, 80]], "box_names": ["red circle", "blue square"], **SIZE}
PROMPTS = {
    "option": {"answer": "(B)", "answer_type": "multiple choice", "choices": ["left", "right"], "question_type": "relation", **BOXES},
    "word": {"answer": "yes", "answer_type": "multiple choice", "choices": ["yes", "no"], **SIZE},
    "number": {"answer": "2", "answer_type": "numerical", "question_type": "count", "map": {"chair": [[2, 3], [4, 5]]}, **BOXES},
    "size": {"answer": "3.5", "answer_type": "regression", "map": {"chair": [[2, 3]]}},
    "sign": {"answer": "STOP the red car 12", "answer_type": "ocr"},
    "words": {"answer": "a red cup left of the table", "answer_type": "free text"},
    "one box": {"boxes": [[1, 2, 30, 40]], "box_names": ["the red circle"], **SIZE},
    "no box": {"boxes": [], **SIZE},
}  # fmt: skip
"""Targets, so that every reward applies to some."""
PICTURE = torch.zeros(3, 84, 84, dtype=torch.uint8)
ROWS = [Prompt(name, "Where is the red circle?", media=(PICTURE,), target=target) for name, target in PROMPTS.items()]


class Nonsense:
    """A judge's model that repeats what it was asked, verdicts included."""

    model = "parrot"

    def ask(self, questions):
        return [question.text for question in questions]


def judge() -> ModelJudge:
    return ModelJudge(vlm=Nonsense(), calls_per_batch=40)


READS_TEXT = (
    "box_grounding", "grit", "repetition", "referring_box", "detection_map", "detection_confidence", "perception_boxes",
    "edit_similarity", "spacer", "vigorl", "mean_relative_accuracy", "consistency", "semantic_grounding", "answer_judge",
    "typed_answer", "tag_format",
)  # fmt: skip
KINDS = {
    entry.kind: registry.lookup("reward", entry.kind)
    for entry in registry.entries("reward")
    if entry.target.split(":")[0].rsplit(".", 1)[1] in READS_TEXT
}
REWARDS = (
    {kind: make() for kind, make in KINDS.items()}
    | {f"{kind} judged": KINDS[kind](judge=judge()) for kind in ("consistency", "semantic_grounding", "answer_judge")}
    | {
        f"{kind} {coordinates}": KINDS[kind](coordinates=coordinates)
        for kind in ("spatial_grounding", "referring_box", "detection_map", "detection_confidence", "vigorl")
        for coordinates in ("unit", "thousand")
    }
    | {
        "detection_map weighted": KINDS["detection_map"](version="weighted"),
        "perception_boxes all": KINDS["perception_boxes"](task="detection"),
        "grit_format repository": KINDS["grit_format"](version="repository"),
        "grit_count repository": KINDS["grit_count"](version="repository"),
        "edit_similarity tagged": KINDS["edit_similarity"](tag="answer"),
        "union of all": KINDS["union_box_iou"](most=5000, merge_iou=None),
        "spatial_grounding of all": KINDS["spatial_grounding"](most=5000, merge_iou=None),
    }
)
MOST = {"detection_confidence": 2.0, "spacer": 2.0, "grit_format": 1.5, "grit_answer": 1.1}
"""What the highest score is, where it is not 1."""

PIECES = {
    "unclosed tags": "<think><bbox><answer>",
    "unclosed boxes": "<bbox>[1, 2, 3",
    "closing tags": "</think></bbox></answer>",
    "nested tags": "<think><answer><think></answer></think>",
    "boxes": "[1, 2, 30, 40] ",
    "elements": "<bbox>[1, 2, 30, 40]</bbox>",
    "objects": '{"bbox_2d": [1, 2, 30, 40], "label": "red circle", "confidence": 0.9}, ',
    "positions": "{'Position': [1, 2, 30, 40], 'Confidence': 1e999}, ",
    "negative boxes": "[-5, -6, -7.5, -8] (-1, -2) ",
    "boxes without end": "[1e999, -1e999, 1e308, 5] (1e999, -1e999) ",
    "no numbers": "[NaN, inf, -Infinity, nan] ",
    "digits": "9",
    "other digits": "[३, ४, ५, ६] ٣٤ （１，２） ",
    "other scripts": "红色的圆在左边。 赤い円 красный круг أحمر ",
    "nulls": "\x00",
    "marks": "\u202e\u200b\ufeff\x1b",
    "surrogates": "\ud800",
    "braces": "{{[[((",
    "quotes": "\"'`",
    "blanks": " \n\t",
    "stops": ". ",
    "claims": "the red circle is at [1, 2, 30, 40], so it is left of the blue square. ",
    "denials": "not a the ",
    "maps": '"chair": [[2, 3], [1e999, 4]], ',
    "words": "red cup ",
}
FRAMES = {
    "bare": "{}",
    "thought": "<think>{}</think><answer>(B)</answer>",
    "answer": "<think>the red circle</think><answer>{}</answer>",
    "map": "<think>it is</think><map>{}</map><answer>2</answer>",
    "rethought": "<think>[1, 2, 3, 4]</think><rethink>{}</rethink><answer>2</answer>",
}


def text_of(piece: str, frame: str, size: int) -> str:
    """At least `size` characters of a piece in a frame."""
    head, tail = FRAMES[frame].split("{}")
    return head + PIECES[piece] * (size // len(PIECES[piece]) + 1) + tail


def test_every_kind_of_this_topic_is_tried():
    assert len(KINDS) == 21
    unused = [name for name, reward in REWARDS.items() if not any(reward.applies_to(row) for row in ROWS)]
    assert unused == []


@pytest.mark.parametrize("name", REWARDS)
def test_a_hostile_text_gets_a_number_or_is_left_out_and_raises_nothing(name):
    """A hundred kilobytes of everything, and a few characters of it."""
    reward, most = REWARDS[name], MOST.get(name.split()[0], 1.0)
    texts = [text_of(piece, frame, size) for piece in PIECES for frame in FRAMES for size in (0, 2_000)]
    texts += [text_of(piece, "thought", 100_000) for piece in ("elements", "nulls", "other scripts", "unclosed tags")]
    for row in ROWS:
        scores, errors = score_safely(reward, texts, [row] * len(texts))
        assert errors == []
        score = scores["score"]
        assert ((score >= 0) & (score <= most + 1e-6) | score.isnan()).all()
        if not reward.applies_to(row):
            assert score.isnan().all()
        assert not any(value.isinf().any() for value in scores.values())


def test_only_rewards_that_may_not_know_leave_a_text_out():
    """Elsewhere a text that nothing can be read of is worth 0, so that silence does not pay."""
    may = {"consistency", "semantic_grounding", "answer_judge"}
    for name, reward in REWARDS.items():
        rows = [row for row in ROWS if reward.applies_to(row)]
        for text in ("", "\x00" * 100, "<think>" * 100, "[NaN, inf, 1, 2]"):
            score = reward([text] * len(rows), rows)["score"]
            assert score.isfinite().all() or name.split()[0] in may, name


def test_five_thousand_boxes_score_less_than_the_one_that_is_right():
    """Naming boxes without end does not pay, in any reward that looks for boxes."""
    many = [[x, y, x + size, y + size] for size in (4, 5) for x in range(40, 80) for y in range(72)][:5000]
    random.Random(0).shuffle(many)
    row = Prompt("p", "Where?", target={**PROMPTS["one box"], "resized_width": 84, "resized_height": 84})
    for kind in ("spatial_grounding", "dual_box_iou", "union_box_iou", "detection_map", "detection_confidence"):
        spelt = {
            "detection_map": ('{{"bbox_2d": {}, "label": "the red circle"}}', "<answer>{}</answer>"),
            "detection_confidence": ('{{"Position": {}, "Confidence": 1}}', "<answer>{}</answer>"),
        }.get(kind, ("<bbox>{}</bbox>", "<think>{}</think>"))
        one, flood = (
            spelt[1].format(", ".join(spelt[0].format(box) for box in boxes))
            for boxes in ([[1, 2, 30, 40]], [[1, 2, 30, 40], *many])
        )
        (right, spoilt) = KINDS[kind]()([one, flood], [row, row])["score"].tolist()
        assert right == pytest.approx(2.0 if kind == "detection_confidence" else 1.0) and spoilt < 0.55 * right


@settings(max_examples=60)
@given(
    st.one_of(
        st.text(max_size=200),
        st.lists(
            st.sampled_from(
                [*PIECES.values(), "<answer>", "</answer>", "<think>", "</think>", "</rethink>", "(B)", "yes", "2"]
            ),
            max_size=12,
        ).map("".join),
    )
)
def test_no_text_makes_a_reward_raise(text):
    for name, reward in REWARDS.items():
        for row in ROWS:
            score = reward([text], [row])["score"]
            assert score.shape == (1,) and not score.isinf().any(), name


@pytest.mark.parametrize("name", REWARDS)
def test_four_times_the_text_takes_about_four_times_the_time(name):
    """From 10 to 40 kilobytes; what goes back over the text would take 16 times."""
    reward = REWARDS[name]
    row = next(row for row in ROWS if reward.applies_to(row))
    texts = {
        (piece, frame): tuple(text_of(piece, frame, size) for size in (10_000, 40_000))
        for piece in PIECES
        for frame in ("thought", "answer")
    }
    assert slow_kinds(lambda text: reward([text], [row]), texts, allowed=9, floor=1e-3) == {}


def test_a_judge_sees_a_bounded_part_of_a_text_and_answers_for_it():
    """However long the text is, a question to a judge is not, and a model that repeats it gives no verdict."""
    asked = []
    parrot = judge()
    parrot.vlm.ask = lambda questions: [asked.append(question) or question.text for question in questions]
    for kind in ("consistency", "semantic_grounding", "answer_judge"):
        reward = KINDS[kind](judge=parrot)
        frames = (
            ("answer",) if kind == "answer_judge" else ("thought", "answer")
        )  # rules find the letter of "thought" right
        texts = [text_of(piece, frame, 100_000) for piece in ("claims", "words", "nulls") for frame in frames]
        score = reward(texts, [ROWS[0]] * len(texts))["score"]
        assert not (score == 1).any()
    assert asked and max(len(question.text) for question in asked) < 40_000
    assert parrot.verdicts([Query(asked[0].text)]) == [None]
