"""Spans, numbers, tags and highlights read out of text, well-formed or hostile."""

import json
import math
import random
from importlib.util import find_spec

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_time import no_more_than, slow_kinds

from grpo_mm.errors import ConfigError
from grpo_mm.rewards.answers.tags import last_element
from grpo_mm.rewards.text import typed_answer
from grpo_mm.rewards.text.spans import numbers_in, parse_spans, pick_span, spans_in, strict_span_list
from grpo_mm.rewards.text.tag_format import TEMPLATES, TagFormat, follows_template
from grpo_mm.rewards.video.timestamp_matching import on_grid, parse_highlights


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("12.54s to 17.83s", (12.54, 17.83)),
        ("12.54 s to 17.83 s.", (12.54, 17.83)),
        ("1:05 - 1:20", (65, 80)),
        ("01:05-01:20", (65, 80)),
        ("00:01:05.5 to 00:01:20", (65.5, 80)),
        ("1:00:05 to 1:00:06", (3605, 3606)),
        ("00:01:05,500 --> 00:01:20,250", (65.5, 80.25)),
        ("0:30 to 45", (30, 45)),
        ("from 3 to 7 seconds", (3, 7)),
        ("From 3 seconds To 7 seconds", (3, 7)),
        ("3–7", (3, 7)),
        ("3 — 7", (3, 7)),
        ("3 ~ 7", (3, 7)),
        ("3->7", (3, 7)),
        ("1-2", (1, 2)),
        ("1 -2", (1, 2)),
        ("13.4-28.1", (13.4, 28.1)),
        ("between 3 and 7", (3, 7)),
        ("5 people between 3 and 7", (3, 7)),
        ("[3, 7]", (3, 7)),
        ("(3,7)", (3, 7)),
        ("[3,700]", (3, 700)),
        ("[.5, 3.]", (0.5, 3)),
        ("1,234.5 to 1,300", (1234.5, 1300)),
        ("1e2 to 1.5e2", (100, 150)),
        ("start: 3.5, end: 7.25", (3.5, 7.25)),
        ('{"start": 3.5, "end": 7.25}', (3.5, 7.25)),
        ("2 and 3 people, 10 to 20", (10, 20)),
        ("20 to 10", (20, 10)),
        ("从3秒到7秒", (3, 7)),
        ("３．５ － ７", (3.5, 7)),
        ("٣ to ٧", (3, 7)),
    ],
)
def test_every_spelling_of_a_span_is_read(text, span):
    assert spans_in(text) == [pytest.approx(span)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no idea",
        "at 12 seconds",
        "16:9",  # a ratio
        "1:75",  # no clock has 75 seconds
        "1:2:3:4",
        "20% to 50%",
        "inf to nan",
        "½ to ²",
        "1,234",
    ],
)
def test_what_is_no_pair_of_times_is_no_span(text):
    assert spans_in(text) == []


def test_a_clock_time_is_never_two_numbers():
    assert numbers_in("1:05") == [65] and numbers_in("16:9") == [] == numbers_in("1:75")
    assert numbers_in("at 1:05 and 90.5 s") == [65, 90.5]


def test_ranges_come_before_loose_numbers_and_loose_numbers_are_paired_in_order():
    assert spans_in("2 dogs, 4 cats, from 10 to 20, then 30 - 40") == [(10, 20), (30, 40)]
    assert spans_in("[[1, 2], [3.5, 4]]") == [(1, 2), (3.5, 4)]
    assert spans_in("1, 2, 3, 4, 5") == [(1, 2), (3, 4)]
    assert spans_in("0:10, 0:20, 5 to 6, 0:30") == [(10, 20)]


