"""What was made of held-out prompts, measured the same way whatever is rewarded: the verdict is read off it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grpo_mm.looking.clips.movement import MOVEMENT, movement_of
from grpo_mm.looking.diversity import pairwise_distance
from grpo_mm.looking.image_statistics import image_statistics, quarters
from grpo_mm.looking.text_statistics import distinct_answers, most_frequent, text_statistics
from grpo_mm.looking.transcripts import Sketch, marks_of, truth_marks
from grpo_mm.looking.truth import agreement, answer_of, box_agreement, next_unlike, right_answer
from grpo_mm.processes.distributed import Processes
from grpo_mm.training.held_out import ByPrompt, by_prompt
from grpo_mm.training.onlooker import MEASURED_PICTURES, mean_movement, mean_statistics, mean_text_statistics, shrunk
from grpo_mm.types import Clips, Pictures, Prompt, Rows, is_seen, sound_items

MEASURED_SPREAD = 256
"""Pictures of a rank between which distances are taken."""
MEASURED_ANSWERS = 1024
"""Texts of a rank that are measured prompt by prompt."""


def held_out_statistics(
    items: Any, rows: Rows, row_prompts: Sequence[Prompt], *, sketch: Any, processes: Processes
) -> tuple[dict[str, float], ByPrompt]:
    """(metrics as eval/…, the same by prompt where that has a meaning).

    Of pictures, and of the middle frames of clips: eval/image/STATISTIC; eval/image/spread, `pairwise_distance` between pictures of
    different prompts. Of clips: eval/clip/motion, eval/clip/flicker (`movement_of`). Of texts:
    eval/text/STATISTIC; eval/text/distinct, `distinct_answers`; eval/text/most_frequent, `most_frequent`;
    eval/text/most_frequent_truth, the same of the right answers; eval/text/agreement with them, and
    eval/text/agreement_beyond_chance, what it is more than the agreement with what is true of the next prompt: 0 of an answer
    that suits them all. Between prompts the first sample of each counts.
    """
    if processes.max(float(is_seen(items) and len(items) > 0)):
        return _of_pictures(items, rows, processes)
    if processes.max(float(len(items) > 0)):
        return _of_texts(list(items), rows, row_prompts, sketch=sketch, processes=processes)
    return {}, {}


def _of_pictures(items: Any, rows: Rows, processes: Processes) -> tuple[dict[str, float], ByPrompt]:
    images, sound = sound_items(items if is_seen(items) else Pictures())
    found = mean_statistics(images, processes, prefix="eval/image") | mean_movement(
        items, processes, prefix="eval/clip"
    )
    first = torch.nonzero((rows.sample_N == 0)[sound]).flatten() if len(images) else torch.zeros(0, dtype=torch.int64)
    some = _evenly(first, MEASURED_SPREAD)
    small = torch.cat(processes.gather(shrunk(images[some] if len(some) else torch.zeros(0, 3, 1, 1))))
    if len(small) > 1:
        found["eval/image/spread"] = float(pairwise_distance(small, torch.zeros(len(small), dtype=torch.int64))[0])
    alone = by_prompt({"image": _by_row(images, sound, len(rows))}, rows, processes, names={})
    if processes.max(float(isinstance(items, Clips))):
        alone |= by_prompt({"clip": _movement_by_row(items, len(rows))}, rows, processes, names={})
    return found, alone


def _movement_by_row(items: Any, num_rows: int) -> dict[str, Tensor]:
    """MOVEMENT of each row's clip, NaN where there is none or it was not measured: as many as of pictures are."""
    found = {name: torch.full((num_rows,), torch.nan, dtype=torch.float64) for name in MOVEMENT}
    sound = torch.tensor([i for i, clip in enumerate(items) if clip is not None], dtype=torch.int64)
    for i in _evenly(sound, 4 * MEASURED_PICTURES).tolist():
        for name, value in movement_of(items[i]).items():
            found[name][i] = value
    return found


def _by_row(images: Tensor, sound: Tensor, num_rows: int) -> dict[str, Tensor]:
    """STATISTIC → [N], NaN where it was not measured."""
    found: dict[str, Tensor] = {}
    if len(images) and min(images.shape[2:]) >= 3:
        for part in _evenly(torch.arange(len(images)), 4 * MEASURED_PICTURES).split(16):
            for name, value in (image_statistics(images[part]) | quarters(images[part])).items():
                value_N = found.setdefault(name, torch.full((num_rows,), torch.nan, dtype=torch.float64))
                value_N[sound[part]] = value.double().cpu()
    return found


def _of_texts(
    items: Sequence[Any], rows: Rows, row_prompts: Sequence[Prompt], *, sketch: Any, processes: Processes
) -> tuple[dict[str, float], ByPrompt]:
    found = mean_text_statistics([str(t) for t in items if t is not None], processes, prefix="eval/text")
    scored: dict[str, Tensor] = {}
    asked = torch.tensor([i for i, t in enumerate(items) if t is not None], dtype=torch.int64)
    for i in _evenly(asked, MEASURED_ANSWERS).tolist():
        for name, value in text_statistics(str(items[i])).items():
            scored.setdefault(name, torch.full((len(rows),), torch.nan, dtype=torch.float64))[i] = value
    agrees = [agreement_of(p, t, sketch) for p, t in zip(row_prompts, items, strict=True)]
    others = next_unlike(rows.prompts)
    elsewhere = [
        agreement_of(others[p], t, sketch) if others[p] is not None else torch.nan
        for p, t in zip(rows.prompt_N.tolist(), items, strict=True)
    ]
    scored["agreement"] = torch.tensor(agrees, dtype=torch.float64)
    scored["agreement_beyond_chance"] = scored["agreement"] - torch.tensor(elsewhere, dtype=torch.float64)
    alone = by_prompt({"text": scored}, rows, processes, names={})
    for name in ("text/agreement", "text/agreement_beyond_chance"):
        own = [value for value in alone[name] if value is not None]
        if own:
            found[f"eval/{name}"] = sum(own) / len(own)
        else:
            del alone[name]
    first = [i for i in asked.tolist() if rows.sample_N[i] == 0]
    local = [(str(items[i]), answer_of(str(items[i])), right_answer(row_prompts[i])) for i in first]
    firsts = [one for rank in processes.gather(local) for one in rank]
    if len(firsts) > 1:
        texts, answers, truths = zip(*firsts)
        found["eval/text/distinct"] = distinct_answers(texts)
        found["eval/text/most_frequent"] = most_frequent(answers)
        if any(truths):
            found["eval/text/most_frequent_truth"] = most_frequent([t for t in truths if t])
    return found, alone


def _evenly(index: Tensor, most: int) -> Tensor:
    """At most `most` of them, evenly spread."""
    if len(index) <= most:
        return index
    return index[torch.linspace(0, len(index) - 1, most).round().long()]


def agreement_of(prompt: Prompt, text: str | None, sketch: Sketch | None) -> float:
    """`agreement`, or of a prompt of which only boxes are true `box_agreement`; NaN for a prompt that could not be asked, and for
    spans and boxes that no sketch reads."""
    target = prompt.target if isinstance(prompt.target, dict) else {}
    if text is None or (sketch is None and target.get("spans")):
        return math.nan
    if sketch is None:
        return agreement(prompt, text)
    marks = marks_of(prompt, text, sketch)
    if target.get("boxes") and not right_answer(prompt, boxes=False):
        return box_agreement(marks.boxes, truth_marks(prompt, sketch).boxes)
    return agreement(prompt, text, marks.spans)
