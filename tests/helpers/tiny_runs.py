"""Tiny runs for tests: a config that trains in a second, and what it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from children import free_port
from conftest import ROOMS, ROOT

from grpo_mm.config.typed_yaml import merge
from grpo_mm.looking import metrics

PYTHONPATH = os.pathsep.join(map(str, [ROOT, *ROOMS]))
"""Of a new process that imports the package, helpers and tests."""
PROMPTS = (
    "a red circle",
    "a blue square",
    "a photo of the green circle",
    "the red square",
    "a green square and a circle",
)


def write_config(folder: Path, model: str, changes: Mapping[str, Any] = {}, *, file: str = "run.yaml") -> Path:  # noqa: B006
    """A config of 3 steps on an SD3 checkpoint, with its prompt file; runs go to `folder/runs`.

    `changes` are merged in; None takes a top-level key out.
    """
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n")
    settings = {
        "name": "tiny",
        "steps": 3,
        "prompts_per_step": 2,
        "group_size": 4,
        "updates": {"by": "group", "count": 2},
        "policy": {
            "kind": "flow", "model": {"kind": "sd3", "path": model}, "lora": {"rank": 2}, "height": 32, "width": 32,
            "text_length": 16, "micro_batch": 8,
        },
        "engine": {"kind": "flow", "steps": 3, "eval_steps": 2},
        "prompts": {"lines": {"use": {"kind": "file", "path": str(prompts)}}},
        "eval_prompts": {"lines": {"use": {"kind": "file", "path": str(prompts), "limit": 2}}},
        "rewards": {"bright": {"use": {"kind": "function", "path": "tiny_rewards:bright"}}},
        "optim": {"lr": 1e-3},
        "checkpoints": {"every": 1, "keep_last": 2},
        "device": "cpu",
        "threads": 1,
        "runs_dir": str(folder / "runs"),
    }  # fmt: skip
    path = folder / file
    settings = {key: value for key, value in merge(settings, changes).items() if value is not None}
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


def record(run: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what depends on the clock."""
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in metrics.read(run / "metrics.jsonl")]


def weights(run: Path, step: int) -> bytes:
    """The trained weights of a checkpoint, bit for bit."""
    return (run / f"checkpoints/step_{step:06d}/weights.safetensors").read_bytes()


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def accelerate_launch(*arguments: object) -> None:
    """`accelerate launch` with two processes on the CPU; fails with what it said. `children.launch` is much quicker."""
    done = subprocess.run(**launching(*arguments), capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def launching(*arguments: object) -> dict[str, Any]:
    """What `subprocess` wants to know."""
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ROOT / "configs/accelerate/cpu2.yaml"),
        "--main_process_port", str(free_port()), *map(str, arguments),
    ]  # fmt: skip
    return {
        "args": command,
        "env": os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": PYTHONPATH},
    }
