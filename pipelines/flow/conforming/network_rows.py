"""What the network is given and says, at latents and a noise level of the plain pipeline: text states, time, positions, guidance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.findings import Finding, row
from grpo_mm.pipelines.flow.conforming.heard import Call, Heard, listening
from grpo_mm.pipelines.flow.conforming.pictured import picture_row
from grpo_mm.pipelines.flow.conforming.plain import Drawing, Plain
from grpo_mm.pipelines.flow.own_schedule import grid_of, own_schedule
from grpo_mm.pipelines.flow.policy import FlowPolicy
from grpo_mm.types import Prompt

SHARES = {torch.float32: 1e-4, torch.bfloat16: 0.08, torch.float64: 1e-6}
"""Bounds of what networks say, as `measure` measures it."""
INPUTS = {torch.float32: 1e-4, torch.bfloat16: 0.02, torch.float64: 1e-6}
"""Of what they are given."""
TIME = ("timestep", "t")
AT = 1
"""The step that is looked at: its noise level is below 1."""
KINDS = {
    "text": ("text states", "another hidden layer, template, cut, padding or mask of the text"),
    "time": ("time of the network", "another unit, or from the other end: σ, σ · 1000 or 1 - σ"),
    "guidance": ("guidance", "dropped, or another scale"),
    "other": ("network input", "positions, sizes or latents in another order"),
}
"""Of arguments of a network: what they are called in the table, and what is usually wrong."""


def prompts_of(how: Drawing) -> tuple[Prompt, ...]:
    pairs = zip(how.texts, how.pictures, strict=True)
    return tuple(Prompt(f"conform/{i}", text, media=pictures) for i, (text, pictures) in enumerate(pairs))


def looked_at(plain: Plain) -> dict[str, int]:
    """Network of the pipeline → the step at which it is looked at: AT, or the first at which the plain pipeline asks it."""
    each = len(plain.heard.calls) // len(plain.heard.steps)
    asked = [call.network for call in plain.heard.calls[::each]]
    return {name: AT if asked[AT] == name else asked.index(name) for name in dict.fromkeys(asked)}


def of_network(name: str, plain: Plain) -> str:
    """What is put behind the name of a row where there are two."""
    return f", {name}" if len(looked_at(plain)) > 1 else ""


def drawn_of(policy: FlowPolicy, latents: Tensor) -> Tensor:
    """What of latents, or of their velocity, a network draws, where a part of them is given."""
    return policy.family.drawn(latents) if hasattr(policy.family, "drawn") else latents


def velocity_at(policy: FlowPolicy, plain: Plain, how: Drawing, step: int = AT) -> tuple[Tensor, Heard]:
    """Our guided velocity at the latents that the plain pipeline had, and what the network was asked on the way."""
    x = plain.heard.steps[step].before.to(policy.device, policy.math_dtype)
    sigma = _timed(policy, plain.sigma_S1[step]).to(x).expand(len(x))
    prompts, said = prompts_of(how), []
    with listening(policy.pipe) as heard, torch.no_grad():
        for batch in how.batches:
            condition = policy.encode([prompts[i] for i in batch], size=how.size)
            said.append(policy.velocity(x[batch], sigma[batch], condition, size=how.size, guidance=how.guidance))
    velocity = torch.cat(said)
    return velocity.cpu(), heard


def _timed(policy: FlowPolicy, sigma: Tensor) -> Tensor:
    """The noise level that the checkpoint's own pipeline tells its network there."""
    try:
        return own_schedule(policy.pipe, **grid_of(policy.family)).timed(sigma)
    except ConfigError:  # it has no grid that can be followed, which a row of its own says
        return sigma


def network_rows(policy: FlowPolicy, plain: Plain, how: Drawing) -> Iterator[Finding]:
    """One row for each argument of the network, then what it says, then what is made of it."""
    shape = tuple(plain.heard.steps[AT].before.shape[1:])
    ours = tuple(policy.family.latent_shape(policy.pipe, *how.size))
    yield row("shape of latents", float(shape != ours), 0, f"{ours} here, {shape} in the plain pipeline")
    if shape != ours:
        return
    if len(looked_at(plain)) > 1:
        yield _routing(policy, plain, how)
    for name, at in looked_at(plain).items():
        yield from _at_step(policy, plain, how, at, of_network(name, plain))


def _routing(policy: FlowPolicy, plain: Plain, how: Drawing) -> Finding:
    """Which of two networks says the velocity at each step."""
    each = len(plain.heard.calls) // len(plain.heard.steps)
    steps = range(len(plain.heard.steps))
    there = [plain.heard.calls[step * each].network for step in steps]
    heard = [velocity_at(policy, plain, how, step)[1].calls for step in steps]
    here = [" and ".join(dict.fromkeys(call.network for call in calls)) for calls in heard]
    words = f"here {', '.join(here)}; plain {', '.join(there)}"
    wrong = sum(a != b for a, b in zip(here, there))
    return row(
        "network of each step",
        float(wrong),
        0,
        words,
        "rows go to the wrong expert: another boundary, or the other way round",
    )


