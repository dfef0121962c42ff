"""AdamW in one kernel: the same updates to rounding, and a run may go on with or without it."""

from __future__ import annotations

import pytest
import torch
from children import launch
from test_exactness import assert_equal, write
from test_sharding import FULL, SHARDED, TRAIN_ALL, assert_trained_alike
from tiny_runs import weights, write_config

from grpo_mm.config.run_config import read
from grpo_mm.config.typed_yaml import merge
from grpo_mm.entry import train
from grpo_mm.ledger.entries import Spread
from grpo_mm.training.forecast import ledger_of, plan_of
from grpo_mm.weights import checkpoint
from grpo_mm.weights.optim import Optim

FUSED = {"optim": {"lr": 1e-4, "fused": True}}


def test_updates_are_the_same_to_rounding_and_keep_the_same_state():
    found = []
    for fused in (False, True):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(5, 3, dtype=torch.float64)) for _ in range(3)]
        optimizer = Optim(lr=1e-2, weight_decay=0.1, fused=fused).build(params)
        for _ in range(4):
            for p in params:
                p.grad = torch.randn_like(p)
            optimizer.step()
        found.append((torch.stack(list(params)), checkpoint.optimizer_tensors(optimizer)))
    (plain, state), (fused, other) = found
    assert torch.allclose(plain, fused, rtol=0, atol=1e-14)
    assert {k: (v.shape, v.dtype) for k, v in state.items()} == {k: (v.shape, v.dtype) for k, v in other.items()}


@pytest.mark.parametrize("first", [False, True])
def test_a_run_goes_on_with_or_without_it(first, tiny_sd3, tmp_path):
    config = write_config(tmp_path, tiny_sd3, {"steps": 3, "policy": {"dtype": "float64"}, "eval_prompts": None})
    train(config, ["steps=2", f"optim.fused={str(first).lower()}"])
    train(config, [f"optim.fused={str(not first).lower()}"])
    found = dict(checkpoint.read(tmp_path / "runs/tiny/checkpoints/step_000003").tensors["weights"])
    train(config, ["name=other"])
    other = dict(checkpoint.read(tmp_path / "runs/other/checkpoints/step_000003").tensors["weights"])
    assert_equal(found, other, to=1e-9)


def test_one_that_was_interrupted_ends_with_the_same_bits(tiny_sd3, tmp_path):
    config = write_config(tmp_path, tiny_sd3, FUSED | {"steps": 3, "eval_prompts": None})
    train(config, ["steps=2"])
    train(config)
    train(config, ["name=other"])
    assert weights(tmp_path / "runs/tiny", 3) == weights(tmp_path / "runs/other", 3)


@pytest.mark.slow
def test_of_weights_that_are_cut(tiny_sd3, tmp_path):
    cut = write(tmp_path / "cut", tiny_sd3, merge(merge(FULL, FUSED), SHARDED))
    script = tmp_path / "train.py"
    script.write_text(TRAIN_ALL)
    launch(script, cut)
    alone = write(tmp_path / "alone", tiny_sd3, FULL)
    train(alone)
    assert_trained_alike(cut, alone)


def test_the_ledger_counts_no_root(tiny_sd3, tmp_path):
    config = read(write_config(tmp_path, tiny_sd3, {"policy": {"lora": None}}))
    fused = read(write_config(tmp_path, tiny_sd3, {"policy": {"lora": None}, "optim": {"fused": True}}))
    for each, root in ((config, True), (fused, False)):
        here = ledger_of(each, plan_of(each, kind="cuda")).on(Spread())
        (step,) = [phase for phase in here.phases if phase.name == "optimiser step"]
        assert any(part.owner == "root of the second moment" for part in step.parts) == root
