"""Constraints with multipliers: what a constraint is compared with, and that multipliers are the same everywhere."""

from __future__ import annotations

import json
import math

import pytest
import torch

from grpo_mm.advantages import GroupNorm, group_norm
from grpo_mm.advantages.state.lagrangian import Constraint, Lagrangian
from grpo_mm.config.typed_yaml import component
from grpo_mm.errors import ConfigError
from grpo_mm.registry import Role
from grpo_mm.rollout.table import Table, gather

NAN = math.nan
ACCURACY = [1.0, 1, 1, 0, 0]
CONSISTENT = [1.0, 0, 1, NAN, NAN]


def table(consistency, accuracy=ACCURACY, *, group=5, **columns) -> Table:
    rows = torch.arange(len(consistency))
    keys = {"prompt": rows // group, "sample": rows % group, "action": torch.full_like(rows, -1), "tag": 0 * rows}
    keys |= {"failed": torch.zeros(len(rows), dtype=torch.bool), "local_row": rows, "rank": 0 * rows}
    values = {"accuracy": accuracy, "format": [1.0] * len(rows), "consistency": consistency}
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    return Table(tensors, keys, {"accuracy": 0.5, "format": 0.5})


def stage(**settings) -> Lagrangian:
    constraint = {name: settings.pop(name) for name in ("baseline", "start") if name in settings}
    return Lagrangian(
        {"consistency": Constraint(0.95, when="accuracy", **constraint)}, **{"least": 1, "eps": 0.0} | settings
    )


def total(found: Table) -> torch.Tensor:
    return found.values["total"]


def task(t: Table) -> torch.Tensor:
    mean = (t.values["accuracy"] + t.values["format"]) / 2
    return group_norm(mean, t.columns["prompt"], ddof=1, eps=0.0)


def earned(t: Table, **settings) -> list[float]:
    """What the constraint adds at a multiplier of 1."""
    return (total(stage(**settings)(t)) - task(t)).tolist()


def test_the_worked_example():
    part, t = stage(), table(CONSISTENT)
    assert total(part(t)).tolist() == pytest.approx([1.3076, -0.4244, 1.3076, -1.0954, -1.0954], abs=2e-4)
    part.update(t)
    assert part.state["consistency"]["multiplier"] == pytest.approx(1.014167, abs=1e-6)
    assert part.state["consistency"]["score"] == pytest.approx(0.6667, abs=1e-4)


def test_the_default_baseline_is_the_group_of_the_paper():
    assert Constraint(0.9).baseline == "group"
    assert earned(table(CONSISTENT)) == pytest.approx([0.5773, -1.1547, 0.5773, 0, 0], abs=2e-4)
    assert earned(table([0.0] * 5)) == [0] * 5  # nothing, however badly the group misses the constraint


def test_a_batch_baseline_tells_groups_apart_that_are_equal_within():
    t = table([0.0] * 5 + [1.0] * 5, ACCURACY * 2)
    assert earned(t) == [0] * 10
    assert earned(t, baseline="batch") == pytest.approx([-0.5] * 3 + [0, 0] + [0.5] * 3 + [0, 0])
    assert sum(earned(t, baseline="batch")) == pytest.approx(0)


def test_a_threshold_baseline_pushes_a_batch_that_misses_the_constraint_as_a_whole():
    t = table([0.0] * 10, ACCURACY * 2)
    assert earned(t, baseline="batch") == [0] * 10
    assert earned(t, baseline="threshold") == pytest.approx([-0.95] * 3 + [0, 0] + [-0.95] * 3 + [0, 0])
    assert earned(table([1.0] * 5), baseline="threshold") == pytest.approx([0.05] * 3 + [0, 0])


@pytest.mark.parametrize("baseline", ["batch", "threshold"])
def test_rows_without_the_constraint_earn_nothing_or_what_a_score_of_zero_earns(baseline):
    t = table(CONSISTENT)
    masked, zero = (earned(t, baseline=baseline, fill=fill) for fill in ("masked", "zero"))
    mean = {"batch": (2 / 3, 2 / 5), "threshold": (0.95, 0.95)}[baseline]
    assert masked == pytest.approx([1 - mean[0], -mean[0], 1 - mean[0], 0, 0])
    assert zero == pytest.approx([1 - mean[1], -mean[1], 1 - mean[1], -mean[1], -mean[1]])


def test_the_multiplier_weights_every_baseline():
    t = table(CONSISTENT)
    for baseline in ("group", "batch", "threshold"):
        once, thrice = (total(stage(baseline=baseline, start=start)(t)) - task(t) for start in (1.0, 3.0))
        torch.testing.assert_close(thrice, 3 * once)
        assert total(stage(baseline=baseline, start=0.0)(t)).tolist() == task(t).tolist()


@pytest.mark.parametrize("baseline", ["group", "batch", "threshold"])
def test_a_batch_in_which_a_constraint_applies_nowhere_is_left_to_the_task(baseline):
    t = table([NAN] * 5)
    part = stage(baseline=baseline)
    assert total(part(t)).tolist() == task(t).tolist()
    part.update(t)
    assert part.state["consistency"] == pytest.approx(
        {"multiplier": 1.0, "score": NAN, "applicable": 0.0, "steps_at_cap": 0.0}, nan_ok=True
    )


def test_a_step_takes_the_multipliers_from_before_its_batch():
    t = table(CONSISTENT)
    part, moved = stage(rate=1.0), stage(rate=1.0)
    first = total(part(t))
    part.update(t)
    assert torch.equal(first, total(moved(t))) and not torch.equal(first, total(part(t)))


def test_fewer_than_eight_applicable_rows_leave_the_multiplier():
    part = stage(least=Lagrangian({"a": Constraint(0.5)}).least)
    part.update(table([0.0] * 10, [1.0] * 7 + [0.0] * 3))
    assert part.state["consistency"]["applicable"] == 7 and part.state["consistency"]["multiplier"] == 1.0
    part.update(table([0.0] * 10, [1.0] * 8 + [0.0] * 2))
    assert part.state["consistency"]["applicable"] == 8 and part.state["consistency"]["multiplier"] == 1 + 0.05 * 0.95


@pytest.mark.parametrize("baseline", ["group", "batch", "threshold"])
def test_two_ranks_take_the_same_step_as_one_to_the_last_bit(baseline):
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(40, dtype=torch.float64, generator=generator)
    t = table(torch.where(score < 0.2, torch.nan, score).tolist(), (score > 0.4).double().tolist())
    shuffled = torch.randperm(40, generator=generator)
    halves = [t.take(shuffled[torch.isin(shuffled // 5, torch.arange(rank, 8, 2))]) for rank in range(2)]
    joined = gather(
        [Table(h.values, {n: c for n, c in h.columns.items() if n != "rank"}) for h in halves], weights=t.weights
    )
    one, two = stage(baseline=baseline), stage(baseline=baseline)
    for _ in range(3):
        assert torch.equal(total(one(t)), total(two(joined)))
        one.update(t)
        two.update(joined)
        assert one.state == two.state


@pytest.mark.parametrize("baseline", ["group", "batch", "threshold"])
def test_a_resumed_run_goes_on_with_the_same_multipliers_to_the_last_bit(baseline):
    t = table(CONSISTENT)
    straight, before = stage(baseline=baseline, rate=0.1 / 3), stage(baseline=baseline, rate=0.1 / 3)
    for _ in range(3):
        straight.update(t)
        before.update(t)
    saved = json.loads(json.dumps(before.state_dict(), allow_nan=False))
    after = stage(baseline=baseline, rate=0.1 / 3)
    after.load_state_dict(saved)
    for _ in range(3):
        assert torch.equal(total(straight(t)), total(after(t)))
        straight.update(t)
        after.update(t)
        assert straight.state == after.state


def test_the_state_is_the_same_whatever_the_baseline():
    states = [stage(baseline=baseline).state_dict() for baseline in ("group", "batch", "threshold")]
    assert states == [{"consistency": {"multiplier": 1.0, "applicable": 0.0, "steps_at_cap": 0.0}}] * 3


def test_whitening_after_a_batch_baseline_keeps_the_order_of_rows():
    t = table([0.0] * 5 + [1.0] * 5, ACCURACY * 2)
    found = stage(baseline="batch")(t)
    white = total(GroupNorm(key=(), ddof=1)(found))
    assert float(white.mean()) == pytest.approx(0, abs=1e-12) and float(white.std()) == pytest.approx(1, abs=1e-3)
    assert torch.equal(white.argsort(stable=True), total(found).argsort(stable=True))


def test_a_baseline_comes_from_the_config_and_another_word_is_refused():
    settings = {"kind": "lagrangian", "constraints": {"c": {"threshold": 0.9, "baseline": "threshold"}}}
    assert component(Role("advantage"), settings, path="a").constraints["c"].baseline == "threshold"
    with pytest.raises(ConfigError, match="'group', 'batch' or 'threshold'|group, batch, threshold"):
        component(
            Role("advantage"), {**settings, "constraints": {"c": {"threshold": 0.9, "baseline": "mean"}}}, path="a"
        )
    with pytest.raises(ConfigError, match="wanted one of group, batch, threshold"):
        Constraint(0.9, baseline="mean")
