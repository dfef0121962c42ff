"""Transcripts for the page: what was answered, and where on the clip or the picture it points."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from grpo_mm.looking.report.changes import by_change, change_between, counted_changes, spread_in_words
from grpo_mm.looking.report.words import moment, number, score, sign, signed
from grpo_mm.looking.transcripts import Answer, Exchange, Marks, Picture, Transcript

LONG_TEXT = 260
"""Characters from which a text is folded to its start and its end, where the answer stands."""
CLIP_BYTES = 10**6
"""Of all clips on the page together; those with the largest change come first."""
HEAD, TAIL = 70, 160
_MEDIUM = re.compile(r"\s?<(?:image|video)>\s?")
"""Where the medium stands among the words: the page shows it."""
_TAG = re.compile(r"(</?\w+>)")


def before_and_after_texts(evals: Sequence[Transcript]) -> dict[str, Any] | None:
    """The same held-out questions before training and at the last evaluation, each with both answers."""
    before = next((t for t in evals if t.name == "eval_before"), None)
    after = next((t for t in reversed(evals) if t is not before), None)
    if before is None and after is None:
        return None
    left, right = ({e.id: e for e in t.exchanges} if t else {} for t in (before, after))
    questions, room = [], CLIP_BYTES
    for key in left | right:
        sides = [(label, side[key]) for label, side in (("before", left), ("after", right)) if key in side]
        labelled = [(label, exchange.answers[0]) for label, exchange in sides if exchange.answers]
        folder = (before if key in left else after).folder
        change = change_between(*(answer.rewards for _, answer in labelled)) if len(labelled) == 2 else None
        found = _question(folder, sides[0][1], labelled, largest=1.0) | {"change": change}
        questions.append(found | {"reel": (folder, sides[-1][1].clip)})
    questions = by_change(questions)
    for one in questions:  # the first ones have the largest change
        one["reel"] = _reel(*one["reel"], seconds=one["seconds"], room=room)
        room -= len(one["reel"]["src"]) if one["reel"] else 0
    return {
        "after_step": after.step if after else None,
        "has_before": before is not None,
        "questions": questions,
        "changes": counted_changes(questions),
    }


def rollout_texts(transcript: Transcript) -> dict[str, Any]:
    """The groups of a step; no signal: every advantage is zero or missing."""
    largest = max((abs(a.advantage or 0) for e in transcript.exchanges for a in e.answers), default=0) or 1
    return {
        "step": transcript.step,
        "groups": [
            _question(transcript.folder, exchange, _counted(exchange.answers), largest=largest)
            | {
                "kept": len(exchange.answers),
                "size": exchange.group_size,
                "signal": any(answer.advantage for answer in exchange.answers),
                "spread": spread_in_words([answer.rewards for answer in exchange.answers]),
            }
            for exchange in transcript.exchanges
        ],
    }


def _counted(answers: Sequence[Answer]) -> list[tuple[str, Answer]]:
    """Neighbours that are the same in everything stand there once, labelled "× 3"."""
    found: list[tuple[int, Answer]] = []
    for answer in answers:
        if found and found[-1][1] == answer:
            found[-1] = (found[-1][0] + 1, answer)
        else:
            found.append((1, answer))
    return [("" if count == 1 else f"× {count}", answer) for count, answer in found]


def _question(
    folder: Path, exchange: Exchange, labelled: Sequence[tuple[str, Answer]], *, largest: float
) -> dict[str, Any]:
    """A question with its media and its answers, each on the same time line or the same picture."""
    all_marks = [exchange.truth, *(answer.marks for _, answer in labelled)]
    extent = _extent(all_marks)
    frame = _frame(all_marks, exchange.picture)
    media = _data_uri(folder, exchange.picture)
    single = exchange.picture is not None and exchange.picture.frames == 1
    return {
        "question": _MEDIUM.sub(" ", exchange.question).strip(),
        "right": exchange.right,
        "strip": None if single else media,
        "shot": media if single else None,
        "pixelated": exchange.picture is not None and exchange.picture.file.endswith(".png"),
        "extent": extent and moment(extent),
        "seconds": extent,
        "reel": None,
        "true_spans": _spans(exchange.truth, extent),
        "frame": frame,
        "true_boxes": _boxes(exchange.truth),
        "answers": [_answer(label, answer, extent, largest=largest) for label, answer in labelled],
    }


def _answer(label: str, answer: Answer, extent: float | None, *, largest: float) -> dict[str, Any]:
    advantage = answer.advantage
    return {
        "label": label,
        "text": None if answer.text is None else _pieces(answer.text),
        "short": _shortened(answer.text or ""),
        "left_out": answer.left_out,
        "is_demo": answer.is_demo,
        "score": next((text for text in map(score, answer.rewards.values()) if text != "–"), "–"),
        "rewards": {name: score(value) for name, value in answer.rewards.items()},
        "advantage": None if advantage is None else signed(advantage),
        "sign": sign(advantage or 0),
        "bar": 100 * abs(advantage or 0) / largest,
        "spans": _spans(answer.marks, extent),
        "boxes": _boxes(answer.marks),
    }


def _extent(all_marks: Sequence[Marks]) -> float | None:
    """Length of the time line: as a sketch says, else to the end of the last span; None where there are no spans."""
    ends = [end for marks in all_marks for span in marks.spans for end in span]
    told = [marks.extent for marks in all_marks if marks.extent and marks.extent > 0]
    return (told[0] if told else max(ends)) if ends and (told or max(ends) > 0) else None


def _spans(marks: Marks, extent: float | None) -> list[dict[str, Any]]:
    """Places on the time line in per cent; odd: reversed, empty or entirely outside, which overlaps with nothing."""
    if extent is None:
        return []
    found = []
    for start, end in marks.spans:
        left, right = (min(max(100 * second / extent, 0.0), 100.0) for second in sorted((start, end)))
        odd = not (start < end and start < extent and end > 0)
        words = f"{number(start)} to {number(end)} s"
        found.append({"left": round(left, 2), "width": round(right - left, 2), "odd": odd, "words": words})
    return found


def _frame(all_marks: Sequence[Marks], picture: Picture | None) -> tuple[float, float] | None:
    """Width and height that boxes are drawn in: as a sketch says, else the picture's; None where there are no boxes."""
    boxes = [box for marks in all_marks for box in marks.boxes]
    if not boxes:
        return None
    told = [tuple(marks.size) for marks in all_marks if marks.size and min(marks.size) > 0]
    if told or picture is not None:
        return told[0] if told else picture.size_px
    return max(1.0, *(max(x1, x2) for x1, _, x2, _ in boxes)), max(1.0, *(max(y1, y2) for _, y1, _, y2 in boxes))


