"""Texts on a CUDA device: the same properties as on the CPU, in the precision people train in."""

from __future__ import annotations

import pytest
import torch
from tiny_vlm import FAMILIES, folder, rows_of, sample
from tiny_vlm import PROMPTS as ASKED

from grpo_mm.pipelines.vlm.answers import AnswerLikelihood
from grpo_mm.pipelines.vlm.engine import VlmEngine
from grpo_mm.pipelines.vlm.models.adapters import Lora
from grpo_mm.pipelines.vlm.policy import VlmPolicyConfig

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-4), ("bfloat16", 0.3)])
@pytest.mark.parametrize("lora", [None, Lora(rank=4)], ids=["full", "lora"])
def test_engine_and_trainer_agree_on_the_gpu(family, dtype, most, lora):
    config = VlmPolicyConfig(path=folder(family), dtype=dtype, lora=lora, micro_batch=5, gradient_checkpointing=True)
    policy = config.load(torch.device("cuda"))
    policy.snapshots.take("ref")
    likelihood = AnswerLikelihood(of="ref")
    rollout, outputs = sample(policy, group_size=3, answer_likelihood=likelihood, reference_log_ratio=True)
    rollout = policy.with_values_of("ref", rollout, rollout.mask_NA)
    plan = policy.plan(rollout, rollout.mask_NA)
    for index, values in policy.logprobs(rollout, plan, needs=frozenset({"logprobs", "ref_logprobs"}), grad=True):
        here = rollout.mask_NA.flatten()[index]
        for name in ("logprobs", "ref_logprobs"):
            gap = (values[name] - rollout.behaviour_NA.flatten()[index])[here].abs().max()
            assert float(gap.detach()) < most, name
        values["logprobs"].sum().backward()
    assert all(torch.isfinite(value.grad).all() for value in policy.trainable.values() if value.grad is not None)
    assert len(outputs.items) == 18
    assert len(VlmEngine(max_new_tokens=8).render(policy, rows_of(ASKED, 1), seed=0)) == 6
