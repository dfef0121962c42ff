"""Only what carries a run's mark is overwritten or deleted, by names we know, through no link; a checkpoint is of its run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from children import in_child
from safetensors.torch import save_file
from tiny_runs import summary, weights, write_config

from grpo_mm.config.recorded import is_own
from grpo_mm.config.run_config import plain, read
from grpo_mm.entry import train
from grpo_mm.errors import CheckpointError, ConfigError, TrainingStopped, UserError
from grpo_mm.run import mark, run_folder
from grpo_mm.tools.inference import evaluate
from grpo_mm.training import trainer
from grpo_mm.weights import checkpoint

SHORT = {"steps": 2, "samples_every": 1, "evaluation": {"every": 1}}


@pytest.fixture(scope="module")
def done(tiny_sd3, tmp_path_factory) -> Path:
    """A finished run in `runs/tiny`; it is copied, never changed."""
    folder = tmp_path_factory.mktemp("done")
    train(write_config(folder, tiny_sd3, SHORT))
    return folder / "runs/tiny"


@pytest.fixture
def config(tiny_sd3, tmp_path) -> Path:
    return write_config(tmp_path, tiny_sd3, SHORT)


@pytest.fixture
def run(config, done, tmp_path) -> Path:
    """A copy of the run, as this config's."""
    shutil.copytree(done, tmp_path / "runs/tiny")
    recorded = tmp_path / "runs/tiny/config.yaml"
    recorded.write_text(yaml.safe_dump(plain(read(config)), sort_keys=False))
    return tmp_path / "runs/tiny"


def inventory(folder: Path) -> dict[str, object]:
    return {
        str(p.relative_to(folder)): os.readlink(p) if p.is_symlink() else p.read_bytes() if p.is_file() else "folder"
        for p in folder.rglob("*")
    }


def foreign_config(folder: Path) -> None:
    (folder / "config.yaml").write_text("name: tiny\nsteps: 7\n")
    (folder / "src").mkdir()
    (folder / "src/main.py").write_text("x")


def of_another_tool(folder: Path) -> None:
    foreign_config(folder)
    for name in ("versions.json", "metrics.jsonl", "summary.json"):
        (folder / name).write_text("{}")
    (folder / "checkpoints/step_000001").mkdir(parents=True)
    (folder / "checkpoints/step_000001/model.safetensors").write_text("x")


def marked_by_another(folder: Path) -> None:
    foreign_config(folder)
    (folder / "run.json").write_text('{"id": 3}')


def forged(text: str):
    def make(folder: Path) -> None:
        (folder / "run.json").write_text(text)
        (folder / "thesis.tex").write_text("x")

    return make


def linked_mark(folder: Path) -> None:
    mark.write_mark(folder, mark.new_mark())
    (folder / "run.json").rename(folder.parent / "mark")
    (folder / "run.json").symlink_to("../mark")


def only(name: str):
    return lambda folder: (folder / name).write_text("x")


FOREIGN = {
    "a project with a config": foreign_config,
    "another tool's run": of_another_tool,
    "another tool's mark": marked_by_another,
    "a mark that is no JSON": forged("grpo_mm run 1"),
    "a mark without an id": forged('{"format": "grpo_mm run 1"}'),
    "a mark with an id of another form": forged('{"format": "grpo_mm run 1", "id": "../../x"}'),
    "a mark that is deep": forged("[" * 10_000),
    "a mark that is large": forged(" " * 20_000),
    "a mark that is a link": linked_mark,
    "a mark that is a folder": lambda folder: (folder / "run.json").mkdir(),
    "somebody's summary": only("summary.json"),
    "a hidden file": only(".keep"),
    "what another writes": only(".writing_thesis"),
    "a link instead of what is being written": lambda folder: (folder / ".writing_run.json").symlink_to("/etc/passwd"),
}


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("kind", FOREIGN)
def test_nothing_in_a_foreign_folder_is_touched(config, tmp_path, kind, fresh, monkeypatch):
    folder = tmp_path / "runs/tiny"
    folder.mkdir(parents=True)
    FOREIGN[kind](folder)
    before = inventory(tmp_path / "runs")
    monkeypatch.setattr(trainer, "Trainer", None)  # it is found before a model is loaded
    with pytest.raises(ConfigError, match="tiny"):
        train(config, fresh=fresh)
    assert inventory(tmp_path / "runs") == before


