"""Rewards to advantages: worked numbers, properties that every estimator has, the way back to rows and actions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_mm.advantages import (
    Clamp,
    GroupNorm,
    KeepExtremes,
    Shuffle,
    WeightedSum,
    credit,
    group_norm,
    keep_extremes,
    weighted_sum,
)
from grpo_mm.errors import ConfigError
from grpo_mm.rollout.table import Table, gather, local_table
from grpo_mm.types import Batch, Outputs, Prompt, Rollout

NAN = math.nan
FIXTURE = [1, 0, 0, 0.5]
properties = settings(max_examples=25)
exactly = dict(rtol=0, atol=0, equal_nan=True)
closely = dict(rtol=1e-9, atol=1e-9, equal_nan=True)

COMPARING = [
    dict(center="mean", scale="std"),
    dict(center="mean", scale="std", ddof=1),
    dict(center="mean", scale="std", scale_over="batch"),
    dict(center="mean", scale="none"),
    dict(center="leave_one_out", scale="std"),
    dict(center="leave_one_out", scale="none"),
    dict(center="median", scale="mad"),
]
NOT_COMPARING = [dict(center="none", scale="std", scale_over="batch"), dict(center="none", scale="none")]


def over(estimators):
    return pytest.mark.parametrize("estimator", estimators, ids=lambda e: "-".join(map(str, e.values())))


every_estimator, every_comparison = over(COMPARING + NOT_COMPARING), over(COMPARING)


def column(*values):
    return torch.tensor(values, dtype=torch.float64)


def ids(*values):
    return torch.tensor(values)


def one_group(*values, **how):
    return group_norm(column(*values), torch.zeros(len(values), dtype=torch.int64), **how)


def table(values, *, prompt, failed=None, weights=None, **columns):
    """A gathered table of one rank; each column as plain lists."""
    rows = len(prompt)
    columns = {name: torch.tensor(c) for name, c in columns.items()}
    return Table(
        values={name: column(*v) for name, v in values.items()},
        columns={
            "prompt": torch.tensor(prompt),
            "sample": torch.arange(rows),
            "action": torch.full((rows,), -1),
            "tag": torch.zeros(rows, dtype=torch.int64),
            "failed": torch.tensor(failed or [False] * rows),
            "local_row": torch.arange(rows),
            "rank": torch.zeros(rows, dtype=torch.int64),
        }
        | columns,
        weights=weights or {},
    )


def rollout(*, rows, actions, prompt=None, sources=("",)):
    return Rollout(
        prompts=tuple(Prompt(f"p{i}", "text", source=source) for i, source in enumerate(sources)),
        prompt_N=torch.tensor(prompt or [0] * rows),
        sample_N=torch.arange(rows),
        behaviour_NA=torch.zeros(rows, actions),
        mask_NA=torch.ones(rows, actions, dtype=torch.bool),
        record=None,
    )


def only(stage, t):
    (value_M,) = stage(t).values.values()
    return value_M


# ── worked numbers ──


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        (dict(ddof=0, eps=1e-4), [1.50719, -0.90432, -0.90432, 0.30144]),
        (dict(ddof=1, eps=1e-8), [1.30558, -0.78335, -0.78335, 0.26112]),
        (dict(scale="none"), [0.625, -0.375, -0.375, 0.125]),
        (dict(center="leave_one_out", scale="none"), [5 / 6, -0.5, -0.5, 1 / 6]),
        (dict(center="median", scale="none"), [0.75, -0.25, -0.25, 0.25]),
        (dict(center="median", scale="mad", eps=0), [3, -1, -1, 1]),
        (dict(center="none", scale="none"), FIXTURE),
    ],
    ids=["Flow-GRPO", "DanceGRPO", "Dr.GRPO", "RLOO", "median", "median-mad", "REINFORCE"],
)
def test_worked_example(how, wanted):
    torch.testing.assert_close(one_group(*FIXTURE, **how), column(*wanted), rtol=0, atol=5e-6)


def test_one_success_in_four_earns_what_the_papers_print():
    assert one_group(1, 0, 0, 0, ddof=0, eps=0).tolist() == pytest.approx([1.7321] + [-0.5774] * 3, abs=1e-4)
    assert one_group(1, 0, 0, 0, ddof=1, eps=0).tolist() == pytest.approx([1.5] + [-0.5] * 3)
    assert one_group(1, 0, 0, 0, center="leave_one_out", scale="none").tolist() == pytest.approx([1] + [-1 / 3] * 3)


def test_batch_scale_divides_by_the_std_of_all_rewards_and_still_centres_by_group():
    reward_N, group_N = column(1, 0, 10, 10), ids(0, 0, 1, 1)
    std = column(1, 0, 10, 10).std(correction=0)
    found = group_norm(reward_N, group_N, scale_over="batch", eps=1e-4)
    torch.testing.assert_close(found, column(0.5, -0.5, 0, 0) / (std + 1e-4))


# ── properties ──


def dense(reward_BG, *, center="mean", scale="std", scale_over="group", ddof=0, eps=1e-4):
    """The same estimator on a rectangle, by torch's own reductions."""
    size = reward_BG.shape[1]
    median = reward_BG.quantile(0.5, dim=1, keepdim=True)
    base = {
        "mean": reward_BG.mean(1, keepdim=True),
        "leave_one_out": (reward_BG.sum(1, keepdim=True) - reward_BG) / (size - 1),
        "median": median,
        "none": torch.zeros_like(median),
    }[center]
    dim = 1 if scale_over == "group" else (0, 1)
    spread = {
        "std": lambda: reward_BG.std(dim, correction=ddof, keepdim=True),
        "mad": lambda: (reward_BG - median).abs().quantile(0.5, dim=1, keepdim=True),
        "none": lambda: 1 - eps,
    }[scale]()
    return (reward_BG - base) / (spread + eps)