def _at_step(policy: FlowPolicy, plain: Plain, how: Drawing, at: int, which: str) -> Iterator[Finding]:
    velocity, heard = velocity_at(policy, plain, how, at)
    each = len(plain.heard.calls) // len(plain.heard.steps)
    there = plain.heard.calls[at * each : (at + 1) * each]
    here_rows, there_rows = (sum(len(call.output) for call in calls) for calls in (heard.calls, there))
    words = f"{here_rows} here, {there_rows} in the plain pipeline, for {len(how.texts)} latents"
    yield row(
        f"rows through the network{which}", float(abs(here_rows - there_rows)), 0, words, "guidance dropped, or doubled"
    )
    bound, apart_of = SHARES[policy.dtype], measure(policy.dtype)
    if len(heard.calls) == each and here_rows == there_rows:
        shape = plain.heard.steps[at].before.shape[1:]
        yield from picture_row(heard.calls, there, shape, bound, apart_of, which)
        yield from _inputs(heard.calls, there, policy.dtype, which)
        apart = max(apart_of(a.output, b.output) for a, b in zip(heard.calls, there))
        yield row(f"network, one call{which}", apart, bound, "of the same inputs", "other weights or precision")
    apart = apart_of(drawn_of(policy, velocity), drawn_of(policy, plain.heard.steps[at].velocity))
    cause = "guidance dropped, of another form or strength, not renormalised, or a velocity of the other sign"
    yield row(f"guided velocity{which}", apart, bound, "what the scheduler is given", cause)


def _inputs(ours: Sequence[Call], plain: Sequence[Call], dtype: torch.dtype, which: str) -> Iterator[Finding]:
    """The worst of all calls by argument: of the text first, then of time and guidance, then the others."""
    bound, apart_of = INPUTS[dtype], measure(dtype)
    names = list(dict.fromkeys(name for call in (*plain, *ours) for name in call.inputs))
    for name in sorted(names, key=lambda name: list(KINDS).index(_kind(name))):
        label, cause = KINDS[_kind(name)]
        apart = max(apart_of(a.inputs.get(name), b.inputs.get(name)) for a, b in zip(ours, plain))
        yield row(
            f"{label}: {name}{which}", apart, bound, "as the network is given it", cause + _where(name, ours, plain)
        )


def _kind(name: str) -> str:
    if name in TIME or name == "guidance":
        return "guidance" if name == "guidance" else "time"
    is_text = any(part in name for part in ("encoder", "pooled", "txt", "text", "cap", "prompt"))
    return "text" if is_text and "image" not in name else "other"


def _where(name: str, ours: Sequence[Call], plain: Sequence[Call]) -> str:
    """What of an argument is absent or has another shape."""
    for a, b in zip(ours, plain):
        here, there = a.inputs.get(name), b.inputs.get(name)
        if (here is None) != (there is None):
            return f"; {'not given here' if here is None else 'given here, not in the plain pipeline'}"
        if isinstance(here, Tensor) and isinstance(there, Tensor) and here.shape != there.shape:
            return f"; {tuple(here.shape)} here, {tuple(there.shape)} in the plain pipeline"
    return ""


def measure(dtype: torch.dtype) -> Callable[[Any, Any], float]:
    """How far apart two things are that were computed in `dtype`."""
    return partial(apart_of, overall=dtype == torch.bfloat16)


def said_of_measure(dtype: torch.dtype) -> Finding:
    words = {True: "root mean square of a difference, as a share of the value's: the largest is a matter of rounding",
             False: "the largest difference, as a share of the largest value"}  # fmt: skip
    name = str(dtype).removeprefix("torch.")
    return Finding("figures", math.nan, 0, f"in {name}: {words[dtype == torch.bfloat16]}", asked=False)


def apart_of(one: Any, other: Any, *, overall: bool = False) -> float:
    """The largest difference as a share of the largest value; infinite for what is absent, of another shape or unlike.

    overall: of fractions, the root mean square of the difference as a share of the value's instead.
    """
    if one is None and other is None:
        return 0.0
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and any(isinstance(v, Tensor) for v in one):
        each = partial(apart_of, overall=overall)
        return max(map(each, one, other)) if len(one) == len(other) else math.inf
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return 0.0 if not isinstance(one, Tensor) and not isinstance(other, Tensor) and one == other else math.inf
    overall = overall and other.is_floating_point()
    one, other = (v if v.dim() else v[None] for v in (one.double().cpu(), other.double().cpu()))
    if one.numel() != other.numel() or (one.shape != other.shape and one.squeeze().shape != other.squeeze().shape):
        return math.inf
    gap, size = one.squeeze() - other.squeeze(), other
    gap, size = ((v.square().mean().sqrt() if overall else v.abs().max()) for v in (gap, size))
    return math.inf if math.isnan(float(gap)) else float(gap) / max(float(size), 1e-12)
