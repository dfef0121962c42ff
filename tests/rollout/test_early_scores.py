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
from grpo_mm.errors import ConfigError
from grpo_mm.processes.distributed import Processes
from grpo_mm.registry import lookup
from grpo_mm.rollout.reward_use import as_reward, shares_calls
from grpo_mm.rollout.scoring import Early, Group, Scorer, Scoring
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
        *scoring.ask_early([Group(0, ["x", "z"], [prompts[0], prompts[2]])]),
        *scoring.ask_early([Group(1, ["y"], [prompts[1]])]),
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
    early = scoring.ask_early([Group(0, ["x"], prompts[:1])])
    assert isinstance(early[0], Early)
    scoring(["x", "y"], prompts, prompt_U, prompt_U=prompt_U, early=early)
    assert calls == [1, 2]


class Served:
    """Notes what it is asked, and keeps the first call waiting until it is told."""

    shares_calls = True

    def __init__(
        self, score: Any = lambda items, _: {"score": torch.tensor([float(len(item)) for item in items])}
    ) -> None:
        self.score, self.sizes, self.go = score, [], threading.Event()

    def __call__(self, items: Sequence[Any], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        self.sizes.append(len(items))
        if len(self.sizes) == 1:
            assert self.go.wait(20)
        if "bad" in items:
            raise KeyError("bad")
        return self.score(items, prompts)


@dataclass(frozen=True)
class HandsOutAll(Tells):
    """Hands out the samples of all prompts while the reward is asked about the first."""

    served: Any = field(default_factory=Served, compare=False)

    def sample(self, policy: Any, rows: Rows, *, finished: Any = None, **how: Any) -> tuple[Rollout, Outputs]:
        found = super().sample(policy, rows, finished=finished, **how)
        self.served.go.set()
        return found


def test_who_asks_a_server_is_asked_about_all_prompts_that_ended_meanwhile(tmp_path, monkeypatch):
    reward = Served(ToyReward())
    engine = HandsOutAll(served=reward)
    engine.asked.set()
    monkeypatch.setattr("grpo_mm.training.drawing.MOST_AT_ONCE", 24)
    made = replace(config_of("grpo", steps=1, engine=engine), rewards={"score": Scorer(reward, early=True)})
    Learner(made, Processes(device="cpu"), samples=tmp_path).step(0)
    # 8 prompts with 8 rows each: the first alone, or with what ended before the thread began; then as many as are allowed at once
    assert sum(reward.sizes) == 64 and max(reward.sizes[1:]) == 24 and len(reward.sizes) <= 4


def test_shared_calls_give_each_prompt_its_own_and_count_its_failures():
    served = Served()
    served.go.set()
    scoring = Scoring(
        {"far": Scorer(served, early=True), "near": Scorer(lambda texts: [1.0] * len(texts), early=True)},
        torch.device("cpu"),
    )
    prompts = [Prompt("a", "a"), Prompt("b", "b"), Prompt("c", "c")]
    groups = [
        Group(i, items, [prompts[i]] * 2) for i, items in enumerate((["1", "22"], ["333", "bad"], ["4", "55555"]))
    ]
    early = scoring.ask_early(groups)
    assert [one.prompt for one in early] == [0, 1, 2] and served.sizes == [6, 1, 1, 1, 1, 1, 1]
    items = ["1", "333", "4", "22", "bad", "55555"]
    rows = [prompts[i % 3] for i in range(6)]
    prompt_U = torch.tensor([0, 1, 2] * 2)
    found = scoring(items, rows, prompt_U, prompt_U=prompt_U, early=early)
    assert served.sizes[0] == 6 and len(served.sizes) == 7  # nobody is asked again
    assert (
        found["far"]["score"].nan_to_num(-1).tolist() == [1, 3, 1, 2, -1, 5]
        and found["near"]["score"].tolist() == [1] * 6
    )
    assert "KeyError" in scoring.first_error["far"]


def test_who_shares_calls_is_said_by_whoever_is_asked():
    remote = lookup("reward", "remote")
    assert shares_calls(remote("http://127.0.0.1:1", "it")) and not shares_calls(
        remote("http://127.0.0.1:1", "it", batch=None)
    )
    server, judge = lookup("vlm", "server"), lookup("verdict", "model")
    asked = judge(server("http://127.0.0.1:1/v1", "model"))
    assert shares_calls(lookup("reward", "consistency")(judge=asked)) and not shares_calls(
        lookup("reward", "consistency")()
    )
    assert not shares_calls(ToyReward()) and not shares_calls(as_reward(lambda texts: [0.0] * len(texts)))


def test_a_limit_of_a_call_and_early_contradict_each_other():
    judge = lookup("verdict", "model")(lookup("vlm", "server")("http://127.0.0.1:1/v1", "model"), calls_per_batch=4)
    made = config_of("grpo", rewards={"it": {"use": lookup("reward", "consistency")(judge=judge), "early": True}})
    with pytest.raises(ConfigError, match=r"rewards\.it: calls_per_batch = 4 of its judge holds for one call"):
        made.check_settings(world=1)


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
