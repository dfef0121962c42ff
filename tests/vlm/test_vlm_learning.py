"""A tiny run end to end: rewards rise, a demonstration is learnt, a run that stops goes on as if it had not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_vlm import FAMILIES, PROMPTS, folder, rows_of

from grpo_mm.config.run_config import RunConfig
from grpo_mm.config.typed_yaml import build
from grpo_mm.processes.distributed import Processes
from grpo_mm.training.learner import Learner
from grpo_mm.types import Prompt
from grpo_mm.weights.checkpoint import Checkpoint


@dataclass(frozen=True)
class FewPrompts:
    demo: str | None = None

    def load(self) -> list[Prompt]:
        return [Prompt(p.id, p.text, media=p.media, demo=self.demo) for p in PROMPTS]


def letters(texts, prompts, metadata):
    """The share of characters that are e."""
    return [text.count("e") / max(1, len(text)) for text in texts]


def says_it(texts, prompts, metadata):
    return [float("left" in text) for text in texts]


FAST = {"lr": 0.03, "weight_decay": 0.0}


def settings(**change: Any) -> RunConfig:
    base = {
        "name": "tiny", "policy": {"kind": "vlm", "path": folder("qwen2_5_vl"), "micro_batch": 16},
        "engine": {"kind": "vlm", "max_new_tokens": 6}, "prompts": {"few": {"use": FewPrompts()}},
        "rewards": {"letters": {"use": letters}}, "steps": 40, "prompts_per_step": 6, "group_size": 8, "device": "cpu",
        "samples_every": 0, "optim": {"lr": 0.01, "weight_decay": 0.0},
    }  # fmt: skip
    return build(RunConfig, base | change)


def start(config: RunConfig, folder_: Path) -> Learner:
    config.check()
    return Learner(config, Processes(device="cpu"), samples=folder_)


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=pytest.mark.slow if f == "qwen2_vl" else ()) for f in FAMILIES]
)
def test_the_reward_rises_with_an_adapter(family, tmp_path):
    lora = {"rank": 8, "alpha": 32}
    config = settings(policy={"kind": "vlm", "path": folder(family), "micro_batch": 16, "lora": lora}, optim=FAST)
    learner = start(config, tmp_path)
    found = [learner.step(step) for step in range(16)]
    rewards = [f["reward/letters/mean"] for f in found]
    assert max(f["policy/logprob_gap"] for f in found) < 1e-3
    assert sum(rewards[-3:]) > 1.5 * sum(rewards[:3]), rewards
    texts = config.engine.render(learner.policy, rows_of(PROMPTS, 1), seed=0)
    assert len(texts) == 6


def test_the_reward_rises_with_full_fine_tuning_and_a_reference(tmp_path):
    config = settings(
        optim={"lr": 0.005, "weight_decay": 0.0},
        objective=[{"kind": "clipped_ratio", "ratio": "row"}, {"kind": "kl", "weight": 0.01}],
        updates={"count": 2},
    )
    learner = start(config, tmp_path)
    found = [learner.step(step) for step in range(12)]
    rewards = [f["reward/letters/mean"] for f in found]
    assert sum(rewards[-3:]) > 1.5 * sum(rewards[:3]), rewards
    assert found[-1]["objective/ref_kl"] > found[0]["objective/ref_kl"] >= 0


def test_a_demonstration_teaches_what_is_never_sampled(tmp_path):
    config = settings(
        engine={"kind": "vlm", "max_new_tokens": 6, "demonstrate": {"kind": "last_row"}},
        prompts={"few": {"use": FewPrompts(demo="left")}}, rewards={"says": {"use": says_it}},
    )  # fmt: skip
    learner = start(config, tmp_path)
    first = learner.step(0)
    assert first["reward/says/mean"] < 0.1 and first["policy/logprob_gap"] < 1e-3
    for step in range(1, 12):
        last = learner.step(step)
    assert last["reward/says/mean"] > 0.5


def test_a_run_that_is_loaded_again_takes_the_same_next_step(tmp_path):
    config = settings(
        policy={"kind": "vlm", "path": folder("qwen2_5_vl"), "lora": {"rank": 4}}, ema={"decay": 0.5, "every_updates": 1},
        objective=[{"kind": "clipped_ratio"}, {"kind": "kl", "weight": 0.1}],
        engine={"kind": "vlm", "max_new_tokens": 6, "answer_likelihood": {"of": "ema"}},
    )  # fmt: skip
    whole = start(config, tmp_path)
    for step in range(3):
        whole.step(step)
    tensors, state = whole.checkpoint()
    tensors = {name: {k: v.clone() for k, v in part.items()} for name, part in tensors.items()}
    wanted = whole.step(3)
    again = start(config, tmp_path)
    again.load(Checkpoint(tensors=tensors, state={"learner": state}), name="kept")
    found = again.step(3)
    assert {k: v for k, v in found.items() if "seconds" not in k} == {
        k: v for k, v in wanted.items() if "seconds" not in k
    }
    for name, value in whole.policy.trainable.items():
        assert torch.equal(again.policy.trainable[name], value)
