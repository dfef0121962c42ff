"""Why a scorer's golden scores may be others: the bytes of its weights, and the packages that compute."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from grpo_mm.environments.requirements import requirements

PACKAGES = (
    "torch", "torchvision", "transformers", "open_clip_torch", "timm", "peft", "pillow", "numpy", "onnxruntime", "rapidocr",
)  # fmt: skip
ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".onnx")
HUB = "hf-hub:"
PIECE = 2**24


def versions_of(scorer: Any) -> dict[str, str]:
    """Of the packages that compute: those that its environment pins stand before ours."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    environment = getattr(scorer, "environment", None)
    return found if environment is None else found | dict(requirements(environment).pins)


def digests_of(use: Any) -> dict[str, str]:
    """setting/file -> SHA-256 of the weights that its settings name, where they lie on this machine. Reads them whole."""
    return {name: _digest(file) for name, file in _files(use)}


def _files(use: Any) -> Iterator[tuple[str, Path]]:
    for one in fields(use):
        value = getattr(use, one.name)
        if is_dataclass(value) and not isinstance(value, type):
            yield from ((f"{one.name}/{name}", file) for name, file in _files(value))
        elif isinstance(value, str):
            yield from ((f"{one.name}/{file.name}", file) for file in _named(value))


def _named(value: str) -> Iterator[Path]:
    if os.path.isfile(value):
        yield Path(value)
    elif os.path.isdir(value):
        yield from sorted(file for file in Path(value).iterdir() if file.suffix in ENDINGS and file.is_file())
    elif value.startswith(HUB) or re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", value):
        yield from _in_the_cache(value.removeprefix(HUB))


def _in_the_cache(name: str) -> Iterator[Path]:
    """What of a name on the hub was downloaded before; asks nobody."""
    try:
        from huggingface_hub import snapshot_download

        organisation, repository, *file = name.split("/", 2)
        folder = Path(snapshot_download(f"{organisation}/{repository}", local_files_only=True))
    except Exception:  # not there, or not known to the library: then its bytes say nothing
        return
    yield from [folder / file[0]] if file and (folder / file[0]).is_file() else _named(str(folder))


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while piece := opened.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def differences(recorded: Mapping[str, str], here: Mapping[str, str], *, digits: int | None = None) -> list[str]:
    """Each that is another one, with both values."""
    return [
        f"{name} {(here.get(name) or 'absent')[:digits]} (recorded {recorded[name][:digits]})"
        for name in sorted(recorded)
        if here.get(name) != recorded[name]
    ]
