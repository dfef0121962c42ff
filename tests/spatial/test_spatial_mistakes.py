"""Settings of spatial methods that would train nothing, or something else, are refused with what to change."""

from __future__ import annotations

import pytest
from spatial_settings import CONFIGS, config_of, places_of

from grpo_mm.config.run_config import read
from grpo_mm.errors import ConfigError

FGRPO, GRIT, TREEVGR, VIGORL = "fgrpo_qwen25vl_7b", "grit_qwen25vl_3b", "treevgr_qwen25vl_7b", "vigorl_qwen25vl_7b"
DETECTION, PERCEPTION, VISUAL = "vlm_r1_detection_qwen25vl_3b", "perception_r1_qwen2vl_2b", "visual_rft_qwen2vl_2b"
CARE, SPACER = "care_image_qwen25vl_7b", "spacer_qwen25vl_7b"
CONSTRAINTS, JUDGE = "advantage.0.constraints", "rewards.consistency.use.judge"

REFUSED = {
    "a constraint on nothing": (FGRPO, [f"{CONSTRAINTS}.fluency={{threshold: 0.9}}"], "wanted the reward 'fluency'; there are: accuracy"),
    "a mask by nothing": (FGRPO, [f"{CONSTRAINTS}.consistency.when=correct"], "wanted the reward 'correct'; there are: accuracy"),
    "constraints and no task": (
        FGRPO, [f"{CONSTRAINTS}.accuracy={{threshold: 0.9}}", f"{CONSTRAINTS}.format={{threshold: 0.9}}"],
        "is a constraint; wanted at least one that is not",
    ),
    "a misspelt threshold": (FGRPO, [f"{CONSTRAINTS}.consistency.treshold=0.9"], "unknown key 'treshold'. Did you mean 'threshold'"),
    "a group of one": (FGRPO, ["group_size=1"], "compares samples within a group and needs at least 2"),
    "a rate that pushes away": (FGRPO, ["advantage.0.rate=-1"], "rate = -1.0.* wanted some, 0 or more"),
    "another word for the mask": (FGRPO, ["advantage.0.fill=none"], "fill: found 'none'; input should be 'masked' or 'zero'"),
    "another baseline": (FGRPO, [f"{CONSTRAINTS}.consistency.baseline=mean"], "'group', 'batch' or 'threshold'"),
    "constraints after the sum": (
        FGRPO, ["advantage=[weighted_sum, {kind: lagrangian, constraints: {consistency: {threshold: 0.9}}}]"],
        "wanted the reward 'consistency'; there are: total",
    ),
    "halves of a group": (FGRPO, ["prompts_per_step=3"], "does not divide into updates.count = 2 parts of whole groups"),
    "a replay of nothing": (FGRPO, [f"{JUDGE}={{kind: model, cache: null, replay: true}}"], "name it with cache: FILE"),
    "a budget below nothing": (FGRPO, [f"{JUDGE}.calls_in_all=-1"], "wanted 1 or more, and 0 or more"),
    "patience below nothing": (FGRPO, [f"{JUDGE}.vlm.timeout_seconds=0"], r"timeout_seconds = 0.0 \(wanted above 0\)"),
    "a judge in a word": (FGRPO, [f"{JUDGE}=yes"], "unknown verdict kind 'yes'"),
    "another scale": (FGRPO, ["rewards.semantic_grounding.use.coordinates=pixels"], "'absolute', 'unit' or 'thousand'"),
    "another order": (FGRPO, ["prompts.sat.use.order=random"], "'file', 'drawn' or 'circular'"),
    "a source that is not there": (FGRPO, ["rewards.spatial_grounding.sources=[vgrs]"], "applies to source 'vgrs'; there are: cv_bench, sat"),
    "a third version of GRIT": (GRIT, ["rewards.form.use.version=v1"], "'paper' or 'repository'"),
    "a misspelt weight": (GRIT, ["rewards.count.use.wieght=1"], "unknown key 'wieght'. Did you mean 'weight'"),
    "a third version of mAP": (DETECTION, ["rewards.boxes.use.version=ap50"], "'map', 'od_length' or 'weighted'"),
    "a third task": (PERCEPTION, ["rewards.box.use.task=count"], "'grounding' or 'detection'"),
    "a third version of Visual-RFT": (VISUAL, ["rewards.boxes.use.version=third"], "'first' or 'second'"),
    "more than all precision": (TREEVGR, ["rewards.iou.use.precision_weight=2"], "precision_weight = 2.0; wanted from 0 to 1"),
    "more than all accuracy": (VIGORL, ["rewards.grounded.use.weight=2"], "weight = 2.0; wanted from 0 to 1"),
    "consistency without likelihoods": (CARE, ["engine.answer_likelihood=null"], "needs the column 'answer_likelihood'"),
    "likelihoods of an average that nobody keeps": (CARE, ["ema=null"], "keeps none: give `ema`"),
    "a bonus on nothing": (SPACER, ["advantage.0.target=iou"], "wanted the reward 'iou'; there are: accuracy, format"),
    "two figures of one name": (SPACER, ["evaluation.benchmarks={vsi_bench: vsi_bench}"], "is taken by a reward, a watch, a source"),
    "a source that nobody scores": (
        VIGORL, ["rewards.grounded.sources=[held_out]", "eval_prompts={held_out: {use: {kind: sat, path: x.jsonl}}}"],
        "no reward applies to the prompts of source 'sat'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_spatial_mistake_is_refused_with_what_to_change(name):
    stem, overrides, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        read(config_of(stem), [*places_of(config_of(stem)), *overrides]).check_settings()


LATER = {
    "no address of a judge": (FGRPO, [f"{JUDGE}.vlm.base_url=null"], "base_url = 'null', wanted http://host:port/v1"),
    "a judge without http": (FGRPO, ["data.judge_url=localhost:8000"], "wanted http://host:port/v1"),
    "a judge with its password": (FGRPO, ["data.judge_url=http://me:secret@host/v1"], "use api_key_env"),
    "a cache in no folder": (FGRPO, ["data.judge_cache=/no/such/folder/a.db"], "its folder does not exist"),
    "a key that is not set": (
        "grit_judge_qwen25vl_3b", ["rewards.verdict.use.judge.vlm.api_key_env=GRPO_MM_NO_SUCH_KEY"], "no such environment variable",
    ),
    "a replay without its record": (FGRPO, [f"{JUDGE}.replay=true", "data.judge_cache=none.db"], "no such file, and only recorded"),
}  # fmt: skip


@pytest.mark.parametrize("name", LATER)
def test_a_judge_that_cannot_be_asked_is_refused_before_a_model_is_loaded(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    stem, overrides, message = LATER[name]
    config = read(config_of(stem), [*places_of(config_of(stem)), *overrides])
    with pytest.raises(ConfigError, match=message):
        for scorer in config.rewards.values():
            scorer.use.check() if hasattr(scorer.use, "check") else None


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_missing_file_is_named_before_a_model_is_loaded(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with pytest.raises(ConfigError, match=r"\w+\.json: no such file"):
        read(path, places_of(path)).check()


def test_pixels_of_a_picture_are_a_least_and_a_most():
    config = read(config_of(FGRPO), [*places_of(config_of(FGRPO)), "policy.image_pixels=[100, 10]"])
    with pytest.raises(ConfigError, match=r"policy.image_pixels = \[100, 10\]; wanted \[least, most\]"):
        config.policy.check()
