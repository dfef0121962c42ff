"""A failed reward is a NaN row with an error, never a zero, and never the end of the run."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from grpo_mm.config.typed_yaml import component
from grpo_mm.errors import ConfigError, UserError
from grpo_mm.registry import Role
from grpo_mm.rollout import surroundings
from grpo_mm.rollout.function_reward import FunctionReward, call_function
from grpo_mm.rollout.reward_use import as_reward, check_call
from grpo_mm.rollout.safe_call import as_scores, score_safely
from grpo_mm.rollout.scoring import Scorer, Scoring
from grpo_mm.types import Prompt

ROOT = Path(__file__).parents[2]
PROMPTS = [Prompt(f"p/{i}", f"text {i}", target={"i": i}) for i in range(4)]
IMAGES = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 3, 8, 8)


def test_only_the_rows_that_fail_become_nan():
    def reward(items, prompts):
        if any(p.id == "p/2" for p in prompts):
            raise RuntimeError("no face found")
        return {"score": items.float().mean((1, 2, 3)), "part": torch.ones(len(prompts))}

    scores, errors = score_safely(reward, IMAGES, PROMPTS)
    assert scores["score"].isnan().tolist() == [False, False, True, False] == scores["part"].isnan().tolist()
    assert scores["score"][[0, 1, 3]].tolist() == [0, 1, 3]
    assert len(errors) == 2 and "Traceback" in errors[0] and "no face found" in errors[0]
    assert errors[1] == "'p/2', row 2: RuntimeError: no face found"


def test_a_reward_over_sets_is_not_asked_row_by_row():
    calls = []

    def reward(items, prompts):
        calls.append(len(prompts))
        raise RuntimeError("broken")

    scores, errors = score_safely(reward, IMAGES, PROMPTS, by_row=False)
    assert scores["score"].isnan().all() and len(errors) == 1 and calls == [4]


def test_a_reward_that_takes_too_long_makes_its_rows_nan_and_the_run_goes_on():
    release = threading.Event()

    def reward(items, prompts):
        release.wait(60)  # who waits for it gets its scores
        return [1.0] * len(prompts)

    scores, errors = score_safely(reward, IMAGES, PROMPTS, timeout_seconds=0.1)
    assert scores["score"].shape == (4,) and scores["score"].isnan().all()
    assert errors == ["no answer for 4 outputs within 0.1 seconds"]
    release.set()
    assert score_safely(reward, IMAGES, PROMPTS, timeout_seconds=60)[0]["score"].tolist() == [1, 1, 1, 1]


def test_rows_that_were_done_before_the_time_was_over_are_kept():
    release = threading.Event()

    def reward(items, prompts):
        if len(prompts) > 1:
            raise RuntimeError("one at a time")
        if prompts[0].id == "p/2":
            release.wait(60)
        return [float(items[0].float().mean())]

    scores, errors = score_safely(reward, IMAGES, PROMPTS, timeout_seconds=2)
    release.set()
    assert scores["score"][:2].tolist() == [0, 1] and scores["score"][2:].isnan().all()
    assert "one by one, 2 of 4 outputs were done" in errors[1]


def test_a_hanging_reward_does_not_keep_the_process_alive():
    code = (
        "import time, torch\n"
        "from grpo_mm.rollout.safe_call import score_safely\n"
        "from grpo_mm.types import Prompt\n"
        "hang = lambda items, prompts: time.sleep(600)\n"
        "print(score_safely(hang, ['a'], [Prompt('0', 'a')], timeout_seconds=0.1)[0]['score'].isnan().all().item())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert done.stdout.strip() == "True" and done.returncode == 0, done.stderr


def test_infinities_become_nan_and_are_told_but_a_nan_is_an_answer():
    scores, errors = score_safely(lambda i, p: [1.0, float("inf"), float("nan"), -2.0], IMAGES, PROMPTS)
    assert scores["score"].isnan().tolist() == [False, True, True, False]
    assert errors == ["1 of 4 scores are infinite, rows [1]"]
    assert score_safely(lambda i, p: [float("nan")] * 4, IMAGES, PROMPTS)[1] == []


def test_a_wrong_number_of_scores_is_never_matched_to_rows():
    calls = []

    def reward(items, prompts):
        calls.append(len(prompts))
        return [1.0]

    scores, errors = score_safely(reward, IMAGES, PROMPTS)
    assert scores["score"].isnan().all() and calls == [4]
    assert "returned 1 values for 'score'; wanted 4" in errors[0]


def test_rewards_run_without_gradient_with_and_without_a_time_limit():
    weight = torch.ones(1, requires_grad=True)
    seen = []

    def reward(items, prompts):
        seen.append(torch.is_grad_enabled())
        return weight * torch.arange(4.0)

    for limit in (None, 30):
        scores, errors = score_safely(reward, IMAGES, PROMPTS, timeout_seconds=limit)
        assert scores["score"].tolist() == [0, 1, 2, 3] and not scores["score"].requires_grad and not errors
    assert seen == [False, False] and torch.is_grad_enabled()


def test_nothing_to_score_asks_nobody():
    assert score_safely(lambda i, p: 1 / 0, [], [])[0]["score"].shape == (0,)


def test_exiting_is_a_failure_like_any_other():
    for limit in (None, 30):
        scores, errors = score_safely(lambda i, p: sys.exit(3), IMAGES, PROMPTS, timeout_seconds=limit)
        assert scores["score"].isnan().all() and "SystemExit" in errors[0]


@pytest.mark.parametrize(
    "output",
    [
        [1, 2.5],
        (True, np.float32(2.5)),
        np.array([1, 2.5]),
        torch.tensor([1, 2.5]).double(),
        torch.tensor([[1], [2.5]]),
    ],
)
def test_any_sequence_of_numbers_is_a_score(output):
    for form in (output, {"score": output}):
        score = as_scores(form, 2)["score"]
        assert score.tolist() == [1, 2.5] and score.dtype == torch.float32


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (0.5, "returned 0.5 for 'score'; wanted 2 numbers"),
        (torch.tensor(0.5), "wanted 2 numbers"),
        ("ab", "returned 'ab'"),
        (None, "returned None"),
        ([1.0, "2"], r"score\[1\] = '2' is no number; give None or float\(\"nan\"\)"),
        ([1.0, [2, 3]], r"score\[1\] = \[2, 3\] is no number"),
        (torch.ones(2, 3), r"score\[0\] = tensor"),
        ([1.0], "returned 1 values"),
        ({"total": [1.0, 2.0]}, "returned a dict with 'total'; wanted \"score\""),
        ({"score": [1.0, 2.0], "part": [1.0]}, "returned 1 values for 'part'"),
        ({"score": [1.0, 2.0], 1: [1.0, 1.0], "1": [2.0, 2.0]}, "two have one name"),
    ],
)
def test_what_is_no_score_is_told(output, message):
    with pytest.raises(UserError, match=message):
        as_scores(output, 2)


MODULE = """
def brightness(images, prompts, metadata):
    assert all(image.size == (8, 8) and image.mode == "RGB" for image in images)
    return [image.getpixel((0, 0))[0] + meta["i"] for image, meta in zip(images, metadata)]

