"""`key=value`: the field says what the text means, and nothing of it gets lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo_mm.config.overrides import override
from grpo_mm.config.run_config import RunConfig, read
from grpo_mm.errors import ConfigError
from grpo_mm.outside import place

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


QUICKSTART = Path(__file__).parents[2] / "configs/quickstart/flow.yaml"
VARIABLES = (
    "$HOME/runs", "${HOME}/runs", "/scratch/$USER/x", "/a/${USER}", "${oc.env:HOME}/x", "${env:HOME}", "$SCRATCH", "~/$X/y", "$HOME/my runs",
    "${hydra:run.dir}", "./$X",
)  # fmt: skip


@pytest.mark.parametrize("text", VARIABLES)
def test_a_variable_of_a_shell_becomes_no_folder(text):
    with pytest.raises(ConfigError, match=r"runs_dir.*is not filled in"):
        read(QUICKSTART, [f"runs_dir={text}"])
    with pytest.raises(ConfigError, match=r"runs_dir.*is not filled in"):
        read(QUICKSTART, [f"data.x={text}", "runs_dir=${data.x}"])
    with pytest.raises(ConfigError, match=r"--out.*is not filled in"):
        place(text, what="--out")


@pytest.mark.parametrize(
    "text", ["a$b", "$5 and $X", "pay $X/day", "100%d", "%HOME%", "US$", "x/$y", "${\\rm x}$", "a$HOME/x", "$", "$/x"]
)
def test_other_dollars_are_text(text):
    assert read(QUICKSTART, [f"runs_dir={text}"]).runs_dir == text


DATA = [
    (["x=/d d", "y=${data.x}/r"], "${data.y}/q", "/d d/r/q"), (["my-set=7"], "r${data.my-set}", "r7"), (["a.b=c"], "${data.a.b}", "c"),
    (["x=1.50"], "v${data.x}", "v1.50"), (["x=a #1 'q'"], "${data.x}", "a #1 'q'"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "text", "wanted"), DATA)
def test_entries_of_data_stand_where_they_are_named(data, text, wanted):
    assert read(QUICKSTART, [*(f"data.{one}" for one in data), f"runs_dir={text}"]).runs_dir == wanted


@pytest.mark.parametrize(
    ("data", "text", "told"),
    [
        (["x=true"], "r${data.x}", "within a longer text"), (["x=[1]"], "r${data.x}", "within a longer text"),
        (["x=${data.x}"], "${data.x}", "One level"), (["x=1"], "${data}", "names no entry"), (["x=1"], "${data.x:-y}", "asks for"),
        (["x=a", "y=${data.x}", "z=${data.y}"], "${data.z}", "One level"), (["x=" + "y" * 2000], "${data.x}/" * 600, "characters"),
    ],
)  # fmt: skip
def test_what_cannot_be_filled_in_is_refused(data, text, told):
    with pytest.raises(ConfigError, match=told):
        read(QUICKSTART, [*(f"data.{one}" for one in data), f"runs_dir={text}"])


@pytest.mark.parametrize("overrides", ["steps=3", {"steps": 3}, None, [("steps", 3)], 7, [None]])
def test_overrides_of_another_form_are_refused(overrides):
    with pytest.raises(ConfigError, match="override.*wanted"):
        read(QUICKSTART, overrides)


@pytest.mark.parametrize(
    "key", ["policy.lora", "evaluation.patience", "policy.merge_adapter", "ema", "policy.model.variant"]
)
def test_the_word_of_python_for_nothing_is_refused(key):
    with pytest.raises(ConfigError, match="write null"):
        read(QUICKSTART, [f"{key}=None"])
