"""Weights that are cut over processes train as those of one process do, whatever each process has to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from children import launch
from test_exactness import COUPLED, assert_equal, write

from grpo_mm.entry import train
from grpo_mm.weights import checkpoint

SHARDED = {"distributed": {"kind": "sharded", "timeout_minutes": 1.5}}
FULL = {"policy": {"lora": None}, "optim": {"lr": 1e-4}}
SETTINGS = {
    "adapter, guidance, reference, average": {
        "policy": {"guidance": 3.0, "micro_batch": 4},
        "ema": {"decay": 0.5, "every_updates": 1},
        "eval_prompts": {"lines": {"use": {"kind": "file", "path": "prompts.txt", "limit": 3}}},
    },
    "all weights, reference, average, sampling copy": FULL | {
        "ema": {"decay": 0.5, "every_updates": 1}, "sampling": {"slope": 0.3}, "old_logprobs": "recompute",
    },
    "two passes": FULL | {"objective": [*COUPLED, {"kind": "kl", "form": "gaussian", "weight": 0.1}]},
    "tree": FULL | {
        "engine": {"tree": {"kind": "splits", "at": [0, 1]}, "seeds": 1},
        "advantage": [{"kind": "group_norm"}, {"kind": "weighted_sum"}, {"kind": "tree_backup"}],
    },
    "three prompts": FULL | {"prompts_per_step": 3, "updates": {"by": "group", "count": 1}},
    "allocated samples": {
        "collector": {"kind": "allocate", "rule": {"kind": "by_uncertainty"}, "first": 3, "most": 6},
        "advantage": [{"kind": "weighted_sum"}, {"kind": "shrinkage", "low": 0}],
    },
}  # fmt: skip
TRAIN_ALL = """
import sys
from grpo_mm.entry import train

for path in sys.argv[1:]:
    train(path)
"""


def made(folder: Path, model: str, *, sharded: bool) -> dict[str, Path]:
    from grpo_mm.config.typed_yaml import merge

    more = SHARDED if sharded else {}
    return {name: write(folder / name, model, merge(settings, more)) for name, settings in SETTINGS.items()}


@pytest.fixture(scope="module")
def alone(tiny_sd3, tmp_path_factory) -> dict[str, Path]:
    configs = made(tmp_path_factory.mktemp("alone"), tiny_sd3, sharded=False)
    for path in configs.values():
        train(path)
    return configs


@pytest.fixture(scope="module")
def cut(tiny_sd3, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("cut")
    configs = made(folder, tiny_sd3, sharded=True)
    script = folder / "train_all.py"
    script.write_text(TRAIN_ALL)
    launch(script, *configs.values())
    return configs


def last(config: Path, name: str) -> dict[str, torch.Tensor]:
    (path,) = (config.parent / "runs/tiny/checkpoints").iterdir()
    return dict(checkpoint.read(path).tensors[name])


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_that_share_the_weights_train_as_one(name, alone, cut):
    for part in ("weights", "snapshots"):
        found, expected = last(cut[name], part), last(alone[name], part)
        assert found.keys() == expected.keys()
        if expected:
            assert_equal(found, expected, to=1e-9)
