"""Checkpoints are all or nothing and loaded strictly; the record of a run survives being torn."""

from __future__ import annotations

import ast
import errno
import json
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from grpo_mm.errors import CheckpointError, TrainingStopped
from grpo_mm.looking import metrics
from grpo_mm.weights import checkpoint
from grpo_mm.weights.checkpoint import (
    Checkpoint,
    load_optimizer,
    load_strictly,
    name_of,
    optimizer_tensors,
    prune,
    read,
    steps,
    write,
)

ROOT = Path(__file__).parents[2]


def some(step: int = 0) -> Checkpoint:
    weights = {
        "a.weight": torch.randn(3, 2, generator=torch.Generator().manual_seed(step)),
        "b.low": torch.tensor([1.1, math.pi, -0.0, math.inf]).to(torch.bfloat16),
        "c.wide": torch.tensor([1 / 3, 1e-300], dtype=torch.float64),
        "d.count": torch.tensor(2**40 + step),
        "e.turned": torch.arange(6).view(2, 3).T,
    }
    state = {"step": step, "best_score": 1 / 3, "eval_before": None, "calls": {"train": 7}, "text": "π"}
    return Checkpoint({"weights": weights, "snapshots": {}}, state)


def assert_equal(found, wanted) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor), name


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two finished checkpoints."""
    write(tmp_path, some(1), step=1)
    write(tmp_path, some(2), step=2)
    return tmp_path


# ── writing and reading ──


def test_what_is_read_is_what_was_written_bit_for_bit(folder):
    found, wanted = read(folder / "step_000002"), some(2)
    assert_equal(found.tensors["weights"], wanted.tensors["weights"])
    assert found.tensors["snapshots"] == {} and found.state == wanted.state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_optimiser_takes_the_same_next_step(tmp_path, dtype):
    def trained():
        torch.manual_seed(0)
        params = [nn.Parameter(torch.randn(4, 3).to(dtype)), nn.Parameter(torch.randn(5).to(dtype))]
        return params, torch.optim.AdamW(params, lr=0.1, weight_decay=0.01)

    def advance(params, optimizer, count):
        for i in range(count):
            for k, p in enumerate(params):
                p.grad = torch.full_like(p, 0.3 * (i + 1) + k).cos()
            optimizer.step()

    params, optimizer = trained()
    advance(params, optimizer, 3)
    weights = {str(i): p.detach() for i, p in enumerate(params)}
    path = write(tmp_path, Checkpoint({"weights": weights, "optimizer": optimizer_tensors(optimizer)}, {}), step=3)
    advance(params, optimizer, 2)

    again, fresh = trained()
    loaded = read(path)
    load_strictly({str(i): p for i, p in enumerate(again)}, loaded.tensors["weights"], what="weights")
    load_optimizer(fresh, loaded.tensors["optimizer"])
    advance(again, fresh, 2)
    assert all(torch.equal(p, q) for p, q in zip(again, params))


def test_an_optimiser_that_never_stepped_can_be_stored():
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(2))])
    assert optimizer_tensors(optimizer) == {}
    load_optimizer(optimizer, {})


def test_a_checkpoint_of_the_same_step_replaces_the_older_one(folder):
    write(folder, some(7), step=2)
    assert read(folder / "step_000002").state["step"] == 7 and steps(folder) == [1, 2]


def test_only_finished_checkpoints_count(folder):
    (folder / ".writing_step_000003").mkdir()
    (folder / "step_best").mkdir()
    (folder / "notes.txt").write_text("")
    assert steps(folder) == [1, 2] and steps(folder / "nowhere") == []
    assert name_of(12) == "step_000012"


def test_pruning_keeps_what_it_is_told_and_clears_what_an_interrupted_write_left(folder):
    (folder / ".writing_step_000003").mkdir()
    prune(folder, keep={2})
    assert sorted(p.name for p in folder.iterdir()) == ["step_000002"]


# ── damage ──


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def rewrite(path: Path, **change) -> None:
    manifest = json.loads(path.read_text()) | change
    path.write_text(json.dumps({k: v for k, v in manifest.items() if v is not None}))


DAMAGE = {
    "truncated weights": (lambda p: truncate(p / "weights.safetensors"), r"weights\.safetensors is missing, truncated"),
    "altered weights": (
        lambda p: flip(p / "weights.safetensors"),
        r"weights\.safetensors is missing, truncated or altered",
    ),
    "altered state": (lambda p: flip(p / "state.json"), r"state\.json is missing, truncated or altered"),
    "weights gone": (lambda p: (p / "weights.safetensors").unlink(), r"weights\.safetensors is missing"),
    "truncated manifest": (lambda p: truncate(p / "manifest.json"), r"manifest\.json is damaged"),
    "binary manifest": (lambda p: (p / "manifest.json").write_bytes(b"\xff\xfe\x00"), r"manifest\.json is damaged"),
    "empty manifest": (lambda p: (p / "manifest.json").write_text("[]"), r"manifest\.json is damaged"),
    "manifest without hashes": (lambda p: rewrite(p / "manifest.json", sha256=None), r"manifest\.json is damaged"),
    "manifest without state": (
        lambda p: (
            (p / "state.json").unlink(),
            rewrite(p / "manifest.json", sha256=dict.fromkeys(["weights.safetensors", "snapshots.safetensors"], "")),
        ),
        r"does not list state\.json",
    ),
    "no manifest": (
        lambda p: (p / "manifest.json").unlink(),
        r"not a checkpoint of this program: it has no manifest\.json",
    ),
    "foreign format": (
        lambda p: rewrite(p / "manifest.json", format="other 1"),
        "has the format 'other 1', wanted 'grpo_mm",
    ),
    "surplus file": (lambda p: (p / "extra.pt").write_bytes(b"x"), r"does not list: extra\.pt\. Remove them"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_or_foreign_checkpoint_is_refused_by_name_with_advice(folder, name):
    damage, wanted = DAMAGE[name]
    damage(folder / "step_000002")
    with pytest.raises(CheckpointError, match=wanted) as caught:
        read(folder / "step_000002")
    assert str(folder / "step_000002") in str(caught.value)
    assert str(caught.value).endswith("--checkpoint step_000001.")
    read(folder / "step_000001")


def test_without_another_checkpoint_the_advice_is_to_start_over(tmp_path):
    path = write(tmp_path, some(), step=1)
    flip(path / "state.json")
    with pytest.raises(CheckpointError, match="There is no other one: start over with --fresh"):
        read(path)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda w: w.pop("a.weight"), r"1 tensors missing \(first: \['a.weight'\]\), 0 surplus"),
        (lambda w: w.update(z=torch.zeros(1)), r"0 tensors missing .* 1 surplus \(first: \['z'\]\)"),
        (lambda w: w.update({"a.weight": torch.zeros(2, 3)}), r"a.weight has shape \(2, 3\), wanted \(3, 2\)"),
    ],
    ids=["missing", "surplus", "misshapen"],
)
def test_weights_that_do_not_fit_the_model_are_refused_and_change_nothing(change, wanted):
    params = {name: nn.Parameter(t.clone(), requires_grad=False) for name, t in some(1).tensors["weights"].items()}
    weights = dict(some(2).tensors["weights"])
    change(weights)
    with pytest.raises(CheckpointError, match=wanted):
        load_strictly(params, weights, what="weights.safetensors")
    assert_equal({k: p.data for k, p in params.items()}, some(1).tensors["weights"])


# ── a full disk, a sudden end ──


def no_space(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_space_in_rust(*_args, **_kwargs):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("module", "name", "failure"),
    [
        (checkpoint, "save_file", no_space),
        (checkpoint, "save_file", no_space_in_rust),
        (os, "replace", no_space),
        (os, "fsync", no_space),
    ],
    ids=["while writing", "while writing, in safetensors", "while renaming", "while flushing"],
)
def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint_intact(folder, monkeypatch, module, name, failure):
    monkeypatch.setattr(module, name, failure)
    with pytest.raises(TrainingStopped) as caught:
        write(folder, some(3), step=3)
    monkeypatch.undo()
    message = str(caught.value)
    assert "step_000003 could not be written: there is no space left on the device" in message
    assert "The last checkpoint, step_000002, is intact. Free some space and give the same command again" in message
    assert sorted(p.name for p in folder.iterdir()) == ["step_000001", "step_000002"]
    assert read(folder / "step_000002").state["step"] == 2


def test_a_disk_that_fails_otherwise_is_not_called_full(folder, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(TrainingStopped, match="Permission denied") as caught:
        write(folder, some(3), step=3)
    assert "space" not in str(caught.value)


def test_a_full_disk_at_the_first_checkpoint_says_that_there_is_no_earlier_one(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "save_file", no_space)
    with pytest.raises(TrainingStopped, match="There is no earlier checkpoint"):
        write(tmp_path, some(), step=1)


def test_a_run_killed_while_it_writes_leaves_the_last_checkpoint(folder, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    monkeypatch.setattr(os, "replace", kill)
    with pytest.raises(Killed):
        write(folder, some(3), step=3)
    monkeypatch.undo()
    assert steps(folder) == [1, 2]
    read(write(folder, some(3), step=3))  # the second attempt is not in the way of what the first one left
    prune(folder, keep={3})
    assert sorted(p.name for p in folder.iterdir()) == ["step_000003"]


# ── the record ──


def test_rows_are_read_as_they_were_written_and_what_is_not_finite_is_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics.append(path, {"step": 1, "reward/a/mean": 1 / 3})
    metrics.append(path, {"step": 2, "reward/a/mean": math.nan, "loss/total": math.inf})
    assert metrics.read(path) == [
        {"step": 1, "reward/a/mean": 1 / 3},
        {"step": 2, "reward/a/mean": None, "loss/total": None},
    ]
    assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()
    assert metrics.read(tmp_path / "nothing.jsonl") == []


def test_a_torn_last_line_is_left_out_and_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        metrics.append(path, {"step": step})
    whole = path.read_text()
    path.write_text(whole + '{"step": 3, "reward/a/me')
    assert [row["step"] for row in metrics.read(path)] == [1, 2]
    metrics.cut_back(path, step=9)
    assert path.read_text() == whole


def test_cutting_back_keeps_the_rows_up_to_the_checkpoint_to_the_last_digit(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in range(5):
        metrics.append(path, {"step": step, "loss/total": 0.1 * step, "optim/grad_norm": math.nan})
    first_three = "".join(path.read_text().splitlines(keepends=True)[:3])
    metrics.cut_back(path, step=2)
    assert path.read_text() == first_three
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_finished_run_forgets_its_last_evaluation_only(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [
        {"step": 0, "eval/score": 0.1},
        {"step": 1},
        {"step": 1, "eval/score": 0.2},
        {"step": 2},
        {"step": 2, "eval/score": 0.3},
    ]
    for row in rows:
        metrics.append(path, row)
    metrics.cut_back(path, step=2, without_eval=True)
    assert metrics.read(path) == rows[:4]


# ── nothing unpickles ──


def unpickling(tree: ast.AST):
    """Lines that could run foreign bytes as code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            if {alias.name for alias in node.names} == {"UnpicklingError"}:  # what weights_only raises
                continue
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            if {m.split(".")[0] for m in modules} & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}:
                yield node.lineno
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            settings = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            called = f"{getattr(node.func.value, 'id', '')}.{node.func.attr}"
            if called == "torch.load" and settings.get("weights_only") is not True or settings.get("allow_pickle"):
                yield node.lineno


def test_no_code_of_ours_unpickles():
    files = [p for folder in ("grpo_mm", "pipelines", "rewards", "datasets") for p in (ROOT / folder).rglob("*.py")]
    found = [f"{path.relative_to(ROOT)}:{line}" for path in files for line in unpickling(ast.parse(path.read_text()))]
    ours = {
        "grpo_mm/rollout/isolated.py",
        "grpo_mm/rollout/isolated_process.py",
    }  # between a run and the child that it started
    assert len(files) > 40 and {place.partition(":")[0] for place in found} == ours


def test_the_search_for_unpickling_finds_it():
    text = "import pickle\nfrom dill import loads\ntorch.load(f)\nnp.load(f, allow_pickle=True)\n"
    text += "torch.load(f, weights_only=True)\n"
    assert list(unpickling(ast.parse(text))) == [1, 2, 3, 4]
