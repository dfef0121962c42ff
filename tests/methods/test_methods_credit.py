"""Credit below the sample: ranks, steps, tokens, agents, edges, fleets and exits, against the worked numbers and slow loops."""

import math
import time
import typing
from dataclasses import dataclass

import pytest
import torch
from tables import table

from grpo_mm.advantages import (
    AgentNorm,
    AnchorStates,
    ChoiceValue,
    FleetNorm,
    GroupNorm,
    LeaveOut,
    ListShape,
    PrefixTree,
    RewardToGo,
    SerialDecay,
    SubAgentReward,
    WeightedSum,
    anchor_advantage,
    choice_advantage,
    choice_value,
    copies_norm,
    credit,
    dcg_discount,
    episode_advantage,
    fairness,
    group_norm,
    list_bonus,
    prefix_tree_td,
    reward_to_go,
    serial_decay,
    sub_agent_reward,
)
from grpo_mm.config.checks import _check_advantage
from grpo_mm.config.methods import METHODS, find, preset
from grpo_mm.config.run_config import RunConfig
from grpo_mm.config.typed_yaml import convert
from grpo_mm.errors import ConfigError
from grpo_mm.objectives import ClippedRatio
from grpo_mm.types import Counts, Prompt, Rollout, View

NAN = math.nan
NAMES = {"rank_grpo", "gigpo", "tempo", "m_grpo", "graph_grpo", "ospo", "s_grpo"}
MINE = [method for method in METHODS if method.name in NAMES]


def column(*values):
    return torch.tensor(values, dtype=torch.float64)


def whole(*values):
    return torch.tensor(values)


def close(found, wanted, *, atol=1e-3):
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=atol, equal_nan=True)


def rollout(rows, actions, **columns):
    return Rollout(
        prompts=(Prompt("p", "text"),),
        prompt_N=torch.zeros(rows, dtype=torch.int64),
        sample_N=torch.arange(rows),
        behaviour_NA=torch.zeros(rows, actions),
        mask_NA=torch.ones(rows, actions, dtype=torch.bool),
        record=None,
        columns=columns,
    )


def only(t):
    (value_M,) = t.values.values()
    return value_M


def shuffled(t, seed=0):
    order = torch.randperm(len(t), generator=torch.Generator().manual_seed(seed))
    return order, t.take(order)


# ── what single actions earn ──


def test_per_action_adds_to_the_row_and_nan_leaves_an_action_out():
    t = table(prompt=[0, 0], reward=[1, 0]).plus_per_action(torch.tensor([[0, 0.5, NAN], [1, 0, 0]]))
    found = credit(t, [GroupNorm(scale="none")], rollout=rollout(2, 3), rank=0)
    close(found.advantage_NA, [[0.5, 1, 0.5], [0.5, -0.5, -0.5]])
    assert found.keep_NA.tolist() == [[True, True, False], [True] * 3]
    assert found.columns == {}


def test_stages_add_up_what_actions_earn_and_other_ranks_keep_theirs():
    t = table(prompt=[0, 0], reward=[1, 0], rank=[0, 1], local_row=[0, 0])
    t = t.plus_per_action(torch.ones(2, 2)).plus_per_action(torch.tensor([[1.0, 2], [3, 4]]))
    for rank, wanted in ((0, [[2.5, 3.5]]), (1, [[3.5, 4.5]])):
        close(credit(t, [GroupNorm(scale="none")], rollout=rollout(1, 2), rank=rank).advantage_NA, wanted)


def test_an_unscored_row_stays_out_whatever_its_actions_earn():
    t = table(prompt=[0, 0, 0], reward=[1, 0, NAN]).plus_per_action(torch.ones(3, 2))
    assert credit(t, [GroupNorm()], rollout=rollout(3, 2), rank=0).keep_NA.tolist() == [[True] * 2] * 2 + [[False] * 2]


