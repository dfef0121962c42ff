"""The main job on real input: real prompts, a real detector, a real text recogniser."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import ROOT
from tiny_runs import write_config

from grpo_mm.entry import train

DATA = Path(os.environ.get("GRPO_MM_TEST_DATA", ROOT.parent / "shared/data"))
pytestmark = [
    pytest.mark.realdata,
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no test data in {DATA}; set GRPO_MM_TEST_DATA"),
]


def run(tmp_path, model, changes):
    rows = []
    size = {"policy": {"height": 64, "width": 64}, "eval_prompts": None, "steps": 2, "group_size": 2}
    summary = train(write_config(tmp_path, model, size | changes), on_step=lambda step, row: rows.append(row))
    assert summary["steps"] == len(rows) == 2
    return rows


def test_geneval_prompts_train_with_the_real_detector(tmp_path, tiny_sd3):
    weights = DATA / "weights/fastestdet"
    detector = {"kind": "onnx", "path": str(weights / "FastestDet.onnx"), "names_path": str(weights / "coco.names")}
    changes = {
        "prompts": {
            "lines": {"use": {"kind": "geneval", "path": str(DATA / "prompts/geneval/evaluation_metadata.jsonl")}}
        },
        "rewards": {"geneval": {"use": {"kind": "geneval", "detector": detector}}},
    }
    for row in run(tmp_path, tiny_sd3, changes):
        assert row["reward/failed_frac"] == 0
        assert 0 <= row["reward/geneval/mean"] <= 1
        assert "reward/geneval/strict" in row


def test_ocr_prompts_train_with_rapidocr(tmp_path, tiny_sd3):
    changes = {
        "prompts": {"lines": {"use": {"kind": "ocr", "path": str(DATA / "prompts/flow_grpo/ocr_test.txt")}}},
        "rewards": {"ocr": {"use": "ocr"}},
    }
    for row in run(tmp_path, tiny_sd3, changes):
        assert row["reward/failed_frac"] == 0
        assert 0 <= row["reward/ocr/mean"] <= 1
