"""How often loops over tokens, steps and forwards make the host and the device wait for each other, at most."""

from __future__ import annotations

import pytest
import tiny_vlm
import torch
from pretended_accelerator import DEVICE, Crossings, counted
from test_update import Alone

from grpo_mm.objectives import ClippedRatio, Kl
from grpo_mm.pipelines.flow.engines.engine import FlowEngine
from grpo_mm.pipelines.flow.models.adapters import Lora
from grpo_mm.pipelines.flow.models.sd3 import Sd3
from grpo_mm.pipelines.flow.policy import FlowPolicyConfig
from grpo_mm.pipelines.vlm.policy import VlmPolicyConfig
from grpo_mm.pipelines.vlm.sampling.generation import Draw, HfGenerator, Request
from grpo_mm.processes.rng import stream
from grpo_mm.types import Credit, Prompt, Rows
from grpo_mm.weights.update import accumulate, make_view

WAITS = ("download", "item", "shape")


def more_of(few: Crossings, many: Crossings, turns: int) -> tuple[float, float]:
    """(waits, uploads) of one turn of a loop, from two runs of which one has so many turns more."""
    more = many - few
    return more.of(*WAITS) / turns, more.of("upload") / turns


@pytest.mark.parametrize(("family", "greedy"), [("qwen2_5_vl", False), ("qwen3_vl", True)])
def test_a_token_waits_for_the_device_once(family, greedy):
    with counted():
        policy = VlmPolicyConfig(path=tiny_vlm.folder(family)).load(DEVICE)
        contexts = [policy.encode(prompt) for prompt in tiny_vlm.PROMPTS[:2]]
        found = []
        for tokens in (4, 12):
            requests = [Request(c, None if greedy else stream(0, "draw", i)) for i, c in enumerate([*contexts] * 2)]
            with counted() as crossings:
                HfGenerator().generate(policy.network, requests, Draw(tokens, frozenset(), 1.0))
            found.append(crossings)
    waits, uploads = more_of(*found, turns=8)
    assert waits == 1, str(found[1] - found[0])
    assert uploads <= 2, str(found[1] - found[0])  # random numbers, and where the token stands


def test_a_denoising_step_waits_for_nothing_but_its_plan(tiny_sd3):
    config = FlowPolicyConfig(Sd3(tiny_sd3), lora=Lora(rank=2), height=32, width=32, text_length=16)
    rows = Rows((Prompt("a", "a red circle"),), torch.zeros(2, dtype=torch.int64), torch.arange(2), 2)
    found = []
    with counted():
        policy = config.load(DEVICE)
        policy.encode(rows.prompts)
        for steps in (3, 7):
            with counted() as crossings:
                FlowEngine(steps=steps).sample(policy, rows, step=0, seed=0, needs=frozenset())
            found.append(crossings)
    waits, uploads = more_of(*found, turns=4)
    assert waits <= 1 and uploads <= 14, str(found[1] - found[0])


def test_a_training_forward_reads_no_number_back():
    found, rows = [], tiny_vlm.PROMPTS[:4]
    objective = (ClippedRatio(clip_low=0.2, clip_high=0.2), Kl(form="k3", weight=0.1))
    with counted():
        policy = VlmPolicyConfig(path=tiny_vlm.folder("qwen2_5_vl"), prefix_sharing="off", micro_batch=4).load(DEVICE)
        policy.snapshots.take("ref")
        rollout, _ = tiny_vlm.sample(policy, rows, group_size=2)
        rollout = policy.with_values_of("ref", rollout, rollout.mask_NA)
        shape = rollout.mask_NA.shape
        credit = Credit(torch.ones(shape, dtype=torch.float64), torch.ones(shape, dtype=torch.bool))
        view = make_view(rollout, credit, rollout.mask_NA, rollout.behaviour_NA, Alone())
        for micro_batch in (4, 1):
            policy.replay.micro_batch = micro_batch
            with counted() as crossings:
                result = accumulate(policy, rollout, objective, view, Alone())
            found.append((crossings, result.num_forwards))
    (few, least), (many, most) = found
    assert most >= least + 4
    more = many - few
    assert more.of(*WAITS, within="grpo_mm/weights") == 0, str(more)
    assert more.of(*WAITS) == 0 and more.of() <= 13 * (most - least), str(more)
