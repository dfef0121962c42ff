"""Objectives of the methods against worked numbers, REINFORCE on-policy, and autograd in one piece."""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import pytest
import torch
from test_objectives import array, view
from test_update import (
    ACTIONS,
    Alone,
    Meeting,
    N,
    OneOfMany,
    ToyPolicy,
    assert_same,
    make_credit,
    make_rollout,
)

from grpo_mm.advantages import GroupNorm, MarkPositive, Shortness, group_norm, shortness
from grpo_mm.config.methods import METHODS, preset
from grpo_mm.config.run_config import read
from grpo_mm.config.typed_yaml import Role, build, component, dump
from grpo_mm.errors import ConfigError
from grpo_mm.objectives import (
    Cispo,
    ClippedRatio,
    Disco,
    Gmpo,
    Grao,
    HingeKl,
    Kl,
    KlCov,
    Sapo,
    Truncated,
    aggregate_weight,
    cispo,
    clipped_ratio,
    gmpo,
    grao,
    grao_coefficients,
    group_contrast,
    high_covariance,
    hinge_kl,
    k3,
    kl_cov,
    log_ratio,
    row_score,
    sapo,
    straight_through,
    truncated_weight,
)
from grpo_mm.rollout.table import Table
from grpo_mm.weights.update import accumulate, make_view


def slope(loss, at):
    return torch.autograd.grad(loss.sum(), at)[0]


# ── pieces of a loss (section 0.4) ──


@pytest.mark.parametrize(
    ("advantage", "ratio", "dual_clip", "loss"),
    [(1, 1.5, None, -1.28), (-1, 0.5, None, 0.8), (-1, 5, 3.0, 3), (-1, 5, None, 5)],
)
def test_worked_surrogates(advantage, ratio, dual_clip, loss):
    clip = dict(clip_low=0.2, clip_high=0.28, dual_clip=dual_clip)
    found = clipped_ratio(array(math.log(ratio)), array(0), array(advantage), array(1), **clip)
    assert found.item() == pytest.approx(loss)


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "gradient"),
    [(-1, 5, 2, 0), (-1, 1.5, 1.5, 1.5), (1, 5, -1.2, 0), (1, 0.5, -0.5, -0.5)],
)
def test_the_upper_cap_bounds_the_ratio_that_is_not_clipped(advantage, ratio, loss, gradient):
    logprob = array(math.log(ratio)).requires_grad_()
    found = clipped_ratio(logprob, array(0), array(advantage), array(1), ratio_cap=2.0)
    assert found.item() == pytest.approx(loss) and slope(found, logprob).item() == pytest.approx(gradient)


def test_a_cap_within_the_clip_range_is_refused():
    with pytest.raises(ValueError, match=r"ratio_cap = 1\.1; wanted above 1 \+ clip_high"):
        ClippedRatio(clip_high=0.2, ratio_cap=1.1)


def test_k3_of_a_tenth():
    assert k3(array(0), array(0.1)).item() == pytest.approx(0.00517, abs=1e-5)


@pytest.mark.parametrize(
    ("aggregate", "wanted"),
    [("row", 0), ("token", -0.3333), ("constant", -0.125), (8, -0.125), (4.0, -0.25), ("row_sum", -1)],
)
def test_worked_aggregations(aggregate, wanted):
    here = view(advantage=[[1] * 4, [-1] * 4], mask=[[1, 1, 0, 0], [1, 1, 1, 1]], max_actions=8)
    weight, denominator = aggregate_weight(here, aggregate)
    assert ((here.advantage * weight).sum() / denominator).item() == pytest.approx(wanted, abs=1e-4)


def test_the_sum_over_a_row_of_its_own_loss_is_that_loss_times_the_length():
    here = view(advantage=[[1] * 4, [-1] * 4], mask=[[1, 1, 0, 0], [1, 1, 1, 1]])
    found = ClippedRatio(ratio="row", aggregate="row_sum")({"logprobs": torch.zeros(2, 4).double()}, here)
    assert found.value().item() == pytest.approx((-1 * 2 + 1 * 4) / 2)


