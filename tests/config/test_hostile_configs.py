"""Configs that are odd or damaged: a run, or one sentence of bounded length, soon, and never anything else."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import yaml

from grpo_mm.config.run_config import plain, read
from grpo_mm.errors import UserError

ROOT = Path(__file__).parents[2]
BASES = ("quickstart/flow.yaml", "quickstart/g2rpo.yaml", "quickstart/video.yaml")
ODD = (
    None, True, False, 0, -1, 1, 10**12, 10**400, 1e39, -1e300, float("nan"), float("inf"), "", " ", "~", "x" * 100_000, "a\tb\n", "\x1b[2J",
    "é" * 300, "🙂" * 80, "..", "/", "~nobody-at-all/x", ":x", "..x:y", "os:path", "os:getcwd", "no.such.module:X", "grpo_mm.objectives:x",
    [], [[]], {}, {"kind": None}, {"kind": 3}, {"kind": "os:path"}, {"kind": []}, {"a": {"b": {"c": 1}}}, [1, "a", None], "12:30:45", "0123",
)  # fmt: skip
SECONDS = 20.0


def outcome(path: Path, overrides=()) -> str:
    """ "" for a config that would run, else the sentence."""
    began = time.monotonic()
    try:
        read(path, overrides).check_settings()
        said = ""
    except UserError as error:
        said = str(error)
        assert said and len(said) < 20_000 and "\x1b" not in said and "\0" not in said
    assert time.monotonic() - began < SECONDS
    return said


def places(value, path=()):
    """Every place in a plain config."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from places(part, (*path, key))


def put(value, path, new):
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("base", BASES)
def test_an_odd_value_anywhere_is_a_run_or_a_sentence(base, tmp_path):
    whole = plain(read(ROOT / "configs" / base))
    rng, file = random.Random(base), tmp_path / "c.yaml"
    for number in range(150):
        changed = yaml.safe_load(yaml.safe_dump(whole))
        where = rng.choice(list(places(changed)))
        put(changed, where, rng.choice(ODD))
        file.write_text(yaml.safe_dump(changed, allow_unicode=True), encoding="utf-8", errors="replace")
        try:
            outcome(file)
        except Exception as error:
            raise AssertionError(f"{number}: {where} {type(error).__name__}: {str(error)[:300]}") from error


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("base", BASES)
def test_a_damaged_text_is_a_run_or_a_sentence(base, tmp_path):
    data = (ROOT / "configs" / base).read_bytes()
    rng, file = random.Random(base), tmp_path / "c.yaml"
    tokens = (
        b"&a ",
        b"*a",
        b"<<: ",
        b"!!int ",
        b"{",
        b"}",
        b"[",
        b"]",
        b": ",
        b"- ",
        b"\t",
        b"\0",
        b"\xff",
        b"|",
        b">",
        b"#",
        b"'",
        b'"',
        b"\n---\n",
        b"%",
        b"\xef\xbb\xbf",
        b"9" * 400,
    )
    for number in range(220):
        broken = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 4, 8))):
            at = rng.randrange(len(broken))
            kind = rng.randrange(5)
            if kind == 0:
                broken[at] = rng.randrange(256)
            elif kind == 1:
                broken[at:at] = rng.choice(tokens)
            elif kind == 2:
                del broken[at : at + rng.randrange(1, 40)]
            elif kind == 3:
                broken[at:at] = broken[(b := rng.randrange(len(broken))) : b + rng.randrange(1, 120)]
            else:
                broken[at:] = b"" if rng.random() < 0.2 else broken[at:]
            broken = broken or bytearray(b" ")
        file.write_bytes(bytes(broken))
        try:
            outcome(file)
        except Exception as error:
            (tmp_path / "kept.yaml").write_bytes(bytes(broken))
            raise AssertionError(f"{number}: {type(error).__name__}: {str(error)[:300]}") from error


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_odd_override_is_a_run_or_a_sentence(tmp_path):
    base, rng = ROOT / "configs/quickstart/flow.yaml", random.Random(0)
    keys = [".".join(map(str, place)) for place in places(plain(read(base)))]
    texts = [str(value) for value in ODD] + [
        "{",
        "[",
        "!x",
        "&a",
        "*b",
        "- x",
        "a: b",
        "'q'",
        "x #y",
        "{kind: 'os:path'}",
        "{kind: ':x'}",
        "[{}]",
        "null",
        "%",
    ]
    for _ in range(250):
        text = f"{rng.choice(keys)}={rng.choice(texts)}"
        try:
            outcome(base, [text])
        except Exception as error:
            raise AssertionError(f"{text[:200]}: {type(error).__name__}: {str(error)[:300]}") from error
