"""Annotation files of video grounding and question answering become prompts; what is broken is named."""

import json
from pathlib import Path

import pytest
import torch

from grpo_mm.config.typed_yaml import build
from grpo_mm.datasets.chat.conversations import Conversations
from grpo_mm.datasets.media.media_files import ImageFile, VideoFile
from grpo_mm.datasets.video.activitynet_captions import ActivityNetCaptions
from grpo_mm.datasets.video.charades_sta import CharadesSta
from grpo_mm.datasets.video.difficulty import draw_by_difficulty, gaussian_log_weight, still_to_learn
from grpo_mm.datasets.video.grounding import find_video
from grpo_mm.datasets.video.nextgqa import NextGqa
from grpo_mm.datasets.video.qvhighlights import QVHighlights
from grpo_mm.datasets.video.tvgbench import TimeR1Rows, TvgBench
from grpo_mm.datasets.video.video_r1 import VideoR1Questions
from grpo_mm.errors import ConfigError

CHARADES = {
    "AO8RW": {"duration": 33.67, "timestamps": [[0.0, 6.9], [10, 34.5]], "sentences": ["a book.", " a shelf. "]}
}
QV = {
    "qid": 9,
    "query": "A girl cooks.",
    "duration": 150,
    "vid": "NUs_60.0_210.0",
    "relevant_clip_ids": [41, 42],
    "saliency_scores": [[1, 1, 4], [0, 2, 3]],
    "relevant_windows": [[82, 86], [100, 104]],
}
TVG = {
    "path": "./data/aHD.mp4",
    "question": "check the gas",
    "answer": "9.94-45.9",
    "start": 53.0,
    "end": 152.5,
    "duration": 99.5,
    "qsemtype": "Object Transition",
    "dataset_name": "hirest",
}
TIMER1 = {
    "video": "./data/b.mp4",
    "duration": 93.3,
    "timestamp": [1.0, 4.0],
    "sentence": "A hanger.",
    "qid": "my|b",
    "video_start": None,
    "video_end": None,
    "difficulty": 50.0,
    "pred": [0.0, 3.0],
}
GQA = {
    "id": "48_1",
    "video": "1104/48.mp4",
    "question": "why",
    "options": ["(A) share", "(B) sit", "(C) unwrap it"],
    "duration": 90,
    "glue": [[13.8, 29.8], [40, 41]],
    "type": "CW",
    "answer": "(C)",
}
VIDEO_R1 = {
    "problem_id": 3,
    "problem": "How many?",
    "data_type": "video",
    "problem_type": "multiple choice",
    "options": ["A. 1", "B. 2"],
    "solution": "<answer>B</answer>",
    "path": "./x/y.mp4",
    "data_source": "clevrer",
}
TURNS = [{"from": "human", "value": "What changed?"}, {"from": "gpt", "value": "Nothing"}]


def write(folder: Path, name: str, value) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_charades_lines_and_json_give_the_same_prompts(tmp_path):
    lines = write(tmp_path, "t.txt", "AO8RW 0.0 6.9##a book.\nAO8RW 10 34.5## a shelf. \n\n")
    lengths = write(tmp_path, "l.csv", "id,subject,length\nAO8RW,X,33.67\n")
    from_lines = CharadesSta(lines, videos="v", lengths=lengths).load()
    assert from_lines == CharadesSta(write(tmp_path, "t.json", CHARADES), videos="v").load()
    first, second = from_lines
    assert (first.id, second.id) == ("charades/AO8RW/0", "charades/AO8RW/1")
    assert first.media == (VideoFile("v/AO8RW.mp4"),) and first.target == {"spans": [[0.0, 6.9]], "duration": 33.67}
    assert second.target["spans"] == [[10.0, 34.5]] and second.demo == "<answer>10.00 to 34.50</answer>"
    assert "a shelf." in second.text and "<answer>" in second.text and " a shelf. \n" not in second.text
    assert CharadesSta(lines).load()[0].target == {"spans": [[0.0, 6.9]]}
    assert CharadesSta(lines, lengths=lengths, clamp=True).load()[1].target["spans"] == [[10.0, 33.67]]


def test_activitynet_sentences_lose_their_leading_blank(tmp_path):
    value = {"v_a": {"duration": 50, "timestamps": [[0, 4.14]], "sentences": [" Two men."]}}
    (prompt,) = ActivityNetCaptions(write(tmp_path, "a.json", value), template="{duration:.1f}|{query}").load()
    assert (prompt.id, prompt.text) == ("activitynet/v_a/0", "50.0|Two men.")


