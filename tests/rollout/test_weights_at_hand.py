"""Weights that cannot be loaded are answered with the setting that could name a copy of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from grpo_mm.config.typed_yaml import component
from grpo_mm.errors import ConfigError
from grpo_mm.registry import Role
from grpo_mm.rollout.scoring import REWARDS, Scorer, Scoring
from grpo_mm.rollout.weights_at_hand import with_settings

SETTINGS = {
    "pick_score": ({"kind": "pick_score"}, "processor"),
    "image_reward": ({"kind": "image_reward"}, "tokenizer"),
    "nearest_neighbour": ({"kind": "nearest_neighbour"}, "model"),
    "vlm_yes_no": ({"kind": "vlm_yes_no"}, "model"),
    "a detector": ({"kind": "geneval", "detector": {"kind": "transformers", "name": "nobody/knows"}}, "detector.name"),
    "a tokenizer": ({"kind": "response_length", "tokenizer": "nobody/knows"}, "tokenizer"),
    "another tokenizer": ({"kind": "repetition", "tokenizer": "nobody/knows"}, "tokenizer"),
    "a judge": ({"kind": "win_rate", "judge": {"kind": "transformers", "model": "nobody/knows"}}, "judge.model"),
}


@pytest.mark.parametrize("what", SETTINGS)
@pytest.mark.parametrize("place", ["rewards", "watch"])
def test_a_reward_whose_weights_are_elsewhere_names_its_setting(what, place, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    settings, name = SETTINGS[what]
    reward = component(Role("reward"), settings, path="r")
    scoring = Scoring({"mine": Scorer(use=reward)}, torch.device("cpu"), counter=REWARDS if place == "rewards" else "w")
    with pytest.raises(
        ConfigError, match=rf"^{place}\.mine\.use: .*\. If a copy lies .*: {place}\.mine\.use\.{name}=PATH\.$"
    ):
        scoring.load(leave=False)


@dataclass
class Made:
    model: str = "org/name"
    tag: str = "openai"
    form: str = "x"
    inner: Any = None
    names: dict[str, str] = field(default_factory=dict)


def test_only_what_the_message_names_and_is_not_there_is_proposed(tmp_path):
    def said(message, **settings):
        return with_settings(message, Made(**settings), key="rewards.a.use")

    assert said("org/name (openai) is gone.").endswith("rewards.a.use.model=PATH or rewards.a.use.tag=PATH.")
    assert said("no x here.") == "rewards.a.use: no x here."
    assert said(f"{tmp_path} is damaged.", model=str(tmp_path)) == f"rewards.a.use: {tmp_path} is damaged."
    assert said("far/off", inner=Made(model="far/off")).endswith("far/off. If a copy lies on this machine, name its folder or file: rewards.a.use.inner.model=PATH.")  # fmt: skip
    assert said("far/off!", names={"k": "far/off"}).endswith("rewards.a.use.names.k=PATH.")
