"""Steps, schedules and solvers against hand-worked numbers, known marginals and the diffusers schedulers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from grpo_mm.objectives import clipped_ratio, ratio_norm
from grpo_mm.pipelines.flow.kernels import cps, cps_logprob, dance_sde, ddim, flow_sde, gaussian_logprob, ode, sde_step
from grpo_mm.pipelines.flow.record import transition
from grpo_mm.pipelines.flow.schedule import DiffusersSd3, FluxShift, Shifted
from grpo_mm.pipelines.flow.solver import DpmSolverPP, Euler, dpmpp_2m

NOISY = {"flow_sde": (flow_sde, 0.7), "dance_sde": (dance_sde, 0.3), "cps": (cps, 0.8), "ddim": (ddim, 1.0)}
each_noisy_kernel = pytest.mark.parametrize("kernel, level", NOISY.values(), ids=NOISY)

PLAIN_10 = [1, 0.964286, 0.923077, 0.875, 0.818182, 0.75, 0.666667, 0.5625, 0.428571, 0.25, 0]
PLAIN_16 = [1, 0.978261, 0.954545, 0.928571, 0.9, 0.868421, 0.833333, 0.794118, 0.75, 0.7, 0.642857, 0.576923, 0.5,
            0.409091, 0.3, 0.166667, 0]  # fmt: skip
SD35_10 = [1, 0.960129, 0.913349, 0.857692, 0.790368, 0.707278, 0.602151, 0.464876, 0.278049, 0.008929, 0]


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def grid(schedule, steps: int, tokens: int = 1024) -> Tensor:
    return schedule(steps, image_tokens=tokens)


def random_step(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """(x, velocity, ε), standard normal."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator, dtype=dtype) for _ in range(3))


# ── formulas ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "kernel, level, mean, std, x_next, logprob",
    [
        (flow_sde, 0.7, 0.482525, 0.46957428, 1.06949284, -0.94425974),
        (dance_sde, 0.3, 0.541175, 0.11618950, 0.68641188, 0.45234426),
        (cps, 0.8, 0.36879933, 0.57063391, 1.08209172, -1.13918112),
        (ddim, 1.0, 0.4175, 0.51961524, 1.06701905, -1.04552187),
    ],
    ids=NOISY,
)
def test_one_step_gives_the_hand_worked_numbers(kernel, level, mean, std, x_next, logprob):
    got_mean, got_std = kernel(f64(0.5), f64(-0.3), 0.75, 0.6, level)
    got_next = got_mean + got_std * 1.25
    got = [float(v) for v in (got_mean, got_std, got_next, gaussian_logprob(got_next, got_mean, got_std))]
    assert got == pytest.approx([mean, std, x_next, logprob], abs=1e-6)


def test_the_ode_step_and_the_published_cps_logprob_give_the_hand_worked_numbers():
    mean, std = ode(f64(0.5), f64(-0.3), 0.75, 0.6, 0.0)
    assert float(mean) == pytest.approx(0.545, abs=1e-6)
    assert float(std) == 0
    assert float(cps_logprob(f64(1.08209172), f64(0.36879933))) == pytest.approx(-0.50878603, abs=1e-6)


@pytest.mark.parametrize("step, mean, std", [(0, 0.38821429, 0.7), (9, 0.55254167, 0.20207259)])
def test_flow_sde_is_finite_at_both_ends(step, mean, std):
    sigma = grid(Shifted(), 10).double()
    got_mean, got_std = flow_sde(f64(0.5), f64(-0.3), sigma[step], sigma[step + 1], 0.7)
    assert [float(got_mean), float(got_std)] == pytest.approx([mean, std], abs=1e-6)