def test_an_item_that_has_no_tokens_credits_nothing_of_another_row():
    unit = whole([0, 0, -1], [0, 1, 1])
    t = table(prompt=[0] * 6, sample=[0, 0, 0, 1, 1, 1], action=[0, 1, 2] * 2, reward=[1, 2, 4, 8, 16, 32])
    found = credit(t, [], rollout=rollout(2, 3, unit=unit), rank=0)
    assert found.advantage_NA.tolist() == [[1, 1, 0], [8, 16, 16]]
    assert found.keep_NA.tolist() == [[True, True, False], [True] * 3]


# ── Rank-GRPO ──

HITS = dict(prompt=[0] * 6, sample=[0, 0, 0, 1, 1, 1], action=[0, 1, 2] * 2, reward=[1, 0, 1, 0, 0, 1])
BY_RANK = GroupNorm(key=("prompt", "action"), ddof=1, eps=1e-4)


def test_ranks_earn_what_they_and_those_after_them_gain():
    close(dcg_discount(torch.arange(1, 4)), [1, 0.6309, 0.5], atol=1e-4)
    t = RewardToGo(discount="dcg")(table(**HITS))
    close(only(t), [1.5, 0.5, 0.5, 0.5, 0.5, 0.5], atol=1e-12)
    close(only(BY_RANK(t)), [0.7070, 0, 0, -0.7070, 0, 0], atol=1e-4)
    close(only(BY_RANK(table(**HITS))), [0.7070, 0, 0, -0.7070, 0, 0], atol=1e-4)  # exp_inf


def test_returns_are_a_plain_sum_over_what_follows():
    generator = torch.Generator().manual_seed(0)
    row, position = torch.arange(24) % 4, torch.arange(24) // 4 * 2 + 3
    reward = torch.rand(24, generator=generator, dtype=torch.float64)
    order = torch.randperm(24, generator=generator)[:17]
    reward, row, position = reward[order], row[order], position[order]
    for gamma in (1.0, 0.95, 0.0):
        wanted = [
            sum(gamma ** float(position[k] - position[i]) * reward[k] for k in range(17) if row[k] == row[i] and position[k] >= position[i])
            for i in range(17)
        ]  # fmt: skip
        close(reward_to_go(reward, row, position, gamma=gamma), torch.stack(wanted), atol=1e-12)


def test_a_reward_that_is_missing_loses_the_returns_it_is_part_of():
    found = reward_to_go(column(1, NAN, 3, 4), whole(0, 0, 0, 1), whole(0, 1, 2, 0))
    close(found, [NAN, NAN, 3, 4])


def test_returns_need_positions():
    with pytest.raises(ConfigError, match="scores rows as a whole"):
        RewardToGo()(table(prompt=[0, 0], reward=[1, 0]))
    with pytest.raises(ValueError, match="wanted 0 to 1"):
        RewardToGo(gamma=1.5)


UNIT = whole([0, 0, 1, 2, -1, -1], [0, 1, 1, -1, -1, -1], [0, 1, 2, 3, 3, -1])
EOS = whole([0, 0, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1]).bool()
"""Lists of exactly three items, of two, and of more than three."""


def test_the_length_of_a_list_is_paid_at_its_end_and_at_what_overflows():
    wanted = [[0, 0, 0, 0, 0.1, 0], [0, 0, 0, -0.1, 0, 0], [0, 0, 0, -0.1, -0.1, 0]]
    close(list_bonus(UNIT, EOS, items=3), wanted, atol=0)


