"""Where configs and the files that they name are looked for: here, in the package, beside the config; and configs as dicts."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import yaml

import grpo_mm
from grpo_mm.config.beside import with_files_beside
from grpo_mm.config.run_config import plain, read
from grpo_mm.config.shipped import SHIPPED, shipped_file, shipped_names
from grpo_mm.errors import ConfigError
from grpo_mm.registry import table

FLOW = SHIPPED / "quickstart" / "flow.yaml"


@pytest.mark.parametrize(
    "name",
    ["quickstart/flow.yaml", "quickstart/flow", "configs/quickstart/flow.yaml", "grpo_mm/configs/quickstart/flow"],
)
def test_a_shipped_config_is_found_by_its_name_from_an_empty_folder_and_told(name, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO):
        assert read(name).name == "quickstart"
    assert f"{name}: no such file here, so the one that ships with the package is taken: {FLOW}" in caplog.text


def test_what_lies_here_comes_first_and_nothing_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    Path("quickstart").mkdir()
    Path("quickstart/flow.yaml").write_text(FLOW.read_text().replace("name: quickstart", "name: mine"))
    with caplog.at_level(logging.INFO):
        assert read("quickstart/flow.yaml").name == "mine"
    assert "ships with" not in caplog.text


def test_every_config_that_methods_names_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {entry.config for entry in table() if entry.config}
    assert len(names) > 20 and [name for name in names if shipped_file(Path(name)) is None] == []
    assert {"quickstart/flow.yaml", "video/time_r1_qwen25vl_7b.yaml"} <= set(shipped_names())


@pytest.mark.parametrize("name", ["../cli.py", "quickstart/../../cli.py", "/etc/hosts", "", "x" * 5000, "configs"])
def test_a_name_leads_nowhere_else(name):
    assert shipped_file(Path(name)) is None


def test_a_name_that_is_none_is_answered_with_near_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"no config file flow\.yml\..*quickstart/flow\.yaml"):
        read("flow.yml")


def test_a_config_of_ones_own_inherits_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("inherit: quickstart/flow.yaml\nname: mine\n")
    assert read("mine.yaml").name == "mine" and read("mine.yaml").steps == read(FLOW).steps


# ── files beside the config ──


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """The folder of a config; the current one is another."""
    folder, here = tmp_path / "config", tmp_path / "here"
    folder.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    (folder / "train.txt").write_text("a red circle\n")
    (folder / "clips").mkdir()
    return folder


def test_a_file_beside_the_config_is_found_and_told(elsewhere, caplog):
    with caplog.at_level(logging.INFO):
        found = with_files_beside({"prompts": {"mine": {"use": {"kind": "file", "path": "train.txt"}}}}, elsewhere)
    assert found["prompts"]["mine"]["use"] == {"kind": "file", "path": str(elsewhere / "train.txt")}
    assert "prompts.mine.use.path: train.txt is not in the current folder" in caplog.text


def test_the_current_folder_comes_first(elsewhere, caplog):
    Path("train.txt").write_text("another\n")
    with caplog.at_level(logging.INFO):
        assert with_files_beside({"path": "train.txt"}, elsewhere) == {"path": "train.txt"}
    assert caplog.text == ""


@pytest.mark.parametrize(
    "settings",
    [
        {"path": "none.txt"},
        {"path": "Qwen/Qwen2.5-VL-3B-Instruct"},
        {"split": "clips"},
        {"name": "train.txt"},
        {"runs_dir": "clips"},
        {"kind": "clip_world", "folder": "clips"},
        {"kind": "frame_store", "folder": "clips"},
        {"path": "zoo:text_to_image", "limit": 3, "flag": True, "none": None, "text": "", "long": "x" * 9000},
    ],
)
def test_what_names_no_file_and_what_the_run_makes_stays_as_it_is(elsewhere, settings):
    assert with_files_beside(settings, elsewhere) == settings


def test_folders_and_lists_are_looked_for_too(elsewhere):
    found = with_files_beside({"videos": "clips", "files": ["train.txt", "none.txt"]}, elsewhere)
    assert found == {"videos": str(elsewhere / "clips"), "files": [str(elsewhere / "train.txt"), "none.txt"]}


def test_a_config_reads_the_prompts_beside_it(elsewhere):
    text = FLOW.read_text().replace("{kind: shape_world, split: train}", "{kind: file, path: train.txt}")
    (elsewhere / "mine.yaml").write_text(text)
    assert [prompt.text for prompt in read(elsewhere / "mine.yaml").prompts["shapes"].use.load()] == ["a red circle"]


# ── configs as dicts ──


def mine(images, prompts, metadata):
    return [0.5] * len(images)


def test_a_dict_is_the_config_that_its_yaml_is():
    mapping = yaml.safe_load(FLOW.read_text())
    assert plain(read(mapping)) == plain(read(FLOW))
    assert plain(read(mapping, ["steps=7"]))["steps"] == 7 and mapping["steps"] == 30


def test_a_dict_may_hold_what_python_has():
    mapping = yaml.safe_load(FLOW.read_text())
    mapping |= {"steps": np.int64(3), "runs_dir": Path("x") / "y", "trackers": (), "rewards": {"mine": mine}}
    mapping["optim"] = {"lr": np.float32(0.5), "betas": (0.9, 0.99)}
    config = read(mapping)
    assert (config.steps, config.runs_dir, config.optim.lr, config.optim.betas) == (3, "x/y", 0.5, (0.9, 0.99))
    assert config.rewards["mine"].use is mine
    assert read({"inherit": "quickstart/flow.yaml", "name": "mine"}).name == "mine"


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({"stepz": 3}, "the config: unknown key 'stepz'. Did you mean 'steps'"),
        ({3: 4}, "the config: the key 3 is no text"),
        ({"optim": {1: 2}}, "optim: the key 1 is no text"),
        ({"steps": "many"}, "the config: steps: found 'many'"),
        ({"rewards": {"mine": 3}}, "rewards.mine: found 3, wanted a mapping"),
    ],
)
def test_a_dict_is_refused_as_a_file_is(change, answer):
    with pytest.raises(ConfigError) as refused:
        read(yaml.safe_load(FLOW.read_text()) | change)
    assert answer in str(refused.value)


# ── verbs ──


def test_help_shows_what_a_verb_takes_and_gives():
    import inspect

    for name in grpo_mm.__all__:
        verb = getattr(grpo_mm, name)
        assert not any(
            p.kind is p.VAR_KEYWORD or p.kind is p.VAR_POSITIONAL for p in inspect.signature(verb).parameters.values()
        )
        assert "Raises:" in verb.__doc__ and ("Example:" in verb.__doc__ or "Args:" in verb.__doc__ or name == "report")


def test_train_evaluate_sample_report_and_load_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(FLOW.read_text())
    config |= {"name": "mine", "steps": 2, "prompts_per_step": 2, "group_size": 2, "threads": 1, "watch": {}}
    config["evaluation"] = {"limit": 2}
    summary = grpo_mm.train(config)
    assert summary["folder"] == str(tmp_path / "runs" / "mine")
    assert Path(summary["report"]).read_text().startswith("<!doctype html>")
    assert "folder" not in grpo_mm.load_run(summary["folder"]).summary  # a folder may be moved
    run = grpo_mm.load_run(summary["folder"])
    assert run.config["steps"] == 2 and run.summary["steps"] == 2 and [c.step for c in run.checkpoints] == [2]
    assert len({len(column) for column in run.metrics.values()}) == 1 and next(iter(run.metrics)) == "step"
    steps, scores = run.curve("eval/score")
    assert steps == [0, 2] and scores[-1] == pytest.approx(summary["eval_after"]["score"])
    assert [sample.kind for sample in run.samples].count("eval") == 2
    assert grpo_mm.evaluate("runs/mine")["eval/score"] == pytest.approx(scores[-1])
    assert [
        path.name for path in grpo_mm.sample("runs/mine", "a red circle above a blue square", out="made").files
    ] == ["000_0.png"]
    assert grpo_mm.report("runs/mine") == Path("runs/mine/report.html")
    with pytest.raises(grpo_mm.errors.UserError, match="logged no 'none'; there are: "):
        run.curve("none")


def test_show_gives_what_the_command_prints():
    shown = grpo_mm.show("quickstart/flow.yaml", ["steps=7"])
    assert yaml.safe_load(shown.partition("\n\n")[0])["steps"] == 7 and "network calls per step" in shown


def test_a_folder_without_a_run_is_refused(tmp_path):
    for verb in (grpo_mm.load_run, grpo_mm.report, grpo_mm.evaluate):
        with pytest.raises(grpo_mm.errors.UserError):
            verb(tmp_path)
