"""Pref-GRPO's win rate, and the pairing that makes do with fewer comparisons."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_mm.advantages.baselines.group_norm import group_norm
from grpo_mm.config import typed_yaml as config
from grpo_mm.errors import ConfigError, UserError
from grpo_mm.processes import clock
from grpo_mm.rewards.judges.comparing import PointwiseJudge
from grpo_mm.rewards.judges.pairing import all_pairs, bradley_terry, expected_win_rates, next_pairs, opening_pairs
from grpo_mm.rewards.judges.win_rate import WinRate, win_rates
from grpo_mm.types import Prompt, is_relative

NAN = math.nan


class LevelJudge:
    """The brighter picture wins, by its first pixel; equal ones tie. Keeps what it was shown."""

    categories = ("alignment", "quality")

    def __init__(self, *, fails=lambda first, second: False, bias=0, says=None):
        self.fails, self.bias, self.says, self.shown, self.calls = fails, bias, says, [], 0

    def __call__(self, pairs):
        self.calls += 1
        return [self.verdict(int(pair.first[0, 0, 0]), int(pair.second[0, 0, 0])) for pair in pairs]

    def verdict(self, first, second):
        self.shown.append((first, second))
        if self.fails(first, second):
            return None
        if self.says is not None:
            return self.says(first, second)
        margin = first + self.bias - second
        return {"overall": 0.5 if margin == 0 else float(margin > 0)}


def pictures(levels) -> torch.Tensor:
    """One plain picture per level; its last pixel is its number, so that equal levels are not equal pictures."""
    images = torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 2, 2)
    images[:, 2, 1, 1] = torch.arange(len(levels), dtype=torch.uint8)
    return images


def score(reward, levels, group=None, ids=None):
    group = torch.zeros(len(levels), dtype=torch.int64) if group is None else torch.tensor(group)
    ids = [str(g) for g in group.tolist()] if ids is None else ids
    return reward(pictures(levels), [Prompt(i, f"prompt {i}") for i in ids], group)


# ── the published form ──


def test_a_strict_ranking_of_four_gives_the_published_advantages():
    judge = LevelJudge()
    found = score(WinRate(judge=judge), [20, 10, 40, 30])
    assert found["score"].tolist() == pytest.approx([0.333, 0, 1, 0.667])
    assert found["failed"].tolist() == found["ties"].tolist() == [0, 0, 0, 0]
    advantage = group_norm(found["score"].double(), torch.zeros(4, dtype=torch.int64), eps=0.0)
    assert advantage.tolist() == pytest.approx([-0.4472, -1.3416, 1.3416, 0.4472], abs=1e-3)
    exact = score(WinRate(judge=LevelJudge(), decimals=None), [20, 10, 40, 30])["score"]
    advantage = group_norm(exact.double(), torch.zeros(4, dtype=torch.int64), eps=0.0)
    assert advantage.tolist() == pytest.approx([-0.2 * 5**0.5, -0.6 * 5**0.5, 0.6 * 5**0.5, 0.2 * 5**0.5], abs=1e-6)


def test_each_unordered_pair_is_judged_once_in_the_order_of_the_rows():
    judge = LevelJudge()
    reward = WinRate(judge=judge)
    score(reward, [1, 2, 3, 4, 5, 6, 7, 8])
    assert judge.shown == [(a, b) for a in range(1, 9) for b in range(a + 1, 9)]
    assert len(judge.shown) == 28 == reward.planned_calls(8) and WinRate(judge=judge).planned_calls(9) == 36


def test_a_tie_and_a_failure_count_one_half_to_each():
    # 10 = 10, both beat 5 except where the judge fails; hand count: 1: (.5 + 1) / 2, 2: (.5 + .5) / 2, 3: (0 + .5) / 2.
    fails = iter([False, False, True])
    found = score(WinRate(judge=LevelJudge(fails=lambda a, b: next(fails))), [10, 10, 5])
    assert found["score"].tolist() == [0.75, 0.5, 0.25]
    assert found["failed"].tolist() == [0, 0.5, 0.5]
    assert found["ties"].tolist() == [0.5, 0.5, 0]
    assert found["comparisons"].tolist() == [2, 2, 2]


def test_a_picture_of_which_every_comparison_failed_has_no_score():
    found = score(WinRate(judge=LevelJudge(fails=lambda a, b: 10 in (a, b))), [10, 30, 20])
    assert found["score"].isnan().tolist() == [True, False, False]
    assert found["score"][1:].tolist() == [0.75, 0.25]
    assert found["failed"].tolist() == [1, 0.5, 0.5]
    nothing = score(WinRate(judge=LevelJudge(fails=lambda a, b: True)), [10, 30, 20])
    assert nothing["score"].isnan().all() and nothing["failed"].tolist() == [1, 1, 1]


def test_sets_of_any_size_are_kept_apart_and_a_single_picture_has_no_score():
    found = score(WinRate(judge=LevelJudge()), [10, 90, 20, 5, 70, 30, 40], group=[7, 3, 7, 9, 3, 7, 7])
    assert found["score"].nan_to_num(-1).tolist() == pytest.approx([0, 1, 0.333, -1, 0, 0.667, 1])
    assert found["comparisons"].tolist() == [3, 1, 3, 0, 1, 3, 3] and found["failed"].isnan().tolist()[3]


def test_the_judge_is_asked_about_all_sets_at_once():
    judge = LevelJudge()
    score(WinRate(judge=judge), [1, 2, 3, 4, 5, 6], group=[0, 0, 0, 1, 1, 1])
    assert judge.calls == 1 and len(judge.shown) == 6


def test_no_pictures_give_no_scores():
    assert WinRate(judge=LevelJudge())(pictures([]), [], torch.zeros(0, dtype=torch.int64))["score"].shape == (0,)


def test_win_rates_of_a_table():
    table = torch.tensor([[NAN, 1, 0.5], [0, NAN, NAN], [0.5, NAN, NAN]])
    assert win_rates(table).tolist() == [0.75, 0.25, 0.5]
    assert win_rates(torch.full((1, 1), NAN)).isnan().all()
    thirds = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0.0]])
    assert win_rates(thirds).tolist() == [0.667, 0.333, 0.333, 0.667]
    assert win_rates(thirds, decimals=None).tolist() == pytest.approx([2 / 3, 1 / 3, 1 / 3, 2 / 3])
    with pytest.raises(ValueError, match="what one wins the other loses"):
        win_rates(torch.ones(2, 2))


levels = st.lists(st.integers(0, 5), min_size=2, max_size=7)


@settings(max_examples=60)
@given(levels, st.randoms())
def test_permuting_the_pictures_permutes_the_win_rates(values, random):
    images = pictures(values)
    order = list(range(len(values)))
    random.shuffle(order)
    prompts, group = [Prompt("p", "prompt")] * len(values), torch.zeros(len(values), dtype=torch.int64)
    budget = max(len(values), 3)
    for reward in (WinRate(judge=LevelJudge()), WinRate(judge=LevelJudge(), max_pairs=budget)):
        straight, permuted = (reward(images[rows], prompts, group)["score"] for rows in (range(len(values)), order))
        assert permuted.tolist() == pytest.approx(straight[order].tolist(), abs=1e-6)


@settings(max_examples=60)
@given(levels, st.booleans(), st.integers(0, 3))
def test_win_rates_of_a_set_sum_to_half_its_size(values, both, bias):
    judge = LevelJudge(bias=bias, fails=lambda a, b: a + b == 3)
    found = score(WinRate(judge=judge, decimals=None, both_orders=both), values)["score"]
    if not found.isnan().any():
        assert found.sum().item() == pytest.approx(len(values) / 2, rel=1e-5)


# ── position bias, cache, counters ──


def test_both_orders_cancel_a_judge_that_likes_the_first_place():
    biased = score(WinRate(judge=LevelJudge(bias=100)), [1, 2, 3, 4])
    assert biased["score"].tolist() == pytest.approx([1, 0.667, 0.333, 0])
    judge = LevelJudge(bias=100)
    reward = WinRate(judge=judge, both_orders=True)
    found = score(reward, [1, 2, 3, 4])
    assert found["score"].tolist() == [0.5] * 4 and found["swapped_disagree"].tolist() == [1] * 4
    assert len(judge.shown) == 12 == reward.planned_calls(4)
    # A bias of 1.5 levels only decides between neighbours, which then tie.
    found = score(WinRate(judge=LevelJudge(bias=1.5), both_orders=True), [1, 2, 3, 4])
    assert found["score"].tolist() == pytest.approx([0.167, 0.333, 0.667, 0.833], abs=1e-3)
    assert found["swapped_disagree"].tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1 / 3])


def test_if_one_order_fails_the_other_holds():
    found = score(WinRate(judge=LevelJudge(fails=lambda a, b: a > b), both_orders=True), [1, 2, 3])
    assert found["score"].tolist() == [0, 0.5, 1] and found["failed"].tolist() == [0, 0, 0]
    assert found["swapped_disagree"].isnan().all()


def test_a_verdict_is_not_asked_for_twice_and_a_failure_is():
    judge = LevelJudge(fails=lambda a, b: (a, b) == (1, 2) and len(judge.shown) == 1)
    reward = WinRate(judge=judge)
    first = score(reward, [1, 2, 3])
    assert len(judge.shown) == 3 and first["failed"].tolist() == [0.5, 0.5, 0]
    second = score(reward, [1, 2, 3])
    assert judge.shown[3:] == [(1, 2)] and second["score"].tolist() == [0, 0.5, 1]
    score(reward, [1, 2, 3])
    assert len(judge.shown) == 4
    score(reward, [1, 2, 3], ids=["other"] * 3)
    assert len(judge.shown) == 7


def test_the_cache_is_bounded():
    judge = LevelJudge()
    reward = WinRate(judge=judge, cache_size=2)
    score(reward, [1, 2, 3])
    score(reward, [1, 2, 3])
    assert len(judge.shown) == 4 and len(reward._verdicts) == 2
    assert judge.shown[3] == (1, 2)


def test_identical_pictures_tie_without_a_call():
    judge = LevelJudge(bias=1)
    images = pictures([5, 9]).repeat(2, 1, 1, 1)
    prompts, group = [Prompt("p", "")] * 4, torch.zeros(4, dtype=torch.int64)
    found = WinRate(judge=judge)(images, prompts, group)
    assert found["score"].tolist() == pytest.approx([0.167, 0.833, 0.167, 0.833])
    assert sorted(judge.shown) == [(5, 9), (9, 5)]


def test_calls_of_the_judge_are_counted():
    old = clock._current
    counting = clock.use(clock.Clock())
    try:
        reward = WinRate(judge=LevelJudge())
        score(reward, [1, 2, 3, 4])
        score(reward, [1, 2, 3, 4])
    finally:
        clock.use(old)
    assert counting.counts["judge_calls"] == 6


# ── categories ──


def test_the_flex_variant_weighs_overall_and_categories():
    def says(first, second):
        # Overall the brighter wins, in alignment the darker, and quality is only decided between 1 and 2.
        verdict = {"overall": float(first > second), "alignment": float(first < second)}
        return verdict | ({"quality": 1.0} if (first, second) == (1, 2) else {})

    reward = WinRate(judge=LevelJudge(says=says), categories={"alignment": 1.0, "quality": 0.7})
    found = score(reward, [1, 2, 3])
    assert found["overall"].tolist() == [0, 0.5, 1]
    assert found["alignment"].tolist() == [1, 0.5, 0]
    assert found["quality"].tolist() == [0.75, 0.25, 0.5]
    mean = [(1 + 0.7 * 0.75) / 1.7, (0.5 + 0.7 * 0.25) / 1.7, 0.7 * 0.5 / 1.7]
    expected = [0.3 * w + 0.7 * round(m, 3) for w, m in zip([0, 0.5, 1], mean)]
    assert found["score"].tolist() == pytest.approx(expected)


# ── fewer comparisons than pairs ──


def compare(strengths, budget, seed, *, adaptive=True, noisy=True):
    """Strengths found after `budget` games between things of known strength."""
    generator, size = torch.Generator().manual_seed(seed), len(strengths)
    win_GG, asked_GG = torch.zeros(size, size), torch.zeros(size, size, dtype=torch.bool)
    shuffled = [all_pairs(size)[k] for k in torch.randperm(size * (size - 1) // 2, generator=generator).tolist()]
    pairs = opening_pairs(size, budget, generator) if adaptive else shuffled[:budget]
    played = 0
    while pairs:
        for i, j in pairs:
            chance = torch.sigmoid(strengths[i] - strengths[j]) if noisy else (strengths[i] > strengths[j]).double()
            won = float(torch.rand((), generator=generator) < chance)
            win_GG[i, j], win_GG[j, i] = won, 1 - won
            assert not asked_GG[i, j]
            asked_GG[i, j] = asked_GG[j, i] = True
        played += len(pairs)
        pairs = next_pairs(win_GG, asked_GG, budget - played) if adaptive else []
    assert played == min(budget, size * (size - 1) // 2)
    return bradley_terry(win_GG)


def agreement(found, true) -> float:
    """Kendall's tau without ties."""
    signs = [((found[i] - found[j]) * (true[i] - true[j])).sign().item() for i, j in all_pairs(len(true))]
    return sum(signs) / len(signs)


