"""A shared prompt on a CUDA device: SDPA with a mask, flex and flash attention, in the precision people train in."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from test_prefix_sharing import ragged, trained
from tiny_vlm import FAMILIES, folder
from tiny_vlm import policy as on_cpu

from grpo_mm.pipelines.vlm.models.adapters import Lora
from grpo_mm.pipelines.vlm.policy import VlmPolicyConfig

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
FLASH = pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="flash_attn is not installed")
KINDS = [
    pytest.param("sdpa", "float32", 1e-4, id="sdpa-float32"),
    pytest.param("sdpa", "bfloat16", 5e-2, id="sdpa-bfloat16"),
    pytest.param("eager", "float32", 1e-4, id="eager-float32"),
    pytest.param("flex_attention", "float32", 1e-3, id="flex-float32"),
    pytest.param("flex_attention", "bfloat16", 5e-2, id="flex-bfloat16"),
    pytest.param("flash_attention_2", "bfloat16", 5e-2, id="flash-bfloat16", marks=FLASH),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("attention", "dtype", "most"), KINDS)
@pytest.mark.parametrize("cut", [{"micro_batch": 99}, {"micro_batch": 2, "gradient_checkpointing": True}], ids=str)
def test_both_forms_agree_on_the_gpu(family, attention, dtype, most, cut):
    rollout = ragged(on_cpu(family))
    found = {}
    for sharing in ("off", "on"):
        torch.manual_seed(0)
        config = VlmPolicyConfig(
            path=folder(family), attention=attention, dtype=dtype, prefix_sharing=sharing,
            lora=Lora(rank=4) if dtype == "bfloat16" else None, **cut,
        )  # fmt: skip
        policy = config.load(torch.device("cuda"))
        values, gradient = trained(policy, rollout)
        found[sharing] = values["logprobs"], torch.cat([g.float().flatten() for g in gradient.values()])
    (wanted, wanted_gradient), (values, gradient) = found["off"], found["on"]
    assert float((values - wanted).abs().mean()) < most
    assert float((gradient - wanted_gradient).norm() / wanted_gradient.norm()) < 2 * most
