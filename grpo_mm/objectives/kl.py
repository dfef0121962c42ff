"""Staying close to the reference policy, in every form that is in circulation, each under its own name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from grpo_mm.objectives.aggregate import Aggregate, aggregate_weight
from grpo_mm.objectives.clipped_ratio import MAX_LOG_RATIO
from grpo_mm.objectives.ratio import log_ratio
from grpo_mm.types import Couples, Term, View

KlForm = Literal["k1", "k2", "k3", "abs", "weighted_k3", "gaussian", "gaussian_no_dt", "mean_shift", "velocity"]

_NEEDS: dict[str, set[str]] = {
    "k1": {"logprobs", "ref_logprobs"},
    "k2": {"logprobs", "ref_logprobs"},
    "k3": {"logprobs", "ref_logprobs"},
    "abs": {"logprobs", "ref_logprobs"},
    "weighted_k3": {"logprobs", "ref_logprobs"},
    "gaussian": {"mean_shift_ref", "std"},
    "gaussian_no_dt": {"mean_shift_ref", "std", "dt"},
    "mean_shift": {"mean_shift_ref"},
    "velocity": {"velocity_shift_ref"},
}


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """log π - log π_ref: unbiased in value; its gradient in a loss has expectation zero."""
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """½ (log π - log π_ref)²: biased in value, its gradient is that of the true KL on-policy."""
    return 0.5 * (logprobs - ref_logprobs) ** 2


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """π_ref/π - 1 - log(π_ref/π): unbiased in value and never negative (arXiv:2402.03300, eq. 4).

    An action that the reference finds more than e^20 times likelier counts as that, and has no gradient: the exponential of the
    gap would overflow and cost the whole update.
    """
    gap = (ref_logprobs - logprobs).clamp(max=MAX_LOG_RATIO)
    return gap.expm1() - gap


def abs_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """|log π - log π_ref|: biased in value; its gradient pulls each action towards the reference with the same force.

    What libraries call the KL penalty "abs"; no paper. Grade C. Where the two agree the gradient is 0.
    """
    return (logprobs - ref_logprobs).abs()


def weighted_k3(logprobs: Tensor, ref_logprobs: Tensor, log_ratio: Tensor) -> Tensor:
    """π/π_old · k3, with the gradient of both factors: unbiased in value and in gradient for samples of π_old.

    On-policy the value is that of `k3`; the gradient gains (log-probability's gradient) · k3, which makes it that of the true KL.

    Source: arXiv:2512.02556 (DeepSeek-V3.2), section 3.1, "unbiased KL estimate". Grade C: written down from its text. Deviates: the
    log-ratio is bounded as in the surrogate, and beyond the bound there is no gradient.
    """
    ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()
    # The slopes of the factors add up to ratio · k1. Left to autograd, both are near e^20 where the reference is far above, and
    # what rounding or a bound leaves of their sum pushes away from it.
    slope = (ratio * (logprobs - ref_logprobs) * (log_ratio <= MAX_LOG_RATIO)).detach()
    return straight_through(ratio * k3(logprobs, ref_logprobs), slope * (logprobs - logprobs.detach()))


def straight_through(value: Tensor, gradient: Tensor) -> Tensor:
    """`value` in the forward pass with the gradient of `gradient`, in the same shape."""
    return gradient + (value - gradient).detach()


def gaussian_kl(mean_shift: Tensor, std: Tensor) -> Tensor:
    """KL of two Gaussians of equal `std` whose means differ by `mean_shift` = mean over elements of Δμ²; per element."""
    return mean_shift / (2 * std**2)


@dataclass(frozen=True)
class Kl:
    """β · KL(π ‖ π_ref) as a term of the loss.

    gaussian: mean(Δμ²)/(2 g²δ), the exact KL of one step (arXiv:2505.05470; β .004).
    gaussian_no_dt: mean(Δμ²)/(2 g²), as the released SD3 trainer has it (β .04); g² = std²/δ.
    mean_shift: mean(Δμ²) (the CPS fork).   velocity: mean((v - v_ref)²) (AWM, NFT).
    k1, k2, k3, abs (|k1|), weighted_k3 (k3 times the ratio to the policy that sampled): estimates from log-probabilities. Values of β are not comparable between forms.
    """

    form: KlForm = "k3"
    weight: float = 0.04
    aggregate: Aggregate = "token"
    to: Literal["ref", "ema"] = "ref"
    """ema: the run's averaged weights in place of the reference; for the form velocity."""
    gate: str | None = None
    """A column that an advantage stage makes: only actions where it is 1 are held back (GARDO: kl_gate)."""
    straight_through: bool = False
    """For k1 and k3: their value with the gradient of k2, which is that of the true KL on-policy."""

    def __post_init__(self) -> None:
        if self.to == "ema" and self.form != "velocity":
            raise ValueError(f"to = ema goes with form = velocity, found {self.form}.")
        if self.straight_through and self.form not in ("k1", "k3"):
            raise ValueError(f"straight_through goes with form = k1 or k3, found {self.form}.")

    reads_advantage = False

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(_NEEDS[self.form] if self.to == "ref" else {"velocity_shift_ema"})

    @property
    def columns(self) -> frozenset[str]:
        return frozenset() if self.gate is None else frozenset({self.gate})

    @property
    def couples(self) -> Couples:
        return "action"

    def __call__(self, values: Mapping[str, Tensor], view: View) -> Term:
        kl = self._kl(values, view)
        weight, denominator = aggregate_weight(view, self.aggregate)
        gate = 1.0 if self.gate is None else view.columns[self.gate].to(kl.dtype)
        name = f"{self.to}_kl"
        return Term(name, self.weight * gate * kl, weight, denominator, stats={name: kl.detach()})

    def _kl(self, values: Mapping[str, Tensor], view: View) -> Tensor:
        if self.form == "weighted_k3":
            now = values["logprobs"]
            return weighted_k3(now, values["ref_logprobs"], log_ratio(now, view.old_logprobs, view.mask))
        if self.form == "abs":
            return abs_k1(values["logprobs"], values["ref_logprobs"])
        if self.form in ("k1", "k2", "k3"):
            pair = values["logprobs"], values["ref_logprobs"]
            kl = {"k1": k1, "k2": k2, "k3": k3}[self.form](*pair)
            return straight_through(kl, k2(*pair)) if self.straight_through else kl
        if self.form == "gaussian":
            return gaussian_kl(values["mean_shift_ref"], values["std"])
        if self.form == "gaussian_no_dt":
            return gaussian_kl(values["mean_shift_ref"], values["std"] / values["dt"].sqrt())
        return values["mean_shift_ref" if self.form == "mean_shift" else f"velocity_shift_{self.to}"]