@every_estimator
def test_flat_groups_equal_the_rectangle(estimator):
    reward_BG = torch.rand(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    group_N = torch.arange(5).repeat_interleave(4)
    torch.testing.assert_close(
        group_norm(reward_BG.flatten(), group_N, **estimator), dense(reward_BG, **estimator).flatten()
    )


@over([e for e in COMPARING if "scale_over" not in e])
def test_ragged_groups_equal_each_group_alone(estimator):
    reward_N, group_N = column(3, 1, 4, 1, 5, 9, 2, 6), ids(2, 0, 2, 1, 2, 1, 0, 1)
    found = group_norm(reward_N, group_N, **estimator)
    for group in range(3):
        torch.testing.assert_close(
            found[group_N == group], one_group(*reward_N[group_N == group].tolist(), **estimator)
        )


@st.composite
def rewards_in_groups(draw, *, unscored=True):
    group = draw(st.permutations([g for g in range(draw(st.integers(1, 4))) for _ in range(draw(st.integers(1, 5)))]))
    # Sixteenths: shifts and scales of them are exact, so that "equal" stays equal.
    number = st.integers(-64, 64).map(lambda k: k / 16)
    number = number | st.just(NAN) if unscored else number
    return column(*draw(st.lists(number, min_size=len(group), max_size=len(group)))), torch.tensor(group)


@every_estimator
@properties
@given(rewards_in_groups(), st.randoms(use_true_random=False))
def test_permuting_samples_permutes_advantages(estimator, groups, random):
    reward_N, group_N = groups
    order = list(range(len(reward_N)))
    random.shuffle(order)
    found = group_norm(reward_N[order], group_N[order], **estimator)
    torch.testing.assert_close(found, group_norm(reward_N, group_N, **estimator)[order], **closely)


@every_estimator
@properties
@given(rewards_in_groups())
def test_unscored_rows_take_no_part_and_stay_unscored(estimator, groups):
    reward_N, group_N = groups
    scored_N = reward_N.isfinite()
    found = group_norm(reward_N, group_N, **estimator)
    assert found[~scored_N].isnan().all() and found[scored_N].isfinite().all()
    without = group_norm(reward_N[scored_N], group_N[scored_N], **estimator)
    torch.testing.assert_close(found[scored_N], without, **closely)


@every_comparison
@properties
@given(rewards_in_groups(), st.sampled_from([0.25, 0.5, 2, 8]), st.integers(-9, 9))
def test_a_shift_earns_nothing_and_a_factor_only_where_there_is_no_scale(estimator, groups, factor, shift):
    reward_N, group_N = groups
    if estimator["scale"] == "mad":  # a spread of 0 divides what lies outside the middle by eps alone
        reward_N = reward_N + torch.linspace(0, 1 / 32, len(reward_N), dtype=torch.float64)
    found = group_norm(reward_N * factor + shift, group_N, **estimator, eps=1e-12)
    same = group_norm(reward_N, group_N, **estimator, eps=1e-12)
    wanted = same * factor if estimator["scale"] == "none" else same
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("center", ["mean", "leave_one_out"])
@properties
@given(groups=rewards_in_groups())
def test_advantages_around_a_mean_sum_to_zero_in_every_group(center, groups):
    reward_N, group_N = groups
    for scale in ("std", "none"):
        found = group_norm(reward_N, group_N, center=center, scale=scale).nan_to_num(0)
        total = torch.zeros(int(group_N.max()) + 1, dtype=torch.float64).index_add_(0, group_N, found)
        torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-9)


