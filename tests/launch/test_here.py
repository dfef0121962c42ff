"""Launches on this machine: processes that die are started again, those of a dead launcher do not stay, and ends are an ordinary run's."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from launches import SERVICE, gone_within, is_running, job, launched, starts

from grpo_mm.errors import UserError
from grpo_mm.launch import launcher as launching
from grpo_mm.launch import workers
from grpo_mm.launch.child import Child
from grpo_mm.launch.here import Here
from grpo_mm.launch.places import Wanted
from grpo_mm.launch.workers import ServiceWorker, TrainerWorker, newest_checkpoint


def test_a_child_says_what_it_says_and_how_it_ended():
    code = "import sys; print('one'); print('two\\x1b[1m'); sys.stdout.flush(); sys.exit(7)"
    child = Child([sys.executable, "-c", code], environment=os.environ)
    assert child.wait(20) == 7 and child.said() == (2, ["one", "two\\x1b[1m"]) and child.said(1) == (2, ["two\\x1b[1m"])
    asked = Child(["sleep", "60"], environment=os.environ)
    assert asked.code is None
    asked.send(signal.SIGTERM)
    assert asked.wait(20) == -signal.SIGTERM
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # as in an actor of Ray
    try:
        asked = Child(["sleep", "60"], environment=os.environ)
        asked.send(signal.SIGINT)
        assert asked.wait(20) == -signal.SIGINT
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    absent = Child(["/no/such/program"], environment=os.environ)
    assert absent.wait(20) == 127 and "/no/such/program cannot be started" in absent.said()[1][0]


def test_a_child_and_what_it_started_end_with_the_process_that_keeps_them():
    code = (
        "import os, subprocess, sys, time\nfrom grpo_mm.launch.child import Child\n"
        'inner = \'import subprocess, time; print(subprocess.Popen(["sleep", "60"]).pid, flush=True); time.sleep(60)\'\n'
        "child = Child([sys.executable, '-c', inner], environment=os.environ)\n"
        "while not child.said()[1]: time.sleep(0.05)\n"
        "print(child.pid, child.said()[1][0], flush=True)\ntime.sleep(60)"
    )
    keeper = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        child, grandchild = map(int, keeper.stdout.readline().split())
        assert is_running(child) and is_running(grandchild)
    finally:
        keeper.kill()
        keeper.wait()
        keeper.stdout.close()
    assert gone_within(child, 10) and gone_within(grandchild, 10)


def test_a_command_dies_with_what_keeps_it_also_where_that_is_killed_alone():
    """Ray kills what a worker of a lost node has started, and not what that has started."""
    child = Child(["sleep", "60"], environment=os.environ)
    assert is_running(child.pid)
    os.kill(child._process.pid, signal.SIGKILL)
    assert gone_within(child.pid, 10) and child.wait(10) == -signal.SIGKILL


def test_a_run_comes_to_its_end_with_the_words_of_rank_0(tmp_path):
    run = tmp_path / "run"
    code, told, _ = launched(job(run, trainers=2), Here())
    assert code == 0 and told == ["going on from 0", *(f"step {i}/4" for i in range(1, 5))]
    (first,), (second,) = starts(run, 0), starts(run, 1)
    assert first["words"] == second["words"] == ["--fresh"]
    assert first["MASTER_PORT"] == second["MASTER_PORT"] and second["LOCAL_RANK"] == "1"


def test_a_killed_trainer_ends_the_others_and_the_run_goes_on_from_its_checkpoint(tmp_path):
    run = tmp_path / "run"
    one = job(run, "killed@3", trainers=2)

    def hear(_launcher, told):  # as notices tell the other trainers
        (run / "another_ends").touch() if (run / "was_killed").exists() and len(starts(run)) == 1 else None

    def both(launcher, told):
        hear(launcher, told)
        if "begun again" in told[-1]:
            (run / "another_ends").unlink(missing_ok=True)

    code, told, launcher = launched(one, Here(), during=both)
    assert code == 0 and len(launcher.starts) == 2 and newest_checkpoint(str(run)) == 4
    again = next(text for text in told if "begun again" in text)
    assert again.startswith("trainer 1 was killed (SIGKILL, as for want of memory); the run is begun again from step ")
    assert [each["words"] for each in starts(run, 1)] == [["--fresh"], []]  # it does not start over twice
    assert [each["GRPO_MM_STARTS"] for each in starts(run)] == ["1", "2"]


def test_what_is_killed_late_takes_nothing_from_the_next_start(tmp_path, monkeypatch):
    """A trainer that heard of nothing is killed, and that takes its time."""
    run, there = tmp_path / "run", []
    monkeypatch.setattr(launching, "HEARD_SECONDS", 0.2)
    end = TrainerWorker.end
    monkeypatch.setattr(TrainerWorker, "end", lambda self: (time.sleep(0.6), end(self))[1])

    def look(launcher, told):
        if any("begun again" in text for text in told) and told[-1].startswith("step"):
            there.append(Path(starts(run)[-1]["GRPO_MM_SERVICES"]).exists())
            launcher.stop() if len(there) == 10 else None

    code, told, launcher = launched(job(run, "killed@3", steps=10_000, trainers=2), Here(), during=look)
    assert code == 143 and any(text.startswith("trainers 0 did not end by themselves") for text in told), told[-20:]
    assert len(launcher.starts) == 2 and len(there) >= 10 and all(there)


def test_what_would_end_the_same_way_is_not_begun_again(tmp_path):
    code, told, launcher = launched(job(tmp_path / "a", "raises@2"), Here())
    assert code == 3 and len(launcher.starts) == 2
    assert "twice without a checkpoint in between" in told[-1] and "the port" in told[-1]
    code, told, launcher = launched(job(tmp_path / "b", "refuses"), Here())
    assert code == 2 and len(launcher.starts) == 1 and "ConfigError: steps = -1" in told[-1]
    code, told, launcher = launched(job(tmp_path / "c", "killed@2", restarts=0), Here())
    assert code == 3 and "launch.restarts is 0" in told[-1]


def test_a_run_that_is_asked_to_stop_finishes_its_step_and_ends_its_services(tmp_path):
    pids = []

    def stop(launcher, told):
        if told[-1] == "step 2/60":
            pids.extend(one.said["pid"] for one in launcher._services._all)
            launcher.stop()

    one = job(tmp_path / "run", steps=60, trainers=2, services={"eyes": SERVICE})
    code, told, launcher = launched(one, Here(), during=stop)
    assert code == 143 and len(launcher.starts) == 1
    assert newest_checkpoint(str(tmp_path / "run")) < 60 and told[0].startswith("eyes is up at http://127.0.0.1:")
    assert gone_within(pids[0], 10)


def test_a_service_that_dies_is_started_again_elsewhere_and_trainers_are_told(tmp_path):
    run, seen = tmp_path / "run", []

    def kill(launcher, told):
        if (run / "starts_0.jsonl").exists():
            seen.append(json.loads(Path(starts(run)[0]["GRPO_MM_SERVICES"]).read_text()))
        if told[-1] == "step 2/60":
            os.kill(launcher._services._all[0].said["pid"], signal.SIGKILL)
        if "is back at" in told[-1]:
            launcher.stop()

    one = job(run, steps=60, services={"eyes": SERVICE})
    code, told, launcher = launched(one, Here(), during=kill)
    assert code == 143 and launcher._services.restarts == 1
    away = next(text for text in told if "is away" in text)
    assert away.startswith("eyes is away: it ended with code -9")
    before, after = (text.rpartition(" ")[2] for text in (told[0], next(t for t in told if "is back" in t)))
    assert before != after
    assert seen[0]["rewards"] == {"right": "eyes"} and seen[0]["services"]["eyes"][0]["url"] == before
    assert seen[-1]["services"]["eyes"][0]["url"] in (after, None)
    assert not Path(starts(run)[0]["GRPO_MM_SERVICES"]).exists()  # nothing is left behind


@pytest.mark.parametrize(
    ("code", "minutes", "message"),
    [
        ("print('ConfigError: no such reward'); raise SystemExit(2)", 5.0, "eyes ended with code 2 at its start: ConfigError: no such"),
        ("import time; time.sleep(60)", 0.01, r"eyes has not answered for 0.01 minutes \(launch.start_minutes\)"),
    ],
)  # fmt: skip
def test_a_service_that_does_not_come_up_ends_the_launch(code, minutes, message, tmp_path):
    one = job(tmp_path / "run", services={"eyes": code}, start_minutes=minutes, wait_minutes=0.01)
    with pytest.raises(UserError, match=message):
        launched(one, Here())
    assert not (tmp_path / "run").exists()


def test_what_this_machine_has_not_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    for wanted, message in (
        (Wanted(gpus=2), "2 GPUs are wanted and 1 are free here"),
        (Wanted(gpus=0.5), "0.5 of a GPU can be had with --ray only"),
        (Wanted(resources={"eyes": 1}), r"resources \(eyes\) are Ray's"),
    ):
        with pytest.raises(UserError, match=message):
            launched(job(tmp_path / "run", trainer=wanted), Here())


def test_a_checkpoint_that_is_gone_with_its_node_is_said_and_nothing_is_begun(tmp_path):
    one = job(tmp_path / "run", "killed@3")

    def lose(launcher, told):
        if told[-1].startswith("trainer 0 was killed"):
            for path in (tmp_path / "run/checkpoints").iterdir():
                path.rmdir()

    with pytest.raises(
        UserError, match="the checkpoint of step 2 lay on node here, which is gone.*no other node sees the run folder"
    ):
        launched(one, Here(), during=lose)


def test_workers_answer_plainly(tmp_path):
    trainer = TrainerWorker(host="127.0.0.1", node="n1", devices="3")
    assert trainer.about(str(tmp_path), str(tmp_path / "run")) == {
        "node": "n1", "host": "127.0.0.1", "devices": "3", "checkpoint": -1,
    }  # fmt: skip
    with pytest.raises(UserError, match="node n1 .* has no folder /no/such.*same place on all nodes"):
        trainer.about("/no/such", "run")
    assert trainer.ended(0.0) is None and trainer.said(0) == (0, [])
    service = ServiceWorker([sys.executable, "-c", SERVICE, "{host}", "{port}"], {}, str(tmp_path), token="open")
    try:
        until = time.monotonic() + 30
        while service.where()["url"] is None and time.monotonic() < until:
            time.sleep(0.05)
        assert service.where()["starts"] == 1 and service.where()["failures"] == []
    finally:
        service.end()
    assert gone_within(service.where()["pid"], 10)


def test_a_trainer_that_is_begun_again_is_there_once(tmp_path):
    worker = TrainerWorker()
    asked = [sys.executable, "-c", "import time; time.sleep(60)"], {}, str(tmp_path)
    try:
        before, now = worker.begin(*asked), worker.begin(*asked)
        assert gone_within(before, 5) and is_running(now)
    finally:
        worker.end()
    assert gone_within(now, 5)


def test_a_service_that_is_ended_while_it_starts_does_not_stay(tmp_path, monkeypatch):
    made, known = [], threading.Event()

    class EndedMeanwhile(Child):
        def __init__(self, *arguments, **more):
            super().__init__(*arguments, **more)
            made.append(self)
            assert known.wait(10)
            service.end(0.0)  # which knows nothing of this one yet

    monkeypatch.setattr(workers, "Child", EndedMeanwhile)
    service = ServiceWorker([sys.executable, "-c", SERVICE, "{host}", "{port}"], {}, str(tmp_path), token="open")
    known.set()
    assert wait_for(lambda: made) and gone_within(made[0].pid, 10)


def wait_for(is_so, seconds: float = 10.0) -> bool:
    until = time.monotonic() + seconds
    while not is_so() and time.monotonic() < until:
        time.sleep(0.02)
    return bool(is_so())
