"""Baselines and scales of the advantage, budgets and masks: the worked tables of each paper, identities and edges."""

import json
import math

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import only, rollout
from tiny_runs import record, write_config

from grpo_mm.advantages import (
    Average,
    BetaNorm,
    ConditionalTruncationMask,
    DropDegenerate,
    GroupNorm,
    KlInReward,
    MedianNorm,
    NegativeWeight,
    OverlongMask,
    OverlongPenalty,
    Shrinkage,
    StratifiedNorm,
    TrackedPrior,
    ValueTracker,
    VirtualNorm,
    WeightedSum,
    beta_norm,
    beta_parameters,
    beta_weight,
    credit,
    data_weight,
    draw_another,
    first_useful,
    group_norm,
    initial_counts,
    median_norm,
    overlong_penalty,
    paired_prompts,
    pivots,
    repeats,
    shrunk_baseline,
    signed_outcome,
    silenced,
    stratified_norm,
    tracked,
    tracker_memory,
    useful_groups,
    virtual_norm,
)
from grpo_mm.config.methods import METHODS, find, preset
from grpo_mm.config.typed_yaml import build
from grpo_mm.entry import train
from grpo_mm.errors import ConfigError
from grpo_mm.registry import lookup
from grpo_mm.rollout.collectors.budget import allocate, budget_utility, draw_prompts, sampling_weights
from grpo_mm.rollout.groups import group_sum
from grpo_mm.rollout.table import Table, gather, id_numbers, local_table
from grpo_mm.types import Batch, Outputs, Prompt, Rollout
from grpo_mm.weights.stateful import load_parts, stateful_parts

NAN = math.nan
MINE = [method for method in METHODS if method.tested == "tests/methods/test_methods_baselines.py"]
WIDE = ["length", "ref_log_ratio", "truncated", "incorrect", "repetitive", "stratum", "prior"]
PRINTED = 6e-5
"""Half of the last digit of the worked tables, and a little."""
exactly = dict(rtol=0, atol=0, equal_nan=True)


def column(*values):
    return torch.tensor(values, dtype=torch.float64)


def table(*, prompt, failed=None, weights=None, columns=None, **values):
    """A gathered table of one rank, a row per sample; columns as plain lists."""
    size = len(prompt)
    prompt_N = torch.tensor(prompt)
    known = {
        "prompt": prompt_N,
        "sample": torch.arange(size),
        "action": torch.full((size,), -1),
        "tag": torch.zeros(size, dtype=torch.int64),
        "failed": torch.tensor(failed or [False] * size),
        "local_row": torch.arange(size),
        "rank": torch.zeros(size, dtype=torch.int64),
        "prompt_id": prompt_N + 100,
    }
    made = {name: torch.as_tensor(c) for name, c in (columns or {}).items()}
    return Table({n: column(*v) for n, v in values.items()}, known | made, weights or {})


def is_close(found, wanted, atol=PRINTED):
    torch.testing.assert_close(
        found.double(), torch.as_tensor(wanted, dtype=torch.float64), rtol=0, atol=atol, equal_nan=True
    )


def one_group(estimator, *values, **how):
    return estimator(column(*values), torch.zeros(len(values), dtype=torch.int64), **how)


def run_preset(name, t):
    """The advantage stages of a preset on a table."""
    for part in preset(name)["advantage"]:
        kind, options = part["kind"], {k: v for k, v in part.items() if k != "kind"}
        t = build(lookup("advantage", kind), options)(t)
    return only(t)


# ── GRPO, Dr.GRPO, RLOO ──


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        (dict(ddof=0, eps=0), [1.7321, -0.5774, -0.5774, -0.5774]),
        (dict(ddof=1, eps=0), [1.5, -0.5, -0.5, -0.5]),
        (dict(scale="none"), [0.75, -0.25, -0.25, -0.25]),
        (dict(center="leave_one_out", scale="none"), [1, -0.3333, -0.3333, -0.3333]),
    ],
    ids=["GRPO-pop", "GRPO-unb", "Dr.GRPO", "RLOO"],
)
def test_one_success_in_four(how, wanted):
    is_close(one_group(group_norm, 1, 0, 0, 0, **how), wanted)


@pytest.mark.parametrize(
    ("name", "wanted", "atol"),
    [("grpo", [1.5, -0.5, -0.5, -0.5], 5e-4), ("dr_grpo", [0.75, -0.25, -0.25, -0.25], 1e-9)],
)
def test_presets_give_the_worked_numbers(name, wanted, atol):
    is_close(run_preset(name, table(prompt=[0] * 4, r=[1, 0, 0, 0])), wanted, atol)


def test_leave_one_out_is_dr_grpo_times_g_over_g_minus_1():
    reward, group = torch.rand(12, dtype=torch.float64), torch.arange(12) % 3
    loo = group_norm(reward, group, center="leave_one_out", scale="none")
    is_close(loo, 4 / 3 * group_norm(reward, group, scale="none"), 1e-12)