@pytest.mark.parametrize("where", ["a file", "in a file", "a dangling link", "a link to itself", "a link to a folder"])
def test_a_place_that_is_none_is_refused(config, tmp_path, where):
    place = tmp_path / "runs/tiny"
    place.parent.mkdir()
    (tmp_path / "precious").mkdir()
    settings = []
    if where == "a file":
        place.write_text("x")
    elif where == "in a file":
        (tmp_path / "file").write_text("x")
        settings = [f"runs_dir={tmp_path}/file"]
    else:
        place.symlink_to({"a dangling link": "nowhere", "a link to itself": "tiny"}.get(where, "../precious"))
    before = inventory(tmp_path)
    for fresh in (False, True):
        with pytest.raises(ConfigError):
            run_folder.check_folder(read(config, settings), fresh=fresh)
    assert inventory(tmp_path) == before


def test_a_run_behind_a_link_goes_on_and_is_not_started_over(config, run, tmp_path):
    run.rename(tmp_path / "elsewhere")
    run.symlink_to("../elsewhere")
    assert train(config).items() >= summary(tmp_path / "elsewhere").items()
    before = inventory(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="is a link to .*elsewhere, which is not followed to delete"):
        train(config, fresh=True)
    assert inventory(tmp_path / "elsewhere") == before and run.is_symlink()


@pytest.mark.parametrize(
    "name",
    [
        "checkpoints",
        "samples",
        "adapter",
        "metrics.jsonl",
        "checkpoints/step_000009",
        ".writing_config.yaml",
        "metrics.writing",
        "adapter/README.md",
        "samples/.writing_step_000002",
        "samples/media",
        "model",
        "checkpoints/step_000002/state.json",
    ],
)
def test_nothing_is_written_or_deleted_through_a_link(config, run, tmp_path, name):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/step_000001").write_text("x")
    shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(tmp_path / "precious")
    before = inventory(tmp_path)
    for fresh in (False, True):
        with pytest.raises(ConfigError, match="through a link"):
            train(config, fresh=fresh)
    assert inventory(tmp_path) == before


def test_a_file_that_another_folder_shares_is_not_changed_there(config, run, tmp_path):
    """As after `cp -al`, which makes hard links."""
    (run / "summary.json").unlink()
    shutil.copytree(run, tmp_path / "other", copy_function=os.link)
    before = inventory(tmp_path / "other")
    train(config, checkpoint="step_000001")
    assert inventory(tmp_path / "other") == before and summary(run)["steps"] == 2


def test_starting_over_leaves_what_no_run_writes(config, run, caplog):
    own = (
        "notes.txt",
        "src/main.py",
        "samples/mine.txt",
        "adapter/notes.md",
        "checkpoints/step_000002/mine",
        "samples/media/x.png",
        "tiny.csv",
    )
    for name in own:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(name)
    (run / "samples/link.png").symlink_to("/etc/passwd")
    old = mark.read_mark(run).id
    mark.write_mark(run, mark.Mark(old, clearing=True))  # else the whole folder is moved aside
    run_folder.open_folder(read(config), fresh=True)
    assert [(run / name).read_text() for name in own] == list(own) and (run / "samples/link.png").is_symlink()
    left = {str(p.relative_to(run)) for p in run.rglob("*") if not p.is_dir()}
    assert left == {*own, "samples/link.png", "run.json", "config.yaml", "versions.json", "sources.json"}
    assert mark.read_mark(run).id != old and "notes.txt" in caplog.text


def test_starting_over_that_was_killed_is_ended_first(config, run, monkeypatch):
    def killed(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "protects", lambda _folder: False)
        patch.setattr(run_folder, "clear", killed)
        with pytest.raises(KeyboardInterrupt):
            run_folder.open_folder(read(config), fresh=True)
    assert mark.read_mark(run).clearing and checkpoint.steps(run / "checkpoints")
    train(config)  # without --fresh
    assert not mark.read_mark(run).clearing and summary(run)["steps"] == 2