@properties
@given(rewards_in_groups())
def test_leave_one_out_is_the_centred_mean_times_g_over_g_minus_one(groups):
    reward_N, group_N = groups
    size_N = torch.tensor(
        [float((reward_N[group_N == g].isfinite()).sum()) for g in group_N.tolist()], dtype=torch.float64
    )
    centred = group_norm(reward_N, group_N, scale="none")
    found = group_norm(reward_N, group_N, center="leave_one_out", scale="none")
    torch.testing.assert_close(found, centred * size_N / (size_N - 1).clamp_min(1), **closely)


@every_comparison
@pytest.mark.parametrize("eps", [1e-4, 1e-8, 0])
@pytest.mark.parametrize("value", [0.1 + 0.2, 1 / 3, 1e6 + 0.1, 0.0, -7.7])
def test_a_constant_group_earns_exactly_nothing(estimator, eps, value):
    found = group_norm(column(value, 1, value, value, 5, value), ids(0, 1, 0, 0, 1, 0), **estimator, eps=eps)
    assert found[[0, 2, 3, 5]].tolist() == [0, 0, 0, 0]


def test_rewards_that_differ_by_rounding_only_are_equal():
    assert one_group(0.1 + 0.2, 0.3, 0.3, eps=1e-8).tolist() == [0, 0, 0]
    assert one_group(1, 1 + 1e-6, eps=0).tolist() == pytest.approx([-1, 1])


def test_an_eps_of_0_is_refused_where_the_spread_of_different_rewards_may_be_0():
    with pytest.raises(ValueError, match="eps = 0 with scale = mad"):
        GroupNorm(scale="mad", eps=0)


@every_comparison
def test_a_group_of_one_earns_nothing(estimator):
    found = group_norm(column(5, 1, 2, NAN, 3), ids(0, 1, 1, 2, 2), **estimator)
    assert found[0] == 0 and found[4] == 0 and found[3].isnan()


def test_advantages_are_float64_whatever_the_rewards_are():
    assert group_norm(torch.tensor([1.0, 0.0]), ids(0, 0)).dtype == torch.float64


# ── several rewards ──


def test_weighted_sum_adds_the_components_that_apply():
    value_NK = torch.tensor([[1, 10], [NAN, 10], [NAN, NAN], [1, math.inf]], dtype=torch.float64)
    torch.testing.assert_close(weighted_sum(value_NK, [2, 0.5]), column(7, 5, NAN, 2), **exactly)


def test_the_order_of_the_stages_is_the_order_of_sum_and_normalisation():
    a, b, weights = [1, 0, 0, 1], [0, 30, 60, 90], {"a": 1.0, "b": 0.5}
    t = table({"a": a, "b": b}, prompt=[0, 0, 0, 0], weights=weights)
    summed_first = only(GroupNorm(), WeightedSum()(t))
    torch.testing.assert_close(summed_first, one_group(1, 15, 30, 46))
    normalised_first = only(WeightedSum(), GroupNorm()(t))
    torch.testing.assert_close(normalised_first, one_group(*a) + 0.5 * one_group(*b))


def test_a_last_stage_over_the_batch_whitens():
    """GDPO: normalise each reward in its group, add up, normalise over the batch."""
    t = table({"a": [1, 0, 0, 1], "b": [0, 30, 60, 90]}, prompt=[0, 0, 1, 1], weights={"a": 1.0, "b": 0.5})
    summed = WeightedSum()(GroupNorm()(t))
    found = only(GroupNorm(key=(), eps=0), summed)
    assert found.mean().item() == pytest.approx(0) and found.std(correction=0).item() == pytest.approx(1)
    (value_M,) = summed.values.values()
    torch.testing.assert_close(found, (value_M - value_M.mean()) / value_M.std(correction=0))


