"""What samples, replays and adds noise knows nothing of a time axis; geometry of clips is checked before anything is loaded."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from test_conform_clips import folder  # noqa: F401
from wan_models import SIZE, WanModel, checkpoint

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.flow.clips.wan import Wan
from grpo_mm.pipelines.flow.clips.wan_i2v import WanI2V
from grpo_mm.pipelines.flow.kernels import cps, dance_sde, ddim, flow_sde, gaussian_logprob, ode
from grpo_mm.pipelines.flow.models.networks import batches
from grpo_mm.pipelines.flow.models.qwen_image import QwenImage
from grpo_mm.pipelines.flow.own_schedule import followed, own_schedule
from grpo_mm.pipelines.flow.policy import FlowPolicyConfig
from grpo_mm.types import Clip, Clips, pick_items, sound_items

FLOW = ROOT / "pipelines/flow"
KNOWS_NO_TIME = [
    *(FLOW / "trees").glob("*.py"), *(FLOW / "engines").glob("*.py"),
    *(FLOW / f"{name}.py" for name in ("kernels", "noise", "calibrated", "record", "solver", "schedule")),
]  # fmt: skip


@pytest.mark.parametrize("file", KNOWS_NO_TIME, ids=lambda file: file.stem)
def test_no_word_of_clips_stands_in_what_samples_and_replays(file: Path):
    assert not re.findall(r"\b(frames?|clips|video|Clips?|draws_clips|\w*FCHW)\b", file.read_text())


@pytest.mark.parametrize("kernel", [ode, flow_sde, dance_sde, cps, ddim])
def test_a_kernel_does_the_same_whatever_the_axes_of_a_latent(kernel):
    generator = torch.Generator().manual_seed(0)
    x, velocity = torch.randn(2, 3, 4, 5, 2, 6, generator=generator)
    flat, packed = ((x.reshape(3, -1), velocity.reshape(3, -1)), (x.reshape(3, 8, 30), velocity.reshape(3, 8, 30)))
    sigma, sigma_next, level = torch.tensor([0.9, 0.7, 0.5]), torch.tensor([0.8, 0.5, 0.2]), torch.full((3,), 0.6)
    mean, std = kernel(x, velocity, sigma, sigma_next, level)
    assert mean.shape == x.shape
    for form in (flat, packed):
        other, other_std = kernel(*form, sigma, sigma_next, level)
        torch.testing.assert_close(other.reshape(mean.shape), mean, rtol=0, atol=0)
        if kernel is not ode:
            torch.testing.assert_close(
                gaussian_logprob(form[0], other, other_std), gaussian_logprob(x, mean, std), rtol=1e-6, atol=1e-6
            )


def test_states_of_one_kind_come_in_one_forward():
    assert batches(torch.tensor([0, 1, 0, 0, 1]), 2).tolist() == [0, 2, 0, 1, 2]
    assert batches(torch.zeros(5, dtype=torch.int64), 2).tolist() == [0, 0, 1, 1, 2]


def test_a_clip_that_is_none_stands_for_no_picture():
    frames = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 2, 2)
    clips = Clips([Clip(frames, 8.0), None, Clip(frames, 8.0)])
    images, sound = sound_items(clips)
    assert sound.tolist() == [0, 2] and images.unique().tolist() == [2]
    assert isinstance(clips[1:], Clips) and isinstance(pick_items(clips, torch.tensor([2])), Clips)


@pytest.mark.parametrize(
    "settings, said",
    [
        (
            {"frames": 6},
            "policy.frames = 6; wanted one more than a multiple of 4, of which the decoder makes them: 5 or 9",
        ),
        ({"eval_frames": 0}, "policy.eval_frames = 0"),
        ({"fps": 0.0}, "policy.fps = 0; wanted above 0"),
        ({"height": 24}, "policy.height = 24; wanted a multiple of 16"),
    ],
)
def test_a_geometry_that_cannot_be_drawn_is_refused(settings, said):
    given = dict(height=32, width=48, frames=5)
    with pytest.raises(ConfigError, match=re.escape(said)):
        FlowPolicyConfig(model=Wan("Wan-AI/Wan2.1-T2V-1.3B-Diffusers"), **(given | settings)).check()


def test_settings_of_clips_and_of_experts_are_refused_where_there_are_none():
    with pytest.raises(ConfigError, match=r"policy.frames = 5: QwenImage draws pictures; leave it out"):
        FlowPolicyConfig(model=QwenImage("Qwen/Qwen-Image"), frames=5).check()
    with pytest.raises(ConfigError, match=r"guidance_2=3: Wan-AI/\S+ has one network"):
        FlowPolicyConfig(model=Wan("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", guidance_2=3.0), guidance=4.0).check()
    one = Wan("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", trained=("transformer_2",))
    with pytest.raises(ConfigError, match=r"trained=\['transformer_2'\]: Wan-AI/\S+ has one network"):
        FlowPolicyConfig(model=one, guidance=4.0).check()
    with pytest.raises(ConfigError, match="wanted 512: the checkpoint's network takes the last 512 tokens"):
        FlowPolicyConfig(model=WanI2V("Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"), text_length=128).check()


def test_a_family_says_what_its_checkpoints_draw():
    small, middle = Wan("Wan-AI/Wan2.1-T2V-1.3B-Diffusers"), Wan("Wan-AI/Wan2.2-TI2V-5B-Diffusers")
    assert (small.frames, small.fps, middle.frames, middle.fps) == (81, 16, 121, 24)
    names = (
        "Wan2.1-I2V-14B-480P-Diffusers",
        "Wan2.1-FLF2V-14B-720P-diffusers",
        "Wan2.2-I2V-A14B-Diffusers",
        "Wan2.2-TI2V-5B-Diffusers",
    )
    assert [WanI2V(f"Wan-AI/{name}").pictures for name in names] == [(1, 1), (2, 2), (1, 2), (1, 1)]
    config = FlowPolicyConfig(
        model=small, height=240, width=416, frames=33, eval_height=480, eval_width=832, eval_frames=81
    )
    assert config.size(evaluation=False) == (33, 240, 416) and config.size(evaluation=True) == (81, 480, 832)
    assert not FlowPolicyConfig(model=Wan("Wan-AI/Wan2.2-T2V-A14B-Diffusers")).blocks_in_order


def test_a_multistep_scheduler_is_followed_by_the_euler_steps_of_its_shift(folder):  # noqa: F811
    model = WanModel("t2v", checkpoint("t2v", folder))
    policy = model.load()
    scheduler = policy.pipe.scheduler
    assert type(scheduler).__name__ == "UniPCMultistepScheduler" and followed(scheduler).config.shift == 3.0
    grid = own_schedule(policy.pipe, evenly=False)
    plain = followed(scheduler)
    plain.set_timesteps(4)
    torch.testing.assert_close(grid(4, image_tokens=18), plain.sigmas)
    assert "in the place of its UniPCMultistepScheduler" in grid.in_words(image_tokens=18)
    odd = type(scheduler).from_config(scheduler.config, use_flow_sigmas=False, use_karras_sigmas=True)
    policy.pipe.scheduler = odd
    with pytest.raises(ConfigError, match="use_flow_sigmas: False"):
        own_schedule(policy.pipe, evenly=False)


def test_the_lines_of_the_model_card_draw_the_clip_of_the_evaluation(folder):  # noqa: F811
    """On a grid that the pipeline cannot be told by an argument."""
    from grpo_mm.pipelines.flow.schedule import Shifted

    model = WanModel("t2v", checkpoint("t2v", folder))
    policy = model.load(lora=None)
    engine = model.engine(schedule=Shifted(5.0))
    code = engine.usage(policy)["code"]
    assert f"num_frames={SIZE[0]}" in code and "fps=16" in code
    latents = engine.evaluation_noise(policy, model.rows(1), seed=0)[:1]
    lines = [line for line in code.splitlines() if "export_to_video" not in line]
    text = "\n".join(lines).replace('"path/of/this/folder"', repr(model.path))
    text = text.replace('pipe("a prompt", ', 'pipe(words, latents=latents, output_type="pt", ')
    there = {"words": model.prompts[0].text, "latents": latents}
    exec(text, there)  # noqa: S102
    ours = engine.render(policy, model.rows(1), seed=0)[0].frames_FCHW.int()
    assert (ours - (there["frames"] * 255).round().int()).abs().max() <= 1


def test_the_lines_of_a_card_take_the_first_frame_though_no_prompt_was_seen(folder):  # noqa: F811
    """As `grpo-mm export` writes them."""
    policy = WanModel("i2v", checkpoint("i2v", folder)).load()
    assert "image=picture" in policy.usage()["code"]


def test_show_says_both_geometries_and_which_expert_is_trained(folder):  # noqa: F811
    from grpo_mm.pipelines.flow.ledger import _drawn
    from grpo_mm.pipelines.flow.models.known import known_pipeline

    model = WanModel("a14b", checkpoint("a14b", folder), settings=(("trained", ("transformer",)), ("guidance_2", 2.0)))
    pipe, _ = known_pipeline(model.family)
    policy = model.load(eval_frames=9)
    policy.pipe = pipe
    lines = "\n".join(_drawn(SimpleNamespace(net=policy, condition={}), policy.size(evaluation=False), model.engine()))
    assert "16 image tokens (5 frames of 32 × 64 pixels) in 3 steps" in lines
    assert "24 image tokens (9 frames of 32 × 64 pixels) in 3 steps; 16 frames a second" in lines
    assert "transformer from σ = 0.875 up, guidance 4; transformer_2 below, guidance 2; trained: transformer" in lines
    assert "texts are filled up to 16 tokens" in lines
