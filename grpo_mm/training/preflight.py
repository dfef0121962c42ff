"""The first minute of a run: what it will need is asked for before a model is loaded and anything is sampled."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from grpo_mm.errors import ConfigError, UserError
from grpo_mm.findings import Finding, as_table, first_difference
from grpo_mm.looking.own_files import SAMPLER
from grpo_mm.outside import reason, shown
from grpo_mm.rollout.rows import plan_rows, seen_by
from grpo_mm.rollout.scoring import Scorer, Scoring, applies_to
from grpo_mm.run.mark import replace_text
from grpo_mm.types import Prompt, is_relative

log = logging.getLogger(__name__)

ROWS = 2
EXAMINED = 3
"""Prompts, and answers of each, of which sampler and trainer are compared."""
GIB = 2**30


def check_scoring(
    scoring: Scoring, prompts: Sequence[Prompt], stand_ins: Any, *, place: str, must_apply: Sequence[Prompt] = ()
) -> None:
    """Every reward loads what it needs and scores two outputs that are made up, of the first prompts that it applies to.

    Several sorts of outputs are tried in turn until it can score one: a run's rewards may raise on what they cannot read, that is
    a failed row.

    Args:
        stand_ins: prompts -> a list of outputs of these prompts, each as the policy would make them (`policy.stand_ins`).
        place: "rewards" or "watch", for messages.
        must_apply: the prompts of training, of which some reward with a weight must apply to one.

    Raises:
        ConfigError: a reward that cannot score, with the reason; no reward for any prompt of training.
    """
    for name, scorer in scoring.scorers.items():
        rows = first_that_apply(scorer, prompts)
        if not rows:
            log.warning("%s.%s applies to none of the %d prompts: it is never asked", place, name, len(prompts))
            continue
        rows = rows[:1] * ROWS if is_relative(scorer.use) or len(rows) == 1 else rows
        errors: list[str | None] = []
        for items in stand_ins(rows):
            errors.append(scoring.rehearse(name, items, rows))
            if errors[-1] is None:
                break
        if all(errors):
            raise ConfigError(
                f"{place}.{name} cannot score what it will be asked, tried with {ROWS} made-up outputs before anything is sampled: "
                f"{errors[0]}\nOnly real outputs will do? preflight=false skips this."
            )
    used = {name: scorer for name, scorer in scoring.scorers.items() if scorer.weight}
    if must_apply and used and not any(first_that_apply(scorer, must_apply, most=1) for scorer in used.values()):
        raise ConfigError(
            f"none of the rewards ({', '.join(used)}) applies to any of the {len(must_apply)} prompts of training, which hold "
            f"{_keys_of(must_apply)} for rewards. `grpo-mm methods` lists what each reward reads."
        )


def check_media(prompts: Sequence[Prompt], probe: Callable[[Prompt], None]) -> None:
    """The media of the first two prompts of each source are opened; one that cannot be is a failed row later.

    Raises:
        ConfigError: both cannot be opened, with the reason of the first.
    """
    by_source: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        if prompt.media and len(rows := by_source.setdefault(prompt.source, [])) < ROWS:
            rows.append(prompt)
    for source, rows in by_source.items():
        errors: list[str] = []
        for prompt in rows:
            try:
                probe(prompt)
            except UserError:
                raise
            except (ValueError, OSError) as error:
                errors.append(f"{shown(prompt.id)}: {reason(error)}")
        if len(errors) == len(rows):
            raise ConfigError(
                f"none of the first {len(rows)} prompts with media of {source!r} can be opened: {errors[0]}."
            )


def check_sampler(engine: Any, policy: Any, prompts: Sequence[Prompt], *, group_size: int, seed: int) -> list[Finding]:
    """Where another program draws what is trained on (an engine's `examined_first`): does it see and compute the same?

    Args:
        prompts: of training; a few of them are drawn from and scored. The weights are changed on the way, and put back.
    """
    if not getattr(engine, "examined_first", False):
        return []
    some = [prompts[i] for i in torch.linspace(0, len(prompts) - 1, min(EXAMINED, len(prompts))).long().tolist()]
    group = group_size if getattr(engine, "whole_groups", False) else min(EXAMINED, group_size)
    rows, _ = plan_rows(seen_by(policy, some), group_size=group, parts=1)
    return list(engine.examine(policy, rows, seed=seed))


def write_findings(folder: Path, findings: Sequence[Finding]) -> None:
    """For the report."""
    rows = [
        asdict(f) | {"figure": f.figure if math.isfinite(f.figure) else None, "differs": f.differs} for f in findings
    ]
    replace_text(folder / SAMPLER, json.dumps({"findings": rows}, indent=1))


def refuse_what_differs(findings: Sequence[Finding]) -> None:
    """Raises ConfigError with the table and the usual cause of the first difference."""
    first = first_difference(findings)
    if first is not None:
        raise ConfigError(
            f"the engine that draws and the trainer do not see or compute the same, first in: {first.name}. Usual cause: {first.cause}.\n"
            f"{as_table(findings)}\n`grpo-mm doctor` shows the same table; engine.generator.kind=hf draws with the trainer's own network."
        )


def first_that_apply(scorer: Scorer, prompts: Sequence[Prompt], *, most: int = ROWS) -> list[Prompt]:
    found: list[Prompt] = []
    for prompt in prompts:
        if applies_to(scorer, prompt):
            found.append(prompt)
            if len(found) == most:
                break
    return found


def _keys_of(prompts: Sequence[Prompt]) -> str:
    keys = dict.fromkeys(key for p in prompts[:100] if isinstance(p.target, Mapping) for key in p.target)
    return ", ".join(shown(key, 40) for key in list(keys)[:20]) or "nothing"


def check_disk(folder: Path, *, checkpoint_bytes: int, product_bytes: int, kept: int) -> None:
    """Raises ConfigError where not even a checkpoint and the product fit; warns where those that are kept do not."""
    home = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(home).free
    least, most = checkpoint_bytes + product_bytes, checkpoint_bytes * (kept + 1) + product_bytes
    sizes = (
        f"a checkpoint takes {_gib(checkpoint_bytes)}, the product {_gib(product_bytes)}; {home} has {_gib(free)} free"
    )
    if free < least:
        raise ConfigError(f"there is no space for what the run writes: {sizes}. Set runs_dir to another disk.")
    if free < most:
        log.warning("there may be too little space: %s, and up to %d checkpoints are kept", sizes, kept)


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 100 else f"{math.ceil(size / 2**20)} MiB"