def test_a_number_is_read_as_the_constant_and_others_are_refused():
    assert build(ClippedRatio, {"aggregate": 3000}).aggregate == 3000
    assert build(ClippedRatio, {"aggregate": "row_sum"}).aggregate == "row_sum"
    with pytest.raises(ConfigError, match="aggregate"):
        build(ClippedRatio, {"aggregate": "rows"})


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other():
    here = view(advantage=[[0.0, 0.0]])
    for form in ("k1", "k3"):
        logprobs = array([-1.0, -2.0]).requires_grad_()
        values = {"logprobs": logprobs, "ref_logprobs": array([-1.3, -1.5])}
        plain, through, k2 = (
            Kl(form=f, weight=1, straight_through=s)(values, here).value()
            for f, s in ((form, False), (form, True), ("k2", False))
        )
        assert through.item() == pytest.approx(plain.item())
        torch.testing.assert_close(slope(through, logprobs), slope(k2, logprobs))
    with pytest.raises(ValueError, match="straight_through goes with"):
        Kl(form="k2", straight_through=True)
    assert straight_through(array(2.0), array(3.0)).item() == 2.0


# ── ratios of rows and units ──


def test_worked_gspo_ratio():
    logprobs = array([0.02, -0.01, 0.0005, 0.0015])
    assert log_ratio(logprobs, 0 * logprobs, 1 + 0 * logprobs, ratio="row").exp()[0, 0].item() == pytest.approx(
        1.0030, abs=1e-4
    )
    loss = clipped_ratio(
        logprobs, 0 * logprobs, array([1] * 4), array([1] * 4), ratio="row", clip_low=3e-4, clip_high=4e-4
    )
    assert loss.tolist()[0] == pytest.approx([-1.0004] * 4)


@pytest.mark.parametrize("ratio", ["row", "row_token", "product", "unit"])
def test_with_one_action_every_ratio_is_that_of_the_action(ratio):
    logprobs, old = array([-1.0], [-2.0]), array([-1.2], [-1.9])
    found = log_ratio(logprobs, old, torch.ones(2, 1), ratio=ratio, unit_NA=torch.zeros(2, 1))
    assert found.tolist() == (logprobs - old).tolist()


def test_gspo_token_has_the_value_of_gspo_and_a_gradient_for_each_action():
    logprobs, mask = array([0.1, 0.3, 0.2], [0.0, 0.2, 9.0]).requires_grad_(), array([1, 1, 1], [1, 1, 0])
    old, advantage = 0 * logprobs.detach(), array([1, 2, 3], [-1, 1, 5])
    row, token = (clipped_ratio(logprobs, old, advantage, mask, ratio=r, clip_high=1) for r in ("row", "row_token"))
    assert token.tolist() == [pytest.approx(r) for r in row.tolist()]
    r = [math.exp(0.2), math.exp(0.1)]
    wanted = [[-a * r[0] for a in (1, 2, 3)], [r[1], -r[1], 0]]
    assert slope(token, logprobs).tolist() == [pytest.approx(w) for w in wanted]
    alike = array([2, 2, 2], [-1, -1, -1])
    a, b = (clipped_ratio(logprobs, old, alike, mask, ratio=r, clip_high=1) for r in ("row", "row_token"))
    assert slope(a, logprobs).tolist() == [pytest.approx(g) for g in slope(b, logprobs).tolist()]


def test_the_ratio_of_a_unit_is_the_geometric_mean_within_it():
    """Rank-GRPO's item: .1 and .3 give exp(.2) = 1.2214, clipped to 1.08; what has no unit is on its own."""
    logprobs = array([0.1, 0.3, 5.0, 0.4, 0.6], [0.2, 9.0, 0.0, 0.1, 0.1])
    unit = torch.tensor([[0, 0, 1, -1, -1], [0, 0, 1, 1, 2]])
    mask = array([1, 1, 1, 1, 1], [1, 0, 1, 1, 0])
    found = log_ratio(logprobs, 0 * logprobs, mask, ratio="unit", unit_NA=unit)
    assert found[0].tolist() == pytest.approx([0.2, 0.2, 5.0, 0.4, 0.6])
    assert found[1].tolist() == pytest.approx([0.2, 0.2, 0.05, 0.05, 0.0])
    assert found[0, 0].exp().item() == pytest.approx(1.2214, abs=1e-4)
    settings = dict(ratio="unit", unit_NA=unit, clip_low=0.06, clip_high=0.08)
    assert clipped_ratio(logprobs, 0 * logprobs, 1 + 0 * mask, mask, **settings)[0, 0].item() == pytest.approx(-1.08)