def test_rank_grpo_from_hits_to_tokens():
    t = table(
        prompt=[0] * 9, sample=[0] * 3 + [1] * 3 + [2] * 3, action=[0, 1, 2] * 3, reward=[1, 0, 1, 0, 0, 1, NAN, NAN, NAN],
        unit=UNIT.repeat_interleave(3, 0), eos=EOS.repeat_interleave(3, 0),
    )  # fmt: skip
    stages = (WeightedSum(), RewardToGo(discount="dcg"), BY_RANK, ListShape(items=3))
    found = credit(t, stages, rollout=rollout(3, 6, unit=UNIT), rank=0)
    close(found.advantage_NA[:2], [[0.7070, 0.7070, 0, 0, 0.1, 0], [-0.7070, 0, 0, -0.1, 0, 0]], atol=1e-4)
    assert found.keep_NA[:2].all() and not found.keep_NA[2].any()
    # What overflows has no output of its own, and is trained all the same.
    scored = t.with_values({"reward": only(t).nan_to_num()})
    again = credit(scored, stages, rollout=rollout(3, 6, unit=UNIT), rank=0)
    assert again.keep_NA.all() and again.advantage_NA[2, 3:].tolist() == [-0.1, -0.1, 0]


def test_more_units_than_items_are_refused():
    with pytest.raises(ConfigError, match="all tokens beyond the last item are unit 2"):
        ListShape(items=2)(table(prompt=[0], reward=[1], unit=whole([0, 1, 3]), eos=whole([0, 0, 0])))


def test_the_tokens_of_an_item_share_one_ratio():
    objective = ClippedRatio(**_objective("rank_grpo")[0])
    ones, row = torch.ones(1, 3, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.int64)
    here = View(0 * ones, ones, ones, row, row, 3 * ones, Counts(3.0, 1.0, 3), {"unit": whole([0, 0, 1])})
    term = objective({"logprobs": column([0.1, 0.3, 0.0])}, here)
    close(term.stats["ratio"], [[1.2214, 1.2214, 1]], atol=1e-4)
    close(term.loss, [[-1.08, -1.08, -1]])


def _objective(name):
    return [{k: v for k, v in term.items() if k != "kind"} for term in preset(_key(name))["objective"]]


def _key(name):
    return next(method.key for method in MINE if method.name == name)


# ── GiGPO ──

STEPS = dict(prompt=[0] * 4, sample=[0, 0, 1, 1], action=[0, 1, 0, 1], reward=[0, 1, 0, 0])
STATES = whole([7, 8], [7, 8], [7, 9], [7, 9])


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        (dict(scale="none"), [0.975, 0.5, -0.975, -0.5]),
        (dict(scale="none", once=True), [0.975, 0.5, -0.975, -0.5]),
        (dict(once=True), [1.4142, 0.7071, -1.4142, -0.7071]),
        (dict(), [1.5731, 0.8660, -1.5731, -0.8660]),
        (dict(omega=0, once=True), [0.7071, 0.7071, -0.7071, -0.7071]),
    ],
    ids=["no std", "no std, once", "std, once", "std, by steps", "GRPO"],
)
def test_episodes_and_the_steps_taken_from_one_state(how, wanted):
    t = table(**STEPS, state_key=STATES)
    close(only(AnchorStates(**how)(t)), wanted, atol=1e-4)
    order, mixed = shuffled(t)
    close(only(AnchorStates(**how)(mixed)), column(*wanted)[order], atol=1e-4)


def test_without_shared_states_or_omega_it_is_grpo_on_episodes():
    generator = torch.Generator().manual_seed(0)
    reward = torch.rand(12, generator=generator, dtype=torch.float64)
    episode = torch.arange(12) // 3
    wanted = group_norm(reward.view(4, 3).sum(1), whole(0, 0, 1, 1), ddof=1, eps=1e-6)[episode]
    shared = dict(prompt=[0] * 6 + [1] * 6, sample=(episode % 2).tolist(), action=[0, 1, 2] * 4, reward=reward)
    alone = torch.arange(36).view(12, 3) // 9 * 9 + torch.tensor([0, 1, 2])
    close(only(AnchorStates(once=True)(table(**shared, state_key=alone))), wanted, atol=1e-9)
    same = torch.zeros(12, 3, dtype=torch.int64)
    close(only(AnchorStates(once=True, omega=0)(table(**shared, state_key=same))), wanted, atol=1e-9)


