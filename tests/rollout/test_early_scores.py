"""Rewards that are asked about the samples of a prompt while others are still drawn."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from conftest import ROOT
from tiny_runs import record
from torch import Tensor
from toy import ToyEngine, ToyReward
from toy_learning import config_of

from grpo_mm.config.without_effect import without_effect
from grpo_mm.entry import train
from grpo_mm.processes.distributed import Processes
from grpo_mm.rollout.scoring import Early, Scorer, Scoring
from grpo_mm.training.learner import Learner
from grpo_mm.types import Outputs, Prompt, Rollout, Rows


@dataclass(frozen=True)
class Tells(ToyEngine):
    """Hands out the samples of each prompt, the last prompt first, and waits until somebody has been asked about them."""

    asked: threading.Event = field(default_factory=threading.Event, compare=False)
    in_time: list[bool] = field(default_factory=list, compare=False)

    tells_finished = True

    def table_columns(self, group_size: int) -> dict[str, Tensor]:
        return ToyEngine().table_columns(group_size)

    def sample(self, policy: Any, rows: Rows, *, finished: Any = None, **how: Any) -> tuple[Rollout, Outputs]:
        rollout, outputs = super().sample(policy, rows, **how)
        if finished is not None:
            for prompt in reversed(rows.prompt_N.unique().tolist()):
                here = torch.nonzero(rows.prompt_N == prompt).flatten().tolist()
                finished(prompt, [outputs.items[i] for i in here])
            self.in_time.append(self.asked.wait(20))
        return rollout, outputs


@dataclass(frozen=True)
class Heard(ToyReward):
    """Notes how many outputs it is asked about at once."""

    asked: threading.Event = field(default_factory=threading.Event, compare=False)
    sizes: list[int] = field(default_factory=list, compare=False)

    def __call__(self, items: Sequence[Any], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        self.sizes.append(len(items))
        self.asked.set()
        return {**super().__call__(items, prompts), "length": torch.tensor([float(len(tokens)) for tokens, _ in items])}


def learner(tmp_path, *, early: bool, **settings: Any) -> Learner:
    reward = Heard()
    rewards = {"score": Scorer(reward, early=early), "other": Scorer(ToyReward("length"), weight=0.5)}
    made = config_of("grpo", steps=3, engine=Tells(asked=reward.asked), **settings)
    return Learner(replace(made, rewards=rewards), Processes(device="cpu"), samples=tmp_path)


def untimed(run: Learner) -> list[dict[str, float]]:
    return [{k: v for k, v in run.step(step).items() if not k.startswith("time/")} for step in range(3)]


@pytest.mark.parametrize("ahead", [0, 1])
def test_what_is_said_early_is_what_would_be_said_at_the_end(ahead, tmp_path):
    early, late = (learner(tmp_path, early=which, rollout_ahead=ahead) for which in (True, False))
    assert untimed(early) == untimed(late)
    assert torch.equal(early.policy.logits, late.policy.logits)
    sizes = [run.config.rewards["score"].use.sizes for run in (early, late)]
    assert sizes == [[8] * 24, [64] * 3]  # prompt by prompt


def test_it_is_asked_before_all_samples_are_there(tmp_path):
    run = learner(tmp_path, early=True)
    run.step(0)
    assert run.config.engine.in_time == [True]


def fails_on(prompt: str) -> Any:
    def reward(texts: list[str], ids: list[str]) -> list[float]:
        if prompt in ids:
            raise KeyError(prompt)
        return [1.0] * len(texts)

    return reward


def test_failures_of_some_prompts_are_failed_rows_as_at_the_end():
    scoring = Scoring({"it": Scorer(fails_on("b"), early=True)}, torch.device("cpu"))
    prompts = [Prompt("a", "a"), Prompt("b", "b"), Prompt("a", "a")]
    prompt_U = torch.tensor([0, 1, 0])
    early = [
        scoring.ask_early(["x", "z"], [prompts[0], prompts[2]], prompt=0),
        scoring.ask_early(["y"], [prompts[1]], prompt=1),
    ]
    found = scoring(["x", "y", "z"], prompts, torch.tensor([0, 1, 0]), prompt_U=prompt_U, early=early)
    assert found["it"]["score"].tolist()[::2] == [1.0, 1.0] and found["it"]["score"][1].isnan()
    assert "KeyError" in scoring.first_error["it"]


def test_what_was_not_said_of_all_is_asked_at_the_end():
    calls: list[int] = []

    def reward(texts: list[str]) -> list[float]:
        calls.append(len(texts))
        return [1.0] * len(texts)

    scoring = Scoring({"it": Scorer(reward, early=True)}, torch.device("cpu"))
    prompts, prompt_U = [Prompt("a", "a"), Prompt("b", "b")], torch.tensor([0, 1])
    early = [scoring.ask_early(["x"], prompts[:1], prompt=0)]
    assert isinstance(early[0], Early)
    scoring(["x", "y"], prompts, prompt_U, prompt_U=prompt_U, early=early)
    assert calls == [1, 2]


def test_an_engine_that_hands_out_nothing_on_its_way_makes_it_void():
    made = config_of("grpo", rewards={"score": {"use": ToyReward(), "early": True}})
    assert any("rewards.score.early = True has no effect" in said for said in without_effect(made))


def test_texts_are_scored_as_they_end(tmp_path):
    for name, early in (("early", "true"), ("late", "false")):
        train(
            ROOT / "configs/quickstart/video.yaml",
            [
                "steps=2", f"name={name}", f"runs_dir={tmp_path}", "prompts_per_step=3", "group_size=4", "samples_every=0",
                "engine.generator={kind: hf, batch: 4}", "updates.count=1", f"rewards.iou.early={early}",
                "prompts.clips.use.count=16", "eval_prompts.clips.use.count=2",
            ],
        )  # fmt: skip
    assert record(tmp_path / "early") == record(tmp_path / "late")
