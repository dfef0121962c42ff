"""Tensors that are cut over processes, in a file of each: what one holds, and where it belongs. No pickle, unlike torch's own format.

weights_00000_of_00002.safetensors holds rows of some tensors; its header says under "cut" from which row on, and of what shape the
whole tensor is. So any number of processes can read what another number wrote.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from grpo_mm.errors import TrainingStopped
from grpo_mm.weights.pieces import holds_first_copy, is_cut, own, place_of, start_of

PART = re.compile(r"([A-Za-z0-9]+)_([0-9]{5})_of_([0-9]{5})\.safetensors")


class PartsMissing(Exception):
    """Files that do not make whole tensors."""


def write_parts(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], *, rank: int) -> list[Path]:
    """Writes what this process holds, none of it where a process of a lower rank holds the same; the files.

    Args:
        tensors: file name without ending → named tensors; those that are not cut are the main process's to write.
    """
    cut = [t for named in tensors.values() for t in named.values() if is_cut(t)]
    if not cut or not holds_first_copy(cut[0]):
        return []
    if not folder.is_dir():
        raise TrainingStopped(
            f"process {rank} does not see {folder}. Weights that are cut over processes are saved by all of them: `runs_dir` has to "
            "lie on a disk that all nodes share."
        )
    (part, parts), written = place_of(cut[0]), []
    for file, named in tensors.items():
        mine = {
            name: t.detach()
            for name, t in named.items()
            if (is_cut(t) and own(t).numel()) or (not is_cut(t) and rank == 0)
        }
        cuts = {name: [start_of(t) if is_cut(t) else 0, list(t.shape)] for name, t in mine.items()}
        path = folder / f"{file}_{part:05d}_of_{parts:05d}.safetensors"
        held = {name: own(t).cpu().contiguous() for name, t in mine.items()}
        save_file(held, path, metadata={"cut": json.dumps(cuts)})
        written.append(path)
    return written


def joined_parts(folder: Path, names: Sequence[str]) -> dict[str, Parts]:
    """File name without ending and part → its tensors, of those names that are parts."""
    files: dict[str, list[Path]] = {}
    for name in names:
        found = PART.fullmatch(name)
        if found is not None:
            files.setdefault(found[1], []).append(folder / name)
    return {name: Parts(paths) for name, paths in files.items()}


class Parts(Mapping[str, Tensor]):
    """Named tensors that lie in parts in several files; each is read and joined when it is asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Raises PartsMissing if some tensor is not there whole."""
        self.shapes: dict[str, torch.Size] = {}
        self._pieces: dict[str, list[tuple[int, int, Any]]] = {}
        """(first row, rows, file)."""
        for path in paths:
            file = safe_open(path, framework="pt")
            for name, (start, shape) in json.loads((file.metadata() or {})["cut"]).items():
                here = torch.Size(shape)
                if self.shapes.setdefault(name, here) != here:
                    raise PartsMissing(f"{path}: {name} has another shape than in the other parts.")
                rows = file.get_slice(name).get_shape()[:1] or [1]
                self._pieces.setdefault(name, []).append((start, rows[0], file))
        for name, pieces in self._pieces.items():
            pieces.sort(key=lambda piece: piece[0])
            ends = [0, *(start + rows for start, rows, _ in pieces)]
            if [start for start, _, _ in pieces] != ends[:-1] or ends[-1] != (self.shapes[name] or (1,))[0]:
                raise PartsMissing(f"{paths[0].parent}: a part of {name} is missing.")

    def __getitem__(self, name: str) -> Tensor:
        found = [file.get_tensor(name) for _, _, file in self._pieces[name]]
        return found[0] if len(found) == 1 else torch.cat(found)

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)
