"""What rows bring in is a part of a run's data: files that they name, and rows that come from no file."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_runs import write_config

from grpo_mm.config.sources import changed
from grpo_mm.datasets.media.encoded_picture import EncodedPicture
from grpo_mm.datasets.media.media_files import ImageFile, VideoFile
from grpo_mm.datasets.table.reader import Table
from grpo_mm.entry import train
from grpo_mm.errors import ConfigError
from grpo_mm.run import data_digests
from grpo_mm.run.data_digests import with_rows
from grpo_mm.types import Prompt

KEY = "prompts.mine.use"
NAMED = {"data": {KEY: {"rows.json": "1234"}}}
"""Digests of a reader whose settings name a file."""


def differences(before, after, *, named=True) -> list[str]:
    """What is said of prompts that were `before` and are `after`."""
    sources = NAMED if named else {"data": {}}
    there = json.loads(json.dumps(before if isinstance(before, dict) else with_rows(sources, {KEY: before})))
    found = changed({"code": {}, **there}, {"code": {}, **with_rows(sources, {KEY: after})})
    assert all(each.identity == "noted" and each.key == f"data of {KEY}" for each in found)
    return [each.words for each in found]


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(f"{number}.bmp")
    return tmp_path


def of_files(make=ImageFile):
    return [Prompt(f"p/{n}", "what is it", media=(make(f"{n}.bmp"),)) for n in range(3)]


WAYS = {
    "media": lambda path: Prompt("p", "t", media=(ImageFile(path),)),
    "one of several": lambda path: Prompt("p", "t", media=(ImageFile("2.bmp"), ImageFile(path))),
    "a video": lambda path: Prompt("p", "t", media=(VideoFile(path),)),
    "a part of a video": lambda path: Prompt("p", "t", media=(VideoFile(path, start=1.0, end=2.0),)),
    "a picture to edit": lambda path: Prompt("p", "t", target={"source_image": ImageFile(path)}),
    "a list in a target": lambda path: Prompt("p", "t", target={"options": {"a": [ImageFile(path)]}}),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_edited_file_is_told_by_its_name(way, pictures):
    prompts = [WAYS[way]("1.bmp")]
    there = with_rows(NAMED, {KEY: prompts})
    assert differences(there, prompts) == []
    os.utime("1.bmp", (1, 1))
    assert differences(there, prompts) == []  # copied, and not edited
    Image.new("RGB", (8, 8), (9, 9, 9)).save("1.bmp")  # of the same size
    (words,) = differences(there, prompts)
    assert words.startswith("1.bmp has changed (")
    os.remove("1.bmp")
    assert differences(there, prompts) == ["1.bmp is gone"]


def test_a_file_that_is_there_again_is_told_and_one_that_nobody_names_is_not(pictures):
    os.rename("1.bmp", "away.bmp")
    there = with_rows(NAMED, {KEY: of_files()})
    os.rename("away.bmp", "1.bmp")
    Image.new("RGB", (8, 8)).save("another.bmp")
    assert differences(there, of_files()) == ["1.bmp is there again"]


def test_a_folder_of_frames_counts_by_what_is_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("clip")
    for number in range(2):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(f"clip/{number}.bmp")
    prompts = [Prompt("p", "t", media=(VideoFile("clip"),))]
    there = with_rows(NAMED, {KEY: prompts})
    Image.new("RGB", (8, 8), (7, 0, 0)).save("clip/1.bmp")
    assert [words.split()[0] for words in differences(there, prompts)] == ["clip"]


def test_what_is_beyond_the_first_bytes_counts_by_its_size(pictures, monkeypatch):
    monkeypatch.setattr(data_digests, "WHOLE_BYTES", os.path.getsize("0.bmp"))
    there = with_rows(NAMED, {KEY: of_files()})
    Image.new("RGB", (8, 8), (9, 9, 9)).save("1.bmp")
    assert differences(there, of_files()) == []
    Image.new("RGB", (9, 9), (9, 9, 9)).save("1.bmp")
    (words,) = differences(there, of_files())
    assert words.startswith("1.bmp has changed (") and "bytes" in words


def test_beyond_so_many_files_all_sizes_count_together(pictures, monkeypatch):
    monkeypatch.setattr(data_digests, "MOST_FILES", 1)
    there = with_rows(NAMED, {KEY: of_files()})
    Image.new("RGB", (9, 9)).save("2.bmp")
    (words,) = differences(there, of_files())
    assert words.startswith("2 further pictures or videos has changed")


ROWS = [Prompt("h/0", "a cat", target={"n": 1, "words": ["a", "b"], "p": None}), Prompt("h/1", "a dog")]
OTHERS = {
    "text": lambda p: replace(p, text="a cow"),
    "id": lambda p: replace(p, id="h/9"),
    "answer": lambda p: replace(p, target=p.target | {"n": 2}),
    "answer of another type": lambda p: replace(p, target=p.target | {"n": "1"}),
    "one more column": lambda p: replace(p, target=p.target | {"m": 0}),
    "nesting": lambda p: replace(p, target=p.target | {"words": [["a"], "b"]}),
    "earlier turn": lambda p: replace(p, messages=({"role": "system", "content": "short"},)),
    "demonstration": lambda p: replace(p, demo="yes"),
    "picture": lambda p: replace(p, media=(Image.new("RGB", (2, 2), "red"),)),
    "array": lambda p: replace(p, media=(np.ones((2, 2)),)),
    "tensor": lambda p: replace(p, media=(torch.ones(2, 2),)),
    "encoded picture": lambda p: replace(p, media=(EncodedPicture(b"PNG", "row 0"),)),
}


@pytest.mark.parametrize("what", OTHERS)
def test_rows_that_come_from_no_file_count_as_they_are_read(what):
    after = [OTHERS[what](ROWS[0]), ROWS[1]]
    there = with_rows({"data": {}}, {KEY: ROWS})
    assert differences(there, [replace(row) for row in ROWS], named=False) == []
    (words,) = differences(there, after, named=False)
    assert words.startswith("the rows as they are read has changed")
    assert differences(with_rows({"data": {}}, {KEY: after}), [OTHERS[what](ROWS[0]), ROWS[1]], named=False) == []


def test_where_an_encoded_picture_stands_is_nobodys_change_and_its_bytes_are(monkeypatch):
    def rows(data, name="row 0"):
        return [Prompt("p", "t", media=(EncodedPicture(data, name),))]

    assert differences(rows(b"PNG"), rows(b"PNG", "elsewhere"), named=False) == []
    assert differences(rows(b"PNG"), rows(b"GIF"), named=False) != []
    monkeypatch.setattr(data_digests, "WHOLE_BYTES", 2)
    assert differences(rows(b"PNG"), rows(b"GIF"), named=False) == []
    assert differences(rows(b"PNG"), rows(b"WEBP"), named=False) != []


def test_pictures_that_a_table_names_are_among_the_digests_of_a_run(pictures):
    with open("rows.jsonl", "w") as file:
        file.writelines(json.dumps({"image": f"{n}.bmp", "question": "which", "answer": "a"}) + "\n" for n in range(3))
    found = with_rows(NAMED, {KEY: Table("rows.jsonl").load()})["data"][KEY]
    assert {os.path.basename(name) for name in found} == {"rows.json", "0.bmp", "1.bmp", "2.bmp"}


LINES = """
from grpo_mm.types import Prompt

class Lines:
    def load(self):
        return [Prompt(f"l/{n}", line.strip()) for n, line in enumerate(open("unnamed.txt"))]
"""


def test_a_run_asks_about_rows_of_an_own_reader_that_are_others(tiny_sd3, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_lines.py").write_text(LINES)
    (tmp_path / "unnamed.txt").write_text("a red circle\na blue square\n")
    settings = {"prompts": {"lines": {"use": "own_lines:Lines"}}, "steps": 1}
    config = write_config(tmp_path, tiny_sd3, {"prompts": None})
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | settings | {"eval_prompts": {}}))
    train(config)
    train(config, ["steps=2"])
    (tmp_path / "unnamed.txt").write_text("a red circle\na green square\n")
    with pytest.raises(
        ConfigError, match=r"data of prompts\.lines\.use: the rows as they are read has changed.*--accept"
    ):
        train(config, ["steps=3"])
    train(config, ["steps=3"], accept=True)
    (tmp_path / "unnamed.txt").unlink()
    assert "nothing was run" in train(config, ["steps=3"])["nothing_was_run"]
