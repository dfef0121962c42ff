"""`grpo-mm conform` on Wan's forms; frames in another order, an adapter on the wrong expert and rows sent to it are named."""

from __future__ import annotations

import pytest
import torch
from wan_models import FORMS, checkpoint

from grpo_mm.findings import as_table, first_difference
from grpo_mm.pipelines.flow.clips.wan import Wan
from grpo_mm.pipelines.flow.conforming import conform as conforming
from grpo_mm.pipelines.flow.conforming.conform import conform
from grpo_mm.pipelines.flow.models import adapters
from grpo_mm.tools.conform import kind_of_checkpoint

QUICK = "a14b"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.getbasetemp() / "wan"


@pytest.fixture(scope="module", autouse=True)
def drawn_once():
    """The plain pipeline of a checkpoint says the same every time."""
    said: dict = {}
    own = conforming._drawn

    def drawn(family, folder, how, dtype, device, *, adapter=None, along=None):
        if adapter is not None:
            return own(family, folder, how, dtype, device, adapter=adapter, along=along)
        key = (family.pipeline, folder)
        if key not in said:
            said[key] = own(family, folder, how, dtype, device)
        return said[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conforming, "_drawn", drawn)
        yield


@pytest.mark.parametrize("form", [pytest.param(f, marks=() if f == QUICK else pytest.mark.slow) for f in FORMS])
def test_a_form_agrees_with_its_plain_pipeline(form, folder):
    family, kind = FORMS[form]
    path = checkpoint(kind, folder)
    findings = list(conform(family(path), dtype="float32", device=CPU))
    assert first_difference(findings) is None, as_table(findings)
    names = {finding.name for finding in findings}
    assert {"σ", "whole drawing", "packing of latents", "adapter: layers"} <= names
    assert ("network of each step" in names) == ("a14b" in form)
    assert sum(name.endswith("replay") for name in names) == 4
    if form != "5b_i2v":
        assert kind_of_checkpoint(path) == ("wan_i2v" if form in ("i2v", "flf", "a14b_i2v") else "wan")


class FramesReordered(Wan):
    def decode(self, pipe, latents, *, size):
        return super().decode(pipe, latents.flip(2), size=size)


class WrongExpert(Wan):
    def expert_of(self, pipe, sigma):
        return 1 - super().expert_of(pipe, sigma)


class OtherBoundary(Wan):
    def expert_of(self, pipe, sigma):
        return (sigma < 0.5).long()


class OneGuidance(Wan):
    """The second expert's own is dropped."""

    def guidance_at(self, pipe, sigma, guidance):
        return guidance


def first_of(family) -> str:
    return first_difference(list(conform(family, dtype="float32", device=CPU))).name


@pytest.mark.parametrize(
    "mistake, row",
    [
        pytest.param(FramesReordered, "packing of latents"),
        pytest.param(WrongExpert, "network of each step"),
        pytest.param(OtherBoundary, "network of each step", marks=pytest.mark.slow),
    ],
)
def test_a_planted_mistake_is_named_by_its_row(mistake, row, folder):
    assert first_of(mistake(checkpoint("a14b", folder))) == row


@pytest.mark.slow
def test_a_guidance_that_is_dropped_is_named_by_the_expert_that_lacks_it(tmp_path):
    family = OneGuidance(checkpoint("a14b", tmp_path), guidance_2=2.0)
    assert first_of(family) == "guided velocity, transformer_2"


def test_an_adapter_that_is_saved_for_the_wrong_expert_is_named(folder, monkeypatch):
    own = adapters.adapted
    swapped = lambda pipe: dict(zip(own(pipe), reversed(own(pipe).values()), strict=True))  # noqa: E731
    monkeypatch.setattr(adapters, "adapted", swapped)
    assert first_of(Wan(checkpoint("a14b", folder))) == "adapter: saved, in the plain library, transformer"


@pytest.mark.slow
def test_an_adapter_that_is_put_on_the_wrong_expert_is_named(folder, monkeypatch):
    own = adapters.add

    def added(pipe, lora, *, trained, **settings):
        own(pipe, lora, trained=["transformer_2"], **settings)

    monkeypatch.setattr(adapters, "add", added)
    family = Wan(checkpoint("a14b", folder), trained=("transformer",))
    assert first_of(family) == "adapter: layers"
