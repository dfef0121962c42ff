"""Rewards that services of a launch score: the run is the same, and a service that is back elsewhere is found."""

import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT
from served import Served
from spelling import SpelledRight, write_speller
from tiny_runs import record, weights

from grpo_mm import train
from grpo_mm.config.run_config import plain, read
from grpo_mm.errors import ConfigError
from grpo_mm.launch.here import Here
from grpo_mm.launch.settings import EngineServers, Launch
from grpo_mm.pipelines.vlm.engine import VlmEngine
from grpo_mm.pipelines.vlm.engine_server.asking import Away
from grpo_mm.pipelines.vlm.engine_server.asking import Server as EngineServer
from grpo_mm.pipelines.vlm.engine_server.elsewhere import drawn_elsewhere
from grpo_mm.pipelines.vlm.engine_server.vllm_server import VllmServer
from grpo_mm.pipelines.vlm.sampling.generation import HfGenerator
from grpo_mm.processes.services import FILE, NotUp, address_of, served_rewards
from grpo_mm.rewards.service import elsewhere, remote
from grpo_mm.rewards.service.asking import check_url
from grpo_mm.rollout.scoring import Scorer
from grpo_mm.rollout.spread import _limit as limit_of
from grpo_mm.tools.serving.launch import as_launched, job_of
from grpo_mm.tools.show import shown_lines

TOKEN = "open-sesame"


@pytest.fixture
def at(tmp_path, monkeypatch):
    """Says where services are."""
    path = tmp_path / "services.json"
    monkeypatch.setenv(FILE, str(path))
    monkeypatch.setenv(elsewhere.TOKEN, TOKEN)

    def put(*urls, start="1", rewards=("right",)):
        there = [{"url": url, "start": start} for url in urls]
        aside = path.with_suffix(".new")
        aside.write_text(json.dumps({"services": {"eyes": there}, "rewards": dict.fromkeys(rewards, "eyes")}))
        aside.replace(path)

    return put


def own(rows):
    counted = ("calls/remote_requests", "calls/remote_repeats", "calls/service_restarts")
    return [{k: v for k, v in row.items() if k not in counted and not k.startswith("memory/")} for row in rows]


def test_a_run_whose_rewards_are_served_is_the_same_and_its_folder_does_not_know(at, tmp_path, monkeypatch):
    config = write_speller(tmp_path, {"steps": 4})
    server = Served({"right": SpelledRight()}, token=TOKEN)
    at(server.url)
    try:
        train(config, ["name=there", "steps=2"])
        monkeypatch.delenv(FILE)
        train(config, ["name=there"])  # without a launch the same run goes on, with nothing to accept
        train(config, ["name=here"])
    finally:
        server.close()
    here, there = tmp_path / "runs/here", tmp_path / "runs/there"
    assert [row["calls/remote_requests"] for row in record(there)[:2]] == [1, 1]
    assert own(record(here)) == own(record(there)) and weights(here, 4) == weights(there, 4)
    assert read(there).rewards == read(config).rewards


def test_a_service_that_dies_in_a_call_and_comes_back_elsewhere_is_asked_again_and_counted(at, tmp_path):
    config = write_speller(tmp_path, {"steps": 3})
    first = Served({"right": SpelledRight()}, token=TOKEN)
    second = Served({"right": SpelledRight()}, token=TOKEN)
    at(first.url)

    def move(step, _row):
        if step == 1:
            at(None, start="1")  # it is nowhere, for a moment
            first.close(at_once=True)
            threading.Timer(0.3, lambda: at(second.url, start="2")).start()

    try:
        train(config, ["name=there"], on_step=move)
        moved = record(tmp_path / "runs/there")
    finally:
        second.close()
    assert [row.get("calls/service_restarts", 0) for row in moved] == [0, 1, 0]
    assert [row["reward/failed_frac"] for row in moved] == [0.0] * 3


