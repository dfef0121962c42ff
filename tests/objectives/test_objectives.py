"""Losses against hand-worked numbers, and what every policy term is at ratio 1: REINFORCE."""

import math

import pytest
import torch

from grpo_mm.objectives import (
    ClippedRatio,
    Kl,
    RatioNorm,
    TopEntropy,
    aggregate_weight,
    clipped_ratio,
    gaussian_kl,
    k1,
    k2,
    k3,
    ratio_norm,
    top_entropy,
    weighted_k3,
)  # fmt: skip
from grpo_mm.objectives.clipped_ratio import ratio_stats
from grpo_mm.types import Counts, View


def array(*values):
    return torch.tensor(values, dtype=torch.float64)


def view(*, advantage, mask=None, old=None, max_actions=None):
    """A view of the whole update; rows of `mask` without an action count nowhere."""
    advantage = torch.as_tensor(advantage, dtype=torch.float64)
    mask = torch.ones_like(advantage) if mask is None else torch.as_tensor(mask, dtype=torch.float64)
    rows, actions = advantage.shape
    row_actions_N = mask.sum(1)
    return View(
        old_logprobs=torch.zeros_like(advantage) if old is None else torch.as_tensor(old, dtype=torch.float64),
        advantage=advantage,
        mask=mask,
        row=torch.arange(rows)[:, None].expand(rows, actions),
        group=torch.zeros(rows, actions, dtype=torch.int64),
        row_actions=row_actions_N.clamp_min(1)[:, None].expand(rows, actions),
        counts=Counts(float(mask.sum()), float((row_actions_N > 0).sum()), max_actions or actions),
    )


# ── the clipped ratio ──


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "slope"),
    [
        (1, 1.1, -1.1, -1.1),
        (1, 1.5, -1.28, 0),  # clipped above
        (1, 0.5, -0.5, -0.5),  # a fall of a good action is not forgiven
        (-1, 0.5, 0.8, 0),  # clipped below
        (-1, 1.5, 1.5, 1.5),  # a rise of a bad action is not forgiven
        (-2, 0.9, 1.8, 1.8),
        (0, 3.0, 0, 0),
    ],
)
def test_clipped_ratio_by_hand(advantage, ratio, loss, slope):
    logprob = array(math.log(ratio)).requires_grad_()
    found = clipped_ratio(logprob, array(0), array(advantage), array(1), clip_low=0.2, clip_high=0.28)
    assert found.item() == pytest.approx(loss)
    (gradient,) = torch.autograd.grad(found.sum(), logprob)
    assert gradient.item() == pytest.approx(slope)


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "slope"),
    [(-1, 5, 3, 0), (-1, 2, 2, 2), (-2, 5, 6, 0), (1, 5, -1.2, 0), (1, 1, -1, -1)],
)
def test_dual_clip_bounds_the_loss_of_bad_actions_only(advantage, ratio, loss, slope):
    logprob = array(math.log(ratio)).requires_grad_()
    found = clipped_ratio(logprob, array(0), array(advantage), array(1), dual_clip=3.0)
    assert found.item() == pytest.approx(loss)
    (gradient,) = torch.autograd.grad(found.sum(), logprob)
    assert gradient.item() == pytest.approx(slope)


def test_masked_actions_lose_nothing_whatever_their_log_probability():
    logprobs = array(0.1, math.nan, -math.inf)
    found = clipped_ratio(logprobs, array(0, 0, 0), array(1, 1, -1), array(1, 0, 0), clip_high=1)
    assert found.tolist() == pytest.approx([-math.exp(0.1), 0, 0])


def test_the_clip_counts_as_active_where_it_stops_the_gradient():
    log_ratio = array(1.5, 0.5, 1.5, 0.5, 1.1).log()
    stats = ratio_stats(log_ratio, array(1, 1, -1, -1, 1), clip_low=0.2, clip_high=0.2)
    assert stats["clip_frac"].tolist() == [1, 0, 0, 1, 0]
    assert stats["ratio"].tolist() == pytest.approx([1.5, 0.5, 1.5, 0.5, 1.1])
    assert stats["approx_kl"][0].item() == pytest.approx(0.5 * math.log(1.5) ** 2)


