"""Tiny checkpoints that write well-formed answers at random, and small video data in the published forms, so that a step of a
published setting has rewards that differ."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tiny_videos import write_pictures, write_video
from tiny_vlm import build
from torch.nn.functional import cross_entropy

ANSWERS = (
    "<answer>1.00 to 2.00</answer>",
    "<answer>0.00 to 3.00</answer>",
    "<think>red</think><answer>1.00 to 3.00</answer>",
    "<think>at the end</think><answer>A</answer>",
    "<think>left.</think><answer>B</answer>",
    "<think>up</think><answer>(A)</answer><glue>[(1.00, 2.00)]</glue>",
)
"""What the taught checkpoints say, each as often, whatever they are asked."""
SECONDS = 4.0
WORDS = ("when", "red", "circle", "appear", "A", "B", "to", "answer", "think", "in", "0", "1", "2", ".", "s", "(", ")")


def teach(
    family: str, path: Path, *, steps: int = 200, answers: Sequence[str] = ANSWERS, questions: Sequence[str] = ("",)
) -> str:
    """A random checkpoint of a family, trained on text alone until it says one of `answers` after a few words and a question."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    build(family, path)
    model = AutoModelForImageTextToText.from_pretrained(path)
    processor, rng = AutoProcessor.from_pretrained(path), random.Random(0)
    optimizer = torch.optim.AdamW(model.model.language_model.parameters(), lr=5e-3)
    for _ in range(steps):
        ids_BL, answer_BL = _lessons(processor, rng, answers, questions)
        logits = model.lm_head(model.model.language_model(input_ids=ids_BL).last_hidden_state)
        told = answer_BL[:, 1:]
        loss = cross_entropy(logits[:, :-1][told], ids_BL[:, 1:][told])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(path)
    return str(path)


def _lessons(
    processor: Any, rng: random.Random, answers: Sequence[str], questions: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """One conversation with each of the answers: ids [B, L], and which of them belong to the answer."""
    rows = []
    for answer in answers:
        words = " ".join(rng.choices(WORDS, k=rng.randint(1, 40)))
        text = words + (rng.choice(questions) if len(questions) > 1 else questions[0])
        asked = [{"role": "user", "content": [{"type": "text", "text": text}]}]
        opening = processor.apply_chat_template(asked, add_generation_prompt=True)
        parts = [processor.tokenizer(part)["input_ids"] for part in (opening, answer + "<|im_end|>")]
        rows.append((parts[0] + parts[1], [False] * len(parts[0]) + [True] * len(parts[1])))
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    return ids, torch.tensor([own + [False] * (longest - len(own)) for _, own in rows])


def write_data(folder: Path) -> dict[str, str]:
    """Videos of four seconds and an annotation file of each form; name of the form → its path, "videos" and "pictures" → the folder of
    videos, and of folders of pictures."""
    videos, paths = folder / "videos", {}
    videos.mkdir()
    names = ["one", "two", "three", "four"]
    for number, name in enumerate(names):
        write_video(videos / f"{name}.mp4", [n / 8 for n in range(32)], first_number=10 * number)
    spans = [[1.0, 2.0], [0.0, 3.0], [1.0, 3.0], [2.0, 4.0]]
    events = [
        {"video": name, "sentence": "the bars move", "span": span} for name, span in zip(names, spans, strict=True)
    ]
    forms = {
        "charades_sta": {
            e["video"]: {"duration": SECONDS, "timestamps": [e["span"]], "sentences": [e["sentence"]]} for e in events
        },
        "time_r1": [
            {"video": f"{e['video']}.mp4", "sentence": e["sentence"], "timestamp": e["span"], "duration": SECONDS, "qid": f"q{n}"}
            for n, e in enumerate(events)
        ],
        "tvgbench": [
            {"path": f"{e['video']}.mp4", "question": e["sentence"], "answer": "1.0-2.0", "duration": SECONDS} for e in events
        ],
        "nextgqa": [
            {
                "id": f"{name}_0", "video": name, "question": "what is it", "options": ["(A) a bar", "(B) a car"],
                "answer": "(A)", "glue": [[1.0, 2.0]], "duration": SECONDS, "type": "CW",
            }
            for name in names
        ],
        "video_r1": [
            {
                "problem_id": n, "problem": "What is it?", "data_type": "video", "problem_type": "multiple choice",
                "options": ["A. a bar", "B. a car"], "solution": f"<answer>{'AB'[n % 2]}</answer>", "path": f"{name}.mp4",
            }
            for n, name in enumerate(names)
        ],
        "timelens_bench": {
            e["video"]: {"duration": SECONDS, "spans": [e["span"]], "queries": [e["sentence"]]} for e in events
        },
        "timelens_100k": [
            {
                "video_path": f"{e['video']}.mp4", "duration": SECONDS, "source": "bars",
                "events": [{"query": e["sentence"], "span": [e["span"]]}],
            }
            for e in events
        ],
        "got10k": [
            {"path": f"val/{name}", "object": "bar", "gt": [[k / 10, 0.1, k / 10 + 0.2, 0.9] for k in range(8)]}
            for name in names
        ],
    }  # fmt: skip
    for name in names:
        write_pictures(folder / "pictures" / name, count=10)
    for form, rows in forms.items():
        paths[form] = str(folder / f"{form}.json")
        Path(paths[form]).write_text(json.dumps(rows))
    return paths | {"videos": str(videos), "pictures": str(folder / "pictures")}