def test_a_generator_that_asks_servers_asks_those_of_the_launch(at, tmp_path, monkeypatch):
    generator = VllmServer(urls=("http://elsewhere:1",), retries=5)
    engine = VlmEngine(generator=generator)
    at("http://a:1")
    assert drawn_elsewhere(engine) is engine
    there = {"services": {"engine": [{"url": "http://a:1", "start": "1"}, {"url": None, "start": ""}]}, "rewards": {}}
    Path(os.environ[FILE]).write_text(json.dumps(there | {"engines": ["service://engine/0", "service://engine/1"]}))
    placed = drawn_elsewhere(engine).generator
    assert placed.urls == ("service://engine/0", "service://engine/1") and placed.start is None and placed.retries == 5
    assert placed.token_env == elsewhere.TOKEN and generator.urls == ("http://elsewhere:1",)
    placed.check()
    with pytest.raises(Away, match="engine is not up"):
        EngineServer(placed.urls[1], TOKEN, connections=1).state(until=time.monotonic() + 5)


def test_engines_of_a_launch_need_a_generator_that_asks_servers():
    launch = Launch(engines=EngineServers(replicas=2))
    with pytest.raises(ConfigError, match="set engine.generator.kind=vllm_server, or leave them out"):
        launch.check(["right"], asks_servers=False)
    launch.check(["right"], asks_servers=True)
    with pytest.raises(ConfigError, match="launch.engines.replicas = 0"):
        Launch(engines=EngineServers(replicas=0))


def test_engines_of_a_launch_are_neither_named_nor_started_by_the_generator():
    asked = ["engine.generator={kind: vllm_server}", "device=cpu"]
    without = read(ROOT / "configs/quickstart/video.yaml", asked)
    with pytest.raises(ConfigError, match="name the servers in urls, or start one.*launch.engines"):
        as_launched(without).check_settings(world=1)
    settings = replace(without, launch=Launch(engines=EngineServers(replicas=2)))
    as_launched(settings).check_settings(world=1)
    assert as_launched(settings).engine.generator.urls == ("service://engine/0", "service://engine/1")
    asks_none = replace(settings, engine=replace(settings.engine, generator=HfGenerator()))
    with pytest.raises(ConfigError, match="set engine.generator.kind=vllm_server, or leave them out"):
        as_launched(asks_none).check_settings(world=1)


def test_commands_of_services_say_which_rewards_and_what_draws(tmp_path):
    placed = {"scorers": {"eyes": {"rewards": ["right"], "python": "/envs/x/bin/python", "replicas": 2}}}
    config = write_speller(tmp_path, {"launch": placed})
    settings = replace(read(config), launch=replace(read(config).launch, engines=EngineServers()))
    job = job_of(settings, config, ["steps=3"], place=Here(), environment={"HF_HUB_OFFLINE": "1", "HOME": "/root"})
    eyes, engine = job.services
    command = " ".join(eyes.settings["command"])
    assert command.startswith("/envs/x/bin/python -m grpo_mm.cli serve ") and command.endswith("--only right")
    assert (eyes.replicas, eyes.rewards, engine.name, engine.rewards) == (2, ("right",), "engine", ())
    assert "--engine" in engine.settings["command"] and "steps=3" in engine.settings["command"]
    assert set(job.environment) == {"HF_HUB_OFFLINE", elsewhere.TOKEN} and len(job.environment[elsewhere.TOKEN]) == 32
    assert engine.settings["token"] == job.environment[elsewhere.TOKEN] == eyes.settings["token"]


def test_a_replica_is_found_by_rank_and_by_number(at, monkeypatch):
    at("http://a:1", "http://b:2")
    assert [address_of("service://eyes"), address_of("service://eyes/1")] == ["http://a:1", "http://b:2"]
    monkeypatch.setenv("RANK", "3")
    assert address_of("service://eyes") == "http://b:2" and address_of("http://h:1/") == "http://h:1/"
    for url in ("service://ears", "service://eyes/2", "service://eyes/x"):
        with pytest.raises(NotUp, match="no service"):
            address_of(url)
    at(None)
    with pytest.raises(NotUp, match="eyes is not up"):
        address_of("service://eyes")


