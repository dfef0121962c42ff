"""One drawing by the plain pipeline, as a user would call it, and where its decoder looks for each number of a latent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpo_mm.pipelines.flow.conforming.heard import Heard, listening
from grpo_mm.pipelines.flow.conforming.pictured import in_turn
from grpo_mm.pipelines.flow.models.family import Size, read_index
from grpo_mm.pipelines.flow.models.networks import networks_of
from grpo_mm.pipelines.flow.own_schedule import followed
from grpo_mm.pipelines.weight_files import on_this_disk
from grpo_mm.weights.weight_files import refusing

TEXTS = ("a red circle", "a photo of two small blue squares and a green circle")
"""Of two lengths, drawn in one batch: what is padding in one must not be seen."""
STEPS = 3


@dataclass(frozen=True)
class Drawing:
    """How both sides draw."""

    size: Size
    """Height and width in pixels, of clips after the number of frames; they differ, so that a side taken for the other shows."""
    guidance: float
    text_length: int
    seed: int = 0
    texts: tuple[str, ...] = TEXTS
    pictures: tuple[tuple[Any, ...], ...] = ((),) * len(TEXTS)
    """PIL pictures of each text's prompt."""

    @property
    def batches(self) -> list[list[int]]:
        """Which texts are drawn together: all, or each alone if some have pictures."""
        every = range(len(self.texts))
        return [[i] for i in every] if any(self.pictures) else [list(every)]


@dataclass(frozen=True)
class Plain:
    """What the plain pipeline said."""

    heard: Heard
    sigma_S1: Tensor
    picture: Tensor
    """[n, 3, H, W] in 0..1, of clips [n, F, 3, H, W]."""
    sources: Tensor | None
    """Of the numbers that the decoder is given for one picture, in their shape: which of a latent's, counted from 1, each comes
    from; 0: from none. None where it was not asked for."""


def drawn(pipe: Any, family: Any, how: Drawing, *, sources: bool = True, along: Plain | None = None) -> Plain:
    """Draws the texts with the plain pipeline; each step from the latents of the drawing `along`, if there is one."""
    heard, pictures = [], []
    for batch in how.batches:
        asked = dict(num_inference_steps=STEPS, output_type="pt", return_dict=False)
        if along is not None:
            asked["callback_on_step_end"] = partial(_as_there, along, batch)
        with listening(pipe) as said, torch.no_grad():
            pictures.append(pipe(**asked, **_settings(pipe, family, how, batch))[0])
        heard.append(said)
    sigma_S1 = pipe.scheduler.sigmas.detach().float().cpu().clone()
    found = _sources(pipe, heard[0], _settings(pipe, family, how, how.batches[0])) if sources else None
    return Plain(in_turn(heard), sigma_S1, in_three(family, torch.cat(pictures).float().cpu()), found)


def _as_there(along: Plain, batch: list[int], pipe: Any, step: int, *_: Any) -> dict[str, Tensor]:
    return {"latents": along.heard.steps[step].after[batch].to(pipe.transformer.device)}


def in_three(family: Any, picture: Tensor) -> Tensor:
    """Pictures in 0..1 with three channels: those that have an opaque one are laid on what the family lays them on."""
    return picture if picture.shape[-3] == 3 else family.in_three(picture * 2 - 1) / 2 + 0.5


def _settings(pipe: Any, family: Any, how: Drawing, batch: list[int]) -> dict[str, Any]:
    """What the pipeline is called with for some of the texts; a text that is drawn alone has noise of its own."""
    call = family.plain_call(guidance=how.guidance, text_length=how.text_length) | dict(
        getattr(family, "for_comparison", {})
    )
    each = {name: [value] * len(batch) if isinstance(value, str) else value for name, value in call.items()}
    generator = torch.Generator().manual_seed(how.seed + batch[0])
    pictures = [how.pictures[i] for i in batch if how.pictures[i]]
    given = family.plain_pictures(pipe, list(*pictures), how.size) if pictures else {}
    size = getattr(family, "plain_size", lambda size: {"height": size[0], "width": size[1]})(how.size)
    return {"prompt": [how.texts[i] for i in batch], **size, "generator": generator, **each, **given}


def _sources(pipe: Any, heard: Heard, settings: Mapping[str, Any]) -> Tensor:
    """The last latents are replaced by ones that spell the number of each element in bits; scale and shift do not matter."""
    latents = heard.steps[-1].after
    found = [_decoder_input(pipe, heard, settings, probe) for probe in spelled(latents)]
    return read(found)


def spelled(latents: Tensor) -> list[Tensor]:
    """Probes in the shape of a batch of latents [n, ...]: zeros, then one for each bit of the numbers 1, 2, … of its elements."""
    number = torch.arange(1, latents[0].numel() + 1).view(latents.shape[1:])
    bits = range(math.floor(math.log2(latents[0].numel())) + 1)
    return [torch.zeros_like(latents)] + [((number >> b) & 1).to(latents).expand_as(latents) for b in bits]


def read(found: Sequence[Tensor]) -> Tensor:
    """From what the decoder was given for each of `spelled`, [...] the number that each of its elements comes from."""
    base, *others = found
    return sum(((other - base).abs() > 1e-6).long() << b for b, other in enumerate(others))


def _decoder_input(pipe: Any, heard: Heard, settings: Mapping[str, Any], probe: Tensor) -> Tensor:
    """What the decoder gets for these last latents, of the first picture; network and decoder repeat what they said."""
    output = heard.calls[0].output
    networks, decode, taken = networks_of(pipe).values(), pipe.vae.decode, []
    forwards = [network.forward for network in networks]

    def said(*args: Any, **kwargs: Any) -> tuple[Any]:
        return ([v.to(probe_device) for v in output] if isinstance(output, list) else output.to(probe_device),)

    def given(latents: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        taken.append(latents.detach().float().cpu())
        raise _Seen

    probe_device = pipe.transformer.device
    pipe.vae.decode = given
    for network in networks:
        network.forward = said
    try:
        with torch.no_grad():
            pipe(
                num_inference_steps=STEPS,
                output_type="pt",
                callback_on_step_end=lambda *_: {"latents": probe.to(probe_device)},
                **settings,
            )
    except _Seen:
        pass
    finally:
        pipe.vae.decode = decode
        for network, forward in zip(networks, forwards):
            network.forward = forward
    return taken[0][0]


class _Seen(Exception):
    """Nothing after the decoder's input is wanted."""


def plain_pipeline(family: Any, folder: str | Path, dtype: torch.dtype, device: torch.device) -> Any:
    """As a user loads it, with the scheduler whose steps are followed here; parts that the checkpoint was saved without are left out, as its card says."""
    import diffusers
    from transformers.utils import logging

    diffusers.utils.logging.disable_progress_bar()
    logging.disable_progress_bar()
    place = on_this_disk(str(folder), revision=family.revision, file="model_index.json") or Path(folder)
    absent = {name: None for name, value in read_index(place).items() if value == [None, None]}
    with refusing(str(folder)):
        pipe = getattr(diffusers, family.pipeline).from_pretrained(place, dtype=dtype, variant=family.variant, **absent)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = followed(pipe.scheduler)
    return pipe.to(device)
