"""A reward in several processes: every output once, in its place; a process that dies loses its own rows alone."""

import os
import threading
from collections import Counter

import pytest
import torch

from grpo_mm.errors import ConfigError
from grpo_mm.processes import clock
from grpo_mm.rollout import scoring as scoring_module
from grpo_mm.rollout.function_reward import FunctionReward
from grpo_mm.rollout.isolated import IsolatedReward
from grpo_mm.rollout.scoring import Scorer, Scoring, check_isolated
from grpo_mm.types import Prompt

IMAGES = torch.zeros(7, 3, 4, 4, dtype=torch.uint8)
SLEPT = FunctionReward("tiny_rewards:slept")


class OverSets:
    scope = "set"

    def __call__(self, items, prompts, group_U):
        return torch.zeros(len(prompts))


def named(*texts):
    return [Prompt(f"p/{i}", text) for i, text in enumerate(texts)]


def test_outputs_are_shared_and_come_back_in_their_places():
    scorers = {"far": Scorer(SLEPT, isolate=True, workers=2), "near": Scorer(SLEPT)}
    scoring = Scoring(scorers, torch.device("cpu"))
    pool = scoring._isolated["far"]
    found = scoring(IMAGES, named(*map(str, range(7))))
    assert list(found) == ["far", "near"]
    assert found["far"]["score"].tolist() == list(range(7)) == found["near"]["score"].tolist()
    assert [member._number for member in pool.members] == [1, 1]
    del scoring.scorers["near"]
    broken = scoring(IMAGES[:4], named("0", "1", "die", "3"))["far"]["score"]
    assert broken[:2].tolist() == [0, 1] and broken[2:].isnan().all()
    assert "exit code 3" in scoring.first_error["far"]
    assert scoring(IMAGES[:1], named("5"))["far"]["score"].tolist() == [5]
    pool.end()


def test_whoever_scores_elsewhere_is_ended_where_a_reward_stops_the_run(monkeypatch):
    scoring = Scoring({"far": Scorer(SLEPT, isolate=True), "near": Scorer(SLEPT)}, torch.device("cpu"))
    waits, ended = threading.Event(), []
    monkeypatch.setattr(scoring._isolated["far"], "score", lambda *_, **__: waits.wait(60))
    monkeypatch.setattr(scoring._isolated["far"], "end", lambda: (ended.append("far"), waits.set()))

    def damaged(*_):
        raise ConfigError("damaged weights")

    monkeypatch.setattr(scoring_module, "move", damaged)
    with pytest.raises(ConfigError, match="damaged"):
        scoring(IMAGES[:1], named("1"))
    assert ended == ["far"]


def test_what_is_counted_in_other_processes_belongs_to_the_rows_that_are_asked_about():
    scorers = {"one": Scorer(SLEPT, isolate=True), "two": Scorer(SLEPT, isolate=True, workers=2)}
    scoring = Scoring(scorers, torch.device("cpu"))

    def said(items, prompts, **_):
        clock.count("judge_calls", len(prompts))
        return {"score": torch.zeros(len(prompts))}, []

    for member in [scoring._isolated["one"], *scoring._isolated["two"].members]:
        member.score = said
    kept = Counter()
    with clock.counts_kept_in(kept):
        scoring(IMAGES, named(*map(str, range(7))))
    assert kept == {"judge_calls": 14, "rewards": 14}


def test_workers_are_for_isolated_rewards_that_look_at_one_output():
    with pytest.raises(ConfigError, match="isolate: true"):
        check_isolated({"a": Scorer(SLEPT, workers=2)})
    with pytest.raises(ConfigError, match="at least 1"):
        check_isolated({"a": Scorer(SLEPT, workers=0, isolate=True)})
    with pytest.raises(ConfigError, match="compares those of a group"):
        check_isolated({"a": Scorer(OverSets(), workers=2, isolate=True)})
    check_isolated({"a": Scorer(SLEPT, workers=2, isolate=True)})


def test_an_end_that_was_interrupted_is_done_again_and_closes_nothing_twice(monkeypatch):
    reward = IsolatedReward(SLEPT, name="it")
    assert reward.score(IMAGES[:1], named("3"), device=torch.device("cpu"))[0]["score"].tolist() == [3]
    process, closed = reward._process, []
    close = os.close

    def interrupted(number: int) -> None:
        closed.append(number)
        close(number)
        raise KeyboardInterrupt

    lifeline = process.lifeline
    monkeypatch.setattr(os, "close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reward.end()
    monkeypatch.setattr(os, "close", lambda number: (closed.append(number), close(number)))
    reward.end()
    reward.end()
    process.kill()
    assert closed.count(lifeline) == 1 and process.popen.returncode is not None
