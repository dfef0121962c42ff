"""One optimiser update: the exact gradient of a sum of terms, however the actions are cut into forwards.

Where the objective couples more actions than one forward holds, the gradient takes two passes. The first computes the
policy's values without gradient for the whole update; the objective on those leaves gives c = ∂L/∂value. The second
runs each forward with gradient and backpropagates (c · value).sum().
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from grpo_mm.processes.clock import phase
from grpo_mm.processes.distributed import Processes
from grpo_mm.processes.progress import report
from grpo_mm.types import BEHAVIOUR, ORDER, Counts, Couples, Credit, Objective, Rollout, Term, View


class Replays(Protocol):
    """What an update needs of a policy."""

    @property
    def unit(self) -> Couples:
        """The largest set of actions that one forward never splits: "action" or "row"."""
        ...

    def plan(self, rollout: Rollout, mask_NA: Tensor) -> list[Tensor]:
        """Forwards that cover the masked actions: flat positions into [N · A], each of any shape."""
        ...

    def logprobs(
        self, rollout: Rollout, plan: Sequence[Tensor], *, needs: frozenset[str], grad: bool
    ) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        """For each forward of the plan, in order: its positions and the named values there, in the same shape.

        Positions may be empty, on a rank that has run out: then so are the values; their graph still reaches the weights.
        The consumer runs backward before it asks for the next one; an engine that shares a prefix may finish its own
        backward after the last.
        """
        ...


@dataclass(frozen=True)
class UpdateResult:
    """What one accumulation found, the same on every rank."""

    loss: float
    terms: Mapping[str, float]
    stats: Mapping[str, float]
    logprob_gap: float
    """max |log-prob now - log-prob of the engine that sampled|, infinite where the former is NaN; zero to rounding
    while the weights are unchanged."""
    num_forwards: int


def make_view(rollout: Rollout, credit: Credit, mask_NA: Tensor, old_NA: Tensor, processes: Processes) -> View:
    """The [N, A] view of one update; actions that the credit leaves out are masked, the counts are global."""
    mask_NA = mask_NA & credit.keep_NA.to(mask_NA.device)
    row_actions_N = mask_NA.sum(1)
    device, shape = mask_NA.device, mask_NA.shape
    counts = Counts(
        actions=max(1.0, processes.sum(float(mask_NA.sum()))),
        rows=max(1.0, processes.sum(float((row_actions_N > 0).sum()))),
        max_actions=shape[1],
    )
    dtype = old_NA.dtype
    return View(
        old_logprobs=old_NA,
        advantage=credit.advantage_NA.to(device=device, dtype=dtype),
        mask=mask_NA.to(dtype),
        row=torch.arange(shape[0], device=device)[:, None].expand(shape),
        group=rollout.prompt_N.to(device)[:, None].expand(shape),
        row_actions=row_actions_N.clamp_min(1).to(dtype)[:, None].expand(shape),
        counts=counts,
        columns={name: column.to(device=device, dtype=dtype) for name, column in credit.columns.items()},
    )


def accumulate(
    policy: Replays, rollout: Rollout, objective: Sequence[Objective], view: View, processes: Processes
) -> UpdateResult:
    """Adds the gradient of the objective to the policy's parameters and says what it saw."""
    view = _with_columns(view, rollout, objective)
    plan = _padded(policy.plan(rollout, view.mask.bool()), processes, rollout)
    needs = frozenset().union(*(term.needs for term in objective))
    coupled = max((term.couples for term in objective), key=ORDER.index)
    log = _Log()
    if ORDER.index(coupled) <= ORDER.index(policy.unit):
        for index, values in policy.logprobs(rollout, plan, needs=needs, grad=True):
            trained = _trained(values, view.at(index))
            here = _with_old(view.at(index), trained)
            terms = [term(trained, here) for term in objective]
            with phase("train_network"):
                _backward(sum(t.value() for t in terms), index)
            log.add(terms, here)
            log.gap(values, rollout, index, here)
            log.entropy(values, here)
            log.forward_is_done(len(plan))
    else:
        leaves = _values_without_grad(policy, rollout, plan, needs, view, log)
        view = _with_old(view, leaves)
        gradient = _gradient_of_values(objective, leaves, view, processes, coupled, log)
        for index, values in policy.logprobs(rollout, plan, needs=needs, grad=True):
            trained = _trained(values, view.at(index))
            parts = [(gradient[k].flatten()[index] * v).sum() for k, v in trained.items() if v.requires_grad]
            with phase("train_network"):
                _backward(sum(parts), index)
            log.forward_is_done(len(plan))
    return log.result(processes, len(plan))


