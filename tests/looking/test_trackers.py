"""What TensorBoard and Weights & Biases are sent of a run, and that neither can end it."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from tiny_runs import write_config

from grpo_mm.entry import train
from grpo_mm.errors import ConfigError
from grpo_mm.looking.sample_tables import flat_settings, markdown, sample_table
from grpo_mm.looking.samples import write_rollout_sheet
from grpo_mm.looking.trackers import MOST_FAILURES, Trackers
from grpo_mm.looking.transcripts import Answer, write_transcript
from grpo_mm.types import Prompt

WANDB = """
import json, os
LOG = os.environ["FAKE_WANDB_LOG"]

def _say(kind, **what):
    with open(LOG, "a") as file:
        file.write(json.dumps({"kind": kind, **what}, default=lambda thing: vars(thing)) + chr(10))

class _Config:
    def update(self, values, allow_val_change=False):
        _say("config", values=values)

config = _Config()

class Image:
    def __init__(self, picture, caption=None):
        self.size, self.caption = picture.size, caption

class Table:
    def __init__(self, columns, data):
        self.columns, self.data = columns, data

class Html:
    def __init__(self, text):
        self.start = text[:15]

class _Run:
    def __init__(self):
        self.summary = {}
    def define_metric(self, name, step_metric=None):
        _say("define", name=name, step_metric=step_metric)
    def log(self, values, step=None):
        if os.environ.get("FAKE_WANDB_FAILS"):
            raise ConnectionError("the service is away")
        _say("log", values=values, step_given=step)
    def finish(self):
        _say("finish", summary=self.summary)

def init(**how):
    if os.environ.get("FAKE_WANDB_REFUSES"):
        raise PermissionError("no api key")
    _say("init", **how)
    return _Run()
