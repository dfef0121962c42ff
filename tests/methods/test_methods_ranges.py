"""Settings of stages and objectives that make no sense are refused when the config is read, with the number that was found."""

from __future__ import annotations

import json

import pytest
import torch
from test_methods_credit import column, table
from test_objectives import array

from grpo_mm.advantages import AgentNorm, MarkPositive, Shortness, SubAgentReward, ValueTracker
from grpo_mm.advantages.state.lagrangian import Constraint, Lagrangian
from grpo_mm.config.typed_yaml import component
from grpo_mm.errors import CheckpointError, ConfigError
from grpo_mm.objectives import HingeKl, Truncated, k3
from grpo_mm.registry import Role
from grpo_mm.rollout.collectors.budget import allocate, sampling_weights
from grpo_mm.rollout.table import id_numbers

CONSTRAINED = {"kind": "lagrangian", "constraints": {"a": {"threshold": 0.5}}}
REFUSED = [
    ("objective", {"kind": "clipped_ratio", "dual_clip": 1.0}, r"dual_clip = 1\.0; wanted above 1"),
    (
        "objective",
        {"kind": "clipped_ratio", "max_log_ratio": 0.0},
        r"max_log_ratio = 0\.0; wanted above 0 and at most 88",
    ),
    ("objective", {"kind": "clipped_ratio", "max_log_ratio": 89.0}, r"max_log_ratio = 89\.0"),
    ("objective", {"kind": "gmpo", "clip_high": 710.0}, r"clip_high = 710\.0, in log space; wanted 0 to 20"),
    ("objective", {"kind": "grao", "imitation": -0.5}, r"imitation = -0\.5"),
    ("objective", {"kind": "grao", "alignment": -1.0}, r"alignment = -1\.0"),
    ("objective", {"kind": "truncated", "of": {"kind": "disco"}}, r"of = Disco; wanted a surrogate"),
    ("objective", {"kind": "truncated", "of": {"kind": "hinge_kl"}}, r"of = HingeKl; wanted a surrogate"),
    ("objective", {"kind": "truncated", "of": {"kind": "kl"}}, r"of = Kl; wanted a surrogate"),
    ("advantage", {"kind": "virtual_norm", "eps": -1.0}, r"eps = -1; wanted 0 or more"),
    ("advantage", {"kind": "stratified_norm", "eps": -1.0}, r"eps = -1"),
    ("advantage", {"kind": "anchor_states", "eps": -1.0}, r"eps = -1"),
    ("advantage", {"kind": "anchor_states", "omega": -0.1}, r"omega = -0\.1"),
    ("advantage", {"kind": "prefix_tree", "eps": -1.0}, r"eps = -1"),
    ("advantage", {"kind": "prefix_tree", "ddof": 2}, r"ddof: found 2"),
    ("advantage", {"kind": "agent_norm", "eps": -1.0}, r"eps = -1"),
    ("advantage", {"kind": "agent_norm", "ddof": 2}, r"ddof: found 2"),
    ("advantage", {"kind": "choice_value", "eps": -1.0}, r"eps = -1"),
    (
        "advantage",
        {"kind": "fleet_norm", "eps": -1.0, "fairness_weight": -2.0},
        r"eps = -1, fairness_weight = -2; wanted 0",
    ),
    ("advantage", {**CONSTRAINED, "eps": -1.0}, r"eps = -1"),
    ("advantage", {"kind": "value_tracker", "half_life": 0.0}, r"a half-life above 0"),
    ("advantage", {"kind": "overlong_penalty", "weight": -1.0}, r"weight = -1"),
    ("advantage", {"kind": "kl_in_reward", "beta": -0.1}, r"beta = -0\.1"),
    ("advantage", {"kind": "consistency_bonus", "margin": -0.1}, r"margin = -0\.1"),
    ("advantage", {"kind": "temporal_bonus", "share": 1.5}, r"share = 1\.5; wanted 0 to 1"),
    ("advantage", {"kind": "novelty", "slope": -1.0, "cap": -1.0}, r"slope = -1, cap = -1"),
    ("advantage", {"kind": "sub_agent_reward", "partial": 1.1}, r"partial = 1\.1; wanted 0 to 1"),
]


@pytest.mark.parametrize(
    ("role", "settings", "said"), REFUSED, ids=lambda value: value["kind"] if isinstance(value, dict) else ""
)
def test_a_setting_out_of_its_range_is_refused(role, settings, said):
    with pytest.raises(ConfigError, match=said):
        component(Role(role), settings, path=role)


def test_a_penalty_that_reads_no_advantage_says_so():
    assert not HingeKl().reads_advantage
    assert (
        component(Role("objective"), {"kind": "truncated", "of": {"kind": "cispo", "weight": 0.0}}, path="o").weight
        == 0
    )
    assert Truncated.weight.fget is not None


def test_a_row_has_one_advantage_for_grao():
    assert component(Role("objective"), {"kind": "grao"}, path="objective").one_advantage_per_row


# ── columns ──


