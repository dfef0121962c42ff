"""Annotation and prediction files that are damaged in thousands of ways are read right or refused by file and row, never a traceback."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from reader_rows import EXAMPLES, GQA, OUTPUTS, QV, TVG, VIDEOS, Example, lines, whole

from grpo_mm.errors import ConfigError
from grpo_mm.tools.prediction_files import score_files
from grpo_mm.types import Prompt

ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 10**400, 1e308, "", " ", "\ufeff", "\u2028", "a\u2028b", "x" * 5000, "a\0b", "nan", "1e999", [], {}, [None],
    [[]], [[[1]]], {"a": None}, [1, 2, 3], "12", -(10**30), ["a", 1], {"bytes": None, "path": None}, "\x1b[31m", "<|im_end|>", "../..",
)  # fmt: skip
"""Values in place of others."""
RAW = (
    b"\xff\xfe", b"\x00", b"NaN", b"Infinity", b"1e999", b"\\ud83d", b"\\u0000", b"[" * 3000, b"9" * 5000, b'"', b"\r", b"\xe2\x80\xa8",
    b"\xef\xbb\xbf", b"{", b"}", b",", b"\n", b"\xc3", b'"a":1,"a":2,', b"\t", b"##", b"-", b"''",
)  # fmt: skip
"""Bytes put in somewhere."""


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(one, (*path, key))


def changed(value: Any, path: tuple, new: Any, *, drop: bool) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(path) == 1 and drop:
        del copy[path[0]]
    else:
        copy[path[0]] = changed(value[path[0]], path[1:], new, drop=drop)
    return copy


def damaged(text: str, suffix: str, draw: random.Random) -> bytes:
    """One damage of a kind that is drawn: a value of the JSON, or bytes put in, taken out, doubled or exchanged."""
    if suffix in (".json", ".jsonl") and draw.random() < 0.6:
        value = [json.loads(line) for line in text.splitlines()] if suffix == ".jsonl" else json.loads(text)
        for _ in range(draw.choice((1, 1, 2))):
            value = changed(
                value,
                draw.choice(list(places(value))[suffix == ".jsonl" :]),
                draw.choice(ODD),
                drop=draw.random() < 0.1,
            )
        return (lines(*value) if suffix == ".jsonl" and isinstance(value, list) else json.dumps(value)).encode()
    content = bytearray(text.encode())
    start, kind = draw.randrange(len(content)), draw.randrange(6)
    length = draw.choice((1, 3, 20, len(content)))
    if kind == 0:
        content[start:start] = draw.choice(RAW)
    elif kind == 1:
        del content[start : start + length]
    elif kind == 2:
        content[start:start] = content[start : start + length]
    elif kind == 3:
        content[start] ^= 1 << draw.randrange(8)
    elif kind == 4:
        content[start : start + length] = draw.choice(RAW)
    else:
        return draw.choice(
            (
                text.encode("utf-16"),
                b"",
                b"\n\n",
                text.encode() * 2,
                text.encode("utf-8-sig") * 2,
                b"[]",
                b"{}",
                b"null",
            )
        )
    return bytes(content)


def check_refusal(error: ConfigError, folder: Path) -> None:
    text = str(error)
    assert str(folder) in text and len(text) < 4000
    assert text.encode("utf-8") and not set(text) & set(map(chr, (0, 27, 0x2028)))


def read_damaged(example: Example, folder: Path, draw: random.Random) -> bool:
    """Whether it was refused."""
    name, text = next(iter(example.files.items()))
    content = damaged(text, Path(name).suffix, draw)
    example.write(folder, text=content)
    try:
        found = example.load(folder)
    except ConfigError as error:
        check_refusal(error, folder)
        return True
    assert found and all(isinstance(p, Prompt) and p.text.strip() and p.text.encode() for p in found), content
    json.dumps([p.target for p in found], allow_nan=False, default=str)
    return False


FILES = {
    "qvhighlights": (
        lines(QV),
        lines({"qid": 9, "pred_relevant_windows": [[80, 86, 0.5]], "pred_saliency_scores": [0.5] * 75}),
    ),
    "charades": (json.dumps(VIDEOS), json.dumps({"AO8RW/0": {"timestamp": [[0.0, 7.0]]}, "AO8RW/1": [3, 9]})),
    "activitynet": (json.dumps(VIDEOS), json.dumps({"AO8RW/0": "from 0 to 7 seconds", "AO8RW/1": None})),
    "tvgbench": (whole(TVG), json.dumps({"0": [9.9, 45.0]})),
    "nextgqa": (whole(GQA), json.dumps({"48_1": {"answer": "(C)", "ground": [13.0, 29.0]}})),
    "blink": (json.dumps(OUTPUTS), json.dumps(OUTPUTS)),
}
"""Form → annotations, predictions."""


def score_damaged(kind: str, folder: Path, draw: random.Random) -> bool:
    annotations, predictions = FILES[kind]
    suffix = ".jsonl" if kind == "qvhighlights" else ".json"
    (folder / f"a{suffix}").write_text(annotations)
    path = folder / f"p{suffix}"
    path.write_bytes(damaged(predictions, suffix, draw))
    try:
        table = score_files(kind, predictions=[path], annotations=[folder / f"a{suffix}"])
    except ConfigError as error:
        check_refusal(error, folder)
        return True
    assert all(isinstance(value, float | int) for value in table.values())
    return False


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "hub"])
def test_some_damaged_files_of_every_reader(name, tmp_path):
    draw = random.Random(name)
    assert any([read_damaged(EXAMPLES[name], tmp_path, draw) for _ in range(25)])


@pytest.mark.parametrize("kind", FILES)
def test_some_damaged_predictions(kind, tmp_path):
    draw = random.Random(kind)
    assert any([score_damaged(kind, tmp_path, draw) for _ in range(12)])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "hub"])
def test_many_damaged_files_of_every_reader(name, tmp_path):
    for seed in range(160):
        read_damaged(EXAMPLES[name], tmp_path, random.Random(f"{name} {seed}"))


@pytest.mark.slow
def test_damaged_files_of_a_hub_folder(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    for seed in range(40):
        folder = tmp_path / f"rows{seed}"
        folder.mkdir()
        read_damaged(EXAMPLES["hub"], folder, random.Random(seed))


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_many_damaged_predictions(kind, tmp_path):
    for seed in range(160):
        score_damaged(kind, tmp_path, random.Random(f"{kind} {seed}"))
