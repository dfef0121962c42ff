"""Which step's weights a product of a run holds, and why: what summary, console, report and card say of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from grpo_mm.looking.own_files import is_step, json_object
from grpo_mm.outside import plain

FILE = "product.json"
"""In a run folder: the product that lies there now, with its `Origin`."""
LONGEST_REASON = 200


@dataclass(frozen=True)
class Origin:
    """Example: Origin(step=6, steps=12, weights="averaged", why="interrupted by SIGINT", best_step=4)"""

    step: int
    steps: int
    """To which the run was set."""
    weights: Literal["trained", "averaged"]
    """averaged: those of `ema`, with which the run evaluates too."""
    why: str
    """Why this step: "the last step", "interrupted by SIGTERM", "stopped early by patience", "exported: best"."""
    best_step: int | None
    """With the best held-out score of the run so far; None: none was measured."""

    def words(self) -> str:
        return f"{self.weights} weights of step {self.step} of {self.steps}, {self.why}"

    def better(self, run: str = "RUN") -> str | None:
        """Where the best held-out score is that of another step: which, and the command that writes it; `run` is its folder."""
        if self.best_step in (None, self.step):
            return None
        how = "before training" if self.best_step == 0 else f"grpo-mm export {run} --checkpoint best"
        return f"no held-out score was better than that of step {self.best_step}: {how}"


def origin_of(found: Any) -> Origin | None:
    """From the plain values of product.json, or of "product_of" in a summary; None where they are not whole."""
    if not isinstance(found, Mapping) or found.get("weights") not in ("trained", "averaged"):
        return None
    best = found.get("best_step")
    numbers = (found.get("step"), found.get("steps"), 0 if best is None else best)
    if not all(map(is_step, numbers)) or not isinstance(found.get("why"), str):
        return None
    return Origin(*numbers[:2], found["weights"], plain(found["why"], LONGEST_REASON), best)  # type: ignore[arg-type]


def read_product(run: Path, damage: list[str]) -> tuple[str, Origin] | None:
    """("adapter" or "model", its origin) of the product that lies in a run folder, by product.json; None without one."""
    path = run / FILE
    if not path.exists() and not path.is_symlink():
        return None
    found = json_object(path, run, damage)
    origin, product = origin_of(found), found.get("product")
    if origin is None or not isinstance(product, str):
        damage.append(f"{FILE} is damaged: it does not say which step the product is of")
        return None
    return plain(product, 60), origin
