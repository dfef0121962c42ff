"""What a step costs where rewards wait and videos are decoded, without and with overlap; writes docs/overlap.md.

python docs/scripts/overlap.py
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import av
import numpy as np
from pages import DOCS, QUICKSTART

import grpo_mm
from grpo_mm.config.typed_yaml import merge
from grpo_mm.looking import metrics

STEPS, WARM_UP, CLIPS, SECONDS, NAP = 8, 2, 24, 12, 0.05
PROMPTS, ANSWERS, WORKERS = 8, 4, 8
PAGE = DOCS / "overlap.md"
POOL = {"isolate": True, "workers": WORKERS}
VARIANTS: dict[str, dict[str, Any]] = {
    "one after the other": {"policy": {"encode_workers": 0}},
    "prompts read ahead": {},
    f"{WORKERS} reward processes": {"policy": {"encode_workers": 0}, "rewards": {"iou": POOL}},
    "both": {"rewards": {"iou": POOL}},
    "scored as answers end": {"rewards": {"iou": {"early": True}}},
    "`rollout_ahead: 1`": {"rollout_ahead": 1},
    f"`rollout_ahead: 1`, {WORKERS} reward processes": {"rollout_ahead": 1, "rewards": {"iou": POOL}},
}
ON_POLICY = 5
"""So many of these compute the same numbers; the others draw with weights that are a step old."""


def slow(texts: list[str]) -> list[float]:
    """Waits for each text as for a judge, and says how long it is."""
    time.sleep(NAP * len(texts))
    return [len(text) / 100 for text in texts]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_clips(folder)
        found = {name: measured(folder, f"run_{k}", settings) for k, (name, settings) in enumerate(VARIANTS.items())}
    PAGE.write_text("\n".join(page(found)) + "\n")
    print(PAGE.read_text())


def measured(folder: Path, run: str, settings: Mapping[str, Any]) -> dict[str, float]:
    """Medians over the steps after the first ones, and what was computed."""
    reads = {"kind": "table", "path": str(folder / "rows.csv"), "question": "query", "span": ["start", "end"]}
    used = [time.process_time()]
    grpo_mm.train(merge({
        "inherit": str(QUICKSTART / "video.yaml"), "name": run, "runs_dir": str(folder / "runs"), "steps": STEPS,
        "prompts_per_step": PROMPTS, "group_size": ANSWERS, "samples_every": 0,
        "policy": {"media": {"memory_mib": 0}}, "checkpoints": {"every": 0},
        "prompts": {"clips": {"use": {**reads, "template": "{query}<video>Answer directly."}}}, "eval_prompts": {"clips": {"use": {"count": 4}}},
        "rewards": {"iou": {"use": {"kind": "function", "path": "overlap:slow"}}},
    }, settings), on_step=lambda *_: used.append(time.process_time()))  # fmt: skip
    rows = [row for row in metrics.read(folder / "runs" / run / "metrics.jsonl") if "time/step_seconds" in row]
    # The last step of a run that draws ahead draws nothing.
    kept = rows[WARM_UP:-1]
    found = {key: statistics.median(row.get(f"time/{key}", 0.0) for row in kept) for key in KEYS}
    found["processor"] = statistics.median(b - a for a, b in itertools.pairwise(used[WARM_UP:-1]))
    return found | {"computed": hash(tuple((row["loss/total"], row["optim/grad_norm"]) for row in rows))}


KEYS = (
    "step_seconds", "encode_seconds", "beside/encode_ahead_seconds", "reward_seconds", "wait_rows_seconds", "beside/reward_seconds",
    "rollout_network_seconds", "train_network_seconds", "idle_sampler_frac", "idle_rewards_frac", "idle_trainer_frac",
)  # fmt: skip


def write_clips(folder: Path) -> None:
    """Videos of a size that costs something to decode, and the rows that ask about them."""
    lines, noise = ["video,query,start,end"], np.random.default_rng(0)
    for k in range(CLIPS):
        with av.open(str(folder / f"{k}.mp4"), "w") as file:
            stream = file.add_stream("mpeg4", rate=24)
            stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
            still = noise.integers(0, 255, (45, 80, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            for f in range(24 * SECONDS):
                frame = av.VideoFrame.from_ndarray(np.roll(still, 4 * f, 1), format="rgb24")
                file.mux(stream.encode(frame))
            file.mux(stream.encode())
        lines.append(f"{k}.mp4,the red circle,{k % 5},{k % 5 + 3}")
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")


def page(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    first, computed = next(iter(found.values())), [row["computed"] for row in found.values()]
    same = [len(set(some)) == 1 for some in (computed[:ON_POLICY], computed[ON_POLICY:])]
    words = ["the same to the last bit" if alike else "NOT the same" for alike in same]
    lines = [
        "# Work beside work",
        "",
        f"Medians of a step's seconds over {STEPS - WARM_UP - 1} steps of the video quickstart's model on {CLIPS} videos of 640 × 360 pixels and "
        f"{SECONDS} s (no frames kept in memory), {PROMPTS} prompts × {ANSWERS} answers, a reward that waits {1000 * NAP:.0f} ms for each answer; "
        f"`threads: 1`, {os.cpu_count()} processors, Python {sys.version.split()[0]}, {date.today()}. Made by `python docs/scripts/overlap.py`.",
        "",
        "| | a step | of the first | processor seconds | waiting for prompts | reading beside | waiting for rewards | scoring beside | sampling | "
        "training | idle: sampler, rewards, trainer |",
        "| --- " * 11 + "|",
    ]
    for name, row in found.items():
        waiting = row["reward_seconds"] + row["wait_rows_seconds"]
        seconds = (
            row["processor"], row["encode_seconds"], row["beside/encode_ahead_seconds"], waiting, row["beside/reward_seconds"],
            row["rollout_network_seconds"], row["train_network_seconds"],
        )  # fmt: skip
        idle = ", ".join(f"{row[f'idle_{role}_frac']:.0%}" for role in ("sampler", "rewards", "trainer"))
        figures = " | ".join(f"{value:.2f}" for value in seconds)
        step = row["step_seconds"]
        lines.append(f"| {name} | {step:.2f} | {step / first['step_seconds']:.2f} | {figures} | {idle} |")
    return [
        *lines,
        "",
        f"Losses and gradient norms of the first {ON_POLICY} runs are {words[0]}; those of the runs that draw ahead are {words[1]}, and others "
        "than of the first: their rows are a step old. Processor seconds are those of the trainer's own process.",
        "",
        "`policy.encode_workers` (default 1) reads the prompts of the next step while this one is scored and trained; the contexts of one "
        "step more are in main memory. `rewards.NAME.isolate` with `workers` shares the outputs of a reward among processes, for one that looks "
        "at each output alone; several isolated rewards, and those of our own process, score at the same time. What is only watched "
        "(`watch`) is asked about at most 128 outputs of a rank in a step.",
        "",
        "`rewards.NAME.early: true` asks a reward about the answers of a prompt as soon as they are there, while those of others are drawn; "
        "it says the same as at the end, if it looks at each answer, or those of one prompt, alone. It pays as far as sampling takes time.",
        "",
        "`rollout_ahead: 1` draws the rows of a step with the weights that the step before begins with. With the sampler of the trainer's own "
        "weights they are drawn before its update and scored beside it; with an engine that has weights of its own (`engine.draws_apart`) they are "
        "drawn beside it as well; `grpo-mm show` says which one, and why. Runs are reproducible and go on bit for bit on a CPU: a checkpoint keeps "
        "the weights that drew the rows which lie ready, and they are drawn again. `rollout/staleness` tells how many updates old rows are; "
        "{kind: truncated, of: …} weighs them by π of the step's beginning over π that drew them, and `old_logprobs: rollout` takes ratios against "
        "the latter.",
    ]


if __name__ == "__main__":
    main()