def test_one_unit_is_the_row_and_units_of_one_are_the_actions():
    logprobs = torch.randn(3, 4, dtype=torch.float64)
    mask = (torch.rand(3, 4) > 0.3).double()
    for unit, ratio in (
        (torch.zeros(3, 4), "row"),
        (torch.arange(4).expand(3, 4), "action"),
        (-torch.ones(3, 4), "action"),
    ):
        found = log_ratio(logprobs, 0 * logprobs, mask, ratio="unit", unit_NA=unit)
        torch.testing.assert_close(found * mask, log_ratio(logprobs, 0 * logprobs, mask, ratio=ratio) * mask)


def test_the_product_is_the_likelihood_ratio_and_only_policies_of_tokens_have_it():
    logprobs, mask = array([0.1, 0.2, 7.0]), array([1, 1, 0])
    assert log_ratio(logprobs, 0 * logprobs, mask, ratio="product")[0, 0].item() == pytest.approx(0.3)
    assert ClippedRatio(ratio="product").needs == {"logprobs", "token_logprobs"}
    assert "token_logprobs" not in ClippedRatio(ratio="row").needs
    here = view(advantage=[[1, 1, 1]], mask=[[1, 1, 0]])
    term = ClippedRatio(ratio="product", clip_high=1, aggregate="row")({"token_logprobs": logprobs}, here)
    assert term.value().item() == pytest.approx(-math.exp(0.3))


# ── CISPO, SAPO, GMPO, KL-Cov, truncated weights ──


@pytest.mark.parametrize(("advantage", "ratio", "weight"), [(1, 1.5, 1.5), (1, 9, 5), (-2, 9, 5), (-1, 0.01, 0.01)])
def test_cispo_is_reinforce_with_a_bounded_weight(advantage, ratio, weight):
    logprob = array(math.log(ratio) - 1).requires_grad_()
    found = cispo(logprob, array(-1), array(advantage), array(1), max_ratio=5)
    assert found.item() == pytest.approx(-weight * advantage * (math.log(ratio) - 1))
    assert slope(found, logprob).item() == pytest.approx(-weight * advantage)


def test_cispo_may_be_bounded_below_as_well():
    found = cispo(array(math.log(0.1)), array(0), array(1), array(1), min_ratio=0.8, max_ratio=1.2)
    assert found.item() == pytest.approx(-0.8 * math.log(0.1))


@pytest.mark.parametrize(
    ("temperature", "wanted"),
    [
        (1.0, (1.510163, 1.800664, 2, 2.199336, 2.924234)),
        (1.05, (1.415938, 1.705494, 1.904762, 2.104030, 2.822)),
    ],
)
def test_worked_sapo_gates(temperature, wanted):
    ratio = array(0.5, 0.8, 1, 1.2, 2)
    up = sapo(ratio.log(), 0 * ratio, 1 + 0 * ratio, 1 + 0 * ratio, temperature_up=temperature)
    assert up.tolist() == pytest.approx([-w for w in wanted], abs=1e-4 if temperature > 1 else 1e-6)
    down = sapo(ratio.log(), 0 * ratio, -1 + 0 * ratio, 1 + 0 * ratio, temperature_down=temperature)
    assert down.tolist() == pytest.approx([-u for u in up.tolist()])


def test_gmpo_clips_each_log_ratio_on_one_side_before_the_mean():
    logprobs = array([0.6, -0.6, 0.0, 9.0], [0.6, -0.6, 0.1, 9.0]).requires_grad_()
    mask, advantage = array([1, 1, 1, 0], [1, 1, 1, 0]), array([2] * 4, [-1] * 4)
    found = gmpo(logprobs, 0 * logprobs.detach(), advantage, mask)
    up, down = math.exp((0.4 - 0.6 + 0) / 3), math.exp((0.6 - 0.4 + 0.1) / 3)
    assert found[0].tolist() == pytest.approx([-2 * up] * 3 + [0]) and found[1].tolist() == pytest.approx(
        [down] * 3 + [0]
    )
    gradient = slope((found / 3).sum(), logprobs)
    assert gradient[0].tolist() == pytest.approx([0, -2 * up / 3, -2 * up / 3, 0])
    assert gradient[1].tolist() == pytest.approx([down / 3, 0, down / 3, 0])


