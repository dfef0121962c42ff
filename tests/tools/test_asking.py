"""A question of one's own in the words of training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from grpo_mm.errors import ConfigError
from grpo_mm.tools.asking import phrased, templates

HERE = Path("run.yaml")
SCENES = {"use": {"kind": "scene_world", "style": "think"}}


@dataclass(frozen=True)
class Own:
    """A reader of a user's, which has neither a template nor a phrase."""

    def load(self):
        return []


def use(template: str) -> dict:
    return {"use": {"kind": "conversations", "path": "none.json", "template": template}}


ASKED = {
    "a template": ({"a": use("{query}\nIn one word.")}, {}, "why?\nIn one word."),
    "the default of a reader": (
        {"a": {"use": {"kind": "conversations", "path": "none.json"}}}, {},
        "why?\nPut the final answer into <answer>…</answer>.",
    ),
    "within another reader": ({"a": {"use": {"kind": "swapped", "of": use("Q: {query}")["use"]}}}, {}, "Q: why?"),
    "a phrase": ({"a": SCENES}, {}, "why?<image>Think first."),
    "another name": ({"a": use("{prompt} Answer.")}, {}, "why? Answer."),
    "further words": ({"a": use("{query} within {duration:.1f} s")}, {"duration": "12"}, "why? within 12.0 s"),
    "two sources of one voice": ({"a": use("Q: {query}"), "b": use("Q: {query}")}, {}, "Q: why?"),
    "a reader without one": ({"a": {"use": {"kind": "tests_own:Own"}}}, {}, "why?"),
    "braces that are none": ({"a": use("{{x}} {query}")}, {}, "{x} why?"),
    "no prompts": (None, {}, "why?"),
}  # fmt: skip


@pytest.mark.parametrize("name", ASKED)
def test_a_text_is_asked_as_training_asks(name, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tests_own", sys.modules[__name__])
    sources, words, wanted = ASKED[name]
    assert phrased(["why?"], sources, run=HERE, trust=True, words=words) == [wanted]


REFUSED = {
    "two voices": ({"a": use("Q: {query}"), "b": SCENES}, {}, "by source: a, b. Name one with --source"),
    "a word that lacks": ({"a": use("{query} {options}")}, {}, "give --word options=…"),
    "a word too many": ({"a": use("{query}")}, {"x": "1"}, r"no template of the run's prompts has \{x\}"),
    "no question": ({"a": use("Describe it.")}, {}, "takes no question"),
    "a look inside": ({"a": use("{query.__class__}")}, {}, "takes no question|reaches into"),
    "a huge width": ({"a": use("{query:>999999999999}")}, {}, "reaches into its words"),
    "no template": ({"a": use("{query")}, {}, "is no template"),
    "a wrong format": ({"a": use("{query:.2f}")}, {}, "cannot be filled in"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_asked_so_is_refused(name):
    sources, words, said = REFUSED[name]
    with pytest.raises(ConfigError, match=said):
        phrased(["why?"], sources, run=HERE, trust=False, words=words)


def test_a_source_is_named_where_there_are_several():
    sources = {"a": use("Q: {query}"), "b": SCENES}
    assert phrased(["why?"], sources, run=HERE, trust=False, source="a", words={}) == ["Q: why?"]
    with pytest.raises(ConfigError, match="'c': the run trains on a, b"):
        phrased(["why?"], sources, run=HERE, trust=False, source="c", words={})
    assert templates(sources, run=HERE, trust=False) == {"a": "Q: {query}", "b": "{query}<image>Think first."}


def test_code_that_a_foreign_run_names_is_not_imported_for_its_words(tmp_path, caplog):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"name": "x"}))
    (tmp_path / "run.json").write_text("{}")
    sources = {"a": {"use": {"kind": "antigravity_of_nobody:Reader"}}}
    assert phrased(["why?"], sources, run=tmp_path, trust=False, words={}) == ["why?"]
    assert "does not come with this package" in caplog.text and "texts stand as they are" in caplog.text