def test_flow_sde_and_dance_sde_equal_the_form_of_the_papers():
    x, v, _ = random_step(4, 3, 5)
    sigma, sigma_next = f64(0.9, 0.6, 0.3, 0.05).view(4, 1, 1), f64(0.8, 0.3, 0.25, 0).view(4, 1, 1)
    dt, a = sigma_next - sigma, 0.7
    g = a * torch.sqrt(sigma / (1 - sigma))
    mean, std = flow_sde(x, v, sigma, sigma_next, a)
    published = x * (1 + g**2 * dt / (2 * sigma)) + v * (1 + g**2 * (1 - sigma) / (2 * sigma)) * dt
    torch.testing.assert_close(mean, published, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(std, g * torch.sqrt(-dt))
    torch.testing.assert_close(sde_step(x, v, sigma, sigma_next, g)[0], mean)
    torch.testing.assert_close(dance_sde(x, v, sigma, sigma_next, 0.3), sde_step(x, v, sigma, sigma_next, f64(0.3)))


@pytest.mark.parametrize("kernel", [cps, ddim])
@pytest.mark.parametrize("level", [0.2, 0.8, 1.0])
def test_cps_and_ddim_keep_the_share_of_the_clean_image_and_of_the_noise(kernel, level):
    clean, noise, _ = random_step(1, 7)
    sigma, sigma_next = 0.75, 0.6
    mean, std = kernel((1 - sigma) * clean + sigma * noise, noise - clean, sigma, sigma_next, level)
    kept = (mean - (1 - sigma_next) * clean) / noise
    torch.testing.assert_close(kept**2 + std**2, torch.full_like(kept, sigma_next**2))


@pytest.mark.parametrize("kernel", [cps, ddim])
def test_the_step_to_the_clean_image_has_no_noise(kernel):
    x, v, _ = random_step(2, 4)
    mean, std = kernel(x, v, 0.25, 0.0, 0.8)
    torch.testing.assert_close(mean, x - 0.25 * v)
    assert std.abs().max() == 0


@each_noisy_kernel
@pytest.mark.parametrize("sigma, sigma_next", [(1.0, 0.96), (0.75, 0.6), (0.25, 0.0)])
def test_without_noise_every_kernel_is_the_euler_step(kernel, level, sigma, sigma_next):
    x, v, _ = random_step(2, 3, 4)
    euler, _ = ode(x, v, sigma, sigma_next, 0.0)
    mean, std = kernel(x, v, sigma, sigma_next, 0.0)
    torch.testing.assert_close(mean, euler, rtol=1e-12, atol=1e-12)
    assert std.abs().max() == 0
    mean, std = kernel(x, v, sigma, sigma_next, 1e-5)
    torch.testing.assert_close(mean, euler, rtol=0, atol=1e-6)
    assert std.max() < 1e-4


# ── shapes and precision ────────────────────────────────────────────────────────────────────────────────────────────


@each_noisy_kernel
def test_a_batch_with_one_sigma_per_row_equals_its_rows_one_by_one(kernel, level):
    x, v, noise = random_step(3, 2, 4, 4)
    sigma, sigma_next, levels = f64(1.0, 0.75, 0.25), f64(0.96, 0.6, 0.1), f64(level, level / 2, level)
    mean, std = kernel(x, v, sigma, sigma_next, levels)
    x_next = mean + std * noise
    logprob = gaussian_logprob(x_next, mean, std)
    for i in range(3):
        row_mean, row_std = kernel(x[i : i + 1], v[i : i + 1], sigma[i], sigma_next[i], levels[i])
        torch.testing.assert_close(mean[i : i + 1], row_mean)
        torch.testing.assert_close(logprob[i : i + 1], gaussian_logprob(x_next[i : i + 1], row_mean, row_std))
    torch.testing.assert_close(transition(kernel, x, v, sigma, sigma_next, levels)[0], mean)


def test_the_logprob_is_the_mean_of_the_normal_log_density_over_all_but_the_batch():
    x_next, mean, _ = random_step(3, 2, 4, 4)
    std = f64(0.2, 1.0, 3.0)
    wanted = torch.distributions.Normal(mean, std.view(3, 1, 1, 1)).log_prob(x_next).mean((1, 2, 3))
    torch.testing.assert_close(gaussian_logprob(x_next, mean, std), wanted)
    torch.testing.assert_close(gaussian_logprob(x_next, mean, std.view(3, 1, 1, 1)), wanted)


def test_the_sampled_latent_is_data_without_gradient():
    x_next, mean, _ = random_step(2, 5)
    x_next.requires_grad_()
    mean.requires_grad_()
    (gaussian_logprob(x_next, mean, f64(0.5)) + cps_logprob(x_next, mean)).sum().backward()
    assert x_next.grad is None
    assert mean.grad.abs().min() > 0


@each_noisy_kernel
def test_low_precision_inputs_are_computed_in_float32_and_float64_is_kept(kernel, level):
    x, v, _ = random_step(2, 8)
    sigmas = (0.75, 0.6, level)
    low = kernel(x.bfloat16(), v.bfloat16(), *sigmas)
    widened = kernel(x.bfloat16().float(), v.bfloat16().float(), *sigmas)
    for got, wanted in zip(low, widened):
        assert got.dtype == torch.float32
        assert torch.equal(got, wanted)
    assert [t.dtype for t in kernel(x, v, *sigmas)] == [torch.float64] * 2
    mean = widened[0]
    assert gaussian_logprob(x.bfloat16(), mean.bfloat16(), low[1]).dtype == torch.float32
    assert gaussian_logprob(x, mean.double(), f64(0.5)).dtype == torch.float64
    assert cps_logprob(x.bfloat16(), mean.bfloat16()).dtype == torch.float32


# ── ratios and gradients ────────────────────────────────────────────────────────────────────────────────────────────


def step_weight(kernel, level: float, sigma: Tensor, sigma_next: Tensor) -> float:
    """m/n of mean = l·x - m·v, from ∂logp/∂v = -(m/n)·ε/D."""
    x, v, noise = random_step(1, 6)
    v.requires_grad_()
    mean, std = kernel(x, v, sigma, sigma_next, level)
    gaussian_logprob(mean + std * noise, mean, std).sum().backward()
    weights = -v.grad * v.numel() / noise
    assert weights.std() < 1e-9 * weights.mean().abs()
    return float(weights.mean())


@pytest.mark.parametrize(
    "schedule, wanted",
    [
        (Shifted(3.0), [0.051, 0.070, 0.113, 0.160, 0.219, 0.296, 0.406, 0.574, 0.868, 1.540]),
        (DiffusersSd3(3.0), [0.057, 0.078, 0.129, 0.188, 0.264, 0.371, 0.536, 0.825, 1.487, 1.771]),
    ],
    ids=["plain", "sd3.5"],
)
def test_flow_sde_weighs_the_last_steps_most(schedule, wanted):
    sigma = grid(schedule, 10).double()
    got = [step_weight(flow_sde, 0.7, sigma[i], sigma[i + 1]) for i in range(10)]
    assert got == pytest.approx(wanted, abs=6e-4)


@pytest.mark.parametrize(
    "schedule, wanted",
    [
        (Shifted(3.0), [1.569, 1.655, 1.192, 0.990, 0.869, 0.785, 0.716, 0.651, 0.574]),
        (DiffusersSd3(3.0), [1.577, 1.673, 1.208, 1.004, 0.882, 0.795, 0.719, 0.635, 0.508]),
    ],
    ids=["plain", "sd3.5"],
)
def test_the_noise_of_the_trained_steps_over_its_mean_gives_the_tempflow_weights(schedule, wanted):
    sigma = grid(schedule, 10).double()
    _, std_S = flow_sde(torch.zeros(9, 1).double(), torch.zeros(9, 1).double(), sigma[:9], sigma[1:10], 0.7)
    assert (std_S / std_S.mean()).flatten().tolist() == pytest.approx(wanted, abs=6e-4)


@each_noisy_kernel
def test_on_policy_the_objective_pulls_the_velocity_along_the_sampled_noise(kernel, level):
    x, v, noise = random_step(4, 3, 4)
    sigma, sigma_next = f64(0.9, 0.75, 0.5, 0.3), f64(0.8, 0.6, 0.4, 0.1)
    advantage = f64(1.5, -0.9, 0.3, -2.0)
    v.requires_grad_()
    mean, std = kernel(x, v, sigma, sigma_next, level)
    logprob = gaussian_logprob(mean + std * noise, mean, std)
    loss = clipped_ratio(logprob, logprob.detach(), advantage, torch.ones(4), clip_low=1e-4, clip_high=1e-4)
    loss.sum().backward()
    weight = f64(*[step_weight(kernel, level, sigma[i], sigma_next[i]) for i in range(4)])
    direction = -(weight * advantage).view(4, 1, 1) * noise / 12
    torch.testing.assert_close(-v.grad, direction, rtol=1e-9, atol=1e-12)


def test_the_log_ratio_is_the_shift_along_the_noise_less_half_its_square():
    std, noise, shift = 0.46957428, 1.25, 0.01
    log_ratio = gaussian_logprob(f64(std * noise), f64(shift), std) - gaussian_logprob(f64(std * noise), f64(0), std)
    assert float(log_ratio) == pytest.approx(0.02639310, abs=1e-6)
    assert float(ratio_norm(log_ratio, f64(shift**2), f64(std))) == pytest.approx(0.0125, abs=1e-6)


@each_noisy_kernel
def test_the_ratio_identity_holds_for_every_kernel(kernel, level):
    x, v, noise = random_step(5, 2, 3, 3)
    other = v + 0.1 * random_step(5, 2, 3, 3, seed=1)[0]
    sigmas = f64(0.9, 0.75, 0.5, 0.3, 0.2), f64(0.8, 0.6, 0.4, 0.1, 0.1), level
    mean, std = kernel(x, v, *sigmas)
    new_mean, _ = kernel(x, other, *sigmas)
    x_next = mean + std * noise
    log_ratio = gaussian_logprob(x_next, new_mean, std) - gaussian_logprob(x_next, mean, std)
    shift = new_mean - mean
    along, square, std = (noise * shift).mean((1, 2, 3)), (shift**2).mean((1, 2, 3)), std.flatten()
    torch.testing.assert_close(log_ratio, along / std - square / (2 * std**2), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ratio_norm(log_ratio, square, std), along, rtol=1e-9, atol=1e-12)


# ── schedules ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "schedule, wanted",
    [
        (Shifted(3.0), PLAIN_10),
        (Shifted(3.0), [1, 0.9375, 0.857143, 0.75, 0.6, 0.375, 0]),
        (Shifted(3.0), PLAIN_16),
        (DiffusersSd3(3.0), SD35_10),
    ],
    ids=["plain 10", "plain 6", "plain 16", "sd3.5 10"],
)
def test_schedules_give_the_reference_grids(schedule, wanted):
    got = grid(schedule, len(wanted) - 1)
    assert got.dtype == torch.float32
    assert got.tolist() == pytest.approx(wanted, abs=1e-6)


