"""Question files of spatial benchmarks become prompts with their pictures, answers, options and boxes; what is broken is named."""

from __future__ import annotations

import csv
import json
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from grpo_mm.config.typed_yaml import component
from grpo_mm.datasets.media.frame_store import FrameStore
from grpo_mm.datasets.media.media_files import ImageFile, VideoFile
from grpo_mm.datasets.shared.picture_questions import take_choices, take_letter
from grpo_mm.datasets.spatial.blink import Blink, BlinkAnswers
from grpo_mm.datasets.spatial.cv_bench import CvBench
from grpo_mm.datasets.spatial.grounded_cot import GroundedCot
from grpo_mm.datasets.spatial.mmvp import Mmvp
from grpo_mm.datasets.spatial.referring import Referring
from grpo_mm.datasets.spatial.sat import Sat
from grpo_mm.datasets.spatial.tallyqa import TallyQa
from grpo_mm.datasets.spatial.vsr import Vsr
from grpo_mm.datasets.video.vsi_bench import VsiBench
from grpo_mm.errors import ConfigError
from grpo_mm.registry import Role
from grpo_mm.rewards.text.typed_answer import TypedAnswer

VSR = {
    "image": "17.jpg", "image_link": "http://x/17.jpg", "caption": "The car is behind the suitcase.", "label": 1,
    "relation": "behind", "subj": "car", "obj": "suitcase", "annotator_id": 2, "vote_true_validator_id": "[18, 2]",
    "vote_false_validator_id": "[1]",
}  # fmt: skip
SAT = {
    "image_bytes": ["a.png", "b.png"], "question": "How did the camera move?", "answers": ["left", "right"],
    "correct_answer": "right", "question_type": "ego_movement",
}  # fmt: skip
CV = {
    "idx": 7, "type": "2D", "task": "Count", "question": "How many dogs?", "choices": ["0", "4"], "answer": "(B)",
    "prompt": "How many dogs? (A) 0 (B) 4", "filename": "img/7.png", "source": "ADE20K", "bbox": None,
}  # fmt: skip
MMVP = [
    ("Index", "Question", "Options", "Correct Answer"),
    ("1", "Are the wings open, or closed?", "(a) Open (b) Closed", "(a)"),
    ("2", "Are the wings open, or closed?", "(a) Open (b) Closed", "(b)"),
    ("3", "How many eyes?", "(a) 1 (b) 2", "(b)"),
]
BLINK = {
    "idx": "val_Spatial_Relation_1", "sub_task": "Spatial_Relation", "question": "Is the cat left?", "prompt": "Image. Is it?",
    "choices": ["yes", "no"], "answer": "(B)", "image_1": "1.jpg", "image_2": "2.jpg", "image_3": None, "image_4": None,
}  # fmt: skip
VSI = {
    "id": 3, "dataset": "arkitscenes", "scene_name": 41069025, "question_type": "object_rel_distance",
    "question": "What is nearest?", "options": ["A. table", "B. bed"], "ground_truth": "B",
}  # fmt: skip
TALLY = {
    "image": "VG/1.jpg", "answer": 4, "question": "How many cups?", "question_id": 5, "issimple": True, "data_source": "amt",
}  # fmt: skip
GRIT = {
    "question": "How many cups?", "answer": 2, "image": "1.jpg", "width": 64, "height": 48,
    "bboxs": [[1, 2, 30, 40], [10, 10, 65.5, 48]], "dataset": "tallyqa", "split": "train",
}  # fmt: skip
REC = {"id": 9, "image": "1.jpg", "expression": "the left cup", "box": [1, 2, 30, 40], "width": 64, "height": 48}


def write(folder: Path, name: str, rows) -> str:
    """Rows as JSON lines, a JSON list, or a table."""
    path = folder / name
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    else:
        lines = "\n".join(json.dumps(row) for row in rows)
        path.write_text(lines if path.suffix == ".jsonl" else json.dumps(rows), encoding="utf-8")
    return str(path)


def encoded(color: str, size: tuple[int, int] = (6, 4)) -> bytes:
    file = BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


