"""A tiny file of every form that a reader reads, as published: what tests of all readers go through."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_mm.config.typed_yaml import component
from grpo_mm.registry import Role
from grpo_mm.types import Prompt


@dataclass(frozen=True)
class Example:
    """`files` are written beside each other; the first is the reader's `path`, and `fills` says which setting takes another."""

    kind: str
    files: dict[str, str]
    settings: dict[str, Any] = field(default_factory=dict)
    fills: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path, **changed: bytes) -> Path:
        """The first file; `changed`: other contents of it, as `text`."""
        for number, (name, text) in enumerate(self.files.items()):
            content = changed["text"] if number == 0 and "text" in changed else text.encode()
            (folder / name).write_bytes(content)
        return folder / next(iter(self.files))

    def reader(self, folder: Path) -> Any:
        first = folder / next(iter(self.files))
        given = {setting: str(folder / name) for setting, name in self.fills.items()}
        where = {"name": str(folder)} if self.kind == "hub" else {"path": str(first)}
        return component(Role("prompts"), {"kind": self.kind, **where, **self.settings, **given}, path="prompts")

    def load(self, folder: Path) -> list[Prompt]:
        return self.reader(folder).load()


def lines(*rows: Any) -> str:
    return "\n".join(json.dumps(row) for row in rows) + "\n"


def whole(*rows: Any) -> str:
    return json.dumps(rows, indent=1)


