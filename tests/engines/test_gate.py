"""A run with an engine of its own begins only where the engine draws what is trained."""

from __future__ import annotations

import json

import pytest
from tiny_runs import record, weights

from grpo_mm.entry import train
from grpo_mm.errors import ConfigError
from grpo_mm.looking.report.page import write_report

ENGINES = '''
import copy
from dataclasses import dataclass, replace
import torch
from grpo_mm.pipelines.vlm.sampling.generation import HfGenerator

@dataclass(eq=False)
class Right:
    """Another program in all but its numbers."""
    def check(self):
        pass
    def generate(self, network, requests, draw):
        made = HfGenerator().generate(network, requests, draw)
        return replace(made, prompt_ids=tuple(r.context.input_ids_L for r in requests))

class Hot(Right):
    def generate(self, network, requests, draw):
        made = super().generate(network, requests, replace(draw, temperature=2 * draw.temperature))
        return made

class Stale(Right):
    old = None
    def generate(self, network, requests, draw):
        if self.old is None:
            self.old = copy.copy(network)
            self.old.model = copy.deepcopy(network.model)
        return super().generate(self.old, requests, draw)

class Wrong(Right):
    """It says of which weights its answers are, and they are others."""
    calls = 0
    def generate(self, network, requests, draw):
        self.calls += 1
        which = network.in_place.which
        return replace(super().generate(network, requests, draw), weights=which if self.calls < 7 else (-1, ""))
'''
SHORT = ["steps=2", "eval_prompts={}", "threads=1", "prompts_per_step=2", "group_size=3", "engine.max_new_tokens=10", "checkpoints.every=2"]  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch):
    (tmp_path / "drawing_engines.py").write_text(ENGINES)
    monkeypatch.syspath_prepend(str(tmp_path))

    def start(kind: str) -> None:
        train("configs/quickstart/video.yaml", [f"runs_dir={tmp_path}", "name=x", *SHORT, f"engine.generator={kind}"])

    return start


def test_a_right_engine_is_told_in_the_report_and_trains_as_the_own_one(run, tmp_path):
    run("{kind: drawing_engines:Right}")
    found = json.loads((tmp_path / "x/sampler.json").read_text())["findings"]
    assert len(found) > 8 and not any(row["differs"] for row in found)
    assert "log-probability of all tokens" in write_report(tmp_path / "x").read_text()
    examined, rows = weights(tmp_path / "x", 2), record(tmp_path / "x")
    (tmp_path / "x").rename(tmp_path / "examined")
    run("{kind: hf}")
    assert weights(tmp_path / "x", 2) == examined and len(record(tmp_path / "x")) == len(rows)
    assert not (tmp_path / "x/sampler.json").exists()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("Hot", "first in: log-probability of first tokens"),
        ("Stale", "weights, or what it keeps of prompts it has read"),
    ],
)
def test_a_wrong_engine_trains_nothing(run, tmp_path, kind, words):
    with pytest.raises(ConfigError, match=words):
        run(f"{{kind: drawing_engines:{kind}}}")
    assert not list((tmp_path / "x/checkpoints").iterdir()) and not (tmp_path / "x/metrics.jsonl").exists()
    assert any(row["differs"] for row in json.loads((tmp_path / "x/sampler.json").read_text())["findings"])


def test_answers_of_other_weights_are_not_trained_on(run):
    with pytest.raises(RuntimeError, match="are in place"):
        run("{kind: drawing_engines:Wrong}")