def test_leave_one_out_counts_only_the_scored_and_a_lone_one_earns_nothing():
    reward, group = column(1, 0, NAN, 7, NAN), torch.tensor([0, 0, 0, 1, 1])
    is_close(group_norm(reward, group, center="leave_one_out", scale="none"), [1, -1, NAN, 0, NAN])


def test_kl_joins_the_reward_before_the_comparison():
    t = table(prompt=[0] * 4, r=[1, 0, 0, NAN], columns={"ref_log_ratio": [2.0, 0.0, -4.0, 3.0]})
    is_close(only(KlInReward(beta=0.05)(t)), [0.9, 0, 0.2, NAN])
    is_close(run_preset("rloo", t), [0.8, -0.55, -0.25, NAN])


def test_terms_of_the_reward_want_one_component():
    for stage in (KlInReward(), OverlongPenalty()):
        with pytest.raises(ConfigError, match="weighted_sum"):
            stage(table(prompt=[0, 0], a=[1, 0], b=[0, 1], columns={"length": [1, 2], "ref_log_ratio": [0.0, 0.0]}))


# ── DAPO ──


def test_the_overlong_penalty_of_the_table():
    assert float(overlong_penalty(torch.tensor(18000), max_length=20480, buffer=4096)) == pytest.approx(
        -0.3945, abs=5e-5
    )
    found = overlong_penalty(torch.tensor([10, 80, 90, 100, 200]), max_length=100, buffer=20)
    is_close(found, [0, 0, -0.5, -1, -1], 0)
    t = table(prompt=[0, 0, 0], r=[1, 1, NAN], columns={"length": [70, 90, 90]})
    is_close(only(OverlongPenalty(max_length=100, buffer=20, weight=2)(t)), [1, 0, NAN], 1e-12)
    with pytest.raises(ValueError, match="buffer = 0"):
        OverlongPenalty(buffer=0)


def test_useful_groups_vary_in_the_metric():
    metric = column(1, 1, 0, 0, 1, 0, 1, NAN, NAN, NAN)
    group = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    assert useful_groups(metric, group).tolist() == [False, False, True, False, False]
    assert useful_groups(metric, group, drop="best").tolist() == [False, True, True, False, False]


def test_the_surplus_of_useful_groups_is_cut():
    useful = torch.tensor([True, False, True, True])
    assert first_useful(useful, at_most=2).tolist() == [True, False, True, False]
    assert first_useful(useful, at_most=None).tolist() == useful.tolist()


def test_groups_are_chosen_by_the_metric_before_the_reward_is_shaped():
    columns = {"length": [100, 200, 100, 200]}
    t = table(prompt=[0, 0, 1, 1], r=[1, 1, 1, 0], columns=columns)
    shaped = OverlongPenalty(max_length=150, buffer=50)
    is_close(only(shaped(DropDegenerate()(t))), [NAN, NAN, 1, -1])
    is_close(only(DropDegenerate()(shaped(t))), [1, 0, 1, -1])  # the trap: both groups look informative


def test_the_metric_may_be_a_reward_of_weight_0():
    t = table(prompt=[0, 0, 1, 1], right=[1, 1, 1, 0], style=[0.1, 0.9, 0.3, 0.3], weights={"right": 0.0, "style": 1.0})
    is_close(only(WeightedSum()(DropDegenerate(metric="right")(t))), [NAN, NAN, 0.3, 0.3])
    with pytest.raises(ConfigError, match="metric = None; there are right, style"):
        DropDegenerate()(t)
    with pytest.raises(ConfigError, match="metric = rigth"):
        DropDegenerate(metric="rigth")(t)


def test_at_most_so_many_useful_groups_are_kept():
    t = table(prompt=[0, 0, 1, 1, 2, 2], r=[1, 0, 1, 1, 0, 1])
    is_close(only(DropDegenerate(at_most=1)(t)), [1, 0, NAN, NAN, NAN, NAN])


def test_masked_rows_count_in_the_statistics_and_are_not_trained():
    t = table(prompt=[0] * 4, r=[1, 1, 0, 0], columns={"truncated": [False, False, False, True]})
    found = credit(t, (WeightedSum(), GroupNorm(scale="none"), OverlongMask()), rollout=rollout(4), rank=0)
    assert found.advantage_NA[:, 0].tolist() == [0.5, 0.5, -0.5, 0]
    assert found.keep_NA[:, 0].tolist() == [True, True, True, False]


def test_dapo_prices_length_and_drops_what_teaches_nothing():
    t = table(prompt=[0, 0, 1, 1], r=[1, 0, 0, 0], columns={"length": [100, 100, 100, 18000]})
    is_close(run_preset("dapo", t), [0.70711, -0.70711, NAN, NAN], 1e-5)


# ── BNPO ──


BNPO = [
    (
        ["1000", "1100", "1110"],
        (1.5, 1.5),
        [0.6802] + [-0.2267] * 3 + [0.3927] * 2 + [-0.3927] * 2 + [0.2267] * 3 + [-0.6802],
    ),
    (
        ["1000", "1000", "1100"],
        (2.0741, 3.1481),
        ([0.4353] + [-0.1451] * 3) * 2 + [0.3294] * 2 + [-0.3294] * 2,
    ),
]