def parquet(path: Path, rows: list[dict]) -> str:
    import pyarrow
    from pyarrow.parquet import write_table

    write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def test_a_statement_of_vsr_is_asked_as_a_question_of_yes_or_no(tmp_path):
    path = write(tmp_path, "dev.jsonl", [VSR, VSR | {"label": 0}])
    true, false = Vsr(path, folder="coco").load()
    assert (true.id, false.id) == ("vsr/dev/0", "vsr/dev/1") and true.media == (ImageFile("coco/17.jpg"),)
    assert '"The car is behind the suitcase."' in true.text and true.demo == "<answer>yes</answer>"
    assert true.target == {
        "answer": "yes", "answer_type": "multiple choice", "choices": ["yes", "no"], "question_type": "relation",
        "task": "behind", "subject": "car", "object": "suitcase", "votes": [2, 1], "benchmark": "vsr",
    }  # fmt: skip
    assert false.target["answer"] == "no" and "http" not in false.text


def test_the_reward_for_typed_answers_takes_every_demonstration(tmp_path):
    """The answer types and forms of the readers are those that rewards compare."""
    readers = [
        Vsr(write(tmp_path, "v.jsonl", [VSR])), Sat(write(tmp_path, "s.jsonl", [SAT]), order="circular"),
        CvBench(write(tmp_path, "c.jsonl", [CV])), Mmvp(write(tmp_path, "m.csv", MMVP)),
        Blink(write(tmp_path, "b.jsonl", [BLINK])), TallyQa(write(tmp_path, "t.json", [TALLY])),
        VsiBench(write(tmp_path, "i.jsonl", [VSI, VSI | {"id": 4, "question_type": "object_counting", "ground_truth": "3"}])),
        GroundedCot(write(tmp_path, "g.jsonl", [GRIT, GRIT | {"answer": "yes"}, GRIT | {"answer": "a red cup"}])),
    ]  # fmt: skip
    prompts = [prompt for reader in readers for prompt in reader.load()]
    assert len(prompts) == len({prompt.id for prompt in prompts}) == 14
    scores = TypedAnswer(require_tag=True)([prompt.demo for prompt in prompts], prompts)
    assert scores["score"].tolist() == [1.0] * 14 and scores["parse_failed"].sum() == 0


def test_circular_twins_have_the_same_question_and_the_right_option_at_both_places(tmp_path):
    path = write(tmp_path, "real.jsonl", [SAT, SAT | {"answers": ["up", "right", "down"]}])
    first, second, *three = Sat(path, order="circular").load()
    assert (first.id, second.id) == ("sat/real/0/0", "sat/real/0/1") and first.media == second.media
    assert first.target["pair"] == second.target["pair"] == "sat/real/0"
    assert first.target["choices"] == second.target["choices"][::-1] == ["left", "right"]
    assert (first.target["answer"], second.target["answer"]) == ("(B)", "(A)")
    assert "(A) left\n(B) right" in first.text and "(A) right\n(B) left" in second.text
    assert [p.target["choices"][ord(p.target["answer"][1]) - 65] for p in three] == ["right", "right"]


def test_orders_that_are_drawn_go_by_the_row_and_move_the_right_option(tmp_path):
    path = write(tmp_path, "train.jsonl", [SAT] * 40)
    drawn = [prompt.target["answer"] for prompt in Sat(path, order="drawn").load()]
    assert drawn == [prompt.target["answer"] for prompt in Sat(path, order="drawn").load()]
    assert 8 < drawn.count("(A)") < 32
    as_written = Sat(path).load()
    assert {prompt.target["answer"] for prompt in as_written} == {"(B)"} and "pair" not in as_written[0].target