# ── averaging ──


@pytest.mark.parametrize(
    ("aggregate", "wanted"),
    [("row", 0), ("token", -2 / 6), ("constant", -2 / (2 * 8))],
    ids=["row", "token", "constant"],
)
def test_rows_of_two_and_four_actions_average_as_the_papers_do(aggregate, wanted):
    here = view(advantage=[[1] * 4, [-1] * 4], mask=[[1, 1, 0, 0], [1, 1, 1, 1]], max_actions=8)
    weight, denominator = aggregate_weight(here, aggregate)
    objective = (here.advantage * weight).sum() / denominator
    assert objective.item() == pytest.approx(wanted)


@pytest.mark.parametrize("aggregate", ["row", "token", "constant"])
def test_rows_left_out_count_nowhere(aggregate):
    logprobs = array([0.1, 0.2], [0.3, 0.4])
    with_one_left_out = view(advantage=[[1, 2], [5, 5]], mask=[[1, 1], [0, 0]])
    alone = view(advantage=[[1, 2]])
    objective = ClippedRatio(clip_high=1, aggregate=aggregate)
    found, wanted = objective({"logprobs": logprobs}, with_one_left_out), objective({"logprobs": logprobs[:1]}, alone)
    assert found.value().item() == pytest.approx(wanted.value().item())


# ── one ratio for a whole row ──


def test_row_ratio_is_the_geometric_mean_of_the_actions_it_trains():
    logprobs = array([0.02, -0.01, 0.0005, 0.0015, 7.0])
    here = view(advantage=[[1] * 5], mask=[[1, 1, 1, 1, 0]])
    objective = ClippedRatio(ratio="row", clip_low=3e-4, clip_high=4e-4, aggregate="row")
    term = objective({"logprobs": logprobs}, here)
    assert term.stats["ratio"][0, 0].item() == pytest.approx(math.exp(0.003))
    assert term.value().item() == pytest.approx(-1.0004)
    assert (term.stats["clip_frac"] * here.mask).sum() == 4


def test_row_ratio_has_the_gradient_of_gspo():
    """∇ = -A · s · mean over actions of ∇ logprob, averaged over rows."""
    logprobs = array([0.02, -0.01, 0.5], [0.1, -0.3, 0.2]).requires_grad_()
    here = view(advantage=[[2] * 3, [-1] * 3], mask=[[1, 1, 0], [1, 1, 1]])
    loss = ClippedRatio(ratio="row", clip_low=1, clip_high=1, aggregate="row")({"logprobs": logprobs}, here).value()
    (gradient,) = torch.autograd.grad(loss, logprobs)
    first, second = -2 * math.exp(0.005) / 2 / 2, math.exp(0) / 3 / 2
    assert gradient[0].tolist() == pytest.approx([first, first, 0])
    assert gradient[1].tolist() == pytest.approx([second] * 3)


def test_row_ratio_of_single_actions_is_the_action_ratio():
    logprobs = array([0.02], [-0.3], [0.9])
    here = view(advantage=[[1], [-1], [2]])
    row, action = (
        ClippedRatio(ratio=r, clip_low=0.1, clip_high=0.1)({"logprobs": logprobs}, here) for r in ("row", "action")
    )
    torch.testing.assert_close(row.loss, action.loss, rtol=1e-12, atol=0)


# ── staying close to the reference ──


@pytest.mark.parametrize(
    ("kl", "value", "slope"),
    [
        (k1, -0.1, 1.0),
        (k2, 0.005, -0.1),
        (k3, 0.00517, 1 - math.exp(0.1)),
    ],
    ids=["k1", "k2", "k3"],
)
def test_kl_estimates_at_a_log_ratio_of_a_tenth(kl, value, slope):
    """The reference gives the action e^0.1 times the policy's probability."""
    logprobs = array(-1.1).requires_grad_()
    found = kl(logprobs, array(-1.0))
    assert found.item() == pytest.approx(value, abs=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), logprobs)
    assert gradient.item() == pytest.approx(slope)