def test_the_last_answer_element_counts_and_hides_the_rest():
    text = "The query says 5 to 6. <answer>1 to 2</answer> wait <answer>between 3 and 7</answer> or 8 to 9"
    assert parse_spans(text) == [(3, 7)]
    assert pick_span(parse_spans(text, tag=None), "first") == (5, 6)
    assert pick_span(parse_spans(text, tag=None), "last") == (8, 9)
    assert parse_spans("<answer>none</answer> 8 to 9") == [] == parse_spans("8 to 9", require_tag=True)
    assert parse_spans("8 to 9") == [(8, 9)] == parse_spans("<answer>8 to 9")
    assert pick_span([], "first") is None


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        ("<a>x</a>", "x"),
        ("<a>x</a><a>y</a>", "y"),
        ("<a>x</a><a>y", "x"),
        ("<a>x</a> z </a>", "x"),
        ("<a><a>x</a></a>", "x"),
        ("</a><a>", None),
        ("<a>x", None),
        ("x</a>", None),
        ("<b>x</b>", None),
    ],
)
def test_an_element_needs_both_tags(text, inner):
    assert last_element(text, "a") == inner


def test_a_glue_list_is_a_list_of_pairs_and_nothing_else():
    assert strict_span_list(" [(1.0, 5.8), [20, 23.5]] ") == [(1, 5.8), (20, 23.5)]
    for text in (
        "",
        "[]",
        "[1, 2]",
        "(1, 2)",
        "[(1, 2, 3)]",
        "[(1, 2),]",
        "[(1, 2)",
        "[(1, 2)] or so",
        "[(-1, 2)]",
        "[(a, b)]",
    ):
        assert strict_span_list(text) is None


# ── format ──

GOOD = {
    "answer": "<answer>3 to 7</answer>",
    "think_answer": "<think>a <timestep>3</timestep> b</think>\n<answer>3 to 7</answer>",
    "think_rethink_answer": "<think>a</think><rethink>b</rethink> <answer>3</answer>",
    "think_answer_glue": "<think>a</think><answer>(C)</answer><glue>[(1.0, 5.8)]</glue>",
}


def test_no_part_of_a_glue_list_ends_before_it_starts():
    good, reward = GOOD["think_answer_glue"], TagFormat("think_answer_glue")
    for spans, follows in (("(1.0, 1.0)", True), ("(5.8, 1.0)", False), ("(1.0, 5.8), (9, 8)", False)):
        assert reward.follows(good.replace("(1.0, 5.8)", spans)) is follows


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_text_follows_its_own_template_only(template):
    reward = TagFormat(template)
    scores = reward([*GOOD.values()], [None] * 4)["score"].tolist()
    assert scores == [float(name == template) for name in GOOD]
    assert reward.follows(GOOD[template] + " \n") and not reward.follows(GOOD[template] + ".")
    assert not reward.follows("\n" + GOOD[template]) and not reward.follows("x" + GOOD[template])
    search = TagFormat(template, match="search")
    assert search.follows(f"Well: {GOOD[template]} That is it.") and not search.follows(GOOD[template] * 2)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<think>a</think>",
        "<answer>3</answer><think>a</think>",
        "<think>a</think> so <answer>3</answer>",
        "<think>a<answer>3</answer></think>",
        "<think>a<think>b</think></think><answer>3</answer>",
        "<think>a</think><answer>3</answer><answer>4</answer>",
        "<think>a</think><answer>3",
        "<think>a</think><answer>3<answer>",
        "<think>a</think><answer><rethink>3</rethink></answer>",
        "<think>a</think></think><answer>3</answer>",
    ],
)
def test_tags_stand_once_in_order_and_unnested(text):
    for match in ("fullmatch", "search"):
        assert not follows_template(text, ("think", "answer"), match=match)


def test_glue_must_hold_pairs():
    text = "<think>a</think><answer>(C)</answer><glue>{}</glue>"
    reward = TagFormat("think_answer_glue")
    assert reward.follows(text.format("[(1, 2), (3, 4)]"))
    assert not reward.follows(text.format("1 to 2")) and not reward.follows(text.format(""))


def test_an_unknown_template_is_named():
    with pytest.raises(ConfigError, match="template = 'cot'.*wanted a template of answer, think_answer"):
        TagFormat("cot")


# ── highlights ──


