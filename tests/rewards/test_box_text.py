"""Boxes in what a model wrote: every spelling, what is cut off, what is odd, and text made to be slow."""

import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_time import no_more_than, slow_kinds

from grpo_mm.datasets.worlds.scene_world import SceneWorld
from grpo_mm.looking.transcripts import Marks
from grpo_mm.rewards.shared.edit_distance import edit_distance
from grpo_mm.rewards.spatial.box_reading import BoxReading, annotated_boxes
from grpo_mm.rewards.spatial.box_sketch import BoxSketch
from grpo_mm.rewards.spatial.box_text import FoundBox, parse_boxes, parse_points, tidied
from grpo_mm.rewards.spatial.grit import paper_structure, repository_structure
from grpo_mm.rewards.spatial.spacer import parse_map
from grpo_mm.rewards.text.mean_relative_accuracy import first_number
from grpo_mm.rewards.text.repetition import adjacent_repetition
from grpo_mm.types import Prompt

BOX = (1, 2, 30, 40)


def boxes(text: str, **how) -> list:
    return [found.box for found in parse_boxes(text, **how)]


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2, 30, 40]",
        "[1,2,30,40]",
        "[ 1 ,\n2 , 30\t,40 ]",
        "(1, 2, 30, 40)",
        "[1.0, 2.00, 3e1, 4E+1]",
        "[[1, 2, 30, 40]]",
        "[[1, 2], [30, 40]]",
        "(1,2),(30,40)",
        "<|box_start|>(1,2),(30,40)<|box_end|>",
        "<box>[1, 2, 30, 40]</box>",
        "<bbox>[1, 2, 30, 40]</bbox>",
        "<bbox>1, 2, 30, 40</bbox>",
        "<box>[[1, 2, 30, 40]]</box>",
        '{"bbox_2d": [1, 2, 30, 40], "label": "cat"}',
        "{'Position': [1, 2, 30, 40], 'Confidence': 0.9}",
        "[１，２，３０，４０]",
        "［1, 2, 30, 40］",
        "[١, ٢, ٣٠, ٤٠]",
        "a[1, 2, 30, 40]b 5, [6] [7, 8]",
        "[5, [1, 2, 30, 40]",
    ],
)
def test_every_spelling_of_a_box_is_read(text):
    assert boxes(text) == [BOX]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "none",
        "1, 2, 30, 40",
        "[1, 2, 30]",
        "[1, 2, 30, 40, 5]",
        "[1, 2, 30, 40",  # cut off: the last number may go on
        "1, 2, 30, 40]",
        "[1 2 30 40]",
        "[a, 2, 30, 40]",
        "[1,, 2, 30, 40]",
        "[inf, nan, 30, 40]",
        "[1, 2, 30, 1.2.3]",
        "(1, 2)",
        "[[1, 2], [3, 4], [5, 6]]",  # a polygon
        "[[1, 2], [3, 4], [5, 6], [7, 8]]",
        "<bbox>1, 2, 30, 40",
        "[½, ², 30, 40]",
    ],
)
def test_what_is_no_box_is_none(text):
    assert boxes(text) == []


def test_signs_and_infinite_numbers_are_read_as_written():
    assert boxes("[-1, +2, -.5, 4.]") == [(-1, 2, -0.5, 4)]
    assert boxes("[−1, 2, 3, 4]") == [(-1, 2, 3, 4)]
    assert boxes("[0, 0, 1e999, 1e999]") == [(0, 0, math.inf, math.inf)]


def test_boxes_stand_in_the_order_of_the_text_and_the_limit_takes_the_first():
    text = "[1,2,3,4] then (5,6),(7,8), not [9], and <box>[9,9,9,9]</box>"
    assert boxes(text) == [(1, 2, 3, 4), (5, 6, 7, 8), (9, 9, 9, 9)]
    assert boxes(text, most=2) == [(1, 2, 3, 4), (5, 6, 7, 8)]


def test_elements_are_read_when_they_are_closed():
    text = "at [9,9,9,9] <bbox>[1,2,3,4]</bbox><box>[[5,6,7,8],[1,1,2,2]]</box> <bbox>[7,7,7,7]</box> <bbox>[8,8,8,8]"
    assert boxes(text, form="element") == [(1, 2, 3, 4), (5, 6, 7, 8), (1, 1, 2, 2)]
    assert boxes("<bbox>none</bbox><box></box>", form="element") == []


LISTED = [{"bbox_2d": [1, 2, 3, 4], "label": "cat"}, {"bbox_2d": [5, 6, 7, 8], "label": "a dog", "score": 0.5}]


