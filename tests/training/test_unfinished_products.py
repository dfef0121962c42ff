"""A run that cannot go on leaves the product of what it has learnt."""

from __future__ import annotations

import json

import pytest
import tiny_rewards
import torch
from safetensors.torch import load_file
from tiny_runs import write_config

from grpo_mm.entry import train
from grpo_mm.errors import TrainingStopped
from grpo_mm.objectives.clipped_ratio import ClippedRatio
from grpo_mm.tools.export import export

LORA = "pytorch_lora_weights.safetensors"
NAN = float("nan")
TRAINED = {"eval_prompts": None, "steps": 4, "preflight": False, "updates": {"count": 1}}


def fails_from(call: int, how):
    calls = [0]

    def reward(images, prompts, metadata):
        calls[0] += 1
        return how(images) if calls[0] >= call else tiny_rewards.bright(images, prompts, metadata)

    return reward


def raises(images):
    raise RuntimeError("the judge is gone")


HOW = {
    "raises": raises,
    "is NaN": lambda images: [NAN] * len(images),
    "says that it does not apply": lambda images: [None] * len(images),
    "gives too few": lambda images: [1.0],
    "gives texts": lambda images: ["good"] * len(images),
    "is infinite": lambda images: [float("inf")] * len(images),
}


@pytest.mark.parametrize("how", HOW)
def test_a_reward_that_fails_for_all_rows_ends_the_run_with_the_product_of_the_step_before(how, tiny_sd3, tmp_path):
    with pytest.raises(TrainingStopped, match="step 3: "):
        train(write_config(tmp_path, tiny_sd3, TRAINED), rewards={"own": fails_from(3, HOW[how])})
    run = tmp_path / "runs/tiny"
    told = json.loads((run / "product.json").read_text())
    assert (told["step"], told["steps"], told["why"]) == (2, 4, "step 3 could not be done")
    assert "trained weights of step 2 of 4, step 3 could not be done" in (run / "adapter/README.md").read_text()
    found, weights = load_file(run / "adapter" / LORA), load_file(run / "checkpoints/step_000002/weights.safetensors")
    assert all(torch.equal(found[f"transformer.{k.replace('.default', '')}"], v) for k, v in weights.items())


def test_the_same_command_goes_on_and_its_product_takes_the_place(tiny_sd3, tmp_path):
    config = write_config(tmp_path, tiny_sd3, TRAINED)
    with pytest.raises(TrainingStopped):
        train(config, rewards={"own": fails_from(3, raises)})
    train(config, rewards={"own": fails_from(99, raises)}, accept=True)
    told = json.loads((tmp_path / "runs/tiny/product.json").read_text())
    assert (told["step"], told["why"]) == (4, "the last step")


@pytest.mark.parametrize("more", [{"optim": {"lr": 0.5}}, {"seed": 7}, {"group_size": 2}])
def test_such_a_run_gives_way_to_another_config_and_its_product_moves_aside(more, tiny_sd3, tmp_path):
    """A run without a checkpoint cannot go on; what it leaves is kept all the same."""
    config = write_config(tmp_path, tiny_sd3, TRAINED | {"checkpoints": {"every": 99}})
    with pytest.raises(TrainingStopped):
        train(config, rewards={"own": fails_from(3, raises)})
    left = (tmp_path / "runs/tiny/adapter" / LORA).read_bytes()
    train(write_config(tmp_path, tiny_sd3, TRAINED | more), rewards={"own": fails_from(99, raises)})
    assert json.loads((tmp_path / "runs/tiny/product.json").read_text())["step"] == 4
    assert (tmp_path / "runs/tiny.1/adapter" / LORA).read_bytes() == left
    assert json.loads((tmp_path / "runs/tiny.1/product.json").read_text())["step"] == 2


@pytest.mark.parametrize(("good", "step", "within"), [(2, 2, 0), (3, 1, 1)])
def test_updates_that_are_no_numbers_end_it_so_too(good, step, within, tiny_sd3, tmp_path, monkeypatch):
    """Where the step that broke off had made an update already, the product says so."""
    calls, original = [0], ClippedRatio.__call__

    def spoil(self, values, view):
        calls[0] += 1
        spoiled = {**values, "logprobs": values["logprobs"] * NAN} if calls[0] > good else values
        return original(self, spoiled, view)

    monkeypatch.setattr(ClippedRatio, "__call__", spoil)
    settings = TRAINED | {
        "updates": {"count": 1 + within}, "optim": {"max_bad_updates": 1}, "policy": {"micro_batch": 64},
    }  # fmt: skip
    with pytest.raises(TrainingStopped, match="1 updates in a row"):
        train(write_config(tmp_path, tiny_sd3, settings))
    told = json.loads((tmp_path / "runs/tiny/product.json").read_text())
    words = f"step {step + 1} could not be done" + ", after 1 updates of it" * within
    assert (told["step"], told["why"]) == (step, words)


def test_a_run_that_learnt_nothing_leaves_nothing(tiny_sd3, tmp_path):
    with pytest.raises(TrainingStopped, match="step 1: "):
        train(write_config(tmp_path, tiny_sd3, TRAINED), rewards={"own": fails_from(1, raises)})
    assert not (tmp_path / "runs/tiny/adapter").exists() and not (tmp_path / "runs/tiny/product.json").exists()


def test_a_product_that_cannot_be_written_hides_no_reason(tiny_sd3, tmp_path, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("grpo_mm.training.ending.save_product", full)
    with pytest.raises(TrainingStopped, match="the judge is gone"):
        train(write_config(tmp_path, tiny_sd3, TRAINED), rewards={"own": fails_from(2, raises)})
    assert "no product was written" in caplog.text


def test_export_makes_it_of_any_checkpoint_of_such_a_run(tiny_sd3, tmp_path):
    with pytest.raises(TrainingStopped):
        train(write_config(tmp_path, tiny_sd3, TRAINED), rewards={"own": fails_from(3, raises)})
    export(tmp_path / "runs/tiny", checkpoint=1, to=tmp_path / "one")
    assert "weights of step 1 of 4" in (tmp_path / "one/README.md").read_text()


@pytest.mark.parametrize("metric", ["reward/bright/mean", "image/luminance", "optim/lr"])
def test_a_watch_that_stops_leaves_it_with_its_name(metric, tiny_sd3, tmp_path):
    rule = {"metric": metric, "low": 1e9, "action": "stop"}
    train(write_config(tmp_path, tiny_sd3, TRAINED | {"watch": {"bounds": rule}}))
    told = json.loads((tmp_path / "runs/tiny/product.json").read_text())
    assert (told["step"], told["why"]) == (1, "stopped early by watch: bounds")
    assert (tmp_path / "runs/tiny/adapter" / LORA).is_file()