def test_a_file_that_cannot_be_read_is_said(tmp_path, monkeypatch):
    monkeypatch.delenv(FILE, raising=False)
    assert served_rewards() == {}
    with pytest.raises(NotUp, match=FILE):
        address_of("service://eyes")
    monkeypatch.setenv(FILE, str(tmp_path / "absent.json"))
    with pytest.raises(ConfigError, match="absent.json cannot be read"):
        train(write_speller(tmp_path))
    for text in ("[]", "{", '{"services": 3, "rewards": {}}'):
        (tmp_path / "absent.json").write_text(text)
        with pytest.raises(NotUp, match="cannot be read"):
            served_rewards()


def test_limits_and_processes_of_an_entry_are_the_servers_matter(at):
    at("http://a:1")
    config = read(
        {"name": "x", "steps": 1, "prompts_per_step": 1, "group_size": 2, "policy": {"kind": "spelling:SpellerConfig"},
         "engine": {"kind": "spelling:SpellerEngine"}, "prompts": {"w": {"use": {"kind": "toy:ToyPrompts"}}},
         "rewards": {"right": {"use": {"kind": "spelling:SpelledRight"}, "isolate": True, "timeout_seconds": 5.0, "weight": 2.0},
                     "other": {"use": {"kind": "spelling:SpelledRight"}}}}
    )  # fmt: skip
    placed = elsewhere.scored_elsewhere(config.rewards)
    assert placed["other"] is config.rewards["other"]
    entry = placed["right"]
    assert (entry.weight, entry.isolate, entry.timeout_seconds) == (2.0, False, None)
    assert isinstance(entry.use, remote.Remote) and entry.use.url == "service://eyes"
    assert entry.use.timeout_seconds == 5.0 + elsewhere.MORE_SECONDS and entry.use.batch is None
    assert plain(replace(config, rewards=placed)) != plain(config)


class Broken(SpelledRight):
    constant_steps = 3


@pytest.mark.parametrize(("set_here", "limit"), [(None, 3), (0, 0), (5, 5)])
def test_how_often_a_reward_may_say_one_and_the_same_is_as_if_it_were_here(set_here, limit, at):
    at("http://a:1")
    entry = Scorer(Broken(), golden="scores.json", constant_steps=set_here)
    placed = elsewhere.scored_elsewhere({"right": entry})["right"]
    assert placed.golden is None  # the server compares them
    assert (placed.constant_steps, placed.use.constant_steps) == (limit, None)


def test_a_score_that_stands_still_stops_the_run_as_if_it_were_scored_here(at):
    at("http://a:1", rewards=("right", "other", "set"))

    class Network(SpelledRight):
        constant_steps = 3

    entries = {
        "right": Scorer(use=Network()),
        "other": Scorer(use=SpelledRight()),
        "set": Scorer(Network(), constant_steps=0),
    }
    for name, placed in elsewhere.scored_elsewhere(entries).items():
        assert limit_of(placed)[0] == limit_of(entries[name])[0], name


def test_a_named_service_is_an_address():
    check_url("service://eyes")
    with pytest.raises(ConfigError, match="wanted the like of http"):
        check_url("service://")


def test_show_takes_a_config_that_only_launch_gives_its_engines():
    asks = ["engine.generator={kind: vllm_server}"]
    with pytest.raises(ConfigError, match="name the servers in urls, or start one"):
        list(shown_lines(ROOT / "configs/quickstart/video.yaml", asks, memory=False))
    said = list(
        shown_lines(ROOT / "configs/quickstart/video.yaml", [*asks, "launch.engines={replicas: 2}"], memory=False)
    )
    assert any("asks the servers of launch.engines" in line for line in said)
