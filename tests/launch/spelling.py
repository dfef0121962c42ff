"""The toy policy of `toy` as whole runs see one: its outputs are texts, it has a product, and a config of it starts within a second."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor
from toy import ToyEngine, ToyPolicy, ToyPolicyConfig

from grpo_mm.config.typed_yaml import merge
from grpo_mm.types import Outputs, Prompt, Rollout, Rows

LETTERS = "_abcd"


@dataclass(frozen=True)
class SpellerConfig(ToyPolicyConfig):
    def load(self, device: torch.device) -> Speller:
        return Speller(self)


class Speller(ToyPolicy):
    product = "model"

    def save(self, folder: str | Path) -> None:
        Path(folder).mkdir(exist_ok=True)
        save_file({"logits": self.logits.detach().clone()}, Path(folder) / "logits.safetensors")

    def usage(self) -> dict[str, str]:
        return {"base_model": "a table of logits", "library": "safetensors", "code": "load_file(...)"}


@dataclass(frozen=True)
class SpellerEngine(ToyEngine):
    def sample(
        self, policy: ToyPolicy, rows: Rows, *, step: int, seed: int, needs: frozenset[str]
    ) -> tuple[Rollout, Outputs]:
        rollout, outputs = super().sample(policy, rows, step=step, seed=seed, needs=needs)
        return rollout, replace(outputs, items=["".join(LETTERS[t] for t in tokens) for tokens, _ in outputs.items])


@dataclass(frozen=True)
class SpelledRight:
    """Share of right letters; `seconds` for each call."""

    seconds: float = 0.0

    def __call__(self, items: Sequence[str], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        time.sleep(self.seconds)
        wanted = ["".join(LETTERS[t] for t in prompt.target) for prompt in prompts]
        share = [sum(a == b for a, b in zip(item, word)) / len(word) for item, word in zip(items, wanted, strict=True)]
        return {"score": torch.tensor(share, dtype=torch.float64)}


def write_speller(folder: Path, changes: Mapping[str, Any] = {}) -> Path:  # noqa: B006
    """A config of 8 steps with a checkpoint after each; `changes` are merged in. Runs go to `folder/runs`."""
    settings = {
        "name": "speller", "steps": 8, "prompts_per_step": 4, "group_size": 8,
        "policy": {"kind": "spelling:SpellerConfig"}, "engine": {"kind": "spelling:SpellerEngine"},
        "prompts": {"words": {"use": {"kind": "toy:ToyPrompts"}}},
        "rewards": {"right": {"use": {"kind": "spelling:SpelledRight"}}},
        "optim": {"lr": 0.1}, "checkpoints": {"every": 1}, "default_watch": False,
        "device": "cpu", "threads": 1, "runs_dir": str(folder / "runs"),
    }  # fmt: skip
    path = folder / "speller.yaml"
    path.write_text(yaml.safe_dump(merge(settings, changes), sort_keys=False))
    return path
