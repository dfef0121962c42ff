"""Ranks that ask one server at the same time share a call of the scorer, and see nothing of each other."""

import subprocess
import sys
import threading
import time

import pytest
import torch
from served import Served

from grpo_mm.registry import lookup
from grpo_mm.rewards.images.image_quality import ImageQuality
from grpo_mm.rewards.service.remote import Remote
from grpo_mm.rollout.reward_use import as_reward
from grpo_mm.rollout.scoring import Scorer, Scoring
from grpo_mm.types import Prompt

CALLS: list[int] = []
BUSY = threading.Event()


def counted(texts):
    """Slow enough that whoever asks meanwhile waits."""
    CALLS.append(len(texts))
    BUSY.set()
    time.sleep(0.3)
    return [float(len(text)) / 3 for text in texts]


def odd_ones(texts):
    CALLS.append(len(texts))
    BUSY.set()
    time.sleep(0.05)
    if any(text == "bad" for text in texts):
        raise ZeroDivisionError("a bad text")
    return [float(len(text)) for text in texts]


def a_second_each(texts):
    CALLS.append(len(texts))
    BUSY.set()
    time.sleep(len(texts))
    return [1.0] * len(texts)


class OverSets:
    scope = "set"

    def __call__(self, items, prompts, group_U):
        CALLS.append(len(items))
        BUSY.set()
        time.sleep(0.2)
        return [float(len(items))] * len(items)


@pytest.fixture
def serve():
    made = []

    def start(rewards, **gather):
        made.append(Served(rewards, **gather))
        return made[-1]

    CALLS.clear(), BUSY.clear()
    yield start
    for one in made:
        one.close()


def ask(served, name, items, **settings):
    group = torch.zeros(len(items), dtype=torch.int64) if settings.get("scope") == "set" else None
    scoring = Scoring({name: Scorer(Remote(served.url, name, **settings))}, torch.device("cpu"))
    return scoring.ask(name, items, [Prompt(f"p{i}", "say") for i in range(len(items))], group)


def at_once(served, name, first, others, **settings):
    """The answers to `others`, which are all asked while the call for `first` is under way; the first answer is last."""
    found = {}

    def run(key, items):
        found[key] = ask(served, name, items, **settings)

    threads = [threading.Thread(target=run, args=("first", first))]
    threads[0].start()
    assert BUSY.wait(20)
    for key, items in enumerate(others):
        threads.append(threading.Thread(target=run, args=(key, items)))
        threads[-1].start()
    [thread.join(60) for thread in threads]
    return [found[key] for key in range(len(others))] + [found["first"]]


def test_ranks_that_ask_meanwhile_share_one_call(serve):
    served = serve({"counted": as_reward(counted)}, gather_seconds=0.3)
    ranks = [["a" * (rank + i) for i in range(4)] for rank in range(3)]
    found = at_once(served, "counted", ["first"], ranks)
    assert CALLS == [1, 12]
    for texts, (scores, errors) in zip([*ranks, ["first"]], found):
        alone = torch.tensor([len(text) / 3 for text in texts], dtype=torch.float64).float()
        assert torch.equal(scores["score"], alone) and errors == []
    import json
    from urllib.request import urlopen

    assert json.load(urlopen(f"{served.url}/health"))["asked"] == {"counted": {"requests": 4, "calls": 2, "rows": 13}}


def test_a_call_waits_for_others_only_so_long(serve):
    served = serve({"counted": as_reward(counted)}, gather_seconds=0.1)
    begun = time.monotonic()
    ask(served, "counted", ["a"])
    assert time.monotonic() - begun < 5 and CALLS == [1]


def test_a_call_has_at_most_so_many_rows(serve):
    served = serve({"counted": as_reward(counted)}, gather_seconds=0.3, gather_rows=8)
    found = at_once(served, "counted", ["first"], [["x"] * 4 for _ in range(5)])
    assert all(errors == [] for _, errors in found) and sum(CALLS) == 21 and max(CALLS) == 8 and len(CALLS) == 4


