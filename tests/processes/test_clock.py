"""Seconds by phase: by the host, or by marks among the work of a device that goes on after the call."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field

import torch

from grpo_mm.processes import clock
from grpo_mm.processes.distributed import set_matmul
from grpo_mm.processes.roles import WAITING, idle_shares


@dataclass
class Device:
    """Time that tests move by hand: the host's, and when the device will have done what it was given."""

    host: float = 0.0
    done: float = 0.0
    waited: list[float] = field(default_factory=list)

    def works(self, seconds: float, *, asking: float = 0.0) -> None:
        """The host gives it work, which takes it `asking` seconds, and goes on."""
        self.host += asking
        self.done = max(self.done, self.host) + seconds

    def waits(self) -> None:
        self.host = max(self.host, self.done)

    def event(self) -> Mark:
        return Mark(self)


@dataclass
class Mark:
    device: Device
    at: float = float("nan")

    def record(self) -> None:
        self.at = max(self.device.done, self.device.host)

    def synchronize(self) -> None:
        self.device.waited.append(self.at)
        self.device.host = max(self.device.host, self.at)

    def elapsed_time(self, later: Mark) -> float:
        assert later.at <= self.device.host, "read before the device came to it"
        return 1000 * (later.at - self.at)


def test_work_is_charged_to_the_phase_that_asked_for_it_and_not_to_the_one_that_waits():
    device = Device()
    times = clock.use(clock.Clock(events=device.event))
    times.take()
    with clock.phase("rollout"):
        with clock.phase("network"):
            device.works(5.0, asking=0.1)
        with clock.phase("decode"):
            device.works(1.0, asking=0.1)
        device.waits()
    with clock.phase("reward"):
        device.host += 2.0
    seconds, _ = times.take()
    assert {name: round(s, 6) for name, s in seconds.items()} == {
        "network": 5.1, "decode": 1.0, "rollout": 0.0, "reward": 2.0,
    }  # fmt: skip
    assert round(sum(seconds.values()), 6) == device.host == 8.1
    assert len(device.waited) == 2  # once for each time that it was read


def test_host_work_beside_a_busy_device_costs_nothing_and_what_was_read_is_not_read_again():
    device = Device()
    times = clock.use(clock.Clock(events=device.event))
    with clock.phase("network"):
        device.works(4.0)
    with clock.phase("encode"):
        device.host += 3.0
    seconds, _ = times.take()
    assert seconds["network"] == 4.0 and seconds["encode"] == 0.0
    with clock.phase("optim"):
        device.works(0.5)
    seconds, _ = times.take()
    assert seconds == {"optim": 0.5}


def test_another_thread_is_measured_by_the_host():
    device = Device()
    times = clock.use(clock.Clock(events=device.event))

    def work() -> None:
        with clock.phase("aside"):
            pass

    with clock.phase("main"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        device.works(1.0)
    seconds, _ = times.take()
    assert seconds["main"] == 1.0 and 0 < seconds["aside"] < 60


@dataclass
class Hands:
    """A host's clock that only moves when it is told."""

    at: float = 0.0

    def __call__(self) -> float:
        return self.at

    def moves(self, seconds: float) -> None:
        self.at += seconds


def in_thread(*turns: Callable[[], None]) -> Callable[[int], None]:
    """Does turn k in one other thread when asked, and returns when it is done."""
    thread = ThreadPoolExecutor(1)
    return lambda k: thread.submit(turns[k]).result(30)


def test_phases_and_what_is_in_none_add_up_to_the_wall():
    """A step on a made clock: 1 s of its own, 4 s of sampling with 3 s of decoding inside, 2 s of waiting, 5 s of training."""
    hands = Hands()
    times = clock.use(clock.Clock(now=hands))
    for _ in range(2):  # the second step begins where the first ended
        hands.moves(0.5)
        with clock.phase("rollout"):
            hands.moves(1.0)
            with clock.phase("decode"):
                hands.moves(3.0)
        with clock.phase(WAITING):
            hands.moves(2.0)
        with clock.phase("train_network"):
            hands.moves(5.0)
        hands.moves(0.5)
        found = times.take_all()
        assert found.main == {"rollout": 1.0, "decode": 3.0, WAITING: 2.0, "train_network": 5.0} and found.rest == 1.0
        assert sum(found.main.values()) + found.rest == found.wall == 12.0 and found.beside == {}
        assert found.busy == {"sampler": 4.0, "rewards": 0.0, "trainer": 6.0}
        assert idle_shares(found.busy, found.wall) == {"sampler": 1 - 4 / 12, "rewards": 1.0, "trainer": 0.5}


def test_work_beside_is_charged_apart_and_counts_once_for_its_role():
    """Rewards are at work from 1 to 7, in two threads at once from 2 to 4; the main thread trains until 5, then waits."""
    hands = Hands()
    times = clock.use(clock.Clock(now=hands))
    (one, other) = (clock.phase("reward"), clock.phase("reward"))
    first = in_thread(one.__enter__, lambda: one.__exit__(None, None, None))
    second = in_thread(other.__enter__, lambda: other.__exit__(None, None, None))
    with clock.phase("train_network"):
        hands.moves(1.0)
        first(0)
        hands.moves(1.0)
        second(0)
        hands.moves(2.0)
        second(1)
        hands.moves(1.0)
    with clock.phase(WAITING):
        hands.moves(2.0)
        first(1)
    found = times.take_all()
    assert found.main == {"train_network": 5.0, WAITING: 2.0} and found.rest == 0.0 and found.wall == 7.0
    assert found.beside == {"reward": 6.0 + 2.0}
    assert found.busy == {"sampler": 0.0, "rewards": 6.0, "trainer": 5.0}


def test_work_that_goes_on_over_the_end_of_a_step_is_shared_by_both():
    hands = Hands()
    times = clock.use(clock.Clock(now=hands))
    sampling = clock.phase("rollout")
    turn = in_thread(sampling.__enter__, lambda: sampling.__exit__(None, None, None))
    turn(0)
    hands.moves(3.0)
    assert times.take_all().busy["sampler"] == 3.0
    hands.moves(1.0)
    turn(1)
    hands.moves(1.0)
    found = times.take_all()
    assert found.busy["sampler"] == 1.0 and found.wall == 2.0 and found.beside == {"rollout": 4.0}


def test_counts_may_be_kept_until_their_time_has_come():
    times = clock.use(clock.Clock())
    kept: Counter[str] = Counter()
    with clock.counts_kept_in(kept):
        clock.count("rollout_calls", 3)
        thread = threading.Thread(target=copy_context().run, args=(clock.count, "judge_calls", 2))
        thread.start()
        thread.join()
    clock.count("train_calls", 1)
    assert kept == {"rollout_calls": 3, "judge_calls": 2} and times.take()[1] == {"train_calls": 1}


def test_only_cuda_has_events():
    assert clock.events_of(torch.device("cpu")) is None and clock.events_of(torch.device("meta")) is None


def test_tf32_is_switched_for_products_and_convolutions_together():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        for precision, allowed in (("tf32", True), ("highest", False)):
            set_matmul(precision)
            assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is allowed
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
