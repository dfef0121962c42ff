"""Results out: the product of any checkpoint, of an interrupted run, and evidence of evaluations."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_runs import summary, write_config
from typer.testing import CliRunner

from grpo_mm.cli import app
from grpo_mm.entry import train
from grpo_mm.errors import CheckpointError, ConfigError
from grpo_mm.looking.samples import read_sheets
from grpo_mm.tools.export import export
from grpo_mm.tools.held_out import held_out
from grpo_mm.tools.inference import Loaded, sample
from grpo_mm.types import Rows

LORA = "pytorch_lora_weights.safetensors"


def code_of(product: Path) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (product / "README.md").read_text(), re.DOTALL)
    return code.replace("path/of/this/folder", str(product))


def drawn(product: Path, prompt: str, latents) -> np.ndarray:
    """What the card's lines draw from that noise, in 0 to 255."""
    found: dict = {"latents": latents}
    call = f'pipe({prompt!r}, latents=latents, output_type="np",'
    exec(code_of(product).replace('pipe("a prompt",', call), found)
    return found["image"] * 255


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(float)


@pytest.fixture(scope="module")
def run(tiny_sd3, tmp_path_factory) -> Path:
    """Three steps, a checkpoint and an evaluation at each, with averaged weights and guidance."""
    changes = {
        "evaluation": {"every": 1, "samples_per_prompt": 2}, "checkpoints": {"every": 1, "keep_last": 4}, "optim": {"lr": 0.02},
        "ema": {"decay": 0.5, "every_updates": 1}, "policy": {"guidance": 3.0},
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("run")
    train(write_config(folder, tiny_sd3, changes))
    return folder / "runs/tiny"


def averaged(run: Path, step: int) -> dict[str, torch.Tensor]:
    """The averaged weights of a checkpoint, by the names of the adapter's file."""
    stored = load_file(run / f"checkpoints/step_{step:06d}/snapshots.safetensors")
    ours = {k.removeprefix("ema/"): v for k, v in stored.items() if k.startswith("ema/")}
    return {f"transformer.{k.replace('.default', '')}": v for k, v in ours.items()}


@pytest.mark.parametrize("step", [1, 3])
def test_an_export_holds_the_weights_of_its_checkpoint_and_says_which(step, run, tmp_path):
    out = export(run, checkpoint=step, to=tmp_path / "out")
    found, wanted = load_file(out / LORA), averaged(run, step)
    assert found.keys() == wanted.keys() and all(torch.equal(found[k], wanted[k]) for k in wanted)
    card = (out / "README.md").read_text()
    assert f"averaged weights of step {step} of 3, exported by its number" in card
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (score,) = [row["eval/score"] for row in rows if row["step"] == step and "eval/score" in row]
    assert f"| score = bright/mean | {summary(run)['eval_before']['score']:.4f} | {score:.4f} |" in card
    assert "2 steps of Euler's method" in card and "guidance 3;" in card and "shift " in card


@pytest.mark.parametrize("merged", [False, True])
def test_plain_diffusers_draws_from_an_export_as_the_run_does(merged, run, tmp_path):
    out = export(run, checkpoint=1, to=tmp_path / "out", merged=merged)
    assert (out / "model_index.json").is_file() == merged and ("load_lora" in code_of(out)) != merged
    made = sample(run, prompts=["a red circle"], out=tmp_path / "made", checkpoint=1)
    latents = load_file(tmp_path / "made/latents.safetensors")["latents"]
    assert np.abs(drawn(out, "a red circle", latents) - pixels(made.files[0])).max() < 1
    assert made.step == 1 and made.averaged


def test_the_card_draws_the_pictures_of_the_report(run):
    loaded = Loaded(run, overrides=[], checkpoint=None, scores=True)
    prompts = tuple(p for source in loaded.config.eval_prompts.values() for p in source.use.load())
    (sheet,) = [s for s in read_sheets(run / "samples") if s.name == "eval_after" or s.name == "eval_step_000003"]
    (cell,) = [cell for cell in sheet.cells if cell.prompt == prompts[1].text]
    rows = Rows(prompts, torch.tensor([1]), torch.tensor([0]), 1)
    noise = loaded.config.engine.evaluation_noise(loaded.policy, rows, seed=loaded.config.evaluation.seed)
    in_report = np.asarray(Image.open(sheet.png).crop(cell.box_px)).astype(float)
    assert np.abs(drawn(run / "adapter", prompts[1].text, noise) - in_report).max() < 1


def test_an_export_overwrites_nothing_and_lies_in_the_run_unless_a_place_is_named(run, tmp_path):
    assert export(run) == run / "export/step_000003"
    before = (run / "export/step_000003/README.md").stat().st_mtime_ns
    for to in (None, run / "adapter", tmp_path / "link"):
        (tmp_path / "link").is_symlink() or (tmp_path / "link").symlink_to(tmp_path)
        with pytest.raises(ConfigError, match="nothing in it is overwritten|not written through"):
            export(run, to=to)
    assert (run / "export/step_000003/README.md").stat().st_mtime_ns == before


def test_the_best_is_the_one_with_the_best_held_out_score(run, tmp_path):
    best = summary(run)["best_step"]
    if best == 0:
        with pytest.raises(CheckpointError, match="step 0, of which there is no checkpoint"):
            export(run, checkpoint="best", to=tmp_path / "best")
    else:
        out = export(run, checkpoint="best", to=tmp_path / "best")
        assert f"of step {best} of 3, exported as the best one" in (out / "README.md").read_text()
    (run / "summary.json").rename(tmp_path / "summary.json")
    (run / "checkpoints/step_000003/state.json").write_text(
        (state := (run / "checkpoints/step_000003/state.json").read_text()).replace(
            f'"best_step": {best}', '"best_step": 2'
        )
    )
    try:
        out = export(run, checkpoint="best", to=tmp_path / "of_the_newest_checkpoint")
        assert torch.equal(next(iter(load_file(out / LORA).values())), next(iter(sorted_as(out, averaged(run, 2)))))
    finally:
        (tmp_path / "summary.json").rename(run / "summary.json")
        (run / "checkpoints/step_000003/state.json").write_text(state)


def sorted_as(product: Path, tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [tensors[name] for name in load_file(product / LORA)]


@pytest.mark.parametrize("which", ["9", 9, "step_9", "nix", "", True, -1])
def test_a_checkpoint_that_is_not_there_is_told_with_those_that_are(which, run):
    with pytest.raises(CheckpointError, match=r"there are: .*step_000001, step_000002, step_000003"):
        export(run, checkpoint=which)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_the_product_of_that_step(number, tiny_sd3, tmp_path):
    config, run = write_config(tmp_path, tiny_sd3, {"checkpoints": {"every": 3}}), tmp_path / "runs/tiny"
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(config, on_step=lambda step, row: os.kill(os.getpid(), number) if step == 2 else None)
    weights = load_file(run / "checkpoints/step_000002/weights.safetensors")
    found = load_file(run / "adapter" / LORA)
    assert all(torch.equal(found[f"transformer.{k.replace('.default', '')}"], v) for k, v in weights.items())
    words = f"trained weights of step 2 of 3, interrupted by {number.name}"
    card = (run / "adapter/README.md").read_text()
    assert words in card and "not evaluated on the held-out prompts" in card
    assert words in CliRunner().invoke(app, ["report", str(run)]).output + (run / "report.html").read_text()
    (run / "adapter/notes.txt").write_text("mine")
    train(config)
    told = summary(run)["product_of"]
    assert (told["step"], told["why"]) == (3, "the last step") and json.loads((run / "product.json").read_text()) == {
        "product": "adapter",
        **told,
    }
    assert "trained weights of step 3 of 3, the last step" in (run / "adapter/README.md").read_text()
    assert (run / "adapter/notes.txt").read_text() == "mine" and not list(run.glob(".writing_*"))


def test_a_large_product_is_left_to_export_at_an_interrupt(tiny_sd3, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("grpo_mm.training.ending.LARGEST_AT_AN_INTERRUPT", 100)
    with pytest.raises(KeyboardInterrupt):
        train(
            write_config(tmp_path, tiny_sd3, {"eval_prompts": None}),
            on_step=lambda step, row: os.kill(os.getpid(), signal.SIGINT),
        )
    run = tmp_path / "runs/tiny"
    assert not (run / "adapter").exists() and f"`grpo-mm export {run}` makes it of step 1" in caplog.text
    assert (export(run) / LORA).is_file()


def test_patience_says_why_and_which_step_was_the_best(tiny_sd3, tmp_path):
    changes = {"steps": 5, "evaluation": {"every": 1, "patience": 1}, "optim": {"lr": 0.0}}
    told = train(write_config(tmp_path, tiny_sd3, changes))["product_of"]
    assert told == {"step": 1, "steps": 5, "weights": "trained", "why": "stopped early by patience", "best_step": 0}
    card = (tmp_path / "runs/tiny/adapter/README.md").read_text()
    assert "no held-out score was better than that of step 0: before training" in card


def test_eval_keeps_predictions_truth_and_errors_and_overwrites_nothing(run):
    found = held_out(run)
    again = held_out(run, checkpoint="last", overrides=["evaluation.limit=1"])
    assert (found.folder, again.folder) == (run / "evals/001", run / "evals/002")
    assert found.metrics["eval/score"] == pytest.approx(summary(run)["eval_after"]["score"], abs=1e-7)
    rows = [json.loads(line) for line in (found.folder / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and found.prompts == 2 and found.samples_per_prompt == 2 and found.step == 3
    means = [fmean(r["rewards"]["bright"]["score"] for r in rows if r["id"] == i) for i in {r["id"] for r in rows}]
    assert fmean(means) == pytest.approx(found.metrics["eval/score"], abs=1e-6)
    for key in ("eval/score", "eval/bright/mean"):
        assert found.standard_errors[key] == pytest.approx(stdev(means) / 2**0.5, rel=1e-6)
    assert again.standard_errors == {} and again.prompts == 1
    shown = [row for row in rows if row["picture"]]
    latents = load_file(found.folder / "latents.safetensors")["latents"]
    assert len(shown) == len(latents) == 2
    for row, noise in zip(shown, latents):
        assert (
            np.abs(drawn(run / "adapter", row["prompt"], noise[None]) - pixels(found.folder / row["picture"])).max() < 1
        )
    lines = [json.loads(line) for line in (run / "evals.jsonl").read_text().splitlines()]
    assert [line["folder"] for line in lines] == ["evals/001", "evals/002"]
    assert lines[0]["metrics"]["eval/score"] == found.metrics["eval/score"] and lines[1]["overrides"] == [
        "evaluation.limit=1"
    ]


def test_samples_lie_in_the_run_numbered_and_as_json(run):
    for number in ("001", "002"):
        said = CliRunner().invoke(
            app, ["sample", str(run), "--prompt", "a red circle", "--json"], catch_exceptions=False
        )
        found = json.loads(said.stdout)
        assert found["files"] == [str(run / f"samples_drawn/{number}/000_0.png")] and Path(found["files"][0]).is_file()
        assert found["asked"] == ["a red circle"] and (found["step"], found["weights"]) == (3, "averaged")
