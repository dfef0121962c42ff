"""What a reward's process in another environment is told: JSON and PNG, as the service sends them, over a pipe."""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from pathlib import Path
from typing import Any, ClassVar

import grpo_mm
from grpo_mm.environments.building import made
from grpo_mm.environments.requirements import Requirements
from grpo_mm.rewards.environments.components import as_json
from grpo_mm.rewards.service.wire import pack_items, pack_prompt

PACKAGE = Path(grpo_mm.__file__).parent
_BOOT = """
import importlib.util, json, sys
from multiprocessing.connection import Connection
said = json.loads(sys.argv[1])
sys.path += said["paths"]
try:
    spec = importlib.util.spec_from_file_location(
        "grpo_mm", said["package"] + "/__init__.py", submodule_search_locations=[said["package"]])
    sys.modules["grpo_mm"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["grpo_mm"])
    from grpo_mm.rewards.environments.child import serve
except ImportError as error:
    lacks = f"its environment lacks {error.name}, which serving a reward needs" if error.name else str(error)
    Connection(said["pipe"]).send_bytes(json.dumps({"error": lacks}).encode())
else:
    serve(said["pipe"], said["lifeline"])
"""
"""Puts this package, and nothing else of the run's own, within reach of the other Python: its environment has to bring torch, NumPy and
Pillow along, and what the reward itself imports."""


class EnvironmentTalk:
    """A reward in an environment: made there from its settings, asked as the service asks it. Nothing is pickled.

    Videos and demonstrations of prompts are not sent, as with kind: remote; a reward that looks at one fails with its name.
    """

    asks_halves: ClassVar[bool] = True

    def __init__(self, use: Any, *, name: str, environment: Requirements) -> None:
        """Raises ConfigError as `as_json`."""
        self._use, self._environment = as_json(name, use), environment

    def command(self, pipe_fd: int, lifeline_fd: int) -> list[str]:
        """Makes the environment if it is not there; raises UserError where that fails."""
        said = {"package": str(PACKAGE), "paths": own_paths(), "pipe": pipe_fd, "lifeline": lifeline_fd}
        return [str(made(self._environment)), "-I", "-c", _BOOT, json.dumps(said)]

    def settings(self, *, name: str, device: str, threads: int) -> bytes:
        return _message({"use": self._use, "name": name, "device": device, "threads": threads})

    def question(self, asked: dict[str, Any]) -> bytes:
        prompts = {id(prompt): prompt for prompt in asked["prompts"]}
        place = {key: i for i, key in enumerate(prompts)}
        group = asked["group"]
        body = {
            "reward": asked["name"],
            "prompts": [pack_prompt(prompt) for prompt in prompts.values()],
            "row_prompt": [place[id(prompt)] for prompt in asked["prompts"]],
            "items": pack_items(asked["items"]),
            "groups": None if group is None else group.tolist(),
        }
        return _message({"number": asked["number"], "device": asked["device"], "body": body})

    def leave(self) -> bytes:
        return _message({"leave": True})


def _message(said: dict[str, Any]) -> bytes:
    return json.dumps(said, allow_nan=False).encode()


def own_paths() -> list[str]:
    """Folders that a user's own modules are found in: of `sys.path` what belongs to no Python and no environment."""
    kinds = ("purelib", "platlib", "stdlib", "platstdlib")
    theirs = [os.path.realpath(sysconfig.get_path(kind)) for kind in kinds]
    theirs += [os.path.realpath(os.path.join(prefix, "lib")) for prefix in (sys.prefix, sys.base_prefix)]
    folders = dict.fromkeys(os.path.abspath(path) for path in sys.path if not path.endswith(".zip"))
    return [path for path in folders if os.path.isdir(path) and not _below(os.path.realpath(path), theirs)]


def _below(path: str, folders: list[str]) -> bool:
    return any(f"{path}{os.sep}".startswith(f"{folder}{os.sep}") for folder in folders)
