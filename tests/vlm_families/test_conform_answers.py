"""`grpo-mm conform` on vision-language checkpoints: each family agrees with its plain model, and planted mistakes are named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_vlm import FAMILIES, folder

from grpo_mm.findings import as_table, first_difference
from grpo_mm.pipelines.vlm import conform as conforming
from grpo_mm.pipelines.vlm.conform import conform
from grpo_mm.pipelines.vlm.prompting.contexts import Encoder
from grpo_mm.tools.conform import kind_of_checkpoint

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=pytest.mark.slow) if f == "qwen2_vl" else f for f in FAMILIES]
)
def test_a_family_agrees_with_its_plain_model(family):
    assert kind_of_checkpoint(folder(family)) == "vlm"
    findings = list(conform(folder(family), dtype="float32", device=CPU))
    assert first_difference(findings) is None, as_table(findings)
    names = {finding.name for finding in findings}
    assert {
        "tokens of prompts",
        "pixels: pixel_values",
        "pixels: pixel_values_videos",
        "positions",
        "greedy answers",
    } <= names
    assert {"log-probability of answers", "adapter: saved, in the plain library", "adapter: merged"} <= names


def altered(change):
    """Contexts with a mistake in them."""
    own = Encoder._context

    def context(self, prompt, loaded):
        return change(own(self, prompt, loaded))

    return lambda patch: patch.setattr(Encoder, "_context", context)


def turned_frames(context):
    """The steps of a clip in the other order."""
    pixels = context.inputs.get("pixel_values_videos")
    if pixels is None:
        return context
    return replace(context, inputs={**context.inputs, "pixel_values_videos": pixels.flip(0)})


def other_adapter(patch):
    """An adapter that is loaded at twice its scale."""
    own = conforming._adapter_rows

    def rows(wrapped, *args):
        for module in wrapped.modules():
            if isinstance(getattr(module, "scaling", None), dict):
                module.scaling = {name: 2 * value for name, value in module.scaling.items()}
        return own(wrapped, *args)

    patch.setattr(conforming, "_adapter_rows", rows)


@pytest.mark.parametrize(
    "plant, row",
    [
        (altered(turned_frames), "pixels: pixel_values_videos"),
        (altered(lambda c: replace(c, position_3L=c.position_3L + torch.arange(3)[:, None])), "positions"),
        (other_adapter, "adapter: saved, in the plain library"),
    ],
    ids=["frames reordered", "positions", "scale of the adapter"],
)
def test_a_planted_mistake_is_named_by_its_row(plant, row, monkeypatch):
    plant(monkeypatch)
    findings = conform(folder("qwen2_5_vl"), dtype="float32", device=CPU)
    found = next((finding for finding in findings if finding.differs), None)
    assert found is not None and found.name == row, found
