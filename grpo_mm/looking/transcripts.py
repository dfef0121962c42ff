"""Transcripts: a few questions of each step with what was answered, so that a person reads what is being reinforced.

`step_000010.jsonl` has one line per question, and each line stands alone. The pictures to the questions lie in `media/`, named
after what they show, so that every step and evaluation shares them. Equal input gives equal bytes, as with sample sheets.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor

from grpo_mm.looking.own_files import MAX_NAME, is_own_file, is_step, json_rows, numbers
from grpo_mm.looking.truth import truth_of
from grpo_mm.outside import plain, reason, shown
from grpo_mm.types import Prompt

MAX_ANSWERS = 16
"""A larger group keeps its best and its worst eight."""
MAX_TEXT = 6000
"""Characters kept of a question or an answer: half of them from its start, half from its end."""
MAX_MARKS = 32
"""Spans, and boxes, that are drawn of one text: the first."""
MAX_PICTURE_PX, MAX_FRAME_PX = 384, 160
"""Longer side of a single picture, and of each of several frames."""
EXACT_PX = 96
"""Pictures up to this size are kept exactly (PNG), larger ones as photographs (JPEG)."""
MAX_READ, LARGEST_PICTURE = 1000, 16 * 2**20
"""Answers to a question, and bytes, that are read: more is none of ours."""
log = logging.getLogger(__name__)


class Sketch(Protocol):
    """Says what to draw of a question and of an answer to it: plain values for `Marks`; an empty mapping draws nothing."""

    def truth(self, prompt: Prompt) -> Mapping[str, Any]: ...

    def __call__(self, prompt: Prompt, text: str) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Marks:
    """What is drawn: spans on a time line, boxes on a picture.

    Example: Marks(extent=9.0, spans=[[2.0, 5.5]]), or Marks(size=[84, 84], boxes=[[4, 10, 20, 26]], names=["circle"]).
    """

    extent: float | None = None
    """Length of the time line in seconds."""
    spans: Sequence[Sequence[float]] = ()
    """[start, end] in seconds, as written: may be reversed or outside."""
    size: Sequence[float] | None = None
    """Width and height of the picture, in the unit of the boxes."""
    boxes: Sequence[Sequence[float]] = ()
    """[x1, y1, x2, y2]."""
    names: Sequence[str] = ()
    """Of the boxes, in their order; may be fewer."""

    @staticmethod
    def of(found: Mapping[str, Any]) -> Marks:
        """Finite numbers only, at most MAX_MARKS of a kind. Raises TypeError or ValueError for other things than marks."""
        marks = Marks(**found)
        extent, size = _numbers([marks.extent], 1), _numbers(marks.size, 2)
        names = [str(name)[:80] for name in marks.names[:MAX_MARKS]]
        spans, boxes = (
            [numbers for one in some[:MAX_MARKS] if (numbers := _numbers(one, length))]
            for some, length in ((marks.spans, 2), (marks.boxes, 4))
        )
        return Marks(extent[0] if extent else None, spans, size, boxes, names)


@dataclass(frozen=True)
class Answer:
    """What was said to a question, and what it earned."""

    text: str | None
    """None: the question could not be asked, e.g. because its media cannot be read."""
    rewards: Mapping[str, float | None] = field(default_factory=dict)
    """By name; None = could not be scored or does not apply."""
    advantage: float | None = None
    """None of a held-out answer, and where it was not a number."""
    is_demo: bool = False
    """A demonstration that was put into the group, not a sample."""
    left_out: int = 0
    """Characters that were cut out of the middle of the text."""
    marks: Marks = field(default_factory=Marks)


@dataclass(frozen=True)
class Picture:
    """Frames of a question's media side by side in one file."""

    file: str
    """Path from the transcript's folder."""
    frames: int
    """1: the picture itself; more: frames spread evenly over a video."""
    size_px: tuple[int, int]
    """Width and height of one."""


@dataclass(frozen=True)
class Exchange:
    """A question and its answers: those of a group, best advantage first, or the one of an evaluation."""

    id: str
    question: str
    truth: Marks
    picture: Picture | None
    group_size: int
    """Answers that there were: more than are kept of a large group."""
    answers: tuple[Answer, ...]
    right: str | None = None
    """What is true, in words; None where nothing is known."""
    clip: Picture | None = None
    """More frames of a video, for playing."""


@dataclass(frozen=True)
class Transcript:
    """What `read_transcripts` finds. Example: Transcript("step_000010", "rollout", 10, folder, exchanges)."""

    name: str
    kind: Literal["rollout", "eval"]
    step: int
    folder: Path
    exchanges: tuple[Exchange, ...]


