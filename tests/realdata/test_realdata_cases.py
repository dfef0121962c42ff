"""Situations that users of such tools reported, with their own checks: each is understood as it should be, or refused by name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from tiny_runs import PYTHONPATH

DATA = Path(os.environ.get("GRPO_MM_TEST_DATA") or ROOT.parent / "shared/data")
CASES = DATA.parent / "cases"
pytestmark = [pytest.mark.realdata, pytest.mark.slow]


@pytest.mark.parametrize("folder", ["vlm", "flow"])
def test_every_case_is_right(folder, tmp_path):
    if not (CASES / folder / "check.py").is_file():
        pytest.skip(f"no cases in {CASES / folder}; set GRPO_MM_TEST_DATA to the folder of test data beside it")
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    environment = os.environ | quiet | {"PYTHONPATH": str(PYTHONPATH), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(CASES / folder / "check.py")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    wrong = [line for line in done.stdout.splitlines() if line.startswith("WRONG")]
    assert done.returncode == 0 and not wrong, "\n".join([*wrong, done.stderr[-2000:]])