def test_long_episodes_weigh_more_unless_each_counts_once():
    reward, task, episode = column(1, 0, 0, 0), whole(0, 0, 0, 0), whole(0, 1, 1, 1)
    close(episode_advantage(reward, task, episode, scale="none"), [0.75, -0.25, -0.25, -0.25])
    close(episode_advantage(reward, task, episode, scale="none", once=True), [0.5, -0.5, -0.5, -0.5])


def test_a_state_of_another_task_is_another_state():
    found = anchor_advantage(column(1, 0, 5, 5), whole(0, 0, 1, 1), whole(3, 3, 3, 3), scale="none")
    assert found.tolist() == [0.5, -0.5, 0, 0]


def test_an_unscored_step_takes_its_episode_out():
    t = table(prompt=[0] * 6, sample=[0, 0, 1, 1, 2, 2], action=[0, 1] * 3, reward=[0, 1, 0, 0, 0, NAN], state_key=whole([7, 0], [7, 1], [7, 2]).repeat_interleave(2, 0))  # fmt: skip
    found = only(AnchorStates(scale="none")(t))
    assert found[4:].isnan().all() and torch.isfinite(found[:4]).all()
    assert found[0] == pytest.approx(0.975)


# ── TEMPO ──

RESPONSES = whole([23, 24, 1], [23, 24, 2], [23, 25, 3], [22, 4, 5])


def slow_td(reward, token, group):
    """Prefix by prefix, with dictionaries."""
    value, result = {}, torch.zeros(token.shape, dtype=torch.float64)
    texts = [[t for t in row if t >= 0] for row in token.tolist()]
    for r, g, text in zip(reward.tolist(), group.tolist(), texts):
        for end in range(len(text) + 1):
            if not math.isnan(r):
                value.setdefault((g, *text[:end]), []).append(r)
    mean = {prefix: sum(v) / len(v) for prefix, v in value.items()}
    for i, (g, text) in enumerate(zip(group.tolist(), texts)):
        for t in range(len(text)):
            result[i, t] = mean.get((g, *text[: t + 1]), NAN) - mean.get((g, *text[:t]), NAN)
        if math.isnan(reward[i]):
            result[i] = NAN
    return result


def test_tokens_earn_the_turn_they_gave_their_prefix():
    t = table(prompt=[0] * 4, reward=[1, 0, 1, 0], token=RESPONSES)
    found = credit(t, [PrefixTree(eps=0)], rollout=rollout(4, 3), rank=0).advantage_NA
    wanted = [[1.3333, 0.6667, 2], [-0.6667, -1.3333, -2], [1.3333, 1.6667, 1], [-2, -1, -1]]
    close(found, wanted, atol=1e-4)
    order, mixed = shuffled(t)
    again = credit(mixed, [PrefixTree(eps=0)], rollout=rollout(4, 3), rank=0).advantage_NA
    close(again, wanted, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 5])
@pytest.mark.parametrize("unscored", [0, 6])
def test_the_tree_equals_a_slow_walk_over_prefixes(groups, unscored):
    """Ragged groups and lengths, repeated responses, one response that is the beginning of another."""
    generator = torch.Generator().manual_seed(groups + unscored)
    token = torch.randint(0, 3, (40, 150), generator=generator)
    token[:, 2:70] = token[0, 2:70]
    token[20] = token[3]
    token[21] = torch.where(torch.arange(150) < 80, token[4], -1)
    length = torch.randint(0, 151, (40,), generator=generator)
    token[torch.arange(150) >= length[:, None]] = -1
    group = torch.randint(0, groups, (40,), generator=generator)
    reward = torch.rand(40, generator=generator, dtype=torch.float64)
    reward[torch.randperm(40, generator=generator)[:unscored]] = NAN
    close(prefix_tree_td(reward, token, group), slow_td(reward, token, group), atol=1e-12)


