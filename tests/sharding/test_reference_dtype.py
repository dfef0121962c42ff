"""A reference that is kept in bfloat16, beside all weights that are trained."""

from __future__ import annotations

import pytest
import torch
from children import launch
from test_exactness import write
from test_sharding import SHARDED, TRAIN_ALL
from tiny_runs import record, write_config

from grpo_mm.config.run_config import read
from grpo_mm.config.typed_yaml import merge
from grpo_mm.entry import train
from grpo_mm.errors import ConfigError
from grpo_mm.ledger.entries import Spread
from grpo_mm.training.forecast import ledger_of, plan_of
from grpo_mm.weights import checkpoint
from grpo_mm.weights.snapshots import Snapshots

CHANGES = {
    "policy": {"lora": None, "dtype": "bfloat16"}, "eval_prompts": None, "optim": {"lr": 1e-4},
    "objective": [{"kind": "clipped_ratio", "clip_low": 1e-3, "clip_high": 1e-3}, {"kind": "kl", "form": "gaussian", "weight": 0.1}],
}  # fmt: skip
REDUCED = {"reference_dtype": "bfloat16"}


def kl(run) -> list[float]:
    return [row["objective/ref_kl"] for row in record(run)]


def test_it_is_put_in_place_as_it_was_rounded_and_the_weights_come_back():
    p = torch.nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    start, snapshots = p.detach().clone(), Snapshots({"p": p})
    snapshots.take("ref", dtype=torch.bfloat16)
    with torch.no_grad():
        p.add_(1)
    with snapshots.use("ref"):
        assert p.dtype == torch.float32 and torch.equal(p, start.bfloat16().float()) and not torch.equal(p, start)
    assert torch.equal(p, start + 1)


def test_a_run_keeps_it_goes_on_with_it_and_cannot_change_it(tiny_sd3, tmp_path):
    config = write_config(tmp_path, tiny_sd3, merge(CHANGES, REDUCED))
    train(config, ["steps=2"])
    held = dict(checkpoint.read(tmp_path / "runs/tiny/checkpoints/step_000002").tensors["snapshots"])
    assert held and {t.dtype for name, t in held.items() if name.startswith("ref/")} == {torch.bfloat16}
    with pytest.raises(ConfigError, match="reference_dtype"):
        train(config, ["reference_dtype=float32"])
    train(config)
    train(config, ["name=whole"])
    for name in ("tiny", "whole"):
        assert len(kl(tmp_path / "runs" / name)) == 3
    assert kl(tmp_path / "runs/tiny") == kl(tmp_path / "runs/whole")


def test_it_is_refused_where_it_would_be_another_policy(tiny_sd3, tmp_path):
    for changes in ({"policy": {"dtype": "bfloat16"}}, {"policy": {"lora": None}}):
        with pytest.raises(ConfigError, match="computes in bfloat16 with all weights trained"):
            read(write_config(tmp_path, tiny_sd3, merge(changes, REDUCED))).check_settings()


def test_the_ledger_counts_half_of_it(tiny_sd3, tmp_path):
    sizes = {}
    for name, more in (("bfloat16", REDUCED), ("float32", {})):
        config = read(write_config(tmp_path, tiny_sd3, merge(CHANGES, more)))
        here = ledger_of(config, plan_of(config, kind="cuda")).on(Spread())
        (sizes[name],) = [(e.bytes, e.dtype) for e in here.resident if e.owner == "reference weights"]
    assert sizes["bfloat16"] == (sizes["float32"][0] // 2, "bfloat16")


@pytest.mark.slow
def test_where_weights_are_cut_the_network_sees_the_same_reference(tiny_sd3, tmp_path):
    """What it computes in are copies in bfloat16, of float32 masters or of the reference: nothing differs but memory."""
    settings = merge(merge(CHANGES, SHARDED), {"policy": {"dtype": "bfloat16"}})
    configs = {
        name: write(tmp_path / name, tiny_sd3, merge(settings, more))
        for name, more in (("half", REDUCED), ("whole", {}))
    }
    script = tmp_path / "train.py"
    script.write_text(TRAIN_ALL)
    launch(script, *configs.values())
    half, whole = (kl(config.parent / "runs/tiny") for config in configs.values())
    assert half == whole and max(whole) > 0
