"""`grpo-mm explain` and the answers to words of other tool kits."""

from __future__ import annotations

import re

import pytest

from grpo_mm.config.run_config import read
from grpo_mm.config.synonyms import SYNONYMS, here_it_is
from grpo_mm.errors import ConfigError, UserError
from grpo_mm.tools.keys.explain import all_keys, explain
from grpo_mm.tools.keys.key_texts import TEXTS, meaning_of
from grpo_mm.tools.keys.reference import reference_page

FLOW = "quickstart/flow.yaml"


def told(*words: str) -> str:
    return "\n".join(explain(*words))


@pytest.mark.parametrize(
    ("asked", "answers"),
    {
        "policy.micro_batch": ("policy flow", "default: 16", "policy vlm", "default: 8", "not the gradient"),
        "micro_batch": ("policy.micro_batch",),
        "optim.lr": ("number; default: 0.0003", "Learning rate"),
        "group_size": ("whole number; default: required", "Samples of a prompt"),
        "objective.0.clip_low": ("objective.N.clip_low", "objective clipped_ratio", "objective gmpo"),
        "rewards.mine.use.iou": ("reward temporal_iou", "one of hull, set, timestamp_aware, union"),
        "engine": ("kinds: flow, forward_process, vlm",),
        "optim": ("warmup_updates: whole number",),
        "temporal_iou": ("reward temporal_iou  (arXiv:2503.13377)", "require_tag: true or false; default: false"),
        "reward typed_answer": ("reward typed_answer",),
        "dapo": ("method dapo_2503.14476", "arXiv:2503.14476"),
        "reward": ("reward function: ", "reward ocr: "),
    }.items(),
)
def test_a_key_a_kind_a_role_and_a_method_are_explained(asked, answers):
    found = told(*asked.split())
    for answer in answers:
        assert answer in found


@pytest.mark.parametrize(
    ("asked", "answer"),
    {
        "policy.micro_bach": "Did you mean policy.micro_batch",
        "num_generations": "here it is group_size",
        "no such thing at all": "`grpo-mm show CONFIG` prints all keys",
    }.items(),
)
def test_what_is_not_there_is_answered_with_what_may_be_meant(asked, answer):
    with pytest.raises(UserError, match="there is no key, component or method") as refused:
        explain(asked)
    assert answer in str(refused.value)


def test_every_key_says_what_it_means():
    """A new field brings a line right under it, with its unit where it has one."""
    assert [
        f"{k.cls.__module__}: {k.cls.__name__}.{k.field.name}"
        for k in all_keys()
        if not meaning_of(k.cls, k.field.name)
    ] == []


def test_every_key_of_the_reference_has_its_meaning_in_the_table():
    rows = [line for line in reference_page().splitlines() if line.startswith("| `")]
    assert len(rows) > 1000 and [row for row in rows if row.endswith("|  |")] == []


def test_no_meaning_is_only_the_name_again():
    for key in all_keys():
        said = re.sub(r"[^a-z]", "", meaning_of(key.cls, key.field.name).lower())
        assert said != key.field.name.replace("_", ""), key


def test_every_text_that_does_not_stand_beside_the_code_has_its_field():
    assert set(TEXTS) <= {(key.cls.__name__, key.field.name) for key in all_keys()}


@pytest.mark.parametrize(
    ("override", "answer"),
    {
        "num_generations=8": "here it is group_size",
        "learning_rate=1e-5": "here it is optim.lr",
        "optim.learning_rate=1e-5": "here it is optim.lr",
        "policy.lora={r: 8}": "here it is policy.lora.rank",
        "policy.lora={lora_alpha: 8}": "here it is policy.lora.alpha",
        "beta=0.04": "the weight of the objective {kind: kl",
        "max_completion_length=512": "here it is engine.max_new_tokens",
        "per_device_train_batch_size=4": "policy.micro_batch is the size of one forward",
        "gradient_accumulation_steps=4": "prompts_per_step",
        "num_train_epochs=3": "here it is steps",
        "resolution=512": "here it is policy.height and policy.width",
        "policy.guidance_scale=4": "here it is policy.guidance",
        "engine.num_inference_steps=10": "engine.eval_steps in evaluation",
        "network_dim=32": "here it is policy.lora.rank",
        "micro_batch=4": "it stands under policy, as policy.micro_batch",
        "warmup_updates=4": "it stands under optim, as optim.warmup_updates",
        "optim.lrr=1": "Did you mean 'lr'?",
        "stepz=3": "Did you mean 'steps'?",
    }.items(),
)
def test_an_unknown_key_is_answered_with_the_one_that_is_meant(override, answer):
    with pytest.raises(ConfigError, match="unknown key") as refused:
        read(FLOW, [override])
    assert answer in str(refused.value)


def test_a_key_of_a_reward_is_not_taken_for_a_word_of_another_tool_kit():
    with pytest.raises(ConfigError, match="unknown key 'size'") as refused:
        read(FLOW, ["rewards.shape.use={kind: ocr, size: 3}"])
    assert "here it is" not in str(refused.value)


def test_words_of_others_are_found_in_any_spelling_and_lead_to_keys_that_exist():
    assert here_it_is("--num-generations") == here_it_is("actor_rollout_ref.rollout.n") == "here it is group_size"
    assert here_it_is("steps_of_mine") is None
    names = {key.dotted for key in all_keys()} | {"method", "runs_dir"}
    plain = [text for text in SYNONYMS.values() if " " not in text and "," not in text]
    assert [text for text in plain if text not in names] == []


def test_one_value_is_a_list_of_one():
    assert read(FLOW, ["trackers=tensorboard"]).trackers == ("tensorboard",)
    with pytest.raises(ConfigError, match="trackers: .*should be 'tensorboard' or 'wandb'"):
        read(FLOW, ["trackers=mlflow"])