def test_the_turns_of_a_response_add_up_to_its_reward_minus_the_mean():
    generator = torch.Generator().manual_seed(1)
    token = torch.randint(0, 4, (32, 30), generator=generator)
    reward, group = torch.rand(32, generator=generator, dtype=torch.float64), torch.arange(32) // 8
    wanted = reward - reward.view(4, 8).mean(1)[group]
    close(prefix_tree_td(reward, token, group).sum(1), wanted, atol=1e-12)


def test_where_no_prefix_is_shared_the_first_token_counts_twice():
    t = table(prompt=[0, 0], reward=[1, 0], token=whole([1, 5], [2, 5]))
    found = credit(t, [PrefixTree(eps=0)], rollout=rollout(2, 2), rank=0).advantage_NA
    close(found, [[2, 1], [-2, -1]])


@pytest.mark.parametrize(("prompt", "reward"), [([0, 0], [0.3, 0.3]), ([0, 1], [1, 0]), ([0, 0, 0], [0.1, 0.1, 0.1])])
def test_one_response_or_equal_rewards_earn_exactly_nothing(prompt, reward):
    t = table(prompt=prompt, reward=reward, token=torch.arange(2 * len(prompt)).view(-1, 2))
    found = credit(t, [PrefixTree()], rollout=rollout(len(prompt), 2), rank=0)
    assert (found.advantage_NA == 0).all() and found.keep_NA.all()


def test_a_tree_needs_rewards_of_whole_responses():
    with pytest.raises(ConfigError, match="whole responses"):
        PrefixTree()(table(prompt=[0, 0], reward=[1, 0], action=[0, 0], token=torch.zeros(2, 1, dtype=torch.int64)))
    with pytest.raises(ConfigError, match="weighted_sum"):
        PrefixTree()(table(prompt=[0], values={"a": [1], "b": [1]}, token=torch.zeros(1, 1, dtype=torch.int64)))


@pytest.mark.slow
def test_four_thousand_responses_of_a_thousand_tokens_take_well_under_a_second():
    generator = torch.Generator().manual_seed(0)
    token = torch.randint(0, 3, (4096, 1024), generator=generator)
    reward, group = torch.rand(4096, generator=generator, dtype=torch.float64), torch.arange(4096) // 8
    took = []
    for _ in range(3):  # of this thread alone: other work on the machine does not count
        start = time.thread_time()
        prefix_tree_td(reward, token, group)
        took.append(time.thread_time() - start)
    assert min(took) < 0.5


# ── M-GRPO ──

SUBS = dict(
    prompt=[0] * 10, sample=list(range(10)), agent=[0] * 4 + [1] * 6, main=[0, 1, 2, 3, 0, 0, 1, 2, 3, 0],
    valid=[True] * 9 + [False], reward=[1, 0.1, 0, 0, NAN, NAN, 7, 7, 7, 7],
)  # fmt: skip


def test_sub_agents_earn_for_the_score_of_who_called_them():
    found = sub_agent_reward(column(1, 0.1, 0, 1, NAN, 0.5), whole(1, 1, 1, 0, 1, 1))
    close(found, [1, 0.1, 0.1, 0, NAN, 1])
    close(only(SubAgentReward()(table(**SUBS))), [1, 0.1, 0, 0, 1, 1, 0.1, 0.1, 0.1, 0], atol=0)


def test_main_and_sub_agents_are_compared_with_their_own_kind():
    t = AgentNorm(eps=0)(SubAgentReward()(table(**SUBS)))
    main, sub = [1.7239, -0.4161, -0.6539, -0.6539], [1.4096, 1.4096, -0.6476, -0.6476, -0.6476, -0.8762]
    close(only(t), main + sub, atol=1e-4)
    order, mixed = shuffled(table(**SUBS))
    close(only(AgentNorm(eps=0)(SubAgentReward()(mixed))), column(*main, *sub)[order], atol=1e-4)


