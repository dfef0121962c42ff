"""The benchmark of a vision-language step runs without a checkpoint, and times the same amount of work at every step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from typer.testing import CliRunner

from grpo_mm.cli import app
from grpo_mm.config.run_config import read
from grpo_mm.errors import UserError
from grpo_mm.pipelines.zoo.random_clips import RandomClips
from grpo_mm.pipelines.zoo.random_weights import vision_language_config
from grpo_mm.processes.distributed import Processes
from grpo_mm.tools.bench import NETWORK, bench, table
from grpo_mm.training.learner import Learner

CONFIGS = sorted((ROOT / "configs/bench").glob("qwen*.yaml"))
TINY = (
    "policy.path=random:qwen2_5_vl/tiny", "policy.dtype=float32", "prompts.clips.use.frames=8", "prompts.clips.use.height=56",
    "prompts.clips.use.width=84", "engine.max_new_tokens=12", "device=cpu",
)  # fmt: skip
each_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)


@each_config
def test_the_benchmark_of_a_tiny_size_times_every_phase(path):
    found = bench(path, TINY, steps=2)
    assert found["rows"] == 8 and found["steps"] == 2
    assert found["calls_per_step"] == {"rollout_calls": 8, "train_calls": 8, "ref_calls": 8, "rewards": 8}
    assert {"encode", "rollout_network", "train_network", "ref_network", "optim"} <= set(found["seconds_by_phase"])
    assert sum(found["seconds_by_phase"].values()) == pytest.approx(found["seconds_per_step"], rel=0.3)
    assert 0 < found["outside_share"] < 1 and found["peak_memory_mib"] >= 0
    assert "peak memory above" in table(found)


def test_the_command_prints_what_was_measured():
    result = CliRunner().invoke(app, ["bench", str(CONFIGS[0]), *TINY, "--steps", "1", "--json"])
    assert json.loads(result.output)["seconds_by_phase"]["train_network"] > 0


@each_config
def test_random_weights_answer_to_the_limit_and_give_a_gradient(path, tmp_path):
    learner = _learner(path, tmp_path)
    (batch,), _ = learner.rollout(0)
    assert batch.rollout.columns["length"].tolist() == [12] * 8
    assert len(set(batch.scores["chance"]["score"].tolist())) > 1
    found = learner.step(0)
    assert found["optim/grad_norm"] > 0 and found["policy/logprob_gap"] < 1e-4 and found["rollout/media_failed"] == 0


def test_frames_are_seen_in_the_size_that_the_config_says(tmp_path):
    learner = _learner(CONFIGS[0], tmp_path)
    context = learner.policy.encode(RandomClips(count=1).load()[0])
    video_token = learner.policy.model.config.video_token_id
    assert int((context.input_ids_L == video_token).sum()) == 64 // 2 * (224 // 28) * (392 // 28) == 3584


def test_an_unknown_size_names_those_that_there_are(tmp_path):
    with pytest.raises(UserError, match=r"no size 'qwen2_5_vl/72b'; there are: qwen2_5_vl/3b, qwen2_5_vl/7b"):
        _learner(CONFIGS[0], tmp_path, "policy.path=random:qwen2_5_vl/72b")


@pytest.mark.parametrize(("size", "billions"), [("qwen2_5_vl/3b", (3.09, 0.67)), ("qwen2_5_vl/7b", (7.62, 0.68))])
def test_random_weights_have_the_published_number_of_parameters(size, billions):
    """Of the language model with its head, and of the vision tower with its merger."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(vision_language_config(size)[0])
    tower = sum(p.numel() for p in model.model.visual.parameters())
    total = sum(p.numel() for p in model.parameters())
    assert ((total - tower) / 1e9, tower / 1e9) == pytest.approx(billions, abs=0.01)


def _learner(path: Path, folder: Path, *overrides: str) -> Learner:
    config = read(path, [*TINY, *overrides])
    config.check()
    return Learner(config, Processes(device="cpu"), samples=folder)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@each_config
def test_a_step_of_the_real_size_runs_on_the_gpu(path):
    found = bench(path, steps=1)
    assert found["calls_per_step"]["train_calls"] == 8 and found["peak_memory_mib"] > 1000
    assert sum(found["seconds_by_phase"].get(name, 0) for name in NETWORK) > 0.5 * found["seconds_per_step"]
