"""The numbers that spatial papers and releases print stand in the configs, with what inherits and defaults fill in."""

from __future__ import annotations

from typing import Any

import pytest
from spatial_settings import CONFIGS, config_of, places_of
from test_published_video_numbers import at

from grpo_mm.config.run_config import plain, read

TOKEN = 28 * 28
"""Pixels of a visual token."""
KL = {"objective.1.kind": "kl", "objective.1.form": "k3"}
CLIP = {"objective.0.kind": "clipped_ratio", "objective.0.clip_low": 0.2, "objective.0.clip_high": 0.2}
GRPO = CLIP | KL | {"advantage.-1.kind": "group_norm", "advantage.-1.ddof": 1, "terms": 2}
SUMMED = {"advantage.0.kind": "weighted_sum"}
FROZEN = {"policy.train_tower": False, "policy.lora": None, "policy.dtype": "bfloat16"}
HALVES = {"prompts_per_step": 128, "group_size": 5, "updates.count": 2, "updates.passes": 1, "updates.by": "group"}
"""Rollouts of 128 prompts × 5, updates of 64 prompts."""
THINKS = {"rewards.format.use.template": "think_answer", "rewards.format.weight": 1}
FGRPO = FROZEN | KL | HALVES | {
    "rewards.accuracy.weight": 0.5, "rewards.format.weight": 0.5, "rewards.format.use.template": "think_answer",
    "rewards": ["accuracy", "format", "consistency", "semantic_grounding", "spatial_grounding"],
    "advantage.0.kind": "lagrangian", "advantage.0.rate": 0.05, "advantage.0.highest": 5, "advantage.0.least": 8,
    "advantage.0.fill": "masked", "advantage.0.ddof": 1, "advantage.1.kind": "group_norm", "advantage.1.key": [],
    **{f"advantage.0.constraints.{name}.start": 1 for name in ("consistency", "semantic_grounding", "spatial_grounding")},
    **{f"advantage.0.constraints.{name}.baseline": "group" for name in ("consistency", "semantic_grounding", "spatial_grounding")},
    **{f"advantage.0.constraints.{name}.threshold": 0.95 for name in ("consistency", "semantic_grounding")},
    **{f"advantage.0.constraints.{name}.when": "accuracy" for name in ("consistency", "semantic_grounding")},
    "advantage.0.constraints.spatial_grounding.threshold": 0.7, "advantage.0.constraints.spatial_grounding.when": None,
    "objective.0.kind": "clipped_ratio", "objective.0.clip_low": 0.28, "objective.0.clip_high": 0.28, "objective.1.weight": 0.001,
    "optim.lr": 1e-6, "optim.weight_decay": 0.01, "optim.warmup_updates": 0, "optim.max_grad_norm": 1, "optim.schedule": "constant",
    "policy.chat.max_prompt_tokens": 8192, "engine.max_new_tokens": 1024, "engine.eval_max_new_tokens": 4096,
    "engine.eval_temperature": 0, "engine.top_p": 1, "steps": 3 * 48_700 // 128, "prompts.sat.weight": 15_700,
    "prompts.vgr.weight": 7_000, "prompts.viscot.weight": 13_000, "prompts.treevgr.weight": 13_000, "eval_prompts.sat.use.order": "circular",
    "rewards.semantic_grounding.use.judge.vlm.model": "Qwen/Qwen3-VL-30B-A3B-Instruct",
    "rewards.consistency.use.judge.vlm.model": "Qwen/Qwen3-VL-30B-A3B-Instruct", "rewards.spatial_grounding.use.form": "element",
    "rewards.spatial_grounding.use.tag": "think", "rewards.spatial_grounding.use.coordinates": "absolute", "terms": 2,
}  # fmt: skip
GRIT = GRPO | FROZEN | SUMMED | {
    "group_size": 4, "rows": 128, "steps": 200, "optim.lr": 2e-6, "optim.schedule": "cosine", "objective.1.weight": 0.01,
    "engine.max_new_tokens": 1000, "policy.temperature": 0.9, "rewards.form.use.version": "paper", "rewards.form.weight": 1,
    "rewards.count.use.version": "paper", "rewards.count.use.weight": 0.5, "rewards.count.weight": 1, "rewards.answer.weight": 1,
    "rewards.answer.use.bleu_weight": 0.1, "rewards.form.use.form": "integers", "watch.grounding_iou.use.kind": "union_box_iou",
}  # fmt: skip
VLM_R1 = GRPO | FROZEN | SUMMED | {
    "group_size": 8, "rows": 8 * 8 * 2, "objective.1.weight": 0.04, "optim.lr": 1e-6, "engine.max_new_tokens": 2048,
    "rewards.boxes.weight": 1, "rewards.format.weight": 1, "rewards.format.use.kind": "box_answer_format", "rewards": ["boxes", "format"],
}  # fmt: skip
PRINTED: dict[str, dict[str, Any]] = {
    "fgrpo_qwen25vl_7b": FGRPO | {"policy.path": "Qwen/Qwen2.5-VL-7B-Instruct"},
    "fgrpo_qwen25vl_3b": FGRPO | {"policy.path": "Qwen/Qwen2.5-VL-3B-Instruct"},
    "grit_qwen25vl_3b": GRIT | {"rewards.answer.use.exact": True, "rewards": ["form", "count", "answer"]},
    "grit_judge_qwen25vl_3b": GRIT | {
        "rewards.answer.use.exact": False, "rewards.verdict.weight": 1, "rewards.verdict.use.kind": "answer_judge",
        "rewards": ["form", "count", "answer", "verdict"],
    },
    "care_image_qwen25vl_7b": CLIP | FROZEN | THINKS | {
        "group_size": 8, "prompts_per_step": 4, "optim.lr": 1e-6, "optim.schedule": "cosine", "optim.weight_decay": 0.01,
        "optim.max_grad_norm": 5, "policy.chat.max_prompt_tokens": 16384, "engine.max_new_tokens": 768, "engine.top_p": 0.95,
        "policy.temperature": 1, "policy.image_pixels.1": 16 * 128 * TOKEN, "advantage.0.kind": "consistency_bonus",
        "advantage.0.weight": 0.5, "advantage.0.cap": 0.95, "advantage.0.margin": 0.01, "advantage.0.least": 0.1,
        "engine.answer_likelihood.of": "ema", "engine.answer_likelihood.mean": "geometric", "ema.decay": 0.995,
        "ema.every_updates": 10, "terms": 1,
    },
    "treevgr_qwen25vl_7b": GRPO | FROZEN | THINKS | SUMMED | {
        "steps": 5 * 37_000 // 128, "prompts_per_step": 128, "prompts.vstar.weight": 30_000, "prompts.counting.weight": 7_000,
        "rewards.iou.use.kind": "dual_box_iou", "rewards.iou.use.precision_weight": 0.5, "rewards.iou.weight": 1,
        "rewards.iou.use.form": "element", "rewards.iou.use.tag": "think", "rewards.answer.weight": 1, "rewards.count.weight": 1,
        "rewards.answer.use.judge.vlm.model": "Qwen/Qwen2.5-72B-Instruct", "rewards.iou.use.coordinates": "absolute",
    },
    "vlm_r1_rec_qwen25vl_3b": VLM_R1 | {"rewards.boxes.use.kind": "referring_box"},
    "vlm_r1_detection_qwen25vl_3b": VLM_R1 | {
        "rewards.boxes.use.kind": "detection_map", "rewards.boxes.use.version": "od_length", "rewards.boxes.use.merge_iou": None,
    },
    "visual_rft_qwen2vl_2b": GRPO | FROZEN | THINKS | SUMMED | {
        "group_size": 8, "rewards.boxes.use.kind": "detection_confidence", "rewards.boxes.use.version": "second",
        "rewards.boxes.use.threshold": 0.5, "rewards.boxes.use.coordinates": "thousand", "rewards.boxes.weight": 1,
        "policy.path": "Qwen/Qwen2-VL-2B-Instruct", "rewards": ["boxes", "format"],
    },
    "perception_r1_qwen2vl_2b": GRPO | FROZEN | SUMMED | {
        "group_size": 8, "steps": 3 * 5_000 // 8, **{f"prompts.{name}.weight": 5_000 for name in ("grounding", "detection", "ocr")},
        "rewards.box.use.task": "grounding", "rewards.boxes.use.task": "detection", "rewards.text.use.kind": "edit_similarity",
        "rewards.format.use.template": "answer", "rewards.box.use.coordinates": "thousand", "policy.path": "Qwen/Qwen2-VL-2B-Instruct",
        "prompts.ocr.use.answer_type": "ocr",
    },
    "spacer_qwen25vl_7b": GRPO | FROZEN | THINKS | {
        "group_size": 8, "engine.max_new_tokens": 1024, "optim.lr": 1e-6, "optim.max_grad_norm": 5, "objective.1.weight": 0.04,
        "rewards.accuracy.use.kind": "spacer", "rewards.accuracy.use.grid": 10, "advantage.0.kind": "length_bonus",
        "advantage.0.bonus": 0.2, "advantage.0.low": 320, "advantage.0.high": 512, "advantage.0.least": 0.1,
        "policy.media.sampling.frames": 16, "steps": 151_000 // 8, "policy.media.sampling.max_pixels_frame": 128 * TOKEN,
    },
    "vigorl_qwen25vl_7b": GRPO | FROZEN | HALVES | SUMMED | {
        "objective.1.weight": 0.01, "optim.lr": 1e-6, "steps": 500, "engine.max_new_tokens": 2048, "rewards.grounded.use.weight": 0.5,
        "rewards": ["grounded"], "rewards.grounded.use.coordinates": "absolute",
    },
}  # fmt: skip


