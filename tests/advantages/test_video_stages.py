"""Advantage stages and the objective of the video methods: the worked numbers of the papers, edges, identities."""

from __future__ import annotations

import pytest
import torch
from toy_learning import learn

from grpo_mm.advantages import group_norm
from grpo_mm.advantages.bonuses.consistency_bonus import ConsistencyBonus, consistent
from grpo_mm.advantages.bonuses.demonstrations import (
    AnchoredNorm,
    CapDemonstrations,
    ShapeReward,
    anchored_norm,
    shaped,
)
from grpo_mm.advantages.bonuses.temporal_bonus import LengthBonus, TemporalBonus
from grpo_mm.errors import ConfigError
from grpo_mm.objectives.regression import Regression, predicted_advantage
from grpo_mm.rollout.table import Table
from grpo_mm.types import Counts, View

NAN = float("nan")


def col(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: torch.Tensor, wanted, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(
        found.double(), torch.as_tensor(wanted, dtype=torch.float64), atol=tolerance, rtol=0, equal_nan=True
    )


def table(reward: list[float], *, prompt: list[int] | None = None, **columns: list) -> Table:
    size = len(reward)
    keys = {"prompt": prompt or [0] * size, "sample": list(range(size)), "action": [-1] * size, "tag": [0] * size}
    return Table({"iou": col(*reward)}, {k: torch.tensor(v) for k, v in (keys | columns).items()}, {"iou": 1.0})


# ── TempSamp-R1 ──

REWARDS, DEMO = [0.10, 0.25, 0.40, 1.0], [0, 0, 0, 1]


def test_worked_shaping():
    rewards = [0, 0.1, 0.25, 0.5, 0.7, 0.79, 0.8, 0.9, 1]
    wanted = [0.086764, 0.210020, 0.373264, 0.596390, 0.738793, 0.794151, 0.8, 0.800953, 0.801823]
    close(shaped(col(*rewards)), wanted, 1e-6)


@pytest.mark.parametrize(
    ("stages", "unbiased", "population"),
    [
        ([], [-0.855528, -0.475293, -0.095059, 1.425880], [-0.987878, -0.548821, -0.109764, 1.646464]),
        ([CapDemonstrations()], [-0.955023, -0.456750, 0.041523, 1.370250], [-1.102766, -0.527410, 0.047946, 1.582229]),
        ([ShapeReward()], [-1.054920, -0.404334, 0.155630, 1.303625], [-1.218117, -0.466885, 0.179706, 1.505296]),
    ],
)
def test_worked_mixing_and_its_remedies(stages, unbiased, population):
    t = table(REWARDS, demo=DEMO)
    for stage in stages:
        t = stage(t)
    for ddof, wanted in ((1, unbiased), (0, population)):
        close(group_norm(t.values["iou"], t.columns["prompt"], ddof=ddof, eps=0), wanted, 1e-5)


@pytest.mark.parametrize(("ddof", "wanted"), [(1, [-1, 0, 1, 1.2]), (0, [-1.224745, 0, 1.224745, 1.469694])])
def test_worked_anchoring(ddof, wanted):
    close(AnchoredNorm(ddof=ddof, eps=0)(table(REWARDS, demo=DEMO)).values["iou"], wanted, 1e-5)


def test_where_own_samples_tie_anchoring_learns_from_the_solution():
    reward, group, demo = (
        col(0, 0, 0, 1, 0.2, 0.4, 1),
        torch.tensor([0, 0, 0, 0, 1, 1, 1]),
        torch.tensor([0, 0, 0, 1, 0, 0, 1]),
    )
    found = anchored_norm(reward, group, demo)
    close(found[:4], group_norm(reward[:4], group[:4]))
    assert found[3] > 0 and found[6] == pytest.approx(1.2 * float(found[5]))


def test_anchoring_leaves_rows_without_a_reward_out():
    found = anchored_norm(col(0.1, NAN, 0.4, NAN), torch.zeros(4), torch.tensor([0, 0, 0, 1]))
    assert found.isnan().tolist() == [False, True, False, True]
    close(found[[0, 2]], group_norm(col(0.1, 0.4), torch.zeros(2)))


def test_a_group_without_a_solution_is_normalised_as_ever():
    reward = col(0.1, 0.9, 0.4)
    close(anchored_norm(reward, torch.zeros(3), torch.zeros(3)), group_norm(reward, torch.zeros(3)))


# ── GRPO-CARE ──


def test_worked_consistency_bonus():
    accuracy, likelihood = col(1, 1, 0, 1, 0), col(0.99, 0.60, 0.97, 0.90, 0.2)
    assert consistent(accuracy, likelihood, torch.zeros(5)).tolist() == [True, False, False, True, False]
    t = ConsistencyBonus()(table(accuracy.tolist(), answer_likelihood=likelihood.tolist()))
    total = t.values["iou"] + 1  # the format
    close(total, [2.5, 2, 1, 2.5, 1])
    close(group_norm(total, torch.zeros(5), ddof=1), [0.923011, 0.263717, -1.054870, 0.923011, -1.054870])


@pytest.mark.parametrize(
    ("accuracy", "likelihood", "wanted"),
    [
        ([0, 0, 0.1], [0.9, 0.9, 0.9], [False, False, False]),  # no candidate
        ([0, 1, 0], [0.9, 0.01, 0.9], [False, True, False]),  # a lone candidate
        ([1, 1, NAN], [NAN, 0.5, 0.9], [False, True, False]),  # no answer found; no reward
        ([1, 1, 1], [0.95, 1.0, 0.999], [True, True, True]),  # certainty brings no more
    ],
)
def test_edges_of_the_candidate_set(accuracy, likelihood, wanted):
    assert consistent(col(*accuracy), col(*likelihood), torch.zeros(3)).tolist() == wanted


# ── Video-R1 ──


def test_right_rows_earn_more_where_the_order_of_frames_matters():
    t = table([1, 0, 1, 0.05], prompt=[0, 0, 1, 1], shuffled_accuracy=[0.6, 0.6, 0.9, 0.9])
    close(
        TemporalBonus()(t).values["iou"], [1.3, 0, 1, 0.05]
    )  # p = .5 reaches .8 · .6, p = .525 does not reach .8 · .9


def test_pictures_have_no_order():
    t = table([1.0, 0.0], shuffled_accuracy=[NAN, NAN])
    close(TemporalBonus()(t).values["iou"], [1, 0])


def test_length_counts_in_groups_with_several_right_rows():
    t = table([1, 1, 0, 1, 0], prompt=[0, 0, 0, 1, 1], length=[320, 600, 400, 400, 400])
    close(LengthBonus()(t).values["iou"], [1.2, 1, 0, 1, 0])


def test_a_missing_reward_stays_missing():
    t = table([NAN, 1.0], shuffled_accuracy=[0.1, 0.1], length=[400, 400], demo=[0, 1], answer_likelihood=[0.9, 0.9])
    for stage in (TemporalBonus(), LengthBonus(), CapDemonstrations(), ShapeReward(), ConsistencyBonus()):
        assert stage(t).values["iou"].isnan().tolist() == [True, False]


# ── DeepVideo-R1 ──

LOG_RATIO = col(0.2, -0.1, 0, 0.4)


def view(log_ratio: torch.Tensor, advantage: torch.Tensor, group: torch.Tensor) -> tuple[dict, View]:
    shape = (len(log_ratio), 2)
    spread = lambda value: value[:, None].expand(shape)  # noqa: E731
    ones = torch.ones(shape, dtype=torch.float64)
    counts = Counts(float(ones.numel()), float(shape[0]), 2)
    values = {"logprobs": spread(log_ratio / 2)}
    row = torch.arange(shape[0])
    return values, View(torch.zeros_like(ones), spread(advantage), ones, spread(row), spread(group), 2 * ones, counts)


@pytest.mark.parametrize(("ddof", "loss"), [(0, 0.177355), (1, 0.133016)])
def test_worked_regression(ddof, loss):
    group = torch.zeros(4, dtype=torch.int64)
    advantage = group_norm(col(1, 0, 0, 1), group, ddof=ddof, eps=0)
    if ddof == 0:
        close(predicted_advantage(LOG_RATIO, group), [0.390567, -1.171700, -0.650945, 1.432078], 1e-5)
    term = Regression(ddof=ddof)(*view(LOG_RATIO, advantage, group))
    assert float(term.value()) == pytest.approx(loss, abs=1e-5)


def test_the_loss_is_twice_one_minus_the_correlation():
    group, reward = torch.zeros(4, dtype=torch.int64), col(1, 0.3, 0, 0.9)
    term = Regression()(*view(LOG_RATIO, group_norm(reward, group, eps=0), group))
    correlation = float(torch.corrcoef(torch.stack([reward, LOG_RATIO]))[0, 1])
    assert float(term.value()) == pytest.approx(2 * (1 - correlation), abs=1e-9)


@pytest.mark.parametrize("regress", ["standardised", "detached_scale"])
def test_the_first_update_after_sampling_is_a_policy_gradient(regress):
    group, floor = torch.zeros(4, dtype=torch.int64), 0.5
    advantage = group_norm(col(1, 0, 0, 1), group)
    log_ratio = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    Regression(regress=regress, floor=floor)(*view(log_ratio, advantage, group)).value().backward()
    close(log_ratio.grad, -2 * advantage / (4 * floor), 1e-9)


def test_rebel_regresses_on_centred_rewards():
    group = torch.zeros(4, dtype=torch.int64)
    close(predicted_advantage(LOG_RATIO, group, regress="rebel", slope=3.0), 3 * (LOG_RATIO - 0.125))


def test_a_group_with_equal_rewards_is_left_alone():
    group = torch.tensor([0, 0, 1, 1])
    log_ratio = LOG_RATIO.clone().requires_grad_()
    Regression(regress="rebel")(*view(log_ratio, col(0, 0, -1, 1), group)).value().backward()
    assert log_ratio.grad[:2].tolist() == [0, 0] and log_ratio.grad[2:].abs().min() > 0


@pytest.mark.parametrize("regress", ["standardised", "detached_scale", "rebel"])
def test_regression_teaches_the_toy_over_several_updates(regress):
    stages = [{"kind": "weighted_sum"}, {"kind": "group_norm", "scale": "none" if regress == "rebel" else "std"}]
    objective = [
        {"kind": "grpo_mm.objectives.regression:Regression", "regress": regress, "floor": 0.5, "slope": 0.5},
        {"kind": "kl", "form": "k3", "weight": 0.01},
    ]
    assert learn("grpo", steps=15, advantage=stages, objective=objective, updates={"passes": 2}).gain > 0.15


@pytest.mark.parametrize(
    "make",
    [
        lambda: Regression(floor=0), lambda: ShapeReward(below=0), lambda: AnchoredNorm(ddof=2), lambda: LengthBonus(low=9, high=3),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="wanted"):
        make()


def test_a_stage_names_the_rewards_there_are():
    two = Table({"a": col(1), "b": col(1)}, table([1]).columns, {})
    with pytest.raises(ConfigError, match="there are: a, b"):
        ShapeReward()(two)
