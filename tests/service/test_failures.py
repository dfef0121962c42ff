"""What fails on a server of rewards is a failed row with its reason; a server that is away is waited for."""

import logging
import threading
import time

import pytest
import torch
from served import Served

from grpo_mm.errors import ConfigError
from grpo_mm.rewards.service import remote as module
from grpo_mm.rewards.service.remote import Remote
from grpo_mm.rewards.service.server import Limits
from grpo_mm.rewards.video.temporal_iou import TemporalIou
from grpo_mm.rollout.reward_use import as_reward
from grpo_mm.rollout.safe_call import score_safely
from grpo_mm.rollout.scoring import Scorer, Scoring
from grpo_mm.training.preflight import check_scoring
from grpo_mm.types import Prompt

CALLS: list[int] = []
RUNNING: list[str] = []
MOST: dict[str, int] = {}
GO = threading.Event()


def odd_ones(texts):
    if any(text == "bad" for text in texts):
        raise ZeroDivisionError("a bad text")
    return [None if text == "?" else float(len(text)) for text in texts]


def leaves(texts):
    raise SystemExit(3)


def too_few(texts):
    return [1.0]


def slow(texts):
    time.sleep(2.0)
    return [1.0] * len(texts)


def counted(texts):
    CALLS.append(len(texts))
    return [float(len(text)) for text in texts]


def waits(texts):
    CALLS.append(len(texts))
    GO.wait(20)
    return [float(len(text)) for text in texts]


def looks_at_media(texts, media):
    return [float(len(one[0].frames_FCHW)) for one in media]


class Beside:
    """Who runs beside whom."""

    def __init__(self, name):
        self.name = name

    def __call__(self, items, prompts):
        RUNNING.append(self.name)
        MOST[self.name] = max(MOST.get(self.name, 0), RUNNING.count(self.name))
        MOST["all"] = max(MOST.get("all", 0), len(RUNNING))
        time.sleep(0.05)
        RUNNING.remove(self.name)
        return [1.0] * len(prompts)


class Own(Beside):
    """As if it were of this package."""

    __module__ = "grpo_mm.rewards.text.own"


def function(name):
    """The very function of this module, whose lists are looked at."""
    return as_reward(globals()[name])


@pytest.fixture(scope="module")
def served():
    names = ("odd_ones", "leaves", "too_few", "counted", "looks_at_media")
    one = Served(
        {name: function(name) for name in names}
        | {"slow": Scorer(function("slow"), timeout_seconds=0.1)}
        | {"user_a": Beside("user_a"), "user_b": Beside("user_b"), "own_a": Own("own_a"), "own_b": Own("own_b")},
        limits=Limits(2**18),
    )
    yield one
    one.close()


def prompts_for(texts):
    return [Prompt(f"p{i}", "say") for i in range(len(texts))]


def ask(served, name, texts, **settings):
    scoring = Scoring({name: Scorer(Remote(served.url, name, **settings))}, torch.device("cpu"))
    return scoring.ask(name, texts, prompts_for(texts))


@pytest.mark.parametrize(
    ("name", "texts"),
    [("odd_ones", ["aa", "bad", "?", "b"]), ("leaves", ["a", "b"]), ("too_few", ["a", "b"]), ("odd_ones", ["bad"])],
)
def test_failures_are_told_as_they_would_be_here(served, name, texts):
    here = score_safely(function(name), texts, prompts_for(texts), name=name)
    there = ask(served, name, texts)
    assert torch.equal(here[0]["score"].nan_to_num(-1), there[0]["score"].nan_to_num(-1))
    assert [error.splitlines()[0] for error in here[1]] == [error.splitlines()[0] for error in there[1]] != []


def test_a_reward_that_takes_too_long_there(served):
    scores, errors = ask(served, "slow", ["a"] * 3)
    assert scores["score"].isnan().all() and errors == ["no answer for 3 outputs within 0.1 seconds"]


def test_what_cannot_be_sent_fails_alone(served):
    texts = ["a", "bb", "half \ud800 of one", "dddd", "eeeee"]
    CALLS.clear()
    scores, errors = ask(served, "counted", texts)
    assert scores["score"].isnan().tolist() == [False, False, True, False, False] and scores["score"][4] == 5
    assert len(errors) == 1 and "holds half of a character and cannot be sent" in errors[0]
    scoring = Scoring({"c": Scorer(Remote(served.url, "counted"))}, torch.device("cpu"))
    prompts = [Prompt("set", "x", target={"a": {1, 2}}), Prompt("fine", "x")]
    scores, errors = scoring.ask("c", ["a", "b"], prompts)
    assert scores["score"].isnan().tolist() == [True, False]
    assert errors == ["prompt 'set': target['a'] is {1, 2} (builtins.set), which cannot be sent."]