def test_pictures_in_parquet_are_decoded_or_written_once(tmp_path):
    rows = [
        SAT | {"image_bytes": [{"bytes": encoded(c), "path": None} for c in colors]}
        for colors in (["red"], ["red", "blue"])
    ]
    path = parquet(tmp_path / "train.parquet", rows)
    one, two = Sat(path).load()
    assert [len(prompt.media) for prompt in (one, two)] == [1, 2] and two.media[1].getpixel((0, 0)) == (0, 0, 255)
    unpacked = Sat(path, unpack=str(tmp_path / "pictures"))
    (red,), (again, blue) = (prompt.media for prompt in unpacked.load())
    assert red == again and isinstance(blue, ImageFile) and len(list((tmp_path / "pictures").iterdir())) == 2
    assert FrameStore().load(blue).getpixel((5, 3)) == (0, 0, 255)
    assert unpacked.load()[1].media == (red, blue)


def test_a_folder_of_parquet_files_is_read_in_the_order_of_names(tmp_path):
    shown = {"image": {"bytes": encoded("green"), "path": "x.png"}}
    for number in (1, 0):
        parquet(tmp_path / f"test-0000{number}.parquet", [CV | shown | {"idx": 40 * number + i} for i in range(40)])
    prompts = CvBench(str(tmp_path)).load()
    assert [prompt.id for prompt in prompts] == [f"cv_bench/{i}" for i in range(80)]
    assert prompts[79].media[0].size == (6, 4)


def test_cv_bench_keeps_what_its_score_is_made_of(tmp_path):
    space = CV | {
        "idx": 8,
        "type": "3D",
        "task": "Depth",
        "source": "Omni3D",
        "answer": "(A)",
        "bbox": "[[1, 2, 3, 4]]",
    }
    path = write(tmp_path, "test.jsonl", [CV, space])
    plane, depth = CvBench(path, folder="cv").load()
    assert plane.id == "cv_bench/7" and plane.media == (ImageFile("cv/img/7.png"),) and "(B) 4" in plane.text
    assert {k: plane.target[k] for k in ("type", "task", "image_source", "question_type", "answer")} == {
        "type": "2D", "task": "Count", "image_source": "ADE20K", "question_type": "count", "answer": "(B)",
    }  # fmt: skip
    assert depth.target["bbox"] == "[[1, 2, 3, 4]]" and "boxes" not in depth.target and "bbox" not in plane.target
    assert [prompt.id for prompt in CvBench(path, types=("3D",)).load()] == ["cv_bench/8"]
    assert CvBench(path, template="{prompt}").load()[0].text == CV["prompt"]


def test_questions_of_mmvp_stand_in_pairs(tmp_path):
    prompts = Mmvp(write(tmp_path, "Questions.csv", MMVP), folder="MMVP Images").load()
    assert [prompt.target["pair"] for prompt in prompts] == ["mmvp/pair/1", "mmvp/pair/1", "mmvp/pair/2"]
    assert prompts[1].media == (ImageFile("MMVP Images/2.jpg"),) and prompts[1].target["choices"] == ["Open", "Closed"]
    assert [prompt.target["answer"] for prompt in prompts] == ["(A)", "(B)", "(B)"]


def test_blink_shows_all_its_pictures_and_hides_what_is_hidden(tmp_path):
    hidden = BLINK | {"idx": "test_Jigsaw_2", "sub_task": "Jigsaw", "answer": "hidden", "prompt": None}
    path = write(tmp_path, "b.jsonl", [BLINK, hidden])
    known, unknown = Blink(path, folder="im").load()
    assert known.id == "blink/val_Spatial_Relation_1" and known.text.startswith("Image. Is it?\n")
    assert known.media == (ImageFile("im/1.jpg"), ImageFile("im/2.jpg"))
    assert known.target["task"] == "Spatial_Relation" and known.target["answer"] == "(B)"
    assert "answer" not in unknown.target and unknown.demo is None and "(A) yes\n(B) no" in unknown.text
    answers = BlinkAnswers(path).load()
    assert [(p.id, p.target["answer"], p.target["task"]) for p in answers] == [(known.id, "(B)", "Spatial_Relation")]


