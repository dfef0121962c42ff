"""Writes docs/video_methods.md: the video methods on the tiny model, from the same start and at equal rollouts.

    .venv/bin/python docs/scripts/video_methods.py             # three seeds of every method; finished runs are not run again
    .venv/bin/python docs/scripts/video_methods.py care,grpo   # only makes these runs, so that several processes can share the work

A rollout is an answer that was drawn. Injected solutions are not drawn; shuffled samples, explanations and second groups are.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

from pages import QUICKSTART, SEEDS, mean, notes, rounded, write

from grpo_mm.entry import train
from grpo_mm.looking.metrics import read

CONFIG = QUICKSTART / "video.yaml"
STEPS = 120
"""Of plain GRPO with 8 prompts × 8 answers; the others get as many steps as make the same number of answers."""
SUM, NORM = "{kind: weighted_sum}", "{kind: group_norm, ddof: 1}"
THINK = ("prompts.clips.use.style=think", "eval_prompts.clips.use.style=think", "engine.max_new_tokens=64")
METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "grpo": ("GRPO", ()),
    "mixing": ("an annotated answer in each group, mixed naively", ("engine.demonstrate=last_row",)),
    "downscaling": (
        "TempSamp-R1, reward down-scaling",
        ("engine.demonstrate=last_row", f"advantage=[{{kind: cap_demonstrations}}, {SUM}, {NORM}]"),
    ),
    "anchoring": (
        "TempSamp-R1, advantage anchoring",
        ("engine.demonstrate=last_row", f"advantage=[{SUM}, {{kind: anchored_norm, ddof: 1}}]"),
    ),
    "shaping": (
        "TempSamp-R1, non-linear shaping",
        ("engine.demonstrate=last_row", f"advantage=[{{kind: shape_reward}}, {SUM}, {NORM}]"),
    ),
    "regression": (
        "DeepVideo-R1: Reg-GRPO alone",
        ("objective=[{kind: regression, floor: 0.5}, {kind: kl, form: k3, weight: 0.04}]", "updates.passes=2"),
    ),
    "deepvideo": (
        "DeepVideo-R1: Reg-GRPO and augmentation",
        (
            "objective=[{kind: regression, floor: 0.5}, {kind: kl, form: k3, weight: 0.04}]", "updates.passes=2",
            "collector={kind: difficulty, tolerance: 0.2}",
        ),
    ),
    "time_r1": ("Time-R1: timestamp-aware IoU and format", ("rewards.iou.use={kind: temporal_iou, iou: timestamp_aware}", "rewards.format.use={kind: tag_format, template: answer}", "watch={}")),
    "timelens": ("TimeLens: no division by the std", (f"advantage=[{SUM}, {{kind: group_norm, scale: none}}]",)),
    "think": ("GRPO, thinking first", THINK),
    "care": (
        "GRPO-CARE, thinking first",
        (
            *THINK, "engine.answer_likelihood={of: ema}", "ema={decay: 0.995, every_updates: 10, warm_up: false, evaluate: false}",
            f"advantage=[{{kind: consistency_bonus, target: iou}}, {SUM}, {NORM}]",
        ),
    ),
    "control": ("control: GRPO, rewards shuffled", (f"advantage=[{{kind: shuffle}}, {SUM}, {NORM}]",)),
}  # fmt: skip


def run(method: str, seed: int) -> dict[str, Any]:
    name = f"video_{method}_{seed}"
    settings = [
        f"name={name}",
        f"seed={seed}",
        "samples_every=0",
        "checkpoints={every: 0}",
        "threads=1",
        *METHODS[method][1],
    ]
    summary = train(CONFIG, [*settings, f"steps={steps_of(method)}"])
    rows = [row for row in read(Path("runs") / name / "metrics.jsonl") if "policy/logprob_gap" in row]
    return summary | {"drawn": summary["network_calls"]["rollout_calls"], "rows": rows}


def steps_of(method: str) -> int:
    """Steps in which a method draws as many answers as GRPO does."""
    each = {"mixing": 7 / 8, "downscaling": 7 / 8, "anchoring": 7 / 8, "shaping": 7 / 8, "deepvideo": 1.53}.get(
        method, 1
    )
    return round(STEPS / each)


def main() -> None:
    found = {method: [run(method, seed) for seed in SEEDS] for method in METHODS}
    start, thinking = found["grpo"][0]["eval_before"], found["think"][0]["eval_before"]
    lines = [
        "# Video methods side by side",
        "",
        f"`python docs/scripts/video_methods.py`: the tiny model on generated clips, {8 * 8 * STEPS:,} answers drawn a run, seeds "
        f"{', '.join(map(str, SEEDS))}; mean ± standard error over seeds; 256 held-out questions, greedy. Before training: mIoU "
        f"{start['iou/iou']:.3f}, thinking first {thinking['iou/iou']:.3f}. Learning rate and clip range are the quickstart's for all.",
        "",
        "| method | mIoU | R1@0.5 | R1@0.7 | answers that differ, at the end | silent groups | answers drawn | steps | seconds |",
        "| --- " * 9 + "|",
    ]
    lines += [table_row(METHODS[method][0], runs) for method, runs in found.items()]
    lines += ["", *notes("video_methods"), ""]
    write("video_methods", lines)
    print("\n".join(lines))


def table_row(name: str, runs: list[dict[str, Any]]) -> str:
    cells = [mean([s["eval_after"][f"iou/{part}"] for s in runs]) for part in ("iou", "r1_at_0.5", "r1_at_0.7")]
    cells += [mean([statistics.mean(row["diversity/mean"] for row in s["rows"][-5:]) for s in runs])]
    cells += [mean([statistics.mean(row["advantage/zero_groups_frac"] for row in s["rows"]) for s in runs])]
    cells += [rounded([s[name] for s in runs]) for name in ("drawn", "steps")]
    cells += [rounded([s["seconds"]["train"] for s in runs])]
    return f"| {name} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        for method in sys.argv[1].split(","):
            for seed in SEEDS:
                run(method, seed)
    else:
        main()