# ── whose a checkpoint is ──


def sealed(path: Path, **changes: object) -> None:
    """Right hashes, whatever lies there."""
    manifest = json.loads((path / "manifest.json").read_text()) | changes
    hashes = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in path.iterdir() if p.name != "manifest.json"}
    manifest = {k: v for k, v in manifest.items() if v is not None} | {"sha256": hashes}
    (path / "manifest.json").write_text(json.dumps(manifest))


def with_state(**changes: object):
    def forge(path: Path) -> None:
        state = json.loads((path / "state.json").read_text()) | changes
        (path / "state.json").write_text(json.dumps({k: v for k, v in state.items() if v != "gone"}))
        sealed(path)

    return forge


def deep(path: Path) -> None:
    (path / "state.json").write_text('{"step": ' + "[" * 100_000)
    sealed(path)


def garbage(path: Path) -> None:
    (path / "weights.safetensors").write_bytes(b"\xff" * 100)
    sealed(path)


def no_optimiser(path: Path) -> None:
    (path / "optimizer.safetensors").unlink()
    sealed(path)


def odd_optimiser(path: Path) -> None:
    import torch

    save_file({"x/y": torch.zeros(1)}, path / "optimizer.safetensors")
    sealed(path)


FORGED = {
    "another run": lambda p: sealed(p, run="0" * 32),
    "no run": lambda p: sealed(p, run=None),
    "a run that is a list": lambda p: sealed(p, run=[1]),
    "manifest's step is a text": lambda p: sealed(p, step="2"),
    "manifest's step is true": lambda p: sealed(p, step=True),
    "manifest's step is negative": lambda p: sealed(p, step=-2),
    "manifest's step is another": lambda p: sealed(p, step=1),
    "manifest's step is missing": lambda p: sealed(p, step=None),
    "manifest is deep": lambda p: (p / "manifest.json").write_text("[" * 100_000),
    "manifest says a key twice": lambda p: (p / "manifest.json").write_text('{"step": 2, "step": 2}'),
    "step is a text": with_state(step="2"),
    "step is missing": with_state(step="gone"),
    "step is negative": with_state(step=-3),
    "step is large": with_state(step=10**9),
    "step is a list": with_state(step=[2]),
    "step is a fraction": with_state(step=2.0),
    "best score is a text": with_state(best_score="high"),
    "best step is a text": with_state(best_step="two"),
    "calls are a list": with_state(calls=[1]),
    "calls are texts": with_state(calls={"train_calls": "x"}),
    "seconds lack one": with_state(seconds={}),
    "the last evaluation is a text": with_state(eval_last="x"),
    "measures are texts": with_state(eval_before={"eval/score": "x"}),
    "learner is a text": with_state(learner="x"),
    "counters are texts": with_state(learner={"counters": {"updates": "x"}, "parts": {}}),
    "counters are missing": with_state(learner={}),
    "parts are a text": with_state(learner={"counters": {"updates": 1}, "parts": 3}),
    "rules are a text": with_state(rules="x"),
    "stopped early is a number": with_state(stopped_early=3),
    "the state is deep": deep,
    "weights are garbage": garbage,
    "no optimiser": no_optimiser,
    "an optimiser of other names": odd_optimiser,
    "a link among the files": lambda p: (
        (p / "state.json").rename(p.parent / "s"),
        (p / "state.json").symlink_to("../s"),
    ),
}


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=() if i < 18 else pytest.mark.slow) for i, k in enumerate(FORGED)]
)
def test_a_forged_checkpoint_is_refused(config, run, kind):
    (run / "summary.json").unlink()
    FORGED[kind](run / "checkpoints/step_000002")
    with pytest.raises(CheckpointError, match="step_000002"):
        train(config, ["steps=2"])