CUP = {"tag": "single_object", "include": [{"class": "cup", "count": 1}], "prompt": "a photo of a cup"}
SIDE = {
    "tag": "position", "prompt": "a dog left of a cat",
    "include": [{"class": "cat", "count": 1, "color": "red"}, {"class": "dog", "count": 1, "position": ["left of", 0]}],
    "exclude": [{"class": "dog", "count": 3}],
}  # fmt: skip
CHAT = {
    "id": 7, "images": ["a.png"], "videos": [], "answer": "red", "answer_type": "free text", "spans": [[1, 2]],
    "messages": [
        {"role": "system", "content": "Be short."}, {"role": "user", "content": "<image> what?"},
        {"role": "assistant", "content": "A dog."}, {"role": "user", "content": "Which colour?"},
    ],
}  # fmt: skip
PARTS = {
    "messages": [{"role": "user", "content": [{"type": "text", "text": "why"}, {"type": "image", "image": "b.png"}]}]
}
TURNS = [{"from": "human", "value": "<image>\nWhat changed?"}, {"from": "gpt", "value": "<answer>Nothing</answer>"}]
BOXED = [
    {"from": "human", "value": "Where is it?"},
    {"from": "gpt", "value": '[{"bbox_2d": [1, 2, 30, 40], "label": "cup"}]'},
]
VIDEOS = {"AO8RW": {"duration": 33.67, "timestamps": [[0.0, 6.9], [10, 30]], "sentences": ["a book.", "a shelf."]}}
QV = {
    "qid": 9, "query": "A girl cooks.", "duration": 150, "vid": "NUs_60.0_210.0", "relevant_clip_ids": [41, 42],
    "saliency_scores": [[1, 1, 4], [0, 2, 3]], "relevant_windows": [[82, 86], [100, 104]],
}  # fmt: skip
TVG = {
    "path": "./data/aHD.mp4", "question": "check the gas", "answer": "9.94-45.9", "start": 53.0, "end": 152.5, "duration": 99.5,
    "qsemtype": "Object Transition", "dataset_name": "hirest",
}  # fmt: skip
TIMER1 = {
    "video": "./data/b.mp4", "duration": 93.3, "timestamp": [1.0, 4.0], "sentence": "A hanger.", "qid": "my|b",
    "video_start": None, "video_end": None, "difficulty": 50.0, "pred": [0.0, 3.0],
}  # fmt: skip
GQA = {
    "id": "48_1", "video": "1104/48.mp4", "question": "why", "options": ["(A) share", "(B) sit", "(C) unwrap it"], "duration": 90,
    "glue": [[13.8, 29.8], [40, 41]], "type": "CW", "answer": "(C)",
}  # fmt: skip
GQA_TABLE = (
    "video_id,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"
    '48,2697,640,480,"why, then",unwrap it,1,CW,share,sit,unwrap it,run,sleep\n'
)
GSUB = {"48": {"duration": 90, "location": {"1": [[13.8, 29.8]]}, "fps": 30}}
VIDEO_R1 = {
    "problem_id": 3, "problem": "How many?", "data_type": "video", "problem_type": "multiple choice", "options": ["A. 1", "B. 2"],
    "solution": "<answer>B</answer>", "path": "./x/y.mp4", "data_source": "clevrer",
}  # fmt: skip
MAPPED = VIDEO_R1 | {
    "problem_id": 4,
    "problem_type": "regression",
    "solution": "<answer>3</answer>",
    "map": {"chair": [[2, 3]]},
}
VSI = {
    "id": 3, "dataset": "arkitscenes", "scene_name": 41069025, "question_type": "object_rel_distance",
    "question": "What is nearest?", "options": ["A. table", "B. bed"], "ground_truth": "B",
}  # fmt: skip
COUNTED = VSI | {"id": 4, "question_type": "object_counting", "options": None, "ground_truth": "3"}
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
    "prompt": "How many dogs? (A) 0 (B) 4", "filename": "img/7.png", "source": "ADE20K", "bbox": [[1, 2, 3, 4]],
}  # fmt: skip
MMVP = "Index,Question,Options,Correct Answer\n1,Open?,(a) Open (b) Closed,(a)\n2,Open?,(a) Open (b) Closed,(b)\n"
BLINK = {
    "idx": "val_Spatial_Relation_1", "sub_task": "Spatial_Relation", "question": "Is the cat left?", "prompt": "Image. Is it?",
    "choices": ["yes", "no"], "answer": "(B)", "image_1": "1.jpg", "image_2": "2.jpg", "image_3": None, "image_4": None,
}  # fmt: skip
OUTPUTS = {
    "val": [{"idx": "val_Jigsaw_1", "answer": "(A)", "full_prediction": "(A) yes", "prediction": "(A)"}],
    "test": [],
}
TALLY = {
    "image": "VG/1.jpg",
    "answer": 4,
    "question": "How many cups?",
    "question_id": 5,
    "issimple": True,
    "data_source": "amt",
}
GRIT = {
    "id": 0, "question": "How many cups?", "answer": 2, "image": "1.jpg", "width": 64, "height": 48,
    "bboxs": [[1, 2, 30, 40], [10, 10, 65.5, 48]], "dataset": "tallyqa", "split": "train",
}  # fmt: skip
REC = {"id": 9, "image": "1.jpg", "expression": "the left cup", "box": [1, 2, 30, 40], "width": 64, "height": 48}
ASKED = {"image": "1.jpg", "question": "Which?", "answer": "B", "options": ["left", "right"], "source": "me"}
TRACK = [[0.1, 0.2, 0.5, 0.6], [0.1, 0.2, 0.5, 0.6], [0.2, 0.2, 0.6, 0.6], [0.3, 0.2, 0.7, 0.6]]
LENS = {
    "video_path": "a/b.mp4",
    "duration": 60,
    "source": "cosmo",
    "events": [{"query": "A dog runs.", "span": [[2, 9]]}],
}
QUALITY = {"video": "0506.mp4", "instruction": "How good? ['low quality', 'high quality'].", "answer": "low quality"}
TIMECHAT = {"annotations": [{"image_id": "AO8RW.mp4", "caption": "a person", "timestamp": [0.0, 6.9], "id": 6}]}
TIMECHAT_READER = "grpo_mm.datasets.video.timechat:TimeChatCharades"
ANSWERS_READER = "grpo_mm.datasets.spatial.blink:BlinkAnswers"