def test_a_failed_reward_leaves_its_row_out_and_one_that_does_not_apply_does_not():
    batch = Batch(
        rollout(rows=4, actions=1, prompt=[0, 0, 1, 1], sources=("shapes", "words")),
        Outputs(items=None, row_M=torch.arange(4)),
        scores={
            "shape": {"score": torch.tensor([1.0, NAN, 9.0, 9.0])},
            "ocr": {"score": torch.tensor([9.0, 9.0, 1.0, 0.0])},
        },
    )
    t = gather(
        [
            local_table(
                batch, applies_to={"shape": lambda p: p.source == "shapes", "ocr": lambda p: p.source == "words"}
            )
        ],
        weights={},
    )
    assert t.columns["failed"].tolist() == [False, True, False, False]
    torch.testing.assert_close(t.values["shape"], column(1, NAN, NAN, NAN), **exactly)
    torch.testing.assert_close(only(WeightedSum(), t), column(1, NAN, 1, 0), **exactly)


def test_a_row_is_left_out_if_one_of_two_rewards_failed_on_it():
    t = table({"a": [1, 0, 0.5], "b": [NAN, 1, 0]}, prompt=[0, 0, 0], failed=[True, False, False])
    assert only(WeightedSum(), t).isnan().tolist() == [True, False, False]


def test_an_infinite_score_is_a_failed_one():
    batch = Batch(
        rollout(rows=2, actions=1),
        Outputs(items=None, row_M=torch.arange(2)),
        {"r": {"score": torch.tensor([math.inf, 1])}},
    )
    t = local_table(batch, applies_to={"r": None})
    assert t.columns["failed"].tolist() == [True, False] and t.values["r"].isnan().tolist() == [True, False]


def test_clamp_bounds_and_keeps_what_is_unscored():
    torch.testing.assert_close(
        only(Clamp(5), table({"r": [9, -9, 1, NAN]}, prompt=[0] * 4)), column(5, -5, 1, NAN), **exactly
    )


# ── comparison sets ──


def test_the_comparison_set_is_any_tuple_of_columns():
    t = table({"r": [1, 0, 10, 30]}, prompt=[0, 0, 0, 0], action=[0, 0, 1, 1])
    found = only(GroupNorm(key=("prompt", "action"), scale="none"), t)
    assert found.tolist() == [0.5, -0.5, -10, 10]


def test_without_a_key_the_batch_is_the_comparison_set():
    found = only(GroupNorm(key=(), scale="none"), table({"r": [1, 2, 6]}, prompt=[0, 1, 2]))
    assert found.tolist() == [-2, -1, 3]


def test_a_column_of_fractions_is_a_key_without_being_rounded():
    t = table({"r": [1, 0, 10, 30]}, prompt=[0, 0, 0, 0], stratum=[0.2, 0.2, 0.7, 0.7])
    assert only(GroupNorm(key=("prompt", "stratum"), scale="none"), t).tolist() == [0.5, -0.5, -10, 10]


def test_a_missing_column_is_named():
    with pytest.raises(ConfigError, match="no column 'stratum'"):
        GroupNorm(key=("prompt", "stratum"))(table({"r": [1, 0]}, prompt=[0, 0]))


def test_two_samples_are_wanted_only_where_samples_are_compared():
    assert GroupNorm().min_group_size == 2
    assert GroupNorm(center="none").min_group_size == 2  # its spread is that of the group
    assert GroupNorm(center="none", scale="none").min_group_size == 1
    assert GroupNorm(key=()).min_group_size == 1


# ── the control ──


def shuffled(**values):
    rows = len(next(iter(values.values())))
    failed = [any(math.isnan(v[i]) for v in values.values()) for i in range(rows)]
    return Shuffle()(table(values, prompt=[0] * rows, failed=failed))


def test_shuffled_rewards_are_the_same_rewards_of_other_rows():
    t = shuffled(a=list(range(40)), b=[i / 2 for i in range(39)] + [NAN])
    assert t.values["a"].tolist() != list(range(40)) and sorted(t.values["a"].tolist()) == list(range(40))
    both = t.values["a"] / 2
    torch.testing.assert_close(t.values["b"], both.where(both != 19.5, NAN), **exactly)  # components stay together
    assert t.columns["failed"].tolist() == t.values["b"].isnan().tolist()
    assert t.columns["prompt"].tolist() == [0] * 40


def test_shuffling_is_another_one_for_other_rewards_and_the_same_for_the_same():
    assert torch.equal(shuffled(a=list(range(40))).values["a"], shuffled(a=list(range(40))).values["a"])
    assert not torch.equal(shuffled(a=list(range(40))).values["a"], shuffled(a=list(range(1, 41))).values["a"] - 1)