def binary(groups):
    reward = column(*[float(c) for g in groups for c in g])
    return reward, torch.tensor([i for i, g in enumerate(groups) for _ in g])


@pytest.mark.parametrize(("groups", "parameters", "wanted"), BNPO)
def test_bnpo_gives_its_table(groups, parameters, wanted):
    reward, group = binary(groups)
    rate = group_sum(reward, group) / 4
    assert beta_parameters(rate) == pytest.approx(parameters, abs=5e-5)
    is_close(beta_norm(reward, group), wanted)
    t = table(prompt=group.tolist(), r=reward.tolist())
    is_close(run_preset("bnpo_2506.02864", t), wanted)


def test_bnpo_of_groups_of_different_sizes():
    """Every prompt counts once among the success rates, however many rows it has."""
    reward, group = binary(["10000", "110", "1110101"])
    assert beta_parameters(column(1 / 5, 2 / 3, 5 / 7)) == pytest.approx((1.36656, 1.32902), abs=5e-6)
    of_last = [0.25205 if r else -0.63012 for r in reward[8:].tolist()]
    wanted = [0.80198] + [-0.20050] * 4 + [0.28667] * 2 + [-0.57335] + of_last
    is_close(beta_norm(reward, group), wanted, 1e-5)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    is_close(beta_norm(reward[order], group[order]), column(*wanted)[order], 1e-5)


def test_bnpo_with_three_halves_is_grpo_times_pi_over_8():
    reward, group = binary(BNPO[0][0])
    grpo = group_norm(reward, group, ddof=0, eps=0)
    is_close(beta_norm(reward, group), math.pi / 8 * grpo, 1e-12)


def test_bnpo_without_a_spread_of_rates_has_weight_1():
    reward, group = binary(["1100", "1010"])
    is_close(beta_norm(reward, group), [0.5, 0.5, -0.5, -0.5, 0.5, -0.5, 0.5, -0.5], 0)
    is_close(one_group(beta_norm, 1, 0, 0, 0), [0.75, -0.25, -0.25, -0.25], 0)


def test_bnpo_earns_nothing_where_the_density_is_0():
    reward, group = binary(["0000", "1111", "1100", "1000"])
    found = beta_norm(reward, group)
    assert found[:8].abs().max() == 0 and found.isfinite().all()
    assert float(beta_weight(column(0.0), alpha=1.5, beta=1.5)) == 1e6
    assert float(beta_weight(column(0.0), alpha=1.0, beta=1.0)) == 1


def test_bnpo_maps_the_ends_of_the_reward():
    reward, group = binary(BNPO[1][0])
    is_close(beta_norm(4 * reward - 2, group, low=-2, high=2), beta_norm(reward, group), 1e-12)
    with pytest.raises(ValueError, match="low = 1"):
        BetaNorm(low=1.0)


def test_bnpo_averages_the_advantages_of_several_rewards():
    reward, group = binary(BNPO[0][0])
    other = reward.flip(0)
    t = table(prompt=group.tolist(), a=reward.tolist(), b=other.tolist())
    is_close(only(Average()(BetaNorm()(t))), (beta_norm(reward, group) + beta_norm(other, group)) / 2, 1e-12)
    t = table(prompt=[0, 0], a=[1, 0], b=[NAN, 0], failed=[True, False])
    is_close(only(Average()(t)), [NAN, 0])


# ── MC-GRPO ──


@pytest.mark.parametrize(
    ("rewards", "plain", "weighted"),
    [
        ([0.9, 0.5, 0.2], [1.3289, 0, -0.9967], [1.9934, 0, -1.4950]),
        ([1, 0, 0], [1000, 0, 0], [3000, 0, 0]),
        ([1, 1, 1, 0, 0], [0, 0, 0, -1000, -1000], [0, 0, 0, -2500, -2500]),
    ],
)
def test_literal_median_centring_gives_its_table(rewards, plain, weighted):
    is_close(one_group(median_norm, *rewards, floor=0), plain)
    is_close(one_group(median_norm, *rewards, floor=0, reweight=True), weighted)


def test_a_floor_bounds_the_median_centred_advantage():
    is_close(one_group(median_norm, 1, 0, 0, floor=0.1), [1 / 0.101, 0, 0], 1e-9)
    is_close(one_group(median_norm, 0.9, 0.5, 0.2, floor=0.1), one_group(median_norm, 0.9, 0.5, 0.2, floor=0), 0)
    is_close(one_group(median_norm, 0.9, 0.5, 0.2, scale="none"), [0.4, 0, -0.3], 1e-12)
    std = column(0.9, 0.5, 0.2).std()
    is_close(one_group(median_norm, 0.9, 0.5, 0.2, scale="std"), [0.4 / (std + 1e-3), 0, -0.3 / (std + 1e-3)], 1e-9)


def test_equal_rewards_are_their_median():
    assert one_group(median_norm, 0.1 + 0.2, 0.3, 0.3, floor=0, reweight=True).tolist() == [0, 0, 0]


