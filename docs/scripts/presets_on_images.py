"""Writes docs/presets_on_images.md: ten estimators and objectives of the language-model literature on the tiny image model.

    .venv/bin/python docs/scripts/presets_on_images.py

The quickstart's model, sampler, reward and learning rate; only what a method's preset says differs. Clip ranges of presets are
those of tokens; log-densities of denoising steps are means over a latent, so that every range is multiplied by 1/40 (.2 → .005).
Finished runs are not run again.
"""

from __future__ import annotations

import math
from typing import Any

from pages import QUICKSTART, SEEDS, mean, rounded, write

from grpo_mm.config.methods import find, preset
from grpo_mm.config.run_config import RunConfig
from grpo_mm.config.typed_yaml import build, merge, read_yaml
from grpo_mm.entry import train

PRESETS = ("grpo", "dr_grpo", "bnpo_2506.02864", "ngrpo", "spo", "gdpo", "weighted_grpo", "cispo", "sapo", "qae")
BUDGET = 12_000


def config(name: str, seed: int) -> RunConfig:
    base = read_yaml(QUICKSTART / "flow.yaml")
    own = {key: value for key, value in base.items() if key not in ("advantage", "objective")}
    filled = preset(name)
    filled["objective"] = [narrowed(term) for term in filled["objective"]]
    settings = merge(filled, own) | {
        "method": name, "name": f"preset_{find(name).name}_{seed}", "seed": seed, "checkpoints": {"every": 0}, "samples_every": 0,
        "threads": 1, "evaluation": {"samples_per_prompt": 2, "seed": 20260102, "limit": 144},
    }  # fmt: skip
    found = build(RunConfig, settings | {"steps": 1})
    return build(RunConfig, settings | {"steps": math.ceil(BUDGET / sum(found.network_calls().values()))})


def narrowed(term: dict[str, Any]) -> dict[str, Any]:
    return {k: v / 40 if k in ("clip_low", "clip_high") else v for k, v in term.items()}


def main() -> None:
    lines = [
        "# Estimators and objectives on the tiny image model",
        "",
        f"`python docs/scripts/presets_on_images.py`: {BUDGET:,} network calls a run, seeds {', '.join(map(str, SEEDS))}, mean ± standard error; "
        "144 held-out prompts × 2 pictures. The learning rate is the quickstart's for all: it suits advantages of unit scale.",
        "",
        "| method | before | after | all correct | diversity | steps | network calls |",
        "| --- " * 7 + "|",
    ]
    for name in PRESETS:
        found = [train(config(name, seed)) for seed in SEEDS]
        after = [s["eval_after"] for s in found]
        cells = [
            f"{found[0]['eval_before']['score']:.3f}",
            mean([a["score"] for a in after]),
            mean([a["shape/all_correct"] for a in after]),
            mean([a["diversity"] for a in after if "diversity" in a] or [math.nan] * len(after)),
            str(found[0]["steps"]),
            rounded([sum(s["network_calls"].values()) for s in found]),
        ]
        lines.append(f"| {find(name).title} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    write("presets_on_images", [*lines, ""])


if __name__ == "__main__":
    main()