def test_groups_do_not_mix_queries_whose_samples_have_the_same_numbers():
    two = {k: list(v) * 2 for k, v in SUBS.items()} | {"prompt": [0] * 10 + [1] * 10}
    two["reward"] = SUBS["reward"] + [0, 0.1, 0, 1] + [NAN] * 6
    found = only(SubAgentReward()(table(**two)))
    close(found[14:], [0.1, 0.1, 0.1, 0.1, 1, 0])


def test_copies_count_once():
    reward, group = column(1, 0.5, 0, 0.2), whole(0, 0, 0, 0)
    alone = copies_norm(reward, group, torch.ones(4))
    close(alone, group_norm(reward, group), atol=1e-12)
    repeat = whole(1, 3, 2, 1)
    many = reward.repeat_interleave(repeat)
    for ddof in (0, 1):
        found = copies_norm(many, torch.zeros(7, dtype=torch.int64), repeat.repeat_interleave(repeat), ddof=ddof)
        together = torch.zeros(4, dtype=torch.float64).index_add_(0, torch.arange(4).repeat_interleave(repeat), found)
        close(together, group_norm(reward, group, ddof=ddof), atol=1e-12)


def test_equal_rewards_and_single_rows_of_an_agent_earn_nothing():
    for eps in (1e-12, 0):
        found = copies_norm(column(0.1, 0.1, 0.1, NAN, 5), whole(0, 0, 0, 0, 1), whole(1, 2, 2, 1, 1), eps=eps)
        close(found, [0, 0, 0, NAN, 0], atol=0)


def test_a_sub_agent_that_nobody_called_is_an_error():
    with pytest.raises(ConfigError, match="sample 1 of prompt 0 says it was called by sample 5"):
        SubAgentReward()(table(prompt=[0, 0], reward=[1, 0], agent=[0, 1], main=[0, 5], valid=[1, 1]))


# ── GRPO with rewards of steps ──

PROCESS = (WeightedSum(), GroupNorm(key=("prompt",), ddof=1, eps=0), RewardToGo())
STEP_REWARDS = dict(prompt=[0] * 5, sample=[0, 0, 1, 1, 1], action=[0, 1, 0, 1, 2], reward=[1, 0, 0, 1, 1])
"""Two answers of two and of three steps: mean .6 over all steps of the group, std √.3."""


def test_process_supervision_is_the_sum_of_the_normalised_rewards_of_the_steps_to_come():
    t = table(**STEP_REWARDS)
    for stage in PROCESS:
        t = stage(t)
    close(only(t), column(0.4 - 0.6, -0.6, -0.6 + 0.4 + 0.4, 0.4 + 0.4, 0.4) / math.sqrt(0.3), atol=1e-12)


def test_with_process_supervision_the_tokens_of_a_step_share_what_it_and_the_later_steps_earn():
    unit = whole([0, 0, 1, 1, -1], [0, 1, 1, 1, 2])
    masked = dict(local_row=whole(0, 0, 1, 1, 1))
    found = credit(table(**STEP_REWARDS, **masked), PROCESS, rollout=rollout(2, 5, unit=unit), rank=0)
    a, b = [-0.2, -0.6], [0.2, 0.8, 0.4]
    close(
        found.advantage_NA * math.sqrt(0.3), [[a[0], a[0], a[1], a[1], 0], [b[0], b[1], b[1], b[1], b[2]]], atol=1e-12
    )


# ── Graph-GRPO ──

GRAPHS = whole([1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 0, 0])


def test_an_edge_is_worth_the_mean_reward_of_the_graphs_that_contain_it():
    reward, group = column(1, 1, 0, 1), torch.zeros(4, dtype=torch.int64)
    close(choice_value(reward, GRAPHS, group), [[1, 0.5, 0.5]])
    edge = column(1.4142, -0.7071, -0.7071)
    wanted = torch.where(GRAPHS.bool(), edge, 0.0)
    close(choice_advantage(reward, GRAPHS, group), wanted, atol=1e-4)
    t = table(prompt=[0] * 4, reward=reward, chosen=GRAPHS)
    found = credit(t, [ChoiceValue()], rollout=rollout(4, 3), rank=0)
    close(found.advantage_NA, wanted, atol=1e-4)
    assert found.keep_NA.all()


