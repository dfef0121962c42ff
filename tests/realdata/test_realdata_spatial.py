"""Real files of VSR and BLINK, from a folder outside the repository; skipped where there is none."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from grpo_mm.cli import app
from grpo_mm.datasets.spatial.blink import BlinkAnswers
from grpo_mm.datasets.spatial.vsr import Vsr
from grpo_mm.rewards.answers.choices import read_letter
from grpo_mm.rewards.benchmarks.spatial import Blink
from grpo_mm.rewards.benchmarks.spatial import Vsr as VsrScore

DATA = Path(os.environ.get("GRPO_MM_TEST_DATA") or Path(__file__).parents[2] / "../shared/data") / "vlm"
pytestmark = [pytest.mark.realdata, pytest.mark.skipif(not DATA.is_dir(), reason=f"no folder {DATA}")]
OUTPUTS = DATA / "blink/gpt4o_Spatial_Relation_outputs.json"


@pytest.mark.parametrize(("split", "count"), [("dev", 340), ("test", 1222)])
def test_every_statement_of_vsr_becomes_a_prompt_and_its_own_answer_is_right(split, count):
    path = DATA / f"vsr/zeroshot_{split}.jsonl"
    prompts = Vsr(str(path)).load()
    assert len(prompts) == count == len({prompt.id for prompt in prompts})
    labels = Counter(json.loads(line)["label"] for line in path.read_text().splitlines())
    assert Counter(prompt.target["answer"] for prompt in prompts) == {"yes": labels[1], "no": labels[0]}
    assert all(sum(prompt.target["votes"]) > 0 for prompt in prompts)
    found = VsrScore()([prompt.demo for prompt in prompts], prompts)
    assert found == {"accuracy": 1, "relation_mean": 1, "parse_failed": 0}
    always = VsrScore()(["yes"] * count, prompts)
    assert always["accuracy"] == pytest.approx(labels[1] / count)


def test_the_saved_outputs_of_gpt_4o_print_the_published_accuracy():
    typed = ["eval", "--predictions", str(OUTPUTS), "--annotations", str(OUTPUTS), "--as", "blink"]
    done = CliRunner().invoke(app, typed, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = dict(line.split() for line in done.stdout.splitlines())
    assert found == {
        "subtask_mean": "69.23", "micro": "69.23", "subtask/Spatial_Relation": "69.23", "parse_failed": "0.00", "queries": "143",
    }  # fmt: skip


def test_letters_read_in_the_complete_answers_are_those_that_were_published():
    rows = json.loads(OUTPUTS.read_text())
    for row in [*rows["val"], *rows["test"]]:
        assert f"({read_letter(row['full_prediction'], 2)})" == row["prediction"]
    prompts = BlinkAnswers(str(OUTPUTS)).load()
    assert len(prompts) == 143 and {prompt.target["task"] for prompt in prompts} == {"Spatial_Relation"}
    assert round(100 * Blink()([row["full_prediction"] for row in rows["val"]], prompts)["subtask_mean"], 2) == 69.23
