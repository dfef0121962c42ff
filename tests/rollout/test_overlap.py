"""Prompts that are trained on and held out are found by what is in them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from grpo_mm.datasets.media.encoded_picture import EncodedPicture
from grpo_mm.datasets.media.media_files import ImageFile, VideoFile
from grpo_mm.errors import ConfigError
from grpo_mm.rollout.overlap import trained_on
from grpo_mm.rollout.prompt_check import check_first_files
from grpo_mm.run.data import overlap
from grpo_mm.types import Prompt


def ids(trained: list[Prompt], held_out: list[Prompt]) -> list[str]:
    return [prompt.id for prompt in trained_on(trained, held_out)]


def test_the_same_text_and_media_are_found_whatever_their_names(tmp_path):
    for name, content in {"a": b"1234", "copy": b"1234", "other": b"1235", "longer": b"12345"}.items():
        (tmp_path / name).write_bytes(content)
    a, copy, other, longer = (ImageFile(str(tmp_path / name)) for name in ("a", "copy", "other", "longer"))
    trained = [Prompt("0", "What  colour?", media=(a,)), Prompt("1", "Why?")]
    held_out = [
        Prompt("same", "What colour?\n", media=(copy,)), Prompt("other", "What colour?", media=(other,)),
        Prompt("longer", "What colour?", media=(longer,)), Prompt("no media", "What colour?"), Prompt("text", "Why?"),
        Prompt("later", "Why?", messages=({"role": "user", "content": "Hi"},)), Prompt("video", "What colour?", media=(VideoFile(copy.path),)),
        Prompt("missing", "What colour?", media=(ImageFile(str(tmp_path / "none")),)),
    ]  # fmt: skip
    assert ids(trained, held_out) == ["same", "text"]
    parts = [VideoFile(a.path, 0.0, end) for end in (1.0, 2.0)]
    assert ids(
        [Prompt("0", "x", media=(parts[0],))], [Prompt(str(i), "x", media=(p,)) for i, p in enumerate(parts)]
    ) == ["0"]


def test_a_file_and_a_picture_within_a_table_are_compared(tmp_path):
    (tmp_path / "a.png").write_bytes(b"1234")
    file = ImageFile(str(tmp_path / "a.png"))
    same, other = EncodedPicture(b"1234", "x"), EncodedPicture(b"1235", "y")
    held_out = [Prompt("same", "x", media=(same,)), Prompt("other", "x", media=(other,))]
    assert ids([Prompt("0", "x", media=(file,))], held_out) == ["same"]


def test_pictures_in_memory_are_compared_by_their_pixels():
    red, again, blue = (Image.new("RGB", (4, 4), shade) for shade in ("red", "red", "blue"))
    arrays = [
        np.zeros((3, 4, 4), dtype=np.uint8),
        np.zeros((3, 4, 4), dtype=np.uint8),
        np.ones((3, 4, 4), dtype=np.uint8),
    ]
    encoded = [EncodedPicture(data, "x") for data in (b"a", b"a", b"b")]
    for one, same, other in ((red, again, blue), arrays, encoded):
        held_out = [Prompt("same", "x", media=(same,)), Prompt("other", "x", media=(other,))]
        assert ids([Prompt("0", "x", media=(one,))], held_out) == ["same"]


def test_what_is_held_out_and_trained_on_is_told_and_recorded(caplog):
    trained, held_out = {"s": [Prompt("a", "x"), Prompt("b", "y")]}, [Prompt("c", "y"), Prompt("d", "z")]
    assert overlap(trained, held_out) == {"data/held_out": 2, "data/held_out_in_training": 1}
    assert "1 of 2 held-out prompts are trained on as well (same text, same media): 'c'" in caplog.text
    assert overlap(trained, []) == {}


def test_a_source_without_any_of_its_first_files_is_refused(tmp_path):
    (tmp_path / "there").write_bytes(b"x")
    missing = [Prompt(str(i), "x", media=(VideoFile(str(tmp_path / f"{i}.mp4")),)) for i in range(60)]
    with pytest.raises(
        ConfigError, match=r"not one of the first 50 pictures and videos is there, beginning with .*/0.mp4"
    ):
        check_first_files({"s": missing})
    with pytest.raises(ConfigError, match="There is no folder nowhere"):
        check_first_files({"s": [Prompt("a", "x", media=(ImageFile("nowhere/a.png"),))]})
    check_first_files(
        {"s": [Prompt("a", "x", media=(ImageFile(str(tmp_path / "there")),)), *missing], "texts": [Prompt("a", "x")]}
    )
