"""Micro-batches, accumulation and the number of processes change nothing but rounding.

The reward sees uint8 pictures, so a rounding of 1e-15 could in principle turn a pixel and with it a reward; the mean
brightness moves by 1e-6 then, and with these seeds no pixel lies that close to a half.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from children import launch
from safetensors.torch import load_file
from tiny_rewards import bright
from tiny_runs import record, write_config

from grpo_mm.entry import train

BASE = {
    "policy": {"dtype": "float64", "micro_batch": 32},
    "objective": [
        {"kind": "clipped_ratio", "clip_low": 1e-3, "clip_high": 1e-3},
        {"kind": "kl", "form": "gaussian", "weight": 0.1},
    ],
    "eval_prompts": None,
    "checkpoints": {"every": 0},
    "samples_every": 0,
}


def coarse(images, prompts, metadata):
    """Brightness to three digits: in float32 some pixel turns with the batch, and with it the sixth."""
    return [round(score, 3) for score in bright(images, prompts, metadata)]


COUPLED = [{"kind": "clipped_ratio", "ratio": "row", "aggregate": "row", "clip_low": 1e-3, "clip_high": 1e-3}]
SETTINGS = {
    "by group": {},
    "by action": {"updates": {"by": "action", "count": 2}, "old_logprobs": "recompute"},
    "coupled rows": {"objective": COUPLED},
    "allocated samples": {
        "collector": {"kind": "allocate", "rule": {"kind": "by_uncertainty"}, "first": 3, "most": 6},
        "advantage": [{"kind": "weighted_sum"}, {"kind": "shrinkage", "low": 0}],
    },
    "prompts drawn by a tracker": {
        "collector": {"kind": "prioritised", "pool": 2},
        "advantage": [{"kind": "value_tracker"}, {"kind": "group_norm", "key": []}],
    },
    "groups that teach": {"collector": {"kind": "dynamic_sampling", "max_batches": 2}, "updates": {"passes": 2}},
    "drawn ahead": {"rollout_ahead": 1},
    "one reward for each source": {
        "rewards": {
            "bright": {"use": "tiny_rewards:bright", "sources": ["lines"]},
            "dark": {"use": "tiny_rewards:dark", "sources": ["more"], "weight": 2},
        },
        "prompts": {"more": {"use": {"kind": "file", "path": "prompts.txt"}}},
        "eval_prompts": {"lines": {"use": {"limit": 1}}},  # none for the second process
    },
    "first gradient, float32": {
        "steps": 1, "updates": {"by": "group", "count": 1}, "policy": {"dtype": "float32", "lora": None},
        "optim": {"max_grad_norm": 1e9}, "rewards": {"bright": {"use": {"kind": "function", "path": "test_exactness:coarse"}}},
    },
    "first gradient, bfloat16": {
        "steps": 1, "updates": {"by": "group", "count": 1}, "optim": {"max_grad_norm": 1e9},
        "policy": {"dtype": "bfloat16", "micro_batch": 1, "decode_batch": 1}, "engine": {"rollout_batch": 1},
    },
}  # fmt: skip


def write(folder: Path, model: str, settings: dict, *, micro_batch: int | None = None) -> Path:
    from grpo_mm.config.typed_yaml import merge

    folder.mkdir(parents=True)
    changes = merge(BASE, settings)
    if micro_batch is not None:
        changes = merge(changes, {"policy": {"micro_batch": micro_batch}})
    config = write_config(folder, model, changes)
    config.write_text(config.read_text().replace(" prompts.txt", f" {folder}/prompts.txt"))
    return config


def last(config: Path, name: str) -> dict[str, torch.Tensor]:
    (path,) = (config.parent / "runs/tiny/checkpoints").iterdir()
    return load_file(path / f"{name}.safetensors")


@pytest.fixture(scope="module")
def alone(tiny_sd3, tmp_path_factory) -> dict[str, Path]:
    """Every setting, trained by one process."""
    folder = tmp_path_factory.mktemp("alone")
    configs = {name: write(folder / name, tiny_sd3, settings) for name, settings in SETTINGS.items()}
    for path in configs.values():
        train(path)
    return configs


@pytest.fixture(scope="module")
def together(tiny_sd3, tmp_path_factory) -> dict[str, Path]:
    """Every setting, trained by two processes that `accelerate launch` starts once."""
    folder = tmp_path_factory.mktemp("together")
    configs = {name: write(folder / name, tiny_sd3, settings) for name, settings in SETTINGS.items()}
    script = folder / "train_all.py"
    script.write_text(TRAIN_ALL)
    launch(script, *configs.values())
    return configs


TRAIN_ALL = """
import sys
import torch
from grpo_mm.entry import train

