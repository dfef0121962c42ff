"""Credit of single steps: gains, granularities, trees and GARDO, against hand-worked numbers and slow obvious loops."""

import math

import pytest
import torch
from tables import only, rollout, table

from grpo_mm.advantages import (
    Clamp,
    DiversityScale,
    Gains,
    GardoGate,
    GroupNorm,
    KeepExtremes,
    SumTags,
    TreeBackup,
    WeightedSum,
    batch_win_rate,
    credit,
    diversity_scaled,
    gains,
    tree_backup,
    uncertainty,
)
from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.flow.schedule import Shifted
from grpo_mm.pipelines.flow.trees.branching import Splits
from grpo_mm.rollout.table import Table
from grpo_mm.types import BASELINE

NAN = math.nan
to_the_bit = dict(rtol=0, atol=0)


def column(*values):
    return torch.tensor(values, dtype=torch.float64)


def close(found, wanted, **how):
    torch.testing.assert_close(found, wanted, equal_nan=True, **how)


# ── gains (DenseGRPO) ──


def scored_before_and_after(**scores):
    """Two prompts × two samples × a baseline and three actions."""
    return table(
        scores,
        prompt=[p for p in range(2) for _ in range(8)],
        sample=[s for _ in range(2) for s in range(2) for _ in range(4)],
        action=[BASELINE, 0, 1, 2] * 4,
        failed=[any(math.isnan(v[i]) for v in scores.values()) for i in range(16)],
    )


def test_a_gain_is_the_score_after_an_action_minus_the_score_before_it():
    found = gains(column(0.2, 0.5, 0.4, 1.0), torch.zeros(4, dtype=torch.int64), torch.tensor([BASELINE, 0, 1, 2]))
    close(found, column(NAN, 0.3, -0.1, 0.6))


def test_gains_do_not_depend_on_the_order_of_the_states():
    generator = torch.Generator().manual_seed(0)
    score, row = torch.rand(30, generator=generator, dtype=torch.float64), torch.arange(30) % 5
    position = torch.arange(30) // 5 * 3 - 2
    order = torch.randperm(30, generator=generator)
    close(gains(score[order], row[order], position[order]), gains(score, row, position)[order], **to_the_bit)


def test_the_gains_of_a_row_add_up_to_its_last_score_minus_its_first():
    score = torch.rand(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = Gains()(scored_before_and_after(r=score.tolist()))
    total = only(t).view(4, 3).sum(1)
    close(total, score.view(4, 4)[:, 3] - score.view(4, 4)[:, 0])


def test_what_a_row_started_from_leaves_the_table_and_its_gains_keep_their_actions():
    t = Gains()(scored_before_and_after(r=list(range(16))))
    assert t.columns["action"].tolist() == [0, 1, 2] * 4 and t.columns["prompt"].tolist() == [0] * 6 + [1] * 6
    assert t.columns["sample"].tolist() == [0] * 3 + [1] * 3 + [0] * 3 + [1] * 3
    assert only(t).tolist() == [1] * 12 and not t.columns["failed"].any()


@pytest.mark.parametrize(
    ("state", "lost"), [(0, [0]), (1, [0, 1]), (2, [1, 2]), (3, [2]), (4, [3]), (7, [5]), (9, [6, 7])]
)
def test_an_unscored_state_loses_the_two_gains_that_it_takes_part_in_and_only_these(state, lost):
    scores = [float(i * i) for i in range(16)]
    scores[state] = NAN
    t = Gains()(scored_before_and_after(r=scores))
    assert only(t).isnan().nonzero().flatten().tolist() == lost
    assert t.columns["failed"].nonzero().flatten().tolist() == lost


def test_every_reward_has_its_gains_and_a_row_is_left_out_where_one_of_them_failed():
    a, b = [float(i) for i in range(16)], [2.0 * i for i in range(16)]
    b[3] = NAN
    t = Gains()(scored_before_and_after(a=a, b=b))
    assert t.values["a"].tolist() == [1] * 12
    assert t.values["b"].isnan().nonzero().flatten().tolist() == [2] and t.values["b"][0] == 2
    assert only(WeightedSum()(t)).isnan().nonzero().flatten().tolist() == [2]


def test_gains_of_a_weighted_sum_are_the_weighted_sum_of_gains():
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.rand(16, generator=generator, dtype=torch.float64).tolist() for _ in range(2))
    t = scored_before_and_after(a=a, b=b).with_values({"a": column(*a), "b": column(*b)})
    close(only(Gains()(WeightedSum()(t))), only(WeightedSum()(Gains()(t))))