@pytest.mark.parametrize(("noisy", "reached"), [(True, 0.7), (False, 0.9)])
def test_adaptive_pairs_recover_a_known_order_better_than_random_ones(noisy, reached):
    taus = {True: [], False: []}
    for seed in range(20):
        true = torch.randperm(8, generator=torch.Generator().manual_seed(seed)).double()
        for adaptive in taus:
            taus[adaptive].append(agreement(compare(true, 16, seed, adaptive=adaptive, noisy=noisy), true))
    mean = {adaptive: sum(values) / len(values) for adaptive, values in taus.items()}
    assert mean[True] > reached and mean[True] > mean[False] + 0.02


def test_all_pairs_without_noise_rank_like_plain_win_rates():
    true = torch.tensor([3.0, 1, 4, 2, 0])
    strength = compare(true, 10, 0, noisy=False)
    assert strength.argsort().tolist() == true.argsort().tolist()
    rates = expected_win_rates(strength)
    assert rates.argsort().tolist() == true.argsort().tolist() and rates.sum().item() == pytest.approx(2.5)


def test_bradley_terry_is_where_expected_wins_equal_wins():
    win = torch.tensor([[0, 3, 1.5], [1, 0, 2], [0.5, 4, 0]])
    strength = bradley_terry(win, prior=1e-9)
    expected = ((win + win.T) * torch.sigmoid(strength[:, None] - strength)).sum(1)
    assert expected.tolist() == pytest.approx(win.double().sum(1).tolist(), abs=1e-6)
    # Two things, three games to one: the odds are 3.
    two = bradley_terry(torch.tensor([[0, 3.0], [1, 0]]), prior=1e-9)
    assert (two[0] - two[1]).item() == pytest.approx(math.log(3), abs=1e-6)


