"""Networks whose layers are compiled: the same values and gradients, graph breaks where they are meant, few graphs."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import tiny_vlm
import torch
from tiny_runs import write_config

from grpo_mm.entry import train
from grpo_mm.errors import ConfigError
from grpo_mm.looking import metrics
from grpo_mm.pipelines.flow.models.adapters import Lora
from grpo_mm.pipelines.flow.models.flux import Flux
from grpo_mm.pipelines.flow.models.sd3 import Sd3
from grpo_mm.pipelines.flow.policy import FlowPolicyConfig
from grpo_mm.pipelines.vlm.models.adapters import Lora as TextLora
from grpo_mm.processes import compiled
from grpo_mm.types import Prompt

CPU = torch.device("cpu")
FAMILIES = {"sd3": Sd3, "flux": Flux}
slow = pytest.mark.slow


@pytest.fixture
def backend(request, monkeypatch):
    """What runs the graphs; "eager" runs what was traced as it stands."""
    from torch._dynamo.utils import counters

    monkeypatch.setattr(compiled, "BACKEND", request.param)
    try:
        compiled.check_compiler(CPU)
    except ConfigError as error:
        pytest.skip(str(error))
    torch._dynamo.reset()
    counters.clear()
    yield request.param
    torch._dynamo.reset()
    counters.clear()


def by_backend(cases, quick):
    """The quick cases under both, the others as they are traced."""
    found = [pytest.param(*case, "eager", marks=() if case in quick else slow) for case in cases]
    return found + [pytest.param(*case, "inductor", marks=slow) for case in quick]


def assert_same(plain, ours):
    """(values, gradients by name) of both: to 1e-5 of their norm."""
    for a, b in zip(plain[0], ours[0], strict=True):
        assert (a - b).norm() <= 1e-5 * a.norm(), (a - b).abs().max()
    assert plain[1].keys() == ours[1].keys() and len(plain[1]) > 5
    for name, gradient in plain[1].items():
        assert (gradient - ours[1][name]).norm() <= 1e-5 * gradient.norm() + 1e-7, name


def gradients(policy):
    return {name: p.grad for name, p in policy.trainable.items() if p.grad is not None}


def velocities(policy):
    """With and without a graph, at several numbers of rows."""
    condition = policy.encode([Prompt("a", "a red circle")])
    shape, found = policy.family.latent_shape(policy.pipe, 32, 32), []
    for rows in (2, 3, 5):
        x = torch.randn(rows, *shape, generator=torch.Generator().manual_seed(rows))
        given = (x, torch.linspace(0.2, 0.9, rows), {k: v.expand(rows, *v.shape[1:]) for k, v in condition.items()})
        with torch.no_grad():
            found.append(policy.velocity(*given, size=(32, 32), guidance=2.0))
        velocity = policy.velocity(*given, size=(32, 32), guidance=2.0)
        (velocity * x).sum().backward()
        found.append(velocity.detach())
    return found, gradients(policy)


FLOW = [("flux", None, False), ("flux", Lora(rank=2), True), ("sd3", None, True), ("sd3", Lora(rank=2), False)]


@pytest.mark.parametrize("kind, lora, again, backend", by_backend(FLOW, FLOW[:1]), indirect=["backend"])
def test_flow_networks_are_traced_without_a_break(kind, lora, again, backend, request):
    config = FlowPolicyConfig(
        model=FAMILIES[kind](request.getfixturevalue(f"tiny_{kind}")), lora=lora, gradient_checkpointing=again,
        height=32, width=32, text_length=16, guidance=2.0,
    )  # fmt: skip
    found = []
    for compile in (False, True):
        torch.manual_seed(0)
        found.append(velocities(replace(config, compile=compile).load(CPU)))
    assert_same(*found)
    counts = compiled.compiled_counts()
    assert counts["compile/graph_breaks"] == 0
    assert 0 < counts["compile/graphs"] <= 8  # classes of blocks, by whether there are gradients


def logprobs(policy):
    """Of answers to pictures, videos and texts of several lengths, drawn first; the plain policy draws the same."""
    rollout, _ = tiny_vlm.sample(policy)
    found = [rollout.record.token_NA.float(), rollout.behaviour_NA.nan_to_num()]
    for _, values in policy.logprobs(
        rollout, policy.plan(rollout, rollout.mask_NA), needs=frozenset({"entropy"}), grad=True
    ):
        weight = torch.linspace(-1, 1, values["logprobs"].numel()).view_as(values["logprobs"])
        (values["logprobs"] * weight).sum().backward()
        found += [values["logprobs"].detach(), values["entropy"].detach()]
    return found, gradients(policy)


TEXTS = {
    "shared, tower": {"prefix_sharing": "on", "train_tower": True},
    "repeated, computed again": {"prefix_sharing": "off", "gradient_checkpointing": True},
    "adapter": {"lora": TextLora(rank=4)},
}
CASES = [(family, name) for family in tiny_vlm.FAMILIES for name in TEXTS]
QUICK = CASES[::4]
"""Each family and each setting once."""


@pytest.mark.parametrize("family, name, backend", by_backend(CASES, QUICK), indirect=["backend"])
def test_texts_break_at_attention_only(family, name, backend):
    settings = {"micro_batch": 2, **TEXTS[name]}
    plain, ours = (logprobs(tiny_vlm.policy(family, compile=compile, **settings)) for compile in (False, True))
    assert_same(plain, ours)
    why = compiled.breaks()
    assert list(why) == ["Skip calling `torch.compiler.disable()`d function"]
    counts = compiled.compiled_counts()
    assert counts["compile/graph_breaks"] == sum(why.values())
    assert (
        0 < counts["compile/graphs"] <= 24 and counts["compile/graph_breaks"] <= 24
    )  # however many layers and lengths


@pytest.mark.parametrize("backend", ["eager"], indirect=True)
def test_the_log_and_the_record_count(backend, tiny_sd3, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="grpo_mm.training.step_times"):
        train(write_config(tmp_path, tiny_sd3, {"steps": 2, "policy": {"compile": True}}))
    rows = [row for row in metrics.read(tmp_path / "runs/tiny/metrics.jsonl") if "compile/graphs" in row]
    assert len(rows) == 2 and rows[0]["compile/graphs"] >= 2 and {row["compile/graph_breaks"] for row in rows} == {0.0}
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("compiled: ")]
    assert lines[0] == f"compiled: {rows[0]['compile/graphs']:.0f} graphs, 0 graph breaks"
    assert len(lines) == 1 + (rows[1]["compile/graphs"] != rows[0]["compile/graphs"])


def test_a_machine_without_a_compiler_is_told(tiny_sd3, monkeypatch):
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(ConfigError, match=r"policy.compile: on a CPU it needs a C\+\+ compiler"):
        FlowPolicyConfig(model=Sd3(tiny_sd3), compile=True).load(CPU)
