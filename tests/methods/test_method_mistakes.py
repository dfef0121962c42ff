"""What people do with methods by name, and what must not happen silently."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from tiny_runs import write_config
from toy import ToyReward
from toy_learning import config_of

from grpo_mm.config.run_config import plain, read
from grpo_mm.entry import train
from grpo_mm.errors import ConfigError
from grpo_mm.looking.metrics import read as read_metrics
from grpo_mm.processes.distributed import Processes
from grpo_mm.rollout.table import Table
from grpo_mm.training.learner import Learner
from grpo_mm.types import Rollout

QUICK = ROOT / "configs/quickstart/flow.yaml"


def test_a_config_trained_twice_starts_without_what_the_first_run_learnt(tiny_sd3, tmp_path):
    path = write_config(tmp_path, tiny_sd3, {"method": "spo", "group_size": 2, "steps": 2, "eval_prompts": None})
    config = read(path, ["advantage=null", "objective=null", "rewards={ink: {use: jpeg}}", "collector=null"])
    for name in ("one", "two"):
        train(replace(config, name=name))
    first, second = (
        [
            {k: v for k, v in row.items() if "time/" not in k}
            for row in read_metrics(config.folder.parent / n / "metrics.jsonl")
        ]
        for n in ("one", "two")
    )
    assert first == second and first[-1]["tracker/prompts"] > 0


def test_a_method_says_what_the_file_keeps_of_its_own(caplog):
    with caplog.at_level(logging.WARNING):
        kept = read(QUICK, ["method=gspo"])
    assert "the config has its own" in caplog.text and "advantage=null" in caplog.text
    assert kept.objective == read(QUICK).objective
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        taken = read(QUICK, ["method=gspo", "advantage=null", "objective=null", "updates=null"])
    assert not caplog.text and taken.objective[0].ratio == "row"


def test_a_resolved_config_is_read_again_without_a_word(tmp_path, caplog):
    import yaml

    config = config_of("crpo")
    path = tmp_path / "c.yaml"
    rewards = {n: {"use": "jpeg", "weight": s.weight} for n, s in config.rewards.items()}
    settings = [
        "method=crpo",
        "advantage=null",
        "objective=null",
        f"rewards={yaml.safe_dump(rewards, default_flow_style=True)}",
    ]
    path.write_text(yaml.safe_dump(plain(read(QUICK, settings))))
    with caplog.at_level(logging.WARNING):
        assert plain(read(path)) == yaml.safe_load(path.read_text())
    assert "of its own" not in caplog.text


@pytest.mark.parametrize("loss", [{"ratio": "row"}, {"ratio": "product", "aggregate": "row"}])
def test_one_ratio_for_a_row_is_refused_where_actions_earn_on_their_own(loss):
    with pytest.raises(ConfigError, match="one ratio for a whole row"):
        config_of("tempo", objective=[{"kind": "clipped_ratio", **loss}]).check_settings()


@pytest.mark.parametrize("kind", ["top_entropy", "truncated"])
@pytest.mark.parametrize(
    ("inner", "settings", "said"),
    [
        ({"aggregate": -2}, {}, "objective clipped_ratio: aggregate = -2"),
        ({"ratio": "row"}, {"updates": {"by": "action", "count": 2}}, "{kind} needs whole rows"),
    ],
)
def test_a_term_inside_of_another_is_checked_as_if_it_stood_alone(kind, inner, settings, said):
    term = {"kind": kind, "of": {"kind": "clipped_ratio", **inner}}
    with pytest.raises(ConfigError, match=said.replace("{kind}", kind)):
        config_of("grpo", objective=[term], **settings).check_settings()
    config_of("grpo", objective=[{"kind": kind, "of": {"kind": "clipped_ratio"}}], **settings).check_settings()


@pytest.mark.parametrize("aggregate", [0, -2])
def test_a_denominator_of_nothing_is_refused(aggregate):
    with pytest.raises(ConfigError, match="aggregate"):
        config_of("grpo", objective=[{"kind": "clipped_ratio", "aggregate": aggregate}]).check_settings()


@pytest.mark.parametrize("kind", ["dynamic_sampling", "unsolved"])
def test_a_collector_that_looks_at_one_of_two_rewards_wants_its_name(kind):
    rewards = {"a": {"use": ToyReward()}, "b": {"use": ToyReward()}}
    with pytest.raises(ConfigError, match=f"{kind}: metric = None; there are a, b"):
        config_of("grpo", collector={"kind": kind}, rewards=rewards).check_settings()
    with pytest.raises(ConfigError, match="metric = c; there are a, b"):
        config_of("grpo", collector={"kind": kind, "metric": "c"}, rewards=rewards).check_settings()
    config_of("grpo", collector={"kind": kind, "metric": "b"}, rewards=rewards).check_settings()


@pytest.mark.parametrize(("first", "most"), [(9, 12), (2, 4)])
def test_a_budget_that_cannot_be_spent_is_refused(first, most):
    collector = {"kind": "allocate", "rule": {"kind": "by_uncertainty"}, "first": first, "most": most}
    with pytest.raises(ConfigError, match="group_size = 8 samples of a prompt on average"):
        config_of("grpo", collector=collector).check_settings()


def test_prompts_of_a_step_are_drawn_without_replacement():
    learner = Learner(config_of("spo", prompts_per_step=4), Processes(device="cpu"), samples=Path("."))
    for step in range(6):
        (batch,), _ = learner.rollout(step)
        names = [p.repeat_of or p.id for p in batch.rollout.prompts]
        assert len(set(names)) == 4


class Broken:
    """A user's stage that does not return what it should."""

    min_group_size = 1

    def __init__(self, change) -> None:
        self.change = change

    def __call__(self, table: Table):
        return self.change(table)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: None, "returned a NoneType; wanted a Table"),
        (lambda t: dict(t.values), "returned a dict"),
        (lambda t: t.with_values({"r": torch.zeros(3)}), "no float tensor of"),
        (lambda t: t.with_values({"r": torch.zeros(len(t), dtype=torch.int64)}), "no float tensor of"),
    ],
)
def test_a_stage_that_returns_something_else_is_named(change, message):
    with pytest.raises(ConfigError, match=message):
        config_of("grpo", advantage=[Broken(change)]).check_settings()


def test_a_column_that_does_not_fit_its_rows_is_refused():
    zeros = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="the column 'length' has shape .3,., wanted"):
        Rollout((), zeros[:, 0].long(), zeros[:, 0].long(), zeros, zeros.bool(), None, {"length": torch.ones(3)})
