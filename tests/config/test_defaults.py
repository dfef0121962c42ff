"""Defaults belong to the policy, `show` says whose every value is, and a setting without effect speaks."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from grpo_mm.advantages import Clamp, GroupNorm, WeightedSum
from grpo_mm.config.origins import marked_yaml
from grpo_mm.config.run_config import RunConfig, plain, read
from grpo_mm.config.without_effect import without_effect
from grpo_mm.errors import ConfigError
from grpo_mm.objectives import ClippedRatio
from grpo_mm.registry import lookup
from grpo_mm.weights.optim import Optim

FLOW, SPATIAL = ROOT / "configs/quickstart/flow.yaml", ROOT / "configs/quickstart/spatial.yaml"
TEXTS = {
    "name": "texts", "steps": 3, "prompts_per_step": 2, "group_size": 4, "policy": {"kind": "vlm", "path": "zoo:vision_language"},
    "engine": "vlm", "prompts": {"scenes": {"use": {"kind": "scene_world", "count": 8}}}, "rewards": {"right": {"use": "typed_answer"}},
}  # fmt: skip


def written(folder: Path, **changes: object) -> Path:
    path = folder / "texts.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in (TEXTS | changes).items() if v is not None}))
    return path


# ── whose defaults ──


def test_a_run_of_texts_that_says_nothing_is_not_clipped_like_pictures(tmp_path):
    config = read(written(tmp_path))
    assert config.objective == (ClippedRatio(clip_low=0.2, clip_high=0.2),)
    assert config.advantage == (WeightedSum(), GroupNorm(ddof=1))
    assert config.optim == Optim(lr=1e-6)
    assert read(written(tmp_path), ["policy.lora.rank=2"]).optim.lr == 1e-5


def test_a_run_of_pictures_that_says_nothing_has_what_it_had(tmp_path):
    own = yaml.safe_load(FLOW.read_text())
    path = tmp_path / "flow.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in own.items() if k not in ("advantage", "objective", "optim")}))
    config = read(path)
    assert config.objective == (ClippedRatio(),) and ClippedRatio().clip_low == 1e-4
    assert config.advantage == (GroupNorm(), WeightedSum(), Clamp()) and config.optim == Optim()


@pytest.mark.parametrize(
    ("objective", "low", "high"),
    [
        ("clipped_ratio", 0.2, 0.2),
        ([{"kind": "clipped_ratio", "clip_high": 0.28}], 0.2, 0.28),
        ([{"kind": "clipped_ratio", "ratio": "row"}], 3e-4, 4e-4),
        ([{"kind": "truncated", "of": {"kind": "clipped_ratio"}}], 0.2, 0.2),
    ],
)
def test_a_clip_that_is_not_said_is_that_of_texts(tmp_path, objective, low, high):
    (term,) = read(written(tmp_path, objective=objective)).objective
    term = getattr(term, "of", term)
    assert (term.clip_low, term.clip_high) == (low, high)


def test_what_a_config_says_stands_above_its_policy(tmp_path):
    said = {"objective": [{"kind": "clipped_ratio", "clip_low": 1e-4, "clip_high": 1e-4}], "optim": {"lr": 0.5}}
    config = read(written(tmp_path, **said, advantage=["weighted_sum"]))
    assert config.objective == (ClippedRatio(),) and config.optim == Optim(lr=0.5)
    assert config.advantage == (WeightedSum(),)
    assert read(written(tmp_path, method="dapo")).objective[0].clip_high == 0.28
    assert read(written(tmp_path), ["optim.lr=0.25"]).optim.lr == 0.25


def test_a_config_that_is_made_in_python_has_the_same_defaults(tmp_path):
    read_one = read(written(tmp_path))
    names = ("name", "policy", "engine", "prompts", "steps", "prompts_per_step", "group_size", "rewards")
    made = RunConfig(**{name: getattr(read_one, name) for name in names})
    assert plain(made) == plain(read_one)
    assert replace(made, objective=(ClippedRatio(),)).objective == (ClippedRatio(),)
    assert replace(made, steps=9).objective == read_one.objective


def test_a_kl_of_finished_samples_is_one_of_velocities():
    config = read(ROOT / "configs/quickstart/nft.yaml", ["objective=[{kind: nft}, {kind: kl}]"])
    assert (config.objective[1].form, config.objective[1].weight) == ("velocity", 1e-3)
    config.check_settings()


# ── show ──


@pytest.mark.parametrize("path", sorted((ROOT / "configs/quickstart").glob("*.yaml")), ids=lambda p: p.stem)
def test_marks_leave_the_resolved_config_as_it_is(path):
    config = read(path)
    assert yaml.safe_load(marked_yaml(path, [], config)) == yaml.safe_load(yaml.safe_dump(plain(config)))


def test_every_value_that_the_file_does_not_say_is_marked_with_whose_it_is(tmp_path):
    path = written(tmp_path, method="dapo", optim={"eps": 1e-6})
    config = read(path, ["seed=3"])
    text = marked_yaml(path, ["seed=3"], config).splitlines()
    lines = {line.split(":")[0].strip(" -"): line for line in text}
    assert lines["steps"] == "steps: 3" and "seed: 3  # set on the command line" in text
    assert "  eps: 1.0e-06" in text and "  seed: 0  # default of evaluation" in text
    assert lines["clip_high"].endswith("clip_high: 0.28  # of method dapo")
    assert lines["dual_clip"].endswith("# default of clipped_ratio") and lines["top_p"].endswith(
        "# default of engine vlm"
    )
    assert lines["lr"].endswith("lr: 1.0e-06  # default for policy vlm") and lines["betas"].endswith(
        "# default of optim"
    )
    assert lines["style"].endswith("# default of scene_world") and lines["trackers"] == "trackers: []  # default of run"
    unmarked = [line for line in marked_yaml(path, [], config).splitlines() if "#" not in line]
    assert {"steps: 3", "group_size: 4", "  path: zoo:vision_language"} <= set(unmarked)
    assert not any("default" in line for line in unmarked)


# ── settings without effect ──

VOID = {
    "patience": (FLOW, ["evaluation.every=10", "evaluation.patience=9"], r"evaluation\.patience = 9 .*30 steps have 2 evaluations"),
    "a share of one source": (FLOW, ["prompts.shapes.weight=3"], r"prompts\.shapes\.weight = 3.0 .*no other source"),
    "a share of held-out prompts": (FLOW, ["eval_prompts.shapes.weight=3"], r"eval_prompts\.shapes\.weight"),
    "the weight of what is watched": (FLOW, ["watch.quality.weight=3"], r"watch\.quality\.weight = 3.0 .*that of `rewards`"),
    "warm-up": (FLOW, ["optim.warmup_updates=5000"], r"optim\.lr = 0\.0002 is never reached.*5000"),
    "a slow copy": (FLOW, ["ema={evaluate: false}"], r"ema: averaged weights are kept, and nothing reads them"),
    "log-probabilities": (ROOT / "configs/quickstart/nft.yaml", ["old_logprobs=recompute"], "old_logprobs = 'recompute'"),
    "samples": (FLOW, ["samples_every=31"], r"samples_every = 31 .*30 steps"),
    "a unit": (SPATIAL, ["objective.0.unit=turn"], r"objective\.0\.unit = 'turn' .*the ratio is action"),
    "a sketch of pictures": (FLOW, ["sketch=time_line"], "sketch = .*this run makes pictures"),
    "offload": (FLOW, ["device=cpu", "policy.offload=[encoders]"], r"policy\.offload = \['encoders'\] .*the CPU"),
    "offload of rewards": (FLOW, ["device=cpu", "offload_rewards=true"], "offload_rewards = True"),
    "weak guidance": (FLOW, ["policy.guidance=0.5"], r"policy\.guidance = 0\.5 has no effect: .*above 1"),
    "slices": (FLOW, ["policy.decode_batch=1", "policy.vae_slicing=true"], r"policy\.vae_slicing"),
    "a level that trains nothing": (FLOW, ["engine.train_within={kind: all, level: 0.1}"], r"engine\.train_within\.level"),
    "samples of the same answer": (SPATIAL, ["evaluation.samples_per_prompt=4"], r"samples_per_prompt = 4 .*eval_temperature = 0"),
    "evaluation without prompts": (
        SPATIAL, ["eval_prompts={}", "evaluation={limit: 3}", "engine.eval_temperature=1"],
        r"engine\.eval_temperature = 1\.0 .*no `eval_prompts`.*evaluation\.limit = 3",
    ),
    "a column": (SPATIAL, ["engine.reference_log_ratio=true"], r"engine\.reference_log_ratio = 'on' .*ref_log_ratio"),
    "skipping": (SPATIAL, ["policy.chat.too_long=skip"], r"policy\.chat\.too_long = skip"),
}  # fmt: skip


@pytest.mark.parametrize("path", [FLOW, SPATIAL, ROOT / "configs/quickstart/nft.yaml"], ids=lambda p: p.stem)
def test_a_config_whose_settings_all_count_says_nothing(path):
    assert without_effect(read(path)) == []


@pytest.mark.parametrize("case", VOID)
def test_a_setting_that_another_one_makes_void_speaks(case):
    path, overrides, wanted = VOID[case]
    said = without_effect(read(path, overrides))
    assert len(said) in (1, 2) and re.search(wanted, " ".join(said)), said


def test_an_adapter_that_goes_on_has_its_own_rank(tmp_path):
    import torch
    from safetensors.torch import save_file

    name = "transformer.transformer_blocks.0.attn.to_q.lora"
    tensors = {f"{name}_A.weight": torch.zeros(8, 32), f"{name}_B.weight": torch.zeros(32, 8)}
    save_file(tensors, tmp_path / "pytorch_lora_weights.safetensors")
    (said,) = without_effect(read(FLOW, [f"policy.lora={{rank: 16, start_from: {tmp_path}}}"]))
    assert "rank = 16, alpha = 64.0" in said and "has its own (rank 8)" in said


def test_guidance_that_a_network_does_not_take_speaks(tmp_path):
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer/config.json").write_text('{"guidance_embeds": false}')
    config = read(FLOW)
    flux = replace(config.policy, model=lookup("flow_model", "flux")(path=str(tmp_path)), guidance=3.5)
    assert any("guidance_embeds is false" in said for said in without_effect(replace(config, policy=flux)))
    (tmp_path / "transformer/config.json").write_text('{"guidance_embeds": true}')
    assert not any("guidance" in said for said in without_effect(replace(config, policy=flux)))


REFUSED = {
    "noise without chance": (["engine.kernel=ode"], "needs noise"),
    "a clip that a loss has not": (["objective=[{kind: sapo, clip_low: 0.2}]"], "unknown key 'clip_low'"),
    "a reference that weighs nothing": (["objective=[{kind: clipped_ratio}, {kind: kl, weight: 0}]"], "wanted above 0"),
    "a reset of no reference": (["reference_reset={every: 2}"], "no term of the objective uses a reference"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_contradicts_is_refused(case):
    overrides, wanted = REFUSED[case]
    with pytest.raises(ConfigError, match=wanted):
        read(FLOW, overrides).check_settings()
