"""Settings of video methods that would train nothing, or something else, are refused with what to change."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from taught_vlm import write_data
from test_published_video import PLACES, config_of, learner_of
from tiny_vlm import folder as random_checkpoint

from grpo_mm.config.run_config import read
from grpo_mm.errors import ConfigError

CARE, VIDEO_R1, DEEPVIDEO = "care_qwen25vl_7b", "video_r1_qwen25vl_7b", "deepvideo_r1_qwen25vl_3b"
TEMPSAMP, TIMELENS = "tempsamp_qwen25vl_7b", "timelens_qwen25vl_7b"

REFUSED = {
    "consistency without likelihoods": (CARE, ["engine.answer_likelihood=null"], "engine.answer_likelihood={of: ema}"),
    "likelihoods of an average that nobody keeps": (CARE, ["ema=null"], "keeps none: give `ema`"),
    "an order that nobody measured": (VIDEO_R1, ["collector={kind: sample_and_score}"], "collector={kind: shuffled_frames}"),
    "a demonstration alone": (TEMPSAMP, ["group_size=1"], "takes one row of each group, but group_size = 1"),
    "anchored to one own sample": ("tempsamp_anchoring_qwen25vl_7b", ["group_size=2"], "needs at least 3"),
    "a demonstration without its text": (
        TEMPSAMP, ["engine.demonstrate={kind: last_row, template: answer}"], "wanted {demo} in it",
    ),
    "demonstrations of changing number": (
        TEMPSAMP, ["collector={kind: allocate, rule: {kind: by_success}, first: 4, most: 16}"],
        "whole groups .* or a demonstration in each",
    ),
    "shaped after the sum": (
        TEMPSAMP, ["advantage=[weighted_sum, {kind: shape_reward, target: iou}, group_norm]"], "wanted the reward 'iou'; there are: total",
    ),
    "a bonus after the sum": (
        CARE, ["advantage=[weighted_sum, {kind: consistency_bonus, target: accuracy}, group_norm]"],
        "wanted the reward 'accuracy'; there are: total",
    ),
    "a bonus on nothing": (VIDEO_R1, ["advantage.0.target=iou"], "wanted the reward 'iou'; there are: accuracy, format"),
    "a gap between phases": (TEMPSAMP, ["prompts.direct.until_step=100"], "no prompt source is drawn from step 100 on"),
    "a phase that never comes": (TEMPSAMP, ["prompts.think.from_step=4000"], "no prompt source is drawn from step 1551 on"),
    "a reward of no phase": (TEMPSAMP, ["rewards.format.sources=[thinking]"], "applies to source 'thinking'; there are: direct, think"),
    "questions that nobody scores": (
        "videochat_r1_qwen25vl_7b", ["rewards.iou.sources=[grounded_qa]", "rewards.format.sources=[grounded_qa]"],
        "no reward applies to the prompts of source 'grounding'",
    ),
    "difficulty of what": (DEEPVIDEO, ["collector.metric=null"], "metric = None; there are accuracy, format. Name one"),
    "shuffled in vain": (VIDEO_R1, ["collector.metric=iou"], "shuffled_frames: metric = iou; there are accuracy, format"),
    "nothing to choose from": ("time_r1_qwen25vl_7b", ["collector.pool=1"], "at least 2 batches"),
    "a length out of range": (VIDEO_R1, ["advantage.1.low=600"], "low = 600, high = 512"),
    "frames beyond their limit": (TIMELENS, ["policy.media.sampling.min_pixels_frame=60000000"], "max_pixels_frame = 602112 is below"),
    "a reset of no reference": (TIMELENS, ["reference_reset={every: 10}"], "no term of the objective uses a reference"),
    "a loss of pictures": (VIDEO_R1, ["objective=[{kind: nft}]"], "needs beta, nft_minus, nft_plus"),
    "a policy of pictures": (VIDEO_R1, ["policy={kind: flow, model: {kind: sd3, path: x}}"], "engine vlm samples from policy vlm"),
    "a cap on demonstrations that there are none of": (
        "tempsamp_downscaling_qwen25vl_7b", ["engine.demonstrate=null"], "an engine with `demonstrate` declares it",
    ),
    "an anchor that there is none of": (
        "tempsamp_anchoring_qwen25vl_7b", ["engine.demonstrate=null"], "an engine with `demonstrate` declares it",
    ),
    "a regression on parts of rows": (DEEPVIDEO, ["updates={by: action, count: 2}"], "updates.by=group"),
    "a ratio of rows on parts of rows": (
        VIDEO_R1, ["objective=[{kind: clipped_ratio, ratio: row}]", "updates={by: action, count: 2}"], "updates.by=group",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_video_mistake_is_refused_with_what_to_change(name):
    stem, overrides, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        read(config_of(stem), [*PLACES, *overrides]).check_settings()


def test_a_tower_is_not_trained_beside_an_adapter():
    with pytest.raises(ConfigError, match="leave out policy.lora, or train_tower"):
        read(config_of(TEMPSAMP), [*PLACES, "policy.lora={rank: 8}"]).policy.check()


def test_timestamps_without_a_duration_do_not_count_and_do_not_fail(tmp_path):
    """The text form of Charades-STA says no durations."""
    files = write_data(tmp_path)
    text = tmp_path / "charades.txt"
    text.write_text("one 1.0 2.0##the bars move\ntwo 0.0 3.0##the bars move\n")
    overrides = [
        f"data.annotations={text}", f"data.eval_annotations={text}", f"data.videos={files['videos']}",
        f"policy.path={random_checkpoint('qwen2_5_vl')}", "policy.dtype=float32", "rewards.iou.use.iou=timestamp_aware",
        "policy.media.sampling.min_pixels_frame=784", "policy.media.sampling.max_pixels_frame=1568", "engine.max_new_tokens=8",
        "prompts_per_step=2", "group_size=4", "device=cpu", "rewards.length={use: {kind: response_length, low: 0, high: 6}}",
    ]  # fmt: skip
    found = _step(overrides, tmp_path)
    assert math.isnan(found["reward/iou/mean"]) and math.isfinite(found["reward/length/mean"])
    assert found["reward/failed_frac"] == 0 and math.isfinite(found["loss/total"])


def _step(overrides: list[str], folder: Path) -> dict[str, float]:
    return learner_of("time_r1_finetune_qwen25vl_7b", overrides, folder).step(0)
