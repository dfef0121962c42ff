"""Checkpoints, all or nothing: written aside, then renamed. Tensors are safetensors, the rest is JSON; no pickle."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from grpo_mm.errors import CheckpointError, TrainingStopped
from grpo_mm.outside import BadJson, parse_json, reason, shown
from grpo_mm.processes.distributed import Processes
from grpo_mm.weights.hashed_files import save_file
from grpo_mm.weights.pieces import as_cut, is_cut, put, shapes_of
from grpo_mm.weights.shard_files import PART, PartsMissing, Piece, joined_parts, piece_of, write_parts

FORMAT = "grpo_mm checkpoint 1"
FILE = re.compile(r"[A-Za-z0-9_]+\.safetensors|(state|manifest)\.json")
"""Names that a checkpoint may hold."""
LARGEST_JSON = 256 * 2**20
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunId:
    """Which run a checkpoint is of. The id is made when a run starts; copies of its folder keep it."""

    id: str
    adopted: bool = False
    """The run was started by a version that gave no ids: checkpoints without one are its own."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to take the same next step."""

    tensors: Mapping[str, Mapping[str, Tensor | Piece]]
    """File name without ending → named tensors: "weights", "optimizer", "snapshots". Pieces where it is about to be written."""
    state: Mapping[str, Any]
    """Plain JSON values: step, updates, best score, …"""


def name_of(step: int) -> str:
    return f"step_{step:06d}"


def write(
    folder: Path, checkpoint: Checkpoint, *, step: int, run: RunId | None = None, processes: Processes | None = None
) -> Path:
    """Writes `folder/step_000010` with the id of its run; on any failure the earlier checkpoints are untouched.

    processes: they hold a part of the tensors each, and call this together: each writes its own files (`shard_files`), the main
    process the rest. None: this one holds all.
    """
    final, aside = folder / name_of(step), folder / f".writing_{name_of(step)}"
    try:
        if processes is None:
            _begin(aside)
            hashes = {}
            for name, tensors in checkpoint.tensors.items():
                held = {k: piece_of(t).rows.detach().cpu().contiguous() for k, t in tensors.items()}
                hashes[f"{name}.safetensors"] = save_file(held, aside / f"{name}.safetensors")
            _end(aside, final, checkpoint.state, hashes, step=step, run=run)
        else:
            processes.by_main(lambda: _begin(aside))
            ranks = processes.everywhere(lambda: write_parts(aside, checkpoint.tensors, rank=processes.index))
            hashes = {name: digest for rank in ranks for name, digest in rank.items()}
            processes.by_main(lambda: _end(aside, final, checkpoint.state, hashes, step=step, run=run))
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            _delete(aside) if processes is None or processes.is_main else None
        raise _write_error(error, final, folder) from error
    return final


def _begin(aside: Path) -> None:
    _delete(aside)
    aside.mkdir(parents=True)


def _end(
    aside: Path, final: Path, state: Mapping[str, Any], hashes: Mapping[str, str], *, step: int, run: RunId | None
) -> None:
    """The state and, last of all, the manifest; then the checkpoint gets its name."""
    (aside / "state.json").write_text(json.dumps(state, indent=1, sort_keys=True))
    _sync(aside / "state.json")
    hashes = dict(sorted({**hashes, "state.json": _sha256(aside / "state.json")}.items()))
    manifest = {"format": FORMAT, "step": step, "sha256": hashes}
    manifest |= {"run": run.id} if run is not None else {}
    (aside / "manifest.json").write_text(json.dumps(manifest, indent=1))
    for path in (aside / "manifest.json", aside):
        _sync(path)
    if os.path.lexists(final):
        _delete(final)
    os.replace(aside, final)
    _sync(final.parent)


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
    found = [int(n[5:]) for n in names if re.fullmatch(r"step_[0-9]{6,18}", n)]
    return sorted(step for step in found if name_of(step) in names)


def read(path: Path, run: RunId | None = None, *, verified: bool = False) -> Checkpoint:
    """Verifies and reads one checkpoint; tensors that lie in several files are joined when they are asked for.

    verified: another process has done so, and only the names of the files are taken.
    """
    found = [p.name for p in path.iterdir()] if verified else verify(path, run)
    names = sorted(n for n in found if n.endswith(".safetensors"))
    try:
        whole = [n for n in names if not PART.fullmatch(n)]
        tensors = {n.removesuffix(".safetensors"): load_file(path / n) for n in whole} | joined_parts(path, names)
        state = json.loads((path / "state.json").read_text())  # ours, where NaN is a measure that was not taken
    except PartsMissing as error:
        raise CheckpointError(f"{error}{_advice(path)}") from error
    except Exception as error:  # right hashes of wrong content: forged
        raise CheckpointError(f"{path} cannot be read: {reason(error)}.{_advice(path)}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path / 'state.json'} holds {shown(state)}, wanted named values.{_advice(path)}")
    return Checkpoint(tensors=tensors, state=state)


