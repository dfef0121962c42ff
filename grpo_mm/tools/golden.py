"""`grpo-mm golden`: the golden pictures of a config's scorers, compared with what is recorded, or recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from grpo_mm.config.run_config import check_parts, read
from grpo_mm.errors import ConfigError
from grpo_mm.golden.comparing import compare, record, state_of
from grpo_mm.golden.drawn import FAULTS
from grpo_mm.golden.entries import Golden, entry_of, file_of, kind_of_subjects, write
from grpo_mm.outside import shown
from grpo_mm.processes.distributed import Processes
from grpo_mm.rollout.scoring import Scorer, Scoring, check_isolated


def golden(
    config: str | Path,
    overrides: Sequence[str] = (),
    *,
    names: Sequence[str] = (),
    to: Path | None = None,
    beside: bool = False,
    tolerance: float | None = None,
    trust: bool = False,
) -> Iterator[str]:
    """A line for each scorer that has golden pictures; loads it, and no policy.

    Args:
        names: of `rewards` and `watch`; empty: all that have golden pictures.
        to: the file that their scores are recorded in; beside: record in the file beside each scorer's code.
        tolerance: how far a score may lie off; None: a share of what a fault changes.

    Raises:
        UserError: a score is apart from what is recorded; nothing to ask; a reward that cannot be loaded.
    """
    settings = read(config, overrides, trust=trust, unset=[])
    entries = settings.rewards | settings.watched_rewards
    unknown = sorted(set(names) - set(entries))
    if unknown:
        raise ConfigError(f"no reward {shown(unknown[0])} in the config; there are {', '.join(entries)}.")
    asked = [name for name in names or entries if names or kind_of_subjects(entries[name].use) is not None]
    if not asked:
        raise ConfigError("no reward of this config has golden pictures: none of them has published weights.")
    parts = {name: entries[name] for name in asked}
    check_isolated(parts)
    check_parts(parts)
    keys = ("use", "timeout_seconds", "isolate", "device", "workers", "environment", "golden", "frames")
    made = {name: Scorer(**{key: getattr(entry, key) for key in keys}) for name, entry in parts.items()}
    scoring = Scoring(made, Processes(device=settings.device, matmul=settings.matmul).device)
    scoring.load(leave=False)
    for name, scorer in made.items():
        if to is None and not beside:
            entry = entry_of(scorer.use, scorer.golden)
            if not entry.unverified:
                compare(scoring, name, entry)
            yield f"{name} ({entry.scorer}): {state_of(name, entry).said}"
        else:
            entry = record(scoring, name, tolerance=tolerance)
            file = file_of(scorer.use) if to is None else to
            write(file, [entry])
            yield f"{name} ({entry.scorer}): {_recorded(entry)}, in {file}"


def _recorded(entry: Golden) -> str:
    scores = ", ".join(f"{score:.6g}" for score in entry.scores)
    blind = [FAULTS[fault][1] for fault in entry.blind_to]
    return f"recorded {scores} ± {entry.tolerance:.3g}" + (f"; not seen: {', '.join(blind)}" if blind else "")
