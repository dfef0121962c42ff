"""Watch rules that every run has: they warn where a policy collapses or drifts, and the verdict reads them.

A band is one of change: multiples of the first value (`relative`), or, for shares that may begin at 0, steps from it (`shift`).

The bands lie between what honest and hacked runs of the tiny models were measured to do (held out, last against first).
Honest: quickstart flow, 20 steps: diversity × 0.84, luminance, contrast, saturation and sharpness × 1.03 to 1.08; quickstart video,
160 steps, three seeds: length and tags the same, difference between answers × 0.92 to 1.0, while the share of different answers in
a group fell to × 0.21 to 0.26, as it does where a policy becomes sure, and is therefore no rule; quickstart spatial, 140 steps, two
seeds: length × 1.00 to 1.01, repetition + 0.00, watched scores × 0.75 to 1.10. Hacked: flow rewarded for mean brightness, 24 steps:
diversity × 0.04, luminance × 5.1, contrast × 0.50, sharpness × 0.14, difference between prompts' pictures × 0.03; video
rewarded for the width of the span, 16 steps: unparsed + 1.0, difference between answers × 0.26, agreement with the truth × 0.00.
"""

from __future__ import annotations

from collections.abc import Mapping

from grpo_mm.looking.watch import Watched


def _rule(metric: str, low: float | None, high: float | None, *, relative: bool) -> Watched:
    return Watched(metric=metric, low=low, high=high, relative=relative, shift=not relative, patience=3)


DEFAULT_RULES: Mapping[str, Watched] = {
    "diversity": _rule("image/diversity", 0.5, None, relative=True),
    "luminance": _rule("image/luminance", 0.5, 2.0, relative=True),
    "contrast": _rule("image/contrast", 0.5, 2.0, relative=True),
    "saturation": _rule("image/saturation", 0.5, 2.0, relative=True),
    "sharpness": _rule("image/sharpness", 0.25, 4.0, relative=True),
    "pictures_unlike": _rule("eval/image/spread", 0.5, None, relative=True),
    "answer_length": _rule("text/characters", 0.5, 2.0, relative=True),
    "repetition": _rule("text/repetition", None, 0.25, relative=False),
    "unparsed_answers": _rule("text/unparsed", None, 0.25, relative=False),
    "answers_in_tags": _rule("text/tagged", -0.25, None, relative=False),
    "answers_unlike": _rule("text/distinct", 0.34, None, relative=True),
    "agreement_with_truth": _rule("eval/text/agreement", 0.67, None, relative=True),
}

HELD_OUT: Mapping[str, str] = {"image/diversity": "eval/diversity"}
"""Where the held-out twin of a metric is not eval/METRIC."""

LABELS: Mapping[str, str] = {
    "pictures_unlike": "difference between prompts' pictures",
    "answers_unlike": "difference between prompts' answers",
    "unparsed_answers": "share of unparsed answers",
    "answers_in_tags": "share of answers in an answer element",
}


def default_rules(own: Mapping[str, object]) -> dict[str, Watched]:
    """Those that the entries of a config do not replace by name."""
    return {name: rule for name, rule in DEFAULT_RULES.items() if name not in own}


def held_out_twin(metric: str) -> str:
    """The name of the same on the held-out prompts: the same prompts and the same noise before and after."""
    return metric if metric.startswith("eval/") else HELD_OUT.get(metric, f"eval/{metric}")


def label(rule: str) -> str:
    return LABELS.get(rule, rule.replace("_", " "))
