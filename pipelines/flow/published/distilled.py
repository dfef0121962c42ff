"""Which checkpoints and adapters are distilled to few steps, as their files and names say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo_mm.outside import shown
from grpo_mm.pipelines.weight_files import on_this_disk
from grpo_mm.weights.weight_files import parse_settings, read_settings

WORDS = ("schnell", "turbo", "lightning", "hyper", "lcm", "tcd", "dmd", "dmd2", "sprint", "distill", "distilled")
STEPS = {"schnell": 4, "large-turbo": 4, "z-image-turbo": 8, "klein": 4, "turbo": 8}
"""By a part of the name, what their authors sample them with; the first that fits."""
FILES = {"transformer": "config.json", "scheduler": "scheduler_config.json"}


def signs_of_checkpoint(path: str, *, revision: str | None = None) -> list[str]:
    """What says that a checkpoint is distilled, in words; none for one that nothing says it of.

    Args:
        path: a folder or hub name (`resolve`d); of one that is not on this disk only its name tells.
    """
    folder = on_this_disk(path, revision=revision, file="model_index.json")
    index = {} if folder is None else read_settings(folder / "model_index.json")
    parts = {part: _settings(folder, part) for part in FILES}
    found = []
    if index.get("is_distilled") is True:
        found.append("its model_index.json says is_distilled")
    if listed := _listed(index):
        found.append(f"its model_index.json lists the noise levels of {listed} steps")
    if index.get("_class_name") == "FluxPipeline" and parts["transformer"].get("guidance_embeds") is False:
        found.append("its network takes no guidance (guidance_embeds is false)")
    scheduler = parts["scheduler"]
    shifts = [scheduler.get(name) for name in ("base_shift", "max_shift")]
    if scheduler.get("use_dynamic_shifting") and shifts[0] is not None and shifts[0] == shifts[1]:
        found.append("its scheduler shifts all sizes alike, as for few steps")
    if scheduler.get("_class_name") in ("LCMScheduler", "FlowMatchLCMScheduler", "SCMScheduler", "TCDScheduler"):
        found.append(f"it is sampled by a {scheduler['_class_name']}")
    if index.get("is_distilled") is not False:
        names = (path, index.get("_name_or_path"), parts["transformer"].get("_name_or_path"))
        found += [said for name in names if isinstance(name, str) for said in signs_of_name(name)]
    return list(dict.fromkeys(found))


def signs_of_name(name: str) -> list[str]:
    """Of the owner and the last two folders alone: what lies above them says nothing of a checkpoint."""
    words = set(re.split(r"[^a-z0-9]+", "/".join(Path(name).parts[-2:]).lower()))
    found = [word for word in WORDS if word in words]
    found += ["klein"] if "klein" in words and "base" not in words else []
    found += ["of how many steps"] if any(re.fullmatch(r"\d{1,2}steps?", word) for word in words) else []
    return [f"its name says {found[0]}"] if found else []


def steps_of_name(name: str, *, listed: int | None = None) -> int | None:
    """How many steps it is made for; None where that is not known."""
    if listed:
        return listed
    low = name.lower()
    if number := re.search(r"(?<![a-z0-9])(\d{1,2})[-_ ]?steps?(?![a-z])", low):
        return int(number[1])
    return next((steps for part, steps in STEPS.items() if part in low), None)


def listed_steps(path: str, *, revision: str | None = None) -> int | None:
    """Of a checkpoint that lists its noise levels, how many."""
    folder = on_this_disk(path, revision=revision, file="model_index.json")
    return None if folder is None else _listed(read_settings(folder / "model_index.json"))


def _listed(index: Mapping[str, Any]) -> int | None:
    listed = index.get("sample_sigmas")
    return len(listed) if isinstance(listed, list) and listed else None


def _settings(folder: Path | None, part: str) -> dict[str, Any]:
    file = None if folder is None else folder / part / FILES[part]
    if file is None or not file.is_file():
        return {}
    text = re.sub(r"(:\s*)-Infinity", r"\1null", file.read_text(encoding="utf-8"))
    return parse_settings(text, where=shown(str(file)))