EXAMPLES = {
    "prompts as lines": Example("file", {"p.txt": "a cat\n\na dog\n"}),
    "prompts as a csv": Example("file", {"p.csv": 'id,prompt,note\n1,"a cat, red",x\n2,a dog,y\n'}, {"id_field": "id"}),
    "prompts as a tsv": Example("file", {"p.tsv": 'Prompt\tNote\na 12" pizza\tsize\n'}),
    "prompts as json lines": Example("file", {"p.jsonl": lines({"caption": "a cat", "boxes": [[0, 1, 5, 6]], "score": 0.5}, "a dog")}),
    "prompts as json": Example("file", {"p.json": whole({"id": 4, "text": "a cat", "tags": {"a": [1]}}, {"id": 5, "text": "x"})},
                               {"id_field": "id"}),
    "hub": Example("hub", {"train.jsonl": lines({"prompt": "a cat", "n": 1}, {"prompt": "a dog", "n": 2})}),
    "table of questions": Example("table", {"t.json": whole(ASKED, ASKED | {"answer": 3, "options": None})}),
    "table of spans": Example("table", {"t.csv": "video,query,start,end\na.mp4,a dog runs,1.5,0:03\n"}),
    "table of conversations": Example("table", {"t.jsonl": lines({"images": ["a.png"], "conversations": TURNS, "id": 4})}),
    "table of prompts": Example("table", {"t.tsv": "caption\tseed\na cat\t1\n"}),
    "geneval": Example("geneval", {"g.jsonl": lines(CUP, SIDE)}),
    "ocr": Example("ocr", {"o.txt": 'A sign "OPEN" in red\nA "STOP" sign\n'}),
    "messages": Example("messages", {"m.jsonl": lines(CHAT, PARTS)}),
    "messages as a list": Example("messages", {"m.json": whole(CHAT, PARTS)}),
    "conversations": Example("conversations", {"c.jsonl": lines({"id": 1, "image": "a.png", "conversations": TURNS})}),
    "conversations about videos": Example(
        "conversations",
        {"c.json": whole({"video": "a.mp4", "conversations": [{"from": "human", "value": "<video> when?"}, TURNS[1]]})},
    ),
    "conversations with boxes": Example(
        "conversations", {"c.jsonl": lines({"image": ["a.png"], "conversations": BOXED, "width": 64, "height": 48})}, {"boxes": True},
    ),
    "charades as lines": Example("charades_sta", {"t.txt": "AO8RW 0.0 6.9##a book.\nAO8RW 10 30.5## a shelf.\n"}),
    "charades with lengths": Example(
        "charades_sta", {"t.txt": "AO8RW 0.0 6.9##a book.\n", "l.csv": "id,length\nAO8RW,33.67\n"}, fills={"lengths": "l.csv"},
    ),
    "charades as json": Example("charades_sta", {"t.json": json.dumps(VIDEOS)}),
    "timechat": Example(TIMECHAT_READER, {"t.json": json.dumps(TIMECHAT)}),
    "activitynet": Example("activitynet_captions", {"a.json": json.dumps(VIDEOS)}),
    "qvhighlights": Example("qvhighlights", {"q.jsonl": lines(QV, {k: QV[k] for k in ("query", "duration", "vid")} | {"qid": 10})}),
    "tvgbench": Example("tvgbench", {"t.json": whole(TVG)}),
    "time_r1": Example("time_r1", {"t.json": whole(TIMER1)}),
    "timelens_bench": Example("timelens_bench", {"t.json": json.dumps({"3M": {"duration": 30.9, "spans": [[24.3, 30.4]], "queries": ["x y"]}})}),
    "timelens_100k": Example("timelens_100k", {"t.jsonl": lines(LENS)}),
    "timelens_100k measured": Example(
        "timelens_100k",
        {"t.jsonl": lines({"video_path": "a.mp4", "duration": 60, "source": "c", "query": "dog", "span": [2, 9], "iou": 0.3})}, {"draw": 1},
    ),
    "got10k": Example("got10k", {"g.json": whole({"path": "val/G_1", "object": "sloth", "gt": TRACK})}),
    "video_quality": Example("video_quality", {"v.json": whole(QUALITY)}),
    "nextgqa": Example("nextgqa", {"n.json": whole(GQA)}),
    "nextgqa tables": Example(
        "nextgqa", {"val.csv": GQA_TABLE, "gsub.json": json.dumps(GSUB), "map.json": json.dumps({"48": "1104/48"})},
        fills={"gsub": "gsub.json", "video_folders": "map.json"},
    ),
    "video_r1": Example("video_r1", {"v.jsonl": lines(VIDEO_R1, MAPPED)}),
    "vsi_bench": Example("vsi_bench", {"v.jsonl": lines(VSI, COUNTED)}),
    "vsr": Example("vsr", {"v.jsonl": lines(VSR)}),
    "sat": Example("sat", {"s.jsonl": lines(SAT)}, {"order": "circular"}),
    "cv_bench": Example("cv_bench", {"c.jsonl": lines(CV)}),
    "mmvp": Example("mmvp", {"Questions.csv": MMVP}),
    "blink": Example("blink", {"b.jsonl": lines(BLINK)}),
    "blink outputs": Example(ANSWERS_READER, {"b.json": json.dumps(OUTPUTS)}),
    "tallyqa": Example("tallyqa", {"t.json": whole(TALLY)}),
    "grounded_cot": Example("grounded_cot", {"g.jsonl": lines(GRIT, GRIT | {"id": 1, "answer": "yes"})}),
    "referring": Example("referring", {"r.jsonl": lines(REC, REC | {"id": 10, "expression": ["a", "b"]})}),
}  # fmt: skip
"""By a name for the tests."""
