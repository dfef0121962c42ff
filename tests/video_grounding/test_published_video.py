"""Every shipped video config prints its arithmetic, and takes full training steps on a tiny checkpoint of its model format."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from taught_vlm import teach, write_data
from typer.testing import CliRunner

from grpo_mm.cli import app
from grpo_mm.config.run_config import read
from grpo_mm.config.typed_yaml import read_yaml
from grpo_mm.datasets.video.timelens import TEMPLATE
from grpo_mm.entry import train
from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.video_grounding.difficulty import DifficultyAugmentation
from grpo_mm.pipelines.video_grounding.shuffled_frames import MeasureShuffled
from grpo_mm.processes.distributed import Processes
from grpo_mm.registry import entries
from grpo_mm.training.learner import Learner

CONFIGS = sorted((ROOT / "configs/video").glob("*.yaml"))
FORMATS = {"qwen25vl": "qwen2_5_vl", "qwen3vl": "qwen3_vl"}
"""Part of a config's name → the model format."""
HERE = {
    "annotations": "a.json",
    "eval_annotations": "e.json",
    "nextgqa": "n.json",
    "videos": "v",
    "nextgqa_videos": "v",
    "eval_videos": "v",
    "got10k": "g.json",
    "got10k_pictures": "p",
}
PLACES = [f"data.{key}={value}" for key, value in HERE.items()]
"""All paths that a user gives, those that a config does not ask for included."""
ALIKE = ("tempsamp_downscaling_qwen25vl_7b", "time_r1_finetune_qwen25vl_7b", "timelens_qwen25vl_7b")
"""Settings much like others; they take their full step among the slow tests."""
each_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, str]:
    """Model format → a tiny checkpoint that writes well-formed answers at random."""
    folder = tmp_path_factory.mktemp("taught")
    return {name: teach(name, folder / name, questions=("", TEMPLATE)) for name in FORMATS.values()}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def paths_and_sizes(checkpoints, files, tmp_path):
    """Overrides that a user without the data and the GPUs would give: paths, frame and batch sizes, lengths; nothing else."""

    def of(path: Path) -> list[str]:
        plain = read_yaml(path, PLACES)
        form = {part: next(iter(plain[part].values()))["use"]["kind"] for part in ("prompts", "eval_prompts")}
        sampling = plain["policy"]["media"]["sampling"]
        return [
            f"data.annotations={files[form['prompts']]}", f"data.eval_annotations={files[form['eval_prompts']]}",
            f"data.nextgqa={files['nextgqa']}", f"data.videos={files['videos']}", f"data.nextgqa_videos={files['videos']}",
            f"data.got10k={files['got10k']}", f"data.got10k_pictures={files['pictures']}", f"data.eval_videos={files['videos']}",
            *(["prompts.grounding.use.min_seconds=1"] if form["prompts"] == "timelens_100k" else []),
            f"policy.path={checkpoints[FORMATS[path.stem.split('_')[-2]]]}", "policy.dtype=float32",
            "policy.media.sampling.min_pixels_frame=784", "policy.media.sampling.max_pixels_frame=1568",
            "policy.media.sampling.multiple_of=28",  # of the tiny models, whatever their format
            *(["policy.media.sampling.frames=4"] if sampling.get("frames") else []),
            "policy.micro_batch=16", "engine.max_new_tokens=40", "steps=1", "device=cpu",
            # Anchored to its best own sample, an annotation teaches nothing where the three own samples are equal, one group in seven.
            f"prompts_per_step={8 if 'anchoring' in path.stem else 2}",
            "evaluation={every: 0, limit: 1}", f"runs_dir={tmp_path}/runs",
        ]  # fmt: skip

    return of


def config_of(stem: str) -> Path:
    return ROOT / f"configs/video/{stem}.yaml"


def learner_of(stem: str, overrides: list[str], folder: Path) -> Learner:
    config = read(config_of(stem), overrides)
    config.check()
    return Learner(config, Processes(device="cpu"), samples=folder)


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=pytest.mark.slow if path.stem in ALIKE else ()) for path in CONFIGS]
)
def test_published_setting_takes_a_full_step(path, paths_and_sizes):
    overrides, rows = paths_and_sizes(path), []
    summary = train(path, overrides, on_step=lambda step, row: rows.append(row))
    (row,) = rows
    assert summary["steps"] == 1
    assert math.isfinite(row["loss/total"]) and row["optim/bad_updates"] == 0
    # Whether a group of a random model differs in what it earns is a matter of draws; if one does, it teaches.
    assert (row["optim/grad_norm"] > 0) == (row["advantage/zero_groups_frac"] < 1)
    assert row["reward/failed_frac"] == 0 and row["rollout/media_failed"] == 0
    assert row["policy/logprob_gap"] < 1e-4
    assert set(_means(row)) == set(read(path, overrides).rewards)
    assert any(math.isfinite(mean) for mean in _means(row).values())
    check_calls(read(path, overrides), row)


