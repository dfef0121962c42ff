"""Writes docs/video.md: the video quickstart for three seeds, with its controls.

    .venv/bin/python docs/scripts/video.py

Controls: rewards permuted within the batch; the trained model on swapped videos and on swapped questions; the best answer that
looks at nothing. A run that is finished is not run again, one that was interrupted goes on.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path

from pages import QUICKSTART, SEEDS, before_and_after, by_seed, mean, write

from grpo_mm.config.run_config import read as read_config
from grpo_mm.entry import train
from grpo_mm.looking.metrics import read
from grpo_mm.rewards.video.temporal_iou import hull_iou
from grpo_mm.tools.inference import evaluate

CONFIG = QUICKSTART / "video.yaml"
CONTROL = "advantage=[{kind: shuffle}, {kind: weighted_sum}, {kind: group_norm, ddof: 1}]"
ROWS = {
    "iou/iou": "mIoU (optimised)",
    "iou/r1_at_0.3": "R1@0.3",
    "iou/r1_at_0.5": "R1@0.5",
    "iou/r1_at_0.7": "R1@0.7",
    "format/score": "form of the answer (not optimised)",
}


def main() -> None:
    plain = [run(seed, f"video_seed{seed}") for seed in SEEDS]
    control = [run(seed, f"video_seed{seed}_shuffled", CONTROL) for seed in SEEDS]
    source = read_config(CONFIG).eval_prompts["clips"].use
    prompts = source.load()
    lines = [
        "# The video quickstart, measured",
        "",
        f"`python docs/scripts/video.py`: configs/quickstart/video.yaml with seeds {', '.join(map(str, SEEDS))}; {len(prompts)} held-out questions "
        "about pairs of objects that training never saw, greedy answers. Mean ± standard error over seeds. The control trains on the "
        "same rewards permuted within the batch.",
        "",
    ]
    lines += before_and_after(ROWS, plain, control, of)
    first, last = zip(*(diversity(f"video_seed{seed}") for seed in SEEDS), strict=True)
    lines.append(f"| answers of a question that differ, rollouts (not optimised) | {mean(first)} | {mean(last)} | | |")
    lines += by_seed("score", plain, control, of)
    lines += ["", "Does it look, and does it read? mIoU after training, of", "", "| | mIoU |", "| --- | --- |"]
    lines.append(f"| the held-out questions | {mean([s['eval_after']['iou/iou'] for s in plain])} |")
    for what, words in (
        ("media", "the same questions about the next question's video"),
        ("text", "the next question about the video"),
    ):
        lines.append(f"| {words} | {mean([swapped(seed, what) for seed in SEEDS])} |")
    span, floor = best_constant([p.target["spans"][0] for p in prompts])
    lines += [f'| the best constant answer, "{span[0]} to {span[1]}" | {floor:.3f} |', ""]
    write("video", lines)
    print("\n".join(lines))


def of(found: dict[str, float], key: str) -> float:
    return found[key]


def run(seed: int, name: str, *overrides: str) -> dict:
    return train(CONFIG, [f"name={name}", f"seed={seed}", *overrides])


def swapped(seed: int, what: str) -> float:
    use = f"{{kind: swapped, what: {what}, of: {{kind: clip_world, split: report, count: 256}}}}"
    return evaluate(Path(f"runs/video_seed{seed}"), overrides=[f"eval_prompts.clips.use={use}"])["eval/iou/iou"]


def best_constant(spans: list[list[float]]) -> tuple[tuple[float, float], float]:
    """The span in half seconds that does best on all questions, and its mIoU."""
    ends = [half / 2 for half in range(2 * math.ceil(max(end for _, end in spans)) + 1)]
    tried = {
        (s, e): statistics.mean(hull_iou((s, e), tuple(span)) for span in spans) for s in ends for e in ends if e > s
    }
    return max(tried.items(), key=lambda item: item[1])


def diversity(name: str) -> tuple[float, float]:
    """Of the rollouts: means of the first and of the last five steps."""
    rows = [row["diversity/mean"] for row in read(Path("runs") / name / "metrics.jsonl") if "diversity/mean" in row]
    return statistics.mean(rows[:5]), statistics.mean(rows[-5:])


if __name__ == "__main__":
    main()