"""


@pytest.fixture
def fake_wandb(tmp_path, monkeypatch):
    """A module of that name; gives what it was told, line by line."""
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake/wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(str(tmp_path / "fake"))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.setenv("FAKE_WANDB_LOG", str(tmp_path / "wandb.log"))
    yield lambda: [json.loads(line) for line in (tmp_path / "wandb.log").read_text().splitlines()]
    sys.modules.pop("wandb", None)


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0, "scalars": 0})
    found.Reload()
    return found


def text_of(found, tag):
    return found.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0].decode()


def test_tensorboard_and_wandb_see_the_run_and_go_on_with_it(tiny_sd3, tmp_path, fake_wandb):
    pytest.importorskip("tensorboard")
    changes = {"steps": 2, "trackers": ["tensorboard", "wandb"], "samples_every": 1, "eval_prompts": None}
    path = write_config(tmp_path, tiny_sd3, changes)

    def kill(step, row):
        if step == 2:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(path, on_step=kill)  # step 2 is told and lost: the checkpoint is of step 1
    train(path)
    run = tmp_path / "runs/tiny"
    found = events(run / "tiny")
    scalars = {tag: [event.step for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    assert scalars["reward/bright/mean"] == [1, 2] == scalars["reward/bright/group_std"]
    assert [event.step for event in found.Images("samples/rollout")] == [1, 2]
    assert "text_length: 16" in text_of(found, "config") and "report.html" in text_of(found, "report")
    assert "| prompt | bright | advantage |" in text_of(found, "samples/rollout")

    told = fake_wandb()
    begun = [line for line in told if line["kind"] == "init"]
    run_id = json.loads((run / "run.json").read_text())["id"]
    assert [(line["project"], line["name"], line["id"], line["resume"]) for line in begun] == [
        ("grpo_mm", "tiny", run_id, "allow")
    ] * 2
    values = next(line["values"] for line in told if line["kind"] == "config")
    assert values["policy"]["lora"]["rank"] == 2 and values["report"] == str(run / "report.html")
    logs = [line["values"] for line in told if line["kind"] == "log"]
    assert [row["step"] for row in logs if "reward/bright/mean" in row] == [1, 2, 2]
    sheet = next(row for row in logs if "samples/rollout" in row)
    assert sheet["samples/rollout"]["caption"] == "samples/step_000001"
    table = sheet["samples/rollout_table"]
    assert table["columns"] == ["prompt", "bright", "advantage", "picture"] and len(table["data"]) == 8
    assert table["data"][0][-1]["size"] == [32, 32]
    assert logs[-1]["report"]["start"].lower().startswith("<!doctype html") and (run / "report.html").is_file()
    assert told[-1]["kind"] == "finish" and told[-1]["summary"]["report"].endswith("report.html")
    verdict = json.loads((run / "summary.json").read_text())["verdict"]["sentence"]
    assert verdict and told[-1]["summary"]["verdict"] == verdict and text_of(found, "report").startswith(verdict)
    assert {"kind": "define", "name": "*", "step_metric": "step"} in told


def test_a_tracker_that_fails_on_the_way_is_told_of_once(tiny_sd3, tmp_path, fake_wandb, monkeypatch, caplog):
    monkeypatch.setenv("FAKE_WANDB_FAILS", "1")
    summary = train(write_config(tmp_path, tiny_sd3, {"steps": 2, "trackers": ["wandb"], "eval_prompts": None}))
    said = [record.message for record in caplog.records if "tracker wandb" in record.message]
    assert summary["steps"] == 2 and len(said) == 2
    assert said[0].startswith("tracker wandb failed at step 1 (") and "the service is away" in said[0]
    assert said[1].startswith("tracker wandb missed ")


def test_one_that_cannot_be_started_is_refused(tmp_path, fake_wandb, monkeypatch):
    monkeypatch.setenv("FAKE_WANDB_REFUSES", "1")
    with pytest.raises(ConfigError, match=r"trackers: wandb cannot be started .*no api key.*WANDB_MODE=offline"):
        Trackers(["wandb"], tmp_path, name="a").start({}, step=0, run_id="x")


def test_one_that_stays_away_is_left_alone_and_one_that_comes_back_is_not(tmp_path, fake_wandb, monkeypatch):
    trackers = Trackers(["wandb"], tmp_path, name="a")
    trackers.start({}, step=0, run_id="x")
    monkeypatch.setenv("FAKE_WANDB_FAILS", "1")
    for step in range(3):
        trackers.metrics({"step": step})
    monkeypatch.delenv("FAKE_WANDB_FAILS")
    trackers.metrics({"step": 3})
    assert fake_wandb()[-1]["values"] == {"step": 3}
    monkeypatch.setenv("FAKE_WANDB_FAILS", "1")
    for step in range(4, 4 + MOST_FAILURES):
        trackers.metrics({"step": step})
    monkeypatch.delenv("FAKE_WANDB_FAILS")
    trackers.metrics({"step": 99})
    assert fake_wandb()[-1]["values"] == {"step": 3} and trackers.failed == {"wandb": 4 + MOST_FAILURES}


def test_answers_are_no_markup(tmp_path):
    asked = [
        (
            Prompt("a|b", "What <image>?\nSay it.", target={"spans": [[1.0, 2.5]], "answer": "yes"}),
            [Answer("<think>no</think> **x** | y", {"right": 0.5}, 1.0)],
        )
    ]
    write_transcript(tmp_path, name="eval_before", kind="eval", step=0, asked=asked)
    table = sample_table(tmp_path, "eval_before")
    assert table.columns == ("id", "question", "truth", "answer", "right", "advantage") and table.pictures == (None,)
    assert "Say it. | yes; 1 to 2.5 s | &lt;think&gt;no&lt;/think&gt; \\*\\*x\\*\\* \\| y | 0.5 | 1 |" in markdown(
        table
    )
    assert sample_table(tmp_path, "eval_after") is None


def test_pictures_come_with_what_they_are_to_show_and_what_settled_their_advantage(tmp_path):
    """As the page shows them; columns that no picture fills are not there."""
    depths = [
        {"depth": depth, "advantage": depth - 0.5, "compared": 3, "value": value, "low": 0.2, "high": 0.8}
        for depth, value in ((1, 0.7), (2, None))
    ]
    for step, settled in ((1, [depths, depths]), (2, None)):
        write_rollout_sheet(
            tmp_path, step=step, images_MCHW=torch.zeros(2, 3, 8, 8, dtype=torch.uint8), prompt_M=torch.zeros(2, dtype=torch.long),
            prompts=["a red circle"], truths=["red circle"], advantage_M=torch.tensor([1.0, -1.0]),
            rewards={"shape": torch.tensor([0.75, 0.125])}, settled_M=settled,
        )  # fmt: skip
    with_depths, without = (sample_table(tmp_path, f"step_00000{i}") for i in (1, 2))
    assert with_depths.columns == ("prompt", "truth", "shape", "advantage", "why")
    assert with_depths.rows[0] == (
        "a red circle", "red circle", 0.75, 1.0, "depth 1: +0.50, one of 3, 0.700 against 0.200 to 0.800; depth 2: +1.50, one of 3",
    )  # fmt: skip
    assert without.columns == ("prompt", "truth", "shape", "advantage")


def test_settings_are_flat_for_programs_that_compare_runs():
    settings = {"optim": {"lr": 0.1, "betas": [0.9, 0.95]}, "advantage": [{"kind": "clamp"}], "ema": None}
    assert flat_settings(settings) == {
        "optim.lr": 0.1, "optim.betas": "[0.9, 0.95]", "advantage.0.kind": "clamp", "ema": "None",
    }  # fmt: skip
