"""Every shipped config loads, shows its arithmetic, and takes a full step on a tiny checkpoint of its format."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from tiny_reward_models import (
    build_aesthetic_head,
    build_dino,
    build_image_reward,
    build_open_clip,
    build_pick_score,
)
from typer.testing import CliRunner

from grpo_mm.cli import app
from grpo_mm.config.run_config import read
from grpo_mm.config.typed_yaml import read_yaml
from grpo_mm.entry import train
from grpo_mm.registry import entries
from grpo_mm.rewards.judges.win_rate import WinRate

FLOW = sorted((ROOT / "configs/flow").glob("*.yaml"))
ALL = sorted(p for folder in ("flow", "quickstart", "bench") for p in (ROOT / "configs" / folder).glob("*.yaml"))


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory) -> str:
    """A random CLIP model in a folder that open_clip loads."""
    import open_clip
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("clip")
    model_cfg = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    torch.manual_seed(0)
    model = open_clip.CLIP(**model_cfg)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {}}))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return str(folder)


@pytest.fixture(scope="module")
def tiny_rewards(tmp_path_factory, tiny_clip) -> dict[str, dict]:
    """Kind of reward -> the settings with which it takes random weights of its format."""
    folder = tmp_path_factory.mktemp("rewards")
    places = {name: folder / name for name in ("open_clip", "pick", "image_reward", "dino")}
    for place in places.values():
        place.mkdir()
    open_clip = build_open_clip(places["open_clip"])
    pick = build_pick_score(places["pick"])
    blip = build_image_reward(places["image_reward"])
    return {
        "clip_score": {"model": f"local-dir:{tiny_clip}"},
        "hps": {"model": open_clip, "path": f"{open_clip}/hps.pt"},
        "pick_score": {"model": pick, "processor": pick},
        "aesthetic": {"model": f"local-dir:{open_clip}", "path": build_aesthetic_head(folder)},
        "image_reward": {**blip, "size": dataclasses.asdict(blip["size"])},
        "nearest_neighbour": {"model": build_dino(places["dino"])},
    }


@pytest.fixture(scope="module")
def judge_url():
    """Somebody who prefers the brighter picture, on this machine."""
    from chat_server import ChatServer
    from test_judges import brighter, flex_answer, parts

    def answer(levels, request):
        if "cat_winner" in parts(request)[-1]["text"]:
            return flex_answer(f"Image {1 if levels[0] > levels[1] else 2}", quality="Image 1")
        return brighter(levels, request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        server = ChatServer(answer)
        yield server.url
        server.close()


READS = ("flow_grpo_sd35",)
"""Where the OCR reward itself is asked. It takes 1/4 s a picture, so elsewhere a function stands in for it."""
SIZES = {
    "tempflow_sd35": ("group_size=4", "engine.seeds=2"),
    "tempflow_flux": ("group_size=4", "engine.seeds=2"),
    "branch_grpo_flux": ("group_size=16", "engine.steps=12"),
    "branch_prune_flux": ("group_size=16", "engine.steps=12"),
    "tree_grpo_sd35": ("group_size=27",),
    "pref_flux": ("group_size=3",),
    "pref_flex_flux": ("group_size=3",),
    "pref_sd35": ("group_size=3",),
}
"""Groups that a tree fits, and that a win rate says something of; all others are pairs."""


def paths_and_sizes(path, tmp_path, models, rewards, judge_url) -> list[str]:
    """Overrides that a user without the data and the GPUs would give: files, picture size, batch sizes; nothing else.

    Two rewards are stood in for: the object detector of GenEval has no tiny weights, and see READS.
    """
    plain = read_yaml(path)
    updates = plain["updates"]
    found = [
        f"policy.model.path={models[plain['policy']['model']['kind']]}",
        "policy.height=32", "policy.width=32", "policy.eval_height=null", "policy.eval_width=null",
        "policy.text_length=16", "policy.micro_batch=16", "policy.decode_batch=16",
        "engine.rollout_batch=16", "engine.eval_steps=2",
        f"prompts_per_step={updates['count'] if updates['by'] == 'group' else 1}", "steps=1",
        "evaluation={every: 0, limit: 1}", f"runs_dir={tmp_path}/runs", "device=cpu",
        *SIZES.get(path.stem, ("group_size=2",)),
    ]  # fmt: skip
    for part in ("prompts", "eval_prompts"):
        found += [f"{part}.{name}.use.path={prompt_file(tmp_path, one['use'])}" for name, one in plain[part].items()]
    for part in ("rewards", "watch"):
        for name, one in plain[part].items():
            kind = one["use"] if isinstance(one["use"], str) else one["use"]["kind"]
            key = f"{part}.{name}.use"
            if kind == "geneval" or (kind == "ocr" and path.stem not in READS):
                found += [f"{key}={{}}", f"{key}={{kind: function, path: 'tiny_rewards:bright'}}"]
            elif kind == "win_rate":
                found.append(f"{key}.judge.base_url={judge_url}")
            elif kind in rewards:
                found.append(f"{key}={json.dumps({'kind': kind, **rewards[kind]})}")
    return found


def prompt_file(folder, use) -> Path:
    texts = ['a sign "red"', 'a photo of a "circle"', 'the "blue" square', 'a "green" circle']
    if use["kind"] != "geneval":
        (folder / "prompts.txt").write_text("\n".join(texts))
        return folder / "prompts.txt"
    rows = [{"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": text} for text in texts]
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder / "prompts.jsonl"


ALIKE = ("g2rpo_hps_flux", "branch_prune_flux", "pref_flex_flux", "nft_multi_sd35", "dense_calibrated_sd35")
"""Variants of a method whose other settings are quick."""


def quick_or_slow(path):
    """Of settings that differ in the model only, the one for FLUX is quick."""
    twin = path.with_name(path.name.replace("_sd35", "_flux"))
    slow = path.stem in ALIKE or (twin != path and twin.exists() and path.stem != "flow_grpo_sd35")
    return pytest.param(path, id=path.stem, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize("path", map(quick_or_slow, FLOW))
def test_published_setting_takes_a_full_step(path, tmp_path, checkpoints, tiny_rewards, judge_url):
    overrides = paths_and_sizes(path, tmp_path, checkpoints, tiny_rewards, judge_url)
    rows = []
    summary = train(path, overrides, on_step=lambda step, row: rows.append(row))
    (row,) = rows
    assert summary["steps"] == 1
    assert math.isfinite(row["loss/total"]) and row["optim/bad_updates"] == 0
    assert row["optim/grad_norm"] > 0 or path.stem in READS  # nothing is written in the pictures of random weights
    assert row["reward/failed_frac"] == 0
    config = read(path, overrides)
    assert row["policy/logprob_gap"] <= (0.05 if config.policy.dtype == "bfloat16" else 1e-5)
    check_calls(config, row)


def check_calls(config, row) -> None:
    """What a step counted is what its plan says."""
    engine, group = config.engine, config.group_size
    pruned = any(getattr(stage, "keep", None) is not None for stage in config.advantage)
    planned = config.network_calls()
    exact = {"rollout"} if pruned or getattr(engine, "train_fraction", 1) < 1 else set(planned)
    for name, number in planned.items():
        assert 0 < row[f"calls/{name}_calls"] <= number
        assert row[f"calls/{name}_calls"] == number or name not in exact
    networks = {"rewards", "judge", "vlm_failures", *planned}
    assert row.get("calls/vlm_failures", 0) == 0
    assert {k.removeprefix("calls/").removesuffix("_calls") for k in row if k.startswith("calls/")} <= networks | {
        "watch"
    }
    pictures = config.prompts_per_step * engine.pictures(group)
    assert row["calls/rewards"] == pictures * len(config.rewards)
    judges = [s.use for s in config.rewards.values() if isinstance(s.use, WinRate)]
    assert row.get("calls/judge_calls", 0) == config.prompts_per_step * sum(j.planned_calls(group) for j in judges)


@pytest.mark.parametrize("path", ALL, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_show_prints_the_arithmetic_of_every_config(path):
    plain = read_yaml(path)
    result = CliRunner().invoke(app, ["show", str(path), "--no-memory"])
    rows = plain["prompts_per_step"] * plain["group_size"]
    assert (
        f"{plain['prompts_per_step']} prompts × {plain['group_size']} samples = {rows} rows per step" in result.output
    )
    assert "network calls per step" in result.output and "reward calls per step" in result.output
    read(path).check_settings()


def test_trained_actions_are_those_of_the_papers():
    """Flow-GRPO trains T - 1 steps, Fast 3, MixGRPO 4, DanceGRPO 60 % of 15."""
    actions = {path.stem: read(path).engine.actions() for path in FLOW}
    assert actions["flow_grpo_sd35"] == 9
    assert actions["flow_grpo_flux"] == 5
    assert actions["fast_sd35"] == actions["fast_flux"] == 3
    assert actions["mix_flux"] == actions["mix_flash_flux"] == actions["mix_sd35"] == 4
    assert actions["dance_flux"] == 9
    assert actions["g2rpo_flux"] == actions["g2rpo_hps_flux"] == 8
    assert actions["pref_flux"] == 15 and actions["pref_flex_flux"] == 9  # .6 of 24 and of 14, rounded up
    assert actions["dense_sd35"] == actions["tempflow_sd35"] == actions["nft_sd35"] == 9
    assert actions["dppo_sd35"] == actions["tree_grpo_sd35"] == 3
    assert actions["awm_sd35"] == actions["awm_flux"] == 6


def tree_of(stem: str, *overrides: str, step: int = 0):
    config = read(ROOT / f"configs/flow/{stem}.yaml", overrides)
    return config, config.engine.grid_and_tree(step=step, seed=0, group_size=config.group_size)[1]


def test_g2rpo_calls_are_prefix_and_tails_of_each_granularity():
    """One trunk of 8 forwards, each the start of 12 branches, and their tails, which share what they have in common.

    From step k + 1 of 16 there are m = 15 - k calls by λ = 1. λ = 2 needs ⌈m/2⌉ and λ = 3 ⌈m/3⌉, the first two of which
    the tail by λ = 1 makes too.
    """
    tails = [15 - k for k in range(8)]
    extra = {1: 0, 2: sum(math.ceil(m / 2) - 2 for m in tails), 3: sum(math.ceil(m / 3) - 2 for m in tails)}
    assert (sum(tails), extra[2], extra[3]) == (92, 32, 17)
    for stem in ("g2rpo_flux", "g2rpo_sd35"):
        config, tree = tree_of(stem, "engine.tree.granularity=[1]")
        assert tree.rollout_calls() == 8 + 12 * 92 == 1112 and tree.pictures() == 12 * 8
        config, tree = tree_of(stem)
        assert tree.rollout_calls() == 8 + 12 * (92 + 32 + 17) == 1700 and tree.pictures() == 12 * 8 * 3
        assert tree.training_calls() == 8
        assert config.planned_reward_calls() == 16 * 12 * 8 * 3 * 2
    assert tree_of("g2rpo_hps_flux")[1].rollout_calls() == 8 + 12 * (92 + 32)


def test_densegrpo_finishes_every_latent_and_scores_t_pictures_a_trajectory():
    for stem, steps in (("dense_sd35", 10), ("dense_flux", 6)):
        _, tree = tree_of(stem)
        assert tree.rollout_calls() == 24 * (steps + steps * (steps - 1) // 2)
        assert tree.pictures() == 24 * steps and tree.training_calls() == 24 * (steps - 1)


def children(tree) -> dict[int, int]:
    """Latent -> how many steps start from it, where that is more than one."""
    parents, counts = tree.parent_V[tree.parent_V >= 0].unique(return_counts=True)
    return {p: n for p, n in zip(parents.tolist(), counts.tolist()) if n > 1}


def test_trees_have_the_leaves_and_the_splits_of_the_papers():
    """TreeGRPO: 27 leaves from 13 branching latents wherever the window lies. BranchGRPO: 16 from 1 + 2 + 4 + 8."""
    starts = set()
    for step in range(12):
        _, tree = tree_of("tree_grpo_sd35", step=step)
        splits = children(tree)
        assert len(splits) == tree.training_calls() == 13 and set(splits.values()) == {3} and tree.pictures() == 27
        start = int(tree.level_V[list(splits)].min())
        assert tree.rollout_calls() == start + 13 + 27 * (10 - start - 3)
        starts.add(start)
    assert len(starts) > 1
    _, tree = tree_of("branch_grpo_flux")
    splits = children(tree)
    assert sorted(tree.level_V[list(splits)].tolist()) == [0] + [3] * 2 + [6] * 4 + [9] * 8
    assert set(splits.values()) == {2} and tree.pictures() == 16
    assert tree.rollout_calls() == 1 + 2 * 3 + 4 * 3 + 8 * 3 + 16 * 10
    for step, latents in ((0, 1 + 2 * 3), (29, 1 + 2 * 3), (30, 2 * 3 + 4)):  # the window of depth pruning moves on
        assert tree_of("branch_prune_flux", step=step)[1].training_calls() == latents


def test_tempflow_branches_6_times_from_each_of_4_latents_at_every_step():
    _, tree = tree_of("tempflow_sd35")
    assert tree.pictures() == 4 * 6 * 9 and tree.training_calls() == 4 * 9
    assert tree.rollout_calls() == 4 * 9 + 24 * sum(range(1, 10))


def test_win_rates_take_half_of_g_times_g_minus_1_comparisons():
    for stem, group, comparisons in (("pref_flux", 8, 28), ("pref_sd35", 8, 28), ("pref_flex_flux", 9, 36)):
        config, _ = tree_of(stem)
        assert config.group_size == group and config.rewards["pref"].use.planned_calls(group) == comparisons
        assert config.planned_reward_calls() == 64 * (comparisons + group)


def test_every_flow_config_is_a_preset_of_the_registry():
    presets = {entry.config for entry in entries("preset") if entry.config.startswith("configs/flow/")}
    assert presets == {str(path.relative_to(ROOT)) for path in FLOW}
    for entry in entries():
        assert not entry.config or (ROOT / entry.config).is_file(), entry
