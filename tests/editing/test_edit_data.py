"""Data of edits in the forms of other people: the picture before is shown first, the one after is for rewards."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from grpo_mm.datasets.media.media_files import ImageFile
from grpo_mm.datasets.table.reader import Table
from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.flow.editing.qwen_image_edit import QwenImageEditPlus
from grpo_mm.pipelines.flow.policy import FlowPolicyConfig
from grpo_mm.rollout.prompt_check import check_prompts

A, B, C = "a.png", "b.png", "c.png"
FORMS: dict[str, tuple[dict[str, Any], str, tuple[str, ...], str | None]] = {
    "InstructPix2Pix": ({"original_prompt": "a cat", "original_image": A, "edit_prompt": "a dog instead", "edited_prompt": "a dog", "edited_image": B}, "a dog instead", (A,), B),
    "UltraEdit": ({"clip_sim_source": 0.2, "source_caption": "a cat", "target_caption": "a dog", "edit_prompt": "swap", "source_image": A, "edited_image": B}, "swap", (A,), B),
    "HQ-Edit": ({"input": "a cat", "input_image": A, "edit": "a dog instead", "inverse_edit": "back", "output": "a dog", "output_image": B}, "a dog instead", (A,), B),
    "MagicBrush": ({"img_id": "7", "turn_index": 1, "source_img": A, "instruction": "bluer", "target_img": B}, "bluer", (A,), B),
    "OmniEdit": ({"omni_edit_id": "t7", "src_img": A, "edited_img": B, "edited_prompt_list": ["bluer", "make it bluer"], "o_score": 9}, "bluer", (A,), B),
    "SEED-Data-Edit": ({"source_image": A, "instruction": "bluer", "target_image": B}, "bluer", (A,), B),
    "words that name pictures": ({"source": A, "target": B, "instruction": "bluer"}, "bluer", (A,), B),
    "a picture alone": ({"image": A, "prompt": "bluer"}, "bluer", (A,), None),
    "references": ({"source_image": A, "reference_images": [B, C], "instruction": "with the hat of the other"}, "with the hat of the other", (A, B, C), None),
    "a list of pictures": ({"images": [A, B], "prompt": "both in one"}, "both in one", (A, B), None),
    "sources in a list": ({"input_images": [A, B], "instruction": "both", "output_image": C}, "both", (A, B), C),
}  # fmt: skip


def png(colour: str = "red", size: tuple[int, int] = (96, 64)) -> bytes:
    from PIL import Image

    told = BytesIO()
    Image.new("RGB", size, colour).save(told, "png")
    return told.getvalue()


def write(folder: Path, *rows: dict[str, Any]) -> str:
    for name in (A, B, C):
        (folder / name).write_bytes(png())
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "rows.jsonl")


def names(items: Any) -> tuple[str, ...]:
    return tuple(Path(item.path).name for item in items)


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_others_are_read_without_settings(form, tmp_path):
    row, text, shown, after = FORMS[form]
    (prompt,) = Table(write(tmp_path, row)).load()
    assert (prompt.text, names(prompt.media)) == (text, shown)
    edited = (prompt.target or {}).get("edited_image")
    assert (None if edited is None else names([edited])[0]) == after
    assert "source_image" not in (prompt.target or {}) and "answer" not in (prompt.target or {})


def test_names_of_columns_are_overridden(tmp_path):
    path = write(tmp_path, {"x": A, "hat": B, "y": C, "words": "bluer"})
    (prompt,) = Table(path, source_image="x", reference_image="hat", edited_image="y", question="words").load()
    assert names(prompt.media) == (A, B) and names([prompt.target["edited_image"]]) == (C,)


def test_a_mask_beside_a_column_called_image_is_for_rewards(tmp_path):
    (prompt,) = Table(write(tmp_path, {"image": A, "instruction": "bluer", "mask": B, "edited_image": C})).load()
    assert names(prompt.media) == (A,) and names([prompt.target["mask"]]) == (B,)


def test_captions_called_source_and_target_are_no_pictures(tmp_path):
    (prompt,) = Table(write(tmp_path, {"source": "coco", "instruction": "a cat", "target": "a dog"})).load()
    assert prompt.media == () and prompt.target["answer"] == "a dog" and prompt.target["source"] == "coco"


def test_a_row_without_its_picture_is_named(tmp_path):
    path = write(tmp_path, {"source_image": A, "instruction": "x"}, {"source_image": "", "instruction": "y"})
    with pytest.raises(ConfigError, match=r"line 2: 'source_image' holds no picture to be edited"):
        Table(path).load()


def test_rows_whose_picture_is_gone_are_counted_and_named(tmp_path, caplog):
    path = write(tmp_path, {"source_image": A, "instruction": "x"}, {"source_image": "gone.png", "instruction": "y"})
    assert len(Table(path, check_files=True).load()) == 1
    assert "1 rows left out: no such file (rows/1)" in caplog.text


def test_a_mask_is_for_rewards_and_pictures_of_unknown_meaning_are_refused(tmp_path):
    row = {"source_img": A, "mask_img": B, "instruction": "x", "target_img": C}
    (prompt,) = Table(write(tmp_path, row)).load()
    assert names([prompt.target["mask"]]) == (B,) and names(prompt.media) == (A,)
    path = write(tmp_path, {**row, "depth_image": B})
    with pytest.raises(ConfigError, match="depth_image"):
        Table(path).load()
    (prompt,) = Table(path, for_rewards=["depth_image"]).load()
    assert prompt.target["depth_image"] == str(tmp_path / B)


def test_gedit_as_hugging_face_writes_it(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "task_type": datasets.Value("string"),
            "key": datasets.Value("string"),
            "instruction": datasets.Value("string"),
            "instruction_language": datasets.Value("string"),
            "input_image": datasets.Image(),
            "input_image_raw": datasets.Image(),
        }
    )
    row = {"task_type": "color_alter", "key": "k", "instruction": "bluer", "instruction_language": "en",
           "input_image": {"bytes": png(), "path": None}, "input_image_raw": {"bytes": png(size=(192, 128)), "path": None}}  # fmt: skip
    chinese = {**row, "key": "l", "instruction_language": "cn"}
    data = datasets.Dataset.from_list([row, chinese], features=features)
    data.to_parquet(tmp_path / "gedit.parquet")
    (prompt,) = Table(str(tmp_path / "gedit.parquet"), only={"instruction_language": "en"}).load()
    policy = FlowPolicyConfig(model=QwenImageEditPlus("random:none"))
    (picture,) = policy.open_pictures(prompt)
    assert picture.size == (96, 64) and prompt.text == "bluer" and prompt.target["task_type"] == "color_alter"
    assert "input_image_raw" in prompt.target


def edits(folder: Path, *files: str, texts: dict[str, str]) -> str:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(png())
    for file, text in texts.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    return str(folder)


def test_folders_of_pictures_before_and_after(tmp_path):
    three = edits(
        tmp_path / "3",
        "source/a.png",
        "target/a.jpg",
        "source/x/b.png",
        texts={"instruction/a.txt": "bluer", "instruction/x/b.txt": "redder"},
    )
    first, second = Table(three).load()
    assert (first.text, second.text) == ("bluer", "redder")
    assert names([first.target["edited_image"]]) == ("a.jpg",) and not (second.target or {}).get("edited_image")
    assert names(first.media) == ("a.png",) and isinstance(first.media[0], ImageFile)
    beside = edits(tmp_path / "2", "before/a.png", "after/a.png", texts={"after/a.txt": "bluer"})
    (only,) = Table(beside).load()
    assert only.text == "bluer" and "before" in only.media[0].path


def test_folders_that_do_not_match_are_refused(tmp_path):
    silent = edits(tmp_path / "silent", "source/a.png", "target/a.png", texts={})
    with pytest.raises(ConfigError, match=r"a\.png has no instruction: there is no .*source/a\.txt and no"):
        Table(silent).load()
    alone = edits(tmp_path / "alone", "source/a.png", "target/b.png", texts={"source/a.txt": "x"})
    with pytest.raises(ConfigError, match=r"target/b has no picture of that name"):
        Table(alone).load()


def test_metadata_name_both_pictures(tmp_path):
    folder = edits(tmp_path, "0.png", "1.png", texts={
        "metadata.jsonl": json.dumps({"source_file_name": "0.png", "target_file_name": "1.png", "instruction": "bluer"})
    })  # fmt: skip
    (prompt,) = Table(folder).load()
    assert names(prompt.media) == ("0.png",) and names([prompt.target["edited_image"]]) == ("1.png",)


@pytest.mark.parametrize(
    "row, pictures, why",
    [
        ({"instruction": "x"}, (1, 1), "it shows no pictures, and the model needs 1 picture"),
        ({"images": [A, B], "instruction": "x"}, (1, 1), "it shows 2 pictures, and the model reads at most 1 picture"),
        ({"source_image": A, "instruction": "x"}, (0, 0), "of which the engine flow would show the model nothing"),
        ({"instruction": "x", "source_image": A, "history": [["a", "b"]]}, (1, 1), "it has earlier turns"),
    ],
)
def test_prompts_that_the_model_does_not_take_are_refused_when_they_are_read(row, pictures, why, tmp_path):
    prompts = Table(write(tmp_path, row)).load()
    with pytest.raises(ConfigError, match=why):
        check_prompts({"s": prompts}, {}, shows_media=False, engine="flow", pictures=pictures)


def test_prompts_that_it_takes_are_not(tmp_path):
    prompts = Table(write(tmp_path, {"images": [A, B], "instruction": "x"})).load()
    check_prompts({"s": prompts}, {}, shows_media=False, engine="flow", pictures=(0, 10))
