"""Do the sampler and the trainer of a flow policy compute the same? σ, guidance, noise, then log-probabilities of stored steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.findings import Finding
from grpo_mm.pipelines.flow.own_schedule import grid_of, own_schedule
from grpo_mm.pipelines.flow.policy import FlowPolicy
from grpo_mm.pipelines.flow.sampling import encode_rows, initial_noise
from grpo_mm.processes.rng import stream
from grpo_mm.types import Prompt, Rollout, Rows

EXACT = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float64: 1e-9}
"""Largest difference of a log-probability, which is a mean over latent elements."""
SHARE = 1e-4
"""Of the largest value of a velocity."""
CHANGE = 0.02


def examine(engine: Any, policy: FlowPolicy, rows: Rows, *, seed: int) -> Iterator[Finding]:
    """One finding after the other, on some rows of a few prompts. The weights are changed on the way, and put back."""
    engine = engine.on_grid_of(policy)
    yield _text_states(policy, rows.prompts)
    yield _grid(engine, policy)
    yield from _guidance(policy, rows, seed)
    yield from _noise(policy, rows, seed)
    needs = frozenset({"logprobs"})
    rollout, _ = engine.sample(policy, rows, step=0, seed=seed, needs=needs)
    yield from _replayed(policy, rollout, "")
    yield from _alone(policy, rollout)
    before = {name: p.detach().clone() for name, p in policy.trainable.items()}
    with torch.no_grad():
        for name, p in policy.trainable.items():
            noise = torch.randn(p.shape, generator=stream(0, "examined", name)).to(p)
            p.add_(CHANGE * (p.std(unbiased=False) + 0.1) * noise)
    try:
        rollout, _ = engine.sample(policy, rows, step=0, seed=seed, needs=needs)
        yield from _replayed(policy, rollout, ", weights changed")
    finally:
        with torch.no_grad():
            for name, p in policy.trainable.items():
                p.copy_(before[name])


def _text_states(policy: FlowPolicy, prompts: Sequence[Prompt]) -> Finding:
    """A text encoded again, without what is kept of it."""
    kept = policy.encode(prompts[:1])
    policy.forget_texts()
    again = policy.encode(prompts[:1])
    apart = max(float((kept[name].double() - again[name].double()).abs().max()) for name in kept)
    return Finding("states of texts", apart, 0, "kept against encoded again")


def _grid(engine: Any, policy: FlowPolicy) -> Finding:
    tokens = policy.family.image_tokens(policy.pipe, *policy.size(evaluation=False))
    here = engine.schedule(engine.steps, image_tokens=tokens)
    try:
        own = own_schedule(policy.pipe, **grid_of(policy.family))(engine.steps, image_tokens=tokens)
    except ConfigError as error:
        return Finding("σ", float("nan"), 0, f"the checkpoint's scheduler cannot be followed: {error}", asked=False)
    apart = float((here - own).abs().max())
    return Finding("σ", apart, 1e-6, "engine.schedule against the checkpoint's scheduler", asked=False)


def _guidance(policy: FlowPolicy, rows: Rows, seed: int) -> Iterator[Finding]:
    """The velocity of the sampler and of the trainer, one forward each; and that the guidance and the text count."""
    size, guidance = policy.size(evaluation=False), policy.config.guidance
    condition, condition_N = encode_rows(policy, rows, size=size)
    here = {name: value[condition_N] for name, value in condition.items()}
    x = initial_noise(policy, _keys(rows), seed=seed, step="examined", size=size)
    sigma = torch.full((len(rows),), 0.7, device=x.device, dtype=x.dtype)
    with torch.no_grad():
        drawn = policy.velocity(x, sigma, here, size=size, guidance=guidance)
        unguided = policy.velocity(x, sigma, here, size=size, guidance=1.0)
    trained = policy.velocity(x, sigma, here, size=size, guidance=guidance).detach()
    largest = float(drawn.abs().max())
    bound = SHARE if policy.dtype != torch.bfloat16 else 0.05
    yield Finding(
        "velocity, as a share of its largest", _gap(drawn, trained) / largest, bound, "without a graph against with one"
    )
    if guidance != 1:
        words = f"how much guidance {guidance:g} changes the velocity; 0: it is dropped"
        yield Finding("share that guidance changes", _gap(drawn, unguided) / largest, 1e-6, words, at_least=True)


def _noise(policy: FlowPolicy, rows: Rows, seed: int) -> Iterator[Finding]:
    size = policy.size(evaluation=False)
    one, again = (initial_noise(policy, _keys(rows), seed=seed, step=0, size=size) for _ in range(2))
    yield Finding("noise of the same seed", _gap(one, again), 0, "drawn a second time")
    equal = sum(bool((one[i] == one[j]).all()) for i in range(len(one)) for j in range(i))
    yield Finding("rows with the noise of another", float(equal), 0, "initial latents of all rows")


def _replayed(policy: FlowPolicy, rollout: Rollout, when: str) -> Iterator[Finding]:
    mask_NA = rollout.mask_NA.cpu()
    apart_NA = (_logprobs(policy, rollout) - rollout.behaviour_NA.cpu().double()).abs().where(mask_NA, 0)
    bound = EXACT[policy.dtype]
    words = f"sampler against trainer, {int(mask_NA.sum())} steps; by step {', '.join(f'{v:.1g}' for v in apart_NA.amax(0).tolist())}"
    yield Finding(f"log-probability of steps{when}", float(apart_NA.max()), bound, words)


def _alone(policy: FlowPolicy, rollout: Rollout) -> Iterator[Finding]:
    """How far rounding takes the trainer itself: why a ratio is not exactly 1."""
    own_NA, mask_NA = _logprobs(policy, rollout), rollout.mask_NA.cpu()
    with _having(policy, config=replace(policy.config, micro_batch=1)):
        apart = float((_logprobs(policy, rollout) - own_NA).abs().where(mask_NA, 0).max())
    yield Finding("trainer: one step in a forward", apart, EXACT[policy.dtype], "the trainer against itself")
    if policy.config.lora is None and policy.dtype != torch.float64:  # an adapter's base is of one precision
        other = torch.bfloat16 if policy.dtype == torch.float32 else torch.float32
        with _having(policy, dtype=other, _reduced=other == torch.bfloat16):
            apart = float((_logprobs(policy, rollout) - own_NA).abs().where(mask_NA, 0).max())
        yield Finding("trainer: bfloat16 against float32", apart, EXACT[torch.bfloat16], "itself", asked=False)


@torch.no_grad()
def _logprobs(policy: FlowPolicy, rollout: Rollout) -> Tensor:
    """[N, A] on the CPU; 0 where nothing is trained."""
    found_NA = torch.zeros(rollout.behaviour_NA.shape, dtype=torch.float64)
    plan = policy.plan(rollout, rollout.mask_NA)
    for index, values in policy.logprobs(rollout, plan, needs=frozenset({"logprobs"}), grad=False):
        found_NA.view(-1)[index.cpu()] = values["logprobs"].double().cpu()
    return found_NA


def _keys(rows: Rows) -> list[tuple[Prompt, int]]:
    return [(rows.prompts[p], s) for p, s in zip(rows.prompt_N.tolist(), rows.sample_N.tolist(), strict=True)]


def _gap(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).abs().max())


@contextmanager
def _having(policy: FlowPolicy, **values: Any) -> Iterator[None]:
    """Other attributes of the policy, for a while."""
    before = {name: getattr(policy, name) for name in values}
    for name, value in values.items():
        setattr(policy, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(policy, name, value)
