"""Judges of answers and thoughts: rules, a local model and a server behind one interface, and what becomes of their silence."""

from __future__ import annotations

import math
import shutil
import threading

import pytest
import torch
from chat_server import ChatServer, parts
from spatial_settings import config_of, paths_and_sizes
from taught_spatial import verdict
from taught_vlm import teach

from grpo_mm.advantages import group_norm
from grpo_mm.config.run_config import read
from grpo_mm.config.typed_yaml import component
from grpo_mm.processes import clock
from grpo_mm.processes.distributed import Processes
from grpo_mm.registry import Role
from grpo_mm.rewards.faithfulness.answer_judge import answer_query
from grpo_mm.rewards.faithfulness.consistency import consistency_query
from grpo_mm.rewards.judges import vlm_server
from grpo_mm.rewards.judges.verdicts import Query
from grpo_mm.training.learner import Learner
from grpo_mm.types import Prompt

TEXT = "<think>The cup stands left of the bed. So it is left.</think><answer>left</answer>"
ROW = Prompt("p", "Where is the cup?", target={"answer": "to the left", "choices": ["left", "right"]})


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def serve():
    running = []

    def start(answer=verdict) -> ChatServer:
        running.append(ChatServer(answer))
        return running[-1]

    yield start
    for server in running:
        server.close()


@pytest.fixture(scope="module")
def local_model(tmp_path_factory) -> str:
    """A checkpoint that was taught to give one verdict, whatever it is asked."""
    path = tmp_path_factory.mktemp("judge") / "model"
    asked = (
        consistency_query(ROW.text, "It is left.", "left").text,
        answer_query(ROW.text, "to the left", "left").text,
    )
    return teach("qwen2_5_vl", path, steps=60, answers=("yes",), questions=asked)


@pytest.fixture
def counts():
    """What is counted while the test runs."""
    old = clock._current
    yield clock.use(clock.Clock()).counts
    clock.use(old)


def reward(kind: str, judge=None):
    return component(Role("reward"), {"kind": kind} | ({"judge": judge} if judge else {}), path="r")


def server_at(url: str, **settings) -> dict:
    return {"kind": "server", "base_url": url, "model": "j", "backoff_seconds": 0.001, **settings}


@pytest.mark.parametrize("kind", ["consistency", "answer_judge"])
def test_rules_a_local_model_and_a_server_answer_the_same_question(kind, local_model, serve, tmp_path):
    """Which of them is asked is the one setting `judge`."""
    url = serve(lambda levels, request: "Fine. <verdict>yes</verdict>").url
    local = {"kind": "transformers", "model": local_model, "max_new_tokens": 12, "dtype": "float32"}
    judges = {
        "rules": None,
        "local": {"kind": "model", "vlm": local, "cache": f"{tmp_path}/local.db"},
        "server": {"kind": "model", "vlm": server_at(url), "cache": f"{tmp_path}/server.db"},
    }
    scores = {name: reward(kind, judge)([TEXT], [ROW])["score"].tolist() for name, judge in judges.items()}
    assert scores["local"] == scores["server"] == [1.0]
    assert scores["rules"] == ([1.0] if kind == "consistency" else [0.0])  # "left" is not "to the left" to a rule


def test_a_local_model_is_not_even_loaded_where_its_answers_are_recorded(local_model, tmp_path, counts):
    moved = str(tmp_path / "moved")
    shutil.copytree(local_model, moved)
    settings = {"kind": "transformers", "model": moved, "max_new_tokens": 12, "dtype": "float32"}
    judge = {"kind": "model", "vlm": settings, "cache": f"{tmp_path}/a.db"}
    assert reward("consistency", judge)([TEXT], [ROW])["score"].tolist() == [1.0] and counts["judge_calls"] == 1
    shutil.rmtree(moved)
    replayed = reward("consistency", judge | {"replay": True})
    replayed.check()
    assert replayed.to("cpu")([TEXT, TEXT + " "], [ROW] * 2)["score"].tolist() == [1.0, 1.0]
    assert counts["judge_calls"] == 1 and counts["judge_known"] == 2
    unseen = TEXT.replace("bed", "table")
    assert math.isnan(replayed([unseen], [ROW])["score"].item()) and counts["judge_not_recorded"] == 1