def test_a_request_that_is_too_long_is_halved(served):
    CALLS.clear()
    scores, errors = ask(served, "counted", ["x" * 60_000] * 8, batch=None)
    assert errors == [] and scores["score"].tolist() == [60_000.0] * 8 and sorted(CALLS) == [4, 4]
    scores, errors = ask(served, "counted", ["x" * 300_000, "y"])
    assert (
        scores["score"].isnan().tolist() == [True, False]
        and "status 413: the request has more than 262144 bytes" in errors[0]
    )


def test_media_that_were_not_sent_are_named_by_who_looks(served):
    class Video:
        pass

    scoring = Scoring({"m": Scorer(Remote(served.url, "looks_at_media"))}, torch.device("cpu"))
    scores, errors = scoring.ask("m", ["a"], [Prompt("v", "x", (Video(),))])
    assert scores["score"].isnan().all() and "prompt 'v': medium 0 (Video) was not sent" in errors[0]


def test_one_call_at_a_time_for_each_and_users_code_alone(served):
    def run(names):
        MOST.clear()
        threads = [threading.Thread(target=ask, args=(served, n, ["a"] * 6), kwargs={"batch": 1}) for n in names]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        return dict(MOST)

    assert run(["own_a", "own_b"]) == {"own_a": 1, "own_b": 1, "all": 2}
    assert run(["user_a", "user_b", "own_a"]) == {"user_a": 1, "user_b": 1, "own_a": 1, "all": 1}


# ── a server that is away ──


def test_a_server_that_is_killed_in_the_middle_is_asked_again():
    one = Served({"waits": function("waits"), "counted": function("counted")})
    CALLS.clear(), GO.clear()
    found = []
    asking = threading.Thread(target=lambda: found.append(ask(one, "waits", ["a", "bb", "ccc"], batch=2)))
    asking.start()
    until = time.monotonic() + 20
    while not CALLS and time.monotonic() < until:
        time.sleep(0.01)
    one.close(at_once=True)
    GO.set()
    time.sleep(0.3)
    one.open()
    asking.join(20)
    one.close()
    ((scores, errors),) = found
    assert errors == [] and scores["score"].tolist() == [1.0, 2.0, 3.0] and sum(CALLS) > 3


def test_one_that_stays_away_fails_the_rows_with_one_sentence(caplog):
    one = Served({"counted": function("counted")})
    remote = Remote(one.url, "counted", timeout_seconds=1.0, batch=1)
    scoring = Scoring({"c": Scorer(remote)}, torch.device("cpu"))
    assert scoring.ask("c", ["a"], prompts_for("a"))[1] == []
    one.close()
    with caplog.at_level(logging.WARNING):
        begun = time.monotonic()
        scores, errors = scoring.ask("c", ["a", "b", "c"], prompts_for("abc"))
        assert time.monotonic() - begun < 5
    assert scores["score"].isnan().all() and len(errors) == 1
    assert "gave no answer within 0.9 seconds: it cannot be reached" in errors[0]
    assert "is asked again for up to" in caplog.text


def test_in_the_preflight_it_ends_the_run_before_it_begins():
    remote = Remote("http://127.0.0.1:9", "counted", timeout_seconds=0.3)
    scoring = Scoring({"c": Scorer(remote)}, torch.device("cpu"))
    with pytest.raises(ConfigError, match="the server of the reward 'counted' is not there: http://127.0.0.1:9"):
        check_scoring(scoring, prompts_for("ab"), lambda rows: [["x"] * len(rows)], place="rewards")


def test_whether_it_applies_is_not_waited_for_by_each_prompt(monkeypatch):
    monkeypatch.setattr(module, "FIRST_SECONDS", 0.5)
    one = Served({"t": TemporalIou()})
    remote = Remote(one.url, "t")
    remote.to(torch.device("cpu"))
    one.close()
    begun = time.monotonic()
    scorer = Scoring({"t": Scorer(remote)}, torch.device("cpu"))
    scores = scorer(["a"] * 20, [Prompt(f"p{i}", "when?") for i in range(20)])
    assert time.monotonic() - begun < 8 and scores["t"]["score"].isnan().all()
    assert "whether the reward 't' applies is not known" in scorer.first_error["t"]
