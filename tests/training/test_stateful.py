"""Components that learn beside the weights are saved with the run."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from grpo_mm.advantages import GroupNorm, Shuffle
from grpo_mm.errors import CheckpointError
from grpo_mm.rollout.table import Table
from grpo_mm.weights.stateful import load_parts, stateful_parts


@dataclass
class Tracker:
    """A running mean of the reward."""

    decay: float = 0.5
    mean: float = field(default=0.0, init=False)

    def __call__(self, table: Table) -> Table:
        return table

    def update(self, table: Table) -> None:
        self.mean = self.decay * self.mean + (1 - self.decay) * float(table.values["r"].mean())

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def load_state_dict(self, state: Any) -> None:
        self.mean = state["mean"]


@dataclass
class Config:
    advantage: tuple[Any, ...]
    names: dict[str, Any]


def table(*values: float) -> Table:
    rows = len(values)
    columns = {"prompt": torch.zeros(rows, dtype=torch.int64), "failed": torch.zeros(rows, dtype=torch.bool)}
    return Table(values={"r": torch.tensor(values, dtype=torch.float64)}, columns=columns)


def test_parts_are_found_by_their_key_wherever_they_stand():
    config = Config(advantage=(GroupNorm(), Tracker()), names={"a": Tracker()})
    assert [path for path, _ in stateful_parts(config)] == ["advantage.1", "names.a"]


def test_state_survives_a_checkpoint():
    config = Config(advantage=(Tracker(),), names={})
    ((path, tracker),) = stateful_parts(config)
    tracker.update(table(1.0, 3.0))
    other = Config(advantage=(Tracker(),), names={})
    load_parts(other, {path: tracker.state_dict()})
    assert other.advantage[0].mean == 1.0


def test_state_of_another_config_is_refused():
    with pytest.raises(CheckpointError, match="advantage.0"):
        load_parts(Config(advantage=(Tracker(),), names={}), {})


class Counter(Tracker):
    def state_dict(self) -> dict[str, Any]:
        return {"count": 1}

    def load_state_dict(self, state: Any) -> None:
        self.mean = float(state["count"])


LEARNT = {"mean": 7.0}


@pytest.mark.parametrize(
    ("config", "states", "changed", "means"),
    [
        ({"watch": {"a": Tracker()}}, {}, [], [0]),
        ({"watch": {"a": Tracker()}}, {"watch.a": LEARNT}, [], [7]),
        ({"watch": {"a": Counter()}}, {"watch.a": LEARNT}, [], [0]),
        ({"watch": {"b": Tracker()}}, {"watch.a": LEARNT}, [], [0]),
        ({"watch": {}}, {"watch.a.use": LEARNT}, [], []),
        ({"advantage": (Tracker(),)}, {}, ["advantage"], [0]),
        ({"advantage": (Tracker(),)}, {"advantage.0": LEARNT}, ["advantage.0"], [0]),
        ({"advantage": (Counter(),)}, {"advantage.0": LEARNT}, ["advantage"], [0]),
        ({"advantage": (Tracker(),)}, {"advantage.0": LEARNT}, ["advantage.0.decay"], [7]),
        ({"advantage": ()}, {"advantage.1": LEARNT}, ["advantage"], []),
        ({"rewards": {"r": Tracker()}}, {}, ["rewards.r"], [0]),
        ({"rewards": {"r": Tracker()}}, {"rewards.q": LEARNT}, ["rewards.r", "rewards.q"], [0]),
        ({"collector": Tracker()}, {"collector.inner": LEARNT}, ["collector"], [0]),
        ({"rewards": {"r": Tracker()}, "watch": {"w": Tracker()}}, {"rewards.r": LEARNT}, [], [7, 0]),
    ],
)
def test_what_was_changed_or_is_watched_begins_anew_and_all_else_goes_on(config, states, changed, means, caplog):
    config = copy.deepcopy(config)
    with caplog.at_level("INFO"):
        load_parts(config, states, changed=changed)
    parts = dict(stateful_parts(config))
    assert [part.mean for part in parts.values()] == means
    anew = [path for path, part in parts.items() if part.mean == 0]
    assert caplog.text.count("begins anew") == len(anew) and all(path in caplog.text for path in anew)
    assert caplog.text.count("is gone") == len(set(states) - set(parts))


@pytest.mark.parametrize("changed", [[], ["rewards"], ["advantage.1"], ["advantage.0.decay"], ["advantages"]])
def test_a_state_that_is_missing_where_nothing_was_changed_is_refused(changed):
    with pytest.raises(CheckpointError, match="no component"):
        load_parts({"advantage": (Tracker(),)}, {}, changed=changed)
    with pytest.raises(CheckpointError, match="advantage.0"):
        load_parts({"advantage": ()}, {"advantage.0": LEARNT}, changed=changed)


def test_shuffled_rewards_are_the_same_values_on_other_rows():
    values = table(*[float(i) for i in range(32)])
    shuffled = Shuffle()(values)
    assert not torch.equal(shuffled.values["r"], values.values["r"])
    assert torch.equal(shuffled.values["r"].sort().values, values.values["r"])
    assert torch.equal(Shuffle()(values).values["r"], shuffled.values["r"])
    assert not torch.equal(Shuffle(seed=1)(values).values["r"], shuffled.values["r"])
