"""What goes beyond the positions that a model has learnt is refused, or left out with its reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_vlm import folder, policy

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.vlm.engine import VlmEngine
from grpo_mm.pipelines.vlm.models.families import positions_of, positions_on_disk
from grpo_mm.pipelines.vlm.policy import VlmPolicyConfig
from grpo_mm.types import Prompt


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("setting", ["max_new_tokens", "eval_max_new_tokens"])
def test_answers_as_long_as_all_positions_are_refused(family, setting):
    config = VlmPolicyConfig(path=folder(family))
    most = positions_on_disk(config.path)
    replace(VlmEngine(), **{setting: most - 1}).check(config, group_size=2)
    with pytest.raises(
        ConfigError, match=rf"engine.{setting} = {most}; the checkpoint has positions for {most} tokens"
    ):
        replace(VlmEngine(), **{setting: most}).check(config, group_size=2)


def test_a_checkpoint_that_is_not_here_or_says_nothing_limits_nothing():
    assert positions_on_disk("nobody/knows") is None and positions_of({"text_config": {}}, where="m") is None
    assert positions_of({"max_position_embeddings": 32768}, where="an older form of Qwen2-VL") == 32768


@pytest.mark.parametrize("value", [0, -1, "many", 2.5, True, [4096]])
def test_positions_that_are_no_number_are_refused(value):
    with pytest.raises(ConfigError, match="max_position_embeddings is"):
        positions_of({"text_config": {"max_position_embeddings": value}}, where="m")


def test_a_prompt_beyond_the_last_position_is_left_out_with_its_length():
    p = policy()
    text = "a red square " * 40
    tokens = len(p.encode(Prompt("fits", text)))
    p.model.config.get_text_config().max_position_embeddings = tokens
    assert not p.encode(Prompt("fits", text)).failure
    found = p.encode(Prompt("long", text + text))
    assert not len(found) and f"the checkpoint has {tokens} positions" in found.failure and "'long'" in found.failure
