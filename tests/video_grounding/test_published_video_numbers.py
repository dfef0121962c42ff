"""The numbers that video papers and releases print stand in the configs, with what inherits and defaults fill in."""

from __future__ import annotations

from functools import reduce
from typing import Any

import pytest
from test_published_video import CONFIGS, PLACES, config_of

from grpo_mm.config.run_config import plain, read

TOKEN, TOKEN_QWEN3 = 28 * 28, 32 * 32
"""Pixels of a visual token."""
FRAMES = "policy.media.sampling"
TWO_FPS = {f"{FRAMES}.fps": 2, f"{FRAMES}.frames": None}
TRAINER = {"optim.lr": 1e-6, "optim.weight_decay": 0, "optim.max_grad_norm": 1, "optim.warmup_updates": 0}
GRPO = {
    "objective.0.kind": "clipped_ratio",
    "objective.0.clip_low": 0.2,
    "objective.0.clip_high": 0.2,
    "advantage.-1.ddof": 1,
}
KL = {"objective.1.kind": "kl", "objective.1.form": "k3", "objective.1.weight": 0.04}
NO_KL = {"terms": 1}
THINKS = {"rewards.format.use.template": "think_answer", "rewards.format.weight": 1}
SHAPED = {
    "advantage.0.kind": "shape_reward",
    "advantage.0.threshold": 0.8,
    "advantage.0.above": 0.01,
    "advantage.0.below": 1,
}
FROZEN = {"policy.train_tower": False, "policy.lora": None}
TEMPSAMP = GRPO | KL | TWO_FPS | TRAINER | {
    "steps": 2 * (12_408 // 8), "prompts_per_step": 4 * 2, "engine.max_new_tokens": 2048, "engine.top_p": 1,
    f"{FRAMES}.max_pixels_total": 3584 * TOKEN, "policy.train_tower": True, "policy.lora": None,
    "prompts.direct.until_step": 12_408 // 8, "prompts.think.from_step": 12_408 // 8, "rewards.format.sources": ["think"],
    "engine.demonstrate.kind": "last_row", "rewards.iou.use.iou": "hull", "updates.passes": 1, "updates.count": 1,
}  # fmt: skip
TIME_R1 = GRPO | TWO_FPS | TRAINER | FROZEN | THINKS | {
    "group_size": 8, "policy.temperature": 1, "policy.chat.max_prompt_tokens": 8192, "optim.schedule": "linear",
    f"{FRAMES}.max_pixels_total": 3584 * TOKEN, f"{FRAMES}.min_pixels_frame": 16 * TOKEN, "rewards.iou.use.pick": "last",
    "rewards.iou.use.strict": True, "objective.0.aggregate": "token",
}  # fmt: skip
TIMELENS = TWO_FPS | TRAINER | FROZEN | NO_KL | {
    "group_size": 8, "rows": 64, "steps": 100, "rewards.iou.use.iou": "hull", "rewards.iou.use.pick": "first", "rewards": ["iou"],
    "advantage.-1.scale": "none", "optim.schedule": "constant", "policy.temperature": 1, f"{FRAMES}.max_frames": 14_336 // 64 * 2,
    "prompts.grounding.use.min_seconds": 5, "prompts.grounding.use.max_seconds": 500, "prompts.grounding.use.most_words": 200,
    "prompts.grounding.use.max_overrun_seconds": 0, "prompts.grounding.use.unusable": "drop",
    "prompts.grounding.use.draw_mean": 0.05, "prompts.grounding.use.draw_std": 0.2,
}  # fmt: skip

PRINTED: dict[str, dict[str, Any]] = {
    "tempsamp_qwen25vl_7b": TEMPSAMP | SHAPED | {"group_size": 8},
    "tempsamp_anchoring_qwen25vl_7b": TEMPSAMP | {
        "group_size": 4, "advantage.-1.kind": "anchored_norm", "advantage.-1.factor": 1.2,
    },
    "tempsamp_downscaling_qwen25vl_7b": TEMPSAMP | {
        "group_size": 4, "advantage.0.kind": "cap_demonstrations", "advantage.0.fraction": 0.8, "advantage.0.best": 1,
    },
    "tempsamp_second_qwen3vl_4b": GRPO | SHAPED | TWO_FPS | NO_KL | {
        "group_size": 8, "engine.max_new_tokens": 256, "engine.top_p": 0.85, "policy.temperature": 1, "optim.lr": 1e-6,
        "optim.schedule": "constant", "optim.warmup_updates": int(0.05 * 2000 / 8), "steps": 2000 // 8, "prompts_per_step": 8,
        "objective.0.clip_high": 0.28, "rewards.format.weight": 0.1, "rewards.format.use.template": "answer",
        f"{FRAMES}.max_frames": 768, "engine.demonstrate.kind": "last_row", "advantage.0.target": "iou",
    },
    "deepvideo_r1_qwen25vl_3b": FROZEN | THINKS | {
        "group_size": 8, "objective.0.kind": "regression", "objective.0.regress": "standardised", "objective.0.of": "sum",
        "objective.1.weight": 0.1, f"{FRAMES}.frames": 16, f"{FRAMES}.max_pixels_frame": 252 * 252, "collector.window": 100,
        f"{FRAMES}.min_pixels_frame": 252 * 252, "collector.hint_most": 0.5, "collector.noise_most": 0.3, "updates.passes": 2,
    },
    "care_qwen25vl_7b": GRPO | NO_KL | THINKS | {
        "group_size": 8, "prompts_per_step": 4, "steps": 6000 // 4, "optim.lr": 1e-6, "optim.schedule": "cosine",
        "optim.weight_decay": 0.01, "optim.max_grad_norm": 5, "policy.dtype": "bfloat16", "policy.chat.max_prompt_tokens": 16384,
        "engine.max_new_tokens": 768, "engine.top_p": 0.95, "policy.temperature": 1, f"{FRAMES}.frames": 16,
        f"{FRAMES}.max_pixels_frame": 128 * TOKEN, "advantage.0.weight": 0.5, "advantage.0.cap": 0.95, "advantage.0.margin": 0.01,
        "advantage.0.least": 0.1, "engine.answer_likelihood.of": "ema", "engine.answer_likelihood.mean": "geometric",
        "ema.decay": 0.995, "ema.every_updates": 10,
    },
    "time_r1_qwen25vl_7b": TIME_R1 | KL | {
        "engine.max_new_tokens": 200, "steps": 5 * (2500 // 8), "rewards.iou.use.iou": "timestamp_aware",
        "collector.kind": "unsolved", "collector.threshold": 0.7,
    },
    "time_r1_finetune_qwen25vl_7b": TIME_R1 | NO_KL | {
        "engine.max_new_tokens": 1024, "steps": 2 * (12_408 // 8), "rewards.iou.use.iou": "hull",
        "collector.kind": "sample_and_score",
    },
    "videochat_r1_qwen25vl_7b": GRPO | KL | TRAINER | {
        "group_size": 8, "policy.chat.max_prompt_tokens": 8192, "engine.max_new_tokens": 1024, "prompts.grounding.weight": 12_408,
        "prompts.grounded_qa.weight": 3_358, "prompts.tracking.weight": 9_335, "steps": (12_408 + 3_358 + 9_335) // 8,
        "rewards.track_format.use.template": "think_answer", "rewards.iou.use.iou": "hull", "prompts.tracking.use.fps": 2,
        "rewards.glue_iou.use.iou": "union", "rewards.glue_format.use.template": "think_answer_glue",
        "optim.schedule": "linear",
    },
    "video_r1_qwen25vl_7b": GRPO | KL | THINKS | {
        "group_size": 8, "steps": 1200, "optim.lr": 1e-6, f"{FRAMES}.frames": 16, "engine.max_new_tokens": 768,
        "collector.kind": "shuffled_frames", "collector.samples": None, "advantage.0.kind": "temporal_bonus",
        "advantage.0.bonus": 0.3, "advantage.0.share": 0.8, "advantage.0.least": 0.1, "advantage.1.kind": "length_bonus",
        "advantage.1.bonus": 0.2, "advantage.1.low": 320, "advantage.1.high": 512,
    },
    "timelens_qwen25vl_7b": TIMELENS | {
        f"{FRAMES}.min_pixels_frame": 64 * TOKEN, f"{FRAMES}.max_pixels_total": 14_336 * TOKEN, f"{FRAMES}.multiple_of": 28,
    },
    "timelens_qwen3vl_8b": TIMELENS | {
        f"{FRAMES}.min_pixels_frame": 64 * TOKEN_QWEN3, f"{FRAMES}.max_pixels_total": 14_336 * TOKEN_QWEN3,
        f"{FRAMES}.multiple_of": 32,
    },
}  # fmt: skip


@pytest.mark.parametrize("stem", PRINTED)
def test_a_video_config_has_the_numbers_of_its_paper(stem):
    settings = plain(read(config_of(stem), PLACES))
    settings |= {"rows": settings["prompts_per_step"] * settings["group_size"], "terms": len(settings["objective"])}
    found = {key: at(settings, key) for key in PRINTED[stem]}
    assert found == {
        key: value if not isinstance(value, float) else pytest.approx(value) for key, value in PRINTED[stem].items()
    }


def at(settings: Any, key: str) -> Any:
    found = reduce(lambda node, step: node[int(step) if isinstance(node, list) else step], key.split("."), settings)
    return list(found) if key == "rewards" else found


def test_every_video_config_is_held_against_its_paper():
    assert set(PRINTED) == {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_what_is_rewarded_for_thinking_is_asked_to_think_in_training_and_evaluation(path):
    """A format reward for elements that nobody asked for, or an evaluation with another template, measures something else."""
    config = read(path, PLACES)
    for name, source in (*config.prompts.items(), *config.eval_prompts.items()):
        asked = [
            scorer.use.template
            for scorer in config.rewards.values()
            if hasattr(scorer.use, "template") and (scorer.sources is None or name in scorer.sources)
        ]
        words = source.use.template
        assert all(f"<{element}>" in words for template in asked for element in template.split("_")), name
        assert ("<think>" in words) == any("think" in template for template in asked), name
