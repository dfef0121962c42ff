"""Losses of flow policies against hand-worked numbers: TempFlow, Flow-DPPO, DiffusionNFT, AWM, gated KL."""

import itertools
import math

import pytest
import torch
from tiny_runs import write_config

from grpo_mm.config.run_config import read
from grpo_mm.errors import ConfigError
from grpo_mm.objectives import (
    Awm,
    ClippedRatio,
    DivergenceMask,
    Kl,
    Nft,
    awm_logprob,
    divergence_mask,
    nft_loss,
    optimality,
)
from grpo_mm.pipelines.flow import kernels
from grpo_mm.pipelines.flow.engines.forward_record import ForwardRecord, matching_loss, nft_errors
from grpo_mm.pipelines.flow.record import FlowRecord
from grpo_mm.pipelines.flow.schedule import DiffusersSd3, Shifted
from grpo_mm.types import Counts, View


def array(*values):
    return torch.tensor(values, dtype=torch.float64)


def view(advantage, *, mask=None, old=0.0, **columns):
    """A view of the whole update, [N, A]."""
    advantage = torch.as_tensor(advantage, dtype=torch.float64)
    mask = torch.ones_like(advantage) if mask is None else torch.as_tensor(mask, dtype=torch.float64)
    return View(
        old_logprobs=torch.as_tensor(old, dtype=torch.float64).expand_as(advantage),
        advantage=advantage,
        mask=mask,
        row=torch.arange(len(advantage))[:, None].expand_as(advantage),
        group=torch.zeros_like(advantage, dtype=torch.int64),
        row_actions=mask.sum(1, keepdim=True).clamp_min(1).expand_as(advantage),
        counts=Counts(float(mask.sum()), float((mask.sum(1) > 0).sum()), advantage.shape[1]),
        columns={name: torch.as_tensor(c, dtype=torch.float64) for name, c in columns.items()},
    )


def close(found, wanted, **how):
    torch.testing.assert_close(found, wanted, **how)


# ── TempFlow-GRPO ──


def chain(schedule, *, steps=10, level=0.7, **changes):
    """The record of one row that takes every step but the last with noise; latents of two elements."""
    latent = torch.randn(steps, 2, generator=torch.Generator().manual_seed(0))
    settings = dict(
        latent_V=latent, level_V=torch.arange(steps), condition_V=torch.zeros(steps, dtype=torch.int64),
        from_NA=torch.arange(steps - 1)[None], to_NA=torch.arange(1, steps)[None],
        noise_level_NA=torch.full((1, steps - 1), level), sigma_S1=schedule(steps, image_tokens=64), condition={},
        size=(8, 8), guidance=1.0, kernel=kernels.flow_sde, logprob="gaussian",
    )  # fmt: skip
    return FlowRecord(**(settings | changes))


def step_values(record, *needs, mask=None, velocity=None):
    count = record.from_NA.numel()
    mask = torch.ones_like(record.from_NA, dtype=torch.bool) if mask is None else mask
    velocity = torch.zeros(count, 2) if velocity is None else velocity
    return record.values(torch.arange(count), velocity, frozenset(needs), mask)


WEIGHTS = {
    Shifted: [1.569, 1.655, 1.192, 0.990, 0.869, 0.785, 0.716, 0.651, 0.574],
    DiffusersSd3: [1.577, 1.673, 1.208, 1.004, 0.882, 0.795, 0.719, 0.635, 0.508],
}


@pytest.mark.parametrize("schedule", WEIGHTS)
def test_noise_aware_weights_are_the_published_ones(schedule):
    found = step_values(chain(schedule(shift=3.0)), "relative_std")["relative_std"]
    assert found.tolist() == pytest.approx(WEIGHTS[schedule], abs=6e-4)
    assert found.mean().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("level", [0.1, 1.2])
def test_noise_aware_weights_do_not_depend_on_the_noise_level(level):
    found = step_values(chain(Shifted(), level=level), "relative_std")["relative_std"]
    close(found, step_values(chain(Shifted()), "relative_std")["relative_std"])


