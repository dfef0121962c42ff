"""What weights a folder holds, read from headers alone: the files that diffusers or transformers would load, no others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from grpo_mm.outside import BadJson, parse_json, reason, shown

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
"""diffusers' name, and transformers' of new and of old."""
LONGEST_HEADER = 100 * 2**20
"""As the safetensors library has it."""
TIED = (("shared.weight", "encoder.embed_tokens.weight"), ("embed_tokens.weight", "lm_head.weight"))
"""Ends of names that may stand for one tensor; the second is then no weight of its own."""

Shapes = dict[str, tuple[int, ...]]


class Uncounted(ValueError):
    """The weights cannot be counted; says which file is missing or damaged."""


def weight_shapes(folder: Path, *, variant: str | None = None, file: str | None = None) -> Shapes:
    """The shape of every floating-point tensor by name: of `variant` where the folder has it, else of the plain files.

    `file`: this one of the folder alone.

    Raises:
        Uncounted: there are no weights, a shard is missing, or a file is damaged.
    """
    found: Shapes = {}
    for path in [folder / file] if file is not None else _files(folder, variant):
        found |= _of_safetensors(path) if path.suffix == ".safetensors" else _of_torch(path)
    return found


def count(shapes: Mapping[str, tuple[int, ...]], *, tied: bool = True) -> int:
    """Numbers in all; tensors that stand for one another count once."""
    return sum(math.prod(shape) for name, shape in shapes.items() if not (tied and _is_second(name, shapes)))


def on_this_disk(path: str, *, revision: str | None = None, file: str) -> Path | None:
    """The folder of a checkpoint: `path` itself, or where the hub's cache keeps it; None if it is not here.

    `file`: one that such a checkpoint always has.
    """
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import try_to_load_from_cache

    try:
        there = try_to_load_from_cache(path, file, revision=revision)
    except Exception:  # no name that the hub could have
        return None
    return Path(there).parent if isinstance(there, str) else None


def _files(folder: Path, variant: str | None) -> list[Path]:
    for part in [f".{variant}", ""] if variant else [""]:
        for ending in ("safetensors", "bin"):
            for stem in STEMS:
                index = folder / f"{stem}.{ending}.index{part}.json"
                single = folder / f"{stem}{part}.{ending}"
                if index.is_file() and (stem == STEMS[0] or not single.is_file()):
                    return _shards(index)
                if single.is_file():
                    return [single]
    raise Uncounted(f"{shown(str(folder))} holds no weights" + (f" of the variant {shown(variant)}" if variant else ""))


def _shards(index: Path) -> list[Path]:
    try:
        names = set(parse_json(index.read_text(encoding="utf-8"))["weight_map"].values())
        files = [index.parent / Path(name).name for name in sorted(names)]
    except (BadJson, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Uncounted(f"{shown(str(index))} cannot be read ({reason(error)})") from error
    missing = [file for file in files if not file.is_file()]
    if missing or not files:
        raise Uncounted(
            f"{shown(str(index))} names {shown(missing[0].name) if missing else 'no file'}, which is missing"
        )
    return files


def _of_safetensors(file: Path) -> Shapes:
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > min(LONGEST_HEADER, file.stat().st_size):
                raise Uncounted(f"{shown(str(file))} is no safetensors file")
            header = parse_json(stream.read(length).decode())
        return {
            name: tuple(int(size) for size in entry["shape"])
            for name, entry in header.items()
            if name != "__metadata__" and _is_weight(name, "F" in entry["dtype"])
        }
    except Uncounted:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Uncounted(f"{shown(str(file))} is damaged ({reason(error)})") from error


def _of_torch(file: Path) -> Shapes:
    """Of a file of torch.save: tensors only, nothing in it is run, and its data stay on the disk."""
    import torch

    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        return {name: tuple(tensor.shape) for name, tensor in _distinct(tensors)}
    except Exception as error:  # whatever a foreign file makes of the reader
        raise Uncounted(
            f"{shown(str(file))} is damaged, or of a form from before torch 1.6 ({reason(error, 80)})"
        ) from error


def _distinct(tensors: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Weights, each memory once."""
    seen = set()
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tuple(tensor.shape))
        if _is_weight(name, tensor.is_floating_point()) and place not in seen:
            seen.add(place)
            yield name, tensor


def _is_weight(name: str, floats: bool) -> bool:
    return floats and not name.endswith(("position_ids", "inv_freq"))


def _is_second(name: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    for first, second in TIED:
        if name == second or name.endswith(f".{second}"):
            return any((n == first or n.endswith(f".{first}")) and shapes[n] == shapes[name] for n in shapes)
    return False
