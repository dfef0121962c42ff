"""What the flow policy asks of a model family. A family maps names and holds no state: the diffusers pipeline does."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from grpo_mm.errors import ConfigError
from grpo_mm.outside import plain, shown
from grpo_mm.pipelines import zoo
from grpo_mm.pipelines.flow.models.networks import NETWORKS, networks_of
from grpo_mm.pipelines.weight_files import on_this_disk
from grpo_mm.pipelines.zoo.random_weights import random_pipeline
from grpo_mm.weights.pretrained import check_positions, check_vocabulary, load_model, load_other
from grpo_mm.weights.weight_files import read_settings, refusing

GEOMETRY = "geometry"
"""An entry of a condition, int64 [n, G]: rows that differ in it never share a network call."""
Condition = Mapping[str, Tensor]
"""What the network sees of a prompt; every tensor is [n, ...], one entry per prompt or row. Texts of their own lengths are [n, T, ...],
and a mask [n, T] beside them tells what is text."""


Size = tuple[int, ...]
"""What is drawn: (height, width) in pixels; of clips (frames, height, width)."""


class Family(Protocol):
    """SD3, FLUX, …: a dataclass of `path`, `revision`, `variant` with these pure functions of the pipeline."""

    path: str
    revision: str | None
    variant: str | None
    pipeline: str
    """The class in diffusers."""
    lora_targets: tuple[str, ...]
    encoders: tuple[str, ...]
    """Names of the pipeline's text encoders."""
    may_lack: tuple[str, ...]
    """Parts that a checkpoint may be saved without."""
    even_sigmas: bool
    """Whether the pipeline hands its scheduler linspace(1, 1/S, S) instead of leaving the spacing to it."""

    tables: tuple[str, ...]
    """Tensors in the transformer's files that are computed and not learnt."""

    ragged: bool
    """Whether a text takes as many tokens as it has, instead of being filled up to `text_length`."""

    pictures: tuple[int, int]
    """How many pictures of a prompt (`Prompt.media`) it reads, at least and at most: (0, 0) texts alone, (1, 1) one picture to be
    edited, (1, 2) a first frame and perhaps a last one, (0, 10) references, or none."""

    cuts_texts: bool
    """Whether the pipeline cuts a text at `text_length`; else it reads all of it."""

    alike_in_a_batch: bool
    """Whether the plain pipeline says the same of a text beside a longer one."""

    for_comparison: Mapping[str, Any]
    """What the plain pipeline is called with besides, where `conform` compares it: what would hide inputs of its network."""

    def check(self) -> None: ...

    def load(self, dtype: torch.dtype, *, full: bool) -> Any:
        """The diffusers pipeline; `full`: the transformer's weights are trained, so they are float32 masters."""
        ...

    def encode(self, pipe: Any, text: str, *, text_length: int, guidance: float, **of_pictures: Any) -> Condition:
        """The condition of one prompt, [1, ...] each, on whatever device it was made; encoders are where they compute, without gradient.

        A family whose `pictures` are not (0, 0) is given two more arguments, one of texts alone is not:
            pictures: list of PIL pictures in RGB, `Prompt.media` in its order, in their own sizes; as many as `pictures` allows, perhaps none.
            size: (height, width) in pixels of what will be drawn with this condition: evaluation may draw another size than training, and
                its prompts are encoded for it. The autoencoder (`pipe.vae`, float32) is on the device meanwhile.
        What a picture becomes (latents, tokens of a text encoder that sees it) is part of the condition, under names of the family's own: it
        goes into rollouts, replay and evaluation as texts do, and is never noised. Tensors that are [1, T, ...] may have another T from
        prompt to prompt: `joined` fills them up with zeros. A name that a prompt's condition lacks is taken to be T = 0 there.
        If a family cannot take rows of unlike pictures in one network call, it says of what kind a row is by the entry GEOMETRY, int64
        [1, G] (sizes in tokens, say; G may differ, 0 fills up): one call of `velocity` or `half` then has rows of one kind, and may look
        at the first row's.
        """
        ...

    # A family of two networks also has `expert_of(pipe, sigma)`, which of them says the velocity at noise levels [n], 0 or 1; where each is
    # guided in its own way, `guidance_at(pipe, sigma, guidance)`; and `trained`, the names of those that are trained. Forwards have rows of one.
    # Its `trains_at(sigma)` says of noise levels [n], before anything is loaded, whether they are those of a trained one, or None if no file tells.
    # A family with something to refuse of a policy's other settings, or to say of them, has `check_policy(policy)` and
    # `said(pipe, policy)`, sentences for `show`.
    # A family that draws clips also has `frames` and `fps`, what its checkpoint draws where a config says nothing.

    def latent_shape(self, pipe: Any, *size: int) -> tuple[int, ...]:
        """The shape of one latent as the network takes it, without the batch axis."""
        ...

    def image_tokens(self, pipe: Any, *size: int) -> int: ...

    def network_rows(self, guidance: float) -> int:
        """How many rows go through the network for one row of latents: 2 with classifier-free guidance."""
        ...

    # A family whose shift follows another rule than that of FLUX.1 has `shift_exponent`, see `OfCheckpoint`.

    def plain_call(self, *, guidance: float, text_length: int) -> dict[str, Any]:
        """What the plain pipeline is called with to be guided as here, and to read as much of a text."""
        ...

    def plain_size(self, size: Size) -> dict[str, Any]:
        """What makes the plain pipeline draw so many pixels."""
        ...

    def plain_pictures(self, pipe: Any, pictures: list[Any], size: Size) -> dict[str, Any]:
        """What gives the pictures of one prompt to the plain pipeline, as `encode` reads them where `size` is drawn."""
        ...

    # A family whose plain pipeline must be handed a `picture` in another size has `plain_lines(size)`, lines of Python for the model card.

    def velocity(
        self, pipe: Any, x: Tensor, sigma: Tensor, condition: Condition, *, guidance: float, size: Size
    ) -> Tensor:
        """The guided velocity at latents x [n, ...] and noise levels sigma [n]; same shape as x."""
        ...

    # A family that is guided from outside also has `halves`, `half` and `guided`, see `Guided`: its unconditional half can be a constant.

    def decode(self, pipe: Any, latents: Tensor, *, size: Size) -> Tensor:
        """Latents [n, ...] to images in [-1, 1], [n, 3, H, W]; to clips, [n, 3, F, H, W]."""
        ...


