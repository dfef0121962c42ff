"""Scores of the golden pictures: asked, recorded, and compared with what was recorded."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from grpo_mm.errors import ConfigError, UserError
from grpo_mm.golden.circumstances import differences, digests_of, versions_of
from grpo_mm.golden.drawn import FAULTS, Subject, subjects
from grpo_mm.golden.entries import Golden, entry_of, kind_of_subjects, settings_of
from grpo_mm.rollout.scoring import Scoring

SHARES = {"float32": (0.002, 0.02)}
OTHER_SHARES = (0.03, 0.1)
"""Of the largest change that a fault makes, how far a score may lie off at least, for rounding, and at most; between them it is a quarter of
the smallest change. What computes in less than float32 rounds more."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """What is known of one scorer."""

    name: str
    kind: str
    """Its class."""
    verified: bool
    said: str
    """In words, for a report."""


def asked(scoring: Scoring, name: str, what: Sequence[Subject]) -> list[float]:
    """The scores of three subjects, one call each, as they differ in size.

    Raises:
        UserError: one cannot be scored.
    """
    found = []
    for one in what:
        scores, errors = scoring.ask(name, one.items, [one.prompt])
        value = float(scores["score"][0])
        if not math.isfinite(value):
            why = errors[0].splitlines()[0] if errors else "it gave NaN"
            raise UserError(f"the reward {name!r} cannot score its golden pictures ({one.prompt.id}): {why}.")
        found.append(value)
    return found


def record(scoring: Scoring, name: str, *, tolerance: float | None = None) -> Golden:
    """The scores of a loaded reward as an entry, with those that each fault leads to.

    Raises:
        ConfigError: it has no golden pictures.
        UserError: it cannot score them, or gives all the same score whatever it is shown.
    """
    scorer = scoring.scorers[name]
    kind = kind_of_subjects(scorer.use)
    if kind is None:
        raise ConfigError(f"{name}: {type(scorer.use).__name__} has no golden pictures: it has no published weights.")
    drawn = subjects(kind)
    scores = asked(scoring, name, drawn)
    faults = {
        fault: asked(scoring, name, change(drawn)) for fault, (kinds, _, change) in FAULTS.items() if kind in kinds
    }
    moved = {fault: _largest(scores, values) for fault, values in faults.items()}
    if not max(moved.values()) > 0:
        raise UserError(f"the reward {name!r} gives {_told(scores)} whatever it is shown: is it well?")
    if tolerance is None:
        least, most = SHARES.get(getattr(scorer.use, "dtype", "float32"), OTHER_SHARES)
        quarter = min(largest for largest in moved.values() if largest > 0) / 4
        tolerance = max(least * max(moved.values()), min(quarter, most * max(moved.values())))
    return Golden(
        scorer=type(scorer.use).__name__, settings=settings_of(scorer.use), scores=scores, tolerance=tolerance, faults=faults,
        blind_to=[fault for fault, largest in moved.items() if largest <= 2 * tolerance],
        weights=digests_of(scorer.use), versions=versions_of(scorer), device=scoring.device.type,
    )  # fmt: skip


def check_goldens(scoring: Scoring, *, place: str = "rewards", told: bool = True) -> dict[str, State]:
    """Asks every loaded reward that has recorded scores for those of its golden pictures.

    Args:
        place: what the config calls them, for messages.
        told: whether a line says which are unverified; the first process of several says it.

    Raises:
        ConfigError: scores are named for one that has no golden pictures.
        UserError: they are apart, with the numbers and what is known of the cause.
    """
    found: dict[str, State] = {}
    for name, scorer in scoring.scorers.items():
        kind = kind_of_subjects(scorer.use)
        if kind is None:
            if getattr(scorer, "golden", None) is not None:
                raise ConfigError(
                    f"{place}.{name}.golden: {type(scorer.use).__name__} has no golden pictures, so nothing is compared; leave it out."
                )
            continue
        entry = entry_of(scorer.use, getattr(scorer, "golden", None))
        if not entry.unverified:
            compare(scoring, name, entry, place=place)
        found[name] = state_of(name, entry)
    unverified = [state for state in found.values() if not state.verified]
    if unverified and told:
        log.warning("%s", "; ".join(f"the reward {state.name!r} is {state.said}" for state in unverified))
    return found


def state_of(name: str, entry: Golden) -> State:
    """In words."""
    if entry.unverified:
        return State(name, entry.scorer, False, f"unverified: {entry.unverified}")
    blind = f"; it does not see {', '.join(FAULTS[one][1] for one in entry.blind_to)}" if entry.blind_to else ""
    return State(name, entry.scorer, True, f"as recorded: {_told(entry.scores)} ± {entry.tolerance:.3g}{blind}")


def compare(scoring: Scoring, name: str, entry: Golden, *, place: str = "rewards") -> list[float]:
    """The scores now; raises UserError where they are apart from those recorded."""
    scorer = scoring.scorers[name]
    kind = kind_of_subjects(scorer.use)
    if kind is None:
        raise ConfigError(f"{name}: {type(scorer.use).__name__} has no golden pictures.")
    scores = asked(scoring, name, subjects(kind))
    if _largest(entry.scores, scores) <= entry.tolerance:
        return scores
    raise UserError(
        f"the reward {name!r} ({entry.scorer}) scores its golden pictures {_told(scores)}; recorded are {_told(entry.scores)} ± "
        f"{entry.tolerance:.3g}. {_cause(scoring, name, entry, scores)} Repair it, or record what you trust: `grpo-mm golden CONFIG --reward "
        f"{name} --record FILE`, and set {place}.{name}.golden=FILE."
    )


def _cause(scoring: Scoring, name: str, entry: Golden, scores: Sequence[float]) -> str:
    scorer = scoring.scorers[name]
    said = [
        f"So it would score them with {FAULTS[fault][1]}."
        for fault, values in entry.faults.items()
        if fault in FAULTS and fault not in entry.blind_to and _largest(values, scores) <= entry.tolerance
    ]
    others = differences(entry.weights, digests_of(scorer.use), digits=12) if entry.weights else []
    if others:
        said.append(f"Its weights are others: {', '.join(others)}.")
    elif entry.weights:
        said.append("Its weights are those recorded.")
    versions = differences(entry.versions, versions_of(scorer))
    if versions:
        said.append(f"Other versions: {', '.join(versions)}.")
    return " ".join(said) or "Nothing else is known to differ."


def _largest(one: Sequence[float], other: Sequence[float]) -> float:
    return float((torch.tensor(one, dtype=torch.float64) - torch.tensor(other, dtype=torch.float64)).abs().max())


def _told(scores: Sequence[float]) -> str:
    return ", ".join(f"{score:.6g}" for score in scores)


def lines(scorers: Mapping[str, object]) -> list[str]:
    """For `grpo-mm show` and `doctor`: of each reward with golden pictures, whether its scores are recorded; nothing is loaded."""
    found = []
    for name, scorer in scorers.items():
        use = scorer.use  # type: ignore[attr-defined]
        if kind_of_subjects(use) is not None:
            state = state_of(name, entry_of(use, getattr(scorer, "golden", None)))
            found.append(
                f"golden pictures of {name}: "
                + (
                    f"recorded, {state.said.removeprefix('as recorded: ')}; checked at the start"
                    if state.verified
                    else state.said
                )
            )
    return found
