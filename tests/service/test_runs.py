"""Whole runs and the command line: served scores train as the same reward does here."""

import logging
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from served import Served
from tiny_runs import PYTHONPATH, record, weights, write_config

from grpo_mm import train
from grpo_mm.errors import ConfigError, TrainingStopped, UserError
from grpo_mm.rewards.images.pick_score import PickScore
from grpo_mm.rewards.service.remote import Remote
from grpo_mm.rewards.service.server import Limits
from grpo_mm.rollout.function_reward import FunctionReward
from grpo_mm.rollout.scoring import Scorer, Scoring
from grpo_mm.rollout.spread import ConstantScores
from grpo_mm.tools.serving.serve import serve, served_scorers
from grpo_mm.types import Prompt


@pytest.fixture
def served():
    names = ("bright", "by_place")
    one = Served({name: FunctionReward(f"tiny_rewards:{name}") for name in names}, limits=Limits(2**20))
    yield one
    one.close()


def remote(served, name, **settings):
    return {"use": {"kind": "remote", "url": served.url, "reward": name, **settings}}


def test_a_run_learns_the_same_bit_for_bit(served, tiny_sd3, tmp_path):
    here = train(write_config(tmp_path, tiny_sd3, {"name": "here"}))
    there = train(
        write_config(tmp_path, tiny_sd3, {"name": "there", "rewards": {"bright": remote(served, "bright", batch=3)}})
    )
    assert here["steps"] == there["steps"] == 3
    one, other = tmp_path / "runs/here", tmp_path / "runs/there"
    assert weights(one, 3) == weights(other, 3)
    own = "calls/remote_requests"
    rows = [{k: v for k, v in row.items() if k != own and not k.startswith("memory/")} for row in record(other)]
    assert any(own in row for row in record(other))
    assert rows == [{k: v for k, v in row.items() if not k.startswith("memory/")} for row in record(one)]


def test_a_run_whose_server_is_not_there_does_not_begin(tiny_sd3, tmp_path):
    use = {"use": {"kind": "remote", "url": "http://127.0.0.1:9", "reward": "bright", "timeout_seconds": 0.3}}
    with pytest.raises(ConfigError, match=r"rewards.bright.use|is not there"):
        train(write_config(tmp_path, tiny_sd3, {"rewards": {"bright": use}}))


# ── constant scores ──


class _Table:
    columns = {}

    def __init__(self, **values):
        self.values = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def told(constant_steps, *steps):
    rewards = {"far": Scorer(Remote("http://h:1", "x", constant_steps=constant_steps)), "near": Scorer(len)}
    scores = ConstantScores(rewards)
    for step, batches in enumerate(steps):
        for values in batches:
            scores.look(_Table(far=values, near=[1.0, 1.0]))
        scores.after(step)


NAN = float("nan")
SAME, DIFFERENT = [[0.5, 0.5, NAN]], [[0.5, 0.25]]


def test_a_constant_reward_is_warned_of_and_stops_the_run_at_the_third_step(caplog):
    with pytest.raises(
        TrainingStopped, match=r"step 3: the reward 'far' gave all 2 outputs the same score, 0.5, for the 3. step"
    ):
        told(3, SAME, SAME, SAME)
    assert caplog.text.count("'far' gave all 2 outputs the same score") == 2


@pytest.mark.parametrize(
    ("constant_steps", "steps", "warnings"),
    [
        (3, [SAME, SAME, DIFFERENT, SAME, SAME], 4),
        (None, [SAME] * 5, 3),  # the 1st, 2nd and 4th
        (1, [DIFFERENT, [[0.5, 0.5], [0.25]], [[0.5], []], [[NAN, NAN]], [[]]], 0),
    ],
)
def test_what_is_not_constant_for_long_goes_on(constant_steps, steps, warnings, caplog):
    with caplog.at_level(logging.WARNING):
        told(constant_steps, *steps)
    assert caplog.text.count("'far' gave all") == warnings