def test_gmpo_within_its_range_is_gspo():
    logprobs, mask = 0.1 * torch.randn(3, 4, dtype=torch.float64), (torch.rand(3, 4) > 0.3).double()
    advantage = torch.randn(3, 1, dtype=torch.float64).expand(3, 4)
    torch.testing.assert_close(
        gmpo(logprobs, 0 * logprobs, advantage, mask, clip_low=9, clip_high=9),
        clipped_ratio(logprobs, 0 * logprobs, advantage, mask, ratio="row", clip_low=1, clip_high=1e3),
    )


def test_kl_cov_holds_back_the_actions_of_largest_covariance():
    logprobs, advantage = array([-0.1, -2.0, -0.2, -5.0]).requires_grad_(), array([1.0, 1.0, -1.0, -2.0])
    mask = array([1, 1, 1, 1])
    # Ā = -.25, mean logprob = -1.825: covariances 2.156, -.219, -1.219, 5.556.
    assert high_covariance(logprobs, advantage, mask, share=0.25).tolist() == [[False, False, False, True]]
    assert high_covariance(logprobs, advantage, mask, share=0.5).tolist() == [[True, False, False, True]]
    assert high_covariance(logprobs, advantage, mask, share=1e-9).sum() == 1
    assert not high_covariance(logprobs, advantage, 0 * mask, share=0.5).any()
    old = logprobs.detach() - array([0.1, 0.2, -0.1, 0.3])
    found = kl_cov(logprobs, old, advantage, mask, share=0.25, kl=2.0)
    wanted = [-math.exp(0.1), -math.exp(0.2), math.exp(-0.1), 2 * math.exp(0.3) + 2 * 0.3]
    assert found[0].tolist() == pytest.approx(wanted)
    assert slope(found, logprobs)[0, 3].item() == pytest.approx(2 * math.exp(0.3) + 2)
    masked = high_covariance(logprobs, advantage, array([1, 1, 1, 0]), share=0.1)
    assert masked.tolist() == [[True, False, False, False]]


def test_truncated_weights_stop_at_the_cap_and_are_one_where_nobody_sampled():
    old, behaviour = array([-1.0, -1.0, -1.0, -1.0]), array([-1.5, -3.0, math.nan, -9.0])
    found = truncated_weight(old, behaviour, array([1, 1, 1, 0]), cap=2.0)
    assert found[0].tolist() == pytest.approx([math.exp(0.5), 2, 1, 1])


def test_a_truncated_term_is_the_term_times_its_weights():
    here = replace(view(advantage=[[1, -1]]), columns={"behaviour_logprobs": array([-0.5, -4.0])})
    values = {"logprobs": array([0.1, 0.1])}
    plain, found = ClippedRatio(clip_high=1)(values, here), Truncated(of=ClippedRatio(clip_high=1))(values, here)
    assert found.loss[0].tolist() == pytest.approx((plain.loss[0] * array(math.exp(0.5), 2.0)).tolist())
    assert Truncated(of=ClippedRatio(ratio="unit")).columns == {"behaviour_logprobs", "unit"}
    with pytest.raises(ValueError, match="of = HingeKl; wanted a surrogate with a loss for each action"):
        Truncated(of=HingeKl())(values, here)


# ── DisCO, DRPO, GRAO ──

SCORES, POSITIVE = array(-0.5, -0.8, -1.0, -0.6), torch.tensor([1, 1, 0, 0])


@pytest.mark.parametrize(
    ("temperature", "contrast", "weights"),
    [(None, 0.15, (0.5, 0.5)), (1.0, 0.1301, (0.4013, 0.5987)), (10.0, 0.1480, (0.49, 0.51))],
)
def test_worked_contrasts(temperature, contrast, weights):
    score = SCORES.clone().requires_grad_()
    found = group_contrast(score, POSITIVE, torch.zeros(4, dtype=torch.int64), temperature=temperature)
    assert found.tolist() == pytest.approx([contrast], abs=1e-4)
    assert slope(found, score).tolist() == pytest.approx([0.5, 0.5, -weights[0], -weights[1]], abs=1e-4)


def test_worked_drpo():
    wish = shortness(array(25, 50, 99, 1), 100)
    score = SCORES.clone().requires_grad_()
    found = group_contrast(score, POSITIVE, torch.zeros(4, dtype=torch.int64), preference_N=wish)
    assert found.item() == pytest.approx(0.2752, abs=1e-4)
    assert slope(found, score)[:2].tolist() == pytest.approx([0.9241, 0.0759], abs=1e-4)