@pytest.mark.parametrize(("gather", "settings"), [({"gather_rows": 0}, {}), ({}, {"batch": None})])
def test_who_wants_to_be_alone_is_not_joined(serve, gather, settings):
    served = serve({"counted": as_reward(counted)}, **gather)
    at_once(served, "counted", ["first"], [["x"] * 2, ["y"] * 3], **settings)
    assert sorted(CALLS) == [1, 2, 3]


def test_a_reward_over_sets_is_not_joined(serve):
    served = serve({"sets": OverSets()}, gather_seconds=0.3)
    found = at_once(served, "sets", ["a"], [["b"] * 2, ["c"] * 3], scope="set")
    assert sorted(CALLS) == [1, 2, 3] and [scores["score"][0].item() for scores, _ in found] == [2, 3, 1]


def test_what_fails_for_one_fails_for_nobody_else(serve):
    served = serve({"odd_ones": as_reward(odd_ones)}, gather_seconds=0.5)
    (fine, no_errors), (bad, errors), _ = at_once(served, "odd_ones", ["first"], [["a", "bb"], ["ccc", "bad", "d"]])
    assert fine["score"].tolist() == [1, 2] and no_errors == []
    assert bad["score"].nan_to_num(-1).tolist() == [3, -1, 1]
    assert any("p1" in error and "row 1: ZeroDivisionError" in error for error in errors)
    assert CALLS[1] == 5  # they were asked together


def test_a_joined_call_has_the_time_of_all_of_them(serve):
    served = serve({"slow": Scorer(as_reward(a_second_each), timeout_seconds=2.5)}, gather_seconds=0.3)
    found = at_once(served, "slow", ["a"], [["b"], ["c"], ["d"]])
    assert CALLS == [1, 3] and all(errors == [] and scores["score"].tolist() == [1] for scores, errors in found)


def test_pictures_of_other_sizes_and_texts_are_not_put_into_one_batch(serve):
    served = serve({"quality": ImageQuality(), "f1": lookup("reward", "repetition")()}, gather_seconds=0.3)
    generator = torch.Generator().manual_seed(0)
    sizes = [(2, 3, 24, 24), (3, 3, 24, 24), (2, 3, 16, 32)]
    batches = [torch.randint(0, 256, size, dtype=torch.uint8, generator=generator) for size in sizes]
    batches.append([batches[0][0], batches[2][0]])
    found = {}

    def run(i):
        found[i] = ask(served, "quality", batches[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(batches))]
    [thread.start() for thread in threads]
    [thread.join(60) for thread in threads]
    for i, items in enumerate(batches):
        here = Scoring({"q": Scorer(ImageQuality())}, torch.device("cpu")).ask(
            "q", items, [Prompt(f"p{k}", "say") for k in range(len(items))]
        )
        assert found[i][1] == here[1] == [] and torch.equal(found[i][0]["score"], here[0]["score"])


def test_two_processes_share_a_call(serve):
    served = serve({"counted": as_reward(counted)}, gather_seconds=1.0)
    code = f"""
import sys, torch
from grpo_mm.rewards.service.remote import Remote
from grpo_mm.types import Prompt
remote = Remote({served.url!r}, "counted")
remote.to(torch.device("cpu"))
print("ready", flush=True)
sys.stdin.readline()
print(remote(["a" * int(sys.argv[1])] * 2, [Prompt("p", "x")] * 2)["score"].tolist())
"""
    ranks = [
        subprocess.Popen([sys.executable, "-c", code, size], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for size in "36"
    ]
    try:
        assert [rank.stdout.readline() for rank in ranks] == ["ready\n"] * 2
        for rank in ranks:
            rank.stdin.write("\n")
            rank.stdin.flush()
        said = [rank.communicate(timeout=60)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert said == ["[1.0, 1.0]\n", "[2.0, 2.0]\n"] and CALLS == [4]