def test_qvhighlights_windows_and_saliency_arrive(tmp_path):
    path = write(tmp_path, "q.jsonl", json.dumps(QV))
    (prompt,) = QVHighlights(path, videos="v").load()
    assert prompt.id == "qvhighlights/9" and prompt.target["spans"] == [[82.0, 86.0], [100.0, 104.0]]
    saliency = prompt.target["saliency"]
    assert len(saliency) == 75 and saliency[41] == [1, 1, 4] and saliency[42] == [0, 2, 3]
    assert sum(map(sum, saliency)) == 11 and prompt.target["clips"] == [41, 42]
    assert prompt.media[0].path == "v/NUs_60.0_210.0.mp4" and prompt.demo == "<answer>82.00 to 86.00</answer>"
    (listed,) = QVHighlights(path, demo_template="{times}; {scores}; {spans}").load()
    assert listed.demo == "82.0, 84.0; 3.0, 2.7; [[82.00, 86.00], [100.00, 104.00]]"
    test_row = {k: QV[k] for k in ("qid", "query", "duration", "vid")}
    (unlabelled,) = QVHighlights(write(tmp_path, "t.jsonl", json.dumps(test_row))).load()
    assert unlabelled.demo is None and unlabelled.target == {"duration": 150.0, "qid": 9}


def test_tvgbench_rows_crop_their_videos(tmp_path):
    nameless = {k: v for k, v in TVG.items() if k != "dataset_name"} | {
        "start": None,
        "end": None,
        "bins": {"dataset": "egonlq"},
    }
    first, second = TvgBench(write(tmp_path, "t.json", [TVG, nameless]), videos="v").load()
    assert first.media == (VideoFile("v/aHD.mp4", 53.0, 152.5),) and second.media == (VideoFile("v/aHD.mp4"),)
    assert first.target["spans"] == [[9.94, 45.9]] and first.target["dataset"] == "hirest"
    assert second.target["dataset"] == "egonlq" and [first.id, second.id] == ["tvgbench/0", "tvgbench/1"]


def test_time_r1_rows_bring_difficulty_as_an_iou(tmp_path):
    rows = [TIMER1, TIMER1 | {"qid": "my|c", "video_start": 39, "video_end": 84.7}]
    path = write(tmp_path, "t.json", rows)
    first, second = TimeR1Rows(path, videos="v").load()
    assert first.id == "timer1/my|b" and first.target["difficulty"] == 0.5
    assert first.target["base_prediction"] == [0.0, 3.0] and second.media == (VideoFile("v/b.mp4", 39.0, 84.7),)
    assert TimeR1Rows(path, videos="v", crop=False).load()[1].media == (VideoFile("v/b.mp4"),)


def test_nextgqa_table_and_json_give_the_same_prompts(tmp_path):
    row = GQA | {"options": [f"({letter}) {letter * 2}" for letter in "ABCDE"]}
    table = "video_id,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n48,9,6,4,why,CC,1,CW,AA,BB,CC,DD,EE\n"
    gsub = {"48": {"duration": 90, "fps": 30, "location": {"1": [[13.8, 29.8], [40, 41]]}}}
    folders = {"48": "1104/48"}
    settings = dict(gsub=write(tmp_path, "g.json", gsub), video_folders=write(tmp_path, "f.json", folders))
    (from_table,) = NextGqa(write(tmp_path, "t.csv", table), videos="v", **settings).load()
    (from_json,) = NextGqa(write(tmp_path, "t.json", [row]), videos="v").load()
    assert from_table == from_json
    assert from_json.id == "nextgqa/48_1" and from_json.media[0].path == "v/1104/48.mp4"
    assert from_json.target["answer"] == "(C)" and from_json.target["answer_type"] == "multiple choice"
    assert from_json.demo == "<answer>(C)</answer><glue>[[13.80, 29.80], [40.00, 41.00]]</glue>"
    assert "why\n(A) AA\n" in from_json.text and from_json.target["spans"] == [[13.8, 29.8], [40.0, 41.0]]


