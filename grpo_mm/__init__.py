"""Group-relative policy optimisation for generative and vision-language models."""

from __future__ import annotations

import os
from typing import Any

from grpo_mm import moved

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
"""OpenMP reads it when torch is imported: threads that spin while they wait take the cores of other processes."""
moved.install()
__version__ = "0.1.0"


def train(config: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Runs a config; see `grpo_mm.entry.train`."""
    from grpo_mm.entry import train as run

    return run(config, *args, **kwargs)
