"""Checkpoints, all or nothing: written aside, then renamed. Tensors are safetensors, the rest is JSON; no pickle."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from grpo_mm.errors import CheckpointError, TrainingStopped

FORMAT = "grpo_mm checkpoint 1"


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to take the same next step."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    """File name without ending → named tensors: "weights", "optimizer", "snapshots"."""
    state: Mapping[str, Any]
    """Plain JSON values: step, updates, best score, …"""


def name_of(step: int) -> str:
    return f"step_{step:06d}"


def write(folder: Path, checkpoint: Checkpoint, *, step: int) -> Path:
    """Writes `folder/step_000010`; on any failure the earlier checkpoints are untouched."""
    final, aside = folder / name_of(step), folder / f".writing_{name_of(step)}"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for name, tensors in checkpoint.tensors.items():
            save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, aside / f"{name}.safetensors")
        (aside / "state.json").write_text(json.dumps(checkpoint.state, indent=1, sort_keys=True))
        manifest = {"format": FORMAT, "step": step, "sha256": {p.name: _sha256(p) for p in sorted(aside.iterdir())}}
        (aside / "manifest.json").write_text(json.dumps(manifest, indent=1))
        for path in (*aside.iterdir(), aside):
            _sync(path)
        if final.exists():
            shutil.rmtree(final)
        os.replace(aside, final)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise _write_error(error, final, folder) from error
    return final


def _write_error(error: Exception, final: Path, folder: Path) -> Exception:
    full = is_no_space(error)
    reason = "there is no space left on the device" if full else str(error)
    return TrainingStopped(
        f"{final} could not be written: {reason}. {last_intact(folder)} {'Free some space' if full else 'Mend that'} and "
        "give the same command again to go on."
    )


def is_no_space(error: Exception) -> bool:
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)


def last_intact(folder: Path) -> str:
    kept = steps(folder)
    return f"The last checkpoint, {name_of(kept[-1])}, is intact." if kept else "There is no earlier checkpoint."


def steps(folder: Path) -> list[int]:
    """The steps of all finished checkpoints, ascending."""
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(n[5:]) for n in names if n.startswith("step_") and n[5:].isdigit())


def read(path: Path) -> Checkpoint:
    """Verifies and reads one checkpoint."""
    names = [n for n in verify(path) if n.endswith(".safetensors")]
    tensors = {n.removesuffix(".safetensors"): load_file(path / n) for n in names}
    return Checkpoint(tensors=tensors, state=json.loads((path / "state.json").read_text()))


def verify(path: Path) -> list[str]:
    """The names of the files of a checkpoint; raises CheckpointError that tells what is wrong with it."""
    manifest_path = path / "manifest.json"
    if not manifest_path.is_file():
        raise CheckpointError(f"{path} is not a checkpoint of this program: it has no manifest.json.{_advice(path)}")
    try:
        manifest = json.loads(manifest_path.read_text())
        found_format = manifest["format"]
        hashes = dict(manifest["sha256"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{manifest_path} is damaged ({error}).{_advice(path)}") from error
    if found_format != FORMAT:
        raise CheckpointError(f"{path} has the format {found_format!r}, wanted {FORMAT!r}.{_advice(path)}")
    surplus = {p.name for p in path.iterdir()} - set(hashes) - {"manifest.json"}
    if surplus:
        raise CheckpointError(
            f"{path} holds files that its manifest does not list: {', '.join(sorted(surplus))}. Remove them."
            + _advice(path)
        )
    if "state.json" not in hashes:
        raise CheckpointError(f"{manifest_path} is damaged (it does not list state.json).{_advice(path)}")
    for name, expected in hashes.items():
        if not (path / name).is_file() or _sha256(path / name) != expected:
            raise CheckpointError(
                f"{path / name} is missing, truncated or altered: its SHA-256 differs.{_advice(path)}"
            )
    return sorted(hashes)


def _advice(path: Path) -> str:
    others = [name_of(s) for s in steps(path.parent) if name_of(s) != path.name]
    if not others:
        return " There is no other one: start over with --fresh."
    return f" To go on from another one say so: --checkpoint {others[-1]}."


def prune(folder: Path, *, keep: set[int]) -> None:
    """Deletes finished checkpoints that are not to be kept, and what an interrupted write left."""
    for step in steps(folder):
        if step not in keep:
            shutil.rmtree(folder / name_of(step))
    for path in folder.glob(".writing_*"):
        shutil.rmtree(path)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as "index/name" → tensor."""
    state = optimizer.state_dict()["state"]
    return {f"{i}/{k}": torch.as_tensor(v) for i, entry in state.items() for k, v in entry.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def load_strictly(params: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, what: str) -> None:
    """Copies tensors into parameters; a missing, surplus or misshapen one is an error."""
    check_fit(params, tensors, what=what)
    with torch.no_grad():
        for name, p in params.items():
            p.copy_(tensors[name])


def check_fit(params: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, what: str) -> None:
    """Raises CheckpointError unless the tensors have the names and shapes of the parameters."""
    missing, surplus = sorted(set(params) - set(tensors)), sorted(set(tensors) - set(params))
    if missing or surplus:
        raise CheckpointError(
            f"{what} does not fit the model: {len(missing)} tensors missing (first: {missing[:1]}), "
            f"{len(surplus)} surplus (first: {surplus[:1]})."
        )
    for name, p in params.items():
        if p.shape != tensors[name].shape:
            raise CheckpointError(f"{what}: {name} has shape {tuple(tensors[name].shape)}, wanted {tuple(p.shape)}.")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