def test_video_r1_problem_types_become_answer_types(tmp_path):
    kinds = {
        "multiple choice": "multiple choice",
        "numerical": "numerical",
        "OCR": "ocr",
        "free-form": "free text",
        "regression": "regression",
    }
    rows = [VIDEO_R1 | {"problem_id": n, "problem_type": kind} for n, kind in enumerate(kinds)]
    rows[1] |= {"data_type": "image", "path": "z.png", "options": []}
    path = write(tmp_path, "v.json", rows)
    prompts = VideoR1Questions(path, folder="root").load()
    assert [p.target["answer_type"] for p in prompts] == list(kinds.values())
    assert prompts[0].media == (VideoFile("root/x/y.mp4"),) and prompts[1].media == (ImageFile("root/z.png"),)
    assert prompts[0].text.startswith("How many?\nA. 1\nB. 2\n") and prompts[0].demo == "<answer>B</answer>"
    assert prompts[0].target["answer"] == "B" and "options" not in prompts[1].target
    assert [p.id for p in VideoR1Questions(path, answer_types=["ocr"]).load()] == ["video_r1/2"]
    with pytest.raises(ConfigError, match="no row is left .5 without their files"):
        VideoR1Questions(path, check_files=True).load()


def test_conversations_may_have_several_pictures_and_markers(tmp_path):
    marked = [{"from": "human", "value": "<image> then <image>?"}, {"from": "gpt", "value": "<answer> yes </answer>"}]
    rows = [
        {"id": 7, "image": ["a.png", "b.png"], "conversations": TURNS},
        {"id": 8, "image": ["a.png", "b.png"], "conversations": marked},
        {"id": 9, "image": "a.png", "conversations": TURNS},
        {"conversations": TURNS},
    ]
    path = write(tmp_path, "c.jsonl", "\n".join(map(json.dumps, rows)))
    several, with_markers, single, none = Conversations(path, images="i", answer_type="free text").load()
    assert several.id == "c/7" and several.media == (ImageFile("i/a.png"), ImageFile("i/b.png"))
    assert several.target == {"answer": "Nothing", "answer_type": "free text"}
    assert with_markers.text.startswith("<image> then <image>?") and with_markers.demo == "<answer>yes</answer>"
    assert len(single.media) == 1 and none.media == () and none.id == "c/3"


def test_conversations_may_answer_with_boxes(tmp_path):
    answers = {
        "[1, 2, 30, 40]": ([[1, 2, 30, 40]], None),
        "<answer>[1, 2, 30, 40]</answer>": ([[1, 2, 30, 40]], None),
        '```json\n[{"bbox_2d": [1, 2, 30, 40], "label": "a"}, {"bbox_2d": [0, 0, 5, 5], "label": "b"}]\n```': (
            [[1, 2, 30, 40], [0, 0, 5, 5]], ["a", "b"],
        ),
        "<answer>[{'Position': [1, 2, 30, 40], 'Confidence': 1}]</answer>": ([[1, 2, 30, 40]], None),
        '{"bbox": [1, 2, 30, 40], "label": "a"}': ([[1, 2, 30, 40]], ["a"]),
        '[{"bbox": [1, 2, 30, 40], "label": "a"}, {"bbox": [1, 2, 30, 40]}]': ([[1, 2, 30, 40]] * 2, None),
        "[]": ([], None),
        "None": ([], None),
    }  # fmt: skip
    rows = [
        {"image": "a.png", "width": 64, "height": 48, "conversations": [TURNS[0], {"from": "gpt", "value": answer}]}
        for answer in answers
    ]
    path = write(tmp_path, "c.jsonl", "\n".join(map(json.dumps, rows)))
    for prompt, (boxes, names) in zip(Conversations(path, boxes=True).load(), answers.values(), strict=True):
        wanted = {"boxes": boxes, "width": 64, "height": 48} | ({"box_names": names} if names else {})
        assert prompt.target == wanted


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("to the left", "line 1: the answer 'to the left' is no list of boxes"),
        ("[1, 2, 3]", "is no box; wanted four"),
        ("[[1, 2, 30, NaN]]", "is no list of boxes"),
        ('[{"place": [1, 2, 3, 4]}]', "has no box; wanted one of bbox_2d"),
        ("[30, 2, 1, 40]", "is reversed or empty, 64 x 48 pixels"),
        ("[1, 2, 30, 99]", "is beyond the picture, 64 x 48 pixels"),
        ("5", "wanted a list of boxes"),
    ],
)
def test_an_answer_that_is_no_box_is_named_with_its_place(answer, message, tmp_path):
    row = {"image": "a.png", "width": 64, "height": 48, "conversations": [TURNS[0], {"from": "gpt", "value": answer}]}
    path = write(tmp_path, "c.jsonl", json.dumps(row))
    with pytest.raises(ConfigError, match=message):
        Conversations(path, boxes=True).load()


