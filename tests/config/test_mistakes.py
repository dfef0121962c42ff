"""Settings that would train nothing, or the wrong way round, are refused when the config is read."""

from __future__ import annotations

import pytest
from children import in_child
from conftest import ROOT

from grpo_mm.config.run_config import read
from grpo_mm.errors import ConfigError

REFUSED = {
    "a bound below zero": ("flow", ["advantage=[weighted_sum, group_norm, {kind: clamp, limit: -5}]"], "wanted above 0"),
    "an eps below zero": ("flow", ["advantage=[weighted_sum, {kind: group_norm, eps: -1}]"], "eps = -1"),
    "a loss turned round": ("nft", ["objective=[{kind: nft, weight: -5}]"], "nft: weight = -5; wanted above 0"),
    "a term of weight 0": ("flow", ["objective=[{kind: clipped_ratio, weight: 0}]"], "wanted above 0"),
    "only a kl": ("nft", ["objective=[{kind: kl, form: velocity}]"], "no term of the objective reads the advantage"),
    "groups of one row": (
        "flow", ["advantage=[weighted_sum, {kind: group_norm, key: [prompt, sample]}]"], "nothing to learn from",
    ),
    "chosen before summed": (
        "g2rpo", ["advantage=[weighted_sum, {kind: group_norm, key: [prompt, action, tag]}, {kind: keep_extremes, keep: 2}, sum_tags]"],
        "nothing to learn from",
    ),
    "a gate that nobody reads": (
        "flow", ["rewards.doubt={use: jpeg, weight: 0}", "advantage=[{kind: gardo_gate, against: [doubt]}, weighted_sum, group_norm]"],
        "makes the column 'kl_gate', but no term",
    ),
    "a doubter that is optimised": (
        "flow", ["rewards.doubt={use: jpeg}", "advantage=[{kind: gardo_gate, against: [doubt]}, weighted_sum, group_norm]"],
        "serves only here, but has weight 1",
    ),
    "a gate over a key": (
        "flow", ["rewards.doubt={use: jpeg, weight: 0}",
                 "advantage=[{kind: gardo_gate, against: [doubt], column: prompt}, weighted_sum]"], "column 'prompt' of its own",
    ),
    "NaN in a list": ("flow", ["engine.noise={kind: levels, levels: [.nan, .5, .5, .5, .5, .5, .5, 0]}"], "finite number"),
    "drowned in noise": ("flow", ["engine.noise.level=1e30"], "drowns every picture"),
    "noise on the last step only": ("dense", ["engine.noise={kind: levels, levels: [0, 0, 0, 0, 0, 0, 0, 1]}"], "no noisy step"),
    "too many steps": ("flow", ["engine.steps=100000"], "at most 1000"),
    "granularities beyond the schedule": ("g2rpo", ["engine.tree.granularity=[1, 9]"], "coarser completions are all the same"),
    "no tree": ("flow", ["engine.tree={kind: 'os:path'}"], "engine.tree: 'os:path' cannot be a component of the role 'tree'"),
    "pruned branches": ("g2rpo", ["engine.train_within={kind: window, size: 1, within: [0, 1]}"], "sample and score branches"),
    "empty updates": (
        "flow_grpo", ["engine.train_within={kind: window, size: 2, within: [0, 2]}", "updates={by: action, count: 4}"],
        "some updates would train nothing",
    ),
    "a window that walks off": (
        "branch", ["engine.noise={kind: sliding_window, size: 4, every: 5000}", "steps=20000"], "splits",
    ),
    "a judge that leaves some alone": ("pref", ["rewards.shape.use.max_pairs=3"], "leaves some of 12 pictures uncompared"),
    "a mean that is no score": (
        "flow", ["watch.r={metric: eval/shape/score, low: 0.9, action: stop}", "evaluation.every=1"], "eval/shape/mean",
    ),
    "a win rate held out": (
        "pref", ["watch.r={metric: eval/shape/mean, low: 0.9, action: stop}", "evaluation.every=1"], "compares samples of a group",
    ),
    "edges in disguise": (
        "branch", ["engine.tree={kind: unshared, of: {kind: splits, factor: 3, at: [0, 2]}}",
                   "objective=[{kind: clipped_ratio, step_weight: relative_std}]"], "relative_std",
    ),
    "a reset at every step": ("nft", ["reference_reset={kl_above: -1}"], "kl_above = -1"),
    "an average that flees": ("flow", ["ema={slope: -1}"], "slope = -1"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_is_refused_with_what_to_change(name):
    config, overrides, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        read(ROOT / f"configs/quickstart/{config}.yaml", overrides).check_settings()


def test_a_window_that_never_moves_within_the_run_is_not_refused():
    overrides = ["engine.noise={kind: sliding_window, size: 4, every: 2000, level: 0.3}", "steps=30"]
    read(ROOT / "configs/quickstart/branch.yaml", overrides).check_settings()


def test_the_python_entry_works_more_than_once(tmp_path):
    """Importing a submodule of its name would put that in the place of the function."""
    small = [
        "steps=1",
        "eval_prompts={}",
        "prompts_per_step=2",
        "group_size=2",
        "checkpoints.every=0",
        "samples_every=0",
    ]

    def train_twice() -> None:
        import grpo_mm

        for name in ("one", "two"):
            config = ROOT / "configs/quickstart/flow.yaml"
            grpo_mm.train(config, [f"name={name}", *small, "threads=1", f"runs_dir={tmp_path}"])

    assert in_child(train_twice, tmp_path / "said.txt") == 0, (tmp_path / "said.txt").read_text()
    assert (tmp_path / "two/summary.json").exists()