def _backward(loss: Any, index: Tensor) -> None:
    """Of a forward of nothing, whose stand-in may have gone through a network that is not trained, there may be no gradient."""
    if index.numel() or getattr(loss, "requires_grad", False):
        loss.backward()


def _with_columns(view: View, rollout: Rollout, objective: Sequence[Objective]) -> View:
    """The view with what the terms read of the rollout beside the columns that stages made: [N, A] each."""
    columns = dict(view.columns)
    for name in sorted(
        frozenset().union(*(getattr(term, "columns", frozenset()) for term in objective)) - set(columns)
    ):
        if name != BEHAVIOUR and name not in rollout.columns:
            known = ", ".join(sorted({BEHAVIOUR, *columns, *rollout.columns}))
            raise ValueError(f"the objective reads the column {name!r}, which nothing declares; there are: {known}.")
        column = rollout.behaviour_NA if name == BEHAVIOUR else rollout.columns[name]
        column = column.to(view.mask.device)
        columns[name] = column if column.dim() == 2 else column[:, None].expand(view.mask.shape)
    return replace(view, columns=columns)


def _padded(plan: list[Tensor], processes: Processes, rollout: Rollout) -> list[Tensor]:
    """At least one forward, so that an update in which nothing is trained still has its terms, and a gradient of 0.

    Processes that hold all weights each make as many as the busiest; others need not, and without rows they make none.
    """
    empty = [torch.zeros(0, dtype=torch.int64)]
    if processes.cuts_weights:
        return plan or empty * min(1, rollout.num_rows)
    longest = max(1, int(processes.max(len(plan))))
    return plan + empty * (longest - len(plan))


def _trained(values: Mapping[str, Tensor], view: View) -> dict[str, Tensor]:
    """The values where actions are trained, 1 elsewhere: what a policy gives for padding has no loss and no gradient."""
    return {name: torch.where(view.mask.bool(), value, 1.0) for name, value in values.items()}


def _with_old(view: View, values: Mapping[str, Tensor]) -> View:
    """The view with the values themselves, detached, where no log-probabilities were kept."""
    if "logprobs" not in values:
        return view
    old = view.old_logprobs
    return replace(view, old_logprobs=torch.where(old.isnan(), values["logprobs"].detach().to(old.dtype), old))


def _values_without_grad(
    policy: Replays, rollout: Rollout, plan: list[Tensor], needs: frozenset[str], view: View, log: _Log
) -> dict[str, Tensor]:
    leaves: dict[str, Tensor] = {}
    for index, values in policy.logprobs(rollout, plan, needs=needs, grad=False):
        here = view.at(index)
        log.gap(values, rollout, index, here)
        log.entropy(values, here)
        for name, value in _trained(values, here).items():
            leaf = leaves.setdefault(name, torch.ones_like(view.old_logprobs, dtype=value.dtype))
            leaf.view(-1)[index.flatten()] = value.detach().flatten()
    return leaves


