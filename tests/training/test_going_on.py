"""What a run may go on with: free changes are not asked for, noted ones once, and the record tells them."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from children import command_line, in_child
from tiny_runs import record, summary, weights, write_config

from grpo_mm.entry import train
from grpo_mm.errors import ConfigError
from grpo_mm.looking.changes import read_changes
from grpo_mm.looking.report.page import write_report
from grpo_mm.training import trainer

SETTINGS = {"evaluation": {"every": 2}}
REWARD = """
from beside import factor

def bright(images, prompts, metadata):
    return [factor() * sum(image.resize((1, 1)).getpixel((0, 0))) / 765 for image in images]
"""


@pytest.fixture(scope="module")
def of_three(tiny_sd3, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    train(write_config(folder, tiny_sd3, SETTINGS))
    return folder / "runs/tiny"


@pytest.fixture(scope="module")
def of_two(tiny_sd3, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    train(write_config(folder, tiny_sd3, SETTINGS | {"steps": 2}))
    return folder / "runs/tiny"


@pytest.fixture
def config(tiny_sd3, tmp_path) -> Path:
    return write_config(tmp_path, tiny_sd3, SETTINGS | {"steps": 2})


@pytest.fixture
def run(config, of_two, tmp_path) -> Path:
    """A finished run of two steps, as this config's."""
    shutil.copytree(of_two, tmp_path / "runs/tiny")
    for name in ("config.yaml", "sources.json"):
        file = tmp_path / "runs/tiny" / name
        file.write_text(file.read_text().replace(str(of_two.parents[1]), str(tmp_path)))
    return tmp_path / "runs/tiny"


def test_more_steps_are_those_of_a_longer_run_bit_for_bit(config, run, of_three):
    train(config, ["steps=3"])
    assert record(run) == record(of_three) and weights(run, 3) == weights(of_three, 3)
    ours, theirs = ({k: v for k, v in summary(folder).items() if k != "seconds"} for folder in (run, of_three))
    assert ours == theirs and read_changes(run) == []
    assert sorted(p.name for p in run.rglob("*")) == sorted(p.name for p in of_three.rglob("*"))


def test_free_settings_change_nothing_and_are_not_asked_for(config, run, of_three):
    free = ["policy.micro_batch=8", "checkpoints.every=2", "samples_every=0", "evaluation.show=1", "rewards.bright.timeout_seconds=90",
            "watch={bright_rises: {metric: reward/bright/mean, high: 5}}", "policy.decode_batch=3", "policy.offload=[decoder]"]  # fmt: skip
    train(config, ["steps=3", *free])
    assert weights(run, 3) == weights(of_three, 3) and read_changes(run) == []


LEARNS = """
class Counts:
    seen = 0

    def __call__(self, images, prompts):
        return [1.0] * len(images)

    def update(self, table):
        self.seen += 1

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]
"""


def test_a_part_that_learns_may_come_and_go_under_watch(config, run, of_three, tmp_path, monkeypatch):
    (tmp_path / "counting.py").write_text(LEARNS)
    monkeypatch.syspath_prepend(tmp_path)
    train(config, ["steps=3", "watch={counted: {use: 'counting:Counts'}}"])
    assert weights(run, 3) == weights(of_three, 3)
    state = json.loads((run / "checkpoints/step_000003/state.json").read_text())
    assert state["learner"]["parts"] == {"watch.counted.use": {"seen": 1}}
    train(config, ["steps=4"])
    assert json.loads((run / "checkpoints/step_000004/state.json").read_text())["learner"]["parts"] == {}


def test_a_noted_change_is_asked_for_once_and_told_everywhere(config, run, tmp_path, monkeypatch):
    before = record(run)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "Trainer", None)  # asked for before a model is loaded
        with pytest.raises(ConfigError, match=r"optim\.lr: 0\.001 there, 0\.0005 here.*--accept"):
            train(config, ["steps=3", "optim.lr=0.0005"])
    assert record(run) == before
    assert in_child(command_line("train", config, "steps=3", "optim.lr=0.0005", "--accept"), tmp_path / "out.txt") == 0
    (change,) = read_changes(run)
    assert (change.step, change.key, change.there, change.here) == (2, "optim.lr", "0.001", "0.0005")
    told = str(change)
    assert told == "after step 2: optim.lr 0.001 → 0.0005" and summary(run)["changes"] == [told]
    assert told.partition(": ")[2] in write_report(run).read_text()
    assert "optim.lr" in (run / "adapter/README.md").read_text().replace("&#46;", ".")
    train(config, ["steps=4", "optim.lr=0.0005"])  # not asked again
    assert len(read_changes(run)) == 1 and summary(run)["steps"] == 4


def test_a_change_that_was_made_after_the_checkpoint_one_goes_back_to_is_in_force_from_there(config, run):
    train(config, ["steps=3", "optim.lr=0.0005"], accept=True)
    train(config, ["steps=3", "optim.lr=0.0005"], checkpoint="step_000002")
    assert [c.step for c in read_changes(run)] == [2]


