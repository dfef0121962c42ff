"""Small spatial data in the published forms, and what the tiny checkpoints of their tests are taught to say."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from chat_server import parts
from PIL import Image
from tiny_videos import write_video

from grpo_mm.datasets.worlds.scene_world import SIZE_PX, picture, random_question

ANSWERS = {
    "qwen2_5_vl": (
        "<think><bbox>[4, 10, 20, 26]</bbox> so left.</think><answer>(A)</answer>",
        "<think>at (10, 12) so right.</think><answer>(B)</answer>",
        "<think>2 <box>[30, 34, 50, 60]</box></think><answer>2</answer>",
        "<think>[4, 10, 20, 26]</think><rethink>no</rethink><answer>yes</answer>",
        '<think>one</think><answer>{"bbox_2d": [4, 10, 20, 26], "label": "cup"}</answer>',
    ),
    "qwen2_vl": (
        '<think>one</think><answer>[{"Position": [100, 300, 600, 900], "Confidence": 0.9}]</answer>',
        "<answer>(100, 300), (600, 900)</answer>",
        "<answer>red</answer>",
    ),
}
"""Model format → what its checkpoint says, each as often, whatever it is asked. Qwen2-VL writes thousandths."""
COUNT = 4
"""Rows of each file, and pictures."""
BOX, OTHER = [4, 10, 20, 26], [30, 34, 50, 60]


def write_spatial_data(folder: Path) -> dict[str, str]:
    """Rendered pictures, a video, and a file of each form; name of the form → its path, "pictures" and "videos" → folders."""
    pictures, videos, paths = folder / "pictures", folder / "videos/rooms", {}
    for made in (pictures, videos):
        made.mkdir(parents=True)
    for number in range(COUNT):
        scene = random_question("train", "relation", random.Random(number)).scene
        Image.fromarray(picture(scene)).save(pictures / f"{number}.png")
    write_video(videos / "scene.mp4", [n / 8 for n in range(16)])
    for form, row in ROWS.items():
        rows = [row(number) for number in range(COUNT)]
        paths[form] = str(folder / f"{form}.{'json' if form == 'video_r1' else 'jsonl'}")
        lines = json.dumps(rows) if form == "video_r1" else "\n".join(map(json.dumps, rows))
        Path(paths[form]).write_text(lines)
    return paths | {"pictures": str(pictures), "videos": str(videos.parent)}


def _grounded(number: int, **changes) -> dict:
    row = {
        "question": "Where is the cup?",
        "answer": "(A)",
        "image": f"{number}.png",
        "split": "train",
        "dataset": "vgr",
    }
    return row | {"width": SIZE_PX, "height": SIZE_PX, "bboxs": [BOX]} | changes


def _talk(number: int, answer: str) -> dict:
    turns = [{"from": "human", "value": "Find all cups."}, {"from": "gpt", "value": answer}]
    return {"id": number, "image": f"{number}.png", "conversations": turns}


def _objects(number: int) -> str:
    named = [{"bbox_2d": BOX, "label": "cup"}, {"bbox_2d": OTHER, "label": "bed"}][: 1 + number % 2]
    return f"```json\n{json.dumps(named)}\n```"


ROWS: dict[str, Callable[[int], dict]] = {
    "sat": lambda n: {
        "image_bytes": [f"{n}.png"], "question": "How did the camera move?", "answers": ["left", "right"],
        "correct_answer": ("left", "right")[n % 2], "question_type": "ego_movement",
    },
    "cv_bench": lambda n: {
        "idx": n, "type": ("2D", "3D")[n % 2], "task": ("Count", "Depth")[n % 2], "question": "How many?", "choices": ["0", "1"],
        "answer": "(B)", "prompt": "How many? (A) 0 (B) 1", "filename": f"{n}.png", "source": ("ADE20K", "Omni3D")[n % 2],
    },
    "boxes": lambda n: _grounded(n, answer=("(A)", "(B)")[n % 2]),
    "grit": lambda n: _grounded(n, **({"dataset": "tallyqa", "answer": 1} if n % 2 else {"dataset": "vsr", "answer": "yes"})),
    "counting": lambda n: _grounded(n, answer=2, dataset="visdrone", bboxs=[BOX, OTHER]),
    "ocr": lambda n: _grounded(n, answer="red 7", bboxs=[]),
    "referring": lambda n: {"id": n, "image": f"{n}.png", "expression": "the left cup", "box": [8.4, 25.2, 50.4, 75.6]},
    "talk_box": lambda n: _talk(n, f"<answer>{BOX}</answer>"),
    "talk_boxes": lambda n: _talk(n, _objects(n)),
    "talk_positions": lambda n: _talk(n, "<answer>[{'Position': [8.4, 25.2, 50.4, 75.6], 'Confidence': 1}]</answer>"),
    "video_r1": lambda n: {
        "problem_id": n, "problem": "What is near?", "data_type": "image" if n else "video", "solution": "<answer>B</answer>",
        "path": f"../pictures/{n}.png" if n else "rooms/scene.mp4", "options": ["A. bed", "B. cup"], "map": {"cup": [[2, 3]]},
        "problem_type": "multiple choice",
    } | ({"problem_type": "numerical", "solution": "<answer>2.1</answer>", "options": []} if n % 2 else {}),
    "vsi_bench": lambda n: {
        "id": n, "dataset": "rooms", "scene_name": "scene", "question_type": "object_counting", "question": "How many cups?",
        "options": None, "ground_truth": "2",
    },
}  # fmt: skip
"""Name of a form → its row of a number."""


def verdict(levels: list[int], request: dict) -> str:
    """A judge's answer: always the same to the same question, and not the same to all."""
    text = parts(request)[-1]["text"]
    words = text.rpartition("one of ")[2].partition(", in this form")[0].split(", ")
    return f"Looked at. <verdict>{words[sum(text.encode()) % len(words)]}</verdict>"
