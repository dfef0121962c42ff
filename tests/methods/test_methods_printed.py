"""The settings that papers and releases print stand in the presets, as numbers of the preset files."""

from __future__ import annotations

from functools import reduce

import pytest

from grpo_mm.config.methods import METHODS, preset

GRPO_CLIP = {"objective.0.clip_low": 0.2, "objective.0.clip_high": 0.2}
CLIP_HIGHER = {"objective.0.clip_low": 0.2, "objective.0.clip_high": 0.28}
GRPO_KL = {"objective.1.form": "k3", "objective.1.weight": 0.04}
HINGE = {"objective.0.temperature": 10, "objective.1.limit": 1e-4, "objective.1.weight": 1000}
UNBIASED = {"advantage.1.ddof": 1}

PRINTED = {
    "grpo": GRPO_CLIP | GRPO_KL | UNBIASED | {"group_size": 64, "objective.0.aggregate": "row"},
    "dr_grpo": GRPO_CLIP | {"group_size": 8, "advantage.1.scale": "none", "objective.0.aggregate": "constant"},
    "rloo": GRPO_CLIP | {
        "advantage.1.beta": 0.05, "advantage.2.center": "leave_one_out", "advantage.2.scale": "none",
        "objective.0.ratio": "product", "objective.0.aggregate": "row",
    },
    "dapo": CLIP_HIGHER | {
        "group_size": 16, "collector.kind": "dynamic_sampling", "collector.oversample": 3, "collector.max_batches": 10,
        "advantage.2.max_length": 20480, "advantage.2.buffer": 4096, "advantage.3.ddof": 1, "objective.0.aggregate": "token",
    },
    "gspo": UNBIASED | {
        "objective.0.ratio": "row", "objective.0.clip_low": 3e-4, "objective.0.clip_high": 4e-4,
        "objective.0.max_log_ratio": 10, "objective.0.aggregate": "row", "updates.count": 4,
    },
    "gspo_token": UNBIASED | {
        "objective.0.ratio": "row_token", "objective.0.clip_low": 3e-4, "objective.0.clip_high": 4e-4,
        "objective.0.max_log_ratio": 10, "objective.0.aggregate": "row", "updates.count": 4,
    },
    "bnpo_2506.02864": CLIP_HIGHER | {"group_size": 16, "objective.0.dual_clip": 10, "objective.0.aggregate": "row_sum"},
    "mc_grpo": GRPO_KL | {"advantage.1.floor": 0.1, "advantage.1.eps": 1e-3, "updates.passes": 2},
    "ngrpo": {
        "group_size": 8, "updates.count": 4, "collector.kind": "dynamic_sampling", "collector.drop": "best",
        "collector.best": 1, "advantage.1.drop": "best", "advantage.1.best": 1, "advantage.2.best": 1,
        "objective.0.clip_low": 0.16, "objective.0.clip_high": 0.24,
    },
    "stratified_grpo": {"advantage.1.blend": 0.8},
    "spo": CLIP_HIGHER | {
        "group_size": 1, "collector.kind": "prioritised", "advantage.1.key": [], "advantage.1.ddof": 1, "advantage.1.eps": 1e-8,
        "objective.0.dual_clip": 10,
    },
    "v0": {"collector.rule.kind": "by_success"},
    "v05": {"collector.first": 4, "collector.most": 16, "group_size": 16, "advantage.1.low": -1, "advantage.1.high": 1},
    "gdpo": {
        "advantage.0.ddof": 1, "advantage.0.eps": 1e-4, "advantage.2.key": [], "advantage.2.ddof": 1, "advantage.2.eps": 1e-4,
    },
    "crpo": {
        "group_size": 5, "rewards.accuracy.weight": 10, "rewards.faithfulness.weight": 1, "rewards.comprehensiveness.weight": 1,
    },
    "p_grpo": CLIP_HIGHER | {"objective.0.aggregate": "token"},
    "grpo_lambda_2505.18086": {"advantage.0.share": 0.2, "advantage.0.slope": 0.2},
    "unlikely": {
        "group_size": 32, "updates.passes": 2, "advantage.0.beta": 0.25, "advantage.0.likelihood": "mean",
        "advantage.0.mixed_only": True, "advantage.2.ddof": 1, "advantage.2.eps": 1e-6, "objective.1.weight": 0.1,
    },
    "xrpo": {"collector.rule.rounds": 2, "advantage.2.slope": 2.5, "advantage.2.cap": 0.5},
    "ps_grpo": {"group_size": 4},
    "cobalt": {
        "group_size": 16, "objective.0.clip_low": 0.2, "objective.0.clip_high": 0.4, "objective.1.form": "k2",
        "objective.1.weight": 1e-4,
    },
    "rank_grpo_2510.20150": {
        "group_size": 8, "advantage.1.discount": "dcg", "advantage.2.ddof": 1, "advantage.2.eps": 1e-4, "advantage.3.items": 20,
        "advantage.3.overflow": -0.1, "advantage.3.exact": 0.1, "advantage.3.short": -0.1, "objective.0.ratio": "unit",
        "objective.0.clip_low": 0.06, "objective.0.clip_high": 0.08, "objective.0.aggregate": "token",
        "objective.1.form": "k3", "objective.1.weight": 1e-3,
    },
    "gigpo": {"group_size": 8, "advantage.1.gamma": 0.95, "advantage.1.omega": 1},
    "tempo": {"group_size": 6},
    "m_grpo": CLIP_HIGHER | {"group_size": 8},
    "graph_grpo_2603.02701": {"group_size": 16},
    "ospo_2507.15351": CLIP_HIGHER | {"advantage.1.fairness_weight": 1},
    "s_grpo_2505.07686": {"advantage.1.decay": 0.5, "advantage.2.scale": "none", "objective.0.aggregate": "row"},
    "disco": HINGE | {
        "group_size": 8, "updates.count": 4, "advantage.1.threshold": 0.5, "objective.0.score": "log_likelihood",
    },
    "drpo": HINGE | {
        "group_size": 8, "updates.count": 4, "objective.0.score": "log_likelihood", "objective.0.preference_temperature": 0.1,
    },
    "grao": {
        "group_size": 8, "updates.count": 1, "advantage.1.ddof": 0, "objective.0.imitation": 0.5, "objective.0.alignment": 0.6,
    },
    "faithful_grpo": {
        "group_size": 5, "updates.count": 2, "rewards.accuracy.weight": 0.5, "rewards.format.weight": 0.5,
        "advantage.0.constraints.consistency.threshold": 0.95, "advantage.0.constraints.semantic_grounding.threshold": 0.95,
        "advantage.0.constraints.spatial_grounding.threshold": 0.70, "objective.0.clip_low": 0.28, "objective.0.clip_high": 0.28,
        "objective.1.weight": 0.001,
    },
    "microcoder_grpo": {"advantage.2.share": 0.3, "objective.0.clip_high": 0.28},
    "cispo": {"objective.0.max_ratio": 5},
    "sapo": {"objective.0.temperature_up": 1, "objective.0.temperature_down": 1.05},
    "gmpo": {"objective.0.clip_low": 0.4, "objective.0.clip_high": 0.4},
    "kl_cov": {"objective.0.share": 2e-4, "objective.0.kl": 1},
    "high_entropy": {
        "objective.0.share": 0.2, "objective.0.of.clip_low": 0.2, "objective.0.of.clip_high": 0.28,
        "objective.0.of.aggregate": "token",
    },
    "tis": {"objective.0.cap": 2, "old_logprobs": "recompute"},
}  # fmt: skip

