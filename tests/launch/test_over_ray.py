"""Launches over Ray's two-node cluster on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ray = pytest.importorskip("ray", reason='needs Ray: pip install "grpo_mm[ray]"')

from children import free_port  # noqa: E402
from forked import Forks  # noqa: E402
from launches import SERVICE, gone_within, job, launched, starts  # noqa: E402
from nodes import Nodes  # noqa: E402
from spelling import write_speller  # noqa: E402
from tiny_runs import PYTHONPATH, record, weights  # noqa: E402

from grpo_mm.config.run_config import read  # noqa: E402
from grpo_mm.errors import UserError  # noqa: E402
from grpo_mm.launch import over_ray  # noqa: E402
from grpo_mm.launch.bell import Bell, ring  # noqa: E402
from grpo_mm.launch.launcher import Launcher  # noqa: E402
from grpo_mm.launch.over_ray import OverRay  # noqa: E402
from grpo_mm.launch.places import Wanted  # noqa: E402
from grpo_mm.launch.workers import newest_checkpoint  # noqa: E402
from grpo_mm.tools.serving.launch import job_of  # noqa: E402

pytestmark = pytest.mark.timeout(600)
ONE = {"OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}


@pytest.fixture(scope="module")
def nodes():
    before = dict(os.environ)
    os.environ.update({"RAY_AUTH_MODE": "disabled", **ONE})
    made = Nodes()
    try:
        yield made
    finally:
        made.cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def forks(nodes):
    """Processes that need not import everything anew."""
    made = Forks()
    try:
        yield made
    finally:
        made.close()


def test_a_lost_node_and_a_killed_scorer_leave_the_run_as_torchrun_would_have_made_it(nodes, forks, tmp_path):
    nodes.have(3)
    slow = {"right": {"use": {"kind": "spelling:SpelledRight", "seconds": 0.2}}}
    placed = {"trainers": 2, "scorers": {"eyes": {"rewards": ["right"], "cpus": 0, "resources": {"home": 1}}}}
    config = write_speller(tmp_path, {"rewards": slow, "launch": placed})
    place, done = OverRay(nodes.address), set()
    settings = read(config, ["name=ray"])
    folder = Path(settings.folder)

    def disturb(launcher: Launcher, told: list[str]) -> None:
        if told[-1].startswith("step 2/") and "scorer" not in done:
            done.add("scorer")
            os.kill(launcher._services._all[0].said["pid"], signal.SIGKILL)
        if told[-1].startswith("step 5/") and "node" not in done:
            done.add("node")
            nodes.lose(launcher._home)

    one = forks.quick(job_of(settings, config, ["name=ray"], place=place))
    code, told, launcher = launched(one, place, during=disturb)
    said = "\n".join(told)
    assert code == 0 and done == {"scorer", "node"}, said
    assert "eyes is away: it ended with code -9" in said and "eyes is back at" in said
    assert "is gone, or its node" in said and "the run is begun again from step" in said
    assert len(launcher.starts) == 2 and launcher.starts[0].cause.code is None

    under_torchrun(forks, config, "name=torchrun")
    other = tmp_path / "runs/torchrun"
    assert own(folder) == own(other) and weights(folder, 8) == weights(other, 8)
    rows = record(folder)
    assert sum(row.get("calls/service_restarts", 0) for row in rows) >= 1
    assert rows[-1]["launch/starts"] == 2.0 and "launch/starts" not in rows[0]


def under_torchrun(forks: Forks, *words: object) -> None:
    """Two processes with the environment that it gives."""
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    command = forks.command(["-m", "grpo_mm.cli", "train", *map(str, words)])
    ranks = [
        subprocess.Popen(
            command, env=os.environ | common | {"RANK": rank, "LOCAL_RANK": rank}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for rank in "01"
    ]  # fmt: skip
    try:
        said = [rank.communicate(timeout=250)[0] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0], said
    finally:
        for rank in ranks:
            rank.kill()


def own(run: Path) -> list[dict[str, float]]:
    """Without what counts calls of services and memory."""
    services = ("calls/remote_requests", "calls/remote_repeats", "calls/service_restarts", "launch/starts")
    return [{k: v for k, v in row.items() if k not in services and not k.startswith("memory/")} for row in record(run)]


def test_one_trainer_is_one_process(nodes, forks, tmp_path):
    from grpo_mm import train

    nodes.have(1)
    config = write_speller(tmp_path, {"steps": 3})
    place = OverRay(nodes.address)
    code, told, _ = launched(forks.quick(job_of(read(config, ["name=ray"]), config, ["name=ray"], place=place)), place)
    assert code == 0, "\n".join(told)
    train(config, ["name=here"])
    here, there = tmp_path / "runs/here", tmp_path / "runs/ray"
    assert own(here) == own(there) and weights(here, 3) == weights(there, 3)


def test_a_launch_is_drained_by_its_bell_and_has_only_one(nodes, tmp_path):
    nodes.have(1)
    run = tmp_path / "run"
    place = OverRay(nodes.address)
    bell = Bell(str(run))
    with pytest.raises(UserError, match="a launch of .* is under way.*--drain"):
        Bell(str(run))
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        if text == "step 2/900":
            bell._actor.ring.remote()

    one = job(run, steps=900, services={"eyes": SERVICE})
    launcher = Launcher(one, place, told=tell, stop_asked=bell.rung)
    assert launcher.launch() == 143 and 2 <= newest_checkpoint(str(run)) < 900
    assert "the run was asked to stop: the step under way is finished" in told
    assert gone_within(starts(run)[0]["pid"], 20)
    with pytest.raises(UserError, match="no launch of .* is under way on the Ray cluster"):
        ring(str(run), nodes.address)


def test_a_resource_that_nobody_has_is_named_within_a_bound(nodes, tmp_path):
    nodes.have(1)
    for wanted, message in (
        (Wanted(gpus=1), "no room for 1 trainers of 1 CPU, 1 GPU for 0.02 minutes.*: 1 GPU wanted, its 2 nodes have 0"),
        (Wanted(resources={"eyes": 2}), "2 eyes wanted, its 2 nodes have 0"),
        (Wanted(cpus=2), "2 CPU wanted, its 2 nodes have 1"),
    ):
        place, began = OverRay(nodes.address), time.monotonic()
        with pytest.raises(UserError, match=message):
            launched(job(tmp_path / "run", trainer=wanted, wait_minutes=0.02), place)
        assert time.monotonic() - began < 30
    place = OverRay(nodes.address)
    one = job(tmp_path / "run", services={"eyes": SERVICE}, wait_minutes=0.02)
    one.services[0].wanted.resources["gpu_h200"] = 1
    with pytest.raises(UserError, match="no room for the service eyes for 0.02 minutes.*: 1 gpu_h200 wanted"):
        launched(one, place)


def test_a_cluster_that_cannot_be_reached_is_one_sentence(monkeypatch):
    for address in ("127.0.0.1:9", "no.such.host.invalid:6379", "127.0.0.1:999999"):
        with pytest.raises(UserError, match="the Ray cluster .* cannot be reached"):
            over_ray.connect(address)
    with pytest.raises(UserError, match="launch from one of its nodes"):
        over_ray.connect("ray://127.0.0.1:10001")
    monkeypatch.setattr(over_ray, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "grpo_mm\[ray\]"'):
        over_ray.connect("auto")


def test_all_of_it_ends_with_the_launcher_however_it_goes(nodes, tmp_path):
    """The program that launches is killed: what it has started on the nodes does not stay."""
    nodes.have(1)
    run = tmp_path / "run"
    code = (
        "import sys\nfrom pathlib import Path\nfrom launches import SERVICE, job, launched\nfrom grpo_mm.launch.over_ray import OverRay\n"
        f"launched(job(Path({str(run)!r}), steps=900, services={{'eyes': SERVICE}}), OverRay({nodes.address!r}))"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": PYTHONPATH})
    try:
        until = time.monotonic() + 120
        while newest_checkpoint(str(run)) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        assert newest_checkpoint(str(run)) >= 2
    finally:
        launcher.kill()
        launcher.wait()
    assert gone_within(starts(run)[0]["pid"], 60)
