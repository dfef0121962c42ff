"""When a run is begun again, which trainer is which rank, and what a launch may be."""

import re

import pytest
from spelling import write_speller
from typer.testing import CliRunner

from grpo_mm.cli import app
from grpo_mm.config.run_config import read
from grpo_mm.errors import ConfigError, UserError
from grpo_mm.launch.again import Ended, Start, why_not_again
from grpo_mm.launch.ranks import environments, in_order
from grpo_mm.launch.settings import Launch

HEARD = (
    "TrainingStopped: process 1 ended without a word: was it killed (for want of memory?), or is its machine gone?",
)


def start(*ends, checkpoint=-1):
    return Start(tuple(Ended(rank, code, said, "n") for rank, (code, said) in enumerate(ends)), checkpoint)


def killed(checkpoint=-1):
    return start((3, HEARD), (-9, ()), checkpoint=checkpoint)


def test_the_cause_is_who_was_killed_and_not_who_heard_of_it():
    assert killed().cause.rank == 1 and killed().words() == "trainer 1 was killed (SIGKILL, as for want of memory)"
    assert start((3, HEARD), (None, ())).words() == "trainer 1 is gone, or its node n is"
    raised = start((3, ("TrainingStopped: process 1 ended with KeyError: 'x'",)), (1, ("KeyError: 'x'",)))
    assert raised.words() == "trainer 1 ended with code 1: KeyError: 'x'"


@pytest.mark.parametrize(
    ("starts", "why"),
    [
        ([killed()], None),
        ([killed(3), killed(4)], None),
        ([killed(3), killed(3)], "twice without a checkpoint in between"),
        ([start((1, ("port 31 is taken",))), start((1, ("port 77 is taken",)))], "twice without a checkpoint in between"),
        ([start((1, ("port 31 is taken",))), start((1, ("no route to host",)))], None),
        ([start((None, ()), (3, HEARD)), start((None, ()), (3, HEARD))], None),
        ([killed(1), killed(2), killed(3), killed(4)], r"begun again 3 times \(launch.restarts\)"),
        ([start((2, ("ConfigError: steps",)), (2, ("ConfigError: steps",)))], "for you to mend"),
    ],
)  # fmt: skip
def test_a_run_is_begun_again_unless_it_would_end_the_same_way(starts, why):
    found = why_not_again(starts, most=3)
    assert (found is None) == (why is None)
    if why is not None:
        assert re.search(why, found)


def test_exit_codes_are_those_of_an_ordinary_run():
    assert [start((0, ()), (0, ())).code, start((143, ()), (143, ())).code, start((130, ())).code] == [0, 143, 130]
    assert [start((2, ()), (2, ())).code, killed().code, start((143, ()), (-9, ())).code] == [2, 3, 3]


def seat(node, checkpoint=-1, devices=""):
    return {"node": node, "host": f"host-{node}", "checkpoint": checkpoint, "devices": devices}


def test_ranks_of_a_node_are_neighbours_and_the_first_is_where_the_checkpoint_lies():
    seats = [seat("a"), seat("b", 4), seat("a"), seat("b", 4)]
    assert in_order(seats) == [1, 3, 0, 2]
    assert in_order([seat("a"), seat("b"), seat("a")]) == [0, 2, 1]


def test_the_environment_is_torchruns():
    seats = [seat("a", devices="4"), seat("a", devices="6"), seat("b", devices="0")]
    first, second, third = environments(seats, address="10.0.0.1", port=4000)
    common = {"WORLD_SIZE": "3", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000", "GROUP_WORLD_SIZE": "2"}
    assert first == common | {
        "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "CUDA_VISIBLE_DEVICES": "4,6",
    }  # fmt: skip
    assert second == first | {"RANK": "1", "LOCAL_RANK": "1"}
    assert third == common | {
        "RANK": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": "1", "CUDA_VISIBLE_DEVICES": "0",
    }  # fmt: skip
    assert environments([seat("a", devices="2")], address="x", port=1) == [{"CUDA_VISIBLE_DEVICES": "2"}]


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        ({"trainers": 0}, "launch.trainers = 0; wanted at least 1"),
        ({"trainers": 3, "per_node": 2}, "launch.per_node = 2 does not divide launch.trainers = 3"),
        ({"cpus": -1}, "launch.cpus = -1"),
        ({"wait_minutes": 0}, "launch.wait_minutes = 0"),
        ({"scorers": {"eyes": {"rewards": ["bright"]}}}, "'bright' is no reward of this run; it has right"),
        ({"scorers": {"eyes": {"rewards": []}}}, "names none"),
        ({"scorers": {"a": {"rewards": ["right"]}, "b": {"rewards": ["right"]}}}, "a and b both have the reward 'right'"),
        ({"scorers": {"a": {"rewards": ["right"], "replicas": 0}}}, "launch.scorers.a.replicas = 0"),
    ],
)  # fmt: skip
def test_a_launch_that_cannot_be_is_refused_before_anything_is_started(launch, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        read(write_speller(tmp_path, {"launch": launch})).check_settings()


def test_the_command_takes_an_address_before_the_config_and_only_with_ray(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for words, message in (
        (["--ray", "h:6379"], "launch needs a CONFIG"),
        (["--ray", "h:6379", "absent.yaml"], "absent.yaml"),
        (["h:6379"], "h:6379"),
        (["--drain", "runs/x"], "--drain is for --ray"),
    ):
        found = CliRunner().invoke(app, ["launch", *words])
        assert isinstance(found.exception, UserError) and message in str(found.exception), words


def test_a_launch_says_nothing_by_default():
    assert Launch() == Launch(trainers=1, scorers={}, restarts=3) and Launch().served == {}
