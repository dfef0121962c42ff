"""A shared prompt on two processes: gradients of whole groups add up, weights may be sharded."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_vlm
import torch
from children import launch
from safetensors.torch import load_file, save_file
from test_prefix_sharing import trained
from tiny_vlm import PROMPTS, policy, sample

from grpo_mm.processes.distributed import Processes
from grpo_mm.processes.rng import stream

SCRIPT = """
import sys
from test_prefix_processes import work

work(*sys.argv[1:])
"""
KINDS = ("replicated", "sharded")


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    script = folder / "work.py"
    script.write_text(SCRIPT)
    launch(script, folder, tiny_vlm.folder("qwen2_5_vl"))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_give_the_gradient_of_one(kind, together):
    p, rollout, weight_NA = made()
    _, wanted = trained(p, rollout, weight_NA)
    found = load_file(together / f"{kind}.safetensors")
    wanted = {name: value for name, value in wanted.items() if name in found}
    assert len(wanted) == len(found) > 20
    for name, value in wanted.items():
        assert torch.allclose(found[name], value, rtol=0, atol=1e-5 * max(1.0, float(value.abs().max()))), name


def made():
    p = policy(prefix_sharing="on", micro_batch=2)
    rollout, _ = sample(policy(), PROMPTS[:4], group_size=4)
    return p, rollout, torch.randn(rollout.mask_NA.shape, generator=stream(0, "weight"))


def work(folder: str, checkpoint: str) -> None:
    """What a process does: every other prompt is its own, read once, with its answers in two forwards."""
    tiny_vlm._FOLDERS["qwen2_5_vl"] = checkpoint  # transformers saves on one process alone
    processes = Processes(device="cpu")
    assert processes.world == 2
    for kind in KINDS:
        p, rollout, weight_NA = made()
        rows = torch.nonzero(rollout.prompt_N % 2 == processes.rank).flatten()
        if kind == "sharded":
            _shard(p.model)
        _, gradient = trained(p, rollout.take(rows), weight_NA[rows])
        if kind == "replicated":
            for name, parameter in p.trainable.items():
                parameter.grad = gradient.get(name)
            processes.sync_gradients(list(p.trainable.values()))
            gradient = {name: v.grad for name, v in p.trainable.items() if v.grad is not None}
        else:  # the mean over processes of layers alone; the rest is not sharded
            gradient = {
                n: 2 * v.grad.full_tensor() for n, v in p.model.named_parameters() if hasattr(v.grad, "full_tensor")
            }
        if processes.is_main:
            tensors = {name: value.contiguous() for name, value in gradient.items()}
            save_file(tensors, Path(folder) / f"{kind}.safetensors")


def _shard(model) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.language_model.layers:
        fully_shard(layer, mesh=mesh)