def test_one_row_of_each_group_is_the_median():
    reward, group = column(0.2, 5, 0.9, 5, NAN, 0.5, 5, 1, 2, 3, 4), torch.tensor([0, 1, 0, 1, 1, 0, 1, 2, 2, 2, 2])
    pivot = pivots(reward, group)
    assert torch.nonzero(pivot).flatten().tolist() == [3, 5, 8]  # an even group has the lower one


def test_the_median_row_is_not_trained():
    t = table(prompt=[0, 0, 0], r=[0.9, 0.5, 0.2])
    found = credit(t, (WeightedSum(), MedianNorm(floor=0)), rollout=rollout(3), rank=0)
    assert found.keep_NA[:, 0].tolist() == [True, False, True]
    is_close(found.advantage_NA[:, 0], [1.3289, 0, -0.9967])


def test_an_even_group_size_has_no_row_in_the_middle():
    with pytest.raises(ConfigError, match="groups have 4 rows. Use an odd group_size"):
        MedianNorm()(table(prompt=[0] * 4, r=[1, 0, 0, 1]))
    with pytest.raises(ConfigError, match="weighted_sum"):
        MedianNorm()(table(prompt=[0] * 3, a=[1, 0, 0], b=[1, 0, 0]))


# ── NGRPO ──


@pytest.mark.parametrize(
    ("rewards", "wanted"),
    [
        ([0] * 8, [-0.3333] * 8),
        ([0] * 4, [-0.4472] * 4),
        ([1, 0, 0, 0], [1.0954, -0.7303, -0.7303, -0.7303]),
        ([1, 1, 1, 0], [0.4472, 0.4472, 0.4472, -1.7889]),
        ([1] * 4, [0] * 4),
    ],
)
def test_a_virtual_best_sample_gives_its_table(rewards, wanted):
    is_close(one_group(virtual_norm, *rewards), wanted)


def test_without_virtual_samples_it_is_grpo():
    reward, group = torch.rand(12, dtype=torch.float64), torch.arange(12) % 3
    is_close(virtual_norm(reward, group, copies=0), group_norm(reward, group, ddof=1, eps=1e-6), 1e-12)


def test_ngrpo_keeps_what_is_all_wrong_and_drops_what_is_all_right():
    t = table(prompt=[0] * 4 + [1] * 4 + [2] * 4, r=[0] * 4 + [1] * 4 + [1, 0, 0, NAN])
    augmented = column(1, 0, 0, 1)
    mixed = (column(1, 0, 0) - 0.5) / augmented.std()
    is_close(run_preset("ngrpo", t), [-0.4472] * 4 + [NAN] * 4 + mixed.tolist() + [NAN])
    assert only(VirtualNorm()(table(prompt=[0] * 4, r=[0] * 4))).sum() < 0


# ── Stratified GRPO ──


def test_stratified_normalisation_gives_its_table():
    reward, stratum = column(1, 0, 1, 1, 0, 0), torch.tensor([1, 1, 1, 2, 2, 2])
    group = torch.zeros(6, dtype=torch.int64)
    pure = [0.7071, -1.4142, 0.7071, 1.4142, -0.7071, -0.7071]
    blended = [0.7657, -1.3314, 0.7657, 1.3314, -0.7657, -0.7657]
    is_close(stratified_norm(reward, group, stratum, blend=1, eps=0), pure)
    is_close(stratified_norm(reward, group, stratum, blend=0, eps=0), [1, -1, 1, 1, -1, -1])
    is_close(stratified_norm(reward, group, stratum, blend=0.8, eps=0), blended)
    t = table(prompt=[0] * 6, r=reward.tolist(), columns={"stratum": stratum})
    is_close(run_preset("stratified_grpo", t), blended, 1e-3)


def test_equal_rewards_of_a_stratum_or_of_the_group_add_exactly_nothing():
    stratum, group = torch.tensor([1, 1, 2, 2]), torch.zeros(4, dtype=torch.int64)
    for eps in (1e-4, 0):
        assert stratified_norm(column(0.3, 0.1 + 0.2, 0.3, 0.3), group, stratum, eps=eps).tolist() == [0] * 4
        found = stratified_norm(column(1, 1, 0, 1), group, stratum, blend=1, eps=eps)
        assert found[:2].tolist() == [0, 0] and found[3] == -found[2] > 0.99


def test_strata_are_compared_within_a_group_only():
    reward, group = column(1, 0, 5, 3), torch.tensor([0, 0, 1, 1])
    alike = stratified_norm(reward, group, torch.zeros(4), blend=1)
    is_close(alike, group_norm(reward, group), 0)


def test_a_stratum_of_one_leaves_the_share_of_the_group():
    t = table(prompt=[0] * 4, r=[1, 0, 0, 0], columns={"stratum": [1.5, 2.5, 2.5, 2.5]})
    is_close(only(StratifiedNorm(blend=0.8)(t)), 0.2 * one_group(group_norm, 1, 0, 0, 0), 1e-12)
    assert StratifiedNorm(by="hops").columns == {"hops"}


# ── SPO ──


