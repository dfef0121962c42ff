"""Memory of a run on edits, counted on the model's classes without numbers: pictures of the prompt are part of every forward."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conftest import ROOT
from test_edit_families import EditModel, run_of
from tiny_edits import BUILDERS, smaller_sources, written_edits

from grpo_mm.config.run_config import read
from grpo_mm.pipelines.flow.models.known import known_pipeline
from grpo_mm.training.forecast import ledger_of, plan_of

TINY = ("flux_kontext", pytest.param("qwen_image_edit_plus", marks=pytest.mark.slow))


@pytest.mark.parametrize("kind", TINY)
def test_pictures_of_the_prompt_count_in_the_length_of_what_goes_through_the_network(kind, tmp_path):
    model = EditModel(kind, str(BUILDERS[kind](tmp_path / "model")), data=str(written_edits(tmp_path)))
    with smaller_sources():
        config = run_of(model, tmp_path)
        ledger = ledger_of(config, plan_of(config, kind="cpu"))
        small = run_of(replace(model, sources="as_output"), tmp_path)
        less = ledger_of(small, plan_of(small, kind="cpu"))
    assert "1 picture of 1024 × 1024 pixels" in ledger.said[1]
    assert ledger.flops["train"] > less.flops["train"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "configs/edit").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_model_of_a_config_is_known_before_it_is_downloaded(path):
    family = read(path, unset=[]).policy.model
    pipe, said = known_pipeline(family)
    assert type(pipe).__name__ == family.pipeline and "table of known sizes" in said
    billions = sum(p.numel() for p in pipe.transformer.parameters()) / 1e9
    published = {"FluxKontextPipeline": 11.9, "Flux2KleinPipeline": 3.9}
    assert abs(billions - published.get(family.pipeline, 20.4)) < 0.1