def test_checkpoints_that_changed_names_are_refused(config, run):
    (run / "summary.json").unlink()
    one, two = run / "checkpoints/step_000001", run / "checkpoints/step_000002"
    one.rename(run / "x"), two.rename(one), (run / "x").rename(two)
    with pytest.raises(CheckpointError, match="step_000002 is a checkpoint of step 1"):
        train(config)
    with pytest.raises(CheckpointError, match="step_000001 is a checkpoint of step 2"):
        train(config, checkpoint="step_000001")


def test_a_checkpoint_of_another_run_is_refused_and_not_deleted(config, run, tiny_sd3, tmp_path):
    (tmp_path / "other").mkdir()
    train(write_config(tmp_path / "other", tiny_sd3, SHORT | {"seed": 5}))
    (run / "summary.json").unlink()
    theirs = run / "checkpoints/step_000002"
    shutil.rmtree(theirs)
    shutil.copytree(tmp_path / "other/runs/tiny/checkpoints/step_000002", theirs)
    before = inventory(theirs)
    with pytest.raises(CheckpointError, match=r"of another run .*copy its whole folder.*policy\.lora\.start_from"):
        train(config)
    with pytest.raises(CheckpointError, match="of another run"):
        evaluate(run, trust=True)
    for settings in ({"checkpoint": "step_000001"}, {"fresh": True}):
        with pytest.raises(CheckpointError, match="of another run, which is neither overwritten nor deleted"):
            train(config, **settings)
    assert inventory(theirs) == before


def test_a_copy_of_the_whole_folder_goes_on(config, run, done):
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints/step_000002")
    train(config)
    assert weights(run, 2) == weights(done, 2) and mark.read_mark(run).id == mark.read_mark(done).id


def test_a_run_goes_on_where_it_was_moved_to_and_renamed(config, run, done, tmp_path):
    (run / "summary.json").unlink()
    (run / "events.jsonl").write_bytes(b"\xff\xfe no text")
    shutil.rmtree(run / "checkpoints/step_000002")
    (tmp_path / "elsewhere").mkdir()
    run.rename(tmp_path / "elsewhere/renamed")
    train(config, [f"runs_dir={tmp_path}/elsewhere", "name=renamed"])
    assert weights(tmp_path / "elsewhere/renamed", 2) == weights(done, 2)
    with pytest.raises(ConfigError, match=r"another config \(seed"):
        train(config, [f"runs_dir={tmp_path}/elsewhere", "name=renamed", "seed=3"])


def test_a_run_of_a_version_without_marks_goes_on(config, run, done):
    (run / "summary.json").unlink()
    (run / "run.json").unlink()
    for path in (run / "checkpoints").iterdir():
        sealed(path, run=None)
    shutil.rmtree(run / "checkpoints/step_000002")
    train(config)
    assert weights(run, 2) == weights(done, 2)
    assert mark.read_mark(run).adopted and checkpoint.run_of(run / "checkpoints/step_000002") == mark.read_mark(run).id


def test_a_mark_that_was_lost_is_made_again(run, config):
    old = mark.read_mark(run).id
    (run / "run.json").unlink()
    assert mark.owner(run) == mark.Mark(old)
    run_folder.open_folder(read(config), fresh=False)
    assert mark.read_mark(run).id == old


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"steps": 2}', "\x00"])
def test_a_damaged_summary_is_written_again(config, run, text, done):
    (run / "summary.json").write_text(text)
    assert run_folder.finished(run_folder.RunFolder(run)) is None


# ── what a run folder may import ──


