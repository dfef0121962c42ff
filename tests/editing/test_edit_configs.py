"""Every shipped config of edits loads, shows its arithmetic, and takes a full step on a tiny checkpoint of its format."""

from __future__ import annotations

import json
import math

import pytest
from chat_server import ChatServer
from conftest import ROOT
from test_published_configs import check_calls
from tiny_edits import BUILDERS, smaller_sources, written_edits
from tiny_reward_models import build_dino, build_open_clip
from typer.testing import CliRunner

from grpo_mm.cli import app
from grpo_mm.config.run_config import read
from grpo_mm.config.typed_yaml import read_yaml
from grpo_mm.entry import train

CONFIGS = sorted((ROOT / "configs/edit").glob("*.yaml"))
QUICK = ("nft_kontext", "pref_flux2_klein")


@pytest.fixture(scope="module")
def judge_url():
    """Who scores the brighter edit higher, on this machine; two edits are told from one by the number of pictures."""

    def answer(levels, request):
        if len(levels) == 3:
            return f"<think>.</think><answer>Image {1 if levels[1] > levels[2] else 2} is better</answer>"
        return f"Final Score: {1 + 4 * levels[-1] / 255:.2f}"

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        server = ChatServer(answer)
        yield server.url
        server.close()


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> dict[str, dict]:
    """Random weights for likeness."""
    clip, dino = tmp_path_factory.mktemp("clip"), tmp_path_factory.mktemp("dino")
    return {
        "clip": {"model": f"local-dir:{build_open_clip(clip)}"},
        "dino": {"model": build_dino(dino)},
        "pixels": {},
    }


def overrides_of(path, folder, judge_url, features) -> list[str]:
    """What a user without the data and the GPUs would give; the object detector of GenEval has no tiny weights."""
    plain = read_yaml(path)
    updates = plain["updates"]
    model = BUILDERS[plain["policy"]["model"]["kind"]](folder / "model")
    data = written_edits(folder)
    found = [
        f"policy.model.path={model}", "policy.height=32", "policy.width=32", "policy.eval_height=null", "policy.eval_width=null",
        "policy.text_length=16", "policy.micro_batch=16", "policy.decode_batch=16", "engine.rollout_batch=16", "engine.eval_steps=2",
        f"prompts_per_step={updates['count']}", f"group_size={3 if 'pref' in path.stem else 2}", "steps=1",
        "evaluation={every: 0, limit: 1}", f"runs_dir={folder}/runs", "device=cpu", "dtype=float32",
    ]  # fmt: skip
    found[-1] = "policy.dtype=float32"
    for part in ("prompts", "eval_prompts"):
        found += [f"{part}.{name}.use.path={data}" for name in plain[part]]
    for part in ("rewards", "watch"):
        for name, one in plain[part].items():
            use = one["use"] if isinstance(one["use"], dict) else {"kind": one["use"]}
            key = f"{part}.{name}.use"
            if use["kind"] == "geneval":
                found += [f"{key}={{}}", f"{key}={{kind: function, path: 'tiny_rewards:bright'}}"]
            elif use["kind"] == "win_rate":
                found.append(f"{key}.judge.base_url={judge_url}")
            elif use["kind"] == "edit_judge":
                found.append(f"{key}.vlm.base_url={judge_url}")
            elif use["kind"] == "source_similarity":
                found.append(f"{key}={json.dumps({**use, **features[use['by']]})}")
    return found


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=[] if p.stem in QUICK else pytest.mark.slow) for p in CONFIGS]
)
def test_it_takes_a_full_step(path, tmp_path, judge_url, features):
    overrides, rows = overrides_of(path, tmp_path, judge_url, features), []
    with smaller_sources():
        summary = train(path, overrides, on_step=lambda step, row: rows.append(row))
    (row,) = rows
    assert summary["steps"] == 1 and math.isfinite(row["loss/total"]) and row["optim/bad_updates"] == 0
    assert row["optim/grad_norm"] > 0 and row["reward/failed_frac"] == 0
    assert row["policy/logprob_gap"] <= 1e-5
    check_calls(read(path, overrides), row)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_show_prints_its_arithmetic(path):
    plain = read_yaml(path)
    result = CliRunner().invoke(app, ["show", str(path), "--no-memory"])
    rows = plain["prompts_per_step"] * plain["group_size"]
    assert (
        f"{plain['prompts_per_step']} prompts × {plain['group_size']} samples = {rows} rows per step" in result.output
    )
    read(path).check_settings()


def test_each_is_of_a_family_that_reads_pictures():
    kinds = {read(path).policy.model.pipeline for path in CONFIGS}
    assert len(kinds) >= 4 and all(read(path).policy.pictures[1] for path in CONFIGS)
