"""The spatial quickstarts take steps on the shipped model, and their reports draw boxes on the pictures."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from conftest import ROOT

from grpo_mm.entry import train
from grpo_mm.looking.metrics import read
from grpo_mm.looking.report.page import write_report
from grpo_mm.tools.inference import evaluate

CONFIGS = sorted((ROOT / "configs/quickstart").glob("spatial*.yaml"))
SMALL = ("steps=1", "prompts_per_step=3", "group_size=4", "eval_prompts.scenes.use.count=9", "samples_every=1")


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=() if path.stem == "spatial" else pytest.mark.slow)  # fgrpo: below, too
        for path in CONFIGS
    ],
)
def test_a_spatial_quickstart_trains_and_measures_what_it_promises(path, tmp_path):
    summary = train(path, [*SMALL, "name=run", f"runs_dir={tmp_path}"])
    found = {name.split("/")[0] for name in summary["eval_after"]}
    assert {"accuracy", "consistency", "grounding", "claims"} <= found
    (row,) = [row for row in read(tmp_path / "run/metrics.jsonl") if "policy/logprob_gap" in row]
    assert row["policy/logprob_gap"] < 1e-4 and math.isfinite(row["loss/total"]) and row["reward/failed_frac"] == 0
    page = write_report(tmp_path / "run").read_text()
    assert len(re.findall(r'<rect [^>]*class="true"', page)) > 3


def test_multipliers_of_the_faithful_quickstart_are_logged_and_charted(tmp_path):
    train(ROOT / "configs/quickstart/spatial_fgrpo.yaml", [*SMALL, "steps=2", "name=run", f"runs_dir={tmp_path}"])
    rows = [row for row in read(tmp_path / "run/metrics.jsonl") if "policy/logprob_gap" in row]
    names = [f"constraint/{name}/multiplier" for name in ("consistency", "claims", "grounding")]
    assert [rows[0][name] for name in names] == [1, 1, 1]  # those from before the first dual step
    score, multiplier = (rows[1][f"constraint/grounding/{what}"] for what in ("score", "multiplier"))
    assert multiplier != 1 and (multiplier > 1) == (score < 0.7)  # raised while boxes are below their threshold
    assert "Multipliers of constraints" in write_report(tmp_path / "run").read_text()


def test_a_run_is_measured_on_blank_pictures_by_one_override(tmp_path):
    config = ROOT / "configs/quickstart/spatial.yaml"
    use = "eval_prompts.scenes.use={kind: blanked, of: {kind: scene_world, split: report, count: 9}}"
    found = evaluate(Path(config), overrides=[use])
    assert 0 <= found["eval/accuracy/mean"] <= 1
