"""A vision-language policy whose weights are cut over processes: the gradient of one process, whatever rows each of them has."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import tiny_vlm
import torch
from children import launch
from safetensors.torch import load_file, save_file
from tiny_vlm import PROMPTS, change, policy, sample

from grpo_mm.objectives import ClippedRatio, Kl
from grpo_mm.objectives.hinge_kl import HingeKl
from grpo_mm.pipelines.vlm.models.adapters import Lora
from grpo_mm.processes.distributed import Distributed, Processes
from grpo_mm.processes.rng import stream
from grpo_mm.processes.shards import Shards
from grpo_mm.types import Credit, Rollout
from grpo_mm.weights.pieces import full
from grpo_mm.weights.update import accumulate, make_view

PART = [ClippedRatio(clip_low=0.2, clip_high=0.2), Kl(form="k3", weight=0.1)]
WHOLE = [*PART, HingeKl(limit=1e-4)]
"""One that couples all rows of an update: two passes."""
POLICIES = {
    "shared prompts": {"prefix_sharing": "on"},
    "repeated prompts, tower": {"prefix_sharing": "off", "train_tower": True},
    "computed again": {"prefix_sharing": "on", "gradient_checkpointing": True},
    "adapter": {"prefix_sharing": "on", "lora": Lora(rank=4)},
}
ROWS = {"uneven": ((0, 1, 2), (3,)), "none": ((0, 1, 2, 3), ()), "failed": ((0, 1), (2, 3))}
"""The prompts of each process; those of the last one's rows that failed are 2 and 3."""
CASES = [
    ("shared prompts", "uneven", PART), ("shared prompts", "uneven", WHOLE), ("shared prompts", "none", WHOLE),
    ("shared prompts", "failed", PART), ("repeated prompts, tower", "uneven", PART), ("repeated prompts, tower", "none", PART),
    ("computed again", "uneven", PART), ("adapter", "uneven", WHOLE), ("adapter", "failed", WHOLE),
]  # fmt: skip
QUICK = (1, 3, 8)
"""The other cases are slow."""
SCRIPT = """
import sys
from test_vlm_sharding import work

work(*sys.argv[1:])
"""


@pytest.fixture(scope="module")
def together(tmp_path_factory, request) -> Path:
    own = "test_the_gradient_is_that_of_one_process["
    asked = [item.callspec.params["case"] for item in request.session.items if item.name.startswith(own)]
    folder = tmp_path_factory.mktemp("together")
    script = folder / "work.py"
    script.write_text(SCRIPT)
    launch(script, folder, tiny_vlm.folder("qwen2_5_vl"), *asked)
    return folder


@pytest.mark.parametrize("case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in range(len(CASES))],
                         ids=lambda n: f"{CASES[n][0]}, {CASES[n][1]}, {len(CASES[n][2])}")  # fmt: skip
def test_the_gradient_is_that_of_one_process(case, together):
    name, rows, objective = CASES[case]
    p = moved(policy(micro_batch=2, **POLICIES[name]))
    loss, wanted = gradient(p, made(rows), objective, Processes(device="cpu"))
    found = load_file(together / f"{case}.safetensors")
    assert found.keys() == wanted.keys() and len(found) > 5
    assert norm({k: found[k] - wanted[k] for k in wanted}) < 1e-6 * norm(wanted) > 0
    losses = json.loads((together / "losses.json").read_text())
    assert losses[str(case)] == pytest.approx(loss, rel=1e-5, abs=1e-6)


def test_in_bfloat16_weights_are_cut_in_float32_and_gradients_add_up_in_it(together):
    """In bfloat16 the sums themselves would differ in the third digit. Autocast keeps what stands between layers in float32, and is
    not much nearer to the gradient in float32."""
    apart, ours, usual = load_file(together / "bfloat16.safetensors")["apart"].tolist()
    assert apart < 1e-6 and ours < 2 * usual < 0.5


def norm(tensors: dict[str, torch.Tensor]) -> float:
    return float(torch.stack([t.double().norm() for t in tensors.values()]).norm())


def moved(p):
    """With a reference that the weights have left."""
    p.snapshots.take("ref")
    change(p, scale=0.02)
    return p