def test_dense_advantages_compare_samples_at_the_same_step():
    score = torch.rand(16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    t = GroupNorm(key=("prompt", "action"), eps=0)(Gains()(scored_before_and_after(r=score.tolist())))
    gain_PGA = score.view(2, 2, 4).diff(dim=2)
    wanted = (gain_PGA - gain_PGA.mean(1, keepdim=True)) / gain_PGA.std(1, correction=0, keepdim=True)
    close(only(t).view(2, 2, 3), wanted)


@pytest.mark.parametrize("action", [[-1, -1], [0, 1], [BASELINE, -1]])
def test_gains_need_a_score_before_every_action(action):
    with pytest.raises(ConfigError, match=r"use engine.tree=\{kind: clean_images\}"):
        Gains()(table({"r": [1, 2]}, prompt=[0, 0], sample=[0, 0], action=action))


# ── granularities (G²RPO) ──


def branches(**values):
    """One prompt × two samples × two actions × tags 1 and 2."""
    return table(
        values, prompt=[0] * 8, sample=[0] * 4 + [1] * 4, action=[0, 0, 1, 1] * 2, tag=[1, 2] * 4,
        failed=[any(math.isnan(v[i]) for v in values.values()) for i in range(8)],
    )  # fmt: skip


def test_granularities_and_rewards_add_up_and_then_are_bounded():
    t = branches(a=[1, 2, 4, 4, -1, -2, -4, -4], b=[1, 0, 0, 0, -1, 0, 0, -9])
    found = SumTags()(WeightedSum()(t))
    assert only(found).tolist() == [4, 8, -4, -17]
    assert only(Clamp(5)(found)).tolist() == [4, 5, -4, -5]
    # Bounded before they are added, the sum escapes.
    assert only(SumTags()(Clamp(5)(WeightedSum()(t)))).tolist() == [4, 8, -4, -9]


def test_advantages_of_a_granularity_are_its_own_group():
    """G²RPO eq. 9 against a plain loop: sample std + 1e-8, for every action, granularity and reward."""
    generator = torch.Generator().manual_seed(0)
    reward = {name: torch.rand(3, 2, 2, generator=generator, dtype=torch.float64) for name in "ab"}  # [G, A, λ]
    t = table(
        {name: r.flatten() for name, r in reward.items()}, prompt=[0] * 12, sample=[g for g in range(3) for _ in range(4)],
        action=[0, 0, 1, 1] * 3, tag=[1, 2] * 6,
    )  # fmt: skip
    stages = (GroupNorm(key=("prompt", "action", "tag"), ddof=1, eps=1e-8), WeightedSum(), SumTags(), Clamp(5))
    found = credit(t, stages, rollout=rollout(3, 2), rank=0).advantage_NA
    wanted = sum(((r - r.mean(0)) / (r.std(0, correction=1) + 1e-8)).sum(2) for r in reward.values())
    close(found, wanted)


def test_an_unscored_granularity_takes_its_action_out_and_no_other():
    found = SumTags()(branches(a=[1, NAN, 1, 1, 1, 1, 1, 1]))
    close(only(found), column(NAN, 2, 2, 2))
    assert found.columns["failed"].tolist() == [True, False, False, False]
    assert found.columns["action"].tolist() == [0, 1, 0, 1] and found.columns["sample"].tolist() == [0, 0, 1, 1]


def test_without_sum_tags_granularities_still_add_up():
    t = branches(a=[1, 2, 4, 4, -1, -2, -4, -4])
    assert credit(t, [], rollout=rollout(2, 2), rank=0).advantage_NA.tolist() == [[3, 8], [-3, -8]]


# ── trees (BranchGRPO, TreeGRPO) ──

BINARY = torch.tensor([[10, 20], [10, 21], [11, 22], [11, 23]])
RAGGED = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3]])
VALUES = column(1, 2, 3, 6)