def test_a_tracker_forgets_and_learns_as_in_the_table():
    assert float(torch.exp2(column(-0.03 / 0.06))) == pytest.approx(0.7071, abs=5e-5)
    kept = tracker_memory(column(0.03, 0.0, 0.005))
    is_close(kept, [0.875, 0.96, 2 ** (-0.005 / 0.06)])
    alpha, beta = tracked(column(4), column(4), column(1), kept[:1])
    assert (float(alpha), float(beta)) == (4.5, 3.5)
    assert float(alpha / (alpha + beta)) == 0.5 + 0.125 * (1 - 0.5)


def test_probes_start_a_tracker():
    alpha, beta = initial_counts(column(3), column(8))
    is_close(torch.cat([alpha, beta]), [3.1111, 4.8889])


def test_probes_are_read_from_a_file(tmp_path):
    (tmp_path / "probes.json").write_text(json.dumps({"a": [3, 8], "b": [8, 8]}))
    tracker = ValueTracker(probes=str(tmp_path / "probes.json"))
    is_close(tracker.values(id_numbers(["b", "c", "a"])), [8.5 / 9, 0.5, 3.5 / 9], 1e-12)
    with pytest.raises(ConfigError, match="no file"):
        ValueTracker(probes=str(tmp_path / "none.json")).values(id_numbers(["a"]))


def spo_tracker():
    tracker = ValueTracker()
    value = column(0.5, 0.25, 0.9, 0.1)
    tracker.set_counts(torch.tensor([103, 100, 101, 102]).sort().values, 8 * value, 8 * (1 - value))
    return tracker


def test_the_tracker_is_the_baseline_and_the_batch_the_scale():
    tracker, t = spo_tracker(), table(prompt=[0, 1, 2, 3], r=[1, 0, 1, 0])
    raw = tracker(t)
    is_close(only(raw), [0.5, -0.25, 0.1, -0.1], 1e-12)
    is_close(only(GroupNorm(key=(), ddof=1, eps=1e-8)(raw)), [1.3462, -0.9615, 0.1154, -0.5])


def test_the_tracker_moves_after_the_step_and_only_for_prompts_that_were_scored():
    tracker = spo_tracker()
    t = table(prompt=[0, 1, 9, 2], r=[1, 0, 1, NAN], failed=[False, False, False, True])
    assert torch.equal(only(tracker(t)).nan_to_num(), only(tracker(t)).nan_to_num())
    tracker.update(t)
    found = tracker.values(torch.tensor([100, 101, 109, 102, 55]))
    fresh = (0.875 * 0.5 + 1) / (0.875 * 1 + 1)
    is_close(found, [0.5 + 0.125 * 0.5, 0.25 * 0.875, fresh, 0.9, 0.5], 1e-12)


def test_several_rows_of_a_prompt_are_forgotten_once():
    tracker = ValueTracker(low=-1, high=1)
    tracker.update(table(prompt=[0, 0, 0], r=[1, 1, -1]))
    is_close(tracker.counts, [[0.875 * 0.5 + 2, 0.875 * 0.5 + 1]], 1e-12)


def test_a_declared_shift_sets_the_memory():
    tracker = ValueTracker(shift_column="shift")
    assert tracker.columns == {"prompt_id", "shift"}
    tracker.update(table(prompt=[0, 1], r=[1, 1], columns={"shift": [0.0, 1.0]}))
    is_close(tracker.counts[:, 1], [0.96 * 0.5, 0.875 * 0.5], 1e-12)


def test_the_tracker_is_saved_with_the_run():
    tracker, t = ValueTracker(), table(prompt=[0, 1, 2], r=[1, 0, 0.5])
    tracker.update(t)
    ((path, part),) = stateful_parts({"advantage": (tracker,)})
    other = ValueTracker()
    load_parts({"advantage": (other,)}, {path: yaml.safe_load(yaml.safe_dump(part.state_dict()))})
    assert torch.equal(only(other(t)), only(tracker(t)))
    assert other.metrics()["tracker/prompts"] == 3
    empty = ValueTracker()
    empty.load_state_dict(ValueTracker().state_dict())
    is_close(empty.values(torch.tensor([1])), [0.5])


def test_a_prompt_has_the_same_id_at_every_step_and_rank():
    def batch(*ids):
        r = rollout(len(ids))
        r = Rollout(
            tuple(Prompt(i, "") for i in ids), torch.arange(len(ids)), r.sample_N, r.behaviour_NA, r.mask_NA, None
        )
        return Batch(r, Outputs([""] * len(ids), torch.arange(len(ids))), {"r": {"score": torch.zeros(len(ids))}})

    first, second = (local_table(batch(*ids), applies_to={"r": None}) for ids in (("a", "b"), ("c", "a")))
    assert first.columns["prompt_id"][0] == second.columns["prompt_id"][1]
    assert len(gather([first, second], weights={}).columns["prompt_id"].unique()) == 3


def test_prompts_near_a_coin_toss_are_drawn_more_often():
    weight = sampling_weights(column(0.5, 0.25, 0.9, 0.1))
    is_close(weight, [0.3174, 0.2787, 0.2020, 0.2020])
    halved = sampling_weights(column(0.5, 0.5), count_P=column(1, 4), gamma=0.5)
    is_close(halved, [2 / 3, 1 / 3], 1e-12)
    drawn = draw_prompts(weight, count=4, generator=torch.Generator().manual_seed(0))
    assert sorted(drawn.tolist()) == [0, 1, 2, 3]