def test_a_run_folder_imports_nothing_of_its_own_without_trust(done, tmp_path, monkeypatch):
    assert is_own(done) and evaluate(done)["eval/score"] == summary(done)["eval_after"]["score"]
    copy = tmp_path / "copy"
    shutil.copytree(done, copy)
    (copy / "evil_part.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(copy)
    assert not is_own(copy)
    with pytest.raises(ConfigError, match=r"tiny_rewards:bright.*--trust"):
        evaluate(copy)
    assert evaluate(copy, trust=True) == evaluate(done)
    recorded = yaml.safe_load((done / "config.yaml").read_text())
    for key, value in (
        ("sketch", "evil_part:x"),
        ("engine", {"kind": "evil_part:x"}),
        ("collector", {"kind": "evil_part:x"}),
    ):
        (copy / "config.yaml").write_text(yaml.safe_dump(recorded | {"rewards": {}, key: value}))
        for path in (copy, copy / "config.yaml"):
            with pytest.raises(ConfigError, match=r"evil_part:x.*--trust"):
                read(path)
    with pytest.raises(ConfigError, match="imported"):
        read(copy, trust=True)


def test_a_signature_is_of_the_place_and_of_the_text(done, tmp_path):
    shutil.copytree(done, tmp_path / "a")
    assert not is_own(tmp_path / "a")
    run_folder.replace_text(tmp_path / "a/config.yaml", (done / "config.yaml").read_text() + "\n")
    assert not is_own(tmp_path / "a") and is_own(done)


def test_a_run_folder_sends_no_secret_without_trust(done, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(done, copy)
    recorded = yaml.safe_load((done / "config.yaml").read_text())
    judge = {"kind": "server", "base_url": "http://x/v1", "model": "m", "api_key_env": "SECRET"}
    recorded["rewards"] = {"r": {"use": {"kind": "yes_no", "vlm": judge}}}
    (copy / "config.yaml").write_text(yaml.safe_dump(recorded))
    with pytest.raises(ConfigError, match=r"'SECRET'.*--trust"):
        read(copy)


# ── the folder during the run ──


def test_a_folder_that_vanishes_stops_the_run_with_a_sentence_and_goes_on_when_it_is_back(config, done, tmp_path):
    run, away = tmp_path / "runs/tiny", tmp_path / "away"

    def vanish(step, _row):
        if step == 1 and not away.exists():
            run.rename(away)

    with pytest.raises(TrainingStopped, match="could not be written.*same command"):
        train(config, on_step=vanish)
    if run.exists():
        shutil.rmtree(run)
    away.rename(run)
    train(config)
    assert weights(run, 2) == weights(done, 2)


@pytest.mark.parametrize(
    "failure",
    [
        PermissionError(13, "Permission denied"),
        OSError(30, "Read-only file system"),
        OSError(5, "Input/output error"),
        OSError(116, "Stale file handle"),
    ],
)
def test_a_folder_that_cannot_be_written_stops_the_run_with_a_sentence(config, tmp_path, monkeypatch, failure, done):
    def fail(*_args, **_kwargs):
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(trainer.metrics, "append", fail)
        with pytest.raises(TrainingStopped, match=failure.strerror):
            train(config)
    train(config)
    assert weights(tmp_path / "runs/tiny", 2) == weights(done, 2)


def test_a_reward_that_moves_or_switches_gradients_off_changes_nothing(config, tmp_path, done, monkeypatch):
    import tiny_rewards
    import torch

    original = tiny_rewards.bright

    def bright(*arguments):
        os.chdir("/")
        torch.set_grad_enabled(False)
        return original(*arguments)

    def work():
        train(config, ["runs_dir=here"])
        assert Path.cwd() == tmp_path and torch.is_grad_enabled()

    monkeypatch.chdir(tmp_path)
    said = tmp_path / "said.txt"
    assert in_child(work, said, patches=[(tiny_rewards, "bright", bright)]) == 0, said.read_text()
    assert weights(tmp_path / "here/tiny", 2) == weights(done, 2)


@pytest.mark.parametrize("content", ["my notes", "12 34", "\u0663"])
def test_a_file_in_the_place_of_the_lock_is_not_emptied(config, tmp_path, content):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/.lock_tiny").write_text(content)
    with pytest.raises(UserError, match="no lock of this program"):
        train(config)
    assert (tmp_path / "runs/.lock_tiny").read_text() == content


def test_a_link_in_the_place_of_the_lock_is_not_followed(config, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "precious").write_text("")
    (tmp_path / "runs/.lock_tiny").symlink_to("../precious")
    with pytest.raises(UserError):
        train(config)