def length(texts, prompts, metadata):
    return {"score": [len(t) for t in texts], "asked": [len(p) for p in prompts]}

def short(images, prompts, metadata):
    return [1.0]

setting = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
    (tmp_path / "my_own_rewards.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_own_rewards"
    sys.modules.pop("my_own_rewards", None)


def test_a_plain_function_is_a_reward(module):
    reward = FunctionReward(f"{module}:brightness", timeout_seconds=30)
    reward.check()
    assert reward(IMAGES, PROMPTS)["score"].tolist() == [0, 2, 4, 6]
    assert score_safely(reward, IMAGES, PROMPTS)[0]["score"].tolist() == [0, 2, 4, 6]
    texts = FunctionReward(f"{module}:length")(["a", "bcd"], PROMPTS[:2])
    assert texts["score"].tolist() == [1, 3] and texts["asked"].tolist() == [6, 6]
    with pytest.raises(UserError, match="returned 1 values"):
        FunctionReward(f"{module}:short")(IMAGES, PROMPTS)


def test_a_function_may_be_given_in_python():
    seen = []

    def reward(images, prompts, metadata):
        seen.append((images[0], prompts, metadata))
        return [0.5, 1.5]

    found = partial(call_function, reward)(IMAGES[:2], [PROMPTS[0], Prompt("x", "no target")])
    assert found["score"].tolist() == [0.5, 1.5]
    assert isinstance(seen[0][0], Image.Image) and seen[0][1:] == (["text 0", "no target"], [{"i": 0}, {}])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{}:brightnes", "Did you mean 'brightness'"),
        ("{}:setting", "is 3, wanted a function"),
        ("no_such_module_here:f", "no module named 'no_such_module_here'"),
        ("{}.brightness", "wanted package.module:function"),
    ],
)
def test_a_function_that_is_not_there_is_found_before_the_run(module, path, message):
    with pytest.raises(ConfigError, match=message):
        FunctionReward(path.format(module)).check()


def test_a_time_limit_of_zero_is_refused():
    with pytest.raises(ConfigError, match="timeout_seconds = 0"):
        FunctionReward("a:b", timeout_seconds=0)