def _means(row: dict[str, float]) -> dict[str, float]:
    return {
        key.split("/")[1]: value for key, value in row.items() if key.startswith("reward/") and key.endswith("/mean")
    }


def check_calls(config: Any, row: dict[str, float]) -> None:
    """What a step counted is what its plan says; demonstrations are not drawn, and get their old log-probabilities at once, or
    (old_logprobs: auto) from the forward of their only update."""
    planned, prompts, group = config.network_calls(), config.prompts_per_step, config.group_size
    demos = prompts * (config.engine.demonstrate is not None)
    if isinstance(config.collector, DifficultyAugmentation):  # the first step changes no prompt
        assert row["calls/rollout_calls"] == prompts * group and planned["rollout"] == 3 * prompts * group
    else:
        shuffled = prompts * group // 2 if isinstance(config.collector, MeasureShuffled) else 0
        assert row["calls/rollout_calls"] == planned["rollout"] - demos == prompts * group + shuffled - demos
    assert row["calls/train_calls"] == planned["train"]
    from_update = config.old_logprobs == "auto" and config.updates.total == 1
    assert row.get("calls/value_calls", 0) == planned.get("value", 0 if from_update else demos)
    assert row.get("calls/ref_calls", 0) == planned.get("ref", 0)
    assert 0 < row["calls/ema_calls"] <= planned["ema"] if "ema" in planned else "calls/ema_calls" not in row


