"""Published annotation files, whole, before every reward and benchmark; skipped where there are none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from test_readers_meet_rewards import CLIPS, PICTURES, benchmarks, rewards

from grpo_mm.config.typed_yaml import component
from grpo_mm.registry import Role
from grpo_mm.rollout.prompt_check import check_prompts
from grpo_mm.rollout.scoring import Scoring

DATA = Path(os.environ.get("GRPO_MM_TEST_DATA") or Path(__file__).parents[2] / "../shared/data") / "vlm"
pytestmark = [pytest.mark.realdata, pytest.mark.skipif(not DATA.is_dir(), reason=f"no folder {DATA}")]

FILES = {
    "qvhighlights": "qvhighlights/highlight_val_release.jsonl",
    "charades_sta": "charades_sta/charades_test.json",
    "activitynet_captions": "activitynet_captions/val_2_first300.json",
    "got10k": "got10k/got_val_first100.json",
    "nextgqa": "nextgqa/nextgqa_val_first200.json",
    "tvgbench": "tvgbench/tvgbench.json",
    "video_quality": "video_quality/quality_access_4shot.json",
    "vsr": "vsr/zeroshot_dev.jsonl",
    "conversations": "vlm_r1_format/gui_multi-image_first30.jsonl",
}


@pytest.mark.parametrize("kind", FILES)
def test_every_reward_takes_or_leaves_a_published_file(kind):
    prompts = component(Role("prompts"), {"kind": kind, "path": str(DATA / FILES[kind])}, path="prompts").load()
    scorers = {name: scorer for name, scorer in rewards().items() if name not in (*PICTURES, *CLIPS)}
    check_prompts({"a": prompts}, scorers | benchmarks(), shows_media=True, engine="vlm")
    some = prompts[:: max(1, len(prompts) // 20)]
    scoring = Scoring(scorers, torch.device("cpu"))
    for answer in (lambda p: p.demo or "a", lambda p: "", lambda p: "<answer>" * 20 + "[1, 2"):
        scoring([answer(prompt) for prompt in some], some, torch.arange(len(some)))
    assert scoring.first_error == {}
