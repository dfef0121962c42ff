"""Bands of metrics: what the rules see, what they do to a run, and that a killed run does the same again."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_rewards
import torch
from children import command_line, in_child
from safetensors.torch import load_file
from tiny_runs import record, summary, write_config

from grpo_mm.config.run_config import read as read_config
from grpo_mm.config.typed_yaml import build, dump
from grpo_mm.entry import train
from grpo_mm.errors import CheckpointError, ConfigError
from grpo_mm.looking.watch import Rules, Watched, absolute_band, describe
from grpo_mm.run import product
from grpo_mm.training import trainer
from grpo_mm.training.learner import Learner
from grpo_mm.weights import checkpoint

NAN = float("nan")


def walk(values: list[float | None], **settings: object) -> tuple[list[int | None], list[str], Rules]:
    """Whether each value is outside, what is done at each ("" where nothing), and the rules afterwards."""
    rules = Rules({"light": build(Watched, {"metric": "image/luminance", **settings})})
    outside, actions = [], []
    for step, value in enumerate(values):
        fields, alarms = rules.observe({} if value is None else {"image/luminance": value}, weights_step=step)
        outside.append(fields.get("watch_rule/light/outside"))
        actions.append(alarms[0].action if alarms else "")
    return outside, actions, rules


def test_bounds_belong_to_the_band():
    outside, _, _ = walk([0.1, 0.0999, 0.6, 0.6001, 0.3], low=0.1, high=0.6)
    assert outside == [0, 1, 0, 1, 0]
    assert walk([-9.0, 0.7], high=0.6)[0] == [0, 1] and walk([9.0, 0.7], low=0.8)[0] == [0, 1]


def test_relative_bounds_are_multiples_of_the_first_value():
    outside, _, rules = walk([0.4, 0.21, 0.19, 0.79, 0.81], low=0.5, high=2, relative=True)
    assert outside == [0, 0, 1, 0, 1] and rules.seen["light"]["first"] == 0.4
    # From -4 the band 0.5 to 2 is -8 to -2; a 0 has no multiples and is waited over.
    assert walk([0.0, -4.0, -7.9, -8.1, -1.9, -2.1], low=0.5, high=2, relative=True)[0] == [None, 0, 0, 1, 1, 0]
    assert absolute_band(0.5, None, unit=-4.0) == (None, -2.0)


def test_a_warning_comes_once_for_each_time_outside():
    _, actions, _ = walk([1, 9, 9, 9, 1, 9, 1], high=2)
    assert actions == ["", "warn", "", "", "", "warn", ""]


def test_patience_counts_records_in_a_row():
    _, actions, _ = walk([9, 9, 1, 9, 9, 9, 9], high=2, patience=3)
    assert actions == ["", "", "", "", "", "warn", ""]


def test_what_was_not_measured_neither_counts_nor_heals():
    outside, actions, rules = walk([1, 9, NAN, None, math.inf, 9, 1], high=2, patience=2)
    assert outside == [0, 1, None, None, None, 1, 0] and actions == ["", "", "", "", "", "warn", ""]
    assert rules.healthy_step == 6


def test_what_was_of_no_use_is_done_again_after_as_much_patience_and_then_the_run_stops():
    _, actions, _ = walk([9] * 8, high=2, patience=2, action="lower_lr", max_actions=2)
    assert actions[:6] == ["", "lower_lr", "", "lower_lr", "", "stop"]
    _, actions, _ = walk([9, 1, 9, 1, 9], high=2, action="rollback", max_actions=2)
    assert actions == ["rollback", "", "rollback", "", "stop"]


def test_healthy_are_the_newest_weights_that_every_rule_found_inside():
    rules = Rules({"a": Watched(metric="image/a", high=1), "b": Watched(metric="eval/b", high=1)})
    rules.observe({"image/a": 0.0}, weights_step=3)
    assert rules.healthy_step == 3  # b was not measured yet
    rules.observe({"eval/b": 0.0}, weights_step=4)
    rules.observe({"image/a": 0.0}, weights_step=7)
    assert rules.healthy_step == 4
    rules.observe({"eval/b": 2.0}, weights_step=8)
    assert rules.healthy_step == 4
    rules.observe({"eval/b": 1.0}, weights_step=9)
    assert rules.healthy_step == 7


def test_a_rule_goes_on_from_its_state():
    values = [0.4, 0.9, 0.9, 0.3, 0.9, 0.9, 0.9]
    settings = dict(high=2, relative=True, patience=2, action="lower_lr", max_actions=1)
    whole = walk(values, **settings)[2]
    first = walk(values[:2], **settings)[2]
    second = Rules(first.watched)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step, value in enumerate(values[2:], start=2):
        second.observe({"image/luminance": value}, weights_step=step)
    assert second.state_dict() == whole.state_dict()
    with pytest.raises(CheckpointError, match=r"watch rules \['light'\], the config has 'none'|none"):
        Rules({}).load_state_dict(first.state_dict())


def test_events_read_as_sentences():
    event = {"metric": "image/luminance", "value": 0.7134, "band": [0.1, 0.6], "asked": "rollback"}
    assert describe(event | {"action": "rollback", "weights_of": 10, "factor": 0.5}) == (
        "image/luminance 0.7134 left its band 0.1 to 0.6; weights of step 10 put back, learning rate × 0.5"
    )
    assert describe(event | {"action": "stop", "band": [None, 0.6]}).endswith(
        "left its band ≤ 0.6; the run stops after rollback was of no use"
    )
    assert describe(event | {"action": "warn", "band": [0.8, None]}).endswith("≥ 0.8; too late for rollback")


# ---- configs


def test_entries_are_read_and_written():
    plain = {"metric": "image/luminance", "low": 0.5, "relative": True, "action": "rollback", "patience": 2}
    made = build(Watched, plain)
    assert build(Watched, dump(made)) == made and made.use is None
    scored = build(Watched, {"use": "image_quality", "high": 100})
    assert build(Watched, dump(scored)) == scored and Rules({"q": scored}).metrics == {"q": "watch/q/score"}
    assert not Rules({"q": build(Watched, {"use": "image_quality"})}).watched


LIGHT = {"metric": "image/luminance", "high": 0.9}
REFUSED = {
    "nothing to watch": ({"high": 1}, "watch.light: neither `use` .* nor `metric`"),
    "an action without a band": (
        {"use": "image_quality", "action": "stop"},
        "watch.light: action: stop without a band does nothing; give `low`, `high` or both",
    ),
    "a metric without a band": ({"metric": "image/luminance"}, "metric: image/luminance without a band"),
    "an empty band": (LIGHT | {"low": 0.95}, "low = 0.95 is above high = 0.9"),
    "no patience": (LIGHT | {"patience": 0}, "patience = 0; wanted at least 1"),
    "a factor that raises": (LIGHT | {"action": "rollback", "factor": 1.5}, "factor = 1.5; wanted above 0 and at most 1"),
    "a factor that does nothing": (LIGHT | {"action": "lower_lr", "factor": 1}, "wanted above 0 and below 1"),
    "an unknown action": (LIGHT | {"action": "panic"}, "watch.light.action: found 'panic'"),
    "an unknown key": (LIGHT | {"hi": 1}, "unknown key 'hi'. Did you mean 'high'"),
    "sources of no reward": (LIGHT | {"sources": ["lines"]}, "sources and timeout_seconds belong to a reward"),
    "an unknown metric": (LIGHT | {"metric": "imag/luminance"}, "no name of metrics.jsonl. Did you mean 'image'"),
    "an unknown statistic": (LIGHT | {"metric": "image/luminence"}, "no statistic 'luminence'. Did you mean 'luminance'"),
    "the clock": (LIGHT | {"metric": "time/step_seconds"}, "depends on the clock"),
    "an unknown watched reward": (
        LIGHT | {"metric": "watch/qualty/score"},
        "there is no watched reward 'qualty'. Did you mean 'quality'",
    ),
    "an unknown reward": (LIGHT | {"metric": "reward/brigt/mean"}, "there is no reward 'brigt'. Did you mean 'bright'"),
    "too late": (LIGHT | {"metric": "eval/score", "action": "stop"}, "comes too late.*Set evaluation.every"),
}  # fmt: skip


@pytest.fixture
def write(tiny_sd3, tmp_path):
    def write(light: dict | None, **changes: object) -> Path:
        watch = {"quality": {"use": "image_quality"}} | ({"light": light} if light else {})
        return write_config(tmp_path, tiny_sd3, {"watch": watch, **changes})

    return write


@pytest.mark.parametrize("name", REFUSED)
def test_rules_that_cannot_be_kept_are_refused_when_the_config_is_read(name, write):
    light, wanted = REFUSED[name]
    with pytest.raises(ConfigError, match=wanted):
        read_config(write(light)).check()


def test_rules_that_contradict_the_run_are_refused(write):
    with pytest.raises(ConfigError, match="checkpoints.every = 0 there is nothing to go back to"):
        read_config(write(LIGHT | {"action": "rollback"}, checkpoints={"every": 0})).check()
    with pytest.raises(ConfigError, match="no `eval_prompts`"):
        read_config(write(LIGHT | {"metric": "eval/score"}, eval_prompts=None)).check()
    for metric in ("eval/image/luminance", "watch/quality/sharpness", "reward/bright/mean", "diversity/mean"):
        read_config(write(LIGHT | {"metric": metric})).check()


def test_a_rule_may_have_the_name_of_a_reward(write):
    config = read_config(write(None))
    rule = Watched(metric="reward/bright/mean", high=1)
    replace(config, watch={"bright": rule}).check()
    with pytest.raises(ConfigError, match="under both"):
        replace(config, watch={"bright": Watched(use=tiny_rewards.bright)}).check()


# ---- runs


def scripted(values: list[float], step_as_it_is=Learner.step):
    """A step of the learner whose image/luminance is what is wanted, by step from 1."""

    def step(self: Learner, step: int) -> dict[str, float]:
        return step_as_it_is(self, step) | {"image/luminance": values[step]}

    return step


@pytest.fixture
def script(monkeypatch):
    """Lets image/luminance of a training row be what is wanted, by step from 1."""
    return lambda values: monkeypatch.setattr(Learner, "step", scripted(values))


def events(run: Path) -> list[dict]:
    path = run / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def rows_with(run: Path, name: str) -> list[float]:
    return [row[name] for row in record(run) if name in row]


def test_statistics_of_the_pictures_are_logged_from_the_first_step(write, tmp_path):
    found = train(write(None, steps=1, evaluation={"samples_per_prompt": 2}))
    before, trained, _ = record(tmp_path / "runs/tiny")
    for name in ("luminance", "contrast", "sharpness", "saturation", "edge_density"):
        # image_quality looks at the same pictures, one by one.
        assert trained[f"image/{name}"] == pytest.approx(trained[f"watch/quality/{name}"], rel=1e-5)
        assert before[f"eval/image/{name}"] == pytest.approx(before[f"eval/quality/{name}"], rel=1e-5)
    assert trained["image/luminance"] == pytest.approx(trained["reward/bright/mean"], abs=0.1)
    assert not [name for name in found["eval_after"] if name.startswith("image")]
    assert not (tmp_path / "runs/tiny/events.jsonl").exists()


def test_warn_only_warns(write, script, tmp_path, caplog):
    script([0.5, 0.9, 0.95, 0.5, 0.9])
    train(write(LIGHT | {"high": 0.6}, steps=5))
    run = tmp_path / "runs/tiny"
    assert [(e["step"], e["action"], e["value"]) for e in events(run)] == [(2, "warn", 0.9), (5, "warn", 0.9)]
    assert rows_with(run, "watch_rule/light/outside") == [0, 1, 1, 0, 1]
    assert caplog.text.count("image/luminance 0.9 left its band ≤ 0.6") == 2
    unwatched = train(write(None, steps=5, name="unwatched"))
    strip = [{k: v for k, v in row.items() if k != "watch_rule/light/outside"} for row in record(run)]
    assert strip == record(tmp_path / "runs/unwatched") and unwatched["stopped_early"] is None


def test_a_rule_that_has_nothing_to_read_is_told_of(write, tmp_path, caplog):
    train(write(LIGHT | {"metric": "watch/quality/sharpnes"}, steps=1, eval_prompts=None))
    told = "watch rule 'light' has nothing to read: step 1 logged no 'watch/quality/sharpnes'. Did you mean"
    assert told + " 'watch/quality/sharpness'?" in caplog.text


def test_stop_ends_the_run_with_its_last_words(write, script, tmp_path):
    script([0.5, 0.9, 0.5])
    config = write(LIGHT | {"high": 0.6, "action": "stop"}, checkpoints={"every": 0})
    found = train(config)
    run = tmp_path / "runs/tiny"
    assert (found["steps"], found["stopped_early"]) == (2, "watch: light")
    assert [row["step"] for row in record(run)] == [0, 1, 2, 2] and found["eval_after"]["score"] > 0
    assert checkpoint.steps(run / "checkpoints") == [2] and (run / "adapter/README.md").exists()
    assert events(run) == [
        {"step": 2, "rule": "light", "metric": "image/luminance", "value": 0.9, "band": [None, 0.6], "asked": "stop",
         "action": "stop"},
    ]  # fmt: skip
    (run / "summary.json").unlink()  # killed before its last words: it does not train on
    assert train(config)["steps"] == 2 and len(events(run)) == 1


def test_lower_lr_halves_the_learning_rate_from_then_on(write, script, tmp_path):
    script([0.5, 0.9, 0.9, 0.5])
    train(write(LIGHT | {"high": 0.6, "action": "lower_lr"}, steps=4))
    run = tmp_path / "runs/tiny"
    assert rows_with(run, "optim/lr") == [1e-3, 1e-3, 5e-4, 2.5e-4]
    assert [(e["step"], e["action"]) for e in events(run)] == [(2, "lower_lr"), (3, "lower_lr")]


def tensors(run: Path, step: int) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / checkpoint.name_of(step)
    return {f"{p.stem}/{k}": t for p in folder.glob("*.safetensors") for k, t in load_file(p).items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_rollback_puts_the_healthy_checkpoint_back_and_goes_on(write, script, tmp_path):
    script([0.5, 0.5, 0.5, 0.9, 0.5, 0.5])
    rule = LIGHT | {"high": 0.6, "action": "rollback"}
    train(write(rule, steps=6, ema={"every_updates": 1}, checkpoints={"every": 2, "keep_last": 9}))
    run = tmp_path / "runs/tiny"
    assert [(e["step"], e["action"], e["weights_of"]) for e in events(run)] == [(4, "rollback", 2)]
    assert equal(tensors(run, 4), tensors(run, 2))  # weights, optimiser and average
    assert not equal(tensors(run, 6), tensors(run, 2)) and not equal(tensors(run, 2), tensors(run, 0))
    assert rows_with(run, "optim/lr") == [1e-3] * 4 + [5e-4] * 2
    states = [checkpoint.read(run / "checkpoints" / checkpoint.name_of(s)).state for s in (2, 4, 6)]
    assert [state["learner"]["counters"]["updates"] for state in states] == [4, 8, 12]


def test_a_checkpoint_is_healthy_only_if_its_own_weights_were_measured(write, script, tmp_path):
    """Row 3 is bad: the weights after step 2, which it measured, may not come back. Row 2 vouches for those of step 1."""
    script([0.5, 0.5, 0.9])
    train(write(LIGHT | {"high": 0.6, "action": "rollback", "factor": 1}, checkpoints={"keep_last": 9}))
    assert [(e["step"], e["weights_of"]) for e in events(tmp_path / "runs/tiny")] == [(3, 1)]


def test_the_healthy_checkpoint_is_kept_while_it_is_needed(write, script, tmp_path):
    script([0.9, 0.9, 0.9, 0.9, 0.5])
    rule = LIGHT | {"high": 0.6, "action": "rollback", "patience": 2, "max_actions": 1}
    found = train(write(rule, steps=5, eval_prompts=None, checkpoints={"keep_last": 1}))
    run = tmp_path / "runs/tiny"
    assert [(e["step"], e["action"], e.get("weights_of")) for e in events(run)] == [
        (2, "rollback", 0), (4, "stop", None),
    ]  # fmt: skip
    assert found["stopped_early"] == "watch: light" and checkpoint.steps(run / "checkpoints") == [0, 4]


def test_an_evaluation_that_leaves_its_band_is_not_the_best_one(write, monkeypatch, tmp_path):
    """Held-out scores are made up. The last evaluation comes too late for anything but a warning."""
    scores = iter([0.1, 0.2, 0.9, 0.3, 0.9])
    as_it_is = trainer.evaluate

    def made_up(*args):
        result = as_it_is(*args)
        result.metrics["eval/score"] = next(scores)
        return result

    monkeypatch.setattr(trainer, "evaluate", made_up)
    rule = {"metric": "eval/score", "high": 0.5, "action": "rollback"}
    found = train(write(rule, steps=4, evaluation={"every": 1}, checkpoints={"keep_last": 9}))
    run = tmp_path / "runs/tiny"
    told = [(e["step"], e["action"], e.get("weights_of")) for e in events(run)]
    assert told == [(2, "rollback", 1), (4, "warn", None)]
    assert equal(tensors(run, 2), tensors(run, 1)) and found["best_step"] == 4
    state = checkpoint.read(run / "checkpoints/step_000003").state
    assert (state["best_step"], state["best_score"]) == (3, 0.3)


# ---- killed and resumed

LUMINANCE = [0.5, 0.5, 0.9, 0.9, 0.5, 0.9]
WATCH = {
    "quality": {"use": "image_quality", "metric": "eval/quality/contrast", "low": 1.0},
    "light": {"metric": "image/luminance", "high": 1.2, "relative": True, "patience": 2, "action": "rollback"},
    "pace": {"metric": "image/luminance", "high": 0.6, "patience": 1, "action": "lower_lr", "factor": 0.7, "max_actions": 9},
}  # fmt: skip
CHANGES = {"watch": WATCH, "steps": 6, "evaluation": {"every": 3}, "checkpoints": {"every": 2, "keep_last": 1}}


def die(*_args: object, **_kwargs: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after_event(number: int):
    """Dies when that many events are written."""
    append, calls = trainer.metrics.append, [0]

    def wrapped(path, row):
        append(path, row)
        calls[0] += path.name == "events.jsonl"
        if calls[0] == number:
            die()

    return trainer.metrics, "append", wrapped


def in_step(number: int):
    step_as_it_is = scripted(LUMINANCE)
    return Learner, "step", lambda self, step: die() if step == number else step_as_it_is(self, step)


MOMENTS = {
    "after the warning before training": after_event(1),
    "before the first step": in_step(0),
    "between two actions of a step": after_event(3),
    "after the rollback": after_event(4),
    "a step later": in_step(4),
    "after the last evaluation": (product, "write_model_card", die),
}
QUICK = ("after the warning before training", "between two actions of a step", "after the rollback")


@pytest.mark.parametrize(
    "moments", [QUICK, pytest.param(sorted(set(MOMENTS) - set(QUICK)), marks=pytest.mark.slow)], ids=["", "others"]
)
def test_a_killed_run_with_rules_goes_on_bit_for_bit(moments, tiny_sd3, script, tmp_path):
    script(LUMINANCE)
    config = write_config(tmp_path, tiny_sd3, CHANGES)
    train(config)
    whole, run = tmp_path / "whole", tmp_path / "runs/tiny"
    run.rename(whole)
    told = [(e["step"], e["rule"], e["action"]) for e in events(whole)]
    assert told == [
        (0, "quality", "warn"), (3, "pace", "lower_lr"), (4, "light", "rollback"), (4, "pace", "lower_lr"),
        (6, "pace", "lower_lr"),
    ]  # fmt: skip
    assert rows_with(whole, "optim/lr") == pytest.approx([1e-3, 1e-3, 1e-3, 7e-4, 2.45e-4, 2.45e-4])
    scripting = (Learner, "step", scripted(LUMINANCE))
    for moment in moments:
        code = in_child(command_line("train", config), tmp_path / "killed.txt", patches=[scripting, MOMENTS[moment]])
        assert code == -signal.SIGKILL, moment
        train(config)
        assert record(run) == record(whole), moment
        assert (run / "events.jsonl").read_bytes() == (whole / "events.jsonl").read_bytes(), moment
        assert checkpoint.steps(run / "checkpoints") == checkpoint.steps(whole / "checkpoints"), moment
        assert equal(tensors(run, 6), tensors(whole, 6)), moment
        assert {**summary(run), "seconds": 0} == {**summary(whole), "seconds": 0}, moment
        shutil.rmtree(run)
