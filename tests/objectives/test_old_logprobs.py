"""What ratios are taken against: the sampler's numbers, a pass of their own, or the update's own forward."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny_vlm
import torch
import yaml
from test_update import Alone, ToyPolicy, assert_same, make_credit, make_rollout
from tiny_runs import ROOT, record

from grpo_mm.config.run_config import read
from grpo_mm.config.typed_yaml import merge
from grpo_mm.config.without_effect import without_effect
from grpo_mm.entry import train
from grpo_mm.objectives import ClippedRatio, Kl, RatioNorm, Truncated
from grpo_mm.weights.update import accumulate, make_view

TERMS = {
    "action": (ClippedRatio(clip_low=0.2, clip_high=0.2), Kl(form="k3", weight=0.1)),
    "row": (ClippedRatio(ratio="row", clip_low=0.2, clip_high=0.2),),
    "update": (RatioNorm(clip_low=0.2, clip_high=0.2),),
    "truncated": (Truncated(of=ClippedRatio(clip_low=0.2, clip_high=0.2), cap=1.05),),
}


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize(("unit", "cut"), [("action", 5), ("row", 3)])
def test_an_update_that_keeps_its_own_forward_is_one_after_a_pass_of_its_own(name, unit, cut):
    rollout = make_rollout()
    found = []
    for own in (True, False):
        policy, old_NA = ToyPolicy(unit=unit, cut=cut), torch.full_like(rollout.behaviour_NA, torch.nan)
        if not own:
            for index, values in ToyPolicy().logprobs(
                rollout, ToyPolicy().plan(rollout, rollout.mask_NA), needs=frozenset({"logprobs"}), grad=False
            ):
                old_NA.view(-1)[index] = values["logprobs"]
            old_NA = old_NA.nan_to_num()
        view = make_view(rollout, make_credit(), rollout.mask_NA, old_NA, Alone())
        result = accumulate(policy, rollout, TERMS[name], view, Alone())
        found.append((policy.gradient, result))
    assert_same(found[0][0], found[1][0])
    assert (
        found[0][1].terms == pytest.approx(found[1][1].terms) and found[0][1].num_forwards == found[1][1].num_forwards
    )
    assert found[0][1].stats == pytest.approx(found[1][1].stats)
    if name == "truncated":
        assert found[0][1].stats["behaviour_weight"] < 1.05  # the sampler's numbers stay what they were
    assert found[0][0].abs().sum() > 0


def vlm_config(folder, **changes):
    lora = changes.pop("lora", None)
    return {
        "name": "tiny", "steps": 1, "prompts_per_step": 2, "group_size": 4,
        "policy": {"kind": "vlm", "path": tiny_vlm.folder("qwen2_5_vl"), "dtype": "bfloat16", "lora": lora, "micro_batch": 3},
        "engine": {"kind": "vlm", "max_new_tokens": 12},
        "prompts": {"scenes": {"use": {"kind": "scene_world", "split": "train", "count": 2}}},
        "rewards": {"letters": {"use": {"kind": "function", "path": "tiny_rewards:letters"}}},
        "objective": [{"kind": "truncated", "of": {"kind": "clipped_ratio"}}, {"kind": "kl", "form": "k3", "weight": 0.05}],
        "optim": {"lr": 0.0}, "device": "cpu", "threads": 1, "runs_dir": str(folder), **changes,
    }  # fmt: skip


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_ratios_of_bfloat16_texts_begin_at_1_only_against_the_trainers_own_numbers(lora, tmp_path):
    row = {}
    for old in ("rollout", "auto"):
        train(vlm_config(tmp_path, name=old, old_logprobs=old, lora=lora))
        row[old] = next(row for row in record(tmp_path / old) if "objective/ratio" in row)
    assert row["auto"]["policy/logprob_gap"] > 1e-3  # what sampler and trainer differ by
    assert row["rollout"]["objective/approx_kl"] > 0 and row["rollout"]["objective/ratio"] != 1
    assert row["auto"]["objective/ratio"] == 1 and row["auto"]["objective/approx_kl"] == 0
    assert row["auto"]["objective/clip_frac"] == 0 and row["auto"]["objective/behaviour_weight"] != 1
    assert row["auto"]["calls/train_calls"] == row["rollout"]["calls/train_calls"]
    assert not any("calls/value_calls" in found for found in row.values())  # no pass more


def test_auto_takes_a_pass_of_its_own_where_weights_move_within_a_rollout(tmp_path):
    train(vlm_config(tmp_path, old_logprobs="auto", updates={"passes": 2}))
    row = next(row for row in record(tmp_path / "tiny") if "objective/ratio" in row)
    assert row["objective/ratio"] == 1 and row["calls/value_calls"] == row["calls/train_calls"] / 2 == 8


def with_parent_of(path):
    """What the file and its parents say."""
    own = yaml.safe_load(path.read_text())
    parent = own.pop("inherit", None)
    return merge(with_parent_of(path.parent / parent), own) if parent else own


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, "update"),
        ({"updates": {"count": 2}}, "recompute"),
        ({"updates": {"passes": 2}}, "recompute"),
        ({"sampling": {}}, "recompute"),
        ({"old_logprobs": "rollout"}, "rollout"),
        ({"old_logprobs": "recompute"}, "recompute"),
    ],
)
def test_what_auto_means(changes, found, tmp_path):
    config = read(vlm_config(tmp_path, **{"old_logprobs": "auto", **changes}))
    assert config.old_logprobs_of == found
    assert ("value" in config.network_calls()) == (found == "recompute")


def test_the_rollouts_numbers_in_bfloat16_are_told_of_and_shipped_settings_do_without_them(tmp_path):
    told = [line for line in without_effect(read(vlm_config(tmp_path))) if line.startswith("old_logprobs")]
    assert len(told) == 1 and "old_logprobs=auto" in told[0]
    paths = [path for kind in ("video", "spatial") for path in sorted((ROOT / f"configs/{kind}").glob("*.yaml"))]
    assert len(paths) >= 24
    for path in paths:
        nowhere = [
            f"data.{name}=somewhere.json" for name, value in with_parent_of(path)["data"].items() if value is None
        ]
        config = read(path, nowhere)
        assert config.policy.dtype == "bfloat16" and config.old_logprobs == "auto", config.name
        assert not any(line.startswith("old_logprobs") for line in without_effect(config)), config.name
    exact = replace(read(vlm_config(tmp_path)), policy=replace(read(vlm_config(tmp_path)).policy, dtype="float32"))
    assert not any(line.startswith("old_logprobs") for line in without_effect(exact))