def test_pauses_between_tries_double_up_to_ten_seconds(serve, monkeypatch):
    pauses = []

    async def no_pause(seconds):
        pauses.append(seconds)

    server = serve(lambda levels, request: (503, "busy"))
    monkeypatch.setattr(vlm_server.asyncio, "sleep", no_pause)
    judge = component(
        Role("verdict"), {"kind": "model", "vlm": server_at(server.url, retries=6, backoff_seconds=1.0)}, path="j"
    )
    assert judge.verdicts([Query("a")]) == [None]
    assert pauses == [1, 2, 4, 8, 10, 10] and len(server.requests) == 7


def test_a_time_out_is_a_failed_row_that_is_counted_and_left_out_of_its_group(serve, tmp_path):
    release = threading.Event()

    lock, is_slow = threading.Lock(), {}  # the first question and then every other one, whatever the model wrote

    def half_is_slow(levels, request):
        text = parts(request)[-1]["text"]
        with lock:
            slow = is_slow.setdefault(text, len(is_slow) % 2 == 0)
        if slow:
            release.wait(60)
        return verdict(levels, request)

    path, server = config_of("treevgr_qwen25vl_7b"), serve(half_is_slow)
    patience = [f"rewards.answer.use.judge.vlm.{setting}" for setting in ("timeout_seconds=5", "retries=0")]
    config = read(path, [*paths_and_sizes(path, tmp_path, judge_url=server.url), *patience])
    learner = Learner(config, Processes(device="cpu"), samples=tmp_path)
    (batch,), _ = learner.rollout(0)
    table = learner.table(batch)
    answers_M, failed_M = table.values["answer"], table.columns["failed"]
    judged_M = torch.tensor([batch.rollout.prompts[p].source == "vstar" for p in batch.rollout.prompt_N.tolist()])
    assert torch.equal(failed_M, judged_M & answers_M.isnan()) and 0 < int(failed_M.sum()) < int(judged_M.sum())
    total_M = sum(table.values[name].nan_to_num() for name in ("answer", "count", "format", "iou"))
    wanted_M = group_norm(torch.where(failed_M, torch.nan, total_M), table.columns["prompt"], ddof=1)
    for stage in config.advantage:
        table = stage(table)
    (advantage_M,) = table.values.values()
    torch.testing.assert_close(advantage_M, wanted_M, equal_nan=True)
    found = learner.step(1)
    release.set()
    assert 0 < found["reward/failed_frac"] < 1 and found["reward/answer/unscored_frac"] > 0
    assert math.isfinite(found["loss/total"]) and found["optim/bad_updates"] == 0


def test_a_spent_budget_masks_the_later_rows_of_a_step_and_is_counted(serve, tmp_path, counts):
    path, server = config_of("fgrpo_qwen25vl_7b"), serve()
    budget = [f"rewards.{name}.use.judge.calls_per_batch=4" for name in ("consistency", "semantic_grounding")]
    config = read(path, [*paths_and_sizes(path, tmp_path, judge_url=server.url), *budget])
    learner = Learner(config, Processes(device="cpu"), samples=tmp_path)
    (batch,), _ = learner.rollout(0)
    assert len(server.requests) == counts["judge_calls"] == 8 and counts["judge_over_budget"] > 0
    for name in ("consistency", "semantic_grounding"):
        scored = batch.scores[name]["score"].isfinite()
        assert 0 < int(scored.sum()) < len(scored)
    table = learner.table(batch)
    for stage in config.advantage:
        table = stage(table)
    assert table.values["total"].isfinite().all()  # a constraint without a verdict costs the row nothing else
