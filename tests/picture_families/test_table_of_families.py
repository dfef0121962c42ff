"""docs/picture_families.md says of each family what its tiny checkpoint is."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from test_planted_faults import KINDS

from grpo_mm.registry import lookup

PAGE = ROOT / "docs" / "picture_families.md"


def row_of(kind: str, path: str) -> str:
    family = lookup("flow_model", kind)(path)
    pipe = family.load(torch.float32, full=False)
    encoders = " ".join(dict.fromkeys(type(getattr(pipe, name)).__name__ for name in family.encoders))
    latents = {2: "[tokens, C]", 3: "[C, H, W]"}[len(family.latent_shape(pipe, 64, 96))]
    lines = len(Path(inspect.getsourcefile(type(family))).read_text().splitlines())
    return f"| `{kind}` | {family.pipeline} | {encoders} | {latents} | {guidance_of(family, pipe)} | {lines} |"


def guidance_of(family, pipe) -> str:
    (name,) = [key for key in family.plain_call(guidance=4.0, text_length=8) if "guidance" in key or "cfg" in key]
    if not hasattr(family, "halves"):
        assert pipe.transformer.config.guidance_embeds
        return f"input of the network, `{name}`"
    none, text = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    combined = family.guided(none, text, 4.0)
    above = 0 if family.network_rows(0.5) == 2 else 1
    renormalised = torch.allclose(combined.norm(dim=-1), text.norm(dim=-1))
    return f"two halves above {above}, `{name}`" + ", renormalised" * renormalised


@pytest.mark.parametrize("kind", KINDS)
def test_the_row_of_a_family_is_true(kind, checkpoints):
    assert row_of(kind, checkpoints[kind]) in PAGE.read_text().splitlines()


def test_every_family_of_pictures_has_a_row():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(KINDS)
