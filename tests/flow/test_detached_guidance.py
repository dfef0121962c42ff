"""Guidance whose unconditional half is a constant: the same values, the gradient of the other half, half of what is kept."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.flow.engines.engine import FlowEngine
from grpo_mm.pipelines.flow.models.adapters import Lora
from grpo_mm.pipelines.flow.models.flux import Flux
from grpo_mm.pipelines.flow.models.sd3 import Sd3
from grpo_mm.pipelines.flow.policy import FlowPolicyConfig
from grpo_mm.processes import clock
from grpo_mm.types import Prompt, Rollout, Rows

SIZE, GUIDANCE = (32, 32), 4.5


def load(path, *, lora=True, **settings):
    torch.manual_seed(0)
    policy = FlowPolicyConfig(
        model=Sd3(path), lora=Lora(rank=3, alpha=5) if lora else None, height=32, width=32, text_length=8,
        guidance=GUIDANCE, **settings,
    ).load(torch.device("cpu"))  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in policy.trainable.values():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return policy


def asked(policy):
    condition = policy.encode([Prompt("a", "a red circle"), Prompt("b", "a blue square")])
    x = torch.randn((2, *policy.family.latent_shape(policy.pipe, *SIZE)), generator=torch.Generator().manual_seed(2))
    return x, torch.tensor([0.9, 0.4]), condition


def gradient(policy, velocity):
    velocity.square().sum().backward()
    found = {name: p.grad for name, p in policy.trainable.items() if p.grad is not None}
    policy.network.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("lora", [True, False])
def test_values_are_the_same_and_the_gradient_is_that_of_a_detached_half(tiny_sd3, lora):
    policy = load(tiny_sd3, lora=lora, detach_unconditional=True)
    x, sigma, condition = asked(policy)
    velocity = policy.velocity(x, sigma, condition, size=SIZE, guidance=GUIDANCE)
    of_text = policy.velocity(x, sigma, condition, size=SIZE, guidance=1.0)
    empty = {"tokens": condition["negative_tokens"], "pooled": condition["negative_pooled"]}
    of_none = policy.velocity(x, sigma, empty, size=SIZE, guidance=1.0)
    written_out = of_none.detach() + GUIDANCE * (of_text - of_none.detach())
    with torch.no_grad():
        drawn = policy.velocity(x, sigma, condition, size=SIZE, guidance=GUIDANCE)
    torch.testing.assert_close(velocity, written_out, rtol=0, atol=1e-5)
    torch.testing.assert_close(velocity, drawn, rtol=0, atol=1e-5)
    found, wanted = gradient(policy, velocity), gradient(policy, written_out)
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-5)
    both = gradient(policy, of_none_too(policy, x, sigma, condition, empty))
    assert max(float((both[name] - wanted[name]).abs().max()) for name in wanted) > 1e-3


def of_none_too(policy, x, sigma, condition, empty):
    of_text = policy.velocity(x, sigma, condition, size=SIZE, guidance=1.0)
    of_none = policy.velocity(x, sigma, empty, size=SIZE, guidance=1.0)
    return of_none + GUIDANCE * (of_text - of_none)


def test_half_as_much_is_kept_for_the_backward_pass(tiny_sd3):
    kept = {}
    for detached in (False, True):
        policy, sizes = load(tiny_sd3, detach_unconditional=detached), {}
        x, sigma, condition = asked(policy)
        own = {p.untyped_storage().data_ptr() for p in policy.network.parameters()}

        def keep(t, sizes=sizes, own=own):
            if t.untyped_storage().data_ptr() not in own:
                sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            policy.velocity(x, sigma, condition, size=SIZE, guidance=GUIDANCE)
        kept[detached] = sum(sizes.values())
    assert 0.4 < kept[True] / kept[False] < 0.62


def test_models_without_such_a_half_refuse_it_and_without_guidance_it_is_said(tiny_sd3, tiny_flux):
    with pytest.raises(ConfigError, match="no unconditional half"):
        FlowPolicyConfig(model=Flux(tiny_flux), height=32, width=32, detach_unconditional=True).check()
    unguided = FlowPolicyConfig(model=Sd3(tiny_sd3), height=32, width=32, detach_unconditional=True)
    assert any("detach_unconditional" in said for said in unguided.without_effect())


@pytest.mark.parametrize("which", ["these weights", "an update later", "another copy"])
def test_the_half_that_the_sampler_kept_serves_while_the_weights_are_the_same(tiny_sd3, which):
    policy = load(tiny_sd3, detach_unconditional=True)
    engine = FlowEngine(steps=3, eval_steps=2)
    prompts = (Prompt("a", "a red circle"), Prompt("b", "a blue square"))
    rows = Rows(prompts, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), group_size=2)
    rollout, _ = engine.sample(policy, rows, step=0, seed=0, needs=frozenset())
    assert rollout.record.half.of_none_V.shape == rollout.record.latent_V.shape
    rollout = Rollout.cat([rollout.take(torch.tensor([3, 1])), rollout.take(torch.tensor([0]))])
    plan = policy.plan(rollout, rollout.mask_NA)
    policy.snapshots.take("other")
    if which == "an update later":
        with torch.no_grad():
            for p in policy.trainable.values():
                p.add_(0.01)
        policy.snapshots.changed()
    with policy.snapshots.use("other") if which == "another copy" else nullcontext():
        found, calls = values_of(policy, rollout, plan)
    forgotten = replace(rollout, record=replace(rollout.record, half=None))
    wanted, all_calls = values_of(policy, forgotten, plan)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert calls == (all_calls // 2 if which == "these weights" else all_calls)


def values_of(policy, rollout, plan):
    times = clock.use(clock.Clock())
    found = policy.logprobs(rollout, plan, needs=frozenset(), grad=True)
    values = torch.cat([values["logprobs"].detach() for _, values in found])
    return values, times.take()[1]["train_calls"]