for path in sys.argv[1:]:
    train(path)
    assert torch.distributed.get_world_size() == 2
"""


@pytest.mark.parametrize(("name", "micro_batch"), [("by group", 4), ("by action", 1), ("coupled rows", 1)])
def test_micro_batches_do_not_change_three_steps(name, micro_batch, alone, tiny_sd3, tmp_path):
    config = write(tmp_path / "run", tiny_sd3, SETTINGS[name], micro_batch=micro_batch)
    train(config)
    assert_equal(last(config, "weights"), last(alone[name], "weights"), to=1e-9)
    moved = last(alone[name], "weights")
    assert max(float(w.abs().max()) for n, w in moved.items() if "lora_B" in n) > 1e-4


@pytest.mark.parametrize("name", [name for name in SETTINGS if "gradient" not in name])
def test_two_processes_train_as_one(name, alone, together):
    assert_equal(last(together[name], "weights"), last(alone[name], "weights"), to=1e-9)
    one, two = (record(configs[name].parent / "runs/tiny") for configs in (alone, together))
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for row, other in zip(one, two):
        assert row.keys() == other.keys()
        apart = {
            k: (row[k], other[k])
            for k in row
            if row[k] is not None and other[k] != pytest.approx(row[k], rel=1e-6, abs=1e-9)
        }
        # A collector's rows are not dealt evenly: a rank without rows in an update makes an empty forward beside the others.
        padded = apart.pop("calls/train_calls", (0, 0)) if "collector" in SETTINGS[name] else (0, 0)
        assert not apart and padded[0] <= padded[1] <= padded[0] + 2
    assert state_of_parts(together[name]) == state_of_parts(alone[name])


def state_of_parts(config: Path) -> dict:
    """What trackers and their like have learnt, to nine digits: rewards of one process and of two differ in the last."""
    (path,) = (config.parent / "runs/tiny/checkpoints").iterdir()
    parts = json.loads((path / "state.json").read_text())["learner"]["parts"]
    return json.loads(json.dumps(parts), parse_float=lambda text: round(float(text), 9))


def test_first_gradients_in_float32_agree_over_processes_and_micro_batches(alone, together, tiny_sd3, tmp_path):
    name = "first gradient, float32"
    small = write(tmp_path / "run", tiny_sd3, SETTINGS[name], micro_batch=3)
    train(small)
    expected = first_gradient(alone[name])
    assert len(expected) == len(last(alone[name], "weights")) > 50
    for config in (small, together[name]):
        found = first_gradient(config)
        assert norm({k: found[k] - expected[k] for k in expected}) < 1e-5 * norm(expected)


def test_first_gradients_in_bfloat16_agree_over_processes(alone, together):
    """Where every forward has one row: a bfloat16 network rounds otherwise in another batch, by a thousandth or so."""
    expected, found = (first_gradient(configs["first gradient, bfloat16"]) for configs in (alone, together))
    assert norm({k: found[k] - expected[k] for k in expected}) < 1e-5 * norm(expected)
    assert next(iter(expected.values())).dtype == torch.float32


def first_gradient(config: Path) -> dict[str, torch.Tensor]:
    """Adam's first moment after one update is a tenth of the gradient."""
    return {k: 10 * v for k, v in last(config, "optimizer").items() if k.endswith("exp_avg")}


def norm(tensors: dict[str, torch.Tensor]) -> float:
    return float(torch.stack([t.double().norm() for t in tensors.values()]).norm())


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], *, to: float) -> None:
    assert found.keys() == expected.keys() and next(iter(found.values())).dtype == torch.float64
    assert max(float((found[k] - expected[k]).abs().max()) for k in expected) < to