# ── choosing rows ──


def kept(*advantages, keep, group=None):
    return keep_extremes(column(*advantages), torch.tensor(group or [0] * len(advantages)), keep=keep).tolist()


def test_the_best_and_the_worst_are_kept():
    assert kept(3, 1, 5, 2, 4, 0, keep=4) == [False, True, True, False, True, True]


def test_a_group_of_at_most_keep_rows_is_kept_whole():
    assert kept(3, 1, 2, keep=4) == [True, True, True]
    assert kept(3, 1, 2, 0, keep=4) == [True] * 4


def test_unscored_rows_are_never_kept_and_do_not_count():
    assert kept(3, NAN, 5, 2, NAN, 4, keep=2) == [False, False, True, True, False, False]
    assert kept(NAN, NAN, keep=2) == [False, False]
    assert kept(NAN, 1, keep=4) == [False, True]


def test_each_group_keeps_its_own_extremes():
    assert kept(1, 10, 2, 20, 3, 30, keep=2, group=[0, 1, 0, 1, 0, 1]) == [True, True, False, False, True, True]


def test_a_constant_group_still_keeps_as_many_rows_as_any_other():
    assert sum(kept(0, 0, 0, 0, 0, keep=2)) == 2


@properties
@given(rewards_in_groups(), st.sampled_from([2, 4, 6]))
def test_what_is_kept_lies_outside_what_is_not(groups, keep):
    advantage_N, group_N = groups
    chosen_N = keep_extremes(advantage_N, group_N, keep=keep)
    for group in group_N.unique():
        scored = (group_N == group) & advantage_N.isfinite()
        assert (
            int((chosen_N & scored).sum()) == min(keep, int(scored.sum())) == int((chosen_N & (group_N == group)).sum())
        )
        order = advantage_N[scored].sort().values
        wanted = torch.cat([order[: keep // 2], order[-(keep // 2) :]]) if len(order) > keep else order
        torch.testing.assert_close(advantage_N[chosen_N & scored].sort().values, wanted, **exactly)


def test_a_number_of_extremes_that_cannot_be_halved_is_refused():
    for keep in (0, 1, 3):
        with pytest.raises(ValueError, match="even number of at least 2"):
            KeepExtremes(keep)


def test_extremes_of_several_components_are_refused():
    with pytest.raises(ConfigError, match="weighted_sum.* before it"):
        KeepExtremes(2)(table({"a": [1, 0], "b": [0, 1]}, prompt=[0, 0]))


# ── back to rows and actions ──


def test_an_output_of_a_whole_row_credits_all_its_actions():
    earned = credit(table({"r": [1, 0]}, prompt=[0, 0]), [], rollout=rollout(rows=2, actions=3), rank=0)
    assert earned.advantage_NA.tolist() == [[1, 1, 1], [0, 0, 0]] and earned.keep_NA.all()


def test_an_output_of_one_action_credits_that_action():
    t = table({"r": [1, 2, 3, 4]}, prompt=[0] * 4, local_row=[0, 0, 1, 1], action=[0, 2, 2, 0])
    earned = credit(t, [], rollout=rollout(rows=2, actions=3), rank=0)
    assert earned.advantage_NA.tolist() == [[1, 0, 2], [4, 0, 3]]


def test_outputs_that_credit_the_same_action_add_up():
    """Granularities of one step, a terminal score on top."""
    t = table({"r": [1, 2, 10]}, prompt=[0] * 3, local_row=[0, 0, 0], action=[1, 1, -1], tag=[0, 1, 0])
    assert credit(t, [], rollout=rollout(rows=1, actions=2), rank=0).advantage_NA.tolist() == [[10, 13]]


def test_rows_without_a_scored_output_are_left_out():
    t = table({"r": [1, NAN]}, prompt=[0, 0], local_row=[0, 2])
    earned = credit(t, [], rollout=rollout(rows=3, actions=2), rank=0)
    assert earned.keep_NA.all(1).tolist() == earned.keep_NA.any(1).tolist() == [True, False, False]
    assert earned.advantage_NA.tolist() == [[1, 1], [0, 0], [0, 0]]


def test_every_rank_takes_its_own_rows():
    t = table({"r": [1, 2, 3, 4]}, prompt=[0] * 4, rank=[1, 0, 1, 0], local_row=[0, 0, 1, 1])
    assert credit(t, [], rollout=rollout(rows=2, actions=1), rank=0).advantage_NA.tolist() == [[2], [4]]
    assert credit(t, [], rollout=rollout(rows=2, actions=1), rank=1).advantage_NA.tolist() == [[1], [3]]


def test_two_components_left_over_are_refused_with_the_stage_that_is_missing():
    with pytest.raises(ConfigError, match="leave 2 components.*weighted_sum"):
        credit(table({"a": [1], "b": [0]}, prompt=[0]), [GroupNorm()], rollout=rollout(rows=1, actions=1), rank=0)


def test_an_action_that_the_row_does_not_have_is_refused():
    outputs = Outputs(items=None, row_M=ids(0), action_M=ids(3))
    with pytest.raises(ValueError, match="action 3, counted from 0; the rows have 3"):
        local_table(Batch(rollout(rows=1, actions=3), outputs, {"r": {"score": torch.ones(1)}}), applies_to={})


def zero_groups_frac(values, stages, **columns):
    t = table(values, **columns)
    return credit(t, stages, rollout=rollout(rows=len(t), actions=1), rank=0).metrics["advantage/zero_groups_frac"]


def test_groups_that_teach_nothing_are_counted_among_those_that_were_scored():
    stages = (GroupNorm(), WeightedSum(), Clamp())
    prompt = [0, 0, 0, 1, 1, 1, 2, 2, 2]
    values, failed = [1, NAN, 1, 0, 1, 0, NAN, NAN, NAN], [False, True, False] + [False] * 3 + [True] * 3
    assert zero_groups_frac({"r": values}, stages, prompt=prompt, failed=failed) == 0.5


def test_rewards_that_cancel_in_a_plain_sum_teach_if_their_weights_differ():
    values, stages = {"a": [1, 0], "b": [0, 1]}, (GroupNorm(), WeightedSum())
    assert zero_groups_frac(values, stages, prompt=[0, 0], weights={"a": 1.0, "b": 2.0}) == 0
    assert zero_groups_frac(values, stages, prompt=[0, 0]) == 1


# ── many ranks ──


def test_the_table_is_sorted_by_prompt_then_sample_then_action_then_tag():
    columns = {
        "prompt": [1, 0, 0, 0, 0, 0],
        "sample": [0, 1, 0, 0, 0, 0],
        "action": [0, 0, 1, 0, 0, -1],
        "tag": [0, 0, 0, 1, 0, 2],
    }
    t = Table({"r": torch.arange(6).double()}, {name: torch.tensor(c) for name, c in columns.items()})
    assert gather([t], weights={}).values["r"].tolist() == [5, 4, 3, 2, 1, 0]


def test_credit_does_not_depend_on_which_rank_made_which_rows_to_the_last_bit():
    generator = torch.Generator().manual_seed(0)
    prompt_N, sample_N = torch.arange(4).repeat_interleave(5), torch.arange(5).repeat(4)
    score_N = torch.rand(20, generator=generator) / 3
    score_N[[3, 11]] = NAN
    stages = (GroupNorm(eps=1e-8, scale_over="batch"), WeightedSum(), Clamp())

    def earned(*shares):
        """Row name → advantage, with the rows of each rank named by index."""
        batches = []
        for rows in shares:
            r = Rollout(
                (Prompt("p", "text"),) * 4,
                prompt_N[rows],
                sample_N[rows],
                torch.zeros(len(rows), 2),
                torch.ones(len(rows), 2, dtype=torch.bool),
                record=None,
            )
            batches.append(Batch(r, Outputs(None, torch.arange(len(rows))), {"r": {"score": score_N[rows]}}))
        t = gather([local_table(b, applies_to={}) for b in batches], weights={"r": 1.0})
        found = torch.full((20,), NAN, dtype=torch.float64)
        for rank, (rows, b) in enumerate(zip(shares, batches)):
            c = credit(t, stages, rollout=b.rollout, rank=rank)
            found[rows] = torch.where(c.keep_NA[:, 1], c.advantage_NA[:, 1], NAN)
        return found

    everything = torch.arange(20)
    shuffled = torch.randperm(20, generator=generator)
    one = earned(everything)
    assert one.isnan().nonzero().flatten().tolist() == [3, 11]
    for shares in (
        [everything[:7], everything[7:]],
        [everything[12:], everything[:12]],
        list(shuffled.chunk(3)),
        [shuffled],
    ):
        torch.testing.assert_close(earned(*shares), one, **exactly)