@pytest.mark.parametrize(
    ("use", "settings", "stops"),
    [
        (len, {}, None),
        (len, {"constant_steps": 2}, "constant_steps=0"),
        (PickScore(), {}, "constant_steps=0"),
        (PickScore(), {"constant_steps": 0}, None),
        (Remote("http://h:1", "x"), {"constant_steps": 0}, None),
        (Remote("http://h:1", "x"), {}, "use.constant_steps=null"),
    ],
)
def test_every_reward_is_looked_at_and_those_that_cannot_be_constant_stop_the_run(use, settings, stops, caplog):
    scores = ConstantScores({"a": Scorer(use, **settings)})

    def steps(number):
        for step in range(number):
            scores.look(_Table(a=[1.0, 1.0]))
            scores.after(step)

    if stops is None:
        steps(100)
        assert caplog.text.count("'a' gave all 2 outputs the same score, 1") == 7  # 1, 2, 4, …, 64
    else:
        with pytest.raises(TrainingStopped, match=f"set rewards.a.{stops}"):
            steps(3)
        assert "'a' gave all 2 outputs the same score, 1" in caplog.text


def test_a_run_with_a_broken_scorer_stops(tiny_sd3, tmp_path):
    one = Served({"broken": Scorer(_one)})
    changes = {"steps": 6, "rewards": {"bright": remote(one, "broken")}}
    with pytest.raises(TrainingStopped, match=r"step 3: .*rewards.bright.use.constant_steps=null"):
        train(write_config(tmp_path, tiny_sd3, changes))
    one.close()


def _one(images):
    return [1.0] * len(images)


# ── the command ──


def test_watches_with_a_reward_are_served_too_and_no_model_is_loaded(tmp_path):
    config = write_config(
        tmp_path, "/no/such/model",
        {"watch": {"size": {"use": "jpeg", "timeout_seconds": 5}, "band": {"metric": "reward/bright/mean", "low": 0}}},
    )  # fmt: skip
    lines = []
    scorers = served_scorers(config, ["rewards.bright.sources=[lines]"], seconds=7, trust=False, told=lines.append)
    assert {n: (a["kind"], a["scope"]) for n, a in scorers.about().items()} == {
        "bright": ("function", "output"), "size": ("jpeg", "output"),
    }  # fmt: skip
    assert [scorers.scoring.scorers[n].timeout_seconds for n in ("bright", "size")] == [7, 5]
    assert lines == ["bright: its sources are not looked at here; the run that asks has its own"]


def test_what_cannot_be_served_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("GRPO_MM_TOKEN", raising=False)
    config = write_config(tmp_path, "/no/such/model")
    with pytest.raises(ConfigError, match="0.0.0.0' can be reached by others"):
        serve(config, host="0.0.0.0")
    with pytest.raises(ConfigError, match="'NO_SUCH', which holds the token, is not set"):
        serve(config, token_env="NO_SUCH")
    with pytest.raises(ConfigError, match="has no 'nothing'"):
        serve(config, ["rewards.bright.use.path=tiny_rewards:nothing"])
    with pytest.raises(ConfigError, match="data.judge is not set, and a reward needs it"):
        serve(config, ["rewards.far.use={kind: remote, url: '${data.judge}', reward: x}"])
    one = Served({"bright": FunctionReward("tiny_rewards:bright")})
    with pytest.raises(UserError, match="cannot be listened on"):
        serve(config, port=one.port)
    one.close()


def test_the_command_serves_until_it_is_interrupted(tmp_path, monkeypatch):
    config = write_config(tmp_path, "/no/such/model", {"watch": {"size": {"use": "jpeg"}}})
    monkeypatch.setenv("A_TOKEN", "of-this-test")
    command = [sys.executable, "-m", "grpo_mm.cli", "serve", str(config), "--port", "0", "--token-env", "A_TOKEN"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": PYTHONPATH, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        line = next((one for one in process.stdout if " serves " in one), "")
        assert "serves bright, size; who has the token may ask" in line
        url = re.search(r"http://127.0.0.1:\d+", line)[0]
        scoring = Scoring({"far": Scorer(Remote(url, "size", token_env="A_TOKEN"))}, torch.device("cpu"))
        found = scoring(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), [Prompt("p", "x")] * 2)
        assert found["far"]["score"].isfinite().all()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (0, 130, -signal.SIGINT)
        assert "Traceback" not in process.stdout.read()
    finally:
        process.kill()
        process.wait()
