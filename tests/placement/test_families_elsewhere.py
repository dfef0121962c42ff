"""Model families, full and with an adapter, on a device that is not the CPU: one step, evaluation, saving and going on."""

from __future__ import annotations

import pytest
import tiny_vlm
from runs_elsewhere import assert_same_run
from tiny_runs import write_config

from grpo_mm.config.typed_yaml import merge

FLOW = {
    "lora": {"objective": [{"kind": "clipped_ratio"}, {"kind": "kl", "weight": 0.04}], "ema": {"every_updates": 1}},
    "full": {
        "policy": {"lora": None, "guidance": 2.0, "gradient_checkpointing": True, "offload": ["encoders", "decoder"]},
        "engine": {"noise": {"kind": "window", "size": 2, "within": [0, 2]}, "kernel": "flow_sde"},
        "old_logprobs": "recompute",
    },
}  # fmt: skip
VLM = {
    "lora": {"lora": {"rank": 2}, "prefix_sharing": "on"},
    "full": {"train_tower": True, "prefix_sharing": "on", "gradient_checkpointing": True},
    "apart": {"prefix_sharing": "off", "attention": "eager"},
}


@pytest.mark.slow
@pytest.mark.parametrize("way", FLOW)
@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_a_flow_family_is_the_same_on_another_device(family, way, tmp_path, request):
    model = request.getfixturevalue(f"tiny_{family}")
    changes = {
        "policy": {"model": {"kind": family, "path": model}},
        "eval_prompts": {"lines": {"use": {"limit": 1}}},
        "rewards": {"bright": {"use": {"path": "tiny_rewards:by_place"}}},
    }
    path = write_config(tmp_path, model, merge(changes, FLOW[way]))
    assert_same_run(path, [], tmp_path / "runs")


QUICK = [("qwen2_5_vl", "lora")]
"""The others are slow."""


@pytest.mark.parametrize(
    ("family", "way"),
    [
        pytest.param(family, way, marks=[] if (family, way) in QUICK else pytest.mark.slow)
        for family in tiny_vlm.FAMILIES
        for way in VLM
    ],
)
def test_a_vision_language_family_is_the_same_on_another_device(family, way, tmp_path):
    config = {
        "name": "tiny", "steps": 2, "prompts_per_step": 2, "group_size": 3,
        "policy": {"kind": "vlm", "path": tiny_vlm.folder(family), "micro_batch": 4, **VLM[way]},
        "engine": {"kind": "vlm", "max_new_tokens": 4, "answer_likelihood": {"of": "ref"}, "reference_log_ratio": True},
        "prompts": {
            "clips": {"use": {"kind": "clip_world", "split": "train", "count": 2}},
            "scenes": {"use": {"kind": "scene_world", "split": "train", "count": 2}},
        },
        "eval_prompts": {"scenes": {"use": {"kind": "scene_world", "split": "report", "count": 2}}},
        "rewards": {"letters": {"use": {"kind": "function", "path": "tiny_rewards:letters"}}},
        "objective": [{"kind": "clipped_ratio"}, {"kind": "kl", "form": "k3", "weight": 0.05}],
        "optim": {"lr": 1e-3},
        "threads": 1,
    }  # fmt: skip
    assert_same_run(config, [], tmp_path / "runs")
