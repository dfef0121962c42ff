"""Writes docs/clips.md: the quickstart of clips for three seeds, with the shuffled-reward control.

    .venv/bin/python docs/scripts/clips.py

A run that is finished is not run again, one that was interrupted goes on. What stands below the figures is clips_notes.md.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from pages import QUICKSTART, SEEDS, before_and_after, by_seed, notes, write

from grpo_mm.entry import train
from grpo_mm.looking.metrics import read
from grpo_mm.pipelines import zoo

CONFIG = QUICKSTART / "clips.yaml"
CONTROL = "advantage=[{kind: shuffle}, {kind: weighted_sum}, {kind: group_norm}, {kind: clamp}]"
ROWS = {
    "score": "held-out reward (optimised)",
    "moving/all_correct": "all correct",
    "moving/color": "colours right, share of frames",
    "moving/shape": "shapes right, the same",
    "moving/motion": "motion the right way",
    "moving/extras": "extra things a frame",
    "quality/sharpness": "sharpness of frames (not optimised)",
    "quality/contrast": "contrast of frames (not optimised)",
    "diversity": "diversity within a prompt (not optimised)",
}


def main() -> None:
    plain = [run(seed, f"quickstart_clips_seed{seed}") for seed in SEEDS]
    control = [run(seed, f"quickstart_clips_seed{seed}_shuffled", CONTROL) for seed in SEEDS]
    lines = [
        "# The quickstart of clips, measured",
        "",
        f"`python docs/scripts/clips.py`: {CONFIG.name} with seeds {', '.join(map(str, SEEDS))}; 24 held-out prompts (combinations of "
        "colour, shape and direction that training never asks for) × 12 clips of 9 frames, 20 ODE steps from fixed noise. Mean ± standard error over seeds. "
        "The control trains on the same rewards permuted within the batch.",
        "",
    ]
    lines += before_and_after(ROWS, plain, control, of) + by_seed("score", plain, control, of)
    spread = [within_a_group(f"quickstart_clips_seed{seed}") for seed in SEEDS]
    first, last = (statistics.mean(ends) for ends in zip(*spread))
    lines += [
        "",
        f"Distance between middle frames of the rollouts of a prompt (not optimised), first → last step, mean of the seeds: {first:.3f} → {last:.3f}.",
    ]
    write("clips", [*lines, "", *supervised(), "", *notes("clips")])


def run(seed: int, name: str, *overrides: str) -> dict:
    return train(CONFIG, [f"name={name}", f"seed={seed}", *overrides])


def of(found: dict[str, float], key: str) -> float:
    return found[key]


def within_a_group(name: str) -> tuple[float, float]:
    rows = [row["diversity/mean"] for row in read(Path(f"runs/{name}/metrics.jsonl")) if "diversity/mean" in row]
    return rows[0], rows[-1]


def supervised() -> list[str]:
    """The curve of the supervised training that the shipped model comes from, and its size."""
    folder = zoo.path("text_to_video")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    rows = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    words = ", ".join(f"{row['score']:.2f} after {row['step']}" for row in rows)
    return [
        f"`zoo:text_to_video` has {size / 2**20:.1f} MiB. Its supervised training, reward on 96 monitored prompts by step: {words}."
    ]


if __name__ == "__main__":
    main()
