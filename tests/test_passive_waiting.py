"""OpenMP threads wait without spinning, unless the user says otherwise: a busy machine would be ten times slower."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(("given", "wanted"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_is_passive_before_torch_is_imported_and_can_be_overridden(given, wanted):
    code = "import grpo_mm, os, sys; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    env |= {"OMP_WAIT_POLICY": given} if given else {}
    found = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [wanted, "False"]


@pytest.mark.parametrize(("before", "wanted"), [("import torch", "True"), ("import os", "False")])
def test_it_is_known_when_torch_came_first(before, wanted):
    """Then a run on a CPU says that its threads spin."""
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    code = f"{before}; import grpo_mm.waiting; print(grpo_mm.waiting.torch_came_first)"
    found = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [wanted]
