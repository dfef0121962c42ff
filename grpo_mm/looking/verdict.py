"""What a run came to: better, not distinguishable, worse, or suspect.

The gain is the mean paired difference of the held-out score over the same prompts before and after; "better" and "worse" need 0
outside of its 95 % interval. "Suspect" is a run whose score rose while a sign says that something else moved (`signs`, by what
is measured of the held-out samples; a rule of the config that is outside its band at the end; a watched score that fell beyond its
error to less than WATCHED_LOW of what it was). Where the score did not rise there is nothing to believe, and the signs are told
beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from grpo_mm.looking import held_out
from grpo_mm.looking.default_rules import DEFAULT_RULES, held_out_twin
from grpo_mm.looking.held_out import Estimate, Evaluation
from grpo_mm.looking.own_files import json_rows, number_or_none
from grpo_mm.looking.signs import COLLAPSED_WITHIN, Sign, change_in_words, label, measured_signs, truth_of_answers
from grpo_mm.looking.watch import Watched, absolute_band, is_outside

BETTER, NOT_DISTINGUISHABLE, WORSE, SUSPECT = "better", "not distinguishable", "worse", "suspect"
UNKNOWN = "not measured"
"""There is no held-out score before and after, or no error of their difference is known."""
SMOOTHED = 3
"""Rollouts at each end whose mean is compared, where a metric has no held-out twin."""
WATCHED_LOW = 0.5


@dataclass(frozen=True)
class Verdict:
    """What stands at the head of the report."""

    word: str
    sentence: str
    before: float | None
    after: float | None
    """The held-out score."""
    gain: Estimate | None
    """Of the score, paired by prompt."""
    signs: Sequence[Sign]

    def to_json(self) -> dict[str, Any]:
        """Plain values for summary.json."""
        gain = self.gain
        score = {
            "before": self.before, "after": self.after, "gain": gain and gain.mean,
            "standard_error": gain and gain.error, "n": gain and gain.n,
        }  # fmt: skip
        signs = [asdict(sign) for sign in self.signs]
        return {"verdict": self.word, "sentence": self.sentence, "score": score, "signs": signs}


def verdict_of_folder(folder: Path, *, rules: Mapping[str, Watched], watched: Sequence[str]) -> Verdict:
    """Of what a run has written so far."""
    rows = json_rows(folder / "metrics.jsonl", [])
    return verdict(rows, held_out.read(folder / held_out.NAME), rules=rules, watched=watched)


def verdict(
    rows: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Evaluation],
    *,
    rules: Mapping[str, Watched] = DEFAULT_RULES,
    watched: Sequence[str] = (),
) -> Verdict:
    """What a record says.

    Args:
        rows: metrics.jsonl.
        evaluations: held_out.jsonl.
        rules: the bands that count: those of the config, and the default ones. Without a default one nothing is looked at beside
            the config's; one of the config replaces what is measured under its name.
        watched: names of the watched rewards.
    """
    tested = [row for row in rows if "eval/score" in row]
    first = tested[0] if tested and tested[0]["step"] == 0 else {}
    last = tested[-1] if tested and tested[-1]["step"] > 0 else {}
    before, after = (number_or_none(row.get("eval/score")) for row in (first, last))
    by_step = {evaluation.step: evaluation for evaluation in evaluations}
    ends = (by_step.get(0), by_step.get(last.get("step")))
    gain = held_out.paired(*ends, "score") if None not in ends and None not in (before, after) else None
    measured = measured_signs(first, last, ends) if None not in ends else {}  # type: ignore[arg-type]
    kept = {name for name, rule in DEFAULT_RULES.items() if rules.get(name) == rule}
    own = set(rules) if kept else {*rules, *measured}
    at_hand = {name: sign for name, sign in measured.items() if name in kept or name not in {*own, *DEFAULT_RULES}}
    others = {name: rule for name, rule in rules.items() if name not in at_hand}
    signs = [sign for sign in at_hand.values() if sign is not None]
    signs += [*_drifts(rows, first, last, others), *_falls(first, last, ends, watched)]
    signs = sorted(signs, key=lambda sign: not sign.is_enough)
    word = _word(gain, signs)
    return Verdict(word, _sentence(word, before, after, gain, signs), before, after, gain, signs)


def _word(gain: Estimate | None, signs: Sequence[Sign]) -> str:
    if gain is not None and gain.mean < 0 and not gain.within_error:
        return WORSE
    if _is_in_question(gain) and any(sign.is_enough for sign in signs):
        return SUSPECT
    if gain is None:
        return UNKNOWN
    return NOT_DISTINGUISHABLE if gain.within_error else BETTER


def _is_in_question(gain: Estimate | None) -> bool:
    """Whether the score rose, or tells nothing: there is none, it is of one prompt, or it is the same of all prompts to the bit, as where
    all rewards compare samples with each other."""
    if gain is None or gain.mean == gain.error == 0:
        return True
    return gain.mean > 0 and (gain.error is None or not gain.within_error)


def _drifts(
    rows: Sequence[Mapping[str, Any]], first: Mapping[str, Any], last: Mapping[str, Any], rules: Mapping[str, Watched]
) -> list[Sign]:
    found = []
    for name, rule in rules.items():
        if rule.relative or rule.shift:
            metric, ends = _ends(rows, first, last, rule.metric or f"watch/{name}/score")
        else:  # the band is absolute: only where the run is now matters
            metric = rule.metric or f"watch/{name}/score"
            values = _values(rows, metric)
            ends = (values[0], values[-1]) if values else None
        if ends is None or (rule.relative and ends[0] == 0):
            continue
        unit, start = ends[0] if rule.relative else 1.0, ends[0] if rule.shift else 0.0
        if is_outside(ends[1], absolute_band(rule.low, rule.high, unit=unit, start=start)):
            words = f"{label(name)} {change_in_words(*ends, share=rule.shift)}"
            narrow = rule == DEFAULT_RULES["diversity"] and ends[1] >= COLLAPSED_WITHIN * ends[0]
            found.append(Sign(name, metric, *ends, words=words, is_enough=not narrow))
    return found


def _ends(
    rows: Sequence[Mapping[str, Any]], first: Mapping[str, Any], last: Mapping[str, Any], metric: str
) -> tuple[str, tuple[float, float] | None]:
    """(what is compared, its values before and after): held out where that is measured, else of the rollouts."""
    twin = held_out_twin(metric)
    was, now = number_or_none(first.get(twin)), number_or_none(last.get(twin))
    if was is not None and now is not None:
        return twin, (was, now)
    values = _values(rows, metric)
    count = min(SMOOTHED, len(values) // 2)
    if not count:
        return metric, None
    return metric, (math.fsum(values[:count]) / count, math.fsum(values[-count:]) / count)


def _values(rows: Sequence[Mapping[str, Any]], metric: str) -> list[float]:
    return [value for row in rows if (value := number_or_none(row.get(metric))) is not None]


def _falls(
    first: Mapping[str, Any],
    last: Mapping[str, Any],
    ends: tuple[Evaluation | None, Evaluation | None],
    watched: Sequence[str],
) -> list[Sign]:
    """Watched scores that fell beyond the error of their paired difference, and far."""
    found = []
    rose = None not in ends and truth_of_answers(ends) == "rose"  # type: ignore[arg-type]
    for name in watched:
        was, now = (number_or_none(row.get(f"eval/{name}/score")) for row in (first, last))
        if was is None or now is None or None in ends or was <= 0:
            continue
        change = held_out.paired(*ends, f"{name}/score")
        if change is not None and not change.within_error and now < WATCHED_LOW * was:
            words = f"watched {name} {change_in_words(was, now)}"
            found.append(Sign(name, f"eval/{name}/score", was, now, words, is_enough=not rose))
    return found


def _sentence(
    word: str, before: float | None, after: float | None, gain: Estimate | None, signs: Sequence[Sign]
) -> str:
    told = "; ".join(sign.words for sign in signs if sign.is_enough or word != SUSPECT)
    moved = f" What else moved: {told}." if told else ""
    if before is None or after is None:
        score = "There is no held-out score before and after."
        return f"Suspect: {told}: look before you believe the score. {score}" if word == SUSPECT else score + moved
    change = f"held-out score {_signed(before)} → {_signed(after)}"
    if gain is None:
        known = f"{change}; its error is not known, because the run kept no scores by prompt."
        return f"Suspect: {told}: look before you believe the {known}" if word == SUSPECT else _upper(known) + moved
    change += f" ({figures(gain)})"
    if word == SUSPECT:
        return f"Suspect: {told}: look before you believe the {change}."
    why = {
        BETTER: "",
        WORSE: "",
        NOT_DISTINGUISHABLE: ", which is within the error" if gain.error is not None else ", of a single prompt",
    }[word]
    return f"{_upper(word)}: {change}{why}.{moved}"


def _signed(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def figures(gain: Estimate) -> str:
    """ "+0.070 ± 0.012, 384 prompts": the standard error."""
    error = f" ± {gain.error:.3f}" if gain.error is not None else ""
    return f"{gain.mean:+.3f}{error}, {gain.n} prompt{'s' if gain.n != 1 else ''}".replace("-", "−")


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