BROKEN = [
    (CharadesSta, "t.txt", "AO8RW 0.0 ##x\n", "line 1: found 'AO8RW 0.0 ##x', wanted 'video start end##sentence'"),
    (CharadesSta, "t.txt", "A 1 2##x\nA nan 2##x\n", "line 2: found"),
    (CharadesSta, "t.txt", "A 1 2##  \n", "line 1: 'sentence' is '', wanted a text"),
    (CharadesSta, "t.json", [], "found a JSON list, wanted an object"),
    (CharadesSta, "t.json", '{"A": {"duration": 3,\n]', "t.json, line 2: not JSON"),
    (CharadesSta, "t.json", {"A": {"duration": 3}}, "t.json, A: wanted an object with duration, timestamps"),
    (CharadesSta, "t.json", {"A": {"duration": 0, "timestamps": [], "sentences": []}}, "A: duration is 0"),
    (CharadesSta, "t.json", {"A": {"duration": 9, "timestamps": [[1, 2]], "sentences": []}}, "1 timestamps for the sentences"),
    (CharadesSta, "t.json", {"A": {"duration": 9, "timestamps": [[1]], "sentences": ["x"]}}, "A: .1. is no span"),
    (CharadesSta, "t.json", {"A": {"duration": 9, "timestamps": [["1", 2]], "sentences": ["x"]}}, "start is '1'"),
    (CharadesSta, "t.json", '{"A": {"duration": 9, "timestamps": [[1, NaN]], "sentences": ["x"]}}', "t.json, A: NaN is no JSON number"),
    (CharadesSta, "t.json", {"A": {"duration": 9, "timestamps": [[3, 2]], "sentences": ["x"]}}, "A, sentence 0: inverted"),
    (CharadesSta, "t.json", {"A": {"duration": 9, "timestamps": [[-1, 2]], "sentences": ["x"]}}, "negative start"),
    (CharadesSta, "t.json", {}, "no row is left"),
    (ActivityNetCaptions, "t.csv", "x", "unknown suffix '.csv'"),
    (QVHighlights, "q.jsonl", json.dumps(QV) + "\n" + json.dumps(QV), "line 2: the id 'qvhighlights/9' stands twice"),
    (QVHighlights, "q.jsonl", json.dumps(QV | {"relevant_clip_ids": [41]}), "as many saliency_scores"),
    (QVHighlights, "q.jsonl", json.dumps(QV | {"relevant_clip_ids": [41, 75]}), "numbers 0..74"),
    (QVHighlights, "q.jsonl", json.dumps(QV | {"saliency_scores": [[1, 2], [1, 2]]}), "wanted 3 whole numbers"),
    (QVHighlights, "q.jsonl", json.dumps(QV | {"relevant_windows": 3}), "line 1: 3, wanted a list"),
    (TvgBench, "t.json", [TVG | {"answer": "1 to 2"}], "entry 0: answer is '1 to 2', wanted 'start-end'"),
    (TvgBench, "t.json", [TVG | {"end": 50.0}], "leaves nothing of the video"),
    (TvgBench, "t.json", [TVG, {}], "entry 1: no field 'answer'"),
    (TimeR1Rows, "t.json", [TIMER1 | {"timestamp": None}], "entry 0: None is no span"),
    (TimeR1Rows, "t.json", [TIMER1 | {"difficulty": "x"}], "difficulty is 'x'"),
    (NextGqa, "t.json", [GQA | {"answer": "(F)"}], "'.F.' is the letter of none"),
    (NextGqa, "t.csv", "x", "set gsub"),
    (VideoR1Questions, "v.json", [VIDEO_R1 | {"problem_type": "riddle"}], "problem_type 'riddle', wanted one of"),
    (VideoR1Questions, "v.json", [VIDEO_R1 | {"solution": "B"}], "has no <answer>"),
    (VideoR1Questions, "v.json", [VIDEO_R1 | {"data_type": "sound"}], "data_type is 'sound'"),
    (VideoR1Questions, "v.json", [VIDEO_R1 | {"options": []}], "options are"),
    (VideoR1Questions, "v.json", [VIDEO_R1, VIDEO_R1], "'video_r1/3' stands twice"),
    (VideoR1Questions, "v.json", [VIDEO_R1 | {"map": {"chair": [[1]]}}], "entry 0: map is"),
    (Conversations, "c.jsonl", json.dumps({"image": 3, "conversations": TURNS}), "line 1: image is 3"),
    (Conversations, "c.jsonl", json.dumps({"conversations": TURNS * 2}), "wanted one turn from 'human' and one"),
    (Conversations, "c.jsonl", json.dumps({"image": [], "conversations": [{"from": "human", "value": "<image>"}, TURNS[1]]}), "1 markers"),
]  # fmt: skip