def test_json_gives_labels_and_confidence():
    wanted = [FoundBox((1, 2, 3, 4), "cat"), FoundBox((5, 6, 7, 8), "a dog", 0.5)]
    for text in (json.dumps(LISTED), f"```json\n{json.dumps(LISTED, indent=1)}\n```", str(LISTED)):
        assert parse_boxes(text, form="json") == wanted
    reordered = '{"label": "cat", "bbox_2d": [1, 2, 3, 4]}'
    assert parse_boxes(reordered, form="json") == wanted[:1]
    assert parse_boxes('{"box": [[1,2,3,4], [5,6,7,8]], "label": "x"}', form="json") == [
        FoundBox((1, 2, 3, 4), "x"),
        FoundBox((5, 6, 7, 8), "x"),
    ]
    assert parse_boxes('{"area": [1, 2, 3, 4]} [5, 6, 7, 8]', form="json") == []


def test_of_json_that_is_cut_off_the_complete_boxes_are_read():
    text = json.dumps(LISTED)
    found = [len(parse_boxes(text[:end], form="json")) for end in range(len(text) + 1)]
    assert found == sorted(found) and found[-1] == 2
    for end in range(len(text) + 1):
        assert boxes(text[:end], form="json") == [(1, 2, 3, 4), (5, 6, 7, 8)][: found[end]]
    assert parse_boxes('[{"bbox_2d": [1, 2, 3, 4], "label": "ca', form="json") == [FoundBox((1, 2, 3, 4))]
    assert boxes('{"bbox_2d": [[1, 2, 3, 4], [5, 6', form="json") == [(1, 2, 3, 4)]


def test_four_integers_anywhere_are_a_box_of_grit():
    assert boxes("at 1, 2, 30,40.", form="integers") == [BOX] == boxes('{"bbox_2d": [1,2,30,40]}', form="integers")
    assert boxes("1,2,3,4, 5,6,7,8", form="integers") == [(1, 2, 3, 4), (5, 6, 7, 8)]
    for text in ("1, 2, 3", "1, 2, 3, 4.5", "1.5, 2, 3", "0.1, 0.2, 0.3, 0.4", "1 2 3 4"):
        assert boxes(text, form="integers") == []


def test_points_are_pairs_in_brackets():
    assert parse_points("(12, 30) and [1.5,-2], not 3, 4 or (5, 6, 7) or (8,") == [(12, 30), (1.5, -2)]


# ── order, duplicates, limits ──


def found(*boxes) -> list[FoundBox]:
    return [FoundBox(tuple(map(float, box))) for box in boxes]


def test_reversed_corners_are_sorted_or_left_out():
    some = found((30, 2, 1, 40), (1, 40, 30, 2), (0, 0, 5, 5))
    assert [one.box for one in tidied(some, merge_iou=None)] == [BOX, BOX, (0, 0, 5, 5)]
    assert tidied(some, reversed_corners="reject") == some[2:]


def test_boxes_that_nearly_coincide_are_one():
    some = found((0, 0, 100, 100), (0, 0, 100, 97), (0, 0, 100, 90), (0, 0, 100, 100))
    assert tidied(some) == [some[0], some[2]]
    assert tidied(some, merge_iou=None) == some
    assert len(tidied(found((3, 3, 3, 3), (3, 3, 3, 3)))) == 2  # empty boxes overlap nothing
    cat, dog = (FoundBox(BOX, label) for label in ("cat", "dog"))
    assert tidied([cat, dog, cat]) == [cat, dog]


def row(**target) -> Prompt:
    return Prompt("0", "where?", target={"boxes": [[1, 2, 30, 40]], "width": 84, "height": 84, **target})


def test_a_reading_has_its_element_its_limit_and_its_coordinates():
    text = "<think>[1,2,3,4]</think><answer>[500, 500, 750, 1000]</answer> [9,9,9,9]"
    assert BoxReading(tag="answer", coordinates="thousand").read(text, row()).tolist() == [[42, 42, 63, 84]]
    assert BoxReading(most=1).read(text, row()).tolist() == [[1, 2, 3, 4]]
    assert BoxReading(tag="glue").read("[1,2,3,4]", row()).tolist() == [[1, 2, 3, 4]]
    assert BoxReading(tag="glue", require_tag=True).read("[1,2,3,4]", row()).shape == (0, 4)


def test_a_box_beyond_the_picture_still_counts_as_one():
    assert BoxReading().read("[100, 100, 200, 200] [-9, 40, 20, 99]", row()).tolist() == [
        [84, 84, 84, 84],
        [0, 40, 20, 84],
    ]


def test_only_prompts_with_boxes_are_asked_about():
    reading = BoxReading()
    assert reading.applies_to(row())
    for target in (None, {}, {"boxes": []}, {"boxes": None}, "text"):
        assert not reading.applies_to(Prompt("0", "where?", target=target))


# ── the sketch ──


def drawn(found) -> tuple:
    marks = Marks.of(found)
    return marks.size, list(marks.boxes), list(marks.names)


