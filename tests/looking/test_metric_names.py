"""docs/metrics.md against what runs record."""

from __future__ import annotations

import re

import pytest
import torch
from conftest import ROOT
from tiny_runs import write_config

from grpo_mm.entry import train
from grpo_mm.looking import metrics
from grpo_mm.rollout.prompt_stream import PhasedStream
from grpo_mm.rollout.spread import reward_spread
from grpo_mm.rollout.table import Table
from grpo_mm.types import Prompt

NAMES = re.findall(r"^\| `([^`]+)`", (ROOT / "docs/metrics.md").read_text(), flags=re.MULTILINE)


def pattern(name):
    return re.compile(
        "".join(r"[^/]+" if part.isupper() else re.escape(part) for part in re.split(r"([A-Z]{3,})", name))
    )


def test_every_name_of_a_record_is_on_the_page(tiny_sd3, tmp_path):
    watch = {"quality": {"use": {"kind": "image_quality"}, "low": 0.0}}
    train(write_config(tmp_path, tiny_sd3, {"steps": 2, "watch": watch}))
    rows = metrics.read(tmp_path / "runs/tiny/metrics.jsonl")
    found = {name for row in rows for name in row}
    known = [pattern(name) for name in NAMES]
    assert [name for name in sorted(found) if not any(one.fullmatch(name) for one in known)] == []
    assert {"rollout/pictures", "time/pictures_per_second", "time/host_peak_gib", "data/lines/epochs"} <= found
    trained = [row for row in rows if "rollout/pictures" in row]
    assert [row["rollout/pictures"] for row in trained] == [8, 8]
    assert [row["data/lines/epochs"] for row in trained] == pytest.approx([2 / 5, 4 / 5])
    assert trained[0]["time/pictures_per_second"] == pytest.approx(8 / trained[0]["time/step_seconds"])


def test_the_page_has_no_name_twice():
    assert len(NAMES) > 50 and len(set(NAMES)) == len(NAMES)


def test_the_spread_of_rewards_by_hand():
    nan = float("nan")
    columns = {"prompt": torch.tensor([0, 0, 0, 1, 1, 2]), "demo": torch.tensor([0, 0, 1, 0, 0, 0])}
    table = Table(
        {"a": torch.tensor([1.0, 3.0, 99.0, 2.0, 2.0, 7.0]).double(), "b": torch.full((6,), nan).double()}, columns
    )
    found = reward_spread(table)
    assert found["reward/a/std"] == pytest.approx((22 / 4) ** 0.5)  # of 1, 3, 2, 2, 7 around 3
    assert found["reward/a/group_std"] == pytest.approx((2**0.5 + 0) / 2)  # the third prompt has one score
    assert all(value != value for name, value in found.items() if "/b/" in name)


def test_epochs_are_counted_over_phases():
    sources = {name: [Prompt(f"{name}{i}", "?") for i in range(4)] for name in "ab"}
    stream = PhasedStream(sources, {"a": 1.0, "b": 3.0}, {"a": (0, None), "b": (2, None)})
    assert stream.epochs(2, 4) == {"a": 2.0} and stream.epochs(4, 4) == {"a": 2.5, "b": 1.5}
