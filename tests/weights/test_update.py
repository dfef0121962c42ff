"""The gradient of an update is that of one piece, however rows, actions and ranks are cut.

Run as a script, this file is one process of the two-process test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from children import free_port
from tiny_runs import PYTHONPATH
from torch import Tensor, nn

from grpo_mm.objectives import ClippedRatio, Kl, RatioNorm, TopEntropy
from grpo_mm.rollout.rows import evaluation_rows, plan_rows, update_mask
from grpo_mm.types import Credit, Prompt, Rollout, Term
from grpo_mm.weights.update import accumulate, make_view

PROMPTS, GROUP, ACTIONS, FEATURES = 4, 4, 3, 5
N = PROMPTS * GROUP


# ── a policy small enough to see through ──


@dataclass(frozen=True)
class Features:
    x_NAD: Tensor
    padding_NA: Tensor

    def take(self, rows: Tensor) -> Features:
        return Features(self.x_NAD[rows], self.padding_NA[rows])


class ToyPolicy:
    """Log-probability log σ(tanh(x·W)·v) of a stored action, NaN at padding; `cut` actions, or rows, in one forward."""

    def __init__(self, *, unit: str = "action", cut: int = 100, shuffle: int | None = None) -> None:
        generator = torch.Generator().manual_seed(1)
        self.w = nn.Parameter(torch.randn(FEATURES, 4, dtype=torch.float64, generator=generator))
        self.v = nn.Parameter(torch.randn(4, dtype=torch.float64, generator=generator))
        self.unit, self.cut, self.shuffle = unit, cut, shuffle
        self.forwards: list[tuple[bool, int]] = []
        self.seen: list[float] = []

    @property
    def params(self) -> list[nn.Parameter]:
        return [self.w, self.v]

    @property
    def gradient(self) -> Tensor:
        return torch.cat([torch.zeros(p.numel()).double() if p.grad is None else p.grad.flatten() for p in self.params])

    def plan(self, rollout, mask_NA: Tensor) -> list[Tensor]:
        position_NA = torch.arange(mask_NA.numel()).view(mask_NA.shape)
        if not mask_NA.any():
            return []
        if self.unit == "row":
            return list(position_NA[mask_NA.any(1)].split(self.cut))
        position = position_NA[mask_NA]
        if self.shuffle is not None:
            position = position[torch.randperm(len(position), generator=torch.Generator().manual_seed(self.shuffle))]
        return list(position.split(self.cut))

    def values(self, rollout: Rollout, index: Tensor) -> dict[str, Tensor]:
        x, padding = rollout.record.x_NAD.flatten(0, 1)[index], rollout.record.padding_NA.flatten()[index]
        score = torch.tanh(x @ self.w) @ self.v
        return {
            "dt": torch.full_like(score, 0.1).detach(),
            "logprobs": F.logsigmoid(score).where(~padding, torch.nan),
            "entropy": F.binary_cross_entropy_with_logits(score, score.sigmoid(), reduction="none").where(
                ~padding, torch.nan
            ),
            "ref_logprobs": F.logsigmoid(x.sum(-1)).where(~padding, torch.nan),
            "gaussian_logprobs": F.logsigmoid(score).where(~padding, torch.nan),
            "mean_shift_old": (score - x.mean(-1)) ** 2,
            "std": (0.2 + x[..., 0] ** 2).where(~padding, 0),
        }

    def logprobs(self, rollout, plan, *, needs, grad) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        for index in plan:
            self.forwards.append((grad, index.numel()))
            self.seen.append(float(self.gradient.abs().sum()))
            with torch.set_grad_enabled(grad):
                values = self.values(rollout, index)
            yield index, {k: v for k, v in values.items() if k in needs | {"dt"}}


def make_rollout(rows: Tensor | None = None) -> Rollout:
    """4 prompts × 4 samples × 3 actions, or some rows of it; row 2 lacks its last action, row 5 its first two."""
    generator = torch.Generator().manual_seed(2)
    mask_NA = torch.ones(N, ACTIONS, dtype=torch.bool)
    mask_NA[2, 2] = mask_NA[5, 0] = mask_NA[5, 1] = False
    whole = Rollout(
        prompts=tuple(Prompt(f"p{i}", "text") for i in range(PROMPTS)),
        prompt_N=torch.arange(PROMPTS).repeat_interleave(GROUP),
        sample_N=torch.arange(GROUP).repeat(PROMPTS),
        behaviour_NA=-torch.rand(N, ACTIONS, dtype=torch.float64, generator=generator),
        mask_NA=mask_NA,
        record=Features(torch.randn(N, ACTIONS, FEATURES, dtype=torch.float64, generator=generator), ~mask_NA),
    )
    return whole if rows is None else whole.take(rows)


def make_credit(rows: Tensor | None = None) -> Credit:
    """Row 7 is left out, and with row 8..11 a whole group."""
    advantage_NA = torch.randn(N, ACTIONS, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    keep_N = torch.ones(N, dtype=torch.bool)
    keep_N[[7, 8, 9, 10, 11]] = False
    rows = torch.arange(N) if rows is None else rows
    return Credit(advantage_NA[rows], keep_N[rows, None].expand(-1, advantage_NA.shape[1]))


class Alone:
    rank, world, cuts_weights = 0, 1, False

    def gather(self, thing):
        return [thing]

    def sum(self, value):
        return float(sum(self.gather(value)))

    def max(self, value):
        return float(max(self.gather(value)))


@dataclass
class Meeting:
    """Where the threads of a pretended world meet."""

    world: int
    table: dict[int, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.world, timeout=60)


class OneOfMany(Alone):
    def __init__(self, rank: int, meeting: Meeting) -> None:
        self.rank, self.world, self.meeting = rank, meeting.world, meeting

    def gather(self, thing):
        self.meeting.table[self.rank] = thing
        self.meeting.barrier.wait()
        things = [self.meeting.table[rank] for rank in range(self.world)]
        self.meeting.barrier.wait()
        return things


# ── losses that couple more than an action, as methods to come will have them ──


def row_log_ratio(values, view) -> tuple[Tensor, Tensor]:
    """(mean log-ratio, whether the row is trained) of each row, [N]."""
    log_ratio = (values["logprobs"] - view.old_logprobs) * view.mask
    return log_ratio.sum(1) / view.row_actions[:, 0], view.mask.any(1)


@dataclass(frozen=True)
class StandardisedRegression:
    """Within each group, the standardised log-ratios of its rows should be the advantages."""

    needs = frozenset({"logprobs"})
    couples = "group"

    def __call__(self, values, view) -> Term:
        ratio_N, trained_N = row_log_ratio(values, view)
        loss_N = torch.zeros_like(ratio_N)
        for group in view.group[:, 0].unique():
            rows = (view.group[:, 0] == group) & trained_N
            if rows.sum() > 1:
                z = (ratio_N[rows] - ratio_N[rows].mean()) / ratio_N[rows].std(correction=0)
                loss_N = loss_N.masked_scatter(rows, (z - view.advantage[rows].mean(1)) ** 2)
        loss = loss_N[:, None].expand_as(view.mask)
        return Term("regression", loss, view.mask / view.row_actions, view.counts.rows, stats={"error": loss})


@dataclass(frozen=True)
class SetLoss:
    """Good rows of the whole update against a soft maximum of the bad ones."""

    needs = frozenset({"logprobs"})
    couples = "update"

    def __call__(self, values, view) -> Term:
        ratio_N, trained_N = row_log_ratio(values, view)
        good_N = view.advantage.mean(1) > 0
        loss = ratio_N[trained_N & ~good_N].logsumexp(0) - ratio_N[trained_N & good_N].mean()
        return Term("set", loss, torch.ones_like(loss), 1.0)


OBJECTIVES = {
    "action": [ClippedRatio(clip_low=0.3, clip_high=0.3), Kl(form="k3", aggregate="row")],
    "row": [
        ClippedRatio(clip_low=0.3, clip_high=0.3, ratio="row", aggregate="row", step_weight="inverse_dt"),
        Kl(form="k2"),
    ],
    "ratio_norm": [RatioNorm(clip_low=0.3, clip_high=0.3, aggregate="constant")],
    "group": [StandardisedRegression()],
    "update": [SetLoss(), Kl(form="k3")],
    "entropy": [TopEntropy(of=ClippedRatio(clip_low=0.3, clip_high=0.3), share=0.3), Kl(form="weighted_k3")],
    "entropy_of_rows": [
        TopEntropy(of=ClippedRatio(clip_low=0.3, clip_high=0.3, ratio="row", aggregate="row")),
        Kl(form="abs"),
    ],
}
every_objective = pytest.mark.parametrize("name", OBJECTIVES)


def run(policy: ToyPolicy, objective, *, rows: Tensor | None = None, processes=None, mask_NA: Tensor | None = None):
    rollout, processes = make_rollout(rows), processes or Alone()
    mask_NA = rollout.mask_NA if mask_NA is None else mask_NA
    view = make_view(rollout, make_credit(rows), mask_NA, rollout.behaviour_NA, processes)
    return accumulate(policy, rollout, objective, view, processes)


def one_piece(objective, *, mask_NA: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradient and term values by autograd through everything at once."""
    policy, rollout = ToyPolicy(), make_rollout()
    mask_NA = rollout.mask_NA if mask_NA is None else mask_NA
    view = make_view(rollout, make_credit(), mask_NA, rollout.behaviour_NA, Alone())
    values = policy.values(
        replace(rollout, record=replace(rollout.record, padding_NA=~mask_NA)), torch.arange(N * ACTIONS)
    )
    values = {k: v.view(N, ACTIONS).where(view.mask.bool(), 1.0) for k, v in values.items()}
    terms = [term(values, view) for term in objective]
    sum(term.value() for term in terms).backward()
    return policy.gradient, {term.name: term.value().item() for term in terms}


