"""`grpo-mm conform` of families that edit, and the pictures of prompts swapped or forgotten, which it names."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_edits import BUILDERS, KINDS, build_flux_kontext, smaller_sources

from grpo_mm.findings import as_table, first_difference
from grpo_mm.pipelines.flow.conforming import conform as conforming
from grpo_mm.pipelines.flow.conforming.conform import conform
from grpo_mm.pipelines.flow.conforming.network_rows import prompts_of
from grpo_mm.pipelines.flow.conforming.pictured import NAME
from grpo_mm.pipelines.flow.models.family import GEOMETRY
from grpo_mm.pipelines.flow.models.sources import SOURCES
from grpo_mm.registry import lookup
from grpo_mm.tools.conform import kind_of_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def drawn_once():
    """Pictures are small, and the plain pipeline of a checkpoint says the same every time."""
    said: dict = {}
    own = conforming._drawn

    def drawn(family, folder, how, dtype, device, **of_adapter):
        if of_adapter:
            return own(family, folder, how, dtype, device, **of_adapter)
        if folder not in said:
            said[folder] = own(family, folder, how, dtype, device)
        return said[folder]

    with pytest.MonkeyPatch.context() as patch, smaller_sources():
        patch.setattr(conforming, "_drawn", drawn)
        yield


@pytest.fixture(scope="module", params=KINDS)
def family(request, tmp_path_factory):
    folder = BUILDERS[request.param](tmp_path_factory.mktemp("models") / request.param)
    assert kind_of_checkpoint(str(folder)) == request.param
    return lookup("flow_model", request.param)(str(folder))


def test_it_agrees_with_its_plain_pipeline(family):
    findings = list(conform(family, dtype="float32", device=CPU))
    assert first_difference(findings) is None, as_table(findings)
    said = {finding.name: finding for finding in findings}
    assert NAME in said and {"σ", "guided velocity", "whole drawing", "packing of latents", "adapter: merged"} <= set(
        said
    )
    assert said["whole drawing"].cause.endswith("latents; bit for bit")
    assert sum(name.endswith("replay") for name in said) == 4


def changed(family, change):
    """The family with another `encode`: change(pictures) -> pictures, or None to leave the tokens of pictures out."""
    base = type(family)

    def encode(self, pipe, text, *, pictures, **others):
        given = change(pictures)
        condition = dict(base.encode(self, pipe, text, pictures=pictures if given is None else given, **others))
        if given is None:
            condition = {k: v for k, v in condition.items() if k not in (SOURCES, GEOMETRY)}
        return condition

    return type(base.__name__, (base,), {"encode": encode})(family.path)


def first_of(family) -> str:
    """The row of the table that differs first, with its words."""
    found = conform(family, dtype="float32", device=CPU)
    row = next(finding for finding in found if finding.differs)
    return f"{row.name}; {row.cause}"


def test_pictures_of_two_prompts_swapped_are_named(family, monkeypatch):
    """Two prompts of one size, so that nothing but the pixels tells."""
    own = conforming.example_pictures

    def alike(family, prompts):
        made = [pictures or own(family, 3)[2][:1] for pictures in own(family, prompts)]
        return tuple((pictures[0].resize((96, 80)),) for pictures in made)

    monkeypatch.setattr(conforming, "example_pictures", alike)
    pictures = alike(family, 2)
    other = {id(pictures[0][0]): list(pictures[1]), id(pictures[1][0]): list(pictures[0])}
    monkeypatch.setattr(conforming, "example_pictures", lambda *_: pictures)
    monkeypatch.setattr(conforming, "_drawn", drawn_plain)
    said = first_of(changed(family, lambda given: other[id(given[0])]))
    assert said.startswith(NAME) and "they are those of another prompt" in said


def drawn_plain(family, folder, how, dtype, device, **_):
    from grpo_mm.pipelines.flow.conforming.plain import drawn, plain_pipeline

    return drawn(plain_pipeline(family, folder, torch.float32, device), family, how, sources=False)


def test_a_forgotten_picture_is_named(family):
    said = first_of(changed(family, lambda given: None))
    assert said.startswith(NAME) and "none are given here" in said


def test_a_picture_of_another_size_is_named(family):
    said = first_of(changed(family, lambda given: [p.resize((p.height, p.width)) for p in given]))
    assert said.startswith(NAME) or said.startswith("network")


def test_pictures_in_another_order_are_named(tmp_path):
    """References of one prompt, turned round."""
    from tiny_families import build_flux2_klein

    family = lookup("flow_model", "flux2_klein")(str(build_flux2_klein(tmp_path)))
    said = first_of(changed(family, lambda given: given[::-1]))
    assert said.startswith(NAME)


@pytest.mark.slow
def test_it_agrees_where_pictures_are_as_large_as_the_pipelines_make_them(tmp_path, monkeypatch):
    """About 1024 × 1024 pixels: nothing is patched."""
    from diffusers.pipelines.flux import pipeline_flux_kontext as kontext

    monkeypatch.setattr(
        kontext, "PREFERRED_KONTEXT_RESOLUTIONS", [(w * 16, h * 16) for w, h in kontext.PREFERRED_KONTEXT_RESOLUTIONS]
    )
    family = lookup("flow_model", "flux_kontext")(str(build_flux_kontext(tmp_path, halvings=5)))
    findings = list(conform(family, dtype="float32", device=CPU))
    assert first_difference(findings) is None, as_table(findings)


def test_prompts_of_a_comparison_have_unlike_pictures(family):
    from grpo_mm.pipelines.flow.conforming.plain import Drawing

    how = replace(Drawing((32, 48), 4.0, 64), pictures=conforming.example_pictures(family, 2))
    sizes = [p.size for prompt in prompts_of(how) for p in prompt.media]
    assert len(set(sizes)) == len(sizes) >= 2