@each_config
def test_show_prints_the_arithmetic_of_every_video_config(path):
    plain = read_yaml(path, PLACES)
    result = CliRunner().invoke(app, ["show", str(path), *PLACES, "--no-memory"])
    prompts, group = plain["prompts_per_step"], plain["group_size"]
    assert f"{prompts} prompts × {group} samples = {prompts * group} rows per step" in result.output
    assert "network calls per step" in result.output and "reward calls per step" in result.output
    further = {"video_r1": (prompts, group // 2), "deepvideo_r1": (2 * prompts, group)}.get(path.stem.rsplit("_", 2)[0])
    told = further and f"beside the groups the collector samples up to {further[0]} × {further[1]} rows"
    assert told in result.output if told else "beside the groups" not in result.output
    rows = prompts * group + (further[0] * further[1] if further else 0)
    assert f"network calls per step: {rows} rollout" in result.output
    assert f"reward calls per step: {rows * len(plain['rewards'])} " in result.output
    read(path, PLACES).check_settings()


@each_config
def test_a_config_without_its_paths_says_which_to_give(path):
    with pytest.raises(ConfigError, match=r"asks for data\.annotations; set data\.annotations="):
        read(path)


def test_every_video_config_is_a_preset_of_the_registry():
    presets = {entry.config for entry in entries("preset") if "/video/" in entry.config}
    assert presets == {str(path.relative_to(ROOT)) for path in CONFIGS}


@pytest.mark.parametrize("name", ["", "anchoring_", "downscaling_"])
def test_tempsamp_puts_the_annotation_into_each_group_and_thinks_in_its_second_phase(name, paths_and_sizes, tmp_path):
    stem = f"tempsamp_{name}qwen25vl_7b"
    phases = ["steps=2", "prompts.direct.until_step=1", "prompts.think.from_step=1"]
    learner = learner_of(stem, [*paths_and_sizes(config_of(stem)), *phases], tmp_path)
    group, prompts = learner.config.group_size, learner.config.prompts_per_step
    for step in (0, 1):
        (batch,), _ = learner.rollout(step)
        demo_N = batch.rollout.columns["demo"].bool()
        assert demo_N.view(-1, group).sum(1).tolist() == [1] * prompts and demo_N.view(-1, group)[:, -1].all()
        iou_N, format_N = batch.scores["iou"]["score"], batch.scores["format"]["score"]
        assert torch.equal(iou_N[demo_N], torch.ones(prompts).to(iou_N))
        assert all("think" in prompt.text for prompt in batch.rollout.prompts) == (step == 1)
        earned = learner.table(batch)
        for stage in learner.config.advantage:
            earned = stage(earned)
        found = learner.step(step)
        assert found["policy/logprob_gap"] < 1e-4 and math.isfinite(found["loss/total"])
        assert found["reward/iou/mean"] == pytest.approx(float(iou_N[~demo_N].mean()))
        assert float(iou_N.mean()) != pytest.approx(float(iou_N[~demo_N].mean()))
        if step == 0:
            assert math.isnan(found["reward/format/mean"])
        else:
            assert found["reward/format/mean"] == pytest.approx(float(format_N[~demo_N].mean()))
        (advantage_M,) = earned.values.values()
        assert advantage_M.isfinite().all() and float(advantage_M.abs().sum()) > 0


def test_tempsamp_anchors_the_annotation_above_the_best_own_sample(paths_and_sizes, tmp_path):
    stem = "tempsamp_anchoring_qwen25vl_7b"
    learner = learner_of(stem, [*paths_and_sizes(config_of(stem)), "prompts_per_step=8"], tmp_path)
    (batch,), _ = learner.rollout(0)
    table = learner.table(batch)
    for stage in learner.config.advantage:
        table = stage(table)
    (advantage_M,) = table.values.values()
    rows_PG = advantage_M.view(8, 4)
    varied_P = rows_PG[:, :3].std(1) > 0
    assert varied_P.any()
    best_P = rows_PG[:, :3].amax(1)
    anchored_P = varied_P & (best_P > 0) & (rows_PG[:, :3].sum(1).abs() < 1e-6)
    assert anchored_P.any() and torch.allclose(rows_PG[anchored_P, 3], 1.2 * best_P[anchored_P])


def test_care_pays_the_bonus_for_likely_answers_that_are_right(paths_and_sizes, tmp_path):
    stem = "care_qwen25vl_7b"
    learner = learner_of(stem, [*paths_and_sizes(config_of(stem)), "prompts_per_step=8"], tmp_path)
    (batch,), _ = learner.rollout(0)
    likelihood_N = batch.rollout.columns["answer_likelihood"]
    told_N = torch.tensor(["<answer>" in text and "</answer>" in text for text in batch.outputs.items])
    assert likelihood_N.isfinite().any() and not likelihood_N[~told_N].isfinite().any()
    table = learner.table(batch)
    bonus = learner.config.advantage[0]
    paid_N = bonus(table).values["accuracy"] / table.values["accuracy"].clamp_min(1e-9)
    right_N = table.values["accuracy"] > 0.1
    assert set(paid_N[right_N].round(decimals=6).tolist()) <= {1.0, 1.5} and (paid_N[right_N] == 1.5).any()
    assert not (paid_N[right_N & ~likelihood_N.isfinite()] == 1.5).any()


def test_the_slow_copy_of_care_moves_by_its_share_and_only_serves_as_a_reference():
    ema = read(config_of("care_qwen25vl_7b"), PLACES).ema
    assert [ema.decay_at(n) for n in (0, 1, 150)] == [0.995] * 3 and not ema.evaluate


def test_video_r1_measures_shuffled_frames_beside_the_rollout(paths_and_sizes, tmp_path):
    stem = "video_r1_qwen25vl_7b"
    learner = learner_of(stem, paths_and_sizes(config_of(stem)), tmp_path)
    found = learner.step(0)
    (batch,), _ = learner.rollout(1)
    assert 0 <= found["rollout/shuffled_accuracy"] <= 1
    assert batch.rollout.columns["shuffled_accuracy"].isfinite().all() and batch.rollout.num_rows == 2 * 8
    assert [type(stage).__name__ for stage in learner.config.advantage[:2]] == ["TemporalBonus", "LengthBonus"]


def test_deepvideo_changes_prompts_by_their_difficulty(paths_and_sizes, tmp_path):
    stem = "deepvideo_r1_qwen25vl_3b"
    learner = learner_of(stem, [*paths_and_sizes(config_of(stem)), "steps=3"], tmp_path)
    means = learner.config.collector.means
    found = [learner.step(0)]
    assert found[0]["difficulty/noised_frac"] == found[0]["difficulty/hinted_frac"] == 0  # nothing to compare with yet
    assert len(means) == 2 and "objective/ref_kl" in found[0]
    means.append(-9.0)  # as if all had been far harder so far, whatever the model answers now
    found += [learner.step(step) for step in (1, 2)]
    assert found[1]["difficulty/noised_frac"] == 1 and len(means) == 1 + 3 * 2
    assert all(f["policy/logprob_gap"] < 1e-4 and math.isfinite(f["loss/total"]) for f in found)


def test_time_r1_asks_unsolved_rows_first(paths_and_sizes, tmp_path):
    stem = "time_r1_qwen25vl_7b"
    learner = learner_of(stem, [*paths_and_sizes(config_of(stem)), "steps=2"], tmp_path)
    found = [learner.step(step) for step in range(2)]
    assert found[0]["rollout/unsolved_frac"] == 1 and all("rollout/solved_prompts" in f for f in found)
    assert learner.config.collector.means


def test_videochat_scores_each_source_by_its_own_rewards(paths_and_sizes, tmp_path):
    stem = "videochat_r1_qwen25vl_7b"
    learner = learner_of(stem, [*paths_and_sizes(config_of(stem)), "prompts_per_step=8"], tmp_path)
    (batch,), _ = learner.rollout(0)
    source_N = [batch.rollout.prompts[p].source for p in batch.rollout.prompt_N.tolist()]
    table = learner.table(batch)
    scored = {
        "grounding": ("iou", "format"),
        "grounded_qa": ("answer", "glue_iou", "glue_format"),
        "tracking": ("track_iou", "track_format"),
    }
    assert set(source_N) == set(scored) and {name for names in scored.values() for name in names} == set(table.values)
    for source, names in scored.items():
        for name in names:
            assert table.values[name].isfinite().tolist() == [found == source for found in source_N]
    assert all("<think>" in prompt.text for prompt in batch.rollout.prompts)
