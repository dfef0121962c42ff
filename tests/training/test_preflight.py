"""What a run will need is asked for before a model is loaded and anything is sampled."""

import logging
from collections import namedtuple
from dataclasses import dataclass, field

import pytest
import tiny_rewards
import torch
from tiny_runs import write_config

from grpo_mm import train
from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.flow.policy import FlowPolicy
from grpo_mm.pipelines.vlm.policy import VlmPolicyConfig
from grpo_mm.rollout.scoring import Scorer, Scoring
from grpo_mm.training import preflight
from grpo_mm.training.preflight import check_disk, check_media, check_scoring
from grpo_mm.types import Prompt

PROMPTS = [Prompt(f"p{i}", f"text {i}", target={"answer": "red", "n": i}, source="own") for i in range(4)]


def texts(prompts):
    return VlmPolicyConfig.stand_ins(None, prompts)


def scoring_of(**rewards) -> Scoring:
    made = {name: use if isinstance(use, Scorer) else Scorer(use) for name, use in rewards.items()}
    return Scoring(made, torch.device("cpu"))


def wrong_column(texts, anwser):
    return [1.0] * len(texts)


def wrong_length(texts):
    return [1.0]


def raises(texts):
    raise ConnectionError("judge.example does not answer")


def of_nothing(texts):
    return None


def on_the_answer_alone(texts, answer):
    if any(text != known for text, known in zip(texts, answer)):
        raise ValueError("not what I can read")
    return [1.0] * len(texts)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (wrong_column, r"'anwser' \(did you mean 'answer'\?\)"),
        (wrong_length, "1 values for 'score'; wanted 2"),
        (raises, "judge.example does not answer"),
        (of_nothing, "returned None"),
        (Scorer(raises, weight=0.5, sources=("own",)), "judge.example"),
    ],
)
def test_a_reward_that_cannot_score_is_refused_with_its_reason(use, message):
    with pytest.raises(ConfigError, match=rf"(?s)rewards\.mine cannot score.*before anything is sampled.*{message}"):
        check_scoring(scoring_of(mine=use), PROMPTS, texts, place="rewards")


@pytest.mark.parametrize(
    "use", [on_the_answer_alone, lambda texts: [None] * len(texts), lambda texts: [0.0, float("nan")]]
)
def test_a_reward_that_scores_or_leaves_out_some_sort_of_output_passes(use):
    check_scoring(scoring_of(mine=use), PROMPTS, texts, place="rewards")


@dataclass
class OverSets:
    scope = "set"
    seen: list = field(default_factory=list)

    def __call__(self, items, prompts, group):
        self.seen.append(([p.id for p in prompts], group.tolist()))
        return [0.0] * len(items)


def test_a_reward_over_sets_is_asked_about_one_set_of_two():
    reward = OverSets()
    check_scoring(scoring_of(mine=reward), PROMPTS, texts, place="rewards")
    assert reward.seen == [(["p0", "p0"], [0, 0])]


@dataclass
class Applies:
    ids: tuple[str, ...]

    def applies_to(self, prompt):
        return prompt.id in self.ids

    def __call__(self, items, prompts):
        return [1.0] * len(items)


def test_what_no_prompt_asks_for_is_told_and_a_run_that_nothing_rewards_is_refused(caplog):
    with caplog.at_level(logging.WARNING):
        check_scoring(
            scoring_of(a=Applies(("p1",)), b=Applies(())), PROMPTS, texts, place="rewards", must_apply=PROMPTS
        )
    assert [r.getMessage() for r in caplog.records] == ["rewards.b applies to none of the 4 prompts: it is never asked"]
    with pytest.raises(ConfigError, match=r"none of the rewards \(b\) applies to any of the 4 prompts.*'answer', 'n'"):
        check_scoring(scoring_of(b=Applies(())), PROMPTS, texts, place="rewards", must_apply=PROMPTS)


def test_the_first_media_of_each_source_are_opened():
    seen = []

    def probe(prompt):
        seen.append(prompt.id)
        if prompt.id.startswith("bad"):
            raise FileNotFoundError(f"{prompt.id}.png is not there")

    def source(name, *ids):
        return [Prompt(one, "x", media=("m",), source=name) for one in ids]

    check_media([*source("a", "bad1", "good1", "bad2"), *source("b", "good2"), Prompt("c", "no media")], probe)
    assert seen == ["bad1", "good1", "good2"]
    with pytest.raises(
        ConfigError, match="none of the first 2 prompts with media of 'a' can be opened: 'bad1': .*not there"
    ):
        check_media(source("a", "bad1", "bad2", "good1"), probe)


def test_space_on_the_disk(tmp_path, monkeypatch, caplog):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda folder: usage(0, 0, 10 * 2**30))
    sizes = {"checkpoint_bytes": 3 * 2**30, "product_bytes": 2**30, "kept": 2}
    check_disk(tmp_path / "not" / "yet", **sizes)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        check_disk(tmp_path, **sizes | {"kept": 3})
    assert "too little space: a checkpoint takes 3.00 GiB, the product 1.00 GiB" in caplog.text
    with pytest.raises(ConfigError, match=r"no space for what the run writes: .*10.00 GiB free. Set runs_dir"):
        check_disk(tmp_path, **sizes | {"checkpoint_bytes": 10 * 2**30})


def test_a_run_stops_before_its_model_is_loaded_and_can_be_told_not_to(tiny_sd3, tmp_path, monkeypatch):
    few = {"steps": 1, "eval_prompts": None, "samples_every": 0}
    config = write_config(tmp_path, tiny_sd3, few)
    calls = []

    def counted(images, prompts, metadata):
        calls.append(len(images))
        return tiny_rewards.bright(images, prompts, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(FlowPolicy, "__init__", lambda *_: pytest.fail("the model was loaded"))
        with pytest.raises(ConfigError, match="rewards.bright cannot score"):
            train(config, rewards={"bright": lambda images, wrong: [0.0] * len(images)})
    train(config, rewards={"bright": counted})
    assert calls == [2, 8]
    calls.clear()
    train(config, ["preflight=false", "name=other"], rewards={"bright": counted})
    assert calls == [8]
