"""Weights that are whole only while a pass is in their block: what is whole at a time, and who may differ from whom."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from children import launch
from conftest import ROOT
from test_exactness import write
from test_sharding import FULL, IN_FORWARD, SHARDED, TRAIN_ALL, assert_trained_alike, last
from tiny_models import build_flux

from grpo_mm.config.run_config import read
from grpo_mm.config.typed_yaml import merge
from grpo_mm.entry import train
from grpo_mm.errors import UserError

COUNTED = """
import json
import sys
from pathlib import Path
from grpo_mm.entry import train
from grpo_mm.processes.turns import Turns

there, seen = Turns._gather, []


def gather(self, number):
    there(self, number)
    cut = [any(hasattr(p, "full_tensor") for p in block.unit.parameters()) for block in self.blocks]
    seen.append((number, cut.count(False), len(cut)))


Turns._gather = gather
train(sys.argv[1])
Path(sys.argv[1] + ".seen").write_text(json.dumps(seen))
"""
AS_FLUX = {"policy": {"guidance": 3.5}, "engine": {"schedule": {"kind": "flux"}}}
PASSES = """
import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from grpo_mm.processes.distributed import Distributed, Processes


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x.square().sum()


def made():
    torch.manual_seed(0)
    return Net().double()


processes = Processes(device="cpu", distributed=Distributed(kind="sharded", gather="forward", timeout_minutes=0.5))
rank, net, alone = processes.rank, made(), made()
shards = processes.shard(net, [[block] for block in net.blocks])
x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
with shards.gathered():
    if rank == 0:  # values alone, before the other has made any; then two graphs at once, and one more
        with torch.no_grad():
            net(x), net(x)
        (net(x[:2]) + net(x[2:3])).backward()
        net(x[3:4]).backward()
    assert processes.gather(rank) == [0, 1]  # whoever is done first serves the others
    if rank == 1:
        net(x[4:]).backward()
        with torch.no_grad():
            net(x)
    shards.add_up_gradients()
alone(x).backward()
found = {name: p.grad.full_tensor() for name, p in net.named_parameters()}
apart = max(float((found[name] - p.grad).abs().max()) for name, p in alone.named_parameters())
Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(apart))
with shards.gathered():
    if rank == 0:
        try:
            net.blocks[1](x)
            said = ""
        except Exception as error:
            said = str(error)
        Path(sys.argv[1], "said").write_text(said)
"""


def test_processes_that_differ_in_their_passes_add_up_the_same_gradient(tmp_path):
    script = tmp_path / "passes.py"
    script.write_text(PASSES)
    launch(script, tmp_path, timeout_seconds=120)
    assert max(json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)) < 1e-12
    assert "goes to block 1 of a forward pass" in (tmp_path / "said").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_one_block_is_whole_at_a_time(checkpointing, tmp_path):
    model = str(build_flux(tmp_path / "model", layers=2, single=3))
    settings = merge(
        merge(FULL, AS_FLUX),
        {"policy": {"gradient_checkpointing": checkpointing, "model": {"kind": "flux", "path": model}}},
    )
    config = write(tmp_path / "cut", model, merge(settings, IN_FORWARD))
    script = tmp_path / "counted.py"
    script.write_text(COUNTED)
    launch(script, config)
    seen = json.loads(Path(f"{config}.seen").read_text())
    blocks = seen[0][2]
    assert blocks == 5 and {number for number, _, _ in seen} == set(range(blocks))
    assert {whole for _, whole, _ in seen} == {1}
    other = write(tmp_path / "alone", model, settings)
    train(other)
    assert_trained_alike(config, other)


@pytest.mark.slow
def test_in_bfloat16_the_gradient_is_that_of_weights_that_are_gathered_with_the_phase(tiny_sd3, tmp_path):
    settings = FULL | {
        "policy": {"lora": None, "dtype": "bfloat16"},
        "steps": 1,
        "updates": {"by": "group", "count": 1},
    }
    configs = {
        name: write(tmp_path / name, tiny_sd3, merge(settings, more))
        for name, more in (("forward", IN_FORWARD), ("phase", SHARDED))
    }
    script = tmp_path / "train.py"
    script.write_text(TRAIN_ALL)
    launch(script, *configs.values())
    found, wanted = (last(configs[name], "optimizer") for name in ("forward", "phase"))
    moments = [key for key in wanted if key.endswith("exp_avg")]
    apart = sum(float((found[key] - wanted[key]).square().sum()) for key in moments) ** 0.5
    norm = sum(float(wanted[key].square().sum()) for key in moments) ** 0.5
    assert found.keys() == wanted.keys() and norm > 0 and apart < 1e-5 * norm


def test_what_cannot_be_gathered_within_forwards_is_refused():
    settings = ["distributed={kind: sharded, gather: forward}"]
    with pytest.raises(UserError, match=r"all their blocks in one order .* Use gather=phase"):
        read(ROOT / "configs/quickstart/video.yaml", settings).check_settings()
    read(ROOT / "configs/quickstart/flow.yaml", settings).check_settings()
