"""Controls that give questions the wrong media, or media the wrong questions."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from grpo_mm.config.typed_yaml import component
from grpo_mm.datasets.shared.swapped import Swapped
from grpo_mm.errors import ConfigError
from grpo_mm.registry import Role
from grpo_mm.types import Prompt


@dataclass(frozen=True)
class Three:
    count: int = 3

    def load(self) -> list[Prompt]:
        return [Prompt(f"p{i}", f"text {i}", media=(f"clip {i}",), target=i) for i in range(self.count)]


@pytest.mark.parametrize(("what", "texts", "media"), [("media", "012", "120"), ("text", "120", "012")])
def test_one_of_both_moves_on_and_the_target_stays(what, texts, media):
    found = Swapped(Three(), what=what).load()
    assert [p.text[-1] for p in found] == list(texts) and [p.media[0][-1] for p in found] == list(media)
    assert [(p.id, p.target) for p in found] == [("p0", 0), ("p1", 1), ("p2", 2)]


def test_it_is_named_in_a_config():
    found = component(Role("prompts"), {"kind": "swapped", "of": {"kind": "shape_world"}, "what": "text"}, path="x")
    assert found.what == "text" and found.of.load()


def test_too_few_prompts_are_refused():
    with pytest.raises(ConfigError, match="nothing to swap"):
        Swapped(Three(1)).load()
