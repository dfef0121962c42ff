"""Weights that are cut over processes train as those of one process do, whatever each process has to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from children import launch
from safetensors.torch import load_file
from test_exactness import COUPLED, assert_equal, write

from grpo_mm.config.typed_yaml import merge
from grpo_mm.entry import train
from grpo_mm.weights import checkpoint

SHARDED = {"distributed": {"kind": "sharded", "timeout_minutes": 1.5}}
FULL = {"policy": {"lora": None}, "optim": {"lr": 1e-4}}
IN_FORWARD = merge(SHARDED, {"distributed": {"gather": "forward"}})
SETTINGS = {
    "adapter, guidance, reference, average": {
        "policy": {"guidance": 3.0, "micro_batch": 4},
        "ema": {"decay": 0.5, "every_updates": 1},
        "eval_prompts": {"lines": {"use": {"kind": "file", "path": "prompts.txt", "limit": 3}}},
    },
    "all weights, reference, average, sampling copy": FULL | {
        "ema": {"decay": 0.5, "every_updates": 1}, "sampling": {"slope": 0.3}, "old_logprobs": "recompute",
    },
    "many forwards": FULL | {"policy": {"lora": None, "micro_batch": 3, "gradient_checkpointing": True}, "prompts_per_step": 3,
        "updates": {"by": "group", "count": 1}, "engine": {"rollout_batch": 2}},
    "two passes": FULL | {"objective": [*COUPLED, {"kind": "kl", "form": "gaussian", "weight": 0.1}],
        "policy": {"lora": None, "micro_batch": 5}},
    "drawn ahead": FULL | {"rollout_ahead": 1, "ema": {"decay": 0.5, "every_updates": 1}},
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
from grpo_mm.config.typed_yaml import merge
from grpo_mm.entry import train

for path in sys.argv[1:]:
    train(path)
"""


QUICK = ("adapter, guidance, reference, average", "all weights, reference, average, sampling copy")
"""The others are slow."""
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS]


def made(folder: Path, model: str, names: Iterable[str], more: Mapping[str, Any]) -> dict[str, Path]:
    return {name: write(folder / name, model, merge(SETTINGS[name], more)) for name in names}


def trained_by(world: int, folder: Path, configs: Mapping[str, Path]) -> Mapping[str, Path]:
    script = folder / "train_all.py"
    script.write_text(TRAIN_ALL)
    launch(script, *configs.values(), world=world)
    return configs


def asked_for(request, test: str) -> dict[str, None]:
    own = [i for i in request.session.items if i.path == request.path and test in i.name]
    return dict.fromkeys(i.callspec.params.get("name") for i in own)


@pytest.fixture(scope="module")
def cut(tiny_sd3, tmp_path_factory, request) -> Mapping[str, Path]:
    """Those that are asked for, by two processes."""
    folder = tmp_path_factory.mktemp("cut")
    return trained_by(2, folder, made(folder, tiny_sd3, asked_for(request, "two_processes_that_share"), SHARDED))


@pytest.fixture(scope="module")
def come_and_go(tiny_sd3, tmp_path_factory, request) -> Mapping[str, Path]:
    """The same with weights that are whole only while a pass is in their block."""
    folder = tmp_path_factory.mktemp("come_and_go")
    return trained_by(2, folder, made(folder, tiny_sd3, asked_for(request, "come_and_go_within"), IN_FORWARD))


def alone(folder: Path, model: str, name: str) -> Path:
    (config,) = made(folder / "alone", model, [name], {}).values()
    train(config)
    return config


def last(config: Path, name: str) -> dict[str, torch.Tensor]:
    (path,) = (config.parent / "runs/tiny/checkpoints").iterdir()
    return dict(checkpoint.read(path).tensors[name])


def assert_trained_alike(config: Path, other: Path) -> None:
    for part in ("weights", "snapshots"):
        found, expected = last(config, part), last(other, part)
        if part == "snapshots" and not any("lora" in name for name in expected):  # the reference is named
            expected = {name: value for name, value in expected.items() if not name.startswith("ref/")}
        assert found.keys() == expected.keys() and (expected or part == "snapshots")
        if expected:
            assert_equal(found, expected, to=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_that_share_the_weights_train_as_one(name, cut, tiny_sd3, tmp_path):
    other = alone(tmp_path, tiny_sd3, name)
    assert_trained_alike(cut[name], other)
    files = [config.parent / "runs/tiny/adapter/pytorch_lora_weights.safetensors" for config in (cut[name], other)]
    assert files[0].is_file() == files[1].is_file() == ("lora" not in SETTINGS[name].get("policy", {}))
    if files[0].is_file():  # float32, of float64 weights
        found, expected = map(load_file, files)
        assert found.keys() == expected.keys() and all(torch.allclose(found[k], expected[k], atol=1e-7) for k in found)


@pytest.mark.parametrize(
    "name", [name if name == QUICK[1] else pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS]
)
def test_weights_that_come_and_go_within_forwards_train_as_one_process_does(name, come_and_go, tiny_sd3, tmp_path):
    assert_trained_alike(come_and_go[name], alone(tmp_path, tiny_sd3, name))


@pytest.mark.slow
@pytest.mark.parametrize("more", [IN_FORWARD, SHARDED], ids=["forward", "phase"])
def test_four_processes_in_two_copies_train_as_one(more, tiny_sd3, tmp_path):
    names, more = [QUICK[1]], merge(more, {"distributed": {"shard_over": 2}})
    configs = trained_by(4, tmp_path, made(tmp_path / "cut", tiny_sd3, names, more))
    assert_trained_alike(configs[names[0]], alone(tmp_path, tiny_sd3, names[0]))
