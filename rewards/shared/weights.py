"""Weights of reward models: is the file there, where on the hub is it, and reading it without running what it holds."""

from __future__ import annotations

import importlib.util
import os
import re
from typing import Literal

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.outside import reason
from grpo_mm.weights.weight_files import (
    check_finite,
    check_weight_file,
    check_weight_folder,
    name_some,
    read_settings,
    read_weight_file,
    refusing,
)

HUB = "hf-hub:"

DType = Literal["float32", "bfloat16"]


def check_packages(*names: str) -> None:
    """Raises ConfigError if one of them is not installed; imports nothing."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} not installed; pip install {' '.join(missing)}.")


def check_model(key: str, name: str, *, file: str = "config.json") -> None:
    """Raises ConfigError if `name` is neither a folder that holds `file` nor looks like a name on the hub.

    With `file` of a model, its weights are there too, and not plainly damaged; no tensor is read.
    """
    if os.path.isdir(name):
        if not os.path.isfile(os.path.join(name, file)):
            raise ConfigError(f"{key} = {name!r} is a folder without {file}; is it a model in transformers' format?")
        read_settings(os.path.join(name, file))
        if file == "config.json":
            check_weight_folder(name)
    elif not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise ConfigError(f"{key} = {name!r}: no such folder, and no name on the hub (organisation/name) either.")


def check_file(key: str, path: str) -> None:
    """Raises ConfigError if a local file is missing or plainly damaged, or a place on the hub is not written in full.

    Downloads nothing, and reads no tensor.
    """
    if path.startswith(HUB):
        if len(_parts(path)) != 3:
            raise ConfigError(f"{key} = {path!r}: wanted {HUB}organisation/name/file.")
    elif not os.path.isfile(path):
        raise ConfigError(f"{key} = {path!r}: no such file. For a file on the hub write {HUB}organisation/name/file.")
    else:
        check_weight_file(path)


def read_tensors(path: str) -> dict[str, Tensor]:
    """Name → tensor, on the CPU, from a local file or `hf-hub:organisation/name/file`.

    Reads safetensors, and torch files that hold tensors only; of a training checkpoint the part "state_dict".

    Raises:
        ConfigError: there is no such file, or it holds other things than tensors.
    """
    check_file("path", path)
    return read_weight_file(_from_hub(path) if path.startswith(HUB) else path)[0]


def load_strictly(module: torch.nn.Module, tensors: dict[str, Tensor], *, path: str) -> None:
    """Fills a module.

    Raises:
        ConfigError: a tensor is missing, of another shape, left over, of whole numbers, or holds NaN or infinities.
    """
    whole = [name for name, value in module.state_dict().items() if _whole_numbers(tensors.get(name), value)]
    if whole:
        raise ConfigError(
            f"{path!r} does not hold the weights of this reward: {name_some(whole)} are stored as whole numbers (quantised?)."
        )
    try:
        module.load_state_dict(tensors)
    except Exception as error:
        raise ConfigError(f"{path!r} does not hold the weights of this reward: {reason(error, 1000)}") from error
    check_finite(tensors, where=path)


def _whole_numbers(stored: Tensor | None, wanted: Tensor) -> bool:
    return stored is not None and wanted.is_floating_point() and not stored.is_floating_point()


def _from_hub(path: str) -> str:
    from huggingface_hub import hf_hub_download

    organisation, name, file = _parts(path)
    with refusing(path):
        return hf_hub_download(f"{organisation}/{name}", file)


def _parts(path: str) -> list[str]:
    return [part for part in path.removeprefix(HUB).split("/", 2) if part]
