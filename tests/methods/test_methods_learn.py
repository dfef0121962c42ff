"""Every preset teaches the toy policy something, and what methods make of groups that are all wrong."""

from __future__ import annotations

import pytest
from toy import ToyReward
from toy_learning import NEEDS, SEEDS, STEPS, config_of, learn, learn_all_wrong, mean_and_error

from grpo_mm.config import methods
from grpo_mm.types import Prompt

FAST = ("grpo", "spo", "gigpo", "gdpo", "gspo", "disco", "grao")
"""One of each kind: baselines, trackers, steps, several rewards, row ratios, contrasts, log-likelihoods."""

EXCEPTIONS: dict[str, str] = {}
"""Presets that need not raise the expected reward on the toy: why."""


def quick_or_slow(method):
    return pytest.param(method, id=method.key, marks=() if method.name in FAST else pytest.mark.slow)


@pytest.mark.parametrize("method", [quick_or_slow(m) for m in methods.METHODS if m.name not in EXCEPTIONS])
def test_a_preset_raises_the_expected_reward(method):
    gain, error = mean_and_error([learn(method.key, seed=seed).gain for seed in SEEDS])
    assert gain > 2 * error and gain > 0.1, f"{method.key}: {gain:.3f} ± {error:.3f}"


def test_shuffled_rewards_teach_nothing():
    stages = [{"kind": "shuffle"}, *methods.preset("grpo_2402.03300")["advantage"]]
    gain, error = mean_and_error([learn("grpo", seed=seed, advantage=stages).gain for seed in SEEDS])
    assert gain < 0.05 + 2 * error


def test_a_shorter_run_learns_less():
    assert 0 < learn("grpo", steps=5).gain < learn("grpo", steps=STEPS).gain


@pytest.mark.parametrize("method", methods.METHODS, ids=lambda method: method.key)
def test_a_preset_with_what_it_needs_passes_the_check_of_its_settings(method):
    config_of(method.key).check_settings(1)


def test_needs_and_exceptions_name_presets():
    names = {method.name for method in methods.METHODS}
    assert set(NEEDS) | set(FAST) | set(EXCEPTIONS) <= names


# ── groups that are all wrong ──


def test_where_a_prompt_is_never_solved_grpo_stands_still_and_others_move():
    runs = {name: learn_all_wrong(name, seed=2) for name in ("grpo", "ngrpo", "spo", "v05")}
    assert all(len(run.unsolved) >= 2 for run in runs.values())
    assert max(runs["grpo"].unsolved) == 0.0
    for name in ("ngrpo", "spo", "v05"):
        assert min(runs[name].unsolved) > 0.1, name
    assert runs["grpo"].silent > STEPS // 2 and runs["ngrpo"].silent == runs["v05"].silent == 0


@pytest.mark.parametrize(("name", "silent"), [("grpo", 6), ("spo", 2), ("ngrpo", 0), ("v05", 0)])
def test_a_batch_that_is_all_wrong_moves_only_what_compares_with_more_than_the_batch(name, silent):
    """SPO's trackers differ once some prompts were drawn more often than others; until then its batch norm leaves 0. It asks half
    of the prompts a step, so some of them move little."""
    found = learn_all_wrong(name, steps=6, least=7)
    assert len(found.unsolved) == 8 and found.silent <= silent
    assert (min(found.unsolved) > 0.02) == (name != "grpo")
    assert name != "grpo" or (found.silent == 6 and max(found.unsolved) == 0)


def test_a_demonstration_is_the_target_and_a_sub_agent_is_called_by_the_sample_before():
    columns = config_of("grao").engine.table_columns(4)
    assert columns["demo"].tolist() == [1, 0, 0, 0] and columns["correct"].tolist()[0]
    columns = config_of("m_grpo").engine.table_columns(4)
    assert columns["agent"].tolist() == [0, 1, 0, 1] and columns["main"].tolist() == [0, 0, 2, 2]


def test_signed_rewards_are_minus_one_and_one():
    prompt = Prompt("toy/0", "0", target=(1, 2, 3, 4, 1, 2))
    items = [((1, 2, 3), 0), ((4, 4, 4), 0)]
    assert ToyReward("signed")(items, [prompt] * 2)["score"].tolist() == [1, -1]
