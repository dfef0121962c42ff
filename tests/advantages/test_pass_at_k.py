"""Pass@k advantages and the factor of GPG: the presets passk and gpg, by hand and against a loop over all sets."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from grpo_mm.advantages import GroupNorm, PassAtK, ValidGroups, group_norm, pass_at_k, valid_groups_factor
from grpo_mm.config import methods
from grpo_mm.rollout.table import Table

NAN = float("nan")
ONE = torch.zeros(4, dtype=torch.int64)


def test_one_right_sample_of_four_at_pass_at_two():
    """Six pairs, three of them right: R = 1/2, σ = 1/2. A wrong sample is in three pairs, one of them right: (1/3 - 1/2) / σ."""
    found = pass_at_k(torch.tensor([0.0, 1, 0, 0]), ONE, k=2)
    assert found.tolist() == pytest.approx([-1 / 3, 1, -1 / 3, -1 / 3])


def test_the_paper_s_closed_form_for_rewards_of_zero_and_one():
    from math import comb

    n, wrong, k = 8, 5, 3
    rate = 1 - comb(wrong, k) / comb(n, k)
    std = (rate * (1 - rate)) ** 0.5
    reward = torch.tensor([0.0] * wrong + [1.0] * (n - wrong))
    found = pass_at_k(reward, torch.zeros(n, dtype=torch.int64), k=k)
    right = (1 - rate) / std
    fail = (1 - rate - comb(wrong - 1, k - 1) / comb(n - 1, k - 1)) / std
    assert found.tolist() == pytest.approx([fail] * wrong + [right] * (n - wrong))


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("against", ["mean", "without"])
def test_any_rewards_against_a_loop_over_all_sets(k, against):
    if against == "without" and k == 1:
        pytest.skip("nothing is left to compare with")
    reward = torch.tensor([0.3, -1.0, 2.0, 2.0, 0.7], dtype=torch.float64)
    sets = list(combinations(range(5), k))
    best = {one: max(reward[list(one)].tolist()) for one in sets}
    wanted = []
    for i in range(5):
        holding = [one for one in sets if i in one]
        mine = sum(best[one] for one in holding) / len(holding)
        others = sets if against == "mean" else [tuple(j for j in one if j != i) for one in holding]
        wanted.append(mine - sum(max(reward[list(one)].tolist()) for one in others) / len(others))
    found = pass_at_k(reward, torch.zeros(5, dtype=torch.int64), k=k, against=against, scale="none")
    assert found.tolist() == pytest.approx(wanted)


def test_at_the_whole_group_only_the_best_earns_and_as_much_as_it_is_better():
    reward, group = torch.tensor([1.0, 4, 2, 3, 3, 1]), torch.tensor([0, 0, 0, 1, 1, 1])
    found = pass_at_k(reward, group, k=None, against="without", scale="none")
    assert found.tolist() == [0, 2, 0, 0, 0, 0]
    std = torch.tensor([1.0, 4, 2]).std().item()
    scaled = pass_at_k(reward, group, k=None, against="without", scale="std", eps=1e-12)
    assert scaled.tolist() == pytest.approx([0, 2 / std, 0, 0, 0, 0])


def test_pass_at_one_is_grpo():
    reward, group = torch.tensor([0.1, 0.9, 0.4, 1.0, 0.0, 0.5]), torch.tensor([0, 0, 0, 1, 1, 1])
    assert torch.allclose(pass_at_k(reward, group, k=1), group_norm(reward, group, ddof=0, eps=0))


def test_failed_rows_take_no_part_and_a_group_that_is_left_with_fewer_is_taken_whole():
    reward = torch.tensor([0.0, NAN, 1, 0, 0, 1, NAN, 3, NAN])
    group = torch.tensor([0] * 5 + [1] * 4)
    found = pass_at_k(reward, group, k=2)
    assert found[[0, 2, 3, 4]].tolist() == pytest.approx([-1 / 3, 1, -1 / 3, -1 / 3])
    assert found.isnan().tolist() == reward.isnan().tolist()
    whole = pass_at_k(reward, group, k=4, against="without", scale="none")
    assert whole.nan_to_num(-9).tolist() == [0, -9, 1, 0, 0, 0, -9, 2, -9]


@pytest.mark.parametrize("scale", ["none", "std", "max_std"])
@pytest.mark.parametrize("reward", [[0.0] * 4, [1.0] * 4, [0.1 + 0.2, 0.3, 0.3, 0.3], [1.0, 1, 1, 0]])
def test_where_every_set_is_as_good_nobody_earns(reward, scale):
    """Three of four are right: every pair holds a right one."""
    found = pass_at_k(torch.tensor(reward, dtype=torch.float64), ONE, k=2, scale=scale)
    assert found.tolist() == [0] * 4


@pytest.mark.parametrize("scale", ["none", "std", "max_std"])
@pytest.mark.parametrize("against", ["mean", "without"])
@pytest.mark.parametrize(("right", "wrong", "k"), [(6, 2, 3), (12, 4, 5), (3, 1, 2), (57, 7, 8)])
def test_a_group_that_cannot_fail_teaches_nothing_and_valid_groups_see_it(right, wrong, k, against, scale):
    """However k splits a group into sets, no rounding is left that would count as a difference."""
    if (against, scale) == ("without", "max_std"):
        pytest.skip("refused")
    if against == "without":
        wrong = min(wrong, k - 2)  # the others of any set hold a right one
    reward = torch.tensor([0.1] * wrong + [0.7] * right, dtype=torch.float64)
    group = torch.zeros(len(reward), dtype=torch.int64)
    found = pass_at_k(reward, group, k=k, against=against, scale=scale)
    assert (found == 0).all() and valid_groups_factor(found, group) == 1
    both, groups = torch.cat([found, torch.tensor([1.0, -1.0])]), torch.cat([group, torch.tensor([1, 1])])
    assert valid_groups_factor(both, groups) == 2


def test_the_zero_of_the_reward_does_not_matter_however_far_it_is():
    reward = torch.tensor([0.0, 1, 0.5, 0], dtype=torch.float64)
    near = pass_at_k(reward, ONE, k=2)
    assert torch.allclose(pass_at_k(reward + 2.0**40, ONE, k=2), near, rtol=1e-12, atol=0)


def test_settings_that_contradict_each_other_are_refused():
    for settings in (dict(k=0), dict(k=1, against="without"), dict(eps=0.0), dict(against="without"), dict(k=None)):
        with pytest.raises(ValueError):
            PassAtK(**settings)
    with pytest.raises(ValueError, match="against: without"):
        pass_at_k(torch.tensor([0.0, 1, 0, 0]), ONE)


def test_a_group_of_k_is_one_set_which_nobody_can_add_to():
    assert pass_at_k(torch.tensor([0.0, 1, 0, 0]), ONE, k=4).tolist() == [0] * 4
    assert PassAtK(k=4).min_group_size == 5 and PassAtK(k=1).min_group_size == 2
    without = {k: PassAtK(k=k, against="without", scale="none").min_group_size for k in (None, 2, 4)}
    assert without == {None: 2, 2: 2, 4: 4}


def table(reward, group):
    return Table(values={"r": torch.tensor(reward)}, columns={"prompt": torch.tensor(group)})


def test_groups_that_teach_make_up_for_those_that_do_not():
    """Four groups, one of them without a scored row, one whose rewards are equal: three over two."""
    rewards, groups = [0.0, 1, 1, 1, NAN, NAN, 1, 0], [0, 0, 1, 1, 2, 2, 3, 3]
    centred = GroupNorm(scale="none")(table(rewards, groups))
    assert valid_groups_factor(centred.values["r"], centred.columns["prompt"]) == 1.5
    found = ValidGroups()(centred).values["r"]
    assert found[[0, 1, 2, 3, 6, 7]].tolist() == [-0.75, 0.75, 0, 0, 0.75, -0.75] and found[4:6].isnan().all()
    # The mean over all scored rows is then that over the rows of groups that teach.
    assert found[:2].abs().sum() / 6 + found[6:].abs().sum() / 6 == pytest.approx(0.5)


def test_where_no_group_teaches_the_factor_is_one():
    assert valid_groups_factor(torch.zeros(4), ONE) == 1.0
    assert valid_groups_factor(torch.full((4,), NAN), ONE) == 1.0


def test_the_presets_use_them():
    assert [stage["kind"] for stage in methods.preset("passk")["advantage"]] == ["weighted_sum", "pass_at_k"]
    assert methods.preset("gpg")["advantage"][-1] == {"kind": "valid_groups"}
