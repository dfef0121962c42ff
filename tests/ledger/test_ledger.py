"""The ledger against what real runs hold: predicted without numbers, measured with them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from grpo_mm.config.run_config import read
from grpo_mm.ledger.counting import Counter
from grpo_mm.pipelines import zoo
from grpo_mm.pipelines.vlm.ledger import vlm_ledger
from grpo_mm.pipelines.vlm.seen import Seen
from grpo_mm.processes.distributed import Processes
from grpo_mm.training.forecast import ledger_of, plan_of
from grpo_mm.training.learner import Learner

ROOT = Path(__file__).parents[2]
OF_A_STEP = "of a step", "of other policies", "of a step's prompts"
SMALL = ("device=cpu", "watch={}", "samples_every=0")


def measured(config, tmp_path) -> int:
    """Most bytes that a step holds beside what was there before it, storage by storage."""
    learner = Learner(config, Processes(device="cpu"), samples=tmp_path)
    learner.step(0)  # makes the optimiser's state
    with Counter("cpu") as counter:
        learner.step(1)
    return counter.peak


def predicted(ledger) -> int:
    return ledger.fullest.bytes + sum(e.bytes for e in ledger.resident if e.owner.endswith(OF_A_STEP))


FLOW = (
    "prompts_per_step=2",
    "group_size=8",
    "updates.count=1",
    "policy.micro_batch=8",
    "policy.decode_batch=4",
    *SMALL,
)
KL = "objective=[{kind: clipped_ratio}, {kind: kl, form: gaussian_no_dt, weight: 0.04}]"


PICTURES = {
    "full": ("optim.warmup_updates=0",),
    "lora": ("policy.lora={rank: 4, alpha: 8}",),
    "checkpointed": ("policy.gradient_checkpointing=true",),
    "reference and guidance": (KL, "policy.guidance=2.0"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_run_holds_what_its_ledger_says_within_a_tenth(name, tmp_path):
    config = read(ROOT / "configs/quickstart/flow.yaml", [*FLOW, *PICTURES[name]])
    assert predicted(ledger_of(config, plan_of(config))) == pytest.approx(measured(config, tmp_path), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "lora", "reference and guidance"])
def test_so_does_one_of_a_middle_size(name, tmp_path):
    model = f"policy.model.path={_wider(tmp_path / 'model')}"
    config = read(ROOT / "configs/quickstart/flow.yaml", [*FLOW, *PICTURES[name], model])
    assert predicted(ledger_of(config, plan_of(config))) == pytest.approx(measured(config, tmp_path), rel=0.1)


def _wider(folder: Path) -> Path:
    """The quickstart's pipeline with a network of 6 layers of width 256."""
    from diffusers import SD3Transformer2DModel

    shutil.copytree(zoo.path("text_to_image"), folder)
    config = dict(SD3Transformer2DModel.load_config(folder / "transformer"))
    config |= {"num_layers": 6, "num_attention_heads": 8, "attention_head_dim": 32, "caption_projection_dim": 256}
    SD3Transformer2DModel.from_config(config).save_pretrained(folder / "transformer")
    return folder


CLIPS = "{kind: 'grpo_mm.pipelines.zoo.random_clips:RandomClips', count: 4, frames: 16, height: 56, width: 112}"
TEXTS = (
    "policy.path=random:qwen2_5_vl/tiny", f"prompts.pictures.use={CLIPS}",
    "prompts_per_step=1", "group_size=4", "engine.max_new_tokens=24", *SMALL,
)  # fmt: skip


ANSWERS = {
    "full": ("policy.lora=null",),
    "lora": ("policy.lora={rank: 4, alpha: 8}",),
    "in parts": ("policy.lora=null", "policy.micro_batch=2"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_run_of_texts_holds_what_its_ledger_says_within_a_tenth(name, tmp_path):
    _compare([*TEXTS, *ANSWERS[name]], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ANSWERS)
def test_so_does_a_model_of_width_512(name, tmp_path):
    _compare([*TEXTS, *ANSWERS[name], "policy.path=random:qwen2_5_vl/width512"], tmp_path)


def _compare(overrides: list[str], tmp_path: Path) -> None:
    config = read(ROOT / "configs/bench/prefix_cpu.yaml", overrides)
    learner = Learner(config, Processes(device="cpu"), samples=tmp_path)
    context = learner.policy.encode(learner.prompts.batch(0, 1, 0)[0])
    grid = tuple(context.inputs["video_grid_thw"][0].tolist())
    visual = int(torch.tensor(grid).prod()) // 4
    seen = Seen(len(context) - visual, visual, grid, "video", "")
    ledger = vlm_ledger(config.policy, config.engine, plan_of(config), seen=seen)
    assert predicted(ledger) == pytest.approx(measured(config, tmp_path), rel=0.1)
