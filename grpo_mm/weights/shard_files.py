"""Tensors that are cut over processes, in a file of each: what one holds, and where it belongs. No pickle, unlike torch's own format.

weights_00000_of_00002.safetensors holds rows of some tensors; its header says under "cut" from which row on, and of what shape the
whole tensor is. So any number of processes can read what another number wrote.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from grpo_mm.errors import TrainingStopped
from grpo_mm.weights.hashed_files import save_file
from grpo_mm.weights.pieces import holds_first_copy, is_cut, own, place_of, start_of

PART = re.compile(r"([A-Za-z0-9]+)_([0-9]{5})_of_([0-9]{5})\.safetensors")


class PartsMissing(Exception):
    """Files that do not make whole tensors."""


@dataclass(frozen=True, eq=False)
class Piece:
    """What one process holds of a tensor: rows of one that is cut, or all of it."""

    rows: Tensor
    start: int
    shape: tuple[int, ...]
    """Of the whole tensor."""
    place: tuple[int, int] | None
    """(which part, of how many); None: not cut."""
    is_first: bool = True
    """Whether no process of a lower rank holds the same."""

    def with_rows(self, rows: Tensor) -> Piece:
        return replace(self, rows=rows)


def piece_of(tensor: Tensor | Piece) -> Piece:
    if isinstance(tensor, Piece):
        return tensor
    if not is_cut(tensor):
        return Piece(tensor, 0, tuple(tensor.shape), None)
    return Piece(own(tensor), start_of(tensor), tuple(tensor.shape), place_of(tensor), holds_first_copy(tensor))


def write_parts(folder: Path, tensors: Mapping[str, Mapping[str, Tensor | Piece]], *, rank: int) -> dict[str, str]:
    """Writes what this process holds, none of it where a process of a lower rank holds the same; the SHA-256 of each file by name.

    Args:
        tensors: file name without ending → named tensors; those that are not cut are the main process's to write.
    """
    pieces = {file: {name: piece_of(t) for name, t in named.items()} for file, named in tensors.items()}
    cut = [piece for named in pieces.values() for piece in named.values() if piece.place is not None]
    if not cut or not cut[0].is_first:
        return {}
    if not folder.is_dir():
        raise TrainingStopped(
            f"process {rank} does not see {folder}. Weights that are cut over processes are saved by all of them: `runs_dir` has to "
            "lie on a disk that all nodes share."
        )
    (part, parts), written = cut[0].place or (0, 1), {}
    for file, named in pieces.items():
        mine = {
            name: piece
            for name, piece in named.items()
            if (piece.place is not None and piece.rows.numel()) or (piece.place is None and rank == 0)
        }
        cuts = {name: [piece.start, list(piece.shape)] for name, piece in mine.items()}
        path = folder / f"{file}_{part:05d}_of_{parts:05d}.safetensors"
        held = {name: piece.rows.detach().cpu().contiguous() for name, piece in mine.items()}
        written[path.name] = save_file(held, path, metadata={"cut": json.dumps(cuts)})
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
