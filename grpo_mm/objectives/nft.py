"""DiffusionNFT: flow matching on finished samples, towards an implicit better policy and away from an implicit worse one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from grpo_mm.objectives.aggregate import Aggregate, aggregate_weight
from grpo_mm.types import Couples, Term, View


def optimality(advantage: Tensor, *, limit: float = 5.0) -> Tensor:
    """r = clip(½ + ½·A/limit, 0, 1): the probability that a sample is a good one, any shape.

    Source: arXiv:2509.16117 (DiffusionNFT), eq. 11, with the released code's A (normalised, bounded by `limit`) for the
    paper's (R - mean)/Z.
    """
    return (0.5 + 0.5 * advantage / limit).clamp(0, 1)


def nft_loss(nft_plus: Tensor, nft_minus: Tensor, optimality: Tensor, *, beta: float) -> Tensor:
    """r/β · ‖x̂0⁺ - x0‖²/w⁺ + (1 - r)/β · ‖x̂0⁻ - x0‖²/w⁻, any shape.

    `nft_plus`, `nft_minus`: the self-normalised errors of the implicit policies, mean over elements.

    Source: arXiv:2509.16117, eq. 12 and section 3.3; released code.
    """
    return (optimality * nft_plus + (1 - optimality) * nft_minus) / beta


@dataclass(frozen=True)
class Nft:
    """`nft_loss` over the draws of a forward process, on {kind: forward_process}, whose `beta` it divides by.

    The released code multiplies by the bound of the advantages (5): `weight`.
    """

    advantage_limit: float = 5.0
    """Advantages are bounded to it and divided by it."""
    weight: float = 5.0
    """Of this term in the loss."""
    aggregate: Aggregate = "token"
    """What the loss is a mean over: all tokens or actions, rows (row, row_sum), or a constant length."""

    def __post_init__(self) -> None:
        if self.advantage_limit <= 0:
            raise ValueError(f"advantage_limit = {self.advantage_limit}; wanted above 0.")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"nft_plus", "nft_minus", "beta"})

    @property
    def couples(self) -> Couples:
        return "action"

    def __call__(self, values: Mapping[str, Tensor], view: View) -> Term:
        r = optimality(view.advantage.to(values["nft_plus"].dtype), limit=self.advantage_limit)
        loss = nft_loss(values["nft_plus"], values["nft_minus"], r, beta=values["beta"])
        weight, denominator = aggregate_weight(view, self.aggregate)
        stats = {name: values[name].detach() for name in ("nft_plus", "nft_minus")} | {"optimality": r}
        return Term("policy", self.weight * loss, weight, denominator, stats=stats)