# ── V_0 and V_0.5 ──


@pytest.mark.parametrize(
    ("p", "wanted"),
    [(0.25, [0, 0.375, 1.7344, 5.1991]), (0.75, [0, 0.375, 0.9844, 1.9999]), (0.05, [0, 0.095, 0.542, 2.2926])],
)
def test_the_utility_of_a_budget_gives_its_table(p, wanted):
    is_close(budget_utility(column(1, 2, 4, 8), column(p)), wanted)


def greedy(success, total, at_least):
    """One rollout at a time."""
    count = [at_least] * len(success)
    for _ in range(total - sum(count)):
        gains = [
            float(budget_utility(column(n + 1), column(p)) - budget_utility(column(n), column(p)))
            for n, p in zip(count, success)
        ]
        count[max(range(len(count)), key=lambda i: gains[i])] += 1
    return count


@settings(max_examples=40)
@given(st.lists(st.integers(0, 97), min_size=1, max_size=6), st.integers(0, 25), st.integers(1, 3))
def test_allocation_is_the_greedy_one(percent, extra, at_least):
    success = [p / 97 for p in percent]
    total = at_least * len(success) + extra
    found = allocate(column(*success), total=total, at_least=at_least)
    assert int(found.sum()) == total
    slow = greedy(success, total, at_least)
    utility = [float(budget_utility(torch.tensor(c), column(*success)).sum()) for c in (found.tolist(), slow)]
    assert utility[0] == pytest.approx(utility[1], abs=1e-9)  # ties in rounding may fall otherwise
    assert found.sort().values.tolist() == sorted(slow) or utility[0] == pytest.approx(utility[1], abs=1e-9)


def test_allocation_refuses_what_cannot_be_shared_out():
    with pytest.raises(ValueError, match="2 prompts with 1 to 3 samples each cannot have 7"):
        allocate(column(0.5, 0.5), total=7, at_most=3)
    assert allocate(column(0.5, 0.9), total=6, at_most=3).tolist() == [3, 3]


V05 = [
    ([1, -1, -1, -1], 0.2, (-0.5, 0.24, 0.4898), -0.1429, True),
    ([1, -1, -1, -1], -0.3, (-0.5, 0, 0), -0.3, False),
    ([-1, -1, -1, -1], 0.5, (-1, 2.0, 0.8889), -0.8333, True),
    ([1, 1, 1, 1], 0.9, (1, 0, 0), 0.9, False),
]


@pytest.mark.parametrize(("rewards", "prior", "parts", "baseline", "more"), V05)
def test_shrinkage_gives_its_table(rewards, prior, parts, baseline, more):
    mean, bias, weight = parts
    reward, group = column(*rewards), torch.zeros(4, dtype=torch.int64)
    assert max(0, (mean - prior) ** 2 - 1 / 4) == pytest.approx(bias, abs=PRINTED)
    is_close(data_weight(column(mean - prior), column(4)), [weight])
    is_close(shrunk_baseline(reward, group, column(prior).expand(4)), [baseline] * 4)
    assert draw_another(column(mean), column(prior), column(4)).tolist() == [more]
    t = table(prompt=[0] * 4, r=rewards, columns={"prior": column((prior + 1) / 2).expand(4)})
    is_close(run_preset("v05", t), reward - baseline)


@pytest.mark.parametrize(("gap", "now", "then"), [(-0.7, 0.1224, 0.1091), (-1.5, 0.2222, 0.1818)])
def test_one_more_sample_lowers_the_estimated_error_as_in_the_table(gap, now, then):
    bias = gap**2 - 1 / 4
    held = column(math.sqrt(bias + 1 / 5))  # the gap that has this bias at five samples
    is_close(data_weight(column(gap), column(4)) / 4, [now])
    is_close(data_weight(held, column(5)) / 5, [then])
    assert draw_another(column(gap), column(0), column(4), cost=now - then - 2e-4).tolist() == [True]
    assert draw_another(column(gap), column(0), column(4), cost=now - then + 2e-4).tolist() == [False]


def test_a_prior_that_is_far_off_stops_at_sixteen_samples():
    far, count = column(1e6).expand(18), torch.arange(1, 19)
    assert draw_another(far, column(0).expand(18), count, at_most=99).tolist() == [k < 16 for k in range(1, 19)]
    right = draw_another(column(0).expand(18), column(0).expand(18), count)
    assert right.tolist() == [k < 4 for k in range(1, 19)]


def test_shrinkage_scales_with_the_range_of_the_reward_and_does_without_a_prediction():
    unit = table(prompt=[0] * 4, r=[1, 0, 0, 0], columns={"prior": [0.6] * 4})
    is_close(only(Shrinkage(low=0, high=1)(unit)), (column(1, -1, -1, -1) + 0.1429) / 2)
    unknown = table(prompt=[0] * 4, r=[1, -1, -1, NAN], columns={"prior": [NAN] * 4})
    is_close(only(Shrinkage()(unknown)), [4 / 3, -2 / 3, -2 / 3, NAN])


