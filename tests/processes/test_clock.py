"""Seconds by phase: by the host, or by marks among the work of a device that goes on after the call."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import torch

from grpo_mm.processes import clock
from grpo_mm.processes.distributed import set_matmul


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