NOTHING_PRINTED = ("multi_label_grpo", "info_consistency_grpo", "weighted_grpo", "qae", "passk", "gpg")
"""Of these the source gives a formula at most."""


def at(settings, path):
    return reduce(lambda part, key: part[int(key) if isinstance(part, list) else key], path.split("."), settings)


@pytest.mark.parametrize("name", PRINTED)
def test_a_preset_holds_the_printed_settings(name):
    settings = preset(name)
    assert {path: at(settings, path) for path in PRINTED[name]} == PRINTED[name]


def test_every_preset_has_its_printed_settings_or_none():
    named = {name.split("_2")[0] for name in PRINTED} | set(NOTHING_PRINTED)
    assert named == {method.name for method in METHODS}


MAY_HOLD = {"group_size", "updates", "collector", "rewards", "advantage", "objective", "old_logprobs"}


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.key)
def test_a_preset_leaves_the_optimiser_to_the_model(method):
    assert set(preset(method.key)) <= MAY_HOLD


WITHOUT_KL = (
    "dr_grpo", "rloo", "dapo", "gspo", "gspo_token", "bnpo", "ngrpo", "spo", "m_grpo", "s_grpo", "disco", "drpo", "grao",
    "microcoder_grpo", "p_grpo",
)  # fmt: skip


@pytest.mark.parametrize("method", [m for m in METHODS if m.name in WITHOUT_KL], ids=lambda m: m.key)
def test_methods_without_a_reference_have_no_kl_term(method):
    assert all(part["kind"] != "kl" for part in preset(method.key)["objective"])


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.key)
def test_a_preset_says_how_its_surrogate_and_its_kl_are_averaged(method):
    """Where the source does not print it, the comment says whose choice it is, so the choice stands in the file."""
    for part in preset(method.key)["objective"]:
        if part["kind"] in ("clipped_ratio", "kl"):
            assert part["aggregate"] in ("token", "row", "row_sum", "constant")