def test_shrinkage_wants_three_samples():
    assert Shrinkage().min_group_size == 3


def test_a_tracker_may_be_the_prior():
    tracker, t = TrackedPrior(low=-1, high=1), table(prompt=[0] * 4, r=[1, -1, -1, -1])
    found = Shrinkage()(tracker(t))
    is_close(only(found), column(1, -1, -1, -1) + 0)  # never seen: a prior of 0, which noise explains
    tracker.update(t)
    alpha, beta = 0.875 * 0.5 + 1, 0.875 * 0.5 + 3
    is_close(tracker(t).columns["prior"], [alpha / (alpha + beta)] * 4, 1e-12)
    assert torch.equal(only(tracker(t)), t.values["r"])
    assert [path for path, _ in stateful_parts((tracker,))] == ["0"]


# ── Weighted GRPO ──


@pytest.mark.parametrize(
    ("correct", "with_std", "plain_1", "plain_2"),
    [
        ([1, 0, 0, 0], [1.7321, -0.5774, -0.5774, -0.5774], [1.5, -0.5, -0.5, -0.5], [2.25, -0.75, -0.75, -0.75]),
        ([1, 1, 1, 0], [0.5774, 0.5774, 0.5774, -1.7321], [0.5, 0.5, 0.5, -1.5], [0.75, 0.75, 0.75, -2.25]),
    ],
)
def test_the_weight_of_failures_cancels_in_the_normalisation(correct, with_std, plain_1, plain_2):
    for weight, plain in ((1, plain_1), (2, plain_2)):
        reward = signed_outcome(column(*correct), weight=weight)
        is_close(one_group(group_norm, *reward.tolist(), eps=0), with_std)
        is_close(one_group(group_norm, *reward.tolist(), scale="none"), plain)


def test_the_weight_of_failures_acts_after_the_normalisation():
    found = run_preset("weighted_grpo", table(prompt=[0] * 5, r=[1, 0, 0, 0, NAN]))
    is_close(found, [1.7321, -1.1547, -1.1547, -1.1547, NAN], 5e-4)
    with pytest.raises(ValueError, match="weight = -1"):
        NegativeWeight(weight=-1)


def test_pairs_are_made_of_hard_and_of_brittle_prompts():
    hard, brittle = paired_prompts(column(0, 0.125, 0.25, 0.5, 0.75, 0.875, 1), tries=8, margin=2)
    assert hard.tolist() == [False, True, True, False, False, False, False]
    assert brittle.tolist() == [False, False, False, False, True, True, False]


# ── MicroCoder ──


def test_a_truncated_row_is_silenced_by_chance_as_in_the_table():
    advantage = one_group(group_norm, 1, 1, 0, 0, eps=0)
    out = silenced(
        torch.tensor([False, True, False, False]), torch.tensor([False, False, True, True]), torch.zeros(4),
        column(0.5, 0.12, 0.0, 0.0), share=0.3,
    )  # fmt: skip
    is_close(torch.where(out, 0.0, advantage), [1, 0, -1, -1], 1e-12)


def cut_table(size=64, prompts=4):
    flags = {"truncated": [True] * size, "incorrect": [False] * size, "repetitive": [False] * size}
    prompt = [i % prompts for i in range(size)]
    return table(prompt=prompt, r=[1.0] * size, columns=flags)


def test_the_share_of_silenced_rows_is_as_told_and_what_is_wrong_or_repeats_is_never_silenced():
    t = cut_table(2000)
    silent = only(ConditionalTruncationMask(share=0.3)(t)) == 0
    assert 0.26 < float(silent.double().mean()) < 0.34
    for name in ("incorrect", "repetitive"):
        spared = Table(t.values, {**t.columns, name: torch.ones(2000, dtype=torch.bool)})
        assert torch.equal(only(ConditionalTruncationMask(share=1.0)(spared)), only(spared))
    assert only(ConditionalTruncationMask(share=1.0)(t)).abs().max() == 0


def test_a_row_is_silenced_whatever_the_order_and_otherwise_at_the_next_step():
    t, stage = cut_table(), ConditionalTruncationMask(seed=3)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    first = only(stage(t))
    assert torch.equal(only(stage(t.take(order))), first[order])
    stage.update(t)
    assert not torch.equal(only(stage(t)), first)
    resumed = ConditionalTruncationMask(seed=3)
    resumed.load_state_dict(stage.state_dict())
    assert torch.equal(only(resumed(t)), only(stage(t)))


def test_a_repetition_is_a_window_equal_to_the_one_before():
    token = torch.tensor([[9, 1, 2, 1, 2, 0], [9, 1, 2, 1, 3, 0], [1, 2, 1, 2, 0, 0], [1, 1, 1, 0, 0, 0], [7] * 6])
    found = repeats(token, torch.tensor([5, 5, 4, 3, 6]), window=2)
    assert found.tolist() == [True, False, True, False, True]