def test_an_interruption_that_code_raises_is_a_failure_and_the_users_is_none():
    def raises(items, prompts):
        raise KeyboardInterrupt

    def pressed(items, prompts):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    before = signal.getsignal(signal.SIGINT)
    scores, errors = score_safely(raises, IMAGES, PROMPTS)
    assert scores["score"].isnan().all() and "KeyboardInterrupt" in errors[0]
    with pytest.raises(KeyboardInterrupt):
        score_safely(pressed, IMAGES, PROMPTS)
    assert signal.getsignal(signal.SIGINT) is before


def test_what_a_run_does_on_a_signal_outlasts_a_reward():
    asked = []

    def note(number, frame):
        asked.append(number)
        signal.signal(number, signal.default_int_handler)  # as a run has it: a second one acts at once

    def ignores(items, prompts):
        os.kill(os.getpid(), signal.SIGINT)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return [1.0] * 4

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, note)
        assert score_safely(ignores, IMAGES, PROMPTS)[1] == [] and asked == [signal.SIGINT]
        assert signal.getsignal(signal.SIGTERM) is note
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    "line",
    [
        "torch.set_grad_enabled(False)", "torch.set_default_dtype(torch.float64)", "torch.set_default_device('meta')",
        "torch.use_deterministic_algorithms(True)", "os.chdir('/')", "logging.disable(50)", "signal.signal(15, signal.SIG_IGN)",
    ],
)  # fmt: skip
def test_what_a_module_changes_when_it_is_imported_is_put_back(line, tmp_path, monkeypatch):
    name = f"imported_{abs(hash(line))}"
    (tmp_path / f"{name}.py").write_text(
        f"import logging, os, signal, torch\n{line}\ndef reward(images, prompts, metadata):\n    return [1.0]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = [(what, get()) for what, get, _ in surroundings._settings()]
    before = signal.getsignal(signal.SIGTERM)
    component(Role("reward"), f"{name}:reward", path="rewards.r.use")
    assert [(what, get()) for what, get, _ in surroundings._settings()] == settings
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_a_reward_changes_when_it_is_called_is_put_back():
    def reward(items, prompts):
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        sys.setrecursionlimit(5000)
        if prompts[0].id == broken:
            raise ValueError("this one")
        return [1.0] * len(prompts)

    settings = [(what, get()) for what, get, _ in surroundings._settings()]
    for broken in (None, PROMPTS[0].id):
        scores, errors = score_safely(reward, IMAGES, PROMPTS)
        assert scores["score"].dtype == torch.float32 and scores["score"].device.type == "cpu"
        assert scores["score"].tolist()[1:] == [1.0] * 3 and len(errors) == 2 * (broken is not None)
        assert [(what, get()) for what, get, _ in surroundings._settings()] == settings


def test_a_network_that_changes_the_process_while_it_loads_is_put_right():
    class Network:
        def to(self, device):
            torch.set_grad_enabled(False)

        def __call__(self, items, prompts):
            return [1.0] * len(prompts)

    scoring = Scoring({"net": Scorer(use=Network())}, torch.device("cpu"))
    assert scoring(IMAGES, PROMPTS)["net"]["score"].tolist() == [1] * 4 and torch.is_grad_enabled()


def scaled(images, prompts, metadata, by=1.0):
    return [by * len(text) for text in prompts]


class OfThree:
    def __call__(self, images, prompts, metadata):
        return scaled(images, prompts, metadata, by=2.0)


class OfTwo:
    def __call__(self, items, prompts):
        return [len(prompt.text) for prompt in prompts]

    def method(self, images, prompts, metadata):
        return scaled(images, prompts, metadata)


class OfFour:
    def __call__(self, a, b, c, d):
        return [1.0]


class ByName:
    def __call__(self, images, i):
        return [6.0] * len(i)


@pytest.mark.parametrize(
    ("use", "factor"),
    [
        (ByName(), 1), (lambda prompts: [float(len(text)) for text in prompts], 1), (partial(scaled, metadata=None), 1),
        (scaled, 1), (partial(scaled, by=2), 2), (partial(partial(scaled), by=3), 3), (OfThree(), 2), (OfTwo(), 1), (OfTwo().method, 1),
        (partial(OfTwo()), 1), (partial(OfThree()), 2), (partial(call_function, scaled), 1), (lambda *all: scaled(*all), 1),
    ],
)  # fmt: skip
def test_whatever_can_be_called_is_called_as_it_asks_to_be(use, factor):
    check_call("r", use)
    scores, errors = score_safely(as_reward(use), IMAGES, PROMPTS)
    assert scores["score"].tolist() == [6 * factor] * 4 and not errors


@pytest.mark.parametrize(
    "use",
    ["a:b", None, 3, OfTwo, {}, OfFour(), partial(OfTwo(), items=1, prompts=2)],
)  # fmt: skip
def test_what_cannot_be_called_is_refused_before_the_run(use):
    with pytest.raises(ConfigError, match="reward 'r' "):
        check_call("r", use)
