"""`grpo-mm new`: starters that train as they are, from anywhere, and never overwrite."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import grpo_mm
from grpo_mm.cli import app
from grpo_mm.config.run_config import read
from grpo_mm.errors import UserError
from grpo_mm.starters.new import KINDS, new

SMALL = ["steps=1", "prompts_per_step=2", "group_size=2", "evaluation.limit=2", "watch={}", "threads=1"]


@pytest.fixture(scope="module")
def starters(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("starters")
    for kind in KINDS:
        new(kind, folder / kind)
    return folder


@pytest.fixture
def own_modules(monkeypatch):
    """Each starter has a module my_rewards."""
    import sys

    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("my_rewards", None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_starter_has_a_config_a_reward_and_twenty_rows_and_its_quickstarts_keys(starters, kind):
    config = starters / kind / "config.yaml"
    rows = next((starters / kind).glob("train.*")).read_text().strip().splitlines()
    assert len(rows) - (rows[0] == "video,query,start,end") == 20
    quickstart = {"vqa": "spatial", "video": "video", "image": "flow"}[kind]
    shipped = yaml.safe_load((Path(grpo_mm.__file__).parent / f"configs/quickstart/{quickstart}.yaml").read_text())
    own = yaml.safe_load(config.read_text())
    assert set(shipped) - {"sketch"} <= set(own)
    for key in ("policy", "engine"):
        assert set(own[key]) == set(shipped[key])
    bare = [line for line in config.read_text().splitlines() if ">>>" in line and "#" not in line]
    assert bare == [] and config.read_text().count(">>>") > 8


@pytest.mark.parametrize("kind", KINDS)
def test_a_starter_trains_at_once_from_its_own_folder(starters, kind, monkeypatch, tmp_path, own_modules):
    monkeypatch.chdir(starters / kind)
    summary = grpo_mm.train("config.yaml", [*SMALL, f"runs_dir={tmp_path}"])
    assert summary["steps"] == 1 and Path(summary["report"]).is_file()
    assert summary["folder"] == str(tmp_path / kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_starter_is_read_from_another_folder_with_data_and_reward_beside_it(
    starters, kind, monkeypatch, tmp_path, caplog, own_modules
):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("INFO"):
        config = read(starters / kind / "config.yaml")
    config.check()
    prompts = config.prompts["mine"].use.load()
    assert len(prompts) == 20
    for prompt in prompts:
        assert all(Path(item.path).is_file() for item in prompt.media if hasattr(item, "path"))
    assert f"the one beside the config is taken: {starters / kind / 'train.'}" in caplog.text


def test_nothing_is_overwritten(starters):
    before = {path: path.read_bytes() for path in starters.rglob("*") if path.is_file()}
    for kind in KINDS:
        done = CliRunner().invoke(app, ["new", kind, str(starters / kind)])
        assert isinstance(done.exception, UserError) and "nothing is overwritten" in str(done.exception)
    assert {path: path.read_bytes() for path in before} == before


def test_one_file_of_these_names_keeps_all_others_from_being_written(tmp_path):
    (tmp_path / "my_rewards.py").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds my_rewards\.py already"):
        new("image", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my_rewards.py", "notes.txt"]


@pytest.mark.parametrize(
    ("kind", "folder", "answer"),
    [
        ("edit", "mine", "no model that edits pictures is supported yet"),
        ("audio", "mine", "there is no starter 'audio'; there are: vqa "),
        ("vqa", "file", "is there and is no folder"),
        ("vqa", "file/below", "cannot be"),
    ],
)
def test_what_cannot_be_started_is_refused(tmp_path, kind, folder, answer):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=answer):
        new(kind, tmp_path / folder)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_command_prints_what_was_written_and_what_comes_next(tmp_path):
    done = CliRunner().invoke(app, ["new", "image", str(tmp_path / "mine")])
    assert done.exit_code == 0, done.output
    assert f"wrote {tmp_path / 'mine' / 'config.yaml'}" in done.output
    assert f"cd {tmp_path / 'mine'}" in done.output and "grpo-mm train config.yaml steps=3" in done.output


@pytest.mark.parametrize("kind", KINDS)
def test_the_rewards_of_a_starter_score_what_they_say(kind):
    source = Path(grpo_mm.__file__).parent / "starters" / f"{kind}_rewards.txt"
    names: dict = {}
    exec(compile(source.read_text(), str(source), "exec"), names)
    if kind == "vqa":
        texts = ["<think>a</think><answer>Red</answer>", "<answer>blue</answer>", "red"]
        assert names["right"](texts, [""] * 3, [{"answer": "red"}] * 3) == [1.0, 0.0, 0.0]
    elif kind == "video":
        texts = ["<answer>2.0 to 4.0</answer>", "<answer>3 to 5</answer>", "<answer>4 to 2</answer>", "no span"]
        assert names["overlap"](texts, [""] * 4, [{"spans": [[2.0, 4.0]]}] * 4) == [1.0, 1 / 3, 0.0, 0.0]
    else:
        from PIL import Image

        red, blue = (Image.new("RGB", (8, 8), names["COLORS"][color]) for color in ("red", "blue"))
        found = names["colors"]([red, blue, red], ["a red square", "a red square", "a dog"], [{}] * 3)
        assert found[0] == 1.0 and found[1] == 0.0 and found[2] != found[2]


def test_the_rows_are_the_same_at_every_call(starters, tmp_path):
    new("vqa", tmp_path / "again")
    rows = [json.loads(line) for line in (tmp_path / "again" / "train.jsonl").read_text().splitlines()]
    assert all(set(row) == {"image", "question", "answer"} for row in rows)
    assert (tmp_path / "again" / "train.jsonl").read_bytes() == (starters / "vqa" / "train.jsonl").read_bytes()