def test_noise_aware_weights_have_mean_one_over_the_trained_steps():
    mask = torch.tensor([[True, False, False, True, True, False, False, False, False]])
    values = step_values(chain(Shifted()), "relative_std", mask=mask)
    assert values["relative_std"][mask[0]].mean().item() == pytest.approx(1, abs=1e-6)
    close(values["relative_std"], values["std"] / values["std"][mask[0]].mean())


def test_noise_aware_weights_multiply_the_clipped_loss_of_each_step():
    values = {"logprobs": torch.log(array(1, 1.5, 0.5))[None], "relative_std": array(2, 1, 0.5)[None]}
    term = ClippedRatio(clip_low=0.2, clip_high=0.2, step_weight="relative_std")(values, view([[1, 1, 1]]))
    close(term.loss, array(-2, -1.2, -0.25)[None])
    assert term.value().item() == pytest.approx(-3.45 / 3)


# ── Flow-DPPO ──


def test_an_action_is_dropped_only_beyond_the_limit_and_on_its_way_out():
    limit = 1e-5
    for advantage, log_ratio, divergence in itertools.product((-1, 0, 1), (-0.1, 0, 0.1), (0.5e-5, limit, 2e-5)):
        away = advantage * log_ratio > 0
        kept = divergence_mask(*map(array, (log_ratio, advantage, divergence)), limit=limit)
        assert kept.item() == (not (away and divergence >= limit)), (advantage, log_ratio, divergence)


def test_flow_dppo_takes_the_plain_ratio_and_no_gradient_from_what_is_dropped():
    logprobs = torch.log(array(1.5, 1.5, 0.5, 0.5, 1.5))[None].requires_grad_()
    shift = array(2, 2, 2, 2, 0.5)[None] * 1e-5 * 2 * 0.3**2  # D = 2e-5, and .5e-5 at last
    values = {"logprobs": logprobs, "mean_shift_old": shift, "std": torch.full_like(shift, 0.3)}
    term = DivergenceMask()(values, view([[2, -2, 2, -2, 2]]))
    close(term.loss.detach(), array(0, 3, -1, 0, -3)[None])
    close(term.stats["divergence"], array(2, 2, 2, 2, 0.5)[None] * 1e-5)
    close(term.stats["clip_frac"], array(1, 0, 0, 1, 0)[None])
    term.value().backward()
    close(logprobs.grad, array(0, 3, -1, 0, -3)[None] / 5)