def verify(path: Path, run: RunId | None = None) -> list[str]:
    """The names of the files of a checkpoint.

    Raises:
        CheckpointError: it tells what is wrong: damaged, of another step than its name says, of another run than `run`, a link.
    """
    manifest_path = path / "manifest.json"
    if path.is_symlink():
        raise CheckpointError(
            f"{path} is a link, which is not followed. Copy the run's whole folder instead.{_advice(path)}"
        )
    if not manifest_path.is_file():
        raise CheckpointError(f"{path} is not a checkpoint of this program: it has no manifest.json.{_advice(path)}")
    try:
        manifest = _json(manifest_path)
        found_format, step = manifest["format"], manifest["step"]
        hashes = dict(manifest["sha256"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{manifest_path} is damaged ({reason(error)}).{_advice(path)}") from error
    if found_format != FORMAT:
        raise CheckpointError(f"{path} has the format {shown(found_format)}, wanted {FORMAT!r}.{_advice(path)}")
    if isinstance(step, bool) or not isinstance(step, int) or step < 0 or name_of(step) != path.name:
        raise CheckpointError(
            f"{path} is a checkpoint of step {shown(step)} by its manifest: it has been given another name.{_advice(path)}"
        )
    _check_run(path, manifest.get("run"), run)
    surplus = {p.name for p in path.iterdir()} - set(hashes) - {"manifest.json"}
    if surplus:
        raise CheckpointError(
            f"{path} holds files that its manifest does not list: {', '.join(sorted(surplus))}. Remove them."
            + _advice(path)
        )
    if "state.json" not in hashes or not all(FILE.fullmatch(name) for name in hashes):
        raise CheckpointError(
            f"{manifest_path} is damaged (it does not list state.json, or other files).{_advice(path)}"
        )
    for name, expected in hashes.items():
        if (path / name).is_symlink() or not (path / name).is_file() or _sha256(path / name) != expected:
            raise CheckpointError(
                f"{path / name} is missing, truncated or altered: its SHA-256 differs.{_advice(path)}"
            )
    return sorted(hashes)


def _check_run(path: Path, found: Any, run: RunId | None) -> None:
    if run is None or found == run.id or (found is None and run.adopted):
        return
    raise CheckpointError(
        f"{path} is a checkpoint of another run ({'of none that is named' if found is None else shown(found, 40)}; this one is "
        f"{run.id!r}). A run goes on from its own: to copy a run copy its whole folder, and to start from what another run "
        f"learned name its product in the config (policy.lora.start_from, policy.merge_adapter or the model's path).{_advice(path)}"
    )


def run_of(path: Path) -> str | None:
    """The run that the manifest of a checkpoint names, "" if it names none; None if it is no manifest that can be read."""
    try:
        found = _json(path / "manifest.json")
        return str(found.get("run") or "") if found.get("format") == FORMAT else None
    except (OSError, ValueError, AttributeError):
        return None


def _json(path: Path) -> Any:
    if path.stat().st_size > LARGEST_JSON:
        raise BadJson(f"it has more than {LARGEST_JSON:,} bytes")
    return parse_json(path.read_text(encoding="utf-8"))


def _advice(path: Path) -> str:
    others = [name_of(s) for s in steps(path.parent) if name_of(s) != path.name]
    if not others:
        return " There is no other one: start over with --fresh."
    return f" To go on from another one say so: --checkpoint {others[-1]}."


def prune(folder: Path, *, keep: set[int]) -> None:
    """Deletes finished checkpoints that are not to be kept, and what an interrupted write left."""
    for step in steps(folder):
        if step not in keep:
            _delete(folder / name_of(step))
    for path in folder.glob(".writing_step_*"):
        _delete(path)


def of_others(folder: Path, run: RunId | None) -> set[int]:
    """The steps of checkpoints that are not of `run`, and so not to be deleted."""
    own = {None} if run is None else {run.id, None, *([""] if run.adopted else [])}
    return {step for step in steps(folder) if run_of(folder / name_of(step)) not in own}


def _delete(path: Path) -> None:
    """Deletes the files of a checkpoint by their names; a link is not followed, and what is not ours stays."""
    if path.is_symlink() or not path.is_dir():
        if os.path.lexists(path):
            log.warning("%s is no folder of this program and stays", path)
        return
    for file in sorted(path.iterdir(), key=lambda p: p.name != "manifest.json"):
        if FILE.fullmatch(file.name) and not file.is_dir():
            file.unlink()
    try:
        path.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        log.warning("%s holds files that are not of this program; they stay", path)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as "index/name" → tensor."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    state = {i: optimizer.state[p] for i, p in enumerate(params) if p in optimizer.state}
    found = {f"{i}/{k}": torch.as_tensor(v) for i, entry in state.items() for k, v in entry.items()}
    return {k: v.clone() if "/qmap" in k else v for k, v in found.items()}  # one table for all parameters


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`; moments of weights that are cut are cut alike."""
    state: dict[int, dict[str, Tensor]] = {}
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for key, tensor in tensors.items():
        index, _, name = key.partition("/")
        p = params[int(index)]
        state.setdefault(int(index), {})[name] = as_cut(p, tensor) if is_cut(p) and tensor.ndim else tensor
    if not isinstance(optimizer, torch.optim.AdamW):  # of 8 bits: its step is a plain number, its codes are no weights
        for i, entry in state.items():
            moved = {k: v.clone().to(params[i].device) for k, v in entry.items() if k != "step"}
            optimizer.state[params[i]] = moved | {"step": int(entry["step"])}
        return
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def load_strictly(params: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, what: str) -> None:
    """Copies tensors into parameters; a missing, surplus or misshapen one is an error."""
    check_fit(params, shapes_of(tensors), what=what)
    for name, p in params.items():
        put(p, tensors[name])


def check_fit(params: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], *, what: str) -> None:
    """Raises CheckpointError unless tensors have the names and shapes of the parameters."""
    missing, surplus = sorted(set(params) - set(shapes)), sorted(set(shapes) - set(params))
    if missing or surplus:
        raise CheckpointError(
            f"{what} does not fit the model: {len(missing)} tensors missing (first: {missing[:1]}), "
            f"{len(surplus)} surplus (first: {surplus[:1]})."
        )
    for name, p in params.items():
        if p.shape != shapes[name]:
            raise CheckpointError(f"{what}: {name} has shape {tuple(shapes[name])}, wanted {tuple(p.shape)}.")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