def test_a_stage_does_not_write_over_a_column_of_the_rollout():
    t = table(prompt=[0, 0], reward=[1, 0], length=[1, 2], shortness=[0.1, 0.2], positive=[1, 0])
    with pytest.raises(ConfigError, match="shortness: the rollout has a column 'shortness' already"):
        Shortness(max_length=4)(t)
    assert Shortness(max_length=4, column="short")(t).columns["short"].tolist() == [0.75, 0.5]
    with pytest.raises(ConfigError, match="mark_positive: the rollout has a column 'positive' already"):
        MarkPositive()(t)


def test_a_row_that_stands_in_its_group_less_than_once_is_refused():
    t = table(prompt=[0, 0], reward=[1, 0], agent=[0, 0], copies=[0.5, 1])
    with pytest.raises(ConfigError, match=r"copies = 0\.5; wanted 1 or more"):
        AgentNorm()(t)


def test_a_table_without_rows_passes_through():
    whole = torch.zeros(0, dtype=torch.int64)
    empty = table(prompt=[], reward=[], agent=whole, main=whole, valid=whole)
    assert len(SubAgentReward()(empty)) == 0


# ── state ──


def test_saved_multipliers_are_whole_and_within_the_range_of_the_config():
    stage = Lagrangian(constraints={"a": Constraint(0.5)}, highest=2.0)
    with pytest.raises(CheckpointError, match="constraint 'a' has no 'multiplier'"):
        stage.load_state_dict({"a": {"applicable": 1.0, "steps_at_cap": 0.0}})
    stage.load_state_dict({"a": {"multiplier": 5.0, "applicable": 9.0, "steps_at_cap": 0.0}})
    assert stage.state["a"]["multiplier"] == 2.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON"),
        ("[1, 2]", "holds a list"),
        ('{"a": 3}', "says 3 of 'a'"),
        ('{"a": [3]}', "of 'a'"),
        ('{"a": [9, 8]}', r"says \[9, 8\] of 'a'; wanted JSON of prompt id: \[successes, tries\] with 0 ≤ successes"),
        ('{"a": [0, Infinity]}', "of 'a'"),
        ('{"a": [NaN, 2]}', "of 'a'"),
        ('{"a": [true, true]}', "of 'a'"),
    ],
)
def test_probes_are_counts_of_successes_and_tries(tmp_path, text, said):
    (tmp_path / "probes.json").write_text(text)
    with pytest.raises(ConfigError, match=said):
        ValueTracker(probes=str(tmp_path / "probes.json")).check_files()


def test_a_checkpoint_takes_the_place_of_the_probes(tmp_path):
    file = tmp_path / "probes.json"
    file.write_text(json.dumps({"a": [3, 8], "never_asked": [8, 8]}))
    first = ValueTracker(probes=str(file))
    state = first.state_dict()
    assert state["counts"] and first.metrics() == {"tracker/prompts": 0.0, "tracker/value_mean": 0.5}
    file.unlink()
    again = ValueTracker(probes=str(file))
    again.load_state_dict(json.loads(json.dumps(state)))
    assert torch.equal(again.values(id_numbers(["a", "b"])), first.values(id_numbers(["a", "b"])))


def test_what_is_logged_of_a_tracker_is_of_the_prompts_that_were_asked(tmp_path):
    (tmp_path / "probes.json").write_text(json.dumps({"never_asked": [8, 8]}))
    tracker = ValueTracker(probes=str(tmp_path / "probes.json"))
    tracker.update(table(prompt=[0], reward=[1.0], prompt_id=id_numbers(["a"])))
    wanted = {"tracker/prompts": 1.0, "tracker/value_mean": pytest.approx(1.4375 / 1.875)}
    assert tracker.metrics() == wanted
    again = ValueTracker()
    again.load_state_dict(json.loads(json.dumps(tracker.state_dict())))
    assert again.metrics() == wanted


# ── numbers ──


def test_k3_of_a_gap_beyond_float32_is_finite_and_costs_no_update():
    logprob = torch.tensor([-200.0, -1.0], requires_grad=True)
    value = k3(logprob, torch.zeros(2))
    value.sum().backward()
    assert value.isfinite().all() and value[0] > 1e8 and logprob.grad.isfinite().all()
    assert logprob.grad.tolist() == pytest.approx([0, 1 - torch.e], abs=1e-5)
    assert k3(array(0), array(0.1)).item() == pytest.approx(0.00517, abs=1e-5)


@pytest.mark.parametrize("success", [-0.1, 1.1, float("nan")])
def test_a_predicted_success_is_a_probability(success):
    with pytest.raises(ValueError, match="a predicted success is .*; wanted 0 to 1"):
        sampling_weights(column(0.5, success))
    with pytest.raises(ValueError, match="a predicted success is .*; wanted 0 to 1"):
        allocate(column(0.5, success), total=4)


def test_every_prompt_may_be_drawn_and_has_a_sample():
    with pytest.raises(ValueError, match="floor = 0; wanted above 0"):
        sampling_weights(column(0.5), floor=0)
    with pytest.raises(ValueError, match="at_least = 0; wanted 1 or more"):
        allocate(column(0.5, 0.5), total=2, at_least=0)