def recursive(value_L, edge_LA, logprob_LA, weight):
    """The value of every edge by descent from the root; `weight` of the children's log-probabilities."""

    def below(leaves, action):
        if action == edge_LA.shape[1]:
            found = [value_L[leaf] for leaf in leaves if not math.isnan(value_L[leaf])]
            return sum(found) / len(found) if found else NAN
        children = {}
        for leaf in leaves:
            children.setdefault(int(edge_LA[leaf, action]), []).append(leaf)
        values, weights = [], []
        for child in children.values():
            value = below(child, action + 1)
            for leaf in child:
                result[leaf, action] = value
            if not math.isnan(value):
                values.append(value)
                weights.append(weight(float(logprob_LA[child[0], action])))
        return sum(v * w for v, w in zip(values, weights)) / sum(weights) if weights else NAN

    result = torch.full(edge_LA.shape, NAN, dtype=torch.float64)
    below(range(len(value_L)), 0)
    return result


def test_the_mean_of_the_leaves_below_each_edge():
    found = tree_backup(VALUES, BINARY, torch.zeros(4, 2))
    close(found, torch.stack([column(1.5, 1.5, 4.5, 4.5), VALUES], 1))


def test_siblings_are_weighted_by_the_softmax_of_their_log_probability():
    logprob = torch.zeros(4, 2)
    logprob[1, 1] = math.log(3)
    found = tree_backup(VALUES, BINARY, logprob, weights="softmax")
    close(found, torch.stack([column(1.75, 1.75, 4.5, 4.5), VALUES], 1))
    colder = tree_backup(VALUES, BINARY, logprob, weights="softmax", temperature=0.5)
    close(colder[:, 0], column(1.9, 1.9, 4.5, 4.5))