def write_transcript(
    folder: Path,
    *,
    name: str,
    kind: Literal["rollout", "eval"],
    step: int,
    asked: Sequence[tuple[Prompt, Sequence[Answer]]],
    sketch: Sketch | None = None,
    illustrate: Callable[[Prompt], Tensor | None] | None = None,
    play: Callable[[Prompt], Tensor | None] | None = None,
) -> Path:
    """Writes `<name>.jsonl` into `folder`, and into `folder/media` the pictures that are not there yet.

    Args:
        name: "step_000010", "eval_before", "eval_after" or "eval_step_000020".
        asked: prompts with their answers, whose marks are made here. Answers are sorted by advantage; those without last.
        sketch: None draws nothing. One that fails is logged, and nothing is drawn of that text.
        illustrate: gives a prompt's media as uint8 [K, 3, H, W]: its picture (K = 1), or frames of its video, frame k from
            the moment (k + 1/2) / K of its length; None for a prompt that has nothing to show.
        play: gives a prompt's video for playing in the same form, more and smaller frames; None where there is none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for prompt, answers in asked:
        frames_KCHW = illustrate(prompt) if illustrate is not None else None
        clip_KCHW = play(prompt) if play is not None else None
        exchange = Exchange(
            id=prompt.id,
            question=_shortened(prompt.text)[0],
            truth=truth_marks(prompt, sketch) if sketch is not None else Marks(),
            picture=None if frames_KCHW is None else _keep_picture(folder, frames_KCHW),
            group_size=len(answers),
            answers=tuple(_drawn(prompt, answer, sketch) for answer in _best_and_worst(answers)),
            right=truth_of(prompt),
            clip=None if clip_KCHW is None or len(clip_KCHW) < 2 else _keep_picture(folder, clip_KCHW),
        )
        lines.append({"step": step, "kind": kind} | asdict(exchange))
    text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    path = folder / f"{name}.jsonl"
    _write_whole(path, text.encode("utf-8", errors="replace"))
    return path


def read_transcripts(folder: Path, damage: list[str] | None = None) -> list[Transcript]:
    """All whole transcripts in a folder, by step; a damaged one, or one without a question, is left out, and named in `damage`."""
    found, said = [], [] if damage is None else damage
    for path in sorted(folder.glob("*.jsonl")):
        lost: list[str] = []
        try:
            rows = json_rows(path, lost, folder=folder)
            if lost or not rows:
                raise ValueError(lost[0] if lost else "it has no question")
            kind, step = rows[0]["kind"], rows[0]["step"]
            if kind not in ("rollout", "eval"):
                raise ValueError(f"it is a {shown(kind, 40)}")
            exchanges = tuple(_exchange(row, folder, said) for row in rows)
            found.append(Transcript(path.stem, kind, step, folder, exchanges))
        except Exception as error:  # whatever a damaged transcript makes of its reader
            said.append(f"samples/{plain(path.name, MAX_NAME)} is left out ({reason(error)})")
    return sorted(found, key=lambda transcript: transcript.step)


def _best_and_worst(answers: Sequence[Answer]) -> list[Answer]:
    half = MAX_ANSWERS // 2
    ordered = sorted(answers, key=lambda a: math.inf if _number(a.advantage) is None else -a.advantage)
    return ordered if len(ordered) <= MAX_ANSWERS else ordered[:half] + ordered[-half:]


def _drawn(prompt: Prompt, answer: Answer, sketch: Sketch | None) -> Answer:
    """The answer as it is kept: short enough, its numbers plain, and its marks made from the entire text."""
    text, left_out = (None, 0) if answer.text is None else _shortened(answer.text)
    draws = sketch is not None and answer.text is not None
    return replace(
        answer,
        text=text,
        left_out=left_out,
        rewards={name: _number(value) for name, value in answer.rewards.items()},
        advantage=_number(answer.advantage),
        marks=_marks(prompt, lambda p: sketch(p, answer.text)) if draws else Marks(),
    )


def marks_of(prompt: Prompt, text: str, sketch: Sketch) -> Marks:
    """What a sketch reads of an answer; nothing where it fails, which is logged."""
    return _marks(prompt, lambda p: sketch(p, text))


def truth_marks(prompt: Prompt, sketch: Sketch) -> Marks:
    """What a sketch knows to be true of a prompt."""
    return _marks(prompt, sketch.truth)


def _marks(prompt: Prompt, draw: Callable[[Prompt], Mapping[str, Any]]) -> Marks:
    try:
        return Marks.of(draw(prompt))
    except Exception as error:  # whatever a model wrote, a drawing ends no run
        log.warning("nothing is drawn of prompt %r: %s: %s", prompt.id, type(error).__name__, error)
        return Marks()


def _numbers(values: Sequence[Any] | None, length: int) -> list[float] | None:
    """So many plain numbers; None if one of them is no number, or none are there."""
    if values is None:
        return None
    if len(values) != length:
        raise ValueError(f"{values!r:.80} has {len(values)} entries, wanted {length}")
    numbers = [_number(value) for value in values]
    return None if None in numbers else numbers


def _number(value: Any) -> float | None:
    """JSON has no NaN; six digits are what a float32 holds."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _shortened(text: str) -> tuple[str, int]:
    """The text and how many characters were cut out of its middle."""
    too_many = len(text) - MAX_TEXT
    return (text, 0) if too_many <= 0 else (f"{text[: MAX_TEXT // 2]} … {text[-MAX_TEXT // 2 :]}", too_many)


