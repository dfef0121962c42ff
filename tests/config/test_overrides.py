"""`key=value`: the field says what the text means, and nothing of it gets lost."""

from __future__ import annotations

import pytest

from grpo_mm.config.overrides import override
from grpo_mm.config.run_config import RunConfig
from grpo_mm.errors import ConfigError

ODD = (
    "0123456", "1e5", "~", "on", "12:30:45", "2026-11-29", "{", "[", "[a]", "{a: b}", "!x", "&a", "*b", "- x", "x  ", " x", "a: b",
    "it's", "", "a #b", "try #2", "true", "0x10", "1.50", "1_000", "%x", "@x", "`x", "|", "> a", "? x", "\u2028", "a\nb", "nan", "a=b",
)  # fmt: skip


def settings() -> dict:
    return {
        "policy": {"kind": "flow", "model": {"kind": "sd3", "path": "x"}, "lora": {"rank": 2}},
        "engine": {"kind": "flow"},
        "prompts": {"a": {"use": {"kind": "file", "path": "x"}}},
        "advantage": [{"kind": "group_norm"}],
    }


def value_at(text: str):
    mapping = override(settings(), text, RunConfig)
    for step in text.partition("=")[0].split("."):
        mapping = mapping[int(step)] if isinstance(mapping, list) else mapping[step]
    return mapping


@pytest.mark.parametrize("text", ODD)
def test_a_text_is_taken_as_it_stands(text):
    for key in (
        "runs_dir",
        "name",
        "policy.model.revision",
        "policy.model.path",
        "prompts.a.use.path",
        "policy.lora.start_from",
    ):
        assert value_at(f"{key}={text}") == text


def test_null_is_none_where_a_text_may_be_none():
    assert value_at("policy.model.revision=null") is None and value_at("runs_dir=null") == "null"


@pytest.mark.parametrize("text", ["'q'", '"q"', "'0123'"])
def test_quotes_around_a_text_are_refused(text):
    with pytest.raises(ConfigError, match="Leave them out"):
        value_at(f"policy.model.revision={text}")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("steps=3", 3), ("optim.lr=0.5", 0.5), ("optim.lr=1e-5", "1e-5"), ("steps=0x10", 16), ("policy.lora=null", None),
        ("policy.lora.targets=[a, '0123', 0123]", ["a", "0123", "0123"]), ("advantage.0.eps=0.1", 0.1), ("data.x=0123", "0123"),
        ("data.x=1.50", "1.50"), ("data.x=try #2", "try #2"), ("data.x=&a b", "&a b"), ("data.x='q'", "q"), ("data.x=7", 7),
        ("data.x=[1, 2]", [1, 2]), ("ema={decay: 0.5}", {"decay": 0.5}), ("policy.compile=on", "on"),
    ],
)  # fmt: skip
def test_the_rest_is_yaml(text, wanted):
    assert value_at(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "steps={", "steps=!x", "steps=&a 3", "steps=*a", "steps=3 #x", "data.x=a: b", "data.x=- x", "data.x='a' b", "policy.lora={rank: 2} #x",
        "steps=%x", "advantage.99999999999999999999=1", "advantage.x=1", "advantage.²=1", "name=\ud83d", "name=a\0b",
    ],
)  # fmt: skip
def test_what_yaml_would_drop_or_cannot_read_is_refused(text):
    from grpo_mm.config.typed_yaml import convert

    with pytest.raises(ConfigError):
        convert(int, value_at(text), path="steps")  # a text that is left is no number