def made(rows: str, family: str = "qwen2_5_vl") -> Rollout:
    """The rows of one process."""
    rollout, _ = sample(policy(family), PROMPTS[:4], group_size=3)
    if rows != "failed":
        return rollout
    failed = rollout.prompt_N >= 2
    record = replace(rollout.record, length_N=rollout.record.length_N.masked_fill(failed, 0))
    return replace(rollout, record=record, mask_NA=rollout.mask_NA & ~failed[:, None])


def gradient(p, rollout: Rollout, objective, processes: Processes, own=None):
    """(the loss, the gradient by name) of all processes, of which this one has the rows of the prompts `own`."""
    shape = rollout.mask_NA.shape
    advantage_NA = torch.randn(shape[0], 1, generator=stream(0, "advantage")).expand(shape)
    if own is not None:
        rows = torch.nonzero(torch.isin(rollout.prompt_N, torch.tensor(own, dtype=torch.int64))).flatten()
        rollout, advantage_NA = rollout.take(rows), advantage_NA[rows]
    credit = Credit(advantage_NA, torch.ones_like(rollout.mask_NA))
    rollout = p.with_values_of("ref", rollout, rollout.mask_NA, weights="ref")
    view = make_view(rollout, credit, rollout.mask_NA, rollout.behaviour_NA, processes)
    with processes.updating(p):
        result = accumulate(p, rollout, objective, view, processes)
    found = {name: full(v.grad).clone() for name, v in p.trainable.items() if v.grad is not None}
    for v in p.trainable.values():
        v.grad = None
    return result.loss, found


def work(folder: str, checkpoint: str, *asked: str) -> None:
    """What a process does: the gradients of those cases."""
    tiny_vlm._FOLDERS["qwen2_5_vl"] = checkpoint
    processes = Processes(device="cpu", distributed=Distributed(kind="sharded", timeout_minutes=1))
    cut, losses = {}, {}
    for case in asked:
        name, rows, objective = CASES[int(case)]
        if name not in cut:
            cut[name] = moved(policy(micro_batch=2, shard=processes.shard, **POLICIES[name]))
        losses[case], found = gradient(cut[name], made(rows), objective, processes, own=ROWS[rows][processes.rank])
        if processes.is_main:
            save_file({k: v.contiguous() for k, v in found.items()}, Path(folder) / f"{case}.safetensors")
    if processes.is_main:
        (Path(folder) / "losses.json").write_text(json.dumps(losses))
        save_file({"apart": torch.tensor(in_bfloat16(processes))}, Path(folder) / "bfloat16.safetensors")
    else:
        in_bfloat16(processes)


def in_bfloat16(processes: Processes) -> list[float]:
    """How far gradients are apart, over their norm: of both processes and of one; of both and in float32; under autocast and in
    float32."""
    from torch.distributed.device_mesh import DeviceMesh

    groups = [torch.distributed.new_group([rank]) for rank in range(processes.world)]
    mesh, alone = DeviceMesh.from_group(groups[processes.rank], "cpu"), copy.copy(processes)
    alone.world, alone.rank, alone.number, alone.index = 1, 0, 1, 0
    settings = {"dtype": "bfloat16", "micro_batch": 1, "prefix_sharing": "off"}
    both, one = (moved(policy(shard=shard, **settings)) for shard in (processes.shard, partial(Shards, mesh=mesh)))
    autocast, exact = moved(policy(**settings)), moved(policy(**settings | {"dtype": "float32"}))
    with both.shards.gathered():
        assert {p.dtype for p in both.model.parameters()} == {torch.bfloat16} and both.network.autocast is None
    assert (
        {p.dtype for p in both.trainable.values()} == {torch.float32} == {p.dtype for p in autocast.trainable.values()}
    )
    _, found = gradient(both, made("uneven"), PART, processes, own=ROWS["uneven"][processes.rank])
    _, wanted = gradient(one, made("uneven"), PART, alone)
    _, usual = gradient(autocast, made("uneven"), PART, alone)
    _, true = gradient(exact, made("uneven"), PART, alone)
    assert found.keys() == wanted.keys() == true.keys() and {g.dtype for g in found.values()} == {torch.float32}
    pairs = ((found, wanted), (found, true), (usual, true))
    return [norm({k: a[k] - b[k] for k in a}) / norm(b) for a, b in pairs]