def test_k3_is_never_negative_and_exact_near_zero():
    difference = torch.linspace(-3, 3, 61, dtype=torch.float64)
    assert (k3(difference, torch.zeros(61)) >= 0).all()
    assert k3(array(1e-9), array(0)).item() == pytest.approx(0.5e-18, rel=1e-6)


def test_kl_estimates_average_to_the_kl_of_two_gaussians():
    shift, n = 0.3, 0.5
    x = n * torch.randn(200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    policy, reference = -(x**2) / (2 * n**2), -((x - shift) ** 2) / (2 * n**2)
    exact = gaussian_kl(array(shift**2), array(n)).item()
    assert exact == pytest.approx(0.18)
    assert k1(policy, reference).mean().item() == pytest.approx(exact, rel=0.02)
    assert k3(policy, reference).mean().item() == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize(
    ("form", "wanted"),
    [
        ("gaussian", 0.02 / (2 * 0.5**2)),
        ("gaussian_no_dt", 0.02 / (2 * (0.5**2 / 0.25))),
        ("mean_shift", 0.02),
        ("velocity", 0.7),
        ("k1", 0.1),
        ("k2", 0.005),
        ("k3", math.exp(-0.1) - 1 + 0.1),
        ("abs", 0.1),
        ("weighted_k3", math.exp(0.4) * (math.exp(-0.1) - 1 + 0.1)),  # the policy that sampled gave 0
    ],
)
def test_every_form_of_kl_reads_what_it_declares(form, wanted):
    everything = {
        "logprobs": 0.4,
        "ref_logprobs": 0.3,
        "mean_shift_ref": 0.02,
        "std": 0.5,
        "dt": 0.25,
        "velocity_shift_ref": 0.7,
    }
    objective = Kl(form=form, weight=0.04)
    values = {name: array([everything[name], everything[name]]) for name in objective.needs}
    term = objective(values, view(advantage=[[1, 1]]))
    assert term.value().item() == pytest.approx(0.04 * wanted)
    assert term.stats["ref_kl"].tolist()[0] == pytest.approx([wanted, wanted])


# ── GRPO-Guard ──


def test_ratio_norm_identity_of_the_specification():
    n, eps, shift = 0.46957428, 1.25, 0.01
    log_ratio = eps * shift / n - shift**2 / (2 * n**2)
    assert log_ratio == pytest.approx(0.02639310, abs=5e-9)
    assert ratio_norm(array(log_ratio), array(shift**2), array(n)).item() == pytest.approx(0.0125)


def test_ratio_norm_takes_the_drift_out_of_the_ratio():
    """Per element: log r averages below 0 for any change of the policy, the normalised one to 0."""
    noise = torch.randn(4096, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise, n = noise - noise.mean(), 0.3
    shift = 0.1 + 0.05 * torch.sin(torch.arange(4096, dtype=torch.float64))
    old, new = -(noise**2) / 2, -((n * noise - shift) ** 2) / (2 * n**2)
    log_ratio = (new - old).mean()
    assert log_ratio < 0
    found = ratio_norm(log_ratio, (shift**2).mean(), torch.tensor(n, dtype=torch.float64))
    torch.testing.assert_close(found, (noise * shift).mean(), rtol=1e-9, atol=1e-12)


# ── every policy term ──

STD, DT = array([0.5, 0.3, 0.2], [0.5, 0.3, 0.2]), array([0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
ADVANTAGE = [[1.5] * 3, [-0.5] * 3]


@pytest.mark.parametrize("aggregate", ["token", "row", "constant"])
@pytest.mark.parametrize(
    ("objective", "step_weight"),
    [
        (ClippedRatio(), torch.ones(2, 3)),
        (ClippedRatio(dual_clip=3.0, weight=2.0), 2 * torch.ones(2, 3)),
        (ClippedRatio(ratio="row"), torch.ones(2, 3)),
        (ClippedRatio(step_weight="inverse_dt"), 1 / DT),
        (ClippedRatio(step_weight="std"), STD),
        (RatioNorm(), STD / DT),
        (RatioNorm(step_weight="none"), STD),
    ],
    ids=["clipped", "dual-clipped", "row", "inverse-dt", "std", "ratio-norm", "ratio-norm-plain"],
)
def test_at_ratio_one_the_gradient_is_reinforce(objective, step_weight, aggregate):
    """-A · weight of the step · weight of the average; a shift of the mean has no slope where it is 0."""
    from dataclasses import replace

    here = view(advantage=ADVANTAGE, old=[[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    logprobs = here.old_logprobs.clone().requires_grad_()
    shift = torch.zeros_like(logprobs)
    values = {"logprobs": logprobs, "gaussian_logprobs": logprobs, "mean_shift_old": shift, "std": STD, "dt": DT}
    term = replace(objective, aggregate=aggregate)({k: values[k] for k in objective.needs}, here)
    (gradient,) = torch.autograd.grad(term.value(), logprobs)
    average, denominator = aggregate_weight(here, aggregate)
    torch.testing.assert_close(gradient, -here.advantage * step_weight * average / denominator, check_dtype=False)
    assert (term.stats["ratio"] == 1).all() and (term.stats["clip_frac"] == 0).all()


@pytest.mark.parametrize("objective", [ClippedRatio(), ClippedRatio(ratio="row"), RatioNorm()])
def test_terms_say_what_they_need_and_what_they_couple(objective):
    assert "logprobs" in objective.needs
    assert objective.couples == ("row" if getattr(objective, "ratio", "") == "row" else "action")


def test_needs_follow_the_settings():
    assert ClippedRatio(step_weight="inverse_dt").needs == {"logprobs", "dt"}
    assert RatioNorm().needs == {"logprobs", "gaussian_logprobs", "mean_shift_old", "std", "dt"}
    assert RatioNorm(step_weight="none").needs == {"logprobs", "gaussian_logprobs", "mean_shift_old", "std"}


# ── |k1|, importance-weighted k3 ──


def test_the_absolute_log_ratio_pulls_with_the_same_force_from_either_side():
    logprobs = array([-1.0, -2.0]).requires_grad_()
    term = Kl(form="abs", weight=1.0)(
        {"logprobs": logprobs, "ref_logprobs": array([-1.5, -1.0])}, view(advantage=array([0, 0]))
    )
    assert term.loss.tolist() == [[0.5, 1.0]]
    (slope,) = torch.autograd.grad(term.loss.sum(), logprobs)
    assert slope.tolist() == [[1.0, -1.0]]


def test_weighted_k3_by_hand():
    """Ratio 2, reference half as likely: 2 · (½ - 1 + ln 2); the slope is ratio · k3 + ratio · (1 - ½)."""
    now = array([0.0]).requires_grad_()
    values = {"logprobs": now, "ref_logprobs": array([math.log(0.5)])}
    term = Kl(form="weighted_k3", weight=1.0)(values, view(advantage=array([0]), old=array([math.log(0.5)])))
    k3_value = 0.5 - 1 + math.log(2)
    assert term.loss.item() == pytest.approx(2 * k3_value)
    (slope,) = torch.autograd.grad(term.loss.sum(), now)
    assert slope.item() == pytest.approx(2 * k3_value + 2 * (1 - 0.5))


def test_weighted_k3_has_the_value_and_the_gradient_of_the_true_kl_and_k3_has_not():
    """Over all three outcomes of a categorical, weighed by the policy that sampled: no luck in it."""
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([0.1, 0.5, 0.4], dtype=torch.float64)
    ref = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).log()
    now = logits.log_softmax(0)
    exact = (now.exp() * (now - ref)).sum()
    weighted = (old * weighted_k3(now, ref, now - old.log())).sum()
    assert weighted.item() == pytest.approx(exact.item())
    wanted, found = (torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (exact, weighted))
    assert torch.allclose(wanted, found)
    plain = torch.autograd.grad((now.exp().detach() * k3(now, ref)).sum(), logits)[0]
    assert not torch.allclose(wanted, plain)


@pytest.mark.parametrize("above", [-40.0, -3.0, 0.0, 0.1, 5.0, 18.0, 25.0, 100.0])
def test_weighted_k3_pulls_towards_the_reference_however_far_it_is(above):
    """In float32, where the slopes of its two factors drown in rounding: they are ratio · (log π - log π_ref) together."""
    now = torch.tensor([[-1.0]]).requires_grad_()
    old, ref = torch.tensor([[-1.5]]), torch.tensor([[-1.0 + above]])
    value = weighted_k3(now, ref, now - old)
    (slope,) = torch.autograd.grad(value.sum(), now)
    assert slope.item() == pytest.approx(-above * math.exp(0.5), rel=1e-5)
    assert value.item() == pytest.approx(math.exp(0.5) * k3(now, ref).item(), rel=1e-6)


def test_weighted_k3_beyond_the_bound_of_the_ratio_has_no_gradient():
    now = array([0.0, 0.0]).requires_grad_()
    value = weighted_k3(now, array([1.0, 1.0]), now - array([-21.0, -19.0]))
    (slope,) = torch.autograd.grad(value.sum(), now)
    assert slope[0, 0] == 0 and slope[0, 1].item() == pytest.approx(-math.exp(19))


# ── the actions with the most entropy: the preset high_entropy ──


@pytest.mark.parametrize(
    ("share", "kept"), [(0.2, [4]), (0.4, [1, 4]), (0.41, [1, 3, 4]), (1.0, [0, 1, 2, 3, 4]), (0.01, [4])]
)
def test_the_share_with_the_most_entropy_is_kept(share, kept):
    entropy = array([0.1, 0.8, 0.0, 0.5, 2.0, 9.0])
    mask = array([1, 1, 1, 1, 1, 0])  # the largest of all is not trained
    assert torch.nonzero(top_entropy(entropy, mask, share=share)[0]).flatten().tolist() == kept


def test_equal_entropies_are_kept_together_and_an_empty_update_keeps_nothing():
    assert top_entropy(array([1, 1, 1, 0]), array([1, 1, 1, 1]), share=0.25).tolist() == [[True, True, True, False]]
    assert not top_entropy(array([1, 2]), array([0, 0])).any()


def test_what_is_left_out_has_no_loss_and_the_average_stays_that_over_all():
    now = array([-1.0, -1.0, -1.0, -1.0]).requires_grad_()
    inner = ClippedRatio(clip_low=0.2, clip_high=0.2)
    term = TopEntropy(of=inner, share=0.25)
    seen = view(advantage=array([1, 2, 3, 4]), old=array([-1.0, -1.0, -1.0, -1.0]))
    found = term({"logprobs": now, "entropy": array([0.0, 0.0, 5.0, 0.0])}, seen)
    assert found.value().item() == pytest.approx(-3 / 4) and found.stats["kept_by_entropy"].tolist() == [[0, 0, 1, 0]]
    (slope,) = torch.autograd.grad(found.value(), now)
    assert slope.tolist() == [[0, 0, pytest.approx(-3 / 4), 0]]
    assert term.needs == inner.needs | {"entropy"} and term.couples == "update"


def test_terms_that_no_entropy_can_choose_from_are_refused():
    for settings in (dict(of=Kl()), dict(of=ClippedRatio(), share=0), dict(of=ClippedRatio(), share=1.5)):
        with pytest.raises(ValueError):
            TopEntropy(**settings)
