"""Files of tensors from elsewhere: what is wrong with one, in a sentence, and its tensors without running what it holds."""

from __future__ import annotations

import errno
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError, UserError
from grpo_mm.outside import BadJson, parse_json, reason, shown

TORCH_FILES = (".bin", ".pt", ".pth", ".ckpt")
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Whatever a library raises inside becomes one sentence about `what`; a full disk stays what it is.

    Raises:
        ConfigError: something was raised that is no UserError.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if error.errno in NO_SPACE:
            raise
        raise ConfigError(f"{what} could not be loaded: {reason(error)}") from error
    except Exception as error:
        raise ConfigError(f"{what} could not be loaded: {reason(error)}") from error


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings in a JSON file that stands beside weights (config.json, model_index.json, adapter_config.json).

    Raises:
        ConfigError: it cannot be read, or holds no settings by their names.
    """
    with refusing(str(path)):
        text = Path(path).read_text(encoding="utf-8")
    return parse_settings(text, where=str(path))


def parse_settings(text: str, *, where: str) -> dict[str, Any]:
    """Raises ConfigError for text that holds no settings by their names."""
    try:
        found = parse_json(text)
    except BadJson as error:
        pointer = " (a pointer of Git LFS, not the file itself)" if text.startswith("version https://git-lfs") else ""
        raise ConfigError(f"{where} is not valid JSON: {error.reason}{pointer}.") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{where} holds a {type(found).__name__}; wanted settings by their names.")
    return found


def check_weight_file(path: str | Path) -> None:
    """Looks at the shape of a file and not at its tensors: empty, cut off, a pointer of Git LFS, a page of a web server.

    Raises:
        ConfigError: it is no file of weights.
    """
    path = Path(path)
    head = check_head(path)
    if path.suffix == ".safetensors":
        _check_safetensors(path)
    elif head.startswith(b"PK"):
        if not zipfile.is_zipfile(path):  # the list of its parts stands at the end
            raise ConfigError(f"{path} is cut off or damaged: its end is missing. Fetch it again.")
    elif not head.startswith(b"\x80"):
        raise ConfigError(f"{path} holds no weights: it is no file of torch (it starts with {shown(head[:16])}).")


def check_head(path: str | Path) -> bytes:
    """The first bytes of a file of any form.

    Raises:
        ConfigError: it is empty, a pointer of Git LFS or a page of a web server.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file.")
    with refusing(str(path)), path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise ConfigError(f"{path} is empty (0 bytes). Fetch it again.")
    if head.startswith(b"version https://git-lfs"):
        raise ConfigError(f"{path} is a pointer of Git LFS and not the file itself. Fetch it with `git lfs pull`.")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        raise ConfigError(f"{path} holds no weights but a web page. Fetch the file itself.")
    return head


def check_weight_folder(folder: str | Path) -> None:
    """The same for the weights of a local model in transformers' format; opens headers only.

    Raises:
        ConfigError: a file of weights is damaged, a shard that the index names is missing, or there is none at all.
    """
    folder = Path(folder)
    for stem, ending in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{ending}.index.json"
        whole = folder / f"{stem}.{ending}"
        if whole.is_file():
            return check_weight_file(whole)
        if index.is_file():
            shards = read_settings(index).get("weight_map")
            if not isinstance(shards, dict):
                raise ConfigError(f"{index} has no weight_map; wanted the file of each tensor.")
            for shard in sorted(set(map(str, shards.values()))):
                check_weight_file(folder / Path(shard).name)
            return None
    raise ConfigError(f"{folder} holds no weights: it has no model.safetensors and no pytorch_model.bin.")


def read_weight_file(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(name → tensor as it is stored, on the CPU; the texts in the header of a safetensors file).

    Reads safetensors, and torch files that hold tensors only; of a training checkpoint the part "state_dict".

    Raises:
        ConfigError: it cannot be read, or holds other things than tensors.
    """
    path = Path(path)
    check_weight_file(path)
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with refusing(str(path)), safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        if "Unsupported" not in str(error):  # of a global or a class, by torch's own words
            raise ConfigError(f"{path} could not be loaded: {_first_line(error)}") from error
        raise ConfigError(
            f"{path} holds more than tensors, and reading it could run code. Convert it to safetensors where you "
            f"trust it. ({_first_line(error)})"
        ) from error
    except Exception as error:
        with refusing(str(path)):
            raise error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds a {type(found).__name__}; wanted tensors by their names.")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ConfigError(f"{path}: {shown(name)} is a {type(value).__name__}; wanted tensors by their names.")
    return dict(found), {}


def check_finite(tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Looks at each value once, without a copy of a tensor; float8 is widened, other kinds than floats are passed over.

    Raises:
        ConfigError: some hold NaN or infinities; says which.
    """
    bad = []
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.numel() or tensor.is_meta:
            continue
        wide = tensor.detach() if tensor.dtype.itemsize > 1 else tensor.detach().float()
        if not all(torch.isfinite(end) for end in torch.aminmax(wide)):
            bad.append(f"{name} ({int((~torch.isfinite(wide)).sum())} of {wide.numel()})")
    if bad:
        raise ConfigError(
            f"{where}: {len(bad)} of its {len(tensors)} tensors hold values that are NaN or infinite: {name_some(bad)}. The file "
            "is damaged, or was saved from a training that had failed. Fetch or export it again."
        )


def _check_safetensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise ConfigError(f"{path} is no safetensors file, or is cut off or damaged: {reason(error)}") from error
    except OSError as error:
        raise ConfigError(f"{path} could not be read: {reason(error)}") from error


def _first_line(error: Exception) -> str:
    return reason(type(error)((str(error).splitlines() or [""])[0]))


def name_some(names: object, limit: int = 3) -> str:
    """The first names of a collection, and how many more there are."""
    found = sorted(map(str, names))  # type: ignore[call-overload]
    more = len(found) - limit
    return ", ".join(shown(name).strip("'\"") for name in found[:limit]) + (f" and {more} more" if more > 0 else "")
