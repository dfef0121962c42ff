"""What only a CUDA device can show: the same properties as on the CPU, in the precision people train in."""

from __future__ import annotations

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def _bench(path: str, kind: str, *overrides: str) -> dict:
    from grpo_mm.tools.bench import bench

    settings = [f"policy.model={{kind: {kind}, path: {path}}}", "policy.height=64", "policy.width=64", *overrides]
    if kind == "flux":
        settings.append("engine.schedule={kind: flux}")
    return bench("configs/bench/sd35_medium.yaml", settings, steps=2)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_training_step_runs_on_the_gpu(kind, dtype, request):
    result = _bench(request.getfixturevalue(f"tiny_{kind}"), kind, f"policy.dtype={dtype}")
    assert result["calls_per_step"]["train_calls"] > 0
    assert result["peak_memory_mib"] > 0


def test_compiled_and_checkpointed_networks_train(tiny_sd3):
    assert _bench(tiny_sd3, "sd3", "policy.compile=true")["seconds_per_step"] > 0
    assert _bench(tiny_sd3, "sd3", "policy.gradient_checkpointing=true")["seconds_per_step"] > 0


def test_offloaded_parts_leave_the_gpu(tiny_sd3):
    from grpo_mm.pipelines.flow.models.sd3 import Sd3
    from grpo_mm.pipelines.flow.policy import FlowPolicyConfig
    from grpo_mm.types import Prompt

    config = FlowPolicyConfig(model=Sd3(tiny_sd3), height=32, width=32, text_length=16, offload=("encoders", "decoder"))
    policy = config.load(torch.device("cuda"))
    policy.encode([Prompt("a", "a red circle")])
    shape = policy.family.latent_shape(policy.pipe, 32, 32)
    assert policy.decode(torch.zeros(1, *shape, device="cuda"), size=(32, 32)).shape == (1, 3, 32, 32)
    assert next(policy.pipe.text_encoder.parameters()).device.type == "cpu"
    assert next(policy.pipe.vae.parameters()).device.type == "cpu"
    assert next(policy.network.parameters()).device.type == "cuda"


TREES = {
    "chains": {},
    "single_steps": {"seeds": 1, "tree": {"kind": "single_steps", "granularity": [1, 2]}},
    "clean_images": {"tree": "clean_images", "solver": "dpmpp"},
    "splits": {"seeds": 1, "tree": {"kind": "splits", "at": [0, 1]}},
}


@pytest.mark.parametrize("kind", ["sd3", "flux"])
@pytest.mark.parametrize("tree", TREES)
def test_rollout_and_replay_agree_in_float32_on_the_gpu(kind, tree, request):
    from grpo_mm import registry
    from grpo_mm.config.typed_yaml import build
    from grpo_mm.pipelines.flow.engines.engine import FlowEngine
    from grpo_mm.pipelines.flow.policy import FlowPolicyConfig
    from grpo_mm.types import Prompt, Rows

    torch.backends.cuda.matmul.allow_tf32 = False
    model = registry.lookup("flow_model", kind)(request.getfixturevalue(f"tiny_{kind}"))
    policy = FlowPolicyConfig(model=model, height=32, width=32, text_length=16).load(torch.device("cuda"))
    schedule = "flux" if kind == "flux" else "diffusers_sd3"
    engine = build(FlowEngine, {"steps": 4, "schedule": schedule, **TREES[tree]})
    rows = Rows((Prompt("a", "a red circle"),), torch.zeros(4, dtype=torch.int64), torch.arange(4), 4)
    rollout, outputs = engine.sample(policy, rows, step=0, seed=0, needs=frozenset({"logprobs", "mean_shift_old"}))
    assert len(outputs.items) == engine.pictures(4)
    plan = policy.plan(rollout, rollout.mask_NA)
    for index, values in policy.logprobs(rollout, plan, needs=frozenset({"logprobs"}), grad=False):
        assert (values["logprobs"] - rollout.behaviour_NA.flatten()[index]).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["g2rpo", "dense", "branch", "nft", "pref"])
def test_every_kind_of_method_trains_on_the_gpu(name, tmp_path):
    from grpo_mm.entry import train

    settings = [
        "steps=2",
        "eval_prompts={}",
        "checkpoints.every=0",
        "device=cuda",
        "threads=null",
        f"runs_dir={tmp_path}",
    ]
    assert train(f"configs/quickstart/{name}.yaml", settings)["steps"] == 2


@pytest.mark.slow
def test_sharing_saves_time_at_the_size_of_flux():
    from grpo_mm.tools.bench import bench

    unshared = "engine.tree={kind: unshared, of: {kind: single_steps, granularity: [1, 2, 3]}}"
    found = bench("configs/bench/g2rpo_flux_dev.yaml", steps=1, vs=[unshared])
    assert found["ratio"]["seconds_per_step"] < 0.7