def test_drpo_without_preference_is_disco_and_one_positive_weighs_one():
    group = torch.zeros(4, dtype=torch.int64)
    wish = array(0.2, 0.9, 0.4, 0.1)
    wide = group_contrast(SCORES, POSITIVE, group, preference_N=wish, preference_temperature=1e9)
    torch.testing.assert_close(wide, group_contrast(SCORES, POSITIVE, group), atol=1e-8, rtol=0)
    alone = torch.tensor([0, 1, 0, 0])
    torch.testing.assert_close(
        group_contrast(SCORES, alone, group, preference_N=wish), group_contrast(SCORES, alone, group)
    )


def test_ragged_groups_in_any_order_and_groups_of_one_kind_count_zero():
    score = torch.cat([SCORES, array(-3.0, -700.0, -1.0)]).requires_grad_()
    positive, group = torch.cat([POSITIVE, torch.tensor([1, 1, 0])]), torch.tensor([7, 7, 7, 7, 3, 3, 9])
    order = torch.randperm(7)
    found = group_contrast(
        score[order], positive[order], group[order], temperature=1.0, preference_N=score.detach()[order]
    )
    assert found[[0, 2]].tolist() == [0, 0] and found[1].item() != 0
    gradient = slope(found, score)
    assert gradient[4:].tolist() == [0, 0, 0] and torch.isfinite(gradient).all()
    assert group_contrast(SCORES[:0], POSITIVE[:0], group[:0]).tolist() == []


def test_far_apart_scores_do_not_overflow():
    found = group_contrast(
        array(0.0, 2000.0, -2000.0), torch.tensor([1, 0, 0]), torch.zeros(3, dtype=torch.int64), temperature=1.0
    )
    assert found.item() == pytest.approx(-2000 + math.log(2))


def test_scores_of_a_row():
    logprobs, old, mask = array([-1.0, -2.0, -9.0]), array([-1.1, -2.3, 0.0]), array([1, 1, 0])
    assert row_score(logprobs, old, mask, score="log_likelihood").tolist() == pytest.approx([-1.5])
    wanted = (math.exp(0.1) + math.exp(0.3)) / 2
    assert row_score(logprobs, old, mask, score="ratio").tolist() == pytest.approx([wanted])


def test_worked_hinge_kl():
    logprobs = array([-1.0 - 3e-4, -1.0 - 3e-4]).requires_grad_()
    loss = 1e3 * hinge_kl(logprobs, array([-1.0, -1.0]), array([1, 1]))
    assert loss.item() == pytest.approx(2e-5)
    assert slope(loss, logprobs)[0].tolist() == pytest.approx([-0.1, -0.1])  # coefficient 0.2 times the mean over two
    assert hinge_kl(logprobs + 1e-3, array([-1.0, -1.0]), array([1, 1])).item() == 0


def test_prompts_of_one_kind_still_count_in_the_mean_and_the_constraint_still_acts():
    logprobs = array(
        [-0.5, -0.5], [-0.8, -0.8], [-1.0, -1.0], [-0.6, -0.6], [-2.0, -2.0], [-3.0, -3.0]
    ).requires_grad_()
    positive, group = array(1, 1, 0, 0, 1, 1), torch.tensor([0, 0, 0, 0, 1, 1])
    here = view(advantage=torch.zeros(6, 2))
    here = replace(here, group=group[:, None].expand(6, 2), columns={"positive": positive[:, None].expand(6, 2)})
    found = Disco(temperature=None)({"logprobs": logprobs}, here).value()
    assert found.item() == pytest.approx(-0.15 / 2)
    assert slope(found, logprobs)[:, 0].tolist() == pytest.approx([-0.125, -0.125, 0.125, 0.125, 0, 0])
    kl = HingeKl()({"logprobs": logprobs}, here).value()
    assert (slope(kl, logprobs) != 0).all()


def test_worked_grao():
    reward, group = array(0.2, 0.6, 1.0), torch.zeros(3, dtype=torch.int64)
    demo = torch.tensor([0, 0, 1])
    advantage = group_norm(reward, group, ddof=0, eps=1e-8)
    assert advantage.tolist() == pytest.approx([-1.2247, 0, 1.2247], abs=1e-4)
    assert grao_coefficients(advantage, demo, group).tolist() == pytest.approx([-0.9798, 0, 0.9798], abs=1e-4)
    logprobs = array([-1.0, -2.0], [-0.5, -0.5], [-2.0, -4.0]).requires_grad_()
    loss = grao(logprobs, advantage[:, None].expand(3, 2), torch.ones(3, 2), demo, group)
    a, score = advantage.tolist(), (-1.5, -0.5, -3.0)
    wanted = sum(a[i] * score[i] + 0.5 * a[2] * score[2] + 0.6 * a[i] * (score[i] - score[2]) for i in (0, 1)) / 2
    assert loss.sum().item() == pytest.approx(-wanted)