def _keep_picture(folder: Path, frames_KCHW: Tensor) -> Picture:
    """Raises ValueError for anything but uint8 [K, 3, H, W]."""
    if frames_KCHW.dtype != torch.uint8 or frames_KCHW.ndim != 4 or frames_KCHW.shape[1] != 3 or not len(frames_KCHW):
        raise ValueError(f"pictures are {frames_KCHW.dtype} {tuple(frames_KCHW.shape)}; wanted uint8 [K, 3, H, W].")
    count, _, height, width = frames_KCHW.shape
    shrink = min(1.0, (MAX_PICTURE_PX if count == 1 else MAX_FRAME_PX) / max(height, width))
    size_px = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    strip = Image.new("RGB", (count * size_px[0], size_px[1]))
    for k, frame_CHW in enumerate(frames_KCHW.cpu()):
        frame = Image.fromarray(frame_CHW.permute(1, 2, 0).contiguous().numpy())
        strip.paste(frame if shrink == 1 else frame.resize(size_px, Image.Resampling.LANCZOS), (k * size_px[0], 0))
    kind = "png" if max(size_px) <= EXACT_PX else "jpeg"
    data = io.BytesIO()
    strip.save(data, format=kind, quality=88)
    file = f"media/{hashlib.sha256(data.getvalue()).hexdigest()[:16]}.{kind}"
    if not (folder / file).exists():
        (folder / "media").mkdir(exist_ok=True)
        _write_whole(folder / file, data.getvalue())
    return Picture(file, count, size_px)


def _write_whole(path: Path, data: bytes) -> None:
    aside = path.with_name(f".writing_{path.name}")
    aside.write_bytes(data)
    os.replace(aside, path)


def _exchange(row: Mapping[str, Any], folder: Path, damage: list[str]) -> Exchange:
    """Raises ValueError, KeyError or TypeError for what is no line of a transcript."""
    answers = tuple(_answer(answer) for answer in row["answers"])
    if not isinstance(row["id"], str) or not is_step(row["group_size"]) or len(answers) > MAX_READ:
        raise ValueError(
            f"a question {shown(row['id'], 40)} with {len(answers)} of {shown(row['group_size'], 40)} answers"
        )
    picture = _picture(row["picture"], folder, damage) if row["picture"] else None
    right = row.get("right")  # not there in runs of earlier versions
    return Exchange(
        row["id"], _words(row["question"]), Marks.of(row["truth"]), picture, row["group_size"], answers,
        None if right is None else _words(right),
        _picture(row["clip"], folder, damage) if row.get("clip") else None,
    )  # fmt: skip


def _answer(found: Mapping[str, Any]) -> Answer:
    answer = Answer(**found)
    if not is_step(answer.left_out) or not isinstance(answer.is_demo, bool):
        raise ValueError(f"an answer with {shown(answer.left_out, 40)} characters left out")
    numbers({"advantage": answer.advantage})
    text = None if answer.text is None else _words(answer.text)
    return replace(answer, text=text, rewards=numbers(answer.rewards), marks=Marks.of(found["marks"]))


def _words(text: Any) -> str:
    if not isinstance(text, str):
        raise ValueError(f"{shown(text, 40)} is no text")
    return text[: 2 * MAX_TEXT]


def _picture(found: Mapping[str, Any], folder: Path, damage: list[str]) -> Picture | None:
    """None, and named in `damage`, for a file that is no picture of this folder; one that is missing is no damage."""
    picture = Picture(**(found | {"size_px": tuple(found["size_px"])}))
    if not (is_step(picture.frames) and picture.frames and all(is_step(side) and side for side in picture.size_px)):
        raise ValueError(f"a picture of {shown(picture.frames, 40)} frames of {shown(picture.size_px, 40)} pixels")
    path = folder / picture.file
    if len(picture.size_px) != 2 or Path(picture.file).parts[:-1] != ("media",):
        raise ValueError(f"the picture is {shown(picture.file, 80)}")
    if not path.is_symlink() and not path.exists():
        return picture
    try:
        if not is_own_file(path, folder) or path.stat().st_size > LARGEST_PICTURE:
            raise ValueError("it leads out of the folder, or is too large")
        with Image.open(path, formats=("PNG", "JPEG")) as opened:
            opened.verify()
    except Exception as error:  # Pillow raises whatever it likes
        said = f"samples/{plain(picture.file, MAX_NAME)} is no picture of this run ({reason(error)})"
        damage += [] if said in damage else [said]
        return None
    return picture
