"""Checkpoints that several processes write together: read by any number of them, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from children import launch, launched
from safetensors.torch import load_file
from test_exactness import assert_equal, write
from test_sharding import SHARDED, TRAIN_ALL

from grpo_mm.config.typed_yaml import merge
from grpo_mm.entry import train
from grpo_mm.errors import CheckpointError
from grpo_mm.tools.export import export
from grpo_mm.weights import checkpoint
from grpo_mm.weights.shard_files import PART

STEPS = 3
SETTINGS = {
    "policy": {"lora": None}, "optim": {"lr": 1e-4}, "ema": {"decay": 0.5, "every_updates": 1}, "checkpoints": {"every": 1},
    "steps": STEPS,
}  # fmt: skip
BESIDE = {"checkpoints": {"every": 1, "in_background": True}}
KILLED = """
import os
import signal
import sys

from grpo_mm.entry import train
from grpo_mm.weights import checkpoint

there = checkpoint.write_parts


def write_parts(folder, tensors, *, rank):
    written = there(folder, tensors, rank=rank)
    if rank == 1 and folder.name.endswith("000002"):
        os.kill(os.getpid(), signal.SIGKILL)
    return written


checkpoint.write_parts = write_parts
train(sys.argv[1])
"""
ON_OWN_DISK = """
import os
import sys
from pathlib import Path
from grpo_mm.entry import train

disk = Path(sys.argv[2], "disk" + os.environ["RANK"])
disk.mkdir(exist_ok=True)
os.chdir(disk)
for steps in (2, 3):
    train(sys.argv[1], [f"steps={steps}", "runs_dir=runs", "name=" + ("tiny" if "replicated" in sys.argv[1] else "cut")])
"""
TRAIN_TO_TWO = """
import sys
from grpo_mm.entry import train