def test_steps_are_not_free_where_the_learning_rate_depends_on_them(tiny_sd3, tmp_path):
    config = write_config(tmp_path, tiny_sd3, {"steps": 1, "optim": {"schedule": "cosine"}, "eval_prompts": None})
    train(config)
    with pytest.raises(
        ConfigError, match=r"steps: 1 there, 2 here \(the learning rate depends on the number of steps\).*--accept"
    ):
        train(config, ["steps=2"])
    train(config, ["steps=2"], accept=True)
    assert [c.key for c in read_changes(tmp_path / "runs/tiny")] == ["steps"]


def test_a_finished_run_says_what_differs_and_runs_nothing(config, run, tmp_path, caplog):
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    found = train(config, ["optim.lr=0.5", "policy.micro_batch=2", "steps=1"])
    assert (
        "nothing was run; these differ: optim.lr: 0.001 there, 0.5 here; policy.micro_batch" in found["nothing_was_run"]
    )
    assert [said.partition(":")[0] for said in found["differs"]] == ["optim.lr", "policy.micro_batch", "steps"]
    assert found["nothing_was_run"] in caplog.text and "nothing_was_run" not in summary(run)
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before
    assert in_child(command_line("train", config, "optim.lr=0.5"), tmp_path / "out.txt") == 0
    said = (tmp_path / "out.txt").read_text().replace("\n", " ")
    assert said.count("after 2 steps, nothing was run; these differ: optim.lr") == 1


@pytest.fixture
def own_reward(tiny_sd3, tmp_path, monkeypatch) -> Path:
    """A run with a reward of the user's, which imports a module beside it."""
    (tmp_path / "brand.py").write_text(REWARD)
    (tmp_path / "beside.py").write_text("def factor():\n    return 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    rewards = {"bright": {"use": {"kind": "function", "path": "brand:bright"}}}
    config = write_config(tmp_path, tiny_sd3, {"steps": 1, "rewards": rewards, "eval_prompts": None})
    yield config
    for name in ("brand", "beside"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("edited", ["brand.py", "beside.py", "prompts.txt"])
def test_edited_code_and_data_are_noted_by_name(own_reward, tmp_path, edited):
    train(own_reward)
    kept = json.loads((tmp_path / "runs/tiny/sources.json").read_text())
    assert set(kept["code"]["rewards.bright.use"]) == {"brand.py", "beside.py"}
    assert set(kept["data"]["prompts.lines.use"]) == {str(tmp_path / "prompts.txt")}
    file = tmp_path / edited
    file.write_text(file.read_text().replace("1.0", "2.0").replace("765", "766") + "\n")
    importlib.invalidate_caches()
    found = train(own_reward)
    assert len(found["differs"]) == 1 and edited in found["differs"][0]
    assert found["differs"][0].startswith(
        "data of prompts" if edited == "prompts.txt" else "code of rewards.bright.use"
    )
    with pytest.raises(ConfigError, match=rf"{edited}.*--accept"):
        train(own_reward, ["steps=2"])
    train(own_reward, ["steps=2"], accept=True)
    assert edited in read_changes(tmp_path / "runs/tiny")[0].there
    assert train(own_reward, ["steps=2"])["differs"] == []


def test_a_notebooks_edited_function_is_noted(tiny_sd3, tmp_path, monkeypatch):
    """The function of a cell has no file: its text counts, with what it calls there."""
    import linecache
    import types

    cell = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", cell)

    def run_cell(text: str) -> None:
        name = f"<cell {abs(hash(text))}>"
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        exec(compile(text, name, "exec"), vars(cell))

    config = write_config(tmp_path, tiny_sd3, {"steps": 1, "eval_prompts": None})
    run_cell("def scale(x):\n    return x / 765\n")
    run_cell(
        "def mine(images, prompts, metadata):\n    return [scale(sum(i.resize((1, 1)).getpixel((0, 0)))) for i in images]\n"
    )
    train(config, rewards={"mine": cell.mine})
    assert train(config, rewards={"mine": cell.mine})["differs"] == []
    run_cell("def scale(x):\n    return x / 255\n")
    (said,) = train(config, rewards={"mine": cell.mine})["differs"]
    assert said.startswith("code of rewards.mine") and "__main__:scale" in said


def test_a_change_that_a_kill_left_half_written_is_not_lost(config, run, tmp_path):
    from grpo_mm.config.differences import Difference
    from grpo_mm.run.changes import note

    found = [Difference("optim.lr", 0.001, 0.0005, "noted"), Difference("samples_every", 10, 1, "free")]
    note(run, found, step=2)
    note(run, found, step=2)
    assert [c.key for c in read_changes(run)] == ["optim.lr"]
    train(config, ["steps=3", "optim.lr=0.0005"], accept=True)
    assert [c.key for c in read_changes(run)] == ["optim.lr"]
    assert yaml.safe_load((run / "config.yaml").read_text())["optim"]["lr"] == 0.0005