@pytest.mark.parametrize(("reader", "name", "value", "message"), BROKEN)
def test_a_broken_row_is_named_with_its_place(tmp_path, reader, name, value, message):
    with pytest.raises(ConfigError, match=message):
        reader(write(tmp_path, name, value)).load()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "{quory}"}, "template = '{quory}' wants 'quory'; there are: query, duration"),
        ({"template": "{query"}, "template = '{query' wants"),
        ({"demo_template": "{answer}"}, "demo_template = .* there are: query, duration, start, end, spans"),
        ({"limit": 0}, "limit = 0"),
        ({"check_videos": True, "videos": "nowhere"}, "videos = 'nowhere': no such folder"),
    ],
)
def test_settings_that_do_not_fit_are_told(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        CharadesSta(write(tmp_path, "t.json", CHARADES), **settings).load()


def test_braces_in_a_sentence_are_text(tmp_path):
    value = {"A": {"duration": 9, "timestamps": [[1, 2]], "sentences": ["a {query} {0}"]}}
    assert "a {query} {0}" in CharadesSta(write(tmp_path, "t.json", value)).load()[0].text


UNUSABLE = {
    "good": ([1, 2], 10),
    "point": ([3, 3], 10),
    "overrun": ([1, 12.5], 10),
    "late": ([10, 11], 10),
    "inverted": ([5, 4], 10),
    "negative": ([-1, 4], 10),
    "slight": ([1, 11.5], 10),
}


def test_unusable_rows_are_dropped_or_kept_by_rule_counted_and_named(tmp_path, caplog):
    value = {k: {"duration": d, "timestamps": [span], "sentences": ["x"]} for k, (span, d) in UNUSABLE.items()}
    path = write(tmp_path, "u.json", value)
    kept = CharadesSta(path, unusable="drop").load()
    assert [p.id.split("/")[1] for p in kept] == ["good", "slight"]
    for line in ("1 rows left out: inverted span (charades/inverted/0)", "2 rows left out: span outside the video"):
        assert line in caplog.text
    with pytest.raises(ConfigError, match="inverted, sentence 0: inverted span: .*Set unusable: drop"):
        CharadesSta(path).load()
    mild = write(tmp_path, "m.json", {k: value[k] for k in ("good", "point", "overrun")})
    caplog.clear()
    assert len(CharadesSta(mild).load()) == 3 and "1 rows kept: span of zero length (charades/point/0)" in caplog.text
    with pytest.raises(ConfigError, match="no row is left; dropped for span outside the video"):
        CharadesSta(write(tmp_path, "n.json", {"late": value["late"]}), unusable="drop").load()


def test_videos_are_found_by_extension_and_missing_ones_dropped(tmp_path, caplog):
    folder = tmp_path / "v"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.mkv", "a.avi", "b.MP4", "sub/c_60.0_210.0.webm"):
        (folder / name).touch()
    order = [".mp4", ".mkv", ".webm", ".avi"]
    found = {name: find_video(str(folder), name, order) for name in ("a", "a.mp4", "b.MP4", "sub/c_60.0_210.0", "d")}
    assert {k: v and str(Path(v).relative_to(folder)) for k, v in found.items()} == {
        "a": "a.mkv",
        "a.mp4": "a.mkv",
        "b.MP4": "b.MP4",
        "sub/c_60.0_210.0": "sub/c_60.0_210.0.webm",
        "d": None,
    }
    assert find_video(str(folder), "a", order[::-1]) == str(folder / "a.avi")
    entry = {"duration": 9, "timestamps": [[1, 2]], "sentences": ["x"]}
    path = write(tmp_path, "t.json", {"a": entry, "d": entry})
    settings = dict(videos=str(folder), check_videos=True)
    assert len(CharadesSta(path, **settings).load()) == 2 and "kept: no video file (charades/d/0)" in caplog.text
    (only,) = CharadesSta(path, unusable="drop", **settings).load()
    assert only.media[0].path == str(folder / "a.mkv")


def test_readers_are_made_from_configs(tmp_path):
    path = write(tmp_path, "t.json", CHARADES)
    reader = build(CharadesSta, {"path": path, "unusable": "drop", "limit": 1, "clamp": True})
    assert len(reader.load()) == 1
    with pytest.raises(ConfigError, match="Did you mean 'videos'"):
        build(NextGqa, {"path": path, "video": "x"})


def test_weights_follow_the_gaussian_and_the_counts():
    iou_N = torch.tensor([0.05, 0.25, 0.26, 0.85])
    plain = gaussian_log_weight(iou_N, mean=0.05, std=0.2, bins=None).exp()
    assert plain.tolist() == pytest.approx([1.0, 0.606531, 0.576229, 0.000335], abs=1e-6)
    corrected = gaussian_log_weight(iou_N, mean=0.05, std=0.2, bins=20).exp()
    assert (corrected / plain).tolist() == pytest.approx([1.0, 0.5, 0.5, 1.0])  # two rows share the bin 0.25 … 0.30
    assert gaussian_log_weight(torch.tensor([1.0]), mean=1.0, std=0.2, bins=20).item() == 0.0  # 1 is in the last bin


def test_density_correction_makes_the_drawn_rows_gaussian():
    generator = torch.Generator().manual_seed(0)
    iou_N = torch.rand(200_000, generator=generator, dtype=torch.float64) ** 3  # most rows are near 0
    drawn = iou_N[draw_by_difficulty(iou_N, 2000, seed=1, mean=0.5, std=0.1)]
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.01) and drawn.std().item() == pytest.approx(0.1, abs=0.01)
    biased = iou_N[draw_by_difficulty(iou_N, 2000, seed=1, mean=0.5, std=0.1, bins=None)]
    assert biased.mean().item() < 0.49