@pytest.mark.parametrize("stem", PRINTED)
def test_a_spatial_config_has_the_numbers_of_its_paper(stem):
    settings = plain(read(config_of(stem), places_of(config_of(stem))))
    settings |= {"rows": settings["prompts_per_step"] * settings["group_size"], "terms": len(settings["objective"])}
    found = {key: at(settings, key) for key in PRINTED[stem]}
    assert found == {
        key: value if not isinstance(value, float) else pytest.approx(value) for key, value in PRINTED[stem].items()
    }


def test_every_spatial_config_is_held_against_its_paper():
    assert set(PRINTED) == {path.stem for path in CONFIGS}


@pytest.mark.parametrize("stem", ["fgrpo_qwen25vl_7b", "fgrpo_qwen25vl_3b"])
def test_the_config_of_faithful_grpo_is_its_preset(stem):
    """With `method: faithful_grpo` in the place of its stages, objective and group size it is the same run."""
    places = places_of(config_of(stem))
    emptied = ("advantage=null", "objective=null", "group_size=null", "updates=null")
    named = plain(read(config_of(stem), [*places, "method=faithful_grpo", *emptied]))
    written = plain(read(config_of(stem), places))
    assert {key for key in named if named[key] != written[key]} == {"method"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_what_is_rewarded_is_asked_for_in_training_and_evaluation(path):
    """A format reward for elements that nobody asked for, or an evaluation with another template, measures something else."""
    config = read(path, places_of(path))
    elements = {
        "grit_format": "think rethink answer", "box_answer_format": "think answer bbox_2d", "vigorl": "think answer",
        "spatial_grounding": "bbox", "dual_box_iou": "box", "detection_confidence": "Position Confidence",
    }  # fmt: skip
    written = plain(config)
    for name, source in (*config.prompts.items(), *config.eval_prompts.items()):
        words = source.use.template
        for key, scorer in config.rewards.items():
            if scorer.sources is not None and name not in scorer.sources:
                continue
            use = written["rewards"][key]["use"]
            asked = use["template"].split("_") if use["kind"] == "tag_format" else elements.get(use["kind"], "").split()
            assert all(f"<{part}>" in words or f'"{part}"' in words for part in asked), (name, key)
        thinks = any(
            part in str(written["rewards"]) for part in ("think_answer", "grit_format", "box_answer", "vigorl")
        )
        assert ("<think>" in words) == thinks