def test_grao_pooled_coefficient_of_the_demonstration_and_its_edges():
    advantage = group_norm(array(0.1, 0.5, 0.9, 0.3), torch.zeros(4, dtype=torch.int64), eps=0.0)
    demo = torch.tensor([0, 0, 0, 1])
    found = grao_coefficients(advantage, demo, torch.zeros(4, dtype=torch.int64))
    assert found[3].item() == pytest.approx(advantage[3].item() * (0.5 + 0.6 / 3)) and found[3] < 0  # unlearnt
    without = grao_coefficients(array(1.0, -1.0), torch.zeros(2), torch.zeros(2, dtype=torch.int64))
    assert without.tolist() == [0.5, -0.5]
    alone = grao_coefficients(array(0.0), torch.ones(1), torch.zeros(1, dtype=torch.int64))
    assert alone.tolist() == [0]
    assert grao_coefficients(array(0.0, 0.0), torch.tensor([0, 1]), torch.zeros(2, dtype=torch.int64)).tolist() == [
        0,
        0,
    ]
    two = torch.tensor([0, 0, 0, 0, 1, 1, 0, 1])
    order = torch.tensor([4, 0, 6, 1, 7, 2, 5, 3])
    group = torch.tensor([0, 0, 0, 0, 0, 5, 5, 5])
    values = torch.randn(8, dtype=torch.float64)
    torch.testing.assert_close(
        grao_coefficients(values, two, group)[order], grao_coefficients(values[order], two[order], group[order])
    )


# ── stages that make columns ──


def table(rewards, **columns):
    rows = len(rewards)
    base = {"prompt": torch.zeros(rows, dtype=torch.int64), "failed": torch.zeros(rows, dtype=torch.bool)}
    return Table({"total": array(*rewards)}, base | columns)


def test_rewards_above_the_threshold_are_positive_and_failed_rows_are_not():
    made = MarkPositive()(table((1.0, 0.0, 0.5, math.nan)))
    assert made.columns["positive"].tolist() == [1, 0, 0, 0] and made.values["total"][0] == 1
    with pytest.raises(ConfigError, match="already"):
        MarkPositive()(made)


def test_shortness_of_an_answer():
    made = Shortness(max_length=80)(table((1.0, 0.0), length=torch.tensor([20, 80])))
    assert made.columns["shortness"].tolist() == [0.75, 0]


# ── on-policy, every clip form is REINFORCE ──

EACH_ACTION = {
    "grpo": ClippedRatio(),
    "capped": ClippedRatio(dual_clip=3.0, ratio_cap=2.0),
    "row_token": ClippedRatio(ratio="row_token"),
    "cispo": Cispo(),
    "sapo": Sapo(aggregate="token"),
    "kl_cov": KlCov(share=0.5),
    "truncated": Truncated(of=ClippedRatio()),
}
EACH_ROW = {
    "row": ClippedRatio(ratio="row", aggregate="row"),
    "gmpo": Gmpo(),
    "product": ClippedRatio(ratio="product", aggregate="row"),
    "unit": ClippedRatio(ratio="unit", aggregate="row"),
}


