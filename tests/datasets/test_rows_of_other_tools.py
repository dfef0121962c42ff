"""What other tools write into rows: media under any key, columns twice, half characters, foreign line ends, nothing at all."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from grpo_mm.datasets.chat.conversations import Conversations
from grpo_mm.datasets.chat.messages import Messages
from grpo_mm.datasets.images.geneval import GenEvalPrompts
from grpo_mm.datasets.images.ocr import OcrPrompts
from grpo_mm.datasets.media.media_files import ImageFile, VideoFile
from grpo_mm.datasets.shared import media_fields
from grpo_mm.datasets.shared.annotated_rows import annotated_rows
from grpo_mm.datasets.shared.files import PromptFile
from grpo_mm.datasets.shared.hub import HubPrompts
from grpo_mm.errors import ConfigError
from grpo_mm.media_words import MARKER, media_key, names_media
from grpo_mm.rollout.prompt_check import check_prompts
from grpo_mm.types import Prompt

ASK = {"role": "user", "content": "what colour"}
A, B, CLIP = ImageFile("m/a.png"), ImageFile("m/b.png"), VideoFile("m/a.mp4")


def png() -> bytes:
    file = BytesIO()
    Image.new("RGB", (6, 4), "red").save(file, "PNG")
    return file.getvalue()


def chat(folder: Path, row: dict, **settings) -> Prompt:
    (folder / "c.jsonl").write_text(json.dumps({"messages": [ASK], **row}) + "\n")
    return Messages(str(folder / "c.jsonl"), folder="m", **settings).load()[0]


def turned(folder: Path, row: dict, query: str = "what", **settings) -> Prompt:
    turns = [{"from": "human", "value": query}, {"from": "gpt", "value": "as <image> shows"}]
    (folder / "t.jsonl").write_text(json.dumps({"conversations": turns, **row}) + "\n")
    return Conversations(str(folder / "t.jsonl"), images="m", **settings).load()[0]


SHOWN = [
    ({"image": "a.png"}, (A,)),
    ({"image": ["a.png", "b.png"]}, (A, B)),
    ({"images": "a.png"}, (A,)),
    ({"images": [{"path": "a.png"}, {"bytes": None, "path": "b.png"}]}, (A, B)),
    ({"image": {"url": "file://a.png"}}, (A,)),
    ({"image_path": "a.png"}, (A,)),
    ({"img": "a.png", "videos": []}, (A,)),
    ({"image": None, "images": ["a.png"]}, (A,)),
    ({"image": "a.png", "images": "a.png"}, (A,)),
    ({"video": "a.mp4"}, (CLIP,)),
    ({"videos": ["a.mp4"], "image": "a.png"}, (A, CLIP)),
]


@pytest.mark.parametrize(("row", "media"), SHOWN)
def test_media_under_the_usual_keys_are_shown(tmp_path, row, media):
    found = chat(tmp_path, row | {"answer": "red"})
    assert found.media == media and found.target == {"answer": "red"}
    assert turned(tmp_path, row).media == media


REFUSED = [
    ({"audio": "a.wav"}, "'audio'"),
    ({"image_url": "a.png"}, "'image_url'"),
    ({"inputImage": "x"}, "'inputImage'"),
    ({"frames": ["1.jpg", "2.jpg"]}, "'frames'"),
    ({"pixel_values": [[[0.1]]]}, "'pixel_values'"),
    ({"file_name": "a.png"}, "'file_name'"),
    ({"first_frame": "x/1"}, "'first_frame'"),
    ({"media": [{"type": "image", "image": "a.png"}]}, "'media'"),
    ({"scene": {"bytes": None, "path": "a"}}, "'scene'"),
    ({"context": "data:image/png;base64,AAAA"}, "'context'"),
    ({"image": "a.png", "images": ["b.png"]}, "both hold images"),
    ({"image": "https://x.org/a.png"}, "nothing is downloaded"),
    ({"image": 3}, "wanted a file name"),
    ({"images": [None]}, "wanted a file name"),
    ({"image": {"bytes": "no base64!"}}, "cannot be decoded"),
    ({"image": "data:image/png,abc"}, "cannot be decoded"),
]


@pytest.mark.parametrize(("row", "message"), REFUSED)
@pytest.mark.parametrize("read", [chat, turned])
def test_media_that_would_not_be_shown_are_refused_by_their_key(tmp_path, read, row, message):
    with pytest.raises(ConfigError, match=message) as refused:
        read(tmp_path, row)
    assert ".jsonl, line 1" in str(refused.value)


@pytest.mark.parametrize("read", [chat, turned])
def test_encoded_pictures_are_shown_and_what_is_for_rewards_is_left(tmp_path, read):
    encoded = base64.b64encode(png()).decode()
    for value in (f"data:image/png;base64,{encoded}", {"bytes": encoded}):
        (found,) = read(tmp_path, {"image": value}).media
        assert found.size() == (6, 4) and found.open().getpixel((0, 0)) == (255, 0, 0)
    assert read(tmp_path, {"image": "a.png", "reference_image": "r.png"}, for_rewards=["reference_image"]).media == (A,)
    assert chat(tmp_path, {"audio": "r.wav"}, for_rewards=["audio"]).target == {"audio": "r.wav"}


def test_numbers_names_and_words_about_media_are_no_media():
    harmless = {
        "image_id": "COCO_7", "num_frames": 3, "image_size": [640, 480], "video_duration": 9.5, "clips": [1, 2], "frames": [3, 8],
        "image_source": "ADE20K", "answer": "a.png", "boxes": [[1, 2, 3, 4]], "has_image": True, "image": None, "video": [], "id": 3,
    }  # fmt: skip
    assert media_key(harmless) is None and media_key("x") is None
    assert all(map(names_media, ("Images", "imagePath", "img_2", "image_base64", "source_image", "input-video-url")))


PARTS = [
    (
        [{"type": "text", "text": "is "}, {"type": "image", "image": "a.png"}, {"type": "text", "text": " red"}],
        {},
        "is <image> red",
        (A,),
    ),
    ([{"type": "image_url", "image_url": {"url": "a.png"}}, "why"], {}, "<image>why", (A,)),
    ([{"type": "image"}, {"type": "video"}], {"image": "a.png", "video": "a.mp4"}, "<image><video>", (A, CLIP)),
    ([{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "when"}], {}, "<video>when", (CLIP,)),
    ([{"type": "text", "text": "no media"}], {}, "no media", ()),
]


@pytest.mark.parametrize(("content", "row", "text", "media"), PARTS)
def test_a_content_of_parts_is_a_text_with_markers(tmp_path, content, row, text, media):
    found = chat(tmp_path, {"messages": [{"role": "user", "content": content}], **row})
    assert (found.text, found.media) == (text, media)


BAD_TURNS = [
    ([{"role": "user", "content": [{"type": "image"}]}], "is without a file"),
    ([{"role": "user", "content": [{"type": "input_audio", "input_audio": "a"}]}], "has the type 'input_audio'"),
    ([{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "a <image>"}]}], "holds a marker"),
    ([{"role": "user", "content": [{"type": "image", "bild": "a.png"}]}], "names no file"),
    ([{"role": "user", "content": [3]}], "wanted an object with a type"),
    ([ASK, {"role": "assistant", "content": [{"type": "image", "image": "a.png"}]}], "of the assistant shows"),
    ([ASK | {"images": ["a.png"]}], "a turn holds 'images'"),
    ([{"role": "user", "content": "<image> and <video>"}], "1 markers <image> for 0 files"),
    ([{"role": "user", "content": " "}], "wanted a text that says something"),
    ([{"role": "user", "content": None}], "wanted turns with a role"),
]  # fmt: skip


@pytest.mark.parametrize(("turns", "message"), BAD_TURNS)
def test_turns_that_would_lose_something_are_refused(tmp_path, turns, message):
    with pytest.raises(ConfigError, match=f"line 1.*{message}"):
        chat(tmp_path, {"messages": turns})


def test_markers_count_in_questions_alone_and_have_to_fit(tmp_path):
    turns = [{"role": "system", "content": "<video>"}, ASK, {"role": "assistant", "content": "<image> <image>"}, ASK]
    assert chat(tmp_path, {"messages": turns, "image": "a.png"}).media == (A,)
    assert turned(tmp_path, {"image": "a.png", "video": "a.mp4"}, "<video> or <image>").media == (CLIP, A)
    for row, query in (
        ({"image": "a.png", "video": "a.mp4"}, "<image>"),
        ({"video": "a.mp4"}, "<image>"),
        ({}, "<video>"),
    ):
        with pytest.raises(ConfigError, match="markers <"):
            turned(tmp_path, row, query)


def test_boxes_that_are_shares_reversed_or_corner_and_size_are_refused(tmp_path):
    for box in (
        [0.1, 0.2, 0.3, 0.4],
        [0, 0, 1, 1],
        [30, 40, 10, 8],
        [1, 2, 1.5, 40],
        [10**400, 1, 2, 3],
        [True, 1, 2, 3],
    ):
        turns = [{"from": "human", "value": "where"}, {"from": "gpt", "value": json.dumps(box)}]
        (tmp_path / "b.jsonl").write_text(
            json.dumps({"image": "a.png", "conversations": turns, "width": 96, "height": 48})
        )
        with pytest.raises(ConfigError, match="line 1: .*(pixel|reversed|no box|no list)"):
            Conversations(str(tmp_path / "b.jsonl"), boxes=True).load()


BAD_FILES = {
    "a column twice": ("a.csv", b"prompt,prompt\nx,y\n", "line 1: the column 'prompt' stands twice"),
    "a column twice, tsv": ("a.tsv", b"prompt\tn\tn\nx\t1\t2\n", "the column 'n' stands twice"),
    "names that differ by case": ("a.csv", b"prompt,Prompt\nx,y\n", "'prompt' and 'Prompt' may both"),
    "a key twice": ("a.jsonl", b'{"prompt": "x", "prompt": "y"}\n', "line 1: the key 'prompt' stands twice"),
    "half a character": ("a.jsonl", b'{"prompt": "x"}\n{"prompt": "\\ud83d"}\n', "line 2: .*half of a character"),
    "half in a target": ("a.json", b'[{"prompt": "x", "n": "\\udc00"}]', "entry 0: .*half of a character"),
    "NaN": ("a.json", b'["x",\n{"prompt": "x", "n": NaN}]', "entry 1: NaN is no JSON number"),
    "a long number": ("a.jsonl", b'{"prompt": "x", "n": ' + b"9" * 5000 + b"}", "line 1: not JSON that can be read"),
    "deep": ("a.jsonl", b'{"prompt": "x", "n": ' + b"[" * 5000 + b"]" * 5000 + b"}", "line 1: nested"),
    "null": ("a.jsonl", b'{"prompt": null}', "line 1: 'prompt' is None"),
    "blank": ("a.csv", b"prompt,n\n \t,1\n", "line 2: 'prompt' is .* says something"),
    "invisible": ("a.jsonl", b'{"prompt": "\\u200b\\ufeff"}', "line 1: 'prompt' is .* says something"),
    "UTF-16": ("a.txt", "a cat\n".encode("utf-16"), "is UTF-16; wanted a text in UTF-8"),
    "UTF-16 without a mark": ("a.txt", "a cat\n".encode("utf-16-le"), "line 1: it holds a NUL"),
    "Latin-1": ("a.txt", "a cat\nein Bär\n".encode("latin-1"), "in UTF-8: line 2"),
    "a pointer": ("a.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "pointer of Git LFS"),
    "a web page": ("a.txt", b"<!DOCTYPE html>\n<html>not found</html>\n", "is a web page"),
    "an archive": ("a.jsonl", b"\x1f\x8b\x08\x00abc", "is a gzip archive"),
    "a quote left open": ("a.csv", b'prompt,n\n"a cat,1\na dog,2\n', "cannot be read as .csv"),
    "a value that is NUL": ("a.jsonl", b'{"prompt": "a\\u0000b"}', "line 1: 'prompt' is .*NUL"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_not_what_it_should_be_is_refused_with_its_place(tmp_path, name):
    file, content, message = BAD_FILES[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{file}.*{message}"):
        PromptFile(str(tmp_path / file)).load()


GOOD_FILES = {
    "a.jsonl": (
        b'\xef\xbb\xbf{"prompt": "a\xe2\x80\xa8b"}\r\n\xef\xbb\xbf{"prompt": "c\xc2\x85d"}\r\n\r\n',
        ["a\u2028b", "c\x85d"],
    ),
    "a.txt": (b"\xef\xbb\xbfa\xe2\x80\xa8b\r\n\xef\xbb\xbfc\xc2\x85d\n", ["a\u2028b", "c\x85d"]),
    "a.csv": ('\ufeffprompt,n\r\n"a\u2028b",1\r\n"c\x85,\r\nd",2\r\n'.encode(), ["a\u2028b", "c\x85,\r\nd"]),
    "a.tsv": ("\ufeffprompt\tn\na\u2028b\t1\nc\x0cd\t2\n".encode(), ["a\u2028b", "c\x0cd"]),
    "a.json": ('\ufeff[{"prompt": "a\u2028b"}, "c\\u2029d"]'.encode(), ["a\u2028b", "c\u2029d"]),
}


@pytest.mark.parametrize("name", GOOD_FILES)
def test_marks_of_byte_order_and_foreign_line_ends_do_not_cut_a_value(tmp_path, name):
    content, texts = GOOD_FILES[name]
    (tmp_path / name).write_bytes(content)
    assert [prompt.text for prompt in PromptFile(str(tmp_path / name)).load()] == texts


@pytest.mark.parametrize("value", [[1], {"a": 1}, None, True, "", "a\nb", 1.5], ids=repr)
def test_an_id_is_a_word_or_a_whole_number(tmp_path, value):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "x", "key": value}))
    with pytest.raises(ConfigError, match="line 1: 'key' is"):
        PromptFile(str(tmp_path / "a.jsonl"), id_field="key").load()
    (tmp_path / "b.jsonl").write_text('{"prompt": "x", "key": 1}\n{"prompt": "y", "key": "1"}\n')
    with pytest.raises(ConfigError, match="line 2: key = '1' was used at"):
        PromptFile(str(tmp_path / "b.jsonl"), id_field="key").load()


@pytest.mark.parametrize("prompt", [None, ["a cup"], "", " \u200b", 12, True, {"en": "a"}, "\ud83d"], ids=repr)
def test_a_geneval_prompt_is_a_text(tmp_path, prompt):
    row = {"tag": "single_object", "include": [{"class": "cup", "count": 1}], "prompt": prompt}
    (tmp_path / "g.jsonl").write_text(json.dumps(row))
    with pytest.raises(ConfigError, match="g.jsonl, line 1"):
        GenEvalPrompts(str(tmp_path / "g.jsonl")).load()


@pytest.mark.parametrize(
    "values", [[None, "x"], [7, 8], ["x", " "], [["a"], ["b"]], [True, False], [1.5, float("nan")]], ids=repr
)
def test_a_hub_prompt_is_a_text(tmp_path, values):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": values})).save_to_disk(tmp_path / "d")
    with pytest.raises(ConfigError, match=r"d \[train\], row [01]: 'text' is"):
        HubPrompts(str(tmp_path / "d")).load()


def test_columns_and_numbers_of_tables_that_no_text_holds(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    write_table(pyarrow.table([["x"], ["y"]], names=["image", "image"]), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="the column 'image' stands twice"):
        list(annotated_rows(str(tmp_path / "a.parquet")))
    write_table(pyarrow.table({"prompt": ["x"], "score": [float("nan")]}), tmp_path / "train.parquet")
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(ConfigError, match="row 0: its target 'score' holds nan"):
        HubPrompts(str(tmp_path)).load()


def test_the_error_of_ocr_names_the_file(tmp_path):
    (tmp_path / "o.txt").write_text("A plain sign\n")
    with pytest.raises(ConfigError, match="o.txt: prompt o/0"):
        OcrPrompts(str(tmp_path / "o.txt")).load()


def check(*prompts: Prompt, shows_media: bool = True) -> None:
    check_prompts({"s": prompts}, {}, shows_media=shows_media, engine="flow")


TEXT_ALONE = [
    Prompt("a", "what", target={"image": "a.png"}),
    Prompt("a", "what", target={"file_name": "x/a.jpg"}),
    Prompt("a", "what", target={"n": 1, "picture": Image.new("RGB", (2, 2))}),
    Prompt("a", "what", target={"image": {"bytes": b"x", "path": None}}),
    Prompt("a", "<image>\nwhat"),
    Prompt("a", "Picture 1: <|image_pad|> what"),
    Prompt("a", "[IMG] what"),
    Prompt("a", "look at ![it](a.png)"),
    Prompt("a", "what", messages=({"role": "user", "content": "<video>"}, {"role": "assistant", "content": "ok"})),
]


@pytest.mark.parametrize("prompt", TEXT_ALONE, ids=lambda p: p.text + str(p.target)[:20])
def test_a_row_with_media_is_never_asked_as_text_alone(prompt):
    with pytest.raises(ConfigError, match="prompt 'a' of 's'"):
        check(prompt)


def test_what_an_engine_of_pictures_may_not_drop_and_what_it_may_keep():
    check(*TEXT_ALONE[:8], shows_media=False)  # a picture for rewards, words for a text-to-image model
    check(Prompt("a", "x", messages=({"role": "assistant", "content": "<image>"},)))
    for prompt in (Prompt("a", "x", media=(A,)), Prompt("a", "x", messages=(ASK,))):
        with pytest.raises(ConfigError, match="engine flow would show the model nothing"):
            check(prompt, shows_media=False)
    for text in ("\ud83d", None, 3):
        with pytest.raises(ConfigError, match="wanted a text without halves"):
            check(Prompt("a", text))


def test_markers_that_do_not_fit_are_told(caplog):
    check(
        Prompt("odd", "<image> <image>", media=(A,)),
        Prompt("wrong", "<video>", media=(A,)),
        Prompt("good", "<image>", media=(A,)),
    )
    assert "2 prompts have other markers" in caplog.text and "'odd', 'wrong'" in caplog.text


@pytest.mark.parametrize("text", ["a < image > b", "an image", "<answer>", "[1]", "a picture (a.png)", "<b>img</b>"])
def test_words_are_no_markers(text):
    assert not MARKER.search(text)


def test_parts_say_what_they_are_and_from_when_a_video_is_shown(tmp_path, caplog):
    media_fields._say_ignored.cache_clear()
    parts = [{"video": "a.mp4", "video_start": 2, "video_end": 4, "fps": 1.0}, {"text": "when"}]
    found = chat(tmp_path, {"messages": [{"role": "user", "content": parts}]})
    assert found.text == "<video>when" and (found.media[0].start, found.media[0].end) == (2, 4)
    assert "parts of turns hold 'fps', which is not followed" in caplog.text
    whole = [{"type": "input_text", "text": "hi "}, {"image": "a.png", "text": None}]
    assert chat(tmp_path, {"messages": [{"role": "user", "content": whole}]}).media == (A,)


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"content": [{"type": "text", "text": "x", "image": "a.png"}]}, "that is text holds 'image'"),
        ({"content": [{"video": "a.mp4", "video_start": 4, "video_end": 2}]}, "wanted an end after its start"),
        ({"content": [{"video": "a.mp4", "video_start": "soon"}]}, "'video_start' is 'soon'"),
        ({"content": [{"type": "image", "image": "a.png", "video_start": 1}]}, "is no video, but has 'video_start'"),
        ({"content": [{"image": "a.png", "text": "x"}]}, "wanted an object with a type"),
        ({"content": "x", "reasoning_content": "y"}, "holds 'reasoning_content'"),
        ({"content": "x", "tool_calls": [{"name": "zoom"}]}, "holds 'tool_calls'"),
    ],
)
def test_nothing_of_a_turn_is_dropped_in_silence(tmp_path, turn, message):
    with pytest.raises(ConfigError, match=f"line 1.*{message}"):
        chat(tmp_path, {"messages": [{"role": "user", **turn}]})


def test_a_picture_in_bare_base64_is_shown(tmp_path):
    file = BytesIO()
    Image.effect_noise((16, 16), 50).save(file, "PNG")
    (found,) = chat(tmp_path, {"image": base64.b64encode(file.getvalue()).decode()}).media
    assert found.size() == (16, 16)


def test_a_conversation_names_its_speakers_either_way_and_its_last_answer_counts(tmp_path):
    for asks, answers, speaker, text in (
        ("user", "assistant", "from", "value"),
        ("user", "assistant", "role", "content"),
    ):
        turns = [{speaker: asks, text: "what"}, {speaker: answers, text: "<answer>a</answer> no, <Answer>b</Answer>"}]
        (tmp_path / "n.jsonl").write_text(json.dumps({"conversations": turns}))
        (found,) = Conversations(str(tmp_path / "n.jsonl")).load()
        assert found.target == {"answer": "b"} and found.demo == "<answer>b</answer>"
    (tmp_path / "n.jsonl").write_text(json.dumps({"conversations": turns * 2}))
    with pytest.raises(ConfigError, match="several questions use .kind: messages"):
        Conversations(str(tmp_path / "n.jsonl")).load()


@pytest.mark.parametrize("name", ["a.CSV", "a.JSONL", "a.ndjson", "long.csv", "long.tsv"])
def test_names_and_lengths_of_files_that_other_tools_write(tmp_path, name):
    text = "x" * (200_000 if name.startswith("long") else 1)
    (tmp_path / name).write_text(json.dumps({"prompt": text}) if "json" in name.lower() else f"prompt\n{text}\n")
    assert [prompt.text for prompt in PromptFile(str(tmp_path / name)).load()] == [text]


def test_lines_under_the_name_of_a_list_and_a_list_under_the_name_of_lines_are_told(tmp_path):
    (tmp_path / "a.json").write_text('{"prompt": "x"}\n{"prompt": "y"}\n')
    with pytest.raises(ConfigError, match="one object a line.*Rename it to a.jsonl"):
        PromptFile(str(tmp_path / "a.json")).load()
    (tmp_path / "a.jsonl").write_text('["x", "y"]')
    with pytest.raises(ConfigError, match="line 1.*one list is called .json"):
        PromptFile(str(tmp_path / "a.jsonl")).load()


def test_words_and_categories_of_tables_stay_words(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "train.csv").write_text("prompt,answer,n\nx,None,1\ny,NA,\nnull,null,3\n")
    found = HubPrompts(str(tmp_path / "t")).load()
    assert [(p.text, p.target["answer"]) for p in found] == [("x", "None"), ("y", "NA"), ("null", "null")]
    assert [p.target["n"] for p in found] == [1, None, 3]
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"]))
    rows = datasets.Dataset.from_dict({"text": ["x", "y", "z"], "label": [0, 1, -1]}, features=features)
    datasets.DatasetDict(train=rows).save_to_disk(tmp_path / "d")
    assert [p.target["label"] for p in HubPrompts(str(tmp_path / "d")).load()] == ["no", "yes", None]
