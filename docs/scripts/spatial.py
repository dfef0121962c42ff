"""Writes docs/spatial.md: the spatial quickstart for three seeds with its controls, and methods at equal rollouts.

    .venv/bin/python docs/scripts/spatial.py               # all runs; finished ones are not run again
    .venv/bin/python docs/scripts/spatial.py fgrpo,care    # only makes these runs, so that several processes can share the work

Controls: rewards permuted within the batch; the trained model on blank pictures and on other scenes' pictures; the most frequent
answer of each kind of question.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

from pages import QUICKSTART, SEEDS, before_and_after, by_seed, mean, notes, rounded, write

from grpo_mm.config.run_config import read as read_config
from grpo_mm.entry import train
from grpo_mm.looking.metrics import read
from grpo_mm.tools.inference import evaluate

SUM, NORM = "{kind: weighted_sum}", "{kind: group_norm, ddof: 1}"
METHODS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "grpo": ("GRPO", "spatial.yaml", ()),
    "fgrpo": ("Faithful GRPO", "spatial_fgrpo.yaml", ()),
    "additive": (
        "scores added to the reward instead",
        "spatial_fgrpo.yaml",
        (f"advantage=[{SUM}, {NORM}]", "rewards.consistency.weight=0.33", "rewards.claims.weight=0.33", "rewards.grounding.weight=0.33"),
    ),
    "care": ("GRPO-CARE", "spatial_care.yaml", ()),
    "grit": ("GRIT, its own form", "spatial_grit.yaml", ()),
    "control": ("control: GRPO, rewards shuffled", "spatial.yaml", (f"advantage=[{{kind: shuffle}}, {SUM}, {NORM}]",)),
}  # fmt: skip


def run(method: str, seed: int) -> dict[str, Any]:
    name = f"spatial_{method}_{seed}"
    _, file, overrides = METHODS[method]
    return train(QUICKSTART / file, [f"name={name}", f"seed={seed}", "checkpoints={every: 0}", *overrides]) | {
        "rows": [row for row in read(Path("runs") / name / "metrics.jsonl") if "policy/logprob_gap" in row]
    }


def of(found: dict[str, Any], name: str) -> float:
    """Held-out mean of a score, optimised or watched."""
    return found[f"{name}/mean"] if f"{name}/mean" in found else found[f"{name}/score"]


def main() -> None:
    found = {method: [run(method, seed) for seed in SEEDS] for method in METHODS}
    plain, control = found["grpo"], found["control"]
    prompts = read_config(QUICKSTART / "spatial.yaml").eval_prompts["scenes"].use.load()
    lines = [
        "# The spatial quickstart, measured",
        "",
        f"`python docs/scripts/spatial.py`: configs/quickstart/spatial.yaml with seeds {', '.join(map(str, SEEDS))}; {len(prompts)} held-out "
        "questions about pairs of things that training never saw, greedy answers. Mean ± standard error over seeds. The control "
        "trains on the same rewards permuted within the batch.",
        "",
    ]
    rows = {
        "accuracy": "accuracy (optimised)",
        "format": "form (optimised)",
        "consistency": "the answer follows from the thought (not optimised)",
        "claims": "true claims (not optimised)",
        "grounding": "boxes, CIoU matched (not optimised)",
    }
    lines += before_and_after(rows, plain, control, of) + by_seed("accuracy", plain, control, of)
    lines += ["", "Does it look? Accuracy after training, of", "", "| | accuracy |", "| --- | --- |"]
    lines.append(f"| the held-out questions | {mean([of(s['eval_after'], 'accuracy') for s in plain])} |")
    for kind, words in (("blanked", "the same questions about blank pictures"), ("swapped", "about the next scene")):
        lines.append(f"| {words} | {mean([elsewhere(seed, kind) for seed in SEEDS])} |")
    lines.append(f"| the most frequent answer of each kind of question | {majority(prompts):.3f} |")
    lines += [
        "",
        "## Methods at equal rollouts",
        "",
        f"The same start, {read_config(QUICKSTART / 'spatial.yaml').steps} steps of 8 questions × 8 answers each. Inconsistent: answers that do not "
        "follow from their thought. GRIT answers in its own form, in which the model starts elsewhere.",
        "",
        "| method | accuracy before | accuracy | inconsistent | true claims | boxes | seconds |",
        "| --- " * 7 + "|",
    ]
    lines += [table_row(method, runs) for method, runs in found.items()]
    lines += ["", *notes("spatial"), ""]
    write("spatial", lines)
    print("\n".join(lines))


def table_row(method: str, runs: list[dict[str, Any]]) -> str:
    cells = [
        mean([of(s["eval_before"], "accuracy") for s in runs]),
        mean([of(s["eval_after"], "accuracy") for s in runs]),
    ]
    cells += [mean([1 - of(s["eval_after"], "consistency") for s in runs])]
    cells += [mean([of(s["eval_after"], name) for s in runs]) for name in ("claims", "grounding")]
    return f"| {METHODS[method][0]} | " + " | ".join([*cells, rounded([s["seconds"]["train"] for s in runs])]) + " |"


def elsewhere(seed: int, kind: str) -> float:
    held_out = "{kind: scene_world, split: report, count: 384}"
    use = f"eval_prompts.scenes.use={{kind: {kind}, of: {held_out}}}"
    return of(
        {k.removeprefix("eval/"): v for k, v in evaluate(Path(f"runs/spatial_grpo_{seed}"), overrides=[use]).items()},
        "accuracy",
    )


def majority(prompts: list[Any]) -> float:
    kinds: dict[str, Counter[str]] = {}
    for prompt in prompts:
        kinds.setdefault(prompt.target["question_type"], Counter())[prompt.target["answer"]] += 1
    return sum(max(count.values()) for count in kinds.values()) / len(prompts)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        for method in sys.argv[1].split(","):
            for seed in SEEDS:
                run(method, seed)
    else:
        main()
