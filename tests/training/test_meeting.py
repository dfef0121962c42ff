"""Rows that several processes draw beside the update: one that cannot go on does not leave the others waiting."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from grpo_mm.errors import ConfigError, TrainingStopped
from grpo_mm.training.meeting import met
from grpo_mm.weights.snapshots import WeightsMoved


class Ranks:
    """Two ranks in two threads; nobody waits for the other for long."""

    def __init__(self):
        self.barrier, self.things = threading.Barrier(2, timeout=20), [None, None]

    def of(self, rank):
        def gather(thing):
            self.things[rank] = thing
            self.barrier.wait()
            found = list(self.things)
            self.barrier.wait()
            return found

        return type("Rank", (), {"gather": staticmethod(gather)})


def outcome(ranks, rank, fails_before):
    """What two gatherings give, of which this rank may not come to one (0, 1), or fail after both (2)."""

    def work(gather):
        found = []
        for number in range(3):
            if fails_before is not None and number == fails_before[0]:
                raise fails_before[1]
            found += gather((rank, number)) if number < 2 else []
        return found

    try:
        return met(ranks.of(rank), work)
    except Exception as error:
        return error


def both(*fails_before):
    ranks = Ranks()
    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(outcome, ranks, rank, fails) for rank, fails in enumerate(fails_before)]
        return [one.result() for one in asked]


def test_all_get_what_all_gave():
    assert both(None, None) == [[(0, 0), (1, 0), (0, 1), (1, 1)]] * 2


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (WeightsMoved("lost"), WeightsMoved, "lost"),
        (ConfigError("no such server"), Exception, "no such server"),
        (KeyError("x"), TrainingStopped, "process 1 failed: KeyError: 'x'"),
    ],
)
def test_where_one_leaves_off_the_other_hears_why(number, error, kind, said):
    here, there = both(None, (number, error))
    assert there is error
    assert isinstance(here, kind) and str(here) == said


def test_both_may_leave_off_at_once():
    errors = WeightsMoved("a"), WeightsMoved("b")
    assert both((1, errors[0]), (1, errors[1])) == list(errors)
