"""What a step costs where rewards wait and videos are decoded, without and with overlap; writes docs/overlap.md.

python docs/scripts/overlap.py
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
from pages import DOCS, QUICKSTART

import grpo_mm
from grpo_mm.looking import metrics

STEPS, WARM_UP, CLIPS, SECONDS, NAP = 7, 2, 24, 12, 0.05
PROMPTS, ANSWERS, WORKERS = 8, 4, 8
PAGE = DOCS / "overlap.md"
POOL = {"isolate": True, "workers": WORKERS}
VARIANTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one after the other": (0, {}),
    "prompts read ahead": (1, {}),
    f"{WORKERS} reward processes": (0, POOL),
    "both": (1, POOL),
}


def slow(texts: list[str]) -> list[float]:
    """Waits for each text as for a judge, and says how long it is."""
    time.sleep(NAP * len(texts))
    return [len(text) / 100 for text in texts]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_clips(folder)
        found = {name: measured(folder, name, *settings) for name, settings in VARIANTS.items()}
    PAGE.write_text("\n".join(page(found)) + "\n")
    print(PAGE.read_text())


def measured(folder: Path, name: str, workers: int, reward: Mapping[str, Any]) -> dict[str, float]:
    """Medians over the steps after the first ones, and what was computed."""
    run = name.replace(" ", "_")
    reads = {"kind": "table", "path": str(folder / "rows.csv"), "question": "query", "span": ["start", "end"]}
    grpo_mm.train({
        "inherit": str(QUICKSTART / "video.yaml"), "name": run, "runs_dir": str(folder / "runs"), "steps": STEPS,
        "prompts_per_step": PROMPTS, "group_size": ANSWERS, "samples_every": 0,
        "policy": {"encode_workers": workers, "media": {"memory_mib": 0}},
        "prompts": {"clips": {"use": {**reads, "template": "{query}<video>Answer directly."}}}, "eval_prompts": {"clips": {"use": {"count": 4}}},
        "rewards": {"iou": {"use": {"kind": "function", "path": "overlap:slow"}, **reward}},
    })  # fmt: skip
    rows = [row for row in metrics.read(folder / "runs" / run / "metrics.jsonl") if "time/step_seconds" in row]
    keys = ("step", "encode", "beside/encode_ahead", "reward", "rollout_network", "train_network")
    found = {key: statistics.median(row.get(f"time/{key}_seconds", 0.0) for row in rows[WARM_UP:]) for key in keys}
    return found | {"computed": hash(tuple((row["loss/total"], row["optim/grad_norm"]) for row in rows))}


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
    first = next(iter(found.values()))
    same = "the same to the last bit" if len({row["computed"] for row in found.values()}) == 1 else "NOT the same"
    lines = [
        "# Work beside work",
        "",
        f"Medians of a step's seconds over {STEPS - WARM_UP} steps of the video quickstart's model on {CLIPS} videos of 640 × 360 pixels and "
        f"{SECONDS} s (no frames kept in memory), {PROMPTS} prompts × {ANSWERS} answers, a reward that waits {1000 * NAP:.0f} ms for each answer; "
        f"`threads: 1`, {os.cpu_count()} processors, Python {sys.version.split()[0]}. Made by `python docs/scripts/overlap.py`.",
        "",
        "| | a step | of the first | waiting for prompts | reading beside | waiting for rewards | sampling | training |",
        "| --- " * 8 + "|",
    ]
    for name, row in found.items():
        figures = " | ".join(
            f"{row[key]:.2f}" for key in ("encode", "beside/encode_ahead", "reward", "rollout_network", "train_network")
        )
        lines.append(f"| {name} | {row['step']:.2f} | {row['step'] / first['step']:.2f} | {figures} |")
    return [
        *lines,
        "",
        f"Losses and gradient norms of all four runs are {same}.",
        "",
        "`policy.encode_workers` (default 1) reads the prompts of the next step while this one is scored and trained; the contexts of one "
        "step more are in main memory. `rewards.NAME.isolate` with `workers` shares the outputs of a reward among processes, for one that looks "
        "at each output alone; several isolated rewards, and those of our own process, score at the same time. What is only watched "
        "(`watch`) is asked about at most 128 outputs of a rank in a step.",
        "",
        "A step ahead, and rewards that are asked while answers are drawn: [ahead.md](ahead.md).",
    ]


if __name__ == "__main__":
    main()