def test_microcoder_normalises_first():
    flags = {"truncated": [False, True, True, True], "incorrect": [False, True, True, True], "repetitive": [False] * 4}
    t = table(prompt=[0] * 4, r=[1, 1, 0, 0], columns=flags)
    is_close(run_preset("microcoder_grpo", t), [1, 1, -1, -1], 1e-3)


# ── what all of them share ──


@pytest.mark.parametrize("method", MINE, ids=lambda m: m.key)
def test_every_preset_is_built_of_known_parts(method):
    settings_of = preset(method.key)
    assert find(method.key) is method and method.file.read_text().startswith("# ")
    for role in ("advantage", "objective"):
        for part in settings_of[role]:
            build(lookup(role, part["kind"]), {k: v for k, v in part.items() if k != "kind"})


@pytest.mark.parametrize("method", MINE, ids=lambda m: m.key)
def test_rows_may_come_ragged_in_any_order_and_unscored(method):
    prompt = [0, 1, 0, 1, 1, 0, 2, 1, 1, 2, 2]
    reward = [1, 0, 0, 1, 0, 1, 0, 1, NAN, 1, 0]
    generator = torch.Generator().manual_seed(1)
    columns = {name: torch.rand(11, generator=generator, dtype=torch.float64) for name in WIDE}
    columns["prior"] = torch.tensor([[0.3, 0.6, 0.9][p] for p in prompt], dtype=torch.float64)
    columns |= {name: columns[name] > 0.5 for name in ("truncated", "incorrect", "repetitive")}
    columns["stratum"] = (columns["stratum"] > 0.5).long()
    t = table(prompt=prompt, r=reward, failed=[r != r for r in reward], columns=columns)
    found = run_preset(method.key, t)
    assert torch.equal(found.isfinite(), t.values["r"].isfinite())
    order = torch.randperm(11, generator=generator)
    is_close(run_preset(method.key, t.take(order)), found[order], 1e-12)


@pytest.mark.parametrize(
    "method", [m for m in MINE if m.name not in ("v05", "spo", "ngrpo", "dapo", "rloo")], ids=lambda m: m.key
)
def test_equal_rewards_teach_nothing(method):
    flags = {name: [False] * 5 for name in ("truncated", "incorrect", "repetitive")} | {"stratum": [0, 0, 1, 1, 1]}
    found = run_preset(method.key, table(prompt=[0] * 5, r=[0.1 + 0.2, 0.3, 0.3, 0.3, 0.3], columns=flags))
    assert found.abs().max() == 0


@pytest.mark.parametrize(
    "method", [m for m in MINE if m.name in ("grpo", "dr_grpo", "rloo", "bnpo", "stratified_grpo")], ids=lambda m: m.key
)
def test_what_is_compared_with_a_mean_sums_to_zero_in_each_group(method):
    generator = torch.Generator().manual_seed(2)
    reward, prompt = torch.rand(24, generator=generator, dtype=torch.float64), torch.arange(24) % 3
    columns = {"stratum": torch.arange(24) % 2, "ref_log_ratio": torch.rand(24, generator=generator)}
    found = run_preset(method.key, table(prompt=prompt.tolist(), r=reward.tolist(), columns=columns))
    is_close(group_sum(found, prompt), [0, 0, 0], 1e-9)


@pytest.mark.parametrize(
    "estimator",
    [
        lambda r, g: group_norm(r, g, eps=0),
        lambda r, g: median_norm(r, g, floor=0, eps=1e-12),
        lambda r, g: stratified_norm(r, g, torch.arange(len(r)) % 2, eps=0),
    ],
)
def test_a_scale_of_the_group_forgets_the_unit_of_the_reward(estimator):
    reward, group = (
        torch.rand(15, generator=torch.Generator().manual_seed(3), dtype=torch.float64),
        torch.arange(15) % 3,
    )
    is_close(estimator(7 * reward - 2, group), estimator(reward, group), 1e-6)


def test_a_tracker_that_sees_equal_gaps_teaches_nothing():
    found = run_preset("spo", table(prompt=[0, 1, 2], r=[1, 1, 1]))
    torch.testing.assert_close(found, torch.zeros(3, dtype=torch.float64), **exactly)


@pytest.mark.parametrize(
    ("method", "changes"), [("spo", {"group_size": 1, "prompts_per_step": 4}), ("mc_grpo", {"group_size": 3})]
)
def test_a_run_by_method_trains_and_keeps_its_trackers(tiny_sd3, tmp_path, method, changes):
    quick = {"method": method, "steps": 2, "objective": [{"kind": "clipped_ratio", "aggregate": "token"}]}
    quick |= {"eval_prompts": None, "updates": {"count": 1}, "samples_every": 0}
    path = write_config(tmp_path, str(tiny_sd3), quick | changes)
    train(path)
    first, last = record(tmp_path / "runs/tiny")[0], record(tmp_path / "runs/tiny")[-1]
    assert last["optim/bad_updates"] == 0 and math.isfinite(last["loss/total"])
    if method == "spo":
        assert (first["tracker/prompts"], last["tracker/prompts"]) == (0, 4)
    else:
        assert last["advantage/left_out_frac"] == pytest.approx(1 / 3)