def _gradient_of_values(
    objective: Sequence[Objective],
    leaves: dict[str, Tensor],
    view: View,
    processes: Processes,
    coupled: Couples,
    log: _Log,
) -> dict[str, Tensor]:
    """∂L/∂value [N, A] of this rank's rows; sets that reach over ranks are gathered whole first."""
    mine = slice(0, view.mask.shape[0])
    whole, local_rows = view, view.mask.shape[0]
    gathers = processes.world > 1 and coupled in ("group", "update")
    if not leaves and not gathers:  # no rows: nothing to train, and nobody waits
        return {}
    if gathers:
        leaves = _named_alike(leaves, view, processes)
        rows = processes.gather(local_rows)
        start = sum(rows[: processes.rank])
        mine = slice(start, start + local_rows)
        device = view.mask.device
        leaves = {k: _join(processes, v).to(device) for k, v in leaves.items()}
        whole = view.map(lambda value: _join(processes, value).to(device))
        whole = replace(whole, row=torch.arange(sum(rows), device=device)[:, None].expand_as(whole.mask))
    leaves = {k: v.requires_grad_() for k, v in leaves.items()}
    terms = [term(leaves, whole) for term in objective]
    share = 1.0 if whole is view else 1.0 / processes.world
    log.add(terms, whole, share=share)
    # Added up with nothing of every leaf: a set loss that found no set to work on has a gradient, of 0.
    total = sum((leaf.flatten()[:0].sum() for leaf in leaves.values()), start=sum(t.value() for t in terms))
    grads = torch.autograd.grad(total, list(leaves.values()))
    return {k: g[mine] for k, g in zip(leaves, grads, strict=True)}


def _named_alike(leaves: dict[str, Tensor], view: View, processes: Processes) -> dict[str, Tensor]:
    """With the values that others have, on a rank that made no forward."""
    ranks = processes.gather({name: value.dtype for name, value in leaves.items()})
    dtypes = {name: dtype for rank in ranks for name, dtype in rank.items()}
    return {
        name: leaves[name] if name in leaves else torch.ones_like(view.old_logprobs, dtype=dtypes[name])
        for name in sorted(dtypes)
    }


def _join(processes: Processes, value: Tensor) -> Tensor:
    return torch.cat([part for part in processes.gather(value.detach().cpu().contiguous())])


class _Log:
    """Sums over forwards, then over ranks. They stay on the device until the last: a number that is read waits for it."""

    def __init__(self) -> None:
        self._terms: dict[str, Tensor | float] = defaultdict(float)
        self._stats: dict[str, Tensor | float] = defaultdict(float)
        self._gap: Tensor = torch.zeros((), dtype=torch.float64)
        self._forwards = 0

    def add(self, terms: Sequence[Term], view: View, *, share: float = 1.0) -> None:
        for term in terms:
            self._terms[term.name] += share * term.value().detach().double()
            for name, value in term.stats.items():
                self._stats[name] += share * (value.detach() * view.mask).sum().double() / view.counts.actions

    def gap(self, values: Mapping[str, Tensor], rollout: Rollout, index: Tensor, view: View) -> None:
        if "logprobs" in values and index.numel():
            behaviour = rollout.behaviour_NA.flatten()[index].to(values["logprobs"].device)
            difference = (values["logprobs"].detach() - behaviour).abs().nan_to_num(torch.inf, torch.inf)
            difference = difference.masked_fill(behaviour.isnan(), 0)  # rows that no engine sampled
            largest = difference.where(view.mask.bool(), 0).max().double()
            self._gap = torch.maximum(self._gap.to(largest.device), largest)

    def forward_is_done(self, of: int) -> None:
        self._forwards += 1
        report("training, forwards", self._forwards, of)

    def entropy(self, values: Mapping[str, Tensor], view: View) -> None:
        """Its mean over the trained actions, where the objective reads it."""
        if "entropy" in values:
            inside = torch.where(view.mask.bool(), values["entropy"].detach(), 0.0)
            self._stats["entropy"] += inside.sum().double() / view.counts.actions

    def result(self, processes: Processes, num_forwards: int) -> UpdateResult:
        terms, stats = ({name: float(value) for name, value in kept.items()} for kept in (self._terms, self._stats))
        ranks = processes.gather((terms, stats, float(self._gap)))

        def total(which: int) -> dict[str, float]:
            names = sorted(set().union(*(rank[which] for rank in ranks)))
            return {name: sum(rank[which].get(name, 0.0) for rank in ranks) for name in names}

        terms = total(0)
        return UpdateResult(sum(terms.values()), terms, total(1), max(rank[2] for rank in ranks), num_forwards)
