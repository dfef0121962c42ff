"""Foreign JSON, numbers and texts: read whole or refused, shown without harm."""

from __future__ import annotations

import contextlib
import json
import math

import pytest
from linear_time import slow_kinds

from grpo_mm.outside import DEEPEST, BadJson, finite_number, is_text, parse_json, plain, reason, shown

GOOD = [
    '{"a": [1, 2.5, -3e2, true, null, "é \\ud83d\\ude00"]}',
    "[]",
    '"x"',
    "7",
    '[{"a": 1}, {"a": 2}]',
    "[" * 50 + "]" * 50,
]
BAD = {
    "": "column 1",
    "{": "column 2",
    "[1,]": "not JSON",
    "NaN": "NaN",
    '{"a": -Infinity}': "-Infinity",
    "1e999": "1e999",
    '{"a": 1, "b": 2, "a": 3}': "'a' stands twice",
    '{"a": {"b": 1, "b": 1}}': "'b' stands twice",
    '["half \\ud83d"]': "surrogate",
    '{"\\uDE00": 1}': "surrogate",
    '["\ud83d"]': "surrogate",
    "9" * 5000: "digits",
    "[" * 300 + "]" * 300: "nested",
    "[" * 100_000: "",
    '{"a":' * 300 + "1" + "}" * 300: "nested",
}


@pytest.mark.parametrize("text", GOOD)
def test_what_two_readers_would_read_alike_is_read(text):
    assert parse_json(text) == json.loads(text)


@pytest.mark.parametrize("number", range(len(BAD)))
def test_what_they_would_not_is_refused_with_what_is_wrong(number):
    text, word = list(BAD.items())[number]
    with pytest.raises(BadJson) as told:
        parse_json(text)
    assert word in str(told.value)
    assert len(str(told.value)) < 600


def test_a_line_is_named_where_it_is_known():
    with pytest.raises(BadJson) as told:
        parse_json('{"a": 1,\n "b": }')
    assert told.value.line == 2


def test_depth_is_counted_in_levels_and_not_in_brackets():
    wide = [[n] for n in range(5 * DEEPEST)]
    assert parse_json(json.dumps(wide)) == wide


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (3, 3.0),
        (-0.5, -0.5),
        (True, None),
        ("3", None),
        (None, None),
        (math.nan, None),
        (math.inf, None),
        (10**400, None),
        ([1], None),
    ],
)
def test_numbers_are_finite_or_none(value, number):
    assert finite_number(value) == number


class Rude(Exception):
    def __str__(self):
        raise RuntimeError("no")

    __repr__ = __str__


def test_what_is_shown_is_bounded_on_one_line_and_harmless():
    assert is_text("é😀") and not is_text("\ud83d")
    assert shown("a" * 10_000).startswith("'aaa") and len(shown("a" * 10_000)) < 250
    assert "\x1b" not in shown("\x1b[31m") and "\x1b" not in plain("\x1b[31mred\x07")
    assert plain("two\nlines\tand a tab") == "two\nlines\tand a tab"
    assert plain("right\u202eleft\u2028") == "right\\u202eleft\\u2028"
    assert shown(Rude()) == "<Rude that cannot be shown>"
    assert reason(Rude()) == "Rude: without a text that can be shown"
    assert reason(KeyError()) == "KeyError"
    assert reason(ValueError("a\n  b" + "c" * 10_000)).startswith("ValueError: a b")
    assert len(reason(ValueError("c" * 10_000))) < 500


def test_reading_is_linear():
    def texts(n):
        yield json.dumps({str(k): [k] for k in range(n)})
        yield "{" + ",".join(f'"{k}": 1' for k in range(n)) + ', "0": 1}'
        yield "[" * n

    def read(text):
        with contextlib.suppress(BadJson):
            parse_json(text)

    kinds = {n: pair for n, pair in enumerate(zip(texts(5_000), texts(50_000), strict=True))}
    assert slow_kinds(read, kinds, allowed=30, floor=0.002) == {}