def test_the_divergence_is_that_of_the_two_means():
    """D = mean(Δμ²)/(2 std²) with both means taken from the kernel."""
    velocity, old = (torch.randn(9, 2, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    record = chain(Shifted(), velocity_old_V=torch.cat([old, torch.zeros(1, 2)]))
    values = step_values(record, "mean_shift_old", velocity=velocity)
    sigma = record.sigma_S1
    for i in range(9):
        means = [
            kernels.flow_sde(record.latent_V[i][None], v[None], sigma[i], sigma[i + 1], torch.tensor(0.7))[0]
            for v in (velocity[i], old[i])
        ]
        assert values["mean_shift_old"][i].item() == pytest.approx(
            (means[0] - means[1]).square().mean().item(), rel=1e-3
        )


# ── DiffusionNFT ──


def test_nft_is_the_self_normalised_form_on_the_worked_vector():
    """x0 = .8, e = -.4, t = .6, v_old = -1, v = -1.1, β = 1, r = .8: x̂0⁺ = .74, x̂0⁻ = .62, loss .084.

    Unweighted squares would give .8 · .0036 + .2 · .0324 = .00936; divided by |x̂0± - x0| it is .8 · .06 + .2 · .18.
    """
    x0, e, t, old, v = (array([value]) for value in (0.8, -0.4, 0.6, -1.0, -1.1))
    x = (1 - t) * x0 + t * e
    close(x, array([0.08]))
    plus, minus = nft_errors(x, x0, t, v, old, beta=1.0)
    close(plus, array(0.8 - 0.74))
    close(minus, array(0.8 - 0.62))
    close(nft_loss(plus, minus, array(0.8), beta=1.0), array(0.084))
    values = {"nft_plus": plus[None], "nft_minus": minus[None], "beta": array(1.0)[None]}
    term = Nft(weight=1.0)(values, view([[3.0]]))  # A = 3 of at most 5 is r = .8
    assert term.value().item() == pytest.approx(0.084) and term.stats["optimality"].item() == pytest.approx(0.8)
    assert Nft()(values, view([[3.0]])).value().item() == pytest.approx(5 * 0.084)


def test_optimality_is_a_half_for_an_average_sample_and_ends_at_the_bound():
    close(optimality(array(-7, -5, -1, 0, 2, 5, 9)), array(0, 0, 0.4, 0.5, 0.7, 1, 1))
    close(optimality(array(0.5), limit=1.0), array(0.75))


def test_the_implicit_policies_lie_beta_from_the_old_one():
    """v⁺ = β v + (1 - β) v_old and v⁻ = (1 + β) v_old - β v, by hand on one element."""
    x, x0, t, v, old, beta = 0.5, 0.2, 0.4, 1.0, 0.6, 0.1
    plus, minus = nft_errors(*(array([a]) for a in (x, x0, t, v, old)), beta=beta)
    close(plus, array(abs(x - t * (0.1 * v + 0.9 * old) - x0)))
    close(minus, array(abs(x - t * (1.1 * old - 0.1 * v) - x0)))


def test_the_width_takes_no_gradient_and_is_bounded_below():
    x0 = torch.zeros(1, 4, dtype=torch.float64)
    x = torch.full_like(x0, 1e-9)
    velocity = torch.zeros_like(x0).requires_grad_()
    plus, _ = nft_errors(x, x0, array([1.0]), velocity, torch.zeros_like(x0), beta=1.0)
    close(plus, array(1e-18 / 1e-5))
    plus.sum().backward()
    close(velocity.grad, torch.full_like(x0, -2e-9 / 1e-5 / 4))  # of mean(error²)/1e-5 alone


def forward_record(*, beta=1.0, velocity=None):
    """Two samples of three elements, two draws each."""
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(*s, 3, generator=generator, dtype=torch.float64) for s in ((2,), (2, 2)))
    old = torch.randn(2, 2, 3, generator=generator, dtype=torch.float64)
    return ForwardRecord(
        clean_N=clean, noise_NA=noise, sigma_NA=array([0.3, 0.8], [0.5, 1.0]), condition={},
        condition_N=torch.zeros(2, dtype=torch.int64), size=(8, 8), guidance=1.0, beta=beta,
        velocity_NA={"old": old} | (velocity or {}),
    )  # fmt: skip


def draw_values(record, velocity, *needs):
    return record.values(torch.arange(4), velocity, frozenset(needs), torch.ones(2, 2, dtype=torch.bool))


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_nft_leaves_the_old_velocity_towards_good_samples_and_away_from_bad_ones(beta):
    """At v = v_old the gradient is -(2r - 1)·2t²·(u - v)/(w·D), u = e - x0, whatever β: by hand from eq. 12."""
    record = forward_record(beta=beta)
    velocity = record.velocity_NA["old"].flatten(0, 1).clone().requires_grad_()
    values = draw_values(record, velocity, "nft_plus", "nft_minus", "beta")
    close(values["nft_plus"], values["nft_minus"])
    advantage = array(5.0, 1.0, -3.0, 0.0)
    r = optimality(advantage)
    term = Nft(weight=1.0)({k: v[None] for k, v in values.items()}, view(advantage[None]))
    (term.value() * 4).backward()
    clean, noise, t, _ = record._at(torch.arange(4))
    towards = noise - clean - velocity.detach()
    width = (t[:, None] * towards).abs().mean(1)
    wanted = -((2 * r - 1) * 2 * t**2 / (3 * width))[:, None] * towards
    close(velocity.grad, wanted)
    along = (-velocity.grad * towards).sum(1)
    assert (along[:2] > 0).all() and along[2] < 0 and along[3].abs() < 1e-12


def test_a_small_beta_means_a_larger_second_step():
    """Away from v_old the loss pulls back with curvature ∝ β: the optimum lies at v_old + (2r - 1)/β · (u - v_old)."""
    for beta in (1.0, 0.1):
        record = forward_record(beta=beta)
        old, (clean, noise, _, _) = record.velocity_NA["old"].flatten(0, 1), record._at(torch.arange(4))
        r = array(0.9)
        best = (old + (2 * r - 1) / beta * (noise - clean - old)).requires_grad_()
        x = record.network_input(torch.arange(4))[0]
        t = record.sigma_NA.flatten()[:, None]
        error = [x - t * v - clean for v in (beta * best + (1 - beta) * old, (1 + beta) * old - beta * best)]
        ((r * error[0] ** 2 + (1 - r) * error[1] ** 2) / beta).sum().backward()  # the unweighted form
        assert best.grad.abs().max() < 1e-12


# ── AWM ──

FORMS = {
    "plain": -0.04, "t": -0.02, "t2": -0.01, "huber": -0.5 * (math.sqrt(0.04 + 1e-10) - 1e-10),
    "generalised_huber": -2 * ((0.04 + 1e-10) ** 0.25 - 10**-2.5),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_the_matching_likelihood_by_hand(form):
    found = awm_logprob(torch.tensor(0.04), torch.tensor(0.5), form=form)
    assert found.dtype == torch.float64 and found.item() == pytest.approx(FORMS[form], rel=1e-6)
    assert awm_logprob(array(0.01), array(0.5), form=form) > awm_logprob(array(0.04), array(0.5), form=form)
    loss = array(0.0).requires_grad_()
    awm_logprob(loss, array(0.5), form=form).backward()
    assert torch.isfinite(loss.grad)


def test_the_target_is_noise_minus_sample():
    record = forward_record()
    clean, noise, t, column = record._at(torch.arange(4))
    assert matching_loss(noise - clean, clean, noise).tolist() == [0] * 4
    assert (matching_loss(clean - noise, clean, noise) > 0.1).all()
    # A straight path: the velocity that matches is dx_t/dt, and leads from the state to the sample.
    x = record.network_input(torch.arange(4))[0]
    close(x - column * (noise - clean), clean)


def awm_values(new, old):
    return {"matching_loss": array(*new), "matching_loss_old": array(*old), "sigma": torch.full((1, 2), 0.5).double()}


def test_awm_is_advantage_over_its_bound_on_policy_and_pulls_good_samples_in():
    loss = array([0.04, 0.09]).requires_grad_()
    values = awm_values([[0, 0]], [[0.04, 0.09]]) | {"matching_loss": loss}
    term = Awm(form="t")(values, view([[5, -2.5]]))
    close(term.loss.detach(), array([-1, 0.5]))
    close(term.stats["ratio"], array([1.0, 1.0]))
    term.loss.sum().backward()
    close(loss.grad, array([0.5, -0.25]))  # descent lowers ℓ where A > 0


def test_awm_takes_the_ratio_of_a_draw_or_of_the_sum_over_a_rows_draws():
    values = awm_values([[0.1, 0.5]], [[0.3, 0.4]])
    both = view([[5, 5]])
    each = Awm(form="plain", clip_low=1, clip_high=1)(values, both)
    close(each.stats["ratio"], array([math.exp(0.2), math.exp(-0.1)]))
    close(each.loss, -each.stats["ratio"])
    row = Awm(form="plain", ratio="row", clip_low=1, clip_high=1)(values, both)
    close(row.stats["ratio"], torch.full((1, 2), math.exp(0.1)).double())
    masked = Awm(form="plain", ratio="row", clip_low=1, clip_high=1)(values, view([[5, 5]], mask=[[1, 0]]))
    close(masked.stats["ratio"], torch.full((1, 2), math.exp(0.2)).double())
    assert Awm().couples == "action" and Awm(ratio="row").couples == "row"


def test_awm_clips():
    values = awm_values([[0.0, 0.5]], [[0.5, 0.0]])
    term = Awm(form="plain")(values, view([[5, 5]]))
    close(term.loss, array([-1.2, -math.exp(-0.5)]))
    close(term.stats["clip_frac"], array([1.0, 0.0]))


# ── KL ──


def test_a_gated_kl_holds_back_the_gated_rows_only_and_tells_the_kl_of_all():
    values = {"velocity_shift_ref": array([0.5, 1.0], [2.0, 4.0])}
    term = Kl(form="velocity", weight=0.1, gate="kl_gate")(values, view([[0, 0], [0, 0]], kl_gate=[[0, 0], [1, 1]]))
    assert term.value().item() == pytest.approx(0.1 * (2 + 4) / 4)
    assert term.name == "ref_kl" and (term.stats["ref_kl"] * 1.0).mean().item() == pytest.approx(7.5 / 4)
    assert Kl(form="velocity", gate="kl_gate").columns == {"kl_gate"} and Kl().columns == frozenset()


def test_a_kl_to_averaged_weights_reads_their_velocity():
    kl = Kl(form="velocity", to="ema", weight=2.0)
    assert kl.needs == {"velocity_shift_ema"}
    term = kl({"velocity_shift_ema": array([0.5])}, view([[0]]))
    assert term.name == "ema_kl" and term.value().item() == 1.0
    with pytest.raises(ValueError, match="form = velocity, found gaussian"):
        Kl(form="gaussian", to="ema")


def test_the_velocity_kl_is_the_mean_square_difference():
    other = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    record = forward_record(velocity={"ref": other, "ema": 2 * other})
    values = draw_values(record, torch.zeros(4, 3).double(), "velocity_shift_ref", "velocity_shift_ema")
    close(values["velocity_shift_ref"], other.square().mean(2).flatten())
    close(values["velocity_shift_ema"], 4 * values["velocity_shift_ref"])


# ── which objective goes with which engine ──

FORWARD = {"kind": "forward_process", "steps": 4, "eval_steps": 2}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"engine": FORWARD, "objective": [{"kind": "clipped_ratio"}]}, "the objective needs logprobs, which"),
        ({"engine": FORWARD, "objective": [{"kind": "ratio_norm"}]}, "needs .*logprobs.*, which"),
        ({"engine": FORWARD, "objective": [{"kind": "divergence_mask"}]}, "needs logprobs, mean_shift_old, std, which"),
        ({"engine": FORWARD, "objective": [{"kind": "nft"}, {"kind": "kl", "form": "k3"}]}, "needs logprobs, ref_logprobs"),
        ({"objective": [{"kind": "nft"}]}, "needs beta, nft_minus, nft_plus, which"),
        ({"objective": [{"kind": "awm"}]}, "needs matching_loss, matching_loss_old, sigma, which"),
        (
            {"engine": FORWARD, "objective": [{"kind": "awm"}, {"kind": "kl", "form": "velocity", "to": "ema"}]},
            "keeps none: give `ema`",
        ),
        (
            {"objective": [{"kind": "clipped_ratio"}, {"kind": "kl", "gate": "kl_gate"}]},
            "reads the column 'kl_gate', which no advantage stage makes",
        ),
        (
            {"engine": FORWARD, "objective": [{"kind": "nft"}], "reference_reset": {"every": 2}},
            "no term of the objective uses a reference",
        ),
        (
            {"engine": FORWARD | {"steps": 1, "draws": {"kind": "stratified"}}, "objective": [{"kind": "awm"}]},
            r"no noise level to train in 1 step\(s\)",
        ),
        (
            {"engine": FORWARD | {"draws": {"kind": "stratified", "fraction": 1.5}}, "objective": [{"kind": "awm"}]},
            "draws.fraction = 1.5",
        ),
    ],
)  # fmt: skip
def test_an_objective_that_the_engine_cannot_serve_is_refused_before_loading(changes, said, tiny_sd3, tmp_path):
    config = write_config(tmp_path, tiny_sd3, changes)
    with pytest.raises(ConfigError, match=said):
        read(config).check()