def _boxes(marks: Marks) -> list[dict[str, Any]]:
    names = [*marks.names, *[""] * len(marks.boxes)]
    return [
        {"x": min(x1, x2), "y": min(y1, y2), "width": abs(x2 - x1), "height": abs(y2 - y1), "name": name}
        for (x1, y1, x2, y2), name in zip(marks.boxes, names)
    ]


def _pieces(text: str) -> list[tuple[str, str]]:
    """The text cut into ("xml", "<think>"), ("", words) and, inside an answer element, ("said", words)."""
    pieces, inside = [], ""
    for part in filter(None, _TAG.split(text)):
        is_tag = bool(_TAG.fullmatch(part))
        pieces.append(("xml" if is_tag else inside, part))
        if is_tag:
            inside = "said" if part == "<answer>" else ""
    return pieces


def _shortened(text: str) -> list[tuple[str, str]] | None:
    """Start and end of a long text, in whole words; None for one that is short enough."""
    if len(text) <= LONG_TEXT:
        return None
    head = text[:HEAD].rpartition(" ")[0] or text[:HEAD]
    return list(_joined([*_pieces(head.rstrip()), ("xml", " … "), *_ending(_pieces(text))]))


def _ending(pieces: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The last TAIL characters, of the kinds that they have in the entire text."""
    kept, room = [], TAIL
    for kind, part in reversed(pieces):
        if room <= 0:
            break
        cut = part[-room:]
        kept.append((kind, cut if len(cut) == len(part) else cut.partition(" ")[2] or cut))
        room -= len(part)
    return kept[::-1]


def _joined(pieces: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    """A fold is one line, however many the text had."""
    return ((kind, part.replace("\n", " ")) for kind, part in pieces)


def _reel(folder: Path, clip: Picture | None, *, seconds: float | None, room: int) -> dict[str, Any] | None:
    """A clip that plays in as many seconds as the video has, within 2 and 12; None where there is none or no room on the page."""
    src = None if clip is None or clip.frames < 2 else _data_uri(folder, clip)
    if src is None or len(src) > room:
        return None
    width, height = clip.size_px
    lasts = min(max(seconds or clip.frames / 3, 2.0), 12.0)
    hard = clip.file.endswith(".png")
    return {
        "src": src,
        "frames": clip.frames,
        "ratio": f"{width}/{height}",
        "lasts": round(lasts, 1),
        "pixelated": hard,
    }


def _data_uri(folder: Path, picture: Picture | None) -> str | None:
    """The picture's file as it is; None where it is missing."""
    if picture is None or Path(picture.file).parts[:-1] != ("media",) or not (folder / picture.file).is_file():
        return None
    kind = "png" if picture.file.endswith(".png") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode((folder / picture.file).read_bytes()).decode()}"
