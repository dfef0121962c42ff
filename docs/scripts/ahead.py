"""What a step costs where rewards and media wait for somebody else, in sequence and overlapped; writes docs/ahead.md.

python docs/scripts/ahead.py
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

from pages import DOCS, QUICKSTART

import grpo_mm
from grpo_mm.config.typed_yaml import merge
from grpo_mm.looking import metrics
from grpo_mm.pipelines.vlm.prompting.ahead import EncodedAhead
from grpo_mm.processes.clock import phase
from grpo_mm.training import learner
from grpo_mm.weights.update import accumulate

STEPS, WARM_UP, PROMPTS, ANSWERS = 6, 1, 4, 4
MEDIUM, ANSWER, UPDATE = 1.0, 0.25, 3.0
"""Seconds that a video waits for its disk, a reward for its judge, and the trainer for its device."""
PAGE = DOCS / "ahead.md"
IN_TURN = {"policy": {"encode_workers": 0}}
EARLY = {"rewards": {"iou": {"early": True}}}
VARIANTS: dict[str, Mapping[str, Any]] = {
    "in sequence": IN_TURN,
    "media read ahead (the default)": {},
    "and scored as answers end (`early`)": EARLY,
    "`rollout_ahead: 1`, media in sequence": IN_TURN | {"rollout_ahead": 1},
    "`rollout_ahead: 1`, media read ahead": {"rollout_ahead": 1},
    "and scored as answers end": EARLY | {"rollout_ahead": 1},
}
ON_POLICY = 3
"""So many of these draw each step with the present weights."""
KEYS = (
    "step_seconds", "encode_seconds", "beside/encode_ahead_seconds", "reward_seconds", "wait_rows_seconds", "beside/reward_seconds",
    "rollout_network_seconds", "train_network_seconds", "idle_sampler_frac", "idle_rewards_frac", "idle_trainer_frac", "queue_unscored_rows",
)  # fmt: skip


def judged(texts: list[str]) -> list[float]:
    """Waits for each text as for a judge, and says how long it is."""
    time.sleep(ANSWER * len(texts))
    return [len(text) / 100 for text in texts]


def main() -> None:
    media = mock.patch.object(EncodedAhead, "__init__", slow(EncodedAhead.__init__))
    with tempfile.TemporaryDirectory() as name, media, mock.patch.object(learner, "accumulate", heavy):
        found = {what: measured(Path(name), f"run_{k}", own) for k, (what, own) in enumerate(VARIANTS.items())}
    PAGE.write_text("\n".join(page(found)) + "\n")
    print(PAGE.read_text())


def heavy(*arguments: Any) -> Any:
    """An update that takes a device a while."""
    with phase("train_network"):
        time.sleep(UPDATE)
    return accumulate(*arguments)


def slow(made: Callable[..., None]) -> Callable[..., None]:
    """Media that come from far away: each prompt waits before it is encoded."""

    def init(self: EncodedAhead, encode: Any, *, workers: int) -> None:
        def late(prompt: Any, **how: Any) -> Any:
            time.sleep(MEDIUM)
            return encode(prompt, **how)

        made(self, late, workers=workers)

    return init


def measured(folder: Path, run: str, settings: Mapping[str, Any]) -> dict[str, float]:
    """Medians over the steps between the first ones and the last, which has nothing left to draw ahead; and what was computed."""
    used = [time.process_time()]
    base = {
        "inherit": str(QUICKSTART / "video.yaml"), "name": run, "runs_dir": str(folder / "runs"), "steps": STEPS,
        "prompts_per_step": PROMPTS, "group_size": ANSWERS, "samples_every": 0, "checkpoints": {"every": 0},
        "prompts": {"clips": {"use": {"count": 64}}}, "eval_prompts": {"clips": {"use": {"count": 2}}},
        "rewards": {"iou": {"use": {"kind": "function", "path": "ahead:judged"}}},
    }  # fmt: skip
    grpo_mm.train(merge(base, settings), on_step=lambda *_: used.append(time.process_time()))
    rows = [row for row in metrics.read(folder / "runs" / run / "metrics.jsonl") if "time/step_seconds" in row]
    kept = rows[WARM_UP:-1]
    found = {key: statistics.median(row.get(f"time/{key}", 0.0) for row in kept) for key in KEYS}
    found["processor"] = statistics.median(b - a for a, b in itertools.pairwise(used[WARM_UP:-1]))
    found["computed"] = hash(tuple((row["loss/total"], row["optim/grad_norm"]) for row in rows))
    return found | {"staleness": rows[-1].get("rollout/staleness", 0.0)}


def page(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    first = next(iter(found.values()))
    computed = [row["computed"] for row in found.values()]
    same = [
        "the same to the last bit" if len(set(some)) == 1 else "NOT the same"
        for some in (computed[:ON_POLICY], computed[ON_POLICY:])
    ]
    lines = [
        "# A step ahead",
        "",
        f"Medians of a step's seconds over {STEPS - WARM_UP - 1} steps of the video quickstart's model, {PROMPTS} prompts × {ANSWERS} answers. Each video waits "
        f"{MEDIUM:g} s for its disk, the reward {ANSWER:g} s for each answer, as for a judge that takes one at a time, and the update {UPDATE:g} s for a "
        f"device: {MEDIUM * PROMPTS:g} s of media, {ANSWER * PROMPTS * ANSWERS:g} s of rewards and {UPDATE:g} s of training a step, and what a CPU does beside. "
        f"`threads: 1`, {os.cpu_count()} processors that other work shared (load {os.getloadavg()[0]:.0f}; "
        f"processor seconds are firmer than walls), Python {sys.version.split()[0]}, {date.today()}. Made by `python docs/scripts/ahead.py`.",
        "",
        "| | a step | of the first | processor seconds | waiting for media | reading beside | waiting for rewards | scoring beside | sampling | training | "
        "idle: sampler, rewards, trainer | updates old |",
        "| --- " * 12 + "|",
    ]
    for name, row in found.items():
        seconds = (
            row["processor"], row["encode_seconds"], row["beside/encode_ahead_seconds"], row["reward_seconds"] + row["wait_rows_seconds"],
            row["beside/reward_seconds"], row["rollout_network_seconds"], row["train_network_seconds"],
        )  # fmt: skip
        idle = ", ".join(f"{row[f'idle_{role}_frac']:.0%}" for role in ("sampler", "rewards", "trainer"))
        figures = " | ".join(f"{value:.2f}" for value in seconds)
        step = row["step_seconds"]
        lines.append(
            f"| {name} | {step:.2f} | {step / first['step_seconds']:.2f} | {figures} | {idle} | {row['staleness']:g} |"
        )
    return [
        *lines,
        "",
        f"Losses and gradient norms of the runs that do not draw ahead are {same[0]}, those of the runs that do are {same[1]}; the two are not alike, since rows "
        "are a step old in the latter. Processor seconds are those of the process. In the last row the thread that waits for the early answers counts as scoring too: 8 s for 4.",
        "",
        "`rollout_ahead: 1`: the rows of step k + 1 are drawn with the weights that step k begins with. Where, `grpo-mm show` and the log say:",
        "",
        "- with an engine that has weights of its own (`draws_apart`, docs/engines.md) they are drawn and scored in a thread beside the update;",
        "- with the sampler of the trainer's own weights they are drawn before the update (a collector that may ask it again is finished there) and scored in "
        "a thread beside it, unless a reward is a network on the trainer's device or takes turns there (`offload_rewards`): then they are scored before it too;",
        "- in all cases with the same numbers, on one process or several, with cut weights too. Processes that hold rows between them (`distributed.sequence`) "
        "draw and score before the update.",
        "",
        "How old rows are is logged (`rollout/staleness`, in updates) and a column of the table (`staleness`). What corrects it: `{kind: truncated, of: …}` with "
        "`old_logprobs: auto` or `recompute` weighs rows by π of the step's beginning over π that drew them, at most `cap`; `old_logprobs: rollout` takes ratios "
        "against π that drew them; `recompute` alone takes them against the step's beginning and does not weigh. `auto` with one update and no `truncated` is "
        "refused: its ratios would be 1.",
        "",
        "A run that goes on is the same bit for bit on a CPU. A checkpoint does not hold the rows that lie ready (media and latents may be gigabytes) but what they "
        "were drawn with: a copy of the weights in main memory (of an adapter, if one is trained; `show` counts it), copies of others that the engine reads, the "
        "state of collectors. They are drawn again, and rewards asked again. Where a watch rule puts other weights in place, the next step is drawn with these.",
        "",
        "`rewards.NAME.early: true` asks a reward about the answers of a prompt as soon as they are there, while those of others are drawn. It says the same as at "
        "the end if it looks at each answer, or at those of one prompt, alone. It pays as far as sampling takes time: above, answers end nearly together.",
    ]


if __name__ == "__main__":
    main()
