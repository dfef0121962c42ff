"""The checkpoint's own grid is that of its plain pipeline, whatever its scheduler says; another is told of, or refused."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FluxPipeline,
    StableDiffusion3Pipeline,
)

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.flow.engines.engine import FlowEngine
from grpo_mm.pipelines.flow.models.flux import Flux
from grpo_mm.pipelines.flow.models.sd3 import Sd3
from grpo_mm.pipelines.flow.own_schedule import (
    check_scheduler_files,
    in_plain_diffusers,
    own_schedule,
    tell_of_another_grid,
)
from grpo_mm.pipelines.flow.policy import FlowPolicyConfig
from grpo_mm.pipelines.flow.schedule import DiffusersSd3, FluxShift, Shifted

SCHEDULERS = {
    "shift 1": {"shift": 1.0},
    "shift 3": {"shift": 3.0},
    "dynamic": {"use_dynamic_shifting": True},
    "dynamic, linear, other lengths": {
        "use_dynamic_shifting": True, "time_shift_type": "linear", "base_shift": 0.3, "max_shift": 2.0,
        "base_image_seq_len": 16, "max_image_seq_len": 512,
    },
    "terminal": {"shift": 2.0, "shift_terminal": 0.1},
    "karras": {"shift": 3.0, "use_karras_sigmas": True},
    "exponential": {"shift": 3.0, "use_exponential_sigmas": True},
}  # fmt: skip
STEPS = 5


@pytest.fixture(scope="module", params=["sd3", "flux"])
def family(request):
    """(pipeline, whether it spaces evenly, image tokens of 32 × 32 pixels)"""
    path = request.getfixturevalue(f"tiny_{request.param}")
    pipeline, model = (StableDiffusion3Pipeline, Sd3) if request.param == "sd3" else (FluxPipeline, Flux)
    pipe = pipeline.from_pretrained(path)
    pipe.set_progress_bar_config(disable=True)
    return pipe, model.even_sigmas, model(path).image_tokens(pipe, 32, 32)


def draw(pipe, **call) -> torch.Tensor:
    """The noise levels that the plain pipeline samples on."""
    latents = torch.randn(1, 4, 16, 16) if isinstance(pipe, StableDiffusion3Pipeline) else torch.randn(1, 64, 16)
    pipe(
        "a red circle", height=32, width=32, latents=latents, max_sequence_length=8, output_type="latent", guidance_scale=1.0,
        **call,
    )  # fmt: skip
    return pipe.scheduler.sigmas.clone()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_grid_is_that_of_the_plain_pipeline(name, family):
    pipe, evenly, tokens = family
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULERS[name])
    found = own_schedule(pipe, evenly=evenly)(STEPS, image_tokens=tokens)
    torch.testing.assert_close(found, draw(pipe, num_inference_steps=STEPS), rtol=0, atol=1e-6)
    assert torch.equal(found, own_schedule(pipe, evenly=evenly)(STEPS, image_tokens=tokens))


OWN = [Shifted(5.0), DiffusersSd3(2.0), FluxShift(), FluxShift(base_tokens=16, max_tokens=99)]


@pytest.mark.parametrize("schedule", [*OWN, "a function"], ids=str)
def test_the_lines_of_the_card_make_the_grid_of_any_schedule(schedule, family):
    def steep(steps: int, *, image_tokens: int) -> torch.Tensor:
        return torch.linspace(1, 0, steps + 1) ** 3

    pipe, evenly, tokens = family
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    schedule = steep if schedule == "a function" else schedule
    settings, text = in_plain_diffusers(schedule, pipe, evenly=evenly, steps=STEPS, image_tokens=tokens)
    if settings is not None:
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(**settings)
    import numpy

    found = draw(pipe, sigmas=eval(text, {"numpy": numpy}))
    torch.testing.assert_close(found, schedule(STEPS, image_tokens=tokens), rtol=0, atol=2e-5)


REFUSED = {
    "stochastic": FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    "inverted": FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    "other timesteps": FlowMatchEulerDiscreteScheduler(num_train_timesteps=500),
    "another class": FlowMatchHeunDiscreteScheduler(),
    "none": None,
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_scheduler_that_cannot_be_followed_is_refused_and_a_named_grid_goes_on(name, caplog):
    pipe = SimpleNamespace(scheduler=REFUSED[name])
    with pytest.raises(ConfigError, match="scheduler|sampled by"):
        own_schedule(pipe, evenly=False)
    with caplog.at_level(logging.INFO, logger="grpo_mm"):
        tell_of_another_grid(Shifted(), pipe, evenly=False, steps=4, image_tokens=64)
    assert "engine.schedule is followed" in caplog.text


@pytest.mark.parametrize(
    "text", [None, "{", "[1]", '{"_class_name": "DDIMScheduler"}', '{"num_train_timesteps": "many"}', "\udcff"]
)
def test_files_of_a_scheduler_are_checked_before_anything_is_loaded(text, tiny_sd3, tmp_path):
    folder = Path(shutil.copytree(tiny_sd3, tmp_path / "m"))
    file = folder / "scheduler/scheduler_config.json"
    file.unlink() if text is None else file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError):
        check_scheduler_files(Sd3(str(folder)))


def test_one_word_about_another_grid_and_none_about_the_same(tiny_sd3, caplog):
    policy = FlowPolicyConfig(model=Sd3(tiny_sd3), height=32, width=32, text_length=8).load(torch.device("cpu"))
    with caplog.at_level(logging.INFO, logger="grpo_mm"):
        assert FlowEngine(schedule=DiffusersSd3(3.0)).on_grid_of(policy).schedule == DiffusersSd3(3.0)
        assert "schedule" not in caplog.text
        policy.grid_is_told = False
        for _ in range(3):
            FlowEngine(schedule=Shifted(3.0)).on_grid_of(policy)
    assert caplog.text.count("engine.schedule is followed") == 1
    own = FlowEngine().on_grid_of(policy).schedule(4, image_tokens=64)
    torch.testing.assert_close(own, DiffusersSd3(3.0)(4, image_tokens=64), rtol=0, atol=1e-6)


def test_longer_texts_than_plain_pipelines_take_are_refused(tiny_sd3):
    with pytest.raises(ConfigError, match="text_length = 513; wanted at most 512"):
        FlowPolicyConfig(model=Sd3(tiny_sd3), height=32, width=32, text_length=513).check()


def test_show_counts_what_would_be_loaded(tiny_sd3, tmp_path):
    from safetensors.torch import load_file, save_file

    from grpo_mm.pipelines.weight_files import Uncounted, count, weight_shapes

    source = Path(tiny_sd3) / "transformer"
    tensors = load_file(source / "diffusion_pytorch_model.safetensors")
    total = sum(t.numel() for t in tensors.values())
    plain = Path(shutil.copytree(source, tmp_path / "plain"))
    save_file({k: v.half() for k, v in tensors.items()}, plain / "diffusion_pytorch_model.fp16.safetensors")
    assert count(weight_shapes(plain)) == count(weight_shapes(plain, variant="fp16")) == total
    torch.save(tensors, plain / "diffusion_pytorch_model.bin")  # safetensors come first
    assert count(weight_shapes(plain)) == total
    (plain / "diffusion_pytorch_model.safetensors").unlink()
    assert count(weight_shapes(plain)) == total
    with pytest.raises(Uncounted):
        (plain / "diffusion_pytorch_model.bin").write_bytes(b"junk")
        weight_shapes(plain)

    sharded, names = tmp_path / "sharded", sorted(tensors)
    sharded.mkdir()
    files = {name: f"diffusion_pytorch_model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, sharded / file)
    (sharded / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    save_file({"left": torch.zeros(999)}, sharded / "diffusion_pytorch_model-00003-of-00003.safetensors")
    assert count(weight_shapes(sharded)) == total
    next(sharded.glob("*00002-of-00002*")).unlink()
    with pytest.raises(Uncounted, match="missing"):
        weight_shapes(sharded)
    tied = {"shared.weight": (7, 3), "encoder.embed_tokens.weight": (7, 3), "encoder.wo.weight": (3, 3)}
    assert count(tied) == 30 and count({"embed_tokens.weight": (7, 3), "lm_head.weight": (8, 3)}) == 45
