"""Contexts that are made while something else is done: the same ones, each once, and never for long."""

import threading
import time

import pytest
import torch

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.vlm.engine import VlmEngine, _windows
from grpo_mm.pipelines.vlm.policy import VlmPolicyConfig
from grpo_mm.pipelines.vlm.prompting.ahead import EncodedAhead
from grpo_mm.pipelines.vlm.prompting.contexts import Context
from grpo_mm.rollout.rows import evaluation_rows
from grpo_mm.types import Prompt


class Counted:
    """Stands for an encoder: notes what was asked, in which thread, and how many at once."""

    def __init__(self, wait=0.0):
        self.asked, self.threads, self.at_once, self._inside, self.wait = [], set(), 0, 0, wait

    def __call__(self, prompt, *, turn):
        with turn:
            self._inside += 1
            self.at_once = max(self.at_once, self._inside)
            self.threads.add(threading.current_thread().name)
            time.sleep(self.wait)
            self._inside -= 1
        if prompt.text == "broken":
            raise ConfigError("cannot be asked")
        self.asked.append(prompt.id)
        return Context(prompt.id, torch.arange(3), torch.zeros(3, 3, dtype=torch.int64))


def prompts(*ids, text="?"):
    return [Prompt(i, text) for i in ids]


def test_what_was_announced_is_made_elsewhere_and_handed_out_once():
    encode = Counted(wait=0.001)
    ahead = EncodedAhead(encode, workers=3)
    first = prompts(*"abcdef")
    ahead.announce(first)
    assert [ahead(p).prompt_id for p in first] == list("abcdef")
    assert sorted(encode.asked) == list("abcdef")
    assert all(name.startswith("grpo_mm-encode") for name in encode.threads) and encode.at_once == 1
    assert ahead(first[0]).prompt_id == "a" and encode.asked.count("a") == 2


def test_another_prompt_of_the_same_id_is_another():
    encode = Counted()
    ahead = EncodedAhead(encode, workers=1)
    announced, other = prompts("a")[0], Prompt("a", "another text")
    ahead.announce([announced])
    ahead(other), ahead(announced)
    assert encode.asked == ["a", "a"] and "MainThread" in encode.threads


def test_what_nobody_takes_is_let_go_after_the_next_announcement():
    ahead = EncodedAhead(Counted(), workers=1)
    kept = []
    for step in range(6):
        kept.append(prompts(f"{step}a", f"{step}b"))
        ahead.announce(kept[-1])
        assert len(ahead._waiting) <= 4
    assert {waiting.prompt.id for waiting in ahead._waiting.values()} == {"4a", "4b", "5a", "5b"}


def test_without_workers_nothing_is_made_before_it_is_asked_for():
    encode = Counted()
    ahead = EncodedAhead(encode, workers=0)
    some = prompts("a", "b")
    ahead.announce(some)
    assert encode.asked == [] and ahead(some[1]).prompt_id == "b" and encode.threads == {"MainThread"}


def test_what_fails_ahead_fails_at_the_call():
    ahead = EncodedAhead(Counted(), workers=1)
    broken = prompts("x", text="broken")
    ahead.announce(broken)
    with pytest.raises(ConfigError, match="cannot be asked"):
        ahead(broken[0])


def test_windows_of_an_evaluation_hold_whole_prompts_in_order():
    rows = evaluation_rows(tuple(prompts(*"abcde")), samples=3, rank=0, world=1)
    pieces = _windows(rows, 2)
    assert [sorted({p for p in piece.prompt_N.tolist()}) for piece in pieces] == [[0, 1], [2, 3], [4]]
    joined = [(p, s) for piece in pieces for p, s in zip(piece.prompt_N.tolist(), piece.sample_N.tolist())]
    assert joined == list(zip(rows.prompt_N.tolist(), rows.sample_N.tolist()))


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="encode_workers"):
        VlmPolicyConfig("zoo:vision_language", encode_workers=-1).check()
    with pytest.raises(ConfigError, match="eval_prompts_at_once"):
        VlmEngine(eval_prompts_at_once=0).check(VlmPolicyConfig("zoo:vision_language"), group_size=2)