def test_the_undefeated_stay_finite_and_what_never_met_stays_average():
    strength = bradley_terry(torch.tensor([[0, 1.0, 0], [0, 0, 0], [0, 0, 0]]))
    assert strength.isfinite().all() and strength[0] == pytest.approx(-strength[1].item()) and strength[2].abs() < 1e-9
    with pytest.raises(ValueError, match="infinitely strong"):
        bradley_terry(torch.zeros(2, 2), prior=0)
    assert expected_win_rates(torch.zeros(1)).isnan().all()


@pytest.mark.parametrize("size", [2, 3, 4, 7, 8])
def test_the_first_round_shows_everything_as_soon_as_the_budget_allows(size):
    def met(budget):
        return opening_pairs(size, budget, torch.Generator().manual_seed(1))

    assert {thing for pair in met((size + 1) // 2) for thing in pair} == set(range(size))
    groups = [{i} for i in range(size)]
    for pair in met(size - 1):
        touched = [g for g in groups if g & set(pair)]
        groups = [g for g in groups if g not in touched] + [set().union(*touched)]
    assert len(groups) == 1
    assert len(set(met(99))) == len(met(99)) == min(size, size * (size - 1) // 2) and all(i < j for i, j in met(99))


@pytest.mark.parametrize("budget", [4, 7, 8, 13, 27, 28, 99])
def test_a_budget_is_used_up_and_never_exceeded(budget):
    judge = LevelJudge()
    found = score(WinRate(judge=judge, max_pairs=budget), [30, 10, 70, 50, 20, 80, 60, 40])
    assert len(judge.shown) == len({frozenset(pair) for pair in judge.shown}) == min(budget, 28)
    assert found["score"].isfinite().all() and found["comparisons"].sum() == 2 * min(budget, 28)
    assert found["score"].sum().item() == pytest.approx(4, abs=4e-3)


def test_half_the_comparisons_rank_eight_pictures_nearly_right():
    true = torch.tensor([30, 10, 70, 50, 20, 80, 60, 40])
    found = score(WinRate(judge=LevelJudge(), max_pairs=16, decimals=None), true.tolist())["score"]
    assert agreement(found, true) > 0.8


def test_a_budget_counts_pairs_and_both_orders_double_its_calls():
    judge = LevelJudge(bias=100)
    reward = WinRate(judge=judge, max_pairs=5, both_orders=True)
    found = score(reward, [1, 2, 3, 4, 5])
    assert len(judge.shown) == 10 == reward.planned_calls(5)
    assert found["score"].tolist() == [0.5] * 5


def test_failed_comparisons_use_up_the_budget_and_tell_nothing():
    judge = LevelJudge(fails=lambda a, b: 1 in (a, b))
    found = score(WinRate(judge=judge, max_pairs=8), [1, 2, 3, 4, 5, 6])
    assert found["score"].isnan().tolist() == [True] + [False] * 5 and len(judge.shown) == 8


def test_the_same_set_gets_the_same_comparisons_in_any_batch():
    alone, together = LevelJudge(), LevelJudge()
    one = score(WinRate(judge=alone, max_pairs=7), [5, 2, 9, 7, 1, 3])
    images = torch.cat([pictures([50, 60, 70, 80, 90]), pictures([5, 2, 9, 7, 1, 3])])
    prompts = [Prompt("q", "")] * 5 + [Prompt("0", "prompt 0")] * 6
    two = WinRate(judge=together, max_pairs=7)(images, prompts, torch.tensor([0] * 5 + [1] * 6))
    assert two["score"][5:].tolist() == one["score"].tolist()
    assert [pair for pair in together.shown if pair[0] < 50] == alone.shown


# ── settings ──


def test_it_is_a_reward_over_sets_and_says_so():
    assert is_relative(WinRate(judge=LevelJudge()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "a pairwise reward needs a judge: add judge: {kind: server"),
        ({"judge": None}, "a pairwise reward needs a judge"),
        ({"max_pairs": 0}, "max_pairs = 0, wanted 1 or more"),
        ({"overall_weight": 1.5}, "overall_weight = 1.5, wanted 0 to 1"),
        ({"categories": {"quality": -1.0}}, "wanted 0 or more"),
        ({"categories": {"quality": 0.0}}, "have weight 0"),
        ({"categories": {"style": 1.0}}, "decides no category 'style'; it decides alignment, quality"),
        ({"categories": {"overall": 1.0}}, "decides no category 'overall'"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    mapping = {**({"judge": LevelJudge()} if settings and "judge" not in settings else {}), **settings}
    with pytest.raises(ConfigError, match=message):
        WinRate(**mapping)


def test_a_set_that_cannot_be_compared_is_refused():
    with pytest.raises(UserError, match="set 0 mixes prompts"):
        score(WinRate(judge=LevelJudge()), [1, 2], ids=["a", "b"])
    with pytest.raises(UserError, match=r"max_pairs = 2 leaves some of 6 pictures without.* 3 show each once"):
        score(WinRate(judge=LevelJudge(), max_pairs=2), [1, 2, 3, 4, 5, 6])
    with pytest.raises(UserError, match="0 verdicts on 1 pairs"):
        score(WinRate(judge=lambda pairs: []), [1, 2])
    with pytest.raises(UserError, match="overall = 2"):
        score(WinRate(judge=lambda pairs: [{"overall": 2}]), [1, 2])


def test_a_config_names_the_judge_and_is_written_back():
    mapping = {
        "judge": {"kind": "pointwise", "reward": {"kind": "jpeg", "goal": "compressible"}, "margin": 0.1},
        "both_orders": True,
        "max_pairs": 12,
    }
    made = config.build(WinRate, mapping)
    assert isinstance(made.judge, PointwiseJudge) and made.judge.reward.goal == "compressible"
    written = config.dump(made)
    assert written["judge"]["kind"] == "pointwise" and config.build(WinRate, written) == made
    flex = {"kind": "server", "base_url": "http://h/v1", "model": "m", "form": "flex"}
    made = config.build(WinRate, {"judge": flex, "categories": {"alignment": 1, "quality": 0.7, "aesthetics": 0.7}})
    assert config.build(WinRate, config.dump(made)) == made
    with pytest.raises(ConfigError, match="form: flex"):
        config.build(WinRate, {"judge": flex | {"form": "think"}, "categories": {"alignment": 1}})
