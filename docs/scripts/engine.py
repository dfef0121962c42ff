"""The video quickstart for three seeds with the own sampler, with vLLM in the process and with a vLLM server: a table in docs/engines.md.

    VENV/bin/python docs/scripts/engine.py [STEPS]     # of an environment with vLLM, see `make test-engines`

Each run is a process of its own, one after another. A run that is finished is not run again, one that was interrupted goes on.
"""

from __future__ import annotations

import math
import re
import statistics
import subprocess
import sys
from typing import Any

from pages import DOCS, QUICKSTART, SEEDS, mean

from grpo_mm.looking.metrics import read
from grpo_mm.outside import parse_json

ROOT = DOCS.parent
PAGE = DOCS / "engines.md"
SIDES = {
    "own": ("the own sampler", []),
    "vllm": ("vLLM in the process", ["engine.generator.kind=vllm"]),
    "server": ("a vLLM server of the run", ["engine.generator={kind: vllm_server, start: {}}"]),
}
SCORE = "iou/iou"


def main(steps: int) -> None:
    found = {side: [run(side, seed, steps) for seed in SEEDS] for side in SIDES}
    own = [one["eval_after"][SCORE] for one in found["own"]]
    head = ["", "mIoU before", "after, by seed", "mean", "apart, in standard errors", "largest gap to the trainer"]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for side, (words, _) in SIDES.items():
        after = [one["eval_after"][SCORE] for one in found[side]]
        before = statistics.mean(one["eval_before"][SCORE] for one in found[side])
        apart = "" if side == "own" else f"{errors_apart(after, own):.1f}"
        cells = [
            words, f"{before:.3f}", ", ".join(f"{one:.3f}" for one in after), mean(after), apart, f"{gap(side, steps):.1e}"
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    table = "\n".join(["<!-- learns -->", *lines, "<!-- /learns -->"])
    PAGE.write_text(re.sub(r"<!-- learns -->.*<!-- /learns -->", lambda _: table, PAGE.read_text(), flags=re.DOTALL))
    print(table)


def run(side: str, seed: int, steps: int) -> dict[str, Any]:
    """The summary."""
    command = [
        sys.executable, "-m", "grpo_mm.cli", "train", str(QUICKSTART / "video.yaml"), f"name={name(side, seed, steps)}",
        f"seed={seed}", f"steps={steps}", "device=cpu", *SIDES[side][1],
    ]  # fmt: skip
    subprocess.run(command, check=True, cwd=ROOT)
    return parse_json((ROOT / "runs" / name(side, seed, steps) / "summary.json").read_text(encoding="utf-8"))


def name(side: str, seed: int, steps: int) -> str:
    return f"engine_{side}_seed{seed}_{steps}"


def gap(side: str, steps: int) -> float:
    """Between log-probabilities of sampler and trainer, the largest of all steps and seeds."""
    files = [ROOT / "runs" / name(side, seed, steps) / "metrics.jsonl" for seed in SEEDS]
    return max(row["policy/logprob_gap"] for file in files for row in read(file) if "policy/logprob_gap" in row)


def errors_apart(some: list[float], others: list[float]) -> float:
    """Difference of the means in standard errors of that difference."""
    error = math.sqrt(sum(statistics.variance(one) / len(one) for one in (some, others)))
    return abs(statistics.mean(some) - statistics.mean(others)) / error


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 160)