def test_vsi_bench_asks_for_letters_and_numbers_about_a_video(tmp_path):
    number = VSI | {"id": 4, "question_type": "room_size_estimation", "options": None, "ground_truth": 25.3}
    path = write(tmp_path, "test.jsonl", [VSI, number])
    (tmp_path / "arkitscenes").mkdir()
    (tmp_path / "arkitscenes/41069025.mkv").touch()
    choice, size = VsiBench(path, folder=str(tmp_path)).load()
    assert choice.media == (VideoFile(f"{tmp_path}/arkitscenes/41069025.mkv"),)
    assert choice.target["choices"] == ["table", "bed"] and choice.target["answer"] == "B" and "(B) bed" in choice.text
    assert (
        size.target["answer"] == "25.3" and size.target["answer_type"] == "numerical" and "choices" not in size.target
    )
    assert "with a number" in size.text and VsiBench(path, number_type="regression").load()[1].target[
        "answer_type"
    ] == "regression"  # fmt: skip
    assert VsiBench(path, folder="nowhere").load()[0].media[0].path == "nowhere/arkitscenes/41069025.mp4"


def test_counts_are_simple_or_complex(tmp_path):
    rows = [
        TALLY,
        TALLY | {"question_id": 6, "issimple": False, "answer": "0"},
        {**TALLY, "question_id": 7, "issimple": None},
    ]
    path = write(tmp_path, "test.json", rows)
    prompts = TallyQa(path).load()
    assert [prompt.target.get("task") for prompt in prompts] == ["simple", "complex", None]
    assert [prompt.target["answer"] for prompt in prompts] == ["4", "0", "4"] and prompts[0].id == "tallyqa/amt/5"
    assert [p.id for p in TallyQa(path, subset="complex").load()] == ["tallyqa/amt/6"]


def test_grounded_rows_bring_their_boxes_and_the_size_of_their_picture(tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "1.jpg")
    unsized = {name: value for name, value in GRIT.items() if name not in ("width", "height", "bboxs")}
    path = write(
        tmp_path, "grit.jsonl", [GRIT, unsized | {"answer": "a cup", "dataset": "gqa", "split": "test", "id": "x"}]
    )
    boxed, bare = GroundedCot(path, folder=str(tmp_path)).load()
    assert boxed.target["boxes"] == GRIT["bboxs"] and (boxed.target["width"], boxed.target["height"]) == (64, 48)
    assert boxed.target["question_type"] == "count" and boxed.target["answer_type"] == "numerical"
    assert (bare.target["width"], bare.target["height"]) == (64, 48) and "boxes" not in bare.target
    assert bare.id == "grit/x" and bare.target["answer_type"] == "free text" and "question_type" not in bare.target
    assert [p.id for p in GroundedCot(path, split="train").load()] == ["grit/0"]


def test_broken_boxes_are_errors_or_left_out_and_counted(tmp_path, caplog):
    broken = [GRIT | {"bboxs": [box]} for box in ([30, 2, 1, 40], [0, 0, 68, 10], [0, 5, 10, 5])]
    path = write(tmp_path, "grit.jsonl", [GRIT, *broken])
    with pytest.raises(ConfigError, match=r"line 2: the box \[30, 2, 1, 40\] is reversed or empty, 64 x 48 pixels"):
        GroundedCot(path).load()
    assert len(GroundedCot(path, broken_boxes="drop").load()) == 1
    assert "3 rows left out for a broken box (grit/1, grit/2, grit/3)" in caplog.text
    assert len(GroundedCot(path, broken_boxes="drop", slack_px=4).load()) == 2


def test_a_referring_expression_is_a_prompt_with_one_box(tmp_path):
    rows = [
        REC,
        {"image": "2.jpg", "expression": ["cup", "blue one "], "box": [1, 2, 30, 40.4], "width": 64, "height": 48},
    ]
    one, two, three = Referring(write(tmp_path, "rec.jsonl", rows)).load()
    assert (one.id, two.id, three.id) == ("rec/9", "rec/1/0", "rec/1/1") and "blue one\n" in three.text
    assert one.target == {
        "boxes": [[1, 2, 30, 40]], "box_names": ["the left cup"], "width": 64, "height": 48, "question_type": "referring",
        "benchmark": "refcoco",
    }  # fmt: skip
    assert three.demo == "<answer>[1, 2, 30, 40]</answer>"
    coco = {"image": "1.jpg", "sentence": "cup", "bbox": [10, 20, 30, 5], "width": 64, "height": 48}
    settings = {"expression_field": "sentence", "box_field": "bbox", "box_form": "xywh"}
    assert Referring(write(tmp_path, "coco.jsonl", [coco]), **settings).load()[0].target["boxes"] == [[10, 20, 40, 25]]
    with pytest.raises(ConfigError, match="line 1: the box .* is reversed or empty"):
        Referring(str(tmp_path / "coco.jsonl"), **settings | {"box_form": "xyxy"}).load()