def assert_same(found: Tensor, wanted: Tensor) -> None:
    assert wanted.abs().max() > 1e-3  # a gradient of nothing would agree with anything
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)


# ── cutting into forwards ──


@every_objective
@pytest.mark.parametrize("cut", [1, 2, 7, 100])
@pytest.mark.parametrize("unit", ["action", "row"])
def test_the_gradient_does_not_show_how_actions_are_cut_into_forwards(name, unit, cut):
    policy = ToyPolicy(unit=unit, cut=cut)
    result = run(policy, OBJECTIVES[name])
    wanted, terms = one_piece(OBJECTIVES[name])
    assert_same(policy.gradient, wanted)
    assert result.terms == pytest.approx(terms, rel=1e-12) and result.loss == pytest.approx(
        sum(terms.values()), rel=1e-12
    )


@every_objective
def test_the_order_of_actions_does_not_matter(name):
    policy = ToyPolicy(cut=5, shuffle=0)
    run(policy, OBJECTIVES[name])
    assert_same(policy.gradient, one_piece(OBJECTIVES[name])[0])


def test_only_losses_that_reach_beyond_a_forward_cost_a_second_pass():
    def passes(name, unit):
        policy = ToyPolicy(unit=unit, cut=3)
        run(policy, OBJECTIVES[name])
        return sorted({grad for grad, _ in policy.forwards})

    assert passes("action", "action") == passes("row", "row") == [True]
    assert passes("row", "action") == passes("group", "row") == passes("update", "row") == [False, True]