def on_policy(objective, advantage):
    """(gradient, view) at the policy that sampled."""
    logprobs = torch.randn(3, 4, dtype=torch.float64).requires_grad_()
    here = view(advantage=advantage, mask=[[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], old=logprobs.detach())
    columns = {"behaviour_logprobs": logprobs.detach(), "unit": torch.tensor([[0, 0, 1, 1]] * 3)}
    here = replace(here, columns=columns)
    term = objective({"logprobs": logprobs, "token_logprobs": logprobs}, here)
    return slope(term.value(), logprobs), here


@pytest.mark.parametrize("name", EACH_ACTION)
def test_on_policy_every_objective_of_actions_is_reinforce(name):
    found, here = on_policy(EACH_ACTION[name], torch.randn(3, 4, dtype=torch.float64))
    torch.testing.assert_close(found, -here.advantage * here.mask / here.counts.actions)


@pytest.mark.parametrize("name", EACH_ROW)
def test_on_policy_every_objective_of_rows_is_reinforce(name):
    """With the mean over a row; the product, whose gradient is the sum, gives each action the whole."""
    found, here = on_policy(EACH_ROW[name], torch.randn(3, 1, dtype=torch.float64).expand(3, 4))
    share = 1.0 if name == "product" else 1 / here.row_actions
    torch.testing.assert_close(found, -here.advantage * here.mask * share / here.counts.rows)


# ── coupled objectives: the gradient of one piece ──

WIDE = dict(clip_low=0.3, clip_high=0.3)
COUPLED = {
    "row_token": [ClippedRatio(ratio="row_token", aggregate="row", **WIDE)],
    "unit": [ClippedRatio(ratio="unit", **WIDE)],
    "product": [ClippedRatio(ratio="product", aggregate="row_sum", **WIDE)],
    "cispo": [Cispo(max_ratio=1.2)],
    "sapo": [Sapo(), Kl(form="k3", straight_through=True)],
    "gmpo": [Gmpo(clip_low=0.2, clip_high=0.2)],
    "kl_cov": [KlCov(share=0.2)],
    "truncated": [Truncated(of=ClippedRatio(ratio="unit", **WIDE), cap=1.1)],
    "disco": [Disco(temperature=0.7), HingeKl()],
    "disco_ratio": [Disco(score="ratio", temperature=None), Kl(form="k2")],
    "drpo": [Disco(preference="shortness"), HingeKl(weight=10.0)],
    "grao": [Grao()],
}
every_objective = pytest.mark.parametrize("name", COUPLED)


class Policy(ToyPolicy):
    def values(self, rollout, index):
        values = super().values(rollout, index)
        return values | {"token_logprobs": values["logprobs"]}


def inputs(rows=None):
    """The toy's rollout with declared columns and a sampler that is not quite the old policy, and its credit."""
    generator = torch.Generator().manual_seed(5)
    rollout = make_rollout()
    columns = {
        "unit": torch.tensor([0, 0, 1]).expand(N, ACTIONS),
        "demo": (torch.arange(N) % 4 == 3) | (torch.arange(N) == 2),
        "shortness": torch.rand(N, generator=generator),
    }
    old_NA = rollout.behaviour_NA
    behaviour_NA = old_NA + 0.3 * torch.randn(N, ACTIONS, dtype=torch.float64, generator=generator)
    rollout = replace(rollout, behaviour_NA=behaviour_NA, columns=columns)
    credit = make_credit()
    positive_NA = (torch.arange(N) % 3 == 0).double()[:, None].expand(N, ACTIONS)
    credit = replace(credit, columns={"positive": positive_NA})
    if rows is None:
        return rollout, credit, old_NA
    credit = replace(
        credit,
        advantage_NA=credit.advantage_NA[rows],
        keep_NA=credit.keep_NA[rows],
        columns={"positive": positive_NA[rows]},
    )
    return rollout.take(rows), credit, old_NA[rows]


def train(policy, objective, *, rows=None, processes=None):
    rollout, credit, old_NA = inputs(rows)
    processes = processes or Alone()
    here = make_view(rollout, credit, rollout.mask_NA, old_NA, processes)
    return accumulate(policy, rollout, objective, here, processes)


def whole(objective):
    """By autograd through everything at once, with the columns written out."""
    policy, (rollout, credit, old_NA) = Policy(), inputs()
    here = make_view(rollout, credit, rollout.mask_NA, old_NA, Alone())
    wide = {k: c if c.dim() == 2 else c[:, None].expand(N, ACTIONS) for k, c in rollout.columns.items()}
    here = replace(here, columns={**here.columns, **wide, "behaviour_logprobs": rollout.behaviour_NA})
    values = {k: v.view(N, ACTIONS) for k, v in policy.values(rollout, torch.arange(N * ACTIONS)).items()}
    values = {k: v.where(here.mask.bool(), 1.0) for k, v in values.items()}
    terms = [term(values, here) for term in objective]
    sum(term.value() for term in terms).backward()
    return policy.gradient, {term.name: term.value().item() for term in terms}


@every_objective
@pytest.mark.parametrize("cut", [1, 5, 100])
@pytest.mark.parametrize("unit", ["action", "row"])
def test_the_gradient_does_not_show_how_rows_and_groups_are_cut(name, unit, cut):
    policy = Policy(unit=unit, cut=cut)
    result = train(policy, COUPLED[name])
    gradient, terms = whole(COUPLED[name])
    assert_same(policy.gradient, gradient)
    assert result.terms == pytest.approx(terms, rel=1e-12)


@every_objective
@pytest.mark.parametrize("shares", [(8, 8), (3, 13)], ids=str)
def test_two_ranks_sum_to_the_gradient_of_one(name, shares):
    rows, meeting = list(torch.arange(N).split(shares)), Meeting(2)
    policies, results, errors = [Policy(cut=4), Policy(cut=4)], [None, None], []

    def work(rank):
        try:
            results[rank] = train(policies[rank], COUPLED[name], rows=rows[rank], processes=OneOfMany(rank, meeting))
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    gradient, terms = whole(COUPLED[name])
    assert_same(sum(policy.gradient for policy in policies), gradient)
    assert results[0].terms == pytest.approx(terms) and results[0].stats == pytest.approx(results[1].stats)


@every_objective
def test_an_update_of_nothing_has_no_gradient(name):
    rollout, credit, old_NA = inputs()
    policy = Policy()
    here = make_view(rollout, replace(credit, keep_NA=credit.keep_NA & False), rollout.mask_NA, old_NA, Alone())
    result = accumulate(policy, rollout, COUPLED[name], here, Alone())
    assert result.loss == 0 and policy.gradient.abs().sum() == 0


def test_a_column_that_nobody_declares_is_named():
    with pytest.raises(
        ValueError, match="reads the column 'lesson', which nothing declares; there are: behaviour_logprobs, demo"
    ):
        train(Policy(), [Grao(demo="lesson")])


# ── presets ──

NAMES = ("gspo", "gspo_token", "cispo", "sapo", "gmpo", "kl_cov", "tis", "disco", "drpo", "grao")


@pytest.mark.parametrize("name", NAMES)
def test_the_preset_builds(name):
    settings = preset(name)
    assert next(m for m in METHODS if m.name == name).tested == "tests/methods/test_methods_objectives.py"
    stages = [component(Role("advantage"), stage, path="advantage") for stage in settings["advantage"]]
    terms = [component(Role("objective"), term, path="objective") for term in settings["objective"]]
    assert stages and terms


def test_presets_hold_the_published_settings():
    gspo = build(ClippedRatio, {k: v for k, v in preset("gspo")["objective"][0].items() if k != "kind"})
    assert (gspo.ratio, gspo.clip_low, gspo.clip_high, gspo.aggregate, gspo.max_log_ratio) == (
        "row",
        3e-4,
        4e-4,
        "row",
        10,
    )
    assert preset("gspo")["updates"] == {"count": 4} and preset("tis")["old_logprobs"] == "recompute"
    drpo = component(Role("objective"), preset("drpo")["objective"][0], path="objective")
    disco = component(Role("objective"), preset("disco")["objective"][0], path="objective")
    assert replace(drpo, preference=None) == disco
    assert component(Role("advantage"), preset("grao")["advantage"][1], path="advantage") == GroupNorm(ddof=0, eps=1e-8)


def test_a_term_within_a_term_survives_being_written():
    made = component(
        Role("objective"), {"kind": "truncated", "of": {"kind": "cispo", "max_ratio": 3}}, path="objective"
    )
    assert made == Truncated(of=Cispo(max_ratio=3.0))
    assert component(Role("objective"), dump(made, role="objective"), path="objective") == made


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ("{kind: clipped_ratio, ratio: product}", "needs token_logprobs, which the policy does not provide"),
        (
            "{kind: clipped_ratio, ratio: unit}",
            "reads the column 'unit', which no advantage stage makes and the rollout",
        ),
        ("{kind: grao}", "reads the column 'demo', which no advantage stage makes"),
        ("{kind: disco}", "reads the column 'positive', which no advantage stage makes"),
    ],
)
def test_a_flow_policy_is_refused_what_it_cannot_give(objective, said):
    """A product of mean log-densities over denoising steps is no likelihood ratio."""
    with pytest.raises(ConfigError, match=said):
        read("configs/quickstart/flow.yaml", [f"objective=[{objective}]"]).check_settings()


@pytest.mark.parametrize("objective", ["{kind: sapo}", "{kind: truncated, of: {kind: gmpo}}", "{kind: kl_cov}"])
def test_a_flow_policy_may_use_the_others(objective):
    read("configs/quickstart/flow.yaml", [f"objective=[{objective}]"]).check_settings()