def test_rows_without_their_picture_can_be_left_out(tmp_path, caplog):
    Image.new("RGB", (8, 8)).save(tmp_path / "17.jpg")
    path = write(tmp_path, "dev.jsonl", [VSR | {"image": "gone.jpg"}, VSR])
    assert [p.id for p in Vsr(path, folder=str(tmp_path), check_files=True).load()] == ["vsr/dev/1"]
    assert "1 rows left out: no such file (vsr/dev/0)" in caplog.text
    with pytest.raises(ConfigError, match=r"no row is left \(2 without their files\)"):
        Vsr(path, folder="nowhere", check_files=True).load()


def test_limit_counts_prompts(tmp_path):
    path = write(tmp_path, "s.jsonl", [SAT] * 3)
    assert [p.id for p in Sat(path, order="circular", limit=3).load()] == ["sat/s/0/0", "sat/s/0/1", "sat/s/1/0"]
    with pytest.raises(ConfigError, match="limit = 0, wanted at least 1"):
        Sat(path, limit=0).check()


BROKEN = {
    "a label of 2": (Vsr, VSR | {"label": 2}, "label is 2, wanted 0 or 1"),
    "votes that are no list": (Vsr, VSR | {"vote_true_validator_id": "18"}, "vote_true_validator_id is '18', wanted a list"),
    "no picture": (Vsr, VSR | {"image": None}, "a picture is None, wanted a file name"),
    "an answer that is no option": (Sat, SAT | {"correct_answer": "up"}, "'up' is not one of the answers"),
    "options that are the same": (Sat, SAT | {"answers": ["right", "right"]}, "'right' is not one of the answers"),
    "one option": (Sat, SAT | {"answers": ["right"]}, "wanted a list of 2 to 26 texts"),
    "no question": (Sat, SAT | {"question": " "}, "'question' is ' ', wanted a text"),
    "a letter beyond the options": (CvBench, CV | {"answer": "(C)"}, "wanted the letter of one of 2 options"),
    "a type of 4D": (CvBench, CV | {"type": "4D"}, "type is '4D', wanted one of 2D, 3D"),
    "no idx": (CvBench, {k: v for k, v in CV.items() if k != "idx"}, "no field 'idx'"),
    "options without letters": (Mmvp, {"Index": 1, "Question": "q", "Options": "Open Closed", "Correct Answer": "(a)"}, "wanted a list of 2"),
    "an index of 0": (Mmvp, {"Index": 0, "Question": "q", "Options": "(a) x (b) y", "Correct Answer": "(a)"}, "index is 0, wanted 1"),
    "no picture at all": (Blink, BLINK | {"image_1": None, "image_2": None}, "no picture in image_1 to image_4"),
    "an idx without a task": (BlinkAnswers, {"idx": "7", "answer": "(A)"}, "idx '7' names no sub-task"),
    "an unknown question": (VsiBench, VSI | {"question_type": "smell"}, "question_type 'smell', wanted one of"),
    "a word for a number": (VsiBench, VSI | {"question_type": "object_counting", "ground_truth": "two"}, "is 'two', wanted a number"),
    "a number that is none": (VsiBench, VSI | {"question_type": "object_counting", "ground_truth": "nan"}, "'nan', wanted a number"),
    "half a cup": (TallyQa, TALLY | {"answer": 0.5}, "answer is 0.5, wanted a whole number"),
    "fewer than none": (TallyQa, TALLY | {"answer": -1}, "answer is -1, wanted 0 or more"),
    "a box of three": (GroundedCot, GRIT | {"bboxs": [[1, 2, 3]]}, "is no box; wanted four finite numbers"),
    "a width of 0": (GroundedCot, GRIT | {"width": 0}, "wanted at least 1 pixel"),
    "no size at all": (GroundedCot, GRIT | {"width": None, "height": None}, "no width and height, and its picture cannot tell"),
    "a box outside": (Referring, REC | {"box": [1, 2, 80, 40]}, "is beyond the picture, 64 x 48 pixels"),
    "no expression": (Referring, REC | {"expression": []}, "expression is \\[\\], wanted a text or a list"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", BROKEN)
def test_broken_rows_are_errors_with_file_and_line(mistake, tmp_path):
    reader, row, message = BROKEN[mistake]
    path = write(tmp_path, "rows.jsonl", [row])
    with pytest.raises(ConfigError, match=rf"rows\.jsonl, line 1: .*{message}"):
        reader(path).load()


def test_an_id_that_stands_twice_is_an_error_and_so_is_a_template_that_does_not_fit(tmp_path):
    path = write(tmp_path, "c.jsonl", [CV, CV])
    with pytest.raises(ConfigError, match="line 2: the id 'cv_bench/7' stands twice"):
        CvBench(path).load()
    with pytest.raises(
        ConfigError, match="line 1: template = '{hint}' wants 'hint'; there are: query, options, prompt"
    ):
        CvBench(path, template="{hint}").load()


def test_bytes_that_are_no_picture_are_an_error_with_their_row(tmp_path):
    rows = [SAT | {"image_bytes": [encoded("red")]}, SAT | {"image_bytes": [encoded("red")[:40]]}]
    path = parquet(tmp_path / "t.parquet", rows)
    for settings in ({}, {"unpack": str(tmp_path / "out")}):
        with pytest.raises(ConfigError, match=r"t\.parquet, row 1: 40 bytes that are no picture"):
            Sat(path, **settings).load()
    (tmp_path / "u.parquet").write_bytes(b"no parquet")
    with pytest.raises(ConfigError, match=r"u\.parquet: cannot be read as parquet after 0 rows"):
        Sat(str(tmp_path / "u.parquet")).load()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="a folder without .parquet files"):
        Sat(str(tmp_path / "empty")).check()


@pytest.mark.parametrize(
    ("reader", "settings", "message"),
    [
        (Sat, {"order": "random"}, "order = 'random'; wanted one of file, drawn, circular"),
        (CvBench, {"types": ("4D",)}, r"types = \['4D'\]; wanted 2D or 3D"),
        (TallyQa, {"subset": "hard"}, "subset = 'hard'; wanted one of all, simple, complex"),
        (GroundedCot, {"broken_boxes": "keep"}, "broken_boxes = 'keep'"),
        (Referring, {"box_form": "cxcywh"}, "box_form = 'cxcywh'; wanted one of xyxy, xywh"),
    ],
)
def test_settings_out_of_range_are_refused_before_a_row_is_read(reader, settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        reader(write(tmp_path, "rows.json", []), **settings).check()


def test_letters_before_options_are_taken_off_only_if_all_have_theirs():
    assert take_choices(["A. left", "B. right"], "x") == ("left", "right")
    assert take_choices(["(A) 1", "(B) 2"], "x") == ("1", "2")
    assert take_choices(["A. left", "C. right"], "x") == ("A. left", "C. right")
    assert take_choices([0, 4], "x") == ("0", "4")
    assert [take_letter(text, "ab", "x") for text in ("a", "(B)", "B.", "A:")] == ["(A)", "(B)", "(B)", "(A)"]


@pytest.mark.parametrize(
    "kind", ["vsr", "sat", "cv_bench", "mmvp", "blink", "vsi_bench", "tallyqa", "grounded_cot", "referring"]
)
def test_a_config_finds_every_reader_and_a_missing_file_is_told(kind):
    made = component(Role("prompts"), {"kind": kind, "path": "gone.jsonl", "limit": 3}, path="prompts.it.use")
    with pytest.raises(ConfigError, match="gone.jsonl: no such file"):
        made.check()