@every_objective
def test_each_forward_is_backpropagated_before_the_next_one_is_made(name):
    policy = ToyPolicy(cut=9)
    run(policy, OBJECTIVES[name])
    seen = [gradient for gradient, (grad, _) in zip(policy.seen, policy.forwards) if grad]
    assert len(seen) > 2 and seen[0] == 0 and len(set(seen)) == len(seen)


def test_gradients_add_up_over_calls():
    policy = ToyPolicy()
    run(policy, OBJECTIVES["action"])
    once = policy.gradient.clone()
    run(policy, OBJECTIVES["action"])
    torch.testing.assert_close(policy.gradient, 2 * once)


# ── what is trained ──


@pytest.mark.parametrize("unit", ["action", "row"])
@every_objective
def test_rows_left_out_cost_and_count_nothing(name, unit):
    """As if they had never been there, but for the number of actions of a row."""
    policy, without = ToyPolicy(unit=unit, cut=4), ToyPolicy()
    result = run(policy, OBJECTIVES[name])
    kept = make_credit().keep_NA.any(1).nonzero().flatten()
    wanted = run(without, OBJECTIVES[name], rows=kept)
    assert_same(policy.gradient, without.gradient)
    assert result.terms == pytest.approx(wanted.terms) and result.stats == pytest.approx(wanted.stats)