def test_the_report_draws_what_was_read_and_what_is_true():
    prompt = row(box_names=["cat"])
    assert drawn(BoxSketch().truth(prompt)) == ([84, 84], [[1, 2, 30, 40]], ["cat"])
    text = '<answer>{"bbox_2d": [500, 500, 1000, 1000], "label": "dog"} {"bbox_2d": [0, 0, 1e999, 5]}</answer>'
    sketch = BoxSketch(form="json", tag="answer", coordinates="thousand")
    assert drawn(sketch(prompt, text)) == (None, [[42, 42, 84, 84]], ["dog"])
    assert drawn(BoxSketch()(prompt, "nothing")) == (None, [], [])
    assert drawn(BoxSketch().truth(Prompt("0", "where?"))) == (None, [], [])


def test_boxes_of_a_true_demonstration_are_the_annotated_ones():
    for style in ("think", "rethink"):
        for prompt in SceneWorld(count=30, style=style).load():
            for form in ("brackets", "element", "integers"):
                assert (
                    BoxReading(form=form, tag="think").read(prompt.demo, prompt).tolist()
                    == annotated_boxes(prompt).tolist()
                )


# ── hostile text ──

PARSERS = {
    **{
        form: lambda text, form=form: parse_boxes(text, form=form)
        for form in ("brackets", "element", "json", "integers")
    },
    "reading": lambda text: BoxReading(form="json").read(f"<answer>{text}</answer>", row()),
    "points": parse_points,
    "map": parse_map,
    "number": first_number,
    "structure": lambda text: (paper_structure(text), repository_structure(text)),
    "repetition": lambda text: adjacent_repetition(text.split(), 8),
    "edits": lambda text: edit_distance(text, "12.5 the cat sat"),
}
HOSTILE = {
    "numbers": "12.5, ",
    "digits": "7",
    "boxes": "[1,2,3,4]",
    "points": "(1,2),",
    "open boxes": "[1,2,3,",
    "open brackets": "[",
    "open braces": "{",
    "open elements": "<bbox>",
    "open elements with boxes": "<bbox>[1,2,3,4]",
    "open qwen boxes": "<|box_start|>(1,2)",
    "closed elements": "</bbox>",
    "signs": "<",
    "blanks": " ",
    "blanks after brackets": "[ \n ",
    "commas": "1,",
    "commas and blanks": "1 , ",
    "keys": '"bbox_2d": ',
    "keys with boxes": '"bbox_2d": [1,2,3,4], ',
    "keys of lists": '"bbox_2d": [[1,2,3,4], ',
    "labels": '"label": "',
    "single labels": '"label": \'',
    "names": '"chair": [[1, 2], ',
    "quotes": '"',
    "exponents": "1e",
    "dots": "1.",
    "plus": "+-",
    "other digits": "٣٧,",
    "tags": "<think></think><rethink>",
    "words": "the cat ",
}


@pytest.mark.parametrize("name", PARSERS)
def test_time_grows_with_the_length_and_not_with_its_square(name):
    """Eight times the text costs about eight times the time; a parser that goes back would cost 64 times."""
    texts = {
        kind: tuple("[" + piece * (size // len(piece)) for size in (3_000, 24_000)) for kind, piece in HOSTILE.items()
    }
    assert slow_kinds(PARSERS[name], texts, allowed=24, floor=2e-4) == {}


@pytest.mark.parametrize("name", PARSERS)
def test_a_megabyte_is_read_in_a_moment(name):
    for piece in ("<bbox>", "9", "[1,2,3,4]", "["):
        text = piece * (2**20 // len(piece))
        with no_more_than(5):
            PARSERS[name](text)


def test_five_thousand_boxes_are_all_read_or_as_many_as_asked_for():
    rng = random.Random(0)
    many = [[rng.randint(0, 40), rng.randint(0, 40), rng.randint(41, 84), rng.randint(41, 84)] for _ in range(5000)]
    text = json.dumps([{"bbox_2d": box} for box in many])
    for form in ("brackets", "json", "integers"):
        assert boxes(text, form=form) == [tuple(box) for box in many]
    with no_more_than(1):
        assert BoxReading(merge_iou=None).read(text, row()).tolist() == many[:100]


@settings(max_examples=150)
@given(
    st.one_of(
        st.text(),
        st.lists(
            st.sampled_from(
                [*HOSTILE.values(), "]", ")", "}", "</box>", "<box>", "1e999", "-", "\x00", "\ud800", '": [1,2,3,4]']
            )
        ).map("".join),
    )
)
def test_no_text_makes_a_parser_raise(text):
    for parser in PARSERS.values():
        parser(text)
    for form in ("brackets", "element", "json", "integers"):
        for one in parse_boxes(text, form=form):
            assert len(one.box) == 4 and not any(math.isnan(value) for value in one.box)