def test_an_edge_that_nobody_has_is_not_in_the_statistics():
    reward, group = column(1, 1, 0, 1), torch.zeros(4, dtype=torch.int64)
    wider = torch.cat([GRAPHS, torch.zeros(4, 1, dtype=torch.int64)], 1)
    close(choice_advantage(reward, wider, group)[:, :3], choice_advantage(reward, GRAPHS, group), atol=1e-12)
    assert choice_advantage(reward, wider, group)[:, 3].tolist() == [0] * 4


def test_edges_of_another_query_and_unscored_graphs_take_no_part():
    reward, group = column(1, 1, 0, 1, NAN, 0.2, 0.2), whole(0, 0, 0, 0, 0, 1, 1)
    chosen = torch.cat([GRAPHS, whole([1, 1, 1], [1, 1, 0], [0, 1, 1])])
    found = choice_advantage(reward, chosen, group)
    close(found[:4], choice_advantage(column(1, 1, 0, 1), GRAPHS, group[:4]), atol=1e-12)
    assert found[4].isnan().all()
    close(found[5:], [[0, 0, 0], [0, 0, 0]], atol=0)  # equal rewards: exactly nothing


# ── OSPO ──

FLEET = dict(prompt=[0] * 4, time=[0, 0, 1, 1], agent=[3, 5, 3, 5], reward=[1, 0, 0, 3])
"""What the two agents have earned: 1 and 0, then 1 and 3; its std .5, then 1."""


def test_agents_of_one_time_are_each_others_baseline_and_inequality_costs():
    close(fairness(column(1, 0, 0, 3), *(whole(*FLEET[k]) for k in ("prompt", "time", "agent"))), [-0.5] * 4)
    t = table(**FLEET)
    close(only(FleetNorm()(t)), [0.5, -1.5, -1.5, 0.5], atol=1e-6)
    close(only(FleetNorm(fairness_weight=0)(t)), [1, -1, -1, 1], atol=1e-6)
    order, mixed = shuffled(t)
    close(only(FleetNorm()(mixed)), column(0.5, -1.5, -1.5, 0.5)[order], atol=1e-6)


def test_steps_of_a_row_are_times_and_samples_are_agents():
    t = table(prompt=[0] * 4, sample=[0, 1, 0, 1], action=[0, 0, 1, 1], reward=FLEET["reward"])
    close(only(FleetNorm(time="action", agent="sample")(t)), only(FleetNorm()(table(**FLEET))), atol=0)


def test_the_fairness_of_all_times_adds_up_to_minus_the_last_std():
    generator = torch.Generator().manual_seed(0)
    reward = torch.rand(3, 2, 5, generator=generator, dtype=torch.float64)  # time, scene, agent
    time_, scene, agent = (i.flatten() for i in torch.meshgrid(*map(torch.arange, reward.shape), indexing="ij"))
    found = fairness(reward.flatten(), scene, time_, agent).view(3, 2, 5)
    close(found.sum(0)[:, 0], -reward.sum(0).std(1, correction=0), atol=1e-12)
    assert (found == found[:, :, :1]).all()  # shared by all agents


def test_pay_that_is_alike_leaves_fairness_alone():
    t = table(prompt=[0] * 4, time=[0, 0, 1, 1], agent=[0, 1, 0, 1], reward=[0, 1, 1, 1])
    close(only(FleetNorm()(t))[2:], [0, 0], atol=0)
    t = table(prompt=[0] * 3, time=[0, 0, 0], agent=[0, 1, 2], reward=[0, 1, NAN])
    assert only(FleetNorm()(t)).isnan().tolist() == [False, False, True]


# ── S-GRPO ──


