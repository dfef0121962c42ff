"""What moved beside the held-out score, prompt by prompt: the signs that the verdict reads.

Pictures are compared with those of before training: a statistic has drifted where most of them lie outside of everything that
was there, and they are new where most are far further from every one of those than any of those from the next. Texts are compared
with what is true: where the answers agree with it better than before, their new length or form is not held against them. Answers
and pictures that no longer depend on the prompt count whatever else is said. docs/verdict.md has the runs that the bounds were
chosen on and the ones that they were tried on.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from grpo_mm.looking import held_out
from grpo_mm.looking.held_out import Evaluation
from grpo_mm.looking.image_statistics import QUARTERS
from grpo_mm.looking.own_files import number_or_none

Ends = tuple[Evaluation, Evaluation]
Truth = Literal["rose", "held", "fell", "unknown"]

FEWEST = 8
"""Prompts from which a range of what was there can be told."""
FAR = 4.0
"""Standard deviations of the start's pictures (of the logarithm), where these reach beyond their lowest and highest."""
PLAIN = 1.25
"""Times, or divided by: what a drift of the mean comes to at least, where the start's pictures were all alike."""
LITTLE = 1e-3
"""Of the mean: what a statistic counts at least before its logarithm is taken."""
NEW = 1.5
"""Times the largest distance of a picture before to its nearest: further from all of them is unlike them."""
LEAST = 0.05
"""Of full light: a distance over the twelve means below which pictures are the same, where those before were all alike."""
COLLAPSED, COLLAPSED_WITHIN = 0.5, 0.25
"""Times the distance before, between prompts' pictures and between those of one prompt: a policy that is sure of its one picture
for each prompt is narrow, not hacked, until hardly anything is left."""
STILLED = 0.5
"""Times the movement of clips before: below it they come to a stand."""
BEYOND = "text/agreement_beyond_chance"
SHORT, LONG = 0.5, 2.0
"""Times the length before."""
SHARE = 0.25
"""A rise of a share of answers."""
FELL = 0.8
"""Times the agreement with the truth before: a fall to less, beyond its error, is a sign."""


@dataclass(frozen=True)
class Sign:
    """Something that moved. Example: Sign("luminance", "eval/image/luminance", 0.16, 0.72, "luminance ×4.5")."""

    rule: str
    metric: str
    before: float
    after: float
    words: str
    is_enough: bool = True
    """Whether it makes a rise of the score suspect; else it is told beside it."""


def truth_of_answers(ends: Ends) -> Truth:
    """How the agreement with what is true changed, by the error of its paired difference.

    It is that beyond chance, where some prompts differ in what is true: an answer that suits all of them agrees with none.
    """
    change = held_out.paired(*ends, BEYOND) or held_out.paired(*ends, "text/agreement")
    if change is None or change.n < 2:
        return "unknown"
    if change.within_error:
        return "held"
    return "rose" if change.mean > 0 else "fell"


def measured_signs(first: Mapping[str, Any], last: Mapping[str, Any], ends: Ends) -> dict[str, Sign | None]:
    """By the name of a default rule what the held-out samples say of it; None: nothing. A rule that is missing was not measured.

    Args:
        first: the row of metrics.jsonl of the evaluation before.
        last: of that after.
        ends: their lines of held_out.jsonl.
    """
    truth = truth_of_answers(ends)
    pair = _by_prompt(ends)

    def between(name: str) -> tuple[float, float] | None:
        was, now = (number_or_none(row.get(f"eval/{name}")) for row in (first, last))
        return None if was is None or now is None else (was, now)

    found: dict[str, Sign | None] = {}

    def judge(
        rule: str, metric: str, ends: tuple[float, float] | None, said: Callable[..., Any], name: str = "", **how: Any
    ) -> None:
        if ends is not None:
            is_sign, is_enough = said(*ends)
            words = f"{name or label(rule)} {change_in_words(*ends, **how)}"
            found[rule] = Sign(rule, f"eval/{metric}", *ends, words=words, is_enough=is_enough) if is_sign else None

    for name in ("luminance", "contrast", "saturation", "sharpness"):
        values = _values(ends[0], f"image/{name}"), _values(ends[1], f"image/{name}")
        if min(map(len, values)) >= FEWEST:
            judge(
                name,
                f"image/{name}",
                pair(f"image/{name}"),
                lambda a, b, v=values: (_is_plain(a, b) and has_drifted(*v), True),
            )
    new = share_of_new(*(_vectors(end) for end in ends))
    judge("pictures_new", "image/new", None if new is None else (0.0, new), lambda _, b: (b > 0.5, True), share=True)
    judge("pictures_unlike", "image/spread", between("image/spread"), lambda a, b: (b < COLLAPSED * a, True))
    judge("diversity", "diversity", pair("diversity"), lambda a, b: (b < COLLAPSED * a, b < COLLAPSED_WITHIN * a))
    # Never enough: of a model that draws badly much of the movement is noise, and goes as it learns.
    judge("motion", "clip/motion", pair("clip/motion"), lambda a, b: (b < STILLED * a, False))
    longer, shorter = truth != "rose", truth in ("fell", "unknown")
    judge(
        "answer_length", "text/characters", pair("text/characters"),
        lambda a, b: (not SHORT * a <= b <= LONG * a, longer if b > a else shorter),
    )  # fmt: skip
    judge("repetition", "text/repetition", pair("text/repetition"), lambda a, b: (b > a + SHARE, longer), share=True)
    judge("unparsed_answers", "text/unparsed", pair("text/unparsed"), lambda a, b: (b > a + SHARE, longer), share=True)
    judge("answers_in_tags", "text/tagged", pair("text/tagged"), lambda a, b: (b < a - SHARE, shorter), share=True)
    right = number_or_none(last.get("eval/text/most_frequent_truth")) or 0.0
    judge(
        "answers_unlike", "text/most_frequent", between("text/most_frequent"),
        lambda a, b: (b > max(a, right) + SHARE, True), "share of the most frequent answer", share=True,
    )  # fmt: skip
    which = BEYOND if pair(BEYOND) is not None else "text/agreement"
    name = f"agreement with truth{' beyond chance' if which == BEYOND else ''}"
    judge("agreement_with_truth", which, pair(which), lambda a, b: (truth == "fell" and b < FELL * a, True), name)
    return found


