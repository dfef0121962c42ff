import math

import pytest

from grpo_mm.looking.text_statistics import distinct_answers, repetition, text_means, text_statistics
from grpo_mm.looking.truth import agreement, truth_of
from grpo_mm.types import Prompt

THOUGHT = "<think>the red circle at [4, 10, 20, 26] is left of the blue square</think>"


@pytest.mark.parametrize(
    ("text", "unparsed", "tagged"),
    [
        (f"{THOUGHT}<answer>left</answer>", 0, 1),
        (f"{THOUGHT}< Answer >\nleft</ answer>", 0, 1),
        ("<think></think><answer></answer>", 1, 1),
        ("<answer> . </answer>", 1, 1),
        (f"{THOUGHT}<answer>left", 1, 0),
        ("<think>and so on and so on", 1, 0),
        (f"{THOUGHT}left", 0, 0),
        ("left", 0, 0),
        ("", 1, 0),
        ("so \\boxed{4}", 0, 1),
        ("<answer>赤</answer>", 0, 1),
    ],
)
def test_what_can_be_read_as_an_answer(text, unparsed, tagged):
    found = text_statistics(text)
    assert (found["unparsed"], found["tagged"]) == (unparsed, tagged)


@pytest.mark.parametrize("text", ["very " * 40, "a" * 200, "the end. " * 30, "很" * 100])
def test_repeating_is_seen_with_and_without_blanks(text):
    assert repetition(text) > 0.8


def test_plain_sentences_and_short_texts_repeat_nothing():
    assert repetition("a a a a") == 0
    assert repetition(f"{THOUGHT}<answer>left</answer>") < 0.1


def test_one_answer_for_all_prompts_is_no_difference():
    assert distinct_answers(["a", "a ", "a"]) == 0 and distinct_answers(["a", "b", "c"]) == 1
    assert math.isnan(distinct_answers(["a"]))
    assert text_means([]) == {}


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ({"answer": "red"}, "red"),
        ("red", "red"),
        ({"answer": ["red", "crimson"]}, "red or crimson"),
        ({"answer": "B", "choices": ["a cat", "a dog"]}, "B: a dog"),
        ({"spans": [[2, 5.5]], "duration": 9}, "2 to 5.5 s"),
        ({"boxes": [[4, 10, 20, 26]], "box_names": ["circle"]}, "circle [4.0, 10.0, 20.0, 26.0]"),
        ({"text": "HELLO"}, "HELLO"),
        ({"include": [{"class": "dog", "count": 2}]}, "dog 2"),
        (None, None),
        ({"width": 3}, None),
    ],
)
def test_the_truth_in_words(target, words):
    assert truth_of(Prompt("p", "?", target=target)) == words


@pytest.mark.parametrize(
    ("target", "text", "wanted"),
    [
        ({"answer": "Red"}, "<answer>red.</answer>", 1),
        ({"answer": "red"}, "<answer>the red one</answer>", 1),
        ({"answer": "red"}, "<answer>blue</answer> red", 0),
        ({"answer": ["two", "2"]}, "2", 1),
        ({"answer": "A"}, "it is a dog", 0),
        ({"answer": "A"}, "A. a cat", 1),
        ({"answer": "red"}, "<answer></answer>", 0),
    ],
)
def test_agreement_of_texts(target, text, wanted):
    assert agreement(Prompt("p", "?", target=target), text) == wanted


def test_agreement_of_spans_is_their_intersection_over_union():
    prompt = Prompt("p", "?", target={"spans": [[2, 4], [6, 8]]})
    assert agreement(prompt, "", [[2, 4], [6, 8]]) == 1
    assert agreement(prompt, "", [[0, 8]]) == pytest.approx(0.5)
    assert agreement(prompt, "", []) == 0 and agreement(prompt, "", [[5, 3]]) == 0
    assert math.isnan(agreement(Prompt("p", "?"), "anything"))