def test_the_earliest_correct_exit_earns_the_most():
    t = SerialDecay()(table(prompt=[0] * 5, order=[0, 1, 2, 3, 4], reward=[0, 1, 1, 0, 1]))
    close(only(t), [0, 1, 0.5, 0, 0.25], atol=0)
    close(only(GroupNorm(scale="none")(t)), [-0.35, 0.65, 0.15, -0.35, -0.10], atol=1e-12)


def test_exits_count_within_their_prompt_in_their_own_order():
    found = serial_decay(column(1, 1, 1, NAN, 0, 1), whole(5, 1, 7, 0, 2, 9), whole(1, 1, 0, 1, 1, 1))
    close(found, [0.5, 1, 1, NAN, 0, 0.25], atol=0)
    close(serial_decay(column(1, 1), whole(0, 1), whole(0, 0), decay=1.0), [1, 1], atol=0)


def test_tokens_that_exits_share_are_trained_in_the_full_path_only():
    shared = whole([1, 1, 0], [1, 0, 0], [0, 0, 0]).bool()
    t = table(prompt=[0] * 3, order=[0, 1, 2], reward=[1, 0, 1], shared_prefix=shared)
    found = credit(t, [SerialDecay(), GroupNorm(scale="none"), LeaveOut()], rollout=rollout(3, 3), rank=0)
    assert torch.equal(found.keep_NA, ~shared)
    close(found.advantage_NA[:, 2], [0.5, -0.5, 0], atol=1e-12)


# ── presets ──


@dataclass(frozen=True)
class Engine:
    """Declares the columns of rows that the method of a preset needs."""

    extra: tuple[str, ...]
    by_item: bool = False

    def table_columns(self, group_size):
        sample = torch.arange(group_size)
        whole_NA = torch.zeros(group_size, 3, dtype=torch.int64)
        wide = {"unit", "eos", "state_key", "token", "chosen", "shared_prefix"}
        columns = {n: whole_NA if n in wide else torch.zeros(group_size, dtype=torch.int64) for n in self.extra}
        return {"sample": sample, "action": sample * 0 if self.by_item else sample * 0 - 1, "tag": sample * 0} | columns


NEEDS = {
    "rank_grpo": Engine(("unit", "eos"), by_item=True),
    "gigpo": Engine(("state_key",), by_item=True),
    "tempo": Engine(("token",)),
    "m_grpo": Engine(("agent", "main", "valid")),
    "graph_grpo": Engine(("chosen",)),
    "ospo": Engine(("time", "agent")),
    "s_grpo": Engine(("order", "shared_prefix")),
}


@dataclass(frozen=True)
class Settings:
    """As much of a config as the check of its stages reads."""

    engine: Engine
    advantage: tuple
    objective: tuple
    group_size: int = 4
    collector: object = None
    rollout_ahead: int = 0

    @property
    def rewards(self):
        return {"r": type("Weighted", (), {"weight": 1.0})()}


def settings(method, engine):
    hints = typing.get_type_hints(RunConfig, include_extras=True)
    chosen = preset(method.key)
    parts = {name: convert(hints[name], chosen[name], path=name) for name in ("advantage", "objective")}
    return Settings(engine=engine, **parts)


def test_every_method_of_this_file_has_a_line_and_a_preset():
    assert {method.name for method in MINE} == NAMES == set(NEEDS)
    assert all(
        method.tested == "tests/methods/test_methods_credit.py" and find(method.key) is method for method in MINE
    )


@pytest.mark.parametrize("method", MINE, ids=lambda m: m.key)
def test_a_preset_runs_on_the_columns_it_names(method):
    _check_advantage(settings(method, NEEDS[method.name]))


@pytest.mark.parametrize("method", MINE, ids=lambda m: m.key)
def test_a_preset_says_which_column_is_missing(method):
    engine = Engine((), by_item=NEEDS[method.name].by_item)
    with pytest.raises(ConfigError, match=r"needs the column '(eos|state_key|token|agent|chosen|order)'.*\. [A-Z]"):
        _check_advantage(settings(method, engine))
