"""The shipped text-to-video model opens in plain diffusers, renders clips that hold together and is mediocre at obeying."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from grpo_mm.datasets.worlds.moving_shapes import (
    FPS,
    FRAMES,
    SIZE_PX,
    CaptionedClips,
    MovingShapesPrompts,
    caption,
    specs,
)
from grpo_mm.pipelines import zoo
from grpo_mm.pipelines.zoo import text_to_video
from grpo_mm.pipelines.zoo.clip_autoencoder import encode
from grpo_mm.rewards.clips.moving_shapes import MovingShapesReward, score

QUICKSTART = Path(__file__).parents[2] / "configs/quickstart/clips.yaml"
SIZE = {"num_frames": FRAMES, "height": SIZE_PX, "width": SIZE_PX}


@pytest.fixture(scope="module")
def pipe():
    from diffusers import WanPipeline

    return WanPipeline.from_pretrained(zoo.path("text_to_video"), local_files_only=True)


def test_a_plain_call_draws_a_clip_with_motion(pipe):
    prompt = MovingShapesPrompts("monitor", limit=1).load()[0]
    pipe.set_progress_bar_config(disable=True)
    call = {"prompt": prompt.text, "guidance_scale": 1.0, "num_inference_steps": 20, "output_type": "pt", **SIZE}
    frames = pipe(**call, generator=torch.Generator().manual_seed(0)).frames[0]
    assert frames.shape == (FRAMES, 3, SIZE_PX, SIZE_PX)
    assert (frames[-1] - frames[0]).abs().mean() > 0.01  # something moves
    assert frames.amax() > 0.7 and frames.mean() < 0.4  # bright things on dark ground


def test_it_obeys_in_part(pipe):
    found = text_to_video.score(
        pipe, MovingShapesPrompts("monitor", limit=48).load(), MovingShapesReward(), fps=FPS, **SIZE
    )
    assert 0.25 < found["score"] < 0.65


def test_its_autoencoder_keeps_what_the_reward_reads(pipe):
    by_text = {caption(spec): spec for spec in specs("train")}
    clips_NFHWC, captions = CaptionedClips()(24, random.Random(7))
    clips_NCFHW = torch.from_numpy(clips_NFHWC).permute(0, 4, 1, 2, 3)
    mean, std = (
        torch.tensor(v).view(1, -1, 1, 1, 1) for v in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std)
    )
    latents = encode(pipe.vae, clips_NCFHW)
    with torch.no_grad():
        decoded = pipe.vae.decode(latents * std + mean).sample
    frames_NFHWC = ((decoded.permute(0, 2, 3, 4, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    found = [score(frames, by_text[text]) for frames, text in zip(frames_NFHWC, captions)]
    assert np.mean([one["score"] for one in found]) > 0.9
    assert latents.mean().abs() < 0.1 and 0.8 < latents.std() < 1.2


def test_every_word_of_the_prompts_is_one_token(pipe):
    for prompt in MovingShapesPrompts("report").load():
        assert len(pipe.tokenizer(prompt.text).input_ids) == len(prompt.text.split()) + 1


def test_its_files_are_small():
    folder = zoo.path("text_to_video")
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 4 * 2**20


def test_the_model_is_built_from_scratch_in_real_format(tmp_path):
    from diffusers import WanPipeline

    prompts = MovingShapesPrompts("monitor", limit=2).load()
    stages = [
        text_to_video.Stage("two things", CaptionedClips(things=2), steps=1, lr=1e-3, pool=16),
        text_to_video.Stage(
            "one thing", CaptionedClips(), steps=1, schedule_steps=4, lr=1e-3, pool=16, prompts=prompts
        ),
    ]
    sizes = {"autoencoder_steps": 2, "decoder_steps": 1, "autoencoder_pool": 64, "dim": 32, "layers": 1}
    text_to_video.build(tmp_path, stages=stages, fps=FPS, reward=MovingShapesReward(), **sizes)
    pipe = WanPipeline.from_pretrained(tmp_path)
    clips = text_to_video.sample(pipe, ["a red circle moves left while a blue square stays"], steps=2, **SIZE)
    assert clips.shape == (1, FRAMES, 3, SIZE_PX, SIZE_PX) and clips.dtype == torch.uint8
    curve = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in curve] == ["two things", "one thing"] and curve[1]["score"] >= 0


def test_two_steps_of_the_quickstart_leave_a_model_that_plain_diffusers_draws_with(tmp_path):
    from diffusers import WanPipeline

    from grpo_mm.entry import train

    small = [
        "steps=2",
        "prompts_per_step=2",
        "group_size=4",
        "engine.eval_steps=4",
        "evaluation.samples_per_prompt=1",
        "threads=1",
    ]
    few = "eval_prompts={moving: {use: {kind: moving_shapes, split: report, limit: 4}}}"
    found = train(QUICKSTART, [*small, few, f"runs_dir={tmp_path}"])
    assert 0 <= found["eval_before"]["score"] <= 1 and np.isfinite(found["eval_after"]["moving/motion"])
    pipe = WanPipeline.from_pretrained(tmp_path / "quickstart_clips" / "model", local_files_only=True)
    clips = text_to_video.sample(pipe, ["a red circle moves left"], steps=2, **SIZE)
    assert clips.shape == (1, FRAMES, 3, SIZE_PX, SIZE_PX)
    before = WanPipeline.from_pretrained(zoo.path("text_to_video"), local_files_only=True).transformer.state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in pipe.transformer.state_dict().items())
