"""Writes docs/learning.md: what every preset learns on the toy policy of the tests. A minute or two on one core.

.venv/bin/python docs/scripts/learning.py
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

HERE = Path(__file__).parents[1]
sys.path.insert(0, str(HERE.parent / "tests/helpers"))

import torch  # noqa: E402
from toy_learning import (  # noqa: E402
    ALL_WRONG_LEAST,
    NEEDS,
    SEEDS,
    STEPS,
    Learned,
    learn,
    learn_all_wrong,
    mean_and_error,
)

from grpo_mm.config import methods  # noqa: E402

ALL_WRONG = ("grpo", "ngrpo", "spo", "v05")


def spread(values: list[float]) -> str:
    mean, error = mean_and_error(values)
    return f"{mean:.3f} ± {error:.3f}"


def row(name: str, runs: list[Learned], seconds: float, note: str) -> str:
    before, samples = statistics.mean(run.before for run in runs), statistics.mean(run.samples for run in runs)
    cells = (
        name,
        f"{before:.3f}",
        spread([r.after for r in runs]),
        f"{samples:,.0f}",
        f"{seconds / len(runs):.1f}",
        note,
    )
    return "| " + " | ".join(cells) + " |"


def timed(name: str, label: str, note: str, **settings) -> str:
    start = time.perf_counter()
    runs = [learn(name, seed=seed, **settings) for seed in SEEDS]
    return row(label, runs, time.perf_counter() - start, note)


def presets() -> list[str]:
    rows = [timed(m.key, m.key, NEEDS[m.name].why if m.name in NEEDS else "") for m in methods.METHODS]
    shuffled = [{"kind": "shuffle"}, *methods.preset("grpo_2402.03300")["advantage"]]
    return [*rows, timed("grpo", "control: grpo, rewards shuffled", "", advantage=shuffled)]


def all_wrong(name: str) -> str:
    found = [learn_all_wrong(name, seed=seed) for seed in SEEDS]
    norms = [norm for one in found for norm in one.run.grad_norms]
    unsolved = [move for one in found for move in one.unsolved]
    moved = f"{statistics.mean(unsolved):.2f}" if unsolved else "none left"
    silent = statistics.mean(one.silent for one in found)
    before, after = statistics.mean(one.run.before for one in found), spread([one.run.after for one in found])
    cells = name, f"{silent:.1f}", f"{statistics.mean(norms):.4f}", str(len(unsolved)), moved, f"{before:.3f}", after
    return "| " + " | ".join(cells) + " |"


def page() -> str:
    lines = [
        "# What every preset learns",
        "",
        f"`python docs/scripts/learning.py`: the table-of-logits policy of `tests/helpers/toy.py`, 8 prompts × 8 samples × {STEPS} steps, learning",
        f"rate 0.1, seeds {', '.join(map(str, SEEDS))}; mean ± standard error over seeds, seconds of one run. The number is the",
        "exact expected share of right tokens, whatever the preset's reward is. A preset's own group size is replaced;",
        "clips, scales, weights and updates are its own. All start from one policy. The toy tells that a preset learns, not",
        "which is better: the rewards differ, and none of the settings was tuned. Most take one update a rollout, where every",
        "ratio is 1 and clips do nothing: DAPO, CISPO, TIS and OSPO (one agent, one time) coincide. Methods whose novelty is a",
        "reward of texts (information consistency, paraphrased sets) run on the toy's reward, so they are GRPO here.",
        "",
        "| preset | before | after | samples | seconds | what its run has that others have not |",
        "| --- | --- | --- | --- | --- | --- |",
        *presets(),
        "",
        "## Groups that are all wrong",
        "",
        f"A reward of 1 from {ALL_WRONG_LEAST} right tokens of 6, else 0 (V_0.5: 1 and -1); at the start 0.4 % of the samples earn it. Silent: of",
        f"{STEPS} steps, those without any gradient. Unsolved: prompts, of 24 over the seeds, that never had a right sample; moved:",
        "the largest change of one of their logits, on average.",
        "",
        "| preset | silent steps | gradient norm | unsolved | moved | before | after |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(all_wrong(name) for name in ALL_WRONG),
        "",
        "GRPO cannot move where no sample is right. NGRPO compares with an imagined right sample and V_0.5 with a prior, so they",
        "are pushed away from what failed. SPO compares with its trackers, and then centres over the batch: it is silent until",
        "some prompts were drawn more often than others, whose trackers then expect less. On the toy the push away from failures",
        "does not pay by itself: nothing tells which of the other tokens are better.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    (HERE / "learning.md").write_text(page(), encoding="utf-8")
