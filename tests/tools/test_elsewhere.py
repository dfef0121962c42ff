"""A run folder is enough wherever a command is given: data and code of its config are found where the run was started."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from children import command_line, in_child
from tiny_runs import write_config

from grpo_mm.config.recorded import is_own, read_places
from grpo_mm.config.run_config import read
from grpo_mm.entry import train
from grpo_mm.errors import ConfigError

REWARD = "def bright(images):\n    return [sum(image.resize((1, 1)).getpixel((0, 0))) / 765 for image in images]\n"
READER = """
from grpo_mm.types import Prompt

class Lines:
    def load(self):
        return [Prompt("l/0", "a red circle"), Prompt("l/1", "a blue square")]
"""
MODULES = ("own_rewards", "own_package", "own_package.deep", "own_package.deep.watched", "own_reader")


def began(home: Path, model: str) -> Path:
    """A run that was started in `home` with relative names everywhere; its folder."""
    (home / "own_package/deep").mkdir(parents=True)
    (home / "data").mkdir()
    (home / "own_rewards.py").write_text(REWARD)
    for name in ("own_package/__init__.py", "own_package/deep/__init__.py"):
        (home / name).write_text("")
    (home / "own_package/deep/watched.py").write_text(REWARD)
    (home / "own_reader.py").write_text(READER)
    (home / "data/test.txt").write_text("a red circle\na green square\n")
    config = write_config(home, model, {"steps": 1, "prompts": None})
    own = {
        "prompts": {"own": {"use": "own_reader:Lines"}}, "runs_dir": "runs", "rewards": {"own": {"use": "own_rewards:bright"}},
        "eval_prompts": {"own": {"use": {"kind": "file", "path": "data/test.txt"}}},
        "watch": {"deep": {"use": "own_package.deep.watched:bright"}},
    }  # fmt: skip
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | own))
    train("run.yaml")
    return home / "runs/tiny"


@pytest.fixture(scope="module")
def run(tiny_sd3, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.syspath_prepend(home)
        yield began(home, tiny_sd3)


@pytest.fixture
def elsewhere(run, tmp_path, monkeypatch):
    """Another folder, and nothing of the run's code imported or on the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(run.parents[1])])
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    "words", [["eval"], ["sample", "--prompt", "a red circle"], ["export", "--to", "out"], ["report"]]
)
def test_every_command_that_takes_a_run_works_in_another_folder(words, run, elsewhere):
    assert in_child(command_line(words[0], run, *words[1:]), elsewhere / "said.txt") == 0, (
        elsewhere / "said.txt"
    ).read_text()


def test_names_and_modules_of_the_config_are_found(run, elsewhere, caplog):
    with caplog.at_level("INFO"):
        config = read(run)
    assert config.eval_prompts["own"].use.path == str(run.parents[1] / "data/test.txt")
    assert "so the one where the run was started is taken" in caplog.text
    assert [scorer.use.__module__ for scorer in (config.rewards["own"], config.watch["deep"])] == [
        "own_rewards",
        "own_package.deep.watched",
    ]
    assert str(run.parents[1]) in sys.path


def test_what_lies_in_the_current_folder_comes_first(run, elsewhere):
    (elsewhere / "data").mkdir()
    (elsewhere / "data/test.txt").write_text("a cat\n")
    assert [prompt.text for prompt in read(run).eval_prompts["own"].use.load()] == ["a cat"]


@pytest.mark.parametrize("place", ["started_in", "modules"])
def test_places_that_another_hand_wrote_are_not_followed(place, run, elsewhere):
    """They are a part of what is signed: else who may write there could have other code imported."""
    copy = elsewhere / "there"
    shutil.copytree(run, copy)
    assert not is_own(copy) and is_own(run)
    file = run / "sources.json"
    before = file.read_text()
    found = json.loads(before)
    found["places"][place] = str(elsewhere) if place == "started_in" else [str(elsewhere)]
    try:
        file.write_text(json.dumps(found))
        assert not is_own(run)
        with pytest.raises(ConfigError, match="own_rewards|own_reader"):
            read(run)
        assert str(elsewhere) not in sys.path and str(run.parents[1]) not in sys.path
    finally:
        file.write_text(before)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"places": 3}', '{"places": {"modules": [3], "started_in": 7}}'])
def test_places_that_are_damaged_are_none(content, tmp_path, monkeypatch):
    (tmp_path / "sources.json").write_text(content)
    assert isinstance(read_places(tmp_path), dict)


def test_a_place_that_is_gone_is_passed_over(run, elsewhere):
    home = run.parents[1]
    aside = home.with_name("moved")
    os.rename(home, aside)
    try:
        with pytest.raises(ConfigError, match="no module named|not one"):
            read(aside / "runs/tiny", trust=True)
    finally:
        os.rename(aside, home)
