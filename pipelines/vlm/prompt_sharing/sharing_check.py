"""Whether the shared form gives what the repeated form does."""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.vlm.forwards.network import Network
from grpo_mm.pipelines.vlm.prompting.record import TextRecord

Values = tuple[Tensor, Tensor | None]
"""Log-probabilities and, where asked for, entropies."""

LOGPROB = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Most that log-probabilities may differ by: the largest difference in float32, the mean in bfloat16, where single tokens of a
sharp distribution are 0.07 apart by rounding alone (and 0.13 from float32, random weights)."""
GRADIENT = {torch.float32: 1e-4, torch.bfloat16: 1e-1}
"""Most that a gradient may differ by, relative to its norm; rounding alone makes 0.04 in bfloat16 (0.08 from float32)."""


def compare(found: Values, wanted: Values, record: TextRecord, network: Network, *, gradients: bool) -> None:
    """Compares two forms of the same rows, log-probabilities [n, A] and the gradients of a few weights.

    Raises:
        ConfigError: they differ by more than rounding.
    """
    precision = network.precision
    gap_nA = (found[0] - wanted[0]).detach().abs()
    inside_nA = (torch.arange(gap_nA.shape[1]) < record.length_N[:, None]).to(gap_nA.device)
    gap = float(gap_nA.max() if precision == torch.float32 else gap_nA[inside_nA].mean())
    if not gap < LOGPROB[precision]:
        row, at = divmod(int(gap_nA.argmax()), gap_nA.shape[1])
        prompt = record.contexts[int(record.context_N[row])].prompt_id
        raise ConfigError(
            f"policy.prefix_sharing = check: with a shared prompt a log-probability differs by {gap:.2g} (most at token {at + 1} "
            f"of an answer to {prompt!r}); {LOGPROB[precision]:g} is allowed in {str(precision).removeprefix('torch.')}. {_ADVICE}"
        )
    if not gradients or not found[0].requires_grad:
        return
    named = [(name, p) for name, p in network.model.named_parameters() if p.requires_grad]
    named = named[:: max(1, len(named) // 8)]
    first, second = (_gradients(values[0], [p for _, p in named]) for values in (found, wanted))
    for (name, _), one, other in zip(named, first, second):
        norm = float(other.norm())
        difference = float((one - other).norm()) / norm if norm else float(one.norm())
        if not difference < GRADIENT[precision]:
            raise ConfigError(
                f"policy.prefix_sharing = check: with a shared prompt the gradient of {name} differs by {difference:.2g} of its "
                f"norm; {GRADIENT[precision]:g} is allowed. {_ADVICE}"
            )


_ADVICE = "Set policy.prefix_sharing to off, and tell us the model and the version of transformers."


def _gradients(values: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """Of a sum that weighs all tokens differently."""
    weight = torch.linspace(0.5, 1.5, values.numel(), device=values.device).view_as(values)
    found = torch.autograd.grad((values * weight).sum(), parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found)]