def test_the_forty_step_grid_of_sd35_has_a_nearly_null_last_step():
    got = grid(DiffusersSd3(), 40).tolist()
    assert got[:3] == pytest.approx([1, 0.991331, 0.982356], abs=1e-6)
    assert got[-4:] == pytest.approx([0.146509, 0.081046, 0.008929, 0], abs=1e-6)


@pytest.mark.parametrize("steps", [1, 4, 10, 28, 40])
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
def test_the_sd3_grid_is_that_of_the_diffusers_scheduler(steps, shift):
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    torch.testing.assert_close(grid(DiffusersSd3(shift), steps), scheduler.sigmas, rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 4, 6, 28])
@pytest.mark.parametrize("tokens", [16, 256, 1024, 4096])
def test_the_flux_grid_is_that_of_the_diffusers_scheduler_with_mu(steps, tokens):
    import numpy
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    u = numpy.linspace(1.0, 1 / steps, steps)
    dev = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    dev.set_timesteps(sigmas=u, mu=calculate_shift(tokens))
    torch.testing.assert_close(grid(FluxShift(), steps, tokens), dev.sigmas, rtol=0, atol=1e-6)
    schnell = FlowMatchEulerDiscreteScheduler(shift=1.0)
    schnell.set_timesteps(sigmas=u)
    unshifted = FluxShift(base_shift=0, max_shift=0)
    torch.testing.assert_close(grid(unshifted, steps, tokens), schnell.sigmas, rtol=0, atol=1e-6)


