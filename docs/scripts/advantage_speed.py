"""Writes docs/advantage_speed.md: how long the advantage of a batch of tokens takes, for every preset.

    .venv/bin/python docs/scripts/advantage_speed.py              # all, and the page
    .venv/bin/python docs/scripts/advantage_speed.py tempo,grpo   # only prints these

Timed is everything between the gathered table and the [N, A] advantages: the stages and `credit`. Rewards are random; the
rollout declares the columns that the stages of a preset read, and no others.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpo_mm.advantages import credit
from grpo_mm.config import methods
from grpo_mm.config.typed_yaml import component
from grpo_mm.registry import Role
from grpo_mm.rollout.table import Table
from grpo_mm.types import WHOLE_ROW, Prompt, Rollout

PROMPTS, GROUP, ACTIONS = 512, 8, 1024
ROWS = PROMPTS * GROUP
REPEATS, THREADS, GOAL_MS = 5, 2, 50.0
SCORES_UNITS = {"rank_grpo": "list items", "gigpo": "steps"}
"""Methods whose rewards are of parts of a row; the others score it whole."""
PER_ACTION = {"tempo": "tokens", "graph_grpo": "choices", "s_grpo": "tokens"}
"""Methods whose stages say something of every action, and so read or write a table of [M, A]; the others are pointwise."""
ODD_GROUP = {"mc_grpo": 9}
"""mc_grpo compares with the row in the middle: 455 groups, 4095 rows."""
REWARDS = {
    "faithful_grpo": ("accuracy", "format", "consistency", "semantic_grounding", "spatial_grounding"),
    "crpo": ("accuracy", "faithfulness", "comprehensiveness"),
    "gdpo": ("accuracy", "length"),
    "bnpo": ("accuracy", "format"),
    "p_grpo": ("outcome", "process"),
    "cobalt": ("pass_rate", "previous_best", "format"),
}
"""Names of rewards; the others have one."""


def declared(rng: torch.Generator) -> dict[str, Tensor]:
    """Every column that a stage may ask of a rollout, [N] or [N, A]."""

    def maybe(probability: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=rng) < probability

    sample_N = torch.arange(ROWS) % GROUP
    length_N = torch.randint(1, ACTIONS + 1, (ROWS,), generator=rng)
    logprob_N = -torch.rand(ROWS, generator=rng, dtype=torch.float64)
    token_NA = torch.randint(50_000, (ROWS, ACTIONS), generator=rng)
    # The samples of a prompt share a few first tokens, fewer the more samples there are.
    shared_N = torch.randint(0, 64, (ROWS,), generator=rng)
    first_NA = token_NA[torch.arange(ROWS) // GROUP * GROUP]
    token_NA = torch.where(torch.arange(ACTIONS) < shared_N[:, None], first_NA, token_NA)
    return {
        "length": length_N, "truncated": maybe(0.5, ROWS), "incorrect": maybe(0.5, ROWS), "repetitive": maybe(0.1, ROWS),
        "stratum": length_N // 256, "prior": torch.rand(ROWS, generator=rng), "logprob_mean": logprob_N,
        "logprob_sum": logprob_N * length_N, "ref_log_ratio": logprob_N, "agent": (sample_N > 1).long(), "main": sample_N % 2,
        "valid": maybe(0.9, ROWS), "copies": torch.ones(ROWS, dtype=torch.int64), "time": sample_N // 4, "order": sample_N,
        "shared_prefix": (torch.arange(ACTIONS) < shared_N[:, None]) & (sample_N > 0)[:, None],
        "chosen": maybe(0.3, ROWS, ACTIONS), "token": token_NA.masked_fill(torch.arange(ACTIONS) >= length_N[:, None], -1),
    }  # fmt: skip


def batch(name: str, stages: list[Any], columns: dict[str, Tensor], rng: torch.Generator) -> tuple[Table, Rollout]:
    """A table of whole rows with random rewards, and the rollout that it is of."""
    group = ODD_GROUP.get(name, GROUP)
    rows = ROWS // group * group
    read = frozenset({"copies"}).union(*(getattr(stage, "columns", frozenset()) for stage in stages))
    columns = {column: value[:rows] for column, value in columns.items() if column in read}
    row_N = torch.arange(rows)
    prompt_N, sample_N = row_N // group, row_N % group
    rollout = Rollout(
        prompts=tuple(Prompt(str(i), "") for i in range(rows // group)),
        prompt_N=prompt_N,
        sample_N=sample_N,
        behaviour_NA=torch.zeros(rows, ACTIONS),
        mask_NA=torch.ones(rows, ACTIONS, dtype=torch.bool),
        record=None,
        columns=columns,
    )
    rewards = REWARDS.get(name, ("score",))
    keys = {
        "prompt": prompt_N, "sample": sample_N, "action": torch.full((rows,), WHOLE_ROW), "tag": torch.zeros_like(row_N),
        "local_row": row_N, "prompt_id": prompt_N, "rank": torch.zeros_like(row_N),
        "failed": torch.zeros(rows, dtype=torch.bool),
    }  # fmt: skip
    values = {r: torch.rand(rows, generator=rng, dtype=torch.float64).round(decimals=1) for r in rewards}
    return Table(values, keys | columns, dict.fromkeys(rewards, 1.0)), rollout


def milliseconds(method: methods.Method, columns: dict[str, Tensor]) -> tuple[float, float]:
    """By the clock in THREADS threads, and of processor time in one, which other work on the machine hardly moves."""
    stages = [component(Role("advantage"), part, path="advantage") for part in methods.preset(method.key)["advantage"]]
    table, rollout = batch(method.name, stages, columns, torch.Generator().manual_seed(1))

    def median(threads: int, clock: Callable[[], float]) -> float:
        torch.set_num_threads(threads)
        taken = []
        for _ in range(1 + REPEATS):
            begin = clock()
            credit(table, stages, rollout=rollout, rank=0)
            taken.append(1e3 * (clock() - begin))
        return statistics.median(taken[1:])

    return median(THREADS, time.perf_counter), median(1, time.process_time)


def main(chosen: list[str]) -> None:
    setting = (
        f"{ROWS} rows × {ACTIONS} actions, {PROMPTS} groups of {GROUP}; {THREADS} threads, torch "
        f"{torch.__version__}, {platform.machine()}; median of {REPEATS} after a warm-up; "
        f"load of the machine before: {os.getloadavg()[0]:.1f}"
    )
    print(setting)
    lines, columns = [], declared(torch.Generator().manual_seed(0))
    for method in methods.METHODS:
        if method.name in SCORES_UNITS or (chosen and method.name not in chosen):
            continue
        wall, cpu = milliseconds(method, columns)
        kind = PER_ACTION.get(method.name, "rows")
        lines.append(f"| {method.key} | {kind} | {wall:.0f} | {cpu:.0f} | {'' if cpu < GOAL_MS else 'yes'} |")
        print(f"{method.key:36}{kind:10}{wall:8.1f} ms{cpu:8.1f} ms cpu", flush=True)
    if chosen:
        return
    left_out = "; ".join(f"{name} ({what})" for name, what in SCORES_UNITS.items())
    page = f"""# How long an advantage takes

{setting}. `docs/scripts/advantage_speed.py` writes this page.

Timed: the stages of a preset and `credit`, from the gathered table to [N, A] advantages. The goal is {GOAL_MS:.0f} ms for what looks
at rows only. By the clock, times count on an idle machine only; processor time does not mind other work. Not here, because they score parts of a row: {left_out}.

| preset | works on | ms, {THREADS} threads | processor ms, 1 thread | the latter above {GOAL_MS:.0f} |
|---|---|---:|---:|---|
"""
    (Path(__file__).parents[1] / "advantage_speed.md").write_text(page + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1].split(",") if len(sys.argv) > 1 else [])