def test_rows_are_drawn_once_in_order_and_by_seed():
    iou_N = torch.linspace(0, 1, 50)
    rows = draw_by_difficulty(iou_N, 20, seed=3)
    assert rows.tolist() == sorted(set(rows.tolist())) and len(rows) == 20
    assert torch.equal(rows, draw_by_difficulty(iou_N, 20, seed=3))
    assert not torch.equal(rows, draw_by_difficulty(iou_N, 20, seed=4))
    assert draw_by_difficulty(iou_N, 99, seed=0).tolist() == list(range(50))
    assert len(draw_by_difficulty(torch.tensor([0.0, 1.0, 1.0]), 3, seed=0, std=0.001)) == 3  # no weight vanishes


def test_the_chance_of_a_row_is_its_weight():
    iou_N = torch.tensor([0.05, 0.25])  # weights 1 and exp(-1/2)
    first = sum(draw_by_difficulty(iou_N, 1, seed=seed, bins=None).item() == 0 for seed in range(4000)) / 4000
    assert first == pytest.approx(1 / (1 + 0.606531), abs=0.025)


def test_rows_done_well_leave_the_next_epoch():
    iou_N = torch.tensor([0.0, 0.3, 0.7, 0.71, 1.0], dtype=torch.float64)
    assert still_to_learn(iou_N).tolist() == [True, True, True, False, False]
    assert still_to_learn(iou_N, drop_zero=True).tolist() == [False, True, True, False, False]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: draw_by_difficulty(torch.tensor([41.0]), 1, seed=0),
            "between 0 and 1; Time-R1's files hold them times 100",
        ),
        (lambda: draw_by_difficulty(torch.tensor([float("nan")]), 1, seed=0), "between 0 and 1"),
        (lambda: draw_by_difficulty(torch.tensor([0.1]), 0, seed=0), "count = 0"),
        (lambda: draw_by_difficulty(torch.tensor([0.1]), 1, seed=0, std=0.0), "std = 0.0"),
        (lambda: still_to_learn(torch.tensor([float("nan")])), "an IoU is NaN"),
    ],
)
def test_difficulties_that_are_none_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
