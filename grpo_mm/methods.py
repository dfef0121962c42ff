"""Every method by name: what it changes, where it comes from, and the preset that makes it.

A name that several papers use is refused with the candidates; the key, NAME_ARXIVID, always works.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from grpo_mm.errors import ConfigError

PRESETS = Path(__file__).with_name("presets")

Grade = Literal["A", "B", "C", "D"]
"""Where our formulas come from. A: the authors' code; B: the text of the paper; C: third parties that quote it; D: an abstract,
uncertain."""


@dataclass(frozen=True)
class Method:
    """One line of the table."""

    name: str
    arxiv: str
    title: str
    grade: Grade
    changes: str
    """What it does differently from GRPO, in a few words."""
    tested: str
    """The test file with its worked numbers."""

    @property
    def key(self) -> str:
        return f"{self.name}_{self.arxiv}"

    @property
    def file(self) -> Path:
        return PRESETS / f"{self.key}.yaml"


METHODS: tuple[Method, ...] = ()

OTHERS: dict[str, tuple[str, ...]] = {
    "grpo_lambda": ("2510.00194 (eligibility traces)", "2510.06870 (λ-GRPO)"),
    "ospo": ("Shapley credit of segments",),
    "s_grpo": ("2504.20834 (token-efficient)",),
    "rank_grpo": ("RankGRPO (samples ranked by a reward model)",),
    "graph_grpo": ("graph flow models",),
    "bnpo": ("TRL's loss type bnpo, a masked mean over the local batch",),
}
"""Names that other papers use as well: what is not here under them."""


def find(name: str) -> Method:
    """The method of a key, or of a name that only one paper uses; raises ConfigError with the candidates otherwise."""
    for method in METHODS:
        if name == method.key:
            return method
    same = [method for method in METHODS if method.name == name]
    if len(same) == 1 and name not in OTHERS:
        return same[0]
    if same:
        here = ", ".join(f"{method.key} ({method.title})" for method in same)
        raise ConfigError(f"method {name!r} is the name of several papers. Here: {here}. Not here: {'; '.join(OTHERS.get(name, ()))}.")
    near = difflib.get_close_matches(name, [n for m in METHODS for n in (m.name, m.key)], n=1)
    raise ConfigError(
        f"unknown method {name!r}." + (f" Did you mean {near[0]!r}?" if near else "") + " `grpo-mm methods` lists them."
    )


@cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def preset(name: str) -> dict[str, Any]:
    """The settings of a method: the keys of a config that it fills in."""
    return yaml.safe_load(_text(find(name).file))