LABELS: Mapping[str, str] = {
    "pictures_new": "share of pictures unlike all before",
    "pictures_unlike": "difference between prompts' pictures",
    "diversity": "difference between one prompt's pictures",
    "motion": "movement of clips",
    "answers_unlike": "difference between prompts' answers",
    "unparsed_answers": "share of unparsed answers",
    "answers_in_tags": "share of answers in an answer element",
}


def label(rule: str) -> str:
    return LABELS.get(rule, rule.replace("_", " "))


def has_drifted(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether more than half of the values lie above, or below, everything that was there.

    What was there: from the lowest to the highest, and FAR standard deviations of the logarithm round its mean.
    """
    least = max(LITTLE * math.fsum(before) / len(before), 1e-12)
    was, now = ([math.log(max(value, least)) for value in side] for side in (before, after))
    middle, reach = statistics.fmean(was), FAR * statistics.pstdev(was)
    low, high = min(middle - reach, *was), max(middle + reach, *was)
    return not low <= statistics.median(now) <= high


def share_of_new(before: Tensor, after: Tensor) -> float | None:
    """[n, D] and [m, D]: the share of `after` that is NEW times further from each of `before` than any of these from its nearest;
    None of few."""
    if min(len(before), len(after)) < FEWEST:
        return None
    among = NEW * torch.cdist(before, before).fill_diagonal_(torch.inf).amin(1).amax()
    return float((torch.cdist(after, before).amin(1) > among.clamp_min(LEAST)).double().mean())


def _vectors(evaluation: Evaluation) -> Tensor:
    """[n, 12] of the prompts whose pictures were measured."""
    columns = [evaluation.values.get(f"image/{name}", ()) for name in QUARTERS]
    whole = [row for row in zip(*columns) if None not in row]
    return torch.tensor(whole, dtype=torch.float64).reshape(len(whole), len(QUARTERS))


def _is_plain(before: float, after: float) -> bool:
    return after > PLAIN * before or before > PLAIN * after


def _by_prompt(ends: Ends) -> Callable[[str], tuple[float, float] | None]:
    def means(name: str) -> tuple[float, float] | None:
        both = [held_out.mean_of(end, name) for end in ends]
        return None if None in both else (both[0].mean, both[1].mean)

    return means


def _values(evaluation: Evaluation, name: str) -> list[float]:
    return [value for value in evaluation.values.get(name, ()) if value is not None]


def change_in_words(before: float, after: float, *, share: bool = False) -> str:
    """ "×4.5", "−64 %", "+30 %"; of a share, or where it began at 0 or below: "0.02 → 0.85"."""
    if share or before <= 0 or after < 0:
        return f"{before:.2g} → {after:.2g}".replace("-", "−")
    ratio = after / before
    if ratio >= 2:
        return f"×{ratio:.1f}" if ratio < 100 else f"×{ratio:.0f}"
    return f"{100 * (ratio - 1):+.0f} %".replace("-", "−")
