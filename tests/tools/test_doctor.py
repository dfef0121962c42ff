"""`grpo-mm doctor`: sampler against trainer, from a config."""

from dataclasses import replace

import pytest
from tiny_runs import write_config
from typer.testing import CliRunner

from grpo_mm.cli import app
from grpo_mm.findings import Finding, as_table, first_difference
from grpo_mm.pipelines.flow import policy as flow_policy
from grpo_mm.pipelines.flow.models.sd3 import Sd3
from grpo_mm.tools.doctor import doctor, report


def test_the_first_difference_is_named_and_notes_are_none():
    findings = [
        Finding("a", 0.0, 0.0), Finding("b", 9.0, 1.0, "told only", asked=False), Finding("p", 0.5, 1e-4, at_least=True),
        Finding("n", float("nan"), 0.0), Finding("c", 2.0, 1.0, "the cause"), Finding("d", 3.0, 1.0, "a consequence"),
    ]  # fmt: skip
    assert first_difference(findings).name == "c" and first_difference(findings[:4]) is None
    text, is_well = report(findings)
    assert not is_well and text.endswith("First difference: c. Usual cause: the cause.")
    assert [line.split()[0] for line in as_table(findings).splitlines()] == [
        "ok",
        "note",
        "ok",
        "–",
        "DIFFERS",
        "DIFFERS",
    ]


def test_a_flow_config_is_well_and_a_dropped_guidance_is_not(tiny_sd3, tmp_path, monkeypatch):
    config = write_config(tmp_path, tiny_sd3, {"policy": {"guidance": 3.0, "lora": None}})
    done = CliRunner().invoke(app, ["doctor", str(config)])
    assert done.exit_code == 0, done.output
    assert "log-probability of steps, weights changed" in done.output and "compute the same" in done.output
    there = Sd3.velocity

    def dropped(self, *args, guidance, **settings):
        import torch

        return there(self, *args, guidance=guidance if torch.is_grad_enabled() else 1.0, **settings)

    monkeypatch.setattr(Sd3, "velocity", dropped)
    done = CliRunner().invoke(app, ["doctor", str(config)])
    assert done.exit_code == 1 and "First difference: velocity" in done.output
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("what", ["same noise", "stale kept texts", "another step"])
def test_mistakes_of_a_flow_sampler_are_found(what, tiny_sd3, tmp_path, monkeypatch):
    config = write_config(tmp_path, tiny_sd3, {"policy": {"guidance": 3.0}})
    if what == "same noise":
        from grpo_mm.pipelines.flow import sampling
        from grpo_mm.pipelines.flow.engines import examine

        there = sampling.initial_noise
        one = lambda policy, keys, **how: there(policy, keys, **how)[:1].expand(len(keys), -1, -1, -1)  # noqa: E731
        monkeypatch.setattr(examine, "initial_noise", one)
        wanted = "rows with the noise of another"
    elif what == "stale kept texts":
        there = flow_policy.FlowPolicy.encode

        def encode(self, prompts, **how):
            found = there(self, prompts, **how)
            self._seen = getattr(self, "_seen", 0) + 1
            return {k: v + 0.1 for k, v in found.items()} if self._seen == 1 else found

        monkeypatch.setattr(flow_policy.FlowPolicy, "encode", encode)
        wanted = "states of texts"
    else:
        there = flow_policy.FlowPolicy.logprobs

        def logprobs(self, *args, **settings):
            for index, values in there(self, *args, **settings):
                yield index, values | {"logprobs": values["logprobs"] + 0.01}

        monkeypatch.setattr(flow_policy.FlowPolicy, "logprobs", logprobs)
        wanted = "log-probability of steps"
    first = first_difference(doctor(config))
    assert first is not None and first.name == wanted, first


def test_an_engine_that_cannot_be_examined_is_refused(tiny_sd3, tmp_path, monkeypatch):
    from grpo_mm.errors import ConfigError
    from grpo_mm.pipelines.flow.engines.engine import FlowEngine

    monkeypatch.delattr(FlowEngine, "examine")
    with pytest.raises(ConfigError, match="has no `examine`"):
        doctor(write_config(tmp_path, tiny_sd3))
    assert replace(Finding("a", 1.0, 0.0)).differs
