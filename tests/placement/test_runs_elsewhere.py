"""Every kind of run on a device that is not the CPU: placement as CUDA demands it, and the same numbers."""

from __future__ import annotations

import pytest
from runs_elsewhere import assert_same_run
from tiny_runs import ROOT

FEW = {
    "flow": ["prompts_per_step=2", "group_size=4", "engine.steps=4", "engine.eval_steps=2", "eval_prompts.shapes.use.limit=2"],
    "video": [
        "prompts_per_step=2", "group_size=3", "engine.max_new_tokens=5", "prompts.clips.use.count=4",
        "eval_prompts.clips.use.count=2",
    ],
    "spatial": [
        "prompts_per_step=2", "group_size=3", "engine.max_new_tokens=6", "prompts.scenes.use.count=4",
        "eval_prompts.scenes.use.count=2", "rewards.letters.use={kind: function, path: 'tiny_rewards:letters'}",
    ],
}  # fmt: skip
OWN = {"branch": ["engine.steps=6", "group_size=9"], "g2rpo": ["engine.steps=6"]}
"""Their windows of noise reach the fourth step; nine leaves are nine samples."""
RECIPES = {path.stem: path for path in sorted((ROOT / "configs/quickstart").glob("*.yaml"))}
SHORT = ("flow", "video", "spatial")


def few(recipe: str) -> list[str]:
    """Settings that make a step of a quickstart small."""
    kind = next((kind for kind in ("video", "spatial") if recipe.startswith(kind)), "flow")
    return FEW[kind] + OWN.get(recipe, [])


@pytest.mark.parametrize("recipe", [pytest.param(r, marks=[] if r in SHORT else pytest.mark.slow) for r in RECIPES])
def test_a_quickstart_is_the_same_on_another_device(recipe, tmp_path):
    assert_same_run(RECIPES[recipe], few(recipe), tmp_path)