train(sys.argv[1], ["steps=2"])
"""


def last(config: Path, name: str) -> dict[str, torch.Tensor]:
    folder = config.parent / "runs/tiny/checkpoints"
    return dict(checkpoint.read(folder / checkpoint.name_of(STEPS)).tensors[name])


def steps_of(config: Path) -> list[int]:
    return checkpoint.steps(config.parent / "runs/tiny/checkpoints")


def assert_same(config: Path, other: Path) -> None:
    for part in ("weights", "snapshots", "optimizer"):
        found, wanted = last(config, part), last(other, part)
        held = [{k: v.double() for k, v in these.items() if not k.startswith("ref/")} for these in (found, wanted)]
        found, wanted = held
        assert_equal(found, wanted, to=1e-9)


@pytest.fixture(scope="module")
def whole(tiny_sd3, tmp_path_factory) -> Path:
    """The run of one process."""
    config = write(tmp_path_factory.mktemp("whole") / "run", tiny_sd3, SETTINGS)
    train(config)
    return config


@pytest.fixture(scope="module")
def begun(tiny_sd3, tmp_path_factory) -> Path:
    """Two steps by two processes."""
    folder = tmp_path_factory.mktemp("begun")
    config = write(folder / "run", tiny_sd3, merge(SETTINGS, SHARDED))
    script = folder / "train.py"
    script.write_text(TRAIN_TO_TWO)
    launch(script, config)
    return config


def copied(config: Path, to: Path) -> tuple[Path, Path]:
    """(the config, the newest checkpoint) of a copy of a run."""
    shutil.copytree(config.parent, to / "run")
    here = to / "run" / config.name
    here.write_text(config.read_text().replace(f"{config.parent}/runs", f"{here.parent}/runs"))
    return here, here.parent / "runs/tiny/checkpoints/step_000002"


def test_each_process_writes_a_part_of_every_tensor_and_nothing_twice(begun, tmp_path):
    _, path = copied(begun, tmp_path)
    hashes = json.loads((path / "manifest.json").read_text())["sha256"]
    parts = [f"{n}_{k:05d}_of_00002.safetensors" for n in ("optimizer", "snapshots", "weights") for k in (0, 1)]
    assert sorted(hashes) == sorted([*parts, "state.json"]) and all(PART.fullmatch(name) for name in parts)
    sizes = [(path / f"weights_{k:05d}_of_00002.safetensors").stat().st_size for k in (0, 1)]
    tensors = checkpoint.read(path).tensors["weights"]
    assert abs(sizes[0] - sizes[1]) < 0.1 * sizes[0]
    assert sum(sizes) < 1.2 * sum(t.numel() * t.element_size() for t in tensors.values())
    assert not any(other.name.startswith(".writing") for other in path.parent.iterdir())


@pytest.mark.parametrize("harm", ["truncated", "missing", "left out"])
def test_a_part_that_is_not_whole_is_refused_by_name(harm, begun, tmp_path):
    _, path = copied(begun, tmp_path)
    name = "weights_00001_of_00002.safetensors"
    if harm == "truncated":
        (path / name).write_bytes((path / name).read_bytes()[:-100])
    else:
        (path / name).unlink()
    if harm == "left out":
        manifest = json.loads((path / "manifest.json").read_text())
        del manifest["sha256"][name]
        (path / "manifest.json").write_text(json.dumps(manifest))
    said = "a part of .* is missing" if harm == "left out" else f"{name} is missing, truncated or altered"
    with pytest.raises(CheckpointError, match=rf"{said}.*--checkpoint step_000001"):
        checkpoint.read(path)


def test_a_reference_that_is_the_model_as_it_was_loaded_is_named_and_looked_at_again(begun, tmp_path):
    config, path = copied(begun, tmp_path)
    state = json.loads((path / "state.json").read_text())
    named = state["learner"]["reference"]
    assert named > 0 and not any(name.startswith("ref/") for name in checkpoint.read(path).tensors["snapshots"])
    state["learner"]["reference"] = named + 1
    (path / "state.json").write_text(json.dumps(state))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["sha256"]["state.json"] = hashlib.sha256((path / "state.json").read_bytes()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="reference, and that is another one now"):
        train(config, ["distributed.kind=replicated"])


def test_one_process_goes_on_with_the_same_result_and_exports_without_the_others(begun, whole, tmp_path):
    config, path = copied(begun, tmp_path)
    from diffusers import SD3Transformer2DModel

    product = export(config.parent / "runs/tiny", to=tmp_path / "product")
    found = SD3Transformer2DModel.from_pretrained(product / "transformer", torch_dtype=torch.float64).state_dict()
    averaged = {
        k.removeprefix("ema/"): v for k, v in checkpoint.read(path).tensors["snapshots"].items() if k[:4] == "ema/"
    }
    assert len(averaged) > 50 and all(torch.equal(found[name], value) for name, value in averaged.items())
    train(config, ["distributed.kind=replicated"])
    assert_same(config, whole)


@pytest.mark.slow
def test_two_processes_and_four_in_two_copies_go_on_with_the_same_result(begun, whole, tmp_path):
    for world, more in ((2, {}), (4, {"shard_over": 2})):
        folder = tmp_path / str(world)
        config, _ = copied(begun, folder)
        config.write_text(
            config.read_text().replace(
                "kind: sharded", f"kind: sharded\n  shard_over: {more.get('shard_over', 'null')}"
            )
        )
        script = folder / "train.py"
        script.write_text(TRAIN_ALL)
        launch(script, config, world=world)
        assert_same(config, whole)
        names = [p.name for p in (folder / "run/runs/tiny/checkpoints/step_000003").iterdir()]
        assert "weights_00001_of_00002.safetensors" in names and len(names) == 8
        file = "runs/tiny/model/transformer/diffusion_pytorch_model.safetensors"
        assert_equal(load_file(folder / "run" / file), load_file(whole.parent / file), to=1e-9)


@pytest.mark.slow
def test_nodes_with_disks_of_their_own(whole, tiny_sd3, tmp_path):
    """Whole weights: what the main process reads is sent. Cut ones have to be written by all, so the run says what it needs."""
    script = tmp_path / "train.py"
    script.write_text(ON_OWN_DISK)
    config = write(tmp_path / "replicated", tiny_sd3, SETTINGS)
    launch(script, config, tmp_path)
    found = dict(checkpoint.read(tmp_path / "disk0/runs/tiny/checkpoints/step_000003").tensors["weights"])
    assert_equal(found, last(whole, "weights"), to=1e-9)
    assert not list((tmp_path / "disk1").rglob("*.safetensors"))
    codes, said = launched(script, write(tmp_path / "sharded", tiny_sd3, merge(SETTINGS, SHARDED)), tmp_path)
    assert 0 not in codes and all("has to lie on a disk that all nodes share" in text for text in said)


@pytest.mark.slow
def test_checkpoints_beside_training_have_the_same_files(begun, tiny_sd3, tmp_path):
    config = write(tmp_path / "run", tiny_sd3, merge(merge(SETTINGS, SHARDED), BESIDE))
    script = tmp_path / "train.py"
    script.write_text(TRAIN_TO_TWO)
    launch(script, config)
    for step in (1, 2):
        found, wanted = (
            {
                p.name: p.read_bytes()
                for p in (c.parent / f"runs/tiny/checkpoints/step_00000{step}").glob("*.safetensors")
            }
            for c in (config, begun)
        )
        assert found == wanted and len(found) == 6
    assert steps_of(config) == [1, 2] and not list((config.parent / "runs/tiny/checkpoints").glob(".writing*"))


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, BESIDE], ids=["at once", "beside training"])
def test_a_process_that_is_killed_while_it_writes_leaves_the_earlier_checkpoint(more, whole, tiny_sd3, tmp_path):
    config = write(tmp_path / "run", tiny_sd3, merge(merge(SETTINGS, SHARDED), more))
    script, again = tmp_path / "killed.py", tmp_path / "again.py"
    script.write_text(KILLED)
    again.write_text(TRAIN_ALL)
    codes, said = launched(script, config)
    assert codes[1] == -9 and codes[0] != 0, said
    assert steps_of(config) == [1]
    launch(again, config)
    assert_same(config, whole)