def test_a_highlight_sentence_is_times_then_scores():
    text = "<answer>The highlight timestamps are in the 82, 84.0, 1:26 seconds. Their saliency scores are 2.3, 2, 4.</answer>"
    assert parse_highlights(text) == [(82, 2.3), (84, 2), (86, 4)]
    assert parse_highlights("82, 84, 3, 4") == [(82, 3), (84, 4)]
    assert parse_highlights("Saliency of clips: 82, 84, 3, 4") == [(82, 3), (84, 4)]


def test_missing_scores_are_zero_and_surplus_scores_are_dropped():
    assert parse_highlights("82, 84 with score 3") == [(82, 3), (84, 0)]
    assert parse_highlights("82 with scores 3, 4, 5") == [(82, 3)]
    assert parse_highlights("82, 84, 86, scores unknown") == [(82, 0), (84, 0), (86, 0)]
    assert parse_highlights("none") == []


def test_times_go_to_the_nearest_clip_and_the_first_of_a_clip_counts():
    assert on_grid([(0.9, 1), (1, 2), (2.9, 3), (13, 4)], clip_seconds=2) == {0: 1, 1: 2, 7: 4}
    assert on_grid([(math.inf, 1), (math.nan, 1)], clip_seconds=2) == {}


# ── hostile text ──

PARSERS = {
    "spans": lambda text: parse_spans(text, tag=None),
    "spans in a tag": lambda text: parse_spans(f"<answer>{text}</answer>"),
    "numbers": numbers_in,
    "glue": strict_span_list,
    "element": lambda text: last_element(text, "answer"),
    "template": lambda text: follows_template(text, ("think", "answer"), match="search"),
    "highlights": lambda text: on_grid(parse_highlights(text), clip_seconds=2),
    **{
        f"answer: {kind}": lambda text, rule=rule: rule(text, "12.5 the cat sat")
        for kind, rule in typed_answer.ACCURACY.items()
        if kind != "math" or find_spec("math_verify")
    },
}
HOSTILE = {
    "numbers": "12.5 ",
    "digits": "7",
    "colons": "1:",
    "clocks": "1:05 - ",
    "thousands": "1,234,",
    "pairs of digits": "12,34,",
    "apostrophes": "1'234'",
    "brackets": "[",
    "brackets with numbers": "[(1, 2), ",
    "open list": "(1 ",
    "signs": "<",
    "open tags": "<think><answer>",
    "closed tags": "</answer></think>",
    "elements": "<think>a</think><answer>1 to 2</answer>",
    "blanks": " ",
    "dashes": "3 - ",
    "dots": ".",
    "exponents": "1e",
    "letters": "(A) ",
    "words": "the cat ",
    "scores": "score ",
    "other digits": "٣٧",
    "marks": "e\u0301\u0327",
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
    for piece in ("<", "9"):
        text = piece * 2**20
        with no_more_than(5):
            PARSERS[name](text)


def test_ten_thousand_numbers_are_five_thousand_spans():
    numbers = [random.Random(0).uniform(0, 100) for _ in range(10_000)]
    assert spans_in(json.dumps(numbers)) == list(zip(numbers[::2], numbers[1::2]))


@settings(max_examples=150)
@given(
    st.one_of(
        st.text(),
        st.lists(st.sampled_from([*HOSTILE.values(), "to", "and", "-", "1e999", "%", "\x00", "\ud800", "</glue>"])).map(
            "".join
        ),
    )
)
def test_no_text_makes_a_parser_raise(text):
    for parser in PARSERS.values():
        parser(text)
    assert all(math.isfinite(value) or value == math.inf for value in numbers_in(text))


@given(
    st.lists(st.tuples(*[st.floats(0, 1e4, allow_nan=False).map(lambda x: round(x, 2))] * 2), min_size=1, max_size=4)
)
def test_what_is_written_is_read_again(spans):
    assert spans_in(" then ".join(f"{start:.2f} to {end:.2f}" for start, end in spans)) == spans
    assert spans_in(json.dumps(spans)) == spans
    assert strict_span_list("[" + ", ".join(f"({start:.2f}, {end:.2f})" for start, end in spans) + "]") == spans