@pytest.mark.parametrize("unscored", [[], [0], [3, 4, 5], [0, 1, 2, 9, 26], list(range(9))])
@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_three_levels_of_three_equal_a_recursion(temperature, unscored):
    generator = torch.Generator().manual_seed(0)
    leaf = torch.arange(27)
    edge_LA = torch.stack([leaf // 9, leaf // 3, leaf], 1)
    value = torch.rand(27, generator=generator, dtype=torch.float64)
    value[unscored] = NAN
    edge_logprob = torch.randn(3, 27, generator=generator)
    logprob_LA = torch.stack([edge_logprob[a][edge_LA[:, a]] for a in range(3)], 1)
    found = tree_backup(value, edge_LA, logprob_LA, weights="softmax", temperature=temperature)
    wanted = recursive(value.tolist(), edge_LA, logprob_LA, lambda lp: math.exp(lp / temperature))
    close(found, wanted, rtol=1e-5, atol=1e-7)
    mean = tree_backup(value, edge_LA, logprob_LA)
    for a in range(3):
        for edge in edge_LA[:, a].unique():
            below = edge_LA[:, a] == edge
            close(mean[below, a], value[below].nanmean().expand(int(below.sum())))


def test_a_single_child_and_a_step_without_a_split_pass_the_value_on():
    edge_LA = torch.tensor([[0, 0, 0], [0, 0, 1], [1, 1, 2], [1, 1, 3]])
    for weights in ("mean", "softmax"):
        found = tree_backup(VALUES, edge_LA, torch.randn(4, 3), weights=weights)
        close(found[:, 0], found[:, 1])


def test_hot_softmax_is_the_mean_of_siblings_which_in_a_ragged_tree_is_not_that_of_leaves():
    logprob = torch.tensor([[0.0, 1, 2], [0, 1, -3], [0, -1, 4], [5, 6, 7]])
    hot = tree_backup(VALUES, RAGGED, logprob, weights="softmax", temperature=1e9)
    close(hot[:, 0], column(2.25, 2.25, 2.25, 6), rtol=1e-6, atol=0)  # ((1 + 2)/2 + 3)/2
    close(tree_backup(VALUES, RAGGED, logprob)[:, 0], column(2, 2, 2, 6))


def test_cold_softmax_is_the_value_of_the_likeliest_child():
    logprob = torch.tensor([[0.0, 1, 2], [0, 1, -3], [0, -1, 4], [5, 6, 7]])
    cold = tree_backup(VALUES, RAGGED, logprob, weights="softmax", temperature=1e-6)
    close(cold[:, 0], column(1, 1, 1, 6))  # the edge of log-prob 1, and below it the leaf of log-prob 2


def leaves(value, edge_LA, *, prompts=1, logprob=None, **columns):
    """A table of the same tree for each prompt, with different values."""
    size = edge_LA.shape[0]
    edge = edge_LA.repeat(prompts, 1)
    return table(
        {"r": value}, prompt=[p for p in range(prompts) for _ in range(size)], sample=list(range(size)) * prompts,
        local_row=list(range(size * prompts)), edge=edge, seed=columns.pop("seed", [0] * size * prompts),
        edge_logprob=torch.zeros(edge.shape) if logprob is None else logprob, **columns,
    )  # fmt: skip


def earned(t, *stages):
    rows, actions = t.columns["edge"].shape
    return credit(t, stages, rollout=rollout(rows, actions), rank=0)


def test_every_edge_is_an_action_of_the_first_leaf_that_holds_it():
    found = earned(leaves([1, 2, 3, 6], BINARY), TreeBackup())
    assert found.keep_NA.tolist() == [[True, True], [False, True], [True, True], [False, True]]
    assert found.advantage_NA.tolist() == [[1.5, 1], [0, 2], [4.5, 3], [0, 6]]


@pytest.mark.parametrize(("at", "seeds"), [((0, 2), 1), ((1,), 3), ((0, 1), 2), (None, 1)])
def test_the_edges_that_earn_are_those_that_the_rollout_trains(at, seeds):
    noise_S = torch.tensor([0.7, 0.7, 0.7, 0.0])
    splits = Splits(factor=2, at=at)
    group = seeds * 2 ** (3 if at is None else len(at))
    tree = splits(Shifted()(4, image_tokens=64), noise_S, group_size=group, seeds=seeds)
    value = torch.rand(group, dtype=torch.float64)
    found = earned(leaves(value.tolist(), tree.columns["edge"], seed=tree.columns["seed"]), TreeBackup())
    assert found.keep_NA.equal(tree.train_GA)


def test_edges_are_compared_depth_by_depth_within_their_tree():
    value = [1, 2, 3, 6, 10, 30, 20, 20]
    t = leaves(value, BINARY, prompts=2)
    found = earned(t, TreeBackup(), GroupNorm(key=("prompt", "action"), eps=0))

    def compared(*x):
        x = column(*x)
        return (x - x.mean()) / x.std(correction=0)

    close(found.advantage_NA[[0, 2], 0], compared(1.5, 4.5))
    close(found.advantage_NA[:4, 1], compared(1, 2, 3, 6))
    assert found.advantage_NA[[4, 6], 0].tolist() == [0, 0]  # 20 and 20
    close(found.advantage_NA[4:, 1], compared(10, 30, 20, 20))


def test_advantages_of_leaves_are_carried_up_after_they_were_compared():
    found = earned(leaves([1, 2, 3, 6], BINARY), GroupNorm(scale="none"), TreeBackup())
    assert found.advantage_NA.tolist() == [[-1.5, -2], [0, -1], [1.5, 0], [0, 3]]


def test_unscored_leaves_take_no_part_and_an_edge_above_none_is_left_out():
    found = earned(leaves([NAN, 2, NAN, NAN], BINARY), TreeBackup())
    assert found.keep_NA.tolist() == [[True, False], [False, True], [False, False], [False, False]]
    assert found.advantage_NA[0, 0] == 2 and found.advantage_NA[1, 1] == 2


def test_pruned_edges_are_compared_with_the_others_before_they_are_left_out():
    stages = (TreeBackup(keep=2), GroupNorm(key=("prompt", "action"), eps=0))
    t = leaves([1, 2, 3, 6], BINARY)
    pruned, whole = earned(t, *stages), earned(t, TreeBackup(), stages[1])
    assert pruned.keep_NA.tolist() == [[True, True], [False, False], [True, False], [False, True]]
    close(pruned.advantage_NA, torch.where(pruned.keep_NA, whole.advantage_NA, 0.0), **to_the_bit)
    assert pruned.columns == {}


def test_the_best_leaf_of_each_part_of_the_last_split_is_kept_also_among_equals():
    split_at_0_and_2 = torch.tensor([[i // 3, i // 3, i, i] for i in range(9)])
    value = [1, 5, 2, 4, 4, 0, NAN, -1, -2]
    kept = earned(leaves(value, split_at_0_and_2), TreeBackup(keep="best_of_split")).keep_NA
    assert kept[:, 3].nonzero().flatten().tolist() == [1, 3, 7]
    assert kept[:, 0].tolist() == [i % 3 == 0 for i in range(9)]  # the edges above them, actions of the first leaf


def test_leaves_that_part_at_the_first_step_are_those_of_one_initial_latent():
    edge = torch.arange(4)[:, None].repeat(1, 2)
    t = leaves([1, 2, 6, 5], edge, seed=[0, 0, 1, 1])
    assert earned(t, TreeBackup(keep="best_of_split")).keep_NA.all(1).tolist() == [False, True, True, False]


def test_a_tree_is_wanted_and_pruning_needs_one_value():
    with pytest.raises(ConfigError, match=r"engine.tree=\{kind: splits"):
        TreeBackup()(table({"r": [1]}, prompt=[0]))
    t = leaves([1, 2, 3, 6], BINARY).with_values({"a": VALUES, "b": VALUES})
    assert set(TreeBackup()(t).values) == {"a", "b"}
    with pytest.raises(ConfigError, match=r"put \{kind: weighted_sum\} before it"):
        TreeBackup(keep=2)(t)
    for wrong in (dict(keep=3), dict(keep=0), dict(temperature=0)):
        with pytest.raises(ValueError, match="wanted"):
            TreeBackup(**wrong)


# ── GARDO ──


def test_the_win_rate_is_the_share_of_the_others_that_are_beaten_ties_half():
    score = column(3, 1, 1, 2, NAN, 3, 3, math.inf)
    finite = [v for v in score.tolist() if math.isfinite(v)]
    wanted = [
        (sum((a > b) + 0.5 * (a == b) for b in finite) - 0.5) / (len(finite) - 1) if math.isfinite(a) else NAN
        for a in score.tolist()
    ]
    close(batch_win_rate(score), column(*wanted))
    assert batch_win_rate(column(5, 1, 3)).tolist() == [1, 0, 0.5]
    assert batch_win_rate(column(2, 2, 2)).tolist() == [0.5] * 3 and batch_win_rate(column(7)).tolist() == [0]


def test_a_sample_is_doubted_as_far_as_the_other_scores_rank_it_lower():
    found = uncertainty(column(1, 2, 3), {"a": column(3, 2, 1), "b": column(1, 2, 3), "c": column(NAN, 0, 1)})
    close(found, column(0 - (1 + 0) / 2, 0.5 - (0.5 + 0.5 + 0) / 3, 1 - (0 + 1 + 1) / 3))


def doubted(share, **scores):
    size = len(next(iter(scores.values())))
    t = GardoGate(against=("aesthetic",), share=share)(table(scores, prompt=[0] * size))
    return t.columns["kl_gate"].nonzero().flatten().tolist(), t


def test_the_most_doubted_share_is_gated_and_the_doubting_rewards_leave():
    main, other = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9.0], [9, 8, 7, 6, 5, 4, 3, 2, 1, 0.0]
    for share, gated in [(0.1, [9]), (0.01, [9]), (0.3, [7, 8, 9]), (1.0, list(range(10)))]:
        found, t = doubted(share, main=main, aesthetic=other)
        assert found == gated and list(t.values) == ["main"]
        assert t.columns["kl_gate"].sum() == len(gated)


def test_a_row_that_one_of_the_rewards_does_not_apply_to_is_doubted_by_those_that_do():
    found, _ = doubted(0.25, main=[0, 1, NAN, NAN], ocr=[NAN, NAN, 0, 5.0], aesthetic=[3, 2, 1, 0.0])
    assert found == [3]


def test_the_gate_reaches_the_actions_of_its_rows():
    t = table({"main": [0, 1, 2.0], "aesthetic": [2, 1, 0.0]}, prompt=[0] * 3)
    found = credit(
        t, (GardoGate(("aesthetic",), share=0.3), GroupNorm(scale="none"), WeightedSum()), rollout=rollout(3, 2), rank=0
    )
    assert found.columns["kl_gate"].tolist() == [[0, 0], [0, 0], [1, 1]]
    assert found.advantage_NA[:, 0].tolist() == [-1, 0, 1]


def test_only_positive_advantages_are_scaled_by_the_distance():
    assert diversity_scaled(column(2, -2, 0, 1), column(0.5, 0.5, 0.5, 0)).tolist() == [1, -2, 0, 0]


def test_the_distance_is_not_compared_with_the_group():
    t = table({"main": [0, 0, 4, 4], "distance": [0.9, 0.8, 0.25, 0.5]}, prompt=[0] * 4)
    normalised = GroupNorm(scale="none", skip=("distance",))(t)
    assert normalised.values["distance"].tolist() == [0.9, 0.8, 0.25, 0.5]
    assert only(DiversityScale("distance")(normalised)).tolist() == [-2, -2, 0.5, 1]
    with pytest.raises(ConfigError, match="skip names 'distnace'"):
        GroupNorm(skip=("distnace",))(t)


@pytest.mark.parametrize("stage", [GardoGate(("absent",)), DiversityScale("absent"), DiversityScale("main")])
def test_a_reward_that_is_not_there_is_named(stage):
    with pytest.raises(ConfigError, match="wanted the rewards .* weight: 0"):
        stage(table({"main": [0.0, 1]}, prompt=[0, 0]))


# ── to rows and actions ──


def test_an_unscored_step_leaves_out_its_action_and_keeps_the_rest_of_the_row():
    t = table({"r": [1, NAN, 3, 4]}, prompt=[0] * 4, sample=[0, 0, 1, 1], action=[0, 1, 0, 1])
    found = credit(t, [], rollout=rollout(2, 2), rank=0)
    assert found.keep_NA.tolist() == [[True, False], [True, True]]
    assert found.advantage_NA.tolist() == [[1, 0], [3, 4]] and found.metrics["advantage/left_out_frac"] == 0.25


def test_an_output_of_the_whole_row_adds_to_what_its_steps_earned_and_unscored_takes_them_all():
    def with_whole(value):
        return table({"r": [value, 1, 2]}, prompt=[0] * 3, sample=[0] * 3, action=[-1, 0, 1])

    assert credit(with_whole(10), [], rollout=rollout(1, 2), rank=0).advantage_NA.tolist() == [[11, 12]]
    assert not credit(with_whole(NAN), [], rollout=rollout(1, 2), rank=0).keep_NA.any()


def test_a_column_is_averaged_over_the_outputs_of_an_action():
    def mark(t):
        return Table(t.values, t.columns | {"mark": column(1, 0, 0, 0)}, t.weights)

    t = table({"r": [1, 1, 1, 1]}, prompt=[0] * 4, sample=[0] * 4, action=[0, 0, 1, 1], tag=[1, 2, 1, 2])
    assert credit(t, [mark], rollout=rollout(1, 2), rank=0).columns["mark"].tolist() == [[0.5, 0]]


def test_a_baseline_left_in_the_table_is_refused():
    with pytest.raises(ConfigError, match=r"add the stage \{kind: gains\}"):
        credit(scored_before_and_after(r=[1.0] * 16), [], rollout=rollout(4, 3), rank=0)


def test_groups_without_a_difference_are_counted_step_by_step():
    t = table({"r": [0, 1, 0, -1, 5, NAN]}, prompt=[0] * 6, sample=[0, 0, 1, 1, 2, 2], action=[0, 1] * 3)
    stages = (KeepExtremes(keep=2, key=("prompt", "action")), GroupNorm(key=("prompt", "action")))
    found = credit(t, stages, rollout=rollout(3, 2), rank=0)
    assert found.metrics["advantage/zero_groups_frac"] == 0
    equal = table({"r": [0, 1, 0, -1]}, prompt=[0] * 4, sample=[0, 0, 1, 1], action=[0, 1] * 2)
    assert credit(equal, stages[1:], rollout=rollout(2, 2), rank=0).metrics["advantage/zero_groups_frac"] == 0.5


def test_gdpo_whitens_the_weighted_sum_of_normalised_rewards_over_the_batch():
    generator = torch.Generator().manual_seed(0)
    easy, rare = torch.rand(12, generator=generator, dtype=torch.float64), torch.zeros(12, dtype=torch.float64)
    rare[5] = 0.01
    t = table({"easy": easy, "rare": rare}, prompt=[i // 4 for i in range(12)], weights={"easy": 0.4, "rare": 0.6})
    found = only(GroupNorm(key=(), eps=1e-8)(WeightedSum()(GroupNorm(eps=1e-8)(t))))

    def normalised(x_PG):
        return (x_PG - x_PG.mean(1, keepdim=True)) / (x_PG.std(1, correction=0, keepdim=True) + 1e-8)

    total = (0.4 * normalised(easy.view(3, 4)) + 0.6 * normalised(rare.view(3, 4))).flatten()
    close(found, (total - total.mean()) / (total.std(correction=0) + 1e-8))
    assert found[5] == found.max()
