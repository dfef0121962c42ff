"""What the flow policy asks of a model family. A family maps names and holds no state: the diffusers pipeline does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines import zoo

Condition = Mapping[str, Tensor]
"""What the network sees of a prompt; every tensor is [n, ...], one entry per prompt or row."""


class Family(Protocol):
    """SD3, FLUX, …: a dataclass of `path`, `revision`, `variant` with these pure functions of the pipeline."""

    path: str
    revision: str | None
    variant: str | None
    lora_targets: tuple[str, ...]
    encoders: tuple[str, ...]
    """Names of the pipeline's text encoders."""

    def check(self) -> None: ...

    def load(self, dtype: torch.dtype, *, full: bool) -> Any:
        """The diffusers pipeline; `full`: the transformer's weights are trained, so they are float32 masters."""
        ...

    def encode(self, pipe: Any, text: str, *, text_length: int, guidance: float) -> Condition: ...

    def latent_shape(self, pipe: Any, height: int, width: int) -> tuple[int, ...]:
        """The shape of one latent as the network takes it, without the batch axis."""
        ...

    def image_tokens(self, pipe: Any, height: int, width: int) -> int: ...

    def network_rows(self, guidance: float) -> int:
        """How many rows go through the network for one row of latents: 2 with classifier-free guidance."""
        ...

    def velocity(
        self, pipe: Any, x: Tensor, sigma: Tensor, condition: Condition, *, guidance: float, size: tuple[int, int]
    ) -> Tensor:
        """The guided velocity at latents x [n, ...] and noise levels sigma [n]; same shape as x."""
        ...

    def decode(self, pipe: Any, latents: Tensor, *, size: tuple[int, int]) -> Tensor:
        """Latents [n, ...] to images in [-1, 1], [n, 3, H, W]."""
        ...


def resolve(path: str) -> str:
    """"zoo:NAME" is the shipped checkpoint of that name; anything else is a hub name or a folder already."""
    return str(zoo.path(path.removeprefix("zoo:"))) if path.startswith("zoo:") else path


def check_pipeline(path: str, pipeline_class: str) -> None:
    """Raises ConfigError, before anything is loaded, when `path` is a local folder that holds no such pipeline."""
    path = resolve(path)
    folder = Path(path)
    looks_local = path.startswith((".", "/", "~")) or folder.exists()
    if not looks_local:
        if path.count("/") != 1:
            raise ConfigError(f"model path {path!r} is neither an existing folder nor a hub name of the form owner/name.")
        return
    index = folder.expanduser() / "model_index.json"
    if not index.is_file():
        raise ConfigError(
            f"{path} is not a diffusers checkpoint: it has no model_index.json. "
            + ("The folder does not exist." if not folder.exists() else "Give the folder that `save_pretrained` wrote.")
        )
    try:
        found = json.loads(index.read_text()).get("_class_name")
    except json.JSONDecodeError as error:
        raise ConfigError(f"{index} is not valid JSON: {error}") from error
    if found != pipeline_class:
        raise ConfigError(f"{path} holds a {found}, wanted a {pipeline_class}. Choose the policy's model kind to match.")


def load_pipeline(cls: Any, family: Family, dtype: torch.dtype, *, full: bool) -> Any:
    """`from_pretrained` with the family's revision and variant, everything frozen and in eval mode."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        pipe = cls.from_pretrained(
            resolve(family.path), revision=family.revision, variant=family.variant, dtype=dtype, **_absent(resolve(family.path))
        )
    except OSError as error:
        raise ConfigError(f"{family.path} could not be loaded: {error}") from error
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    if full:
        pipe.transformer.to(torch.promote_types(dtype, torch.float32))
    pipe.vae.to(torch.promote_types(dtype, torch.float32))
    return pipe


def _absent(path: str) -> dict[str, None]:
    """Components that a local checkpoint was saved without; diffusers wants to be told of each."""
    index = Path(path).expanduser() / "model_index.json"
    if not index.is_file():
        return {}
    return {name: None for name, value in json.loads(index.read_text()).items() if value == [None, None]}


def encode_prompt(pipe: Any, text: str, names: Sequence[str], **settings: Any) -> dict[str, Tensor]:
    """The pipeline's `encode_prompt` for one text, with its results named; absent ones are left out."""
    with torch.no_grad():
        results = pipe.encode_prompt(prompt=text, **settings)
    return {name: value for name, value in zip(names, results, strict=True) if value is not None}
