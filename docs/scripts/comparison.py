"""Writes docs/comparison.md: the methods side by side on the tiny model, from the same start and at equal network calls.

    .venv/bin/python docs/scripts/comparison.py            # three seeds of every method; finished runs are not run again
    .venv/bin/python docs/scripts/comparison.py mix,nft    # only makes these runs, so that several processes can share the work
    .venv/bin/python docs/scripts/comparison.py --sweep    # learning rates, one other seed, other prompts: how the settings were found

A network call is one latent through the network once: rollout, training, old and reference policies alike. Every run
stops at the first step that reaches the budget.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pages import QUICKSTART, SEEDS, mean, notes, rounded, write

from grpo_mm.config.run_config import read as read_config
from grpo_mm.entry import train
from grpo_mm.looking.metrics import read

BUDGET = 20_000
METHODS = {
    "flow_grpo": "Flow-GRPO",
    "flow": "Flow-GRPO-Fast",
    "mix": "MixGRPO",
    "dance": "DanceGRPO",
    "g2rpo": "G²RPO",
    "dense": "DenseGRPO",
    "pref": "Pref-GRPO",
    "tempflow": "TempFlow-GRPO",
    "branch": "BranchGRPO",
    "nft": "DiffusionNFT",
}
SWEEP_RATES = ("1e-4", "2e-4", "4e-4", "8e-4")
CONTROL = "[{kind: shuffle}, {kind: weighted_sum}, {kind: group_norm}, {kind: clamp}]"


def steps_within(method: str, overrides: list[str]) -> int:
    """Training steps that the budget pays for, as planned, at least one."""
    config = read_config(QUICKSTART / f"{method}.yaml", overrides)
    spent, steps = 0, 0
    while spent < BUDGET:
        calls = config.network_calls(steps)
        spent, steps = spent + sum(calls.values()), steps + 1
    return steps


def run(method: str, name: str, *overrides: str) -> dict[str, Any]:
    settings = ["evaluation.every=0", "samples_every=0", "checkpoints={every: 0}", "threads=1", *overrides]
    steps = steps_within(method, settings)
    summary = train(QUICKSTART / f"{method}.yaml", [f"name={name}", f"steps={steps}", *settings])
    rows = [row for row in read(Path("runs") / name / "metrics.jsonl") if "policy/logprob_gap" in row]
    return summary | {
        "calls": sum(summary["network_calls"].values()),
        "scored": summary["reward_calls"]["rewards"],
        "rows": rows,
    }


def held_out(summary: dict[str, Any], when: str, part: str) -> float:
    """A part of the shape world's score, whether it was optimised or only watched."""
    found = summary[f"eval_{when}"]
    return next(found[key] for key in (f"shape/{part}", f"absolute/{part}") if key in found)


def sweep() -> None:
    print("| method | " + " | ".join(SWEEP_RATES) + " |\n" + "| --- " * (len(SWEEP_RATES) + 1) + "|")
    for method in METHODS if len(sys.argv) < 3 else sys.argv[2].split(","):
        gains = []
        for rate in SWEEP_RATES:
            found = run(
                method, f"sweep_{method}_{rate}", f"optim.lr={rate}", "seed=100", "evaluation={seed: 7, samples_per_prompt: 1}",
                "eval_prompts.shapes.use={kind: shape_world, split: monitor, limit: 144}",
            )  # fmt: skip
            gains.append(found["eval_after"]["score"] - found["eval_before"]["score"])
        print(f"| {METHODS[method]} | " + " | ".join(f"{gain:+.3f}" for gain in gains) + " |", flush=True)


def runs_of(method: str) -> list[dict[str, Any]]:
    if method == "control":
        return [run("flow", f"methods_control_{seed}", f"seed={seed}", f"advantage={CONTROL}") for seed in SEEDS]
    return [run(method, f"methods_{method}_{seed}", f"seed={seed}") for seed in SEEDS]


def main() -> None:
    runs, control = {m: runs_of(m) for m in METHODS}, runs_of("control")
    start = runs["flow"][0]["eval_before"]
    lines = [
        "# Methods side by side",
        "",
        f"`python docs/scripts/comparison.py`: the tiny model, {BUDGET:,} network calls a run, seeds {', '.join(map(str, SEEDS))}; mean ± "
        "standard error over seeds. Held-out: 288 prompts × 2 pictures, 20 ODE steps, fixed noise. Before training: reward "
        f"{start['score']:.3f}, all correct {start['shape/all_correct']:.3f}, diversity {start['diversity']:.3f}, contrast "
        f"{start['quality/contrast']:.3f}.",
        "",
        "| method | held-out reward | all correct | diversity (not optimised) | contrast (not optimised) | steps | network calls | "
        "pictures scored | seconds |",
        "| --- " * 9 + "|",
    ]
    lines += [table_row(METHODS[m], found) for m, found in runs.items()]
    lines += [table_row("control: Fast, rewards shuffled", control), "", *notes("comparison"), ""]
    write("comparison", lines)
    print("\n".join(lines))


def table_row(name: str, found: list[dict[str, Any]]) -> str:
    cells = [
        mean([held_out(s, "after", "mean" if "shape/mean" in s["eval_after"] else "score") for s in found]),
        mean([held_out(s, "after", "all_correct") for s in found]),
        mean([s["eval_after"]["diversity"] for s in found]),
        mean([s["eval_after"]["quality/contrast"] for s in found]),
        rounded([s["steps"] for s in found]),
        rounded([s["calls"] for s in found]),
        rounded([s["scored"] for s in found]),
        rounded([s["seconds"]["train"] for s in found]),
    ]
    return f"| {name} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    if "--sweep" in sys.argv:
        sweep()
    elif len(sys.argv) > 1:
        for name in sys.argv[1].split(","):
            runs_of(name)
    else:
        main()