@pytest.mark.parametrize("name", ["action", "row", "ratio_norm", "group"])
def test_an_update_of_nothing_has_its_terms_and_no_gradient(name):
    policy = ToyPolicy()
    result = run(policy, OBJECTIVES[name], mask_NA=torch.zeros(N, ACTIONS, dtype=torch.bool))
    assert set(result.terms) == set(run(ToyPolicy(), OBJECTIVES[name]).terms) and result.loss == 0
    assert result.stats.keys() == run(ToyPolicy(), OBJECTIVES[name]).stats.keys()
    assert policy.gradient.abs().sum() == 0


@pytest.mark.parametrize("by", ["group", "action"])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_updates_of_a_step_train_every_action_once(by, parts):
    mask_NA = make_rollout().mask_NA
    prompts = make_rollout().prompts
    _, part_N = plan_rows(prompts, group_size=GROUP, parts=parts if by == "group" else 1)
    masks = [update_mask(mask_NA, part_N, by=by, part=part, parts=parts) for part in range(parts)]
    assert torch.equal(torch.stack(masks).sum(0), mask_NA.long())


def test_updates_by_group_keep_groups_whole_and_updates_by_action_split_every_row():
    prompts, mask_NA = make_rollout().prompts, torch.ones(N, 4, dtype=torch.bool)
    _, part_N = plan_rows(prompts, group_size=GROUP, parts=2)
    first = update_mask(mask_NA, part_N, by="group", part=0, parts=2)
    assert first.all(1).tolist() == [True] * (N // 2) + [False] * (N // 2) == first.any(1).tolist()
    first = update_mask(mask_NA, part_N, by="action", part=0, parts=2)
    assert first.tolist() == [[True, False, True, False]] * N


@every_objective
def test_an_update_of_some_actions_has_the_gradient_of_those_actions(name):
    mask_NA = update_mask(make_rollout().mask_NA, torch.zeros(N), by="action", part=0, parts=2)
    policy = ToyPolicy(unit="row", cut=3)
    run(policy, OBJECTIVES[name], mask_NA=mask_NA)
    assert_same(policy.gradient, one_piece(OBJECTIVES[name], mask_NA=mask_NA)[0])


# ── what is logged ──


def test_statistics_are_means_over_the_trained_actions():
    result = run(ToyPolicy(cut=4), [ClippedRatio(clip_low=0.3, clip_high=0.3)])
    policy, rollout = ToyPolicy(), make_rollout()
    trained_NA = rollout.mask_NA & make_credit().keep_NA
    logprobs_NA = policy.values(rollout, torch.arange(N * ACTIONS))["logprobs"].view(N, ACTIONS)
    log_ratio = (logprobs_NA - rollout.behaviour_NA)[trained_NA]
    assert result.stats["ratio"] == pytest.approx(log_ratio.exp().mean().item())
    assert result.stats["approx_kl"] == pytest.approx((log_ratio**2).mean().item() / 2)
    assert result.logprob_gap == pytest.approx(log_ratio.abs().max().item())


def gap(name, policy, behaviour_NA, old_NA):
    rollout = replace(make_rollout(), behaviour_NA=behaviour_NA)
    view = make_view(rollout, make_credit(), rollout.mask_NA, old_NA, Alone())
    return accumulate(policy, rollout, OBJECTIVES[name], view, Alone()).logprob_gap


@pytest.mark.parametrize("name", ["action", "group"])
def test_the_gap_to_the_engine_is_zero_on_unchanged_weights_and_infinite_where_the_policy_gives_nan(name):
    policy, broken = ToyPolicy(), ToyPolicy()
    exact_NA = (
        policy.values(make_rollout(), torch.arange(N * ACTIONS))["logprobs"].detach().view(N, ACTIONS).nan_to_num(9.0)
    )
    rounding = 1e-12  # another number of rows may be multiplied in another order
    assert gap(name, policy, exact_NA, exact_NA) < rounding
    unsampled_NA = exact_NA.index_fill(0, torch.tensor([0]), torch.nan)  # no engine sampled row 0
    assert gap(name, policy, unsampled_NA, exact_NA) < rounding
    with torch.no_grad():
        broken.v[0] = torch.nan
    assert gap(name, broken, exact_NA, exact_NA) == torch.inf


# ── many ranks ──


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_update_trains_the_same_rows_whatever_the_number_of_ranks(world, parts):
    prompts = make_rollout().prompts
    for part in range(parts):
        found = []
        for rank in range(world):
            rows, part_N = plan_rows(prompts, group_size=GROUP, parts=parts, rank=rank, world=world)
            mine = part_N == part
            assert int(mine.sum()) == N // parts // world
            found += list(zip(rows.prompt_N[mine].tolist(), rows.sample_N[mine].tolist()))
        size = PROMPTS // parts
        assert sorted(found) == [(p, s) for p in range(part * size, (part + 1) * size) for s in range(GROUP)]


def test_the_rows_of_the_docstring():
    prompts = (Prompt("a", "text"), Prompt("b", "text"))
    rows, part_N = plan_rows(prompts, group_size=2, parts=1, rank=1, world=2)
    assert rows.prompt_N.tolist() == [1, 1] and rows.sample_N.tolist() == [0, 1] and part_N.tolist() == [0, 0]


def test_evaluation_rows_are_shared_out_whole():
    prompts = make_rollout().prompts
    shares = [evaluation_rows(prompts, samples=2, rank=rank, world=3) for rank in range(3)]
    assert [len(share) for share in shares] == [3, 3, 2]
    found = [pair for share in shares for pair in zip(share.prompt_N.tolist(), share.sample_N.tolist())]
    assert found == [(p, s) for p in range(PROMPTS) for s in range(2)]


def on_threads(world: int, shares: list[Tensor], objective, *, cut: int) -> tuple[list[ToyPolicy], list]:
    meeting, policies, results = Meeting(world), [ToyPolicy(cut=cut) for _ in shares], [None] * world

    def work(rank: int) -> None:
        try:
            results[rank] = run(policies[rank], objective, rows=shares[rank], processes=OneOfMany(rank, meeting))
        except BaseException:
            meeting.barrier.abort()
            raise

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return policies, results


@every_objective
@pytest.mark.parametrize("shares", [(8, 8), (3, 13), (1, 2, 13)], ids=str)
def test_ranks_sum_to_the_gradient_of_one(name, shares):
    """Groups are split over ranks, some rows are left out, and the ranks have different numbers of forwards."""
    rows = list(torch.arange(N).split(shares))
    policies, results = on_threads(len(shares), rows, OBJECTIVES[name], cut=4)
    assert_same(sum(policy.gradient for policy in policies), one_piece(OBJECTIVES[name])[0])
    alone = run(ToyPolicy(), OBJECTIVES[name])
    for result in results:
        assert result.terms == pytest.approx(alone.terms) and result.stats == pytest.approx(alone.stats)
        assert result.logprob_gap == pytest.approx(alone.logprob_gap, rel=1e-12)
        assert result.num_forwards == results[0].num_forwards


@every_objective
def test_a_rank_with_nothing_to_train_makes_as_many_forwards_as_the_others(name):
    rows = [torch.tensor([8, 9, 10, 11]), torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 14, 15])]
    policies, _ = on_threads(2, rows, OBJECTIVES[name], cut=4)
    assert len(policies[0].forwards) == len(policies[1].forwards) > 2
    assert {size for _, size in policies[0].forwards} == {0}
    assert policies[0].gradient.abs().sum() == 0
    assert_same(policies[1].gradient, one_piece(OBJECTIVES[name])[0])


def test_two_processes_sum_to_the_gradient_of_one(tmp_path):
    """Real processes, the same as `accelerate launch` starts them."""
    environment = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": PYTHONPATH,
    }
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path / f"{rank}.json")],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    errors = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1]
    assert ranks[0].pop("sum and max") == [1.0, 1.0]
    for name, gradient in ranks[0].items():
        assert_same(torch.tensor(gradient, dtype=torch.float64), one_piece(OBJECTIVES[name])[0])


def one_process(out: Path) -> None:
    from grpo_mm.processes.distributed import Processes

    processes, found = Processes(device="cpu"), {}
    found["sum and max"] = [processes.sum(processes.rank), processes.max(processes.rank)]
    rows = torch.arange(N).split([6, 10])[processes.rank]
    for name in OBJECTIVES:
        policy = ToyPolicy(cut=4)
        run(policy, OBJECTIVES[name], rows=rows, processes=processes)
        processes.sync_gradients(policy.params)
        found[name] = policy.gradient.tolist()
    out.write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    one_process(Path(sys.argv[1]))
