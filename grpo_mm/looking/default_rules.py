"""Watch rules that every run has: they warn while a policy collapses or drifts.

A band is one of change: multiples of the first value (`relative`), or, for shares that may begin at 0, steps from it (`shift`).
They read the rollouts, and warn early. The verdict reads the held-out samples prompt by prompt where there are some (`signs`), and
these bands where there are none. Both were measured on honest and hacked runs of the tiny models: docs/verdict.md.

No rule is the share of different answers in a group: it falls to a quarter where a policy becomes sure of what is right.
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
    "motion": _rule("clip/motion", 0.25, None, relative=True),
    "answer_length": _rule("text/characters", 0.5, 2.0, relative=True),
    "repetition": _rule("text/repetition", None, 0.25, relative=False),
    "unparsed_answers": _rule("text/unparsed", None, 0.25, relative=False),
    "answers_in_tags": _rule("text/tagged", -0.25, None, relative=False),
    "answers_unlike": _rule("text/distinct", 0.34, None, relative=True),
    "agreement_with_truth": _rule("eval/text/agreement", 0.67, None, relative=True),
}

HELD_OUT: Mapping[str, str] = {"image/diversity": "eval/diversity"}
"""Where the held-out twin of a metric is not eval/METRIC."""


def default_rules(own: Mapping[str, object]) -> dict[str, Watched]:
    """Those that the entries of a config do not replace by name."""
    return {name: rule for name, rule in DEFAULT_RULES.items() if name not in own}


def held_out_twin(metric: str) -> str:
    """The name of the same on the held-out prompts: the same prompts and the same noise before and after."""
    return metric if metric.startswith("eval/") else HELD_OUT.get(metric, f"eval/{metric}")