def guided(of_none: Tensor, of_text: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance, arXiv 2207.12598 eq. 6 with guidance = 1 + w; guidance magnifies rounding: float32 at least."""
    return of_none + guidance * (of_text - of_none)


def joined(conditions: Sequence[Condition]) -> dict[str, Tensor]:
    """Those of several prompts as one, [n, ...]: shorter texts are filled up with zeros, and masks with False.

    What some lack, as prompts without a picture among others with one, is filled up from nothing.
    """
    like = {name: value for one in conditions for name, value in one.items()}
    return {name: _filled([_present(one, name, like[name]) for one in conditions]) for name in like}


def _present(one: Condition, name: str, like: Tensor) -> Tensor:
    """An entry of a condition; [n, 0, ...] if it has none of this name."""
    return one[name] if name in one else like.new_zeros(len(next(iter(one.values()))), 0, *like.shape[2:])


def _filled(parts: Sequence[Tensor]) -> Tensor:
    longest = max((part.shape[1] for part in parts if part.dim() > 1), default=0)
    if all(part.dim() < 2 or part.shape[1] == longest for part in parts):
        return torch.cat(list(parts))
    return torch.cat(
        [torch.cat([p, p.new_zeros(p.shape[0], longest - p.shape[1], *p.shape[2:])], dim=1) for p in parts]
    )


def trimmed(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """Texts [n, T, D] and their mask [n, T] without what is padding in all rows; None for a mask that hides nothing.

    So a batch of one prompt calls the network just as the plain pipeline does.
    """
    if mask.is_meta:  # counted, not computed
        return tokens, None
    length = int(mask.sum(1).max())
    tokens, mask = tokens[:, :length], mask[:, :length]
    return tokens, None if bool(mask.all()) else mask


def resolve(path: str) -> str:
    """The folder or hub name: "zoo:NAME" is the shipped checkpoint of that name.

    "random:SIZE" stays as it is: `load_pipeline` makes random weights of that size, for benchmarks.
    """
    if path.startswith("zoo:"):
        return str(zoo.path(path.removeprefix("zoo:")))
    return str(Path(path).expanduser()) if path.startswith("~") else path


def check_pipeline(path: str, pipeline_class: str) -> None:
    """Raises ConfigError, before anything is loaded, when `path` is a local folder that holds no such pipeline."""
    if path.startswith("random:"):
        return
    path = resolve(path)
    folder = Path(path)
    if folder.is_file() or folder.suffix.lower() in SINGLE or "gguf" in re.split(r"[^a-z]+", folder.name.lower()):
        raise ConfigError(_of_single_file(path, pipeline_class))
    looks_local = path.startswith((".", "/")) or folder.exists()
    if not looks_local:
        if path.count("/") != 1:
            raise ConfigError(
                f"model path {path!r} is neither an existing folder nor a hub name of the form owner/name."
            )
        return
    if not folder.exists():
        raise ConfigError(f"model path: there is no folder {plain(path)}.")
    index = folder / "model_index.json"
    if not index.is_file():
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SINGLE)
        raise ConfigError(
            _of_single_file(str(files[0]), pipeline_class)
            if files and not (folder / "config.json").is_file()
            else f"{path} is not a diffusers checkpoint: it has no model_index.json. Give the folder that `save_pretrained` wrote."
        )
    found = read_index(folder).get("_class_name")
    if found != pipeline_class:
        raise ConfigError(
            f"{path} holds a {plain(str(found), 80)}, wanted a {pipeline_class}. Choose the policy's model kind to match."
        )


SINGLE = (".safetensors", ".ckpt", ".gguf", ".pt", ".pth", ".sft")


def _of_single_file(path: str, pipeline_class: str) -> str:
    """What to do with a checkpoint that is one file."""
    if "gguf" in path.lower():
        return (
            f"{plain(path)} is a GGUF checkpoint: quantised weights for drawing, which are not trained here. Take the diffusers checkpoint "
            "that it was made of; policy.quantize holds its frozen weights in 4 or 8 bits under an adapter."
        )
    import diffusers

    given = inspect.signature(getattr(diffusers, pipeline_class).__init__).parameters["transformer"].annotation
    network = getattr(given, "__name__", None) or str(given)
    return (
        f"{plain(path)} is a single file; wanted the folder of a diffusers checkpoint, which has text encoders and decoder too. Most are on the hub "
        "in that form. Else put the file's network into such a folder once, in Python: from diffusers import *; "
        f"n = {network}.from_single_file(FILE, config=FOLDER, subfolder='transformer'); "
        f"{pipeline_class}.from_pretrained(FOLDER, transformer=n).save_pretrained(NEW_FOLDER)."
    )


def said_of_pipeline(path: str, name: str, *, revision: str | None = None) -> Any:
    """A setting in the model_index.json of a checkpoint that is on this disk; None where it is not, or says nothing."""
    folder = on_this_disk(resolve(path), revision=revision, file="model_index.json")
    return None if folder is None else read_index(folder).get(name)


def said_of_transformer(path: str, name: str, *, revision: str | None = None) -> Any:
    """A setting in transformer/config.json of a checkpoint that is on this disk; None where it is not, or says nothing."""
    folder = on_this_disk(resolve(path), revision=revision, file="model_index.json")
    file = None if folder is None else folder / "transformer" / "config.json"
    return read_settings(file).get(name) if file is not None and file.is_file() else None


def takes_guidance(path: str) -> bool:
    """Whether the network of a checkpoint has guidance as an input, or is guided from outside; True where no file tells."""
    file = Path(resolve(path)).expanduser() / "transformer" / "config.json"
    return not file.is_file() or read_settings(file).get("guidance_embeds", True) is not False


def load_pipeline(cls: Any, family: Family, dtype: torch.dtype, *, full: bool) -> Any:
    """`from_pretrained` with the family's revision and variant, everything frozen and in eval mode."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    if family.path.startswith("random:"):
        return _frozen(random_pipeline(family.path.removeprefix("random:"), dtype), dtype, full=full)
    wide = torch.promote_types(dtype, torch.float32)
    # Read in their own precision: loading in bfloat16 and widening afterwards would round what is stored as float32.
    dtypes = {"default": dtype, "vae": wide} | (dict.fromkeys(NETWORKS, wide) if full else {})
    folder = _folder(resolve(family.path), family)
    index = read_index(folder)
    variant = family.variant
    if variant is not None and not any(Path(folder).glob(f"*/*.{variant}[.-]*")):
        raise ConfigError(f"policy.model.variant = {variant}: {family.path} has no file of weights of that variant.")
    parts = {
        name: _part(folder, name, value, dtypes.get(name, dtype), family.variant)
        for name, value in parts_of(index).items()
    }
    _check_parts(cls, parts, family)
    with refusing(family.path):
        pipe = cls.from_pretrained(folder, **parts)
    return _frozen(pipe, dtype, full=full)


def _folder(path: str, family: Family) -> str:
    """The local folder of a checkpoint; one on the hub is downloaded."""
    if Path(path).is_dir():
        return path
    from diffusers import DiffusionPipeline
    from huggingface_hub import hf_hub_download

    with refusing(path):
        index = read_index(Path(hf_hub_download(path, "model_index.json", revision=family.revision)).parent)
        absent = {name: None for name, value in index.items() if value == [None, None]}
        return str(
            DiffusionPipeline.download(
                path, revision=family.revision, variant=family.variant, trust_remote_code=False, **absent
            )
        )


def read_index(folder: str | Path) -> dict[str, Any]:
    """model_index.json: part → [library, class], or [null, null]. Raises ConfigError if it is no such thing."""
    file = Path(folder, "model_index.json")
    if not file.is_file():
        raise ConfigError(f"{folder} is not a diffusers checkpoint: it has no model_index.json.")
    return read_settings(file)


def parts_of(index: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a model_index.json that are parts; the others, lists of numbers too, are settings of the pipeline itself."""
    return {
        name: value
        for name, value in index.items()
        if not name.startswith("_")
        and isinstance(value, list)
        and not (value and all(isinstance(v, (int, float)) for v in value))
    }


def _part(folder: str, name: str, value: Any, dtype: torch.dtype, variant: str | None) -> Any:
    """One part of a pipeline, whole, in `dtype`; None if the checkpoint was saved without."""
    if value == [None, None]:
        return None
    library, kind = value if isinstance(value, list) and len(value) == 2 else (None, None)
    module = importlib.import_module(library) if library in ("diffusers", "transformers") else None
    cls = getattr(module, kind, None) if isinstance(kind, str) else None
    if not isinstance(cls, type) or not hasattr(cls, "from_pretrained"):
        raise ConfigError(
            f"{folder}: model_index.json says that {shown(name)} is {shown(value)}; wanted a class of diffusers or transformers "
            "that can be loaded."
        )
    if not Path(folder, name).is_dir():
        raise ConfigError(f"{folder}: the folder {name}, of the {kind}, is missing.")
    if not issubclass(cls, nn.Module):
        return load_other(cls, folder, subfolder=name)
    chosen = variant if variant is not None and any(Path(folder, name).glob(f"*.{variant}[.-]*")) else None
    return load_model(cls, folder, subfolder=name, dtype=dtype, variant=chosen)


def _check_parts(cls: Any, parts: Mapping[str, Any], family: Family) -> None:
    """Raises ConfigError if a part is missing, or a tokenizer goes beyond what its text encoder has rows or positions for."""
    wanted, optional = cls._get_signature_keys(cls)
    may_lack = {*optional, *cls._optional_components, *family.may_lack}
    missing = sorted(name for name in wanted if parts.get(name) is None and name not in may_lack)
    for name in (name for name in family.encoders if name.startswith("text_encoder")):
        tokenizer = name.replace("text_encoder", "tokenizer")
        tokenizer = tokenizer if tokenizer in wanted or tokenizer in parts else "processor"  # which has one
        if (parts.get(name) is None) != (parts.get(tokenizer) is None):
            missing.append(name if parts.get(name) is None else tokenizer)
        elif parts.get(name) is not None:
            reads = getattr(
                parts[tokenizer], "tokenizer", parts[tokenizer]
            )  # it may come within a processor of pictures
            check_vocabulary(reads, parts[name], where=f"{family.path}, {tokenizer}")
            if type(parts[name]).__name__.startswith("CLIP"):  # others are never filled up to their tokenizer's longest
                check_positions(reads, parts[name], where=f"{family.path}, {tokenizer}")
    if missing:
        raise ConfigError(
            f"{family.path} was saved without {' and '.join(dict.fromkeys(missing))}, which is needed here."
        )


def _frozen(pipe: Any, dtype: torch.dtype, *, full: bool) -> Any:
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    wide = torch.promote_types(dtype, torch.float32)
    for part in (*networks_of(pipe).values(), pipe.vae) if full else (pipe.vae,):
        if part.dtype != wide:
            part.to(wide)
    return pipe


def encode_prompt(pipe: Any, text: str, names: Sequence[str], **settings: Any) -> dict[str, Tensor]:
    """The pipeline's `encode_prompt` for one text, with its results named; absent ones are left out."""
    with torch.no_grad():
        # The first text encoder's device: what the pipeline would guess depends on which parts are offloaded.
        results = pipe.encode_prompt(prompt=text, device=pipe.text_encoder.device, **settings)
    return {name: value for name, value in zip(names, results, strict=True) if value is not None}