@pytest.mark.parametrize("schedule", [Shifted(), DiffusersSd3(), FluxShift()])
@pytest.mark.parametrize("steps", [1, 2, 25])
def test_schedules_fall_from_one_to_zero(schedule, steps):
    sigma = grid(schedule, steps)
    assert sigma.shape == (steps + 1,)
    assert (sigma[0], sigma[-1]) == (1, 0)
    assert (sigma.diff() < 0).all()


# ── Gaussian data with the exact velocity ───────────────────────────────────────────────────────────────────────────

DATA_STD = 0.5


def exact_velocity(x: Tensor, sigma: Tensor) -> Tensor:
    """E[e - x0 | x] for x0 ~ N(0, DATA_STD²)."""
    s2 = DATA_STD**2
    return x * (sigma - (1 - sigma) * s2) / ((1 - sigma) ** 2 * s2 + sigma**2)


def marginal_std(kernel, level: float, steps: int, *, until: int | None = None) -> float:
    """The std of the latents after `until` steps on the plain grid: the kernels are linear, so it needs no samples."""
    sigma = grid(Shifted(3.0), steps).double()
    one_S = torch.ones(steps, dtype=torch.float64)
    factor_S, std_S = kernel(one_S, exact_velocity(one_S, sigma[:-1]), sigma[:-1], sigma[1:], level)
    variance = 1.0
    for factor, std in list(zip(factor_S.tolist(), std_S.tolist()))[:until]:
        variance = factor**2 * variance + std**2
    return math.sqrt(variance)


@pytest.mark.parametrize(
    "kernel, level, steps, wanted",
    [
        (ode, 0.0, 10, 0.37), (flow_sde, 0.7, 10, 0.42),
        (cps, 0.8, 10, 0.31), (cps, 0.8, 25, 0.36), (cps, 0.8, 200, 0.39), (cps, 0.8, 2000, 0.40),
    ],
)  # fmt: skip
def test_few_steps_end_at_the_known_contrast(kernel, level, steps, wanted):
    assert marginal_std(kernel, level, steps) == pytest.approx(wanted, abs=0.005)


