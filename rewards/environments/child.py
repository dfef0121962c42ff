"""What runs in a scorer's own environment: reads what `talk` sends, makes the reward, and answers as `rollout.isolated_process` does.

It stands on torch, NumPy and Pillow alone, beside what the reward imports.
"""

from __future__ import annotations

import importlib.util
import json
from functools import partial
from typing import Any

from grpo_mm.rewards.environments.components import from_json
from grpo_mm.rewards.service.png import Pixels
from grpo_mm.rewards.service.wire import read_request
from grpo_mm.rollout.isolated_process import attend

NEEDED = {"torch": "torch", "numpy": "numpy", "PIL": "pillow"}
"""Module -> package."""
MOST = 2**62
"""Pixels and rows: what is asked comes from our own run, and was no request of a stranger."""


def serve(pipe_fd: int, lifeline_fd: int) -> None:
    """Answers until the other side is gone."""
    attend(pipe_fd, lifeline_fd, settings=_settings, question=_question)


def _settings(message: bytes) -> dict[str, Any]:
    found = json.loads(message)
    return found | {"make": partial(_made, found["use"])}


def _made(described: Any) -> Any:
    """The reward, once its own check has been passed here, where its packages are."""
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ImportError(f"its environment lacks {' and '.join(missing)}, which serving a reward needs")
    reward = from_json(described)
    check = getattr(reward, "check", None)
    if callable(check):
        check()
    return reward


def _question(message: bytes) -> dict[str, Any]:
    found = json.loads(message)
    if "leave" in found:
        return found
    asked = read_request(found["body"], Pixels(picture=MOST, whole=MOST), applies=False, most_rows=MOST)
    said = {"items": asked.items, "prompts": asked.prompts, "group": asked.group_U, "name": asked.reward}
    return said | {"number": found["number"], "device": found["device"]}
