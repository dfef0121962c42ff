"""What a run came to: better, not distinguishable, worse, or suspect.

The gain is the mean paired difference of the held-out score over the same prompts before and after; "better" and "worse" need 0
outside of its 95 % interval. "Suspect" is a run whose score did not fall while a sign says that something else moved: a default
rule (`default_rules`) outside its band between the first and the last evaluation, a rule of the config outside at the end, or
a watched score that fell beyond its error to less than WATCHED_LOW of what it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from grpo_mm.looking import held_out
from grpo_mm.looking.default_rules import DEFAULT_RULES, held_out_twin, label
from grpo_mm.looking.held_out import Estimate, Evaluation
from grpo_mm.looking.own_files import json_rows, number_or_none
from grpo_mm.looking.watch import Watched, absolute_band, is_outside

BETTER, NOT_DISTINGUISHABLE, WORSE, SUSPECT = "better", "not distinguishable", "worse", "suspect"
UNKNOWN = "not measured"
"""There is no held-out score before and after, or no error of their difference is known."""
SMOOTHED = 3
"""Rollouts at each end whose mean is compared, where a metric has no held-out twin."""
WATCHED_LOW = 0.5


@dataclass(frozen=True)
class Sign:
    """Something that moved. Example: Sign("luminance", "eval/image/luminance", 0.16, 0.72, "luminance ×4.5")."""

    rule: str
    metric: str
    before: float
    after: float
    words: str


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
        rules: the bands that count: those of the config, and the default ones.
        watched: names of the watched rewards.
    """
    tested = [row for row in rows if "eval/score" in row]
    first = tested[0] if tested and tested[0]["step"] == 0 else {}
    last = tested[-1] if tested and tested[-1]["step"] > 0 else {}
    before, after = (number_or_none(row.get("eval/score")) for row in (first, last))
    by_step = {evaluation.step: evaluation for evaluation in evaluations}
    ends = (by_step.get(0), by_step.get(last.get("step")))
    gain = held_out.paired(*ends, "score") if None not in ends and None not in (before, after) else None
    signs = [*_drifts(rows, first, last, rules), *_falls(first, last, ends, watched)]
    word = _word(gain, signs)
    return Verdict(word, _sentence(word, before, after, gain, signs), before, after, gain, signs)


def _word(gain: Estimate | None, signs: Sequence[Sign]) -> str:
    if gain is not None and gain.mean < 0 and not gain.within_error:
        return WORSE
    if signs:
        return SUSPECT
    if gain is None:
        return UNKNOWN
    return NOT_DISTINGUISHABLE if gain.within_error else BETTER


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
            found.append(Sign(name, metric, *ends, words=f"{label(name)} {change_in_words(*ends, share=rule.shift)}"))
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
    for name in watched:
        was, now = (number_or_none(row.get(f"eval/{name}/score")) for row in (first, last))
        if was is None or now is None or None in ends or was <= 0:
            continue
        change = held_out.paired(*ends, f"{name}/score")
        if change is not None and not change.within_error and now < WATCHED_LOW * was:
            words = f"watched {name} {change_in_words(was, now)}"
            found.append(Sign(name, f"eval/{name}/score", was, now, words))
    return found


def change_in_words(before: float, after: float, *, share: bool = False) -> str:
    """ "×4.5", "−64 %", "+30 %"; of a share, or where it began at 0 or below: "0.02 → 0.85"."""
    if share or before <= 0 or after < 0:
        return f"{before:.2g} → {after:.2g}".replace("-", "−")
    ratio = after / before
    if ratio >= 2:
        return f"×{ratio:.1f}" if ratio < 100 else f"×{ratio:.0f}"
    return f"{100 * (ratio - 1):+.0f} %".replace("-", "−")


def _sentence(
    word: str, before: float | None, after: float | None, gain: Estimate | None, signs: Sequence[Sign]
) -> str:
    told = "; ".join(sign.words for sign in signs)
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