@pytest.mark.parametrize("kernel, level", [(ode, 0.0), (flow_sde, 0.7), (dance_sde, 0.3), (ddim, 1.0), (ddim, 0.5)])
def test_all_but_cps_reach_the_data_as_steps_grow(kernel, level):
    errors = [abs(marginal_std(kernel, level, steps) - DATA_STD) for steps in (10, 25, 200, 2000)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.0025


def test_only_flow_sde_begins_with_too_much_noise():
    # By hand: the mean keeps 1 - a²/2 - δ of x (there v = x), so the variance is (1 - .245 - .0357)² + .7².
    assert marginal_std(flow_sde, 0.7, 10, until=1) == pytest.approx(math.sqrt((0.755 - 1 / 28) ** 2 + 0.49), abs=1e-6)
    for kernel, level in ((ode, 0.0), (dance_sde, 0.3), (cps, 0.8), (ddim, 1.0)):
        assert marginal_std(kernel, level, 10, until=1) == pytest.approx(0.9643, abs=1e-3)


@each_noisy_kernel
def test_sampling_has_the_marginal_that_the_variances_predict(kernel, level):
    sigma = grid(Shifted(3.0), 10)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 1, generator=generator)
    for i in range(10):
        mean, std = kernel(x, exact_velocity(x, sigma[i]), sigma[i], sigma[i + 1], level)
        x = mean + std * torch.randn(x.shape, generator=generator)
    assert float(x.std()) == pytest.approx(marginal_std(kernel, level, 10), rel=0.02)


# ── DPM-Solver++ ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_dpm_solver_gives_the_hand_worked_numbers():
    x, clean, before = f64(0.4), f64(0.3), f64(0.2)
    sigma, sigma_next, sigma_before = f64(0.6, 0.35, 0.8)
    assert float(dpmpp_2m(x, clean, sigma, sigma_next, before, sigma_before)) == pytest.approx(0.38009435, abs=1e-6)
    assert float(dpmpp_2m(x, clean, sigma, sigma_next, None, None)) == pytest.approx(0.35833333, abs=1e-6)


@pytest.mark.parametrize("sigma, sigma_next", [(1.0, 0.9), (0.6, 0.35), (0.1, 0.0)])
def test_without_history_dpm_solver_is_the_euler_step(sigma, sigma_next):
    x, v, _ = random_step(2, 3)
    sigma, sigma_next = f64(sigma, sigma_next)
    got = DpmSolverPP().step(x, v, sigma, sigma_next, [])
    torch.testing.assert_close(got, Euler().step(x, v, sigma, sigma_next, []), rtol=1e-12, atol=1e-12)


def test_dpm_solver_ignores_history_from_pure_noise_and_ends_at_the_clean_estimate():
    x, v, before = random_step(2, 3)
    one, high, low, zero = f64(1, 0.6, 0.35, 0)
    first_order = DpmSolverPP().step(x, v, high, low, [])
    torch.testing.assert_close(DpmSolverPP().step(x, v, high, low, [one, before]), first_order)
    torch.testing.assert_close(DpmSolverPP().step(x, v, low, zero, [high, before]), x - low * v)


def solver_error(solver, steps: int) -> float:
    """|x at σ = .05 - the exact ODE solution|, from σ = .95 in equal steps of the log signal-to-noise ratio."""
    log_snr = torch.linspace(math.log(0.05 / 0.95), math.log(0.95 / 0.05), steps + 1, dtype=torch.float64)
    sigma = torch.sigmoid(-log_snr)
    x = torch.ones(1, 1, dtype=torch.float64)
    history: list[Tensor] = []
    for i in range(steps):
        v = exact_velocity(x, sigma[i])
        clean = x - sigma[i] * v
        x = solver.step(x, v, sigma[i], sigma[i + 1], history)
        history = [sigma[i], clean]
    spread = (1 - sigma) ** 2 * DATA_STD**2 + sigma**2
    return abs(float(x) - math.sqrt(spread[-1] / spread[0]))


def test_dpm_solver_converges_with_a_higher_order_than_euler():
    def order(solver) -> float:
        return math.log2(solver_error(solver, 40) / solver_error(solver, 80))

    assert order(Euler()) == pytest.approx(1, abs=0.15)
    assert order(DpmSolverPP()) == pytest.approx(2, abs=0.3)
    assert solver_error(DpmSolverPP(), 20) < solver_error(Euler(), 20) / 4
