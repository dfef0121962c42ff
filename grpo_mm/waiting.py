"""How OpenMP's threads wait, which is settled when torch is imported: those that spin take the cores of other processes."""

from __future__ import annotations

import os
import sys

torch_came_first = "torch" in sys.modules and "OMP_WAIT_POLICY" not in os.environ
"""Then they spin, and it is too late to change that."""


def wait_passively() -> None:
    """Unless the user says otherwise."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
