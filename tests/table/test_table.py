"""Own data as other tool kits write them: read with nothing lost, or refused by name."""

from __future__ import annotations

import base64
import json
import logging
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from grpo_mm.datasets.media.encoded_picture import EncodedPicture
from grpo_mm.datasets.media.media_files import ImageFile, VideoFile
from grpo_mm.datasets.table.reader import Table
from grpo_mm.errors import ConfigError
from grpo_mm.rollout.prompt_check import check_prompts
from grpo_mm.types import Prompt


def png(shade: str = "red") -> bytes:
    file = BytesIO()
    Image.new("RGB", (84, 64), shade).save(file, "PNG")
    return file.getvalue()


DATA_URL = "data:image/png;base64," + base64.b64encode(png()).decode()
A, B, CLIP = "a.png", "b.png", "c.mp4"


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


# A row, as the documentation of the tool kit shows it → what is asked, media, part of the target, demonstration.
FORMS: dict[str, tuple[dict[str, Any], str, tuple[str, ...], dict[str, Any], str | None]] = {
    "a newcomer's": ({"image": A, "question": "What?", "answer": "red"}, "What?", (A,), {"answer": "red", "answer_type": "short answer"}, "<answer>red</answer>"),
    "a number": ({"img_path": A, "query": "How many?", "label": 3}, "How many?", (A,), {"answer": "3", "answer_type": "numerical"}, "<answer>3</answer>"),
    "OpenAI, parts": ({"messages": [said("system", "Be short."), said("user", [{"type": "text", "text": "What? "}, {"type": "image_url", "image_url": {"url": DATA_URL}}]), said("assistant", "red")]}, "What? <image>", ("",), {"answer": "red"}, "red"),
    "OpenAI, responses": ({"messages": [said("user", [{"type": "input_image", "image_url": DATA_URL}, {"type": "text", "text": "What?"}])]}, "<image>What?", ("",), {}, None),
    "ShareGPT": ({"conversations": [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "red"}], "images": [A], "system": "Be kind"}, "<image>What?", (A,), {"answer": "red"}, "red"),
    "LLaVA, two turns": ({"id": "0033", "image": A, "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A."}, {"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}, "Why?", (A,), {"answer": "So."}, "So."),
    "ms-swift": ({"messages": [said("user", "<image>How many?")], "images": [A], "solution": "<think>x</think><answer>3</answer>"}, "<image>How many?", (A,), {"answer": "3", "answer_type": "numerical"}, "<answer>3</answer>"),
    "ms-swift, history": ({"query": "<image>Why?", "response": "because it rains a lot here", "history": [["Hi", "Hello"]], "images": [A]}, "<image>Why?", (A,), {"answer_type": "free text"}, None),
    "ms-swift, video": ({"messages": [said("user", "<video>When?")], "videos": [CLIP], "solution": "A"}, "<video>When?", (CLIP,), {"answer_type": "multiple choice"}, None),
    "TRL, text": ({"prompt": "2+2?", "solution": "$\\boxed{\\frac{1}{4}}$"}, "2+2?", (), {"answer": "\\frac{1}{4}"}, None),
    "TRL, messages": ({"prompt": [said("user", "What?")], "completion": [said("assistant", "red")], "image": A}, "What?", (A,), {"answer": "red"}, None),
    "TRL, parts": ({"prompt": [said("user", [{"type": "image"}, {"type": "text", "text": "What?"}])], "images": [A], "solution": "red"}, "<image>What?", (A,), {}, None),
    "verl": ({"data_source": "geo3k", "prompt": [said("user", "<image>Find x.")], "images": [{"bytes": None, "path": A}], "reward_model": {"style": "rule", "ground_truth": "42"}}, "<image>Find x.", (A,), {"answer": "42", "data_source": "geo3k"}, None),
    "EasyR1": ({"images": [A], "problem": "<image>Find x", "answer": "12"}, "<image>Find x", (A,), {"answer": "12"}, None),
    "llava-instruct-mix": ({"messages": [said("user", [{"index": None, "text": "Who?", "type": "text"}, {"index": 1, "text": None, "type": "image"}, {"index": 0, "text": None, "type": "image"}])], "images": [A, B]}, "Who?<image><image>", (B, A), {}, None),
    "the Cauldron": ({"images": [A], "texts": [{"user": "Q?", "assistant": "A.", "source": "x"}]}, "Q?", (A,), {}, "A."),
    "MMMU": ({"id": "v_1", "question": "Is <image 2> or <image 1>?", "options": "['a', 'b']", "image_1": A, "image_2": B, "image_3": None, "answer": "B"}, "Is <image> or <image>?", (B, A), {"answer": "(B)", "choices": ["a", "b"], "answer_type": "multiple choice"}, "<answer>(B)</answer>"),
    "ScienceQA": ({"image": A, "question": "Which?", "choices": ["x", "y", "z"], "answer": 1, "hint": ""}, "Which?", (A,), {"answer": "(B)", "hint": ""}, None),
    "options by letter": ({"image": A, "question": "Which?", "options": {"A": "x", "B": "y"}, "answer": "B. y"}, "Which?", (A,), {"answer": "(B)", "choices": ["x", "y"]}, None),
    "MMBench": ({"image": DATA_URL.partition(",")[2], "question": "Which?", "A": "x", "B": "y", "C": None, "answer": "A"}, "Which?", ("",), {"answer": "(A)", "choices": ["x", "y"]}, None),
    "VQAv2": ({"image": A, "question": "What?", "answers": [{"answer": "nets"}, {"answer": "net"}, {"answer": "net"}], "question_id": 4}, "What?", (A,), {"answer": "net", "accepted": ["net", "nets"]}, None),
    "GSM8K": ({"question": "How many?", "answer": "He has 3.\n#### 1,072"}, "How many?", (), {"answer": "1,072", "answer_type": "numerical"}, None),
    "yes and no": ({"image": A, "question": "Is it?", "answer": True}, "Is it?", (A,), {"answer": "yes", "answer_type": "multiple choice"}, None),
    "COCO's objects": ({"image": A, "expression": "the cup", "objects": {"bbox": [[10, 10, 20, 30]], "categories": [0]}}, "the cup", (A,), {"boxes": [[10, 10, 30, 40]], "box_names": ["0"], "width": 84, "height": 64}, "<answer>[10, 10, 30, 40]</answer>"),
    "VLM-R1's boxes": ({"image": A, "problem": "the cup", "bbox": '[{"bbox_2d": [1, 2, 30, 40], "label": "cup"}]'}, "the cup", (A,), {"boxes": [[1, 2, 30, 40]], "box_names": ["cup"]}, None),
    "ms-swift, grounding": ({"messages": [said("user", "<image>Locate <ref-object>"), said("assistant", "<bbox>")], "images": [A], "objects": {"ref": ["cup"], "bbox": [[1, 2, 30, 40]]}}, "<image>Locate cup", (A,), {"boxes": [[1, 2, 30, 40]], "box_names": ["cup"]}, "[1, 2, 30, 40]"),
    "Alpaca": ({"instruction": "<image>Say", "input": "in short", "output": "a red square", "images": [A]}, "<image>Say\nin short", (A,), {"answer": "a red square"}, None),
    "Qwen's markers": ({"image": A, "question": "<|vision_start|><|image_pad|><|vision_end|>What?", "answer": "x"}, "<image>What?", (A,), {}, None),
    "Phi's markers": ({"images": [A, B], "question": "<|image_2|> or <|image_1|>?", "answer": "x"}, "<image> or <image>?", (B, A), {}, None),
    "spans in one column": ({"video": CLIP, "query": "a dog", "span": [[1, 2], [3, 4]], "duration": 9.0}, "a dog", (CLIP,), {"spans": [[1.0, 2.0], [3.0, 4.0]], "duration": 9.0}, "<answer>1.00 to 2.00</answer>"),
    "spans in two columns": ({"video": CLIP, "sentence": "a dog", "start_time": "00:01", "end_time": "0:02.5"}, "a dog", (CLIP,), {"spans": [[1.0, 2.5]]}, None),
    "a span as a text": ({"video_path": CLIP, "caption": "a dog", "timestamp": "1.0-2.5"}, "a dog", (CLIP,), {"spans": [[1.0, 2.5]]}, None),
    "a span as an object": ({"video": CLIP, "query": "a dog", "segment": {"start": 1, "end": 2}}, "a dog", (CLIP,), {"spans": [[1.0, 2.0]]}, None),
    "text to image": ({"caption": "a cat", "seed": 3}, "a cat", (), {"seed": 3}, None),
    "editing": ({"input_image": A, "edit_prompt": "make it blue"}, "make it blue", (A,), {}, None),
}  # fmt: skip


def write(folder: Path, row: dict[str, Any], name: str = "rows.json") -> Path:
    (folder / A).write_bytes(png()), (folder / B).write_bytes(png("blue"))
    (folder / name).write_text(json.dumps([row]) if name.endswith(".json") else json.dumps(row) + "\n")
    return folder / name


def read(path: Path, **settings: Any) -> Prompt:
    return Table(str(path), **settings).load()[0]


def names(prompt: Prompt) -> tuple[str, ...]:
    return tuple(Path(item.path).name if hasattr(item, "path") else "" for item in prompt.media)


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize("form", FORMS)
def test_rows_of_other_tool_kits_are_read_as_they_come(tmp_path, form, suffix):
    row, asked, media, target, demo = FORMS[form]
    found = read(write(tmp_path, row, f"rows.{suffix}"))
    assert asked in found.text and names(found) == media
    expected = {k: ImageFile(str(tmp_path / v.path)) if isinstance(v, ImageFile) else v for k, v in target.items()}
    assert {key: (found.target or {})[key] for key in target} == expected
    assert demo is None or found.demo == demo
    check_prompts({"s": [found]}, {}, shows_media=True, engine="vlm")


NOT_IN_TABLES = ("OpenAI, parts", "editing")
"""A text beside a list in one column; a picture in the target, whose path is compared above."""


@pytest.mark.parametrize("form", [name for name in FORMS if name not in NOT_IN_TABLES])
def test_the_same_rows_are_the_same_in_parquet_and_in_arrow_files(tmp_path, form):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    row = FORMS[form][0]
    path = write(tmp_path, row)
    table = pyarrow.Table.from_pylist([row])
    write_table(table, tmp_path / "rows.parquet")
    with pyarrow.OSFile(str(tmp_path / "rows.arrow"), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as out:
        out.write_table(table)
    wanted = read(path)
    for suffix in ("parquet", "arrow"):
        found = read(tmp_path / f"rows.{suffix}")
        assert (found.text, names(found), found.messages, found.demo) == (
            wanted.text,
            names(wanted),
            wanted.messages,
            wanted.demo,
        )
        made = ("answer", "answer_type", "choices", "accepted", "spans", "boxes", "box_names", "width", "duration")
        assert {k: (found.target or {}).get(k) for k in made} == {k: (wanted.target or {}).get(k) for k in made}


def test_a_csv_with_names_of_its_own(tmp_path):
    (tmp_path / "t.csv").write_text('datei,was,von,bis,art\nc.mp4,"a dog, running",1.5,3,x\nc.mp4,a cat,3,1,y\n')
    settings = {"video": "datei", "question": "was", "span": ["von", "bis"], "folder": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"t.csv, line 3: inverted span: \[\[3.0, 1.0\]\]"):
        read(tmp_path / "t.csv", **settings)
    (found,) = Table(str(tmp_path / "t.csv"), unusable="drop", **settings).load()
    assert found.media == (VideoFile(str(tmp_path / "c.mp4")),) and "a dog, running" in found.text
    assert found.target["spans"] == [[1.5, 3.0]] and found.target["art"] == "x"
    (found,) = Table(str(tmp_path / "t.csv"), only={"art": "y"}, **settings | {"span": None}).load()
    assert "a cat" in found.text and "spans" not in found.target


def test_a_line_says_what_was_taken_and_what_nobody_reads(tmp_path, caplog):
    path = write(tmp_path, {"img": A, "question": "What?", "solution": "red", "difficulty": 2, "from_whom": "me"})
    with caplog.at_level(logging.INFO):
        read(path)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "1 prompts; question from 'question', image from 'img', answer from 'solution'" in line
    assert "read by nobody but rewards of your own: 'difficulty', 'from_whom'" in line


def test_rows_that_only_point_at_their_media_are_warned_of(tmp_path, caplog):
    read(write(tmp_path, {"question": "What is he doing?", "videoID": "fFj", "answer": "B"}))
    assert "shown no picture and no video, but 'videoID' may say which ones" in caplog.text
    caplog.clear()
    read(write(tmp_path, {"question": "What?", "image": A, "image_id": 3}))
    assert not caplog.records


REFUSED = {
    "a column that is not there": ({"image": A, "questions": "x"}, {"question": "question"}, "no field 'question'; found 'image', 'questions'. Did you mean 'questions'?"),
    "no question": ({"picture": A, "foo": 3}, {}, "no column is called question"),
    "media that nobody reads": ({"image": A, "question": "x", "depth": "d.png"}, {}, "the column 'depth' holds 'd.png', which looks like a picture"),
    "a video beside a picture's question": ({"question": "x", "clip_file": CLIP}, {}, "'clip_file' holds"),
    "two columns of pictures": ({"image": A, "picture": B, "question": "x"}, {}, "'image' and 'picture' may both hold the images"),
    "a sound": ({"question": "x", "audio": "a.wav"}, {}, "'audio' holds"),
    "an address": ({"image": "https://x.org/a.png", "question": "x"}, {}, "is an address; nothing is downloaded"),
    "a marker without a picture": ({"question": "<image> what?"}, {}, "1 markers <image> for 0 files"),
    "more pictures than markers": ({"images": [A, B], "question": "<image> what?"}, {}, "1 markers <image> for 2 files"),
    "a picture in a text": ({"question": "look ![x](a.png)"}, {}, "says .*which nobody replaces"),
    "a third picture that is named": ({"image": A, "question": "<image_3> what?"}, {}, "names images .3., but the row has 1"),
    "a tool's turn": ({"messages": [said("user", "x"), said("tool", "y")]}, {}, "a turn is of 'tool'"),
    "an answer beyond the options": ({"question": "x", "options": ["a", "b"], "answer": "C"}, {}, "is none of the options"),
    "an answer that may be two": ({"question": "x", "options": ["1", "2", "0"], "answer": 2}, {}, "may be the text of the option B or the number of C"),
    "an unknown answer type": ({"question": "x", "answer": "a", "t": "essay"}, {"answer_type": "t"}, "the answer type 'essay'; wanted one of free text.*short answer.$"),
    "a box of shares": ({"image": A, "question": "x", "boxes": [[0.1, 0.2, 0.3, 0.4]]}, {}, "smaller than a pixel"),
    "corner and size as corners": ({"image": A, "question": "x", "bbox": [60, 50, 20, 10]}, {}, "reversed"),
    "bytes of a video": ({"video": {"bytes": base64.b64encode(b"xx").decode()}, "question": "x"}, {}, "holds the bytes of a video"),
    "frames as a video": ({"video": [A, B], "question": "x"}, {}, "is a picture, where a video is wanted"),
    "no folder": ({"image": A, "question": "x"}, {"folder": "nope"}, "folder = 'nope': no such folder"),
    "a question that is none": ({"image": A, "question": " "}, {}, "says something"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_lose_something_is_refused_by_name(tmp_path, case):
    row, settings, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        read(write(tmp_path, row), **settings)


def test_media_may_be_kept_for_rewards_or_left_out(tmp_path):
    path = write(tmp_path, {"image": A, "question": "x", "depth": B})
    kept = read(path, for_rewards=["depth"])
    assert kept.target["depth"] == str(tmp_path / B) and names(kept) == (A,)
    assert "depth" not in (read(path, ignore=["depth"]).target or {})


def test_a_picture_to_be_edited_is_refused_by_an_engine_that_does_not_edit(tmp_path):
    found = read(write(tmp_path, {"source_image": A, "instruction": "bluer"}))
    with pytest.raises(
        ConfigError, match=r"has pictures or videos, of which the engine flow would show the model nothing"
    ):
        check_prompts({"s": [found]}, {}, shows_media=False, engine="flow")
    kept = read(tmp_path / "rows.json", for_rewards=["source_image"])
    check_prompts({"s": [kept]}, {}, shows_media=False, engine="flow")


def folder_of_pictures(folder: Path, *files: str) -> Path:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(png())
    return folder


def test_folders_are_read_as_hugging_face_reads_them(tmp_path):
    listed = folder_of_pictures(tmp_path / "listed", "train/x/0.png", "test/1.png")
    (listed / "train/metadata.csv").write_text("file_name,text\nx/0.png,a red square\n")
    (listed / "test/metadata.jsonl").write_text('{"file_names": ["1.png"], "question": "What?", "answer": "red"}\n')
    assert read(listed).media == (ImageFile(str(listed / "train/x/0.png")),) and read(listed).text == "a red square"
    assert read(listed, split="test").target["answer"] == "red"
    with pytest.raises(ConfigError, match="no split 'dev'; found test, train"):
        read(listed, split="dev")
    labels = folder_of_pictures(tmp_path / "labels", "cat/0.png", "dog/1.png")
    assert [p.target["answer"] for p in Table(str(labels), template="Cat or dog?").load()] == ["cat", "dog"]
    beside = folder_of_pictures(tmp_path / "beside", "0.png")
    (beside / "0.txt").write_text("a square\n")
    assert read(beside, ignore=["image"]).text == "a square" and read(beside, ignore=["image"]).media == ()
    both = folder_of_pictures(tmp_path / "both", "0.png")
    (both / "train.json").write_text("[]")
    with pytest.raises(ConfigError, match="name the file in it whose rows are meant, such as .*train.json"):
        read(both)


def test_saved_data_sets_stay_memory_mapped_and_labels_are_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    path = write(tmp_path, {})
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["red", "blue"]),
        "question": datasets.Value("string"),
    }
    rows = {"image": [str(path.parent / A), str(path.parent / B)], "label": [0, 1], "question": ["What?"] * 2}
    found = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    datasets.DatasetDict(train=found, test=found.select([1])).save_to_disk(tmp_path / "saved")
    first, second = Table(str(tmp_path / "saved")).load()
    assert first.target["answer"] == "red" and second.target["answer"] == "blue"
    (picture,) = second.media
    assert (
        isinstance(picture, EncodedPicture)
        and picture.size() == (84, 64)
        and picture.open().getpixel((0, 0)) == (0, 0, 255)
    )
    assert not isinstance(picture.data, bytes)  # a view of the file
    (unpacked,) = read(tmp_path / "saved", unpack=str(tmp_path / "out")).media
    assert Path(unpacked.path).read_bytes() == png()
    with pytest.raises(ConfigError, match="no split 'dev'; found 'train', 'test'"):
        read(tmp_path / "saved", split="dev")
    with pytest.raises(ConfigError, match="'image' holds .* encoded bytes|of which"):
        check_prompts({"s": [first]}, {}, shows_media=False, engine="flow")


def test_ids_and_parts_of_a_file(tmp_path, caplog):
    rows = [{"id": number // 2, "question": f"q{number}", "answer": number} for number in range(6)]
    (tmp_path / "t.json").write_text(json.dumps({"info": {}, "data": rows}))
    with caplog.at_level(logging.INFO):
        found = Table(str(tmp_path / "t.json"), skip=1, limit=3).load()
    assert [prompt.id for prompt in found] == ["t/0", "t/1", "t/1/3"] and [p.text for p in found] == ["q1", "q2", "q3"]
    assert "1 ids stand twice and got the number of their row" in caplog.text
    with pytest.raises(ConfigError, match="the id 't/0' stands twice"):
        Table(str(tmp_path / "t.json"), id="id").load()
    (tmp_path / "lines.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(Table(str(tmp_path / "lines.json")).load()) == 6


def test_own_data_say_which_part_of_a_video_is_meant_and_nothing_of_a_turn_is_dropped(tmp_path):
    part = {"type": "video", "video": CLIP, "video_start": 1, "video_end": 2.5}
    for row in (
        {"messages": [said("user", [part, {"type": "text", "text": "What?"}])]},
        {"video": {"path": CLIP, "start": 1, "end": 2.5}, "question": "What?"},
    ):
        (found,) = read(write(tmp_path, row)).media
        assert (Path(found.path).name, found.start, found.end) == (CLIP, 1.0, 2.5)
    with pytest.raises(ConfigError, match="holds 'tool_calls'"):
        read(write(tmp_path, {"messages": [said("user", "What?") | {"tool_calls": [{"name": "zoom"}]}]}))


def test_lines_of_any_name_are_read(tmp_path):
    (tmp_path / "rows.ndjson").write_text('{"question": "x", "answer": 1}\n{"question": "y", "answer": 2}\n')
    assert [prompt.text for prompt in Table(str(tmp_path / "rows.ndjson")).load()] == ["x", "y"]
    (tmp_path / "ROWS.JSONL").write_text('{"question": "z", "answer": 1}\n')
    assert read(tmp_path / "ROWS.JSONL").text == "z"
