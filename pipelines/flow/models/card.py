"""The lines of plain diffusers that use what a run left; they stand in the model card."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grpo_mm.outside import as_python, from_root
from grpo_mm.pipelines.flow.models.adapters import adapted
from grpo_mm.pipelines.flow.models.checkpoint import Checkpoint
from grpo_mm.pipelines.flow.models.family import resolve
from grpo_mm.pipelines.flow.models.networks import SECOND

FOLDER = '"path/of/this/folder"'


class Code(str):
    """Python text, which stands in a call as it is."""


MERGED = "merged"
"""Where, beside an adapter, the one lies that was merged before training."""


def loading_code(
    config: Any,
    pipe: Any,
    *,
    merged: Sequence[str] = (),
    sigmas: str | None = None,
    scheduler: Mapping[str, Any] | None = None,
    steps: int | None = None,
    pictured: bool = False,
) -> str:
    """Python text for a `FlowPolicyConfig` and its pipeline, with the settings that the policy was trained at.

    Args:
        merged: the parts of the pipeline that an adapter was merged into before training.
        sigmas: Python text of the noise levels that the pipeline is called with; None: the pipeline's own.
        scheduler: settings of the Euler scheduler that shifts them; None: the pipeline's own does.
        pictured: whether prompts had pictures.
        steps: how many, where there are no `sigmas` that tell it.
    """
    name = type(pipe).__name__
    adapter, euler = config.lora is not None and not config.save_merged, "FlowMatchEulerDiscreteScheduler"
    frames = config.size(evaluation=True)[:-2]
    lines = ["import numpy"] if sigmas and "numpy" in sigmas else []
    lines += ["import diffusers"] if pictured or frames else []
    lines += ["import torch", f"from diffusers import {', '.join([euler] * (scheduler is not None) + [name])}", ""]
    lines.append(
        f"pipe = {name}.from_pretrained({', '.join([_source(config, adapter=adapter), *_settings(config, pipe, adapter=adapter)])})"
    )
    if merged and adapter:
        lines += [
            *_loads(f'{FOLDER[:-1]}/{MERGED}"', merged, "  # was merged before training"),
            f"pipe.fuse_lora(components={as_python(list(merged))})",
            "pipe.unload_lora_weights()",
        ]
    if adapter:
        lines += _loads(FOLDER, adapted(pipe))
    if scheduler is not None:
        lines.append(f"pipe.scheduler = {euler}({_arguments(scheduler)})  # the run's grid, not the checkpoint's")
    if config.vae_tiling:
        lines.append("pipe.vae.enable_tiling()")
    called = getattr(config.model, "plain_call", Checkpoint(config.model.path).plain_call)
    sized = getattr(config.model, "plain_size", Checkpoint(config.model.path).plain_size)
    call = {
        **sized(config.size(evaluation=True)),
        **called(guidance=config.guidance, text_length=config.text_length),
    }  # fmt: skip
    if sigmas is None and steps is not None:
        call["num_inference_steps"] = steps
    takes = inspect.signature(type(pipe).__call__).parameters
    if sigmas is not None:
        lines.append(f"sigmas = {sigmas}  # as many steps as the run's evaluation takes")
    if sigmas is not None and "sigmas" not in takes:
        lines += [
            "set_timesteps = pipe.scheduler.set_timesteps  # the pipeline does not take noise levels itself",
            "pipe.scheduler.set_timesteps = lambda steps, device=None: set_timesteps(sigmas=sigmas, device=device)",
        ]
        call["num_inference_steps"] = Code("len(sigmas)")
    call_text = _arguments(call) + (", sigmas=sigmas" if sigmas is not None and "sigmas" in takes else "")
    if pictured:
        opened, given = _opened(config)
        lines, call_text = [*lines, *opened], f"{given}, {call_text}"
    comes_first = list(takes)[1] == "prompt"
    prompt = '"a prompt"' if comes_first else 'prompt="a prompt"'
    if frames:
        export = f'diffusers.utils.export_to_video(frames, "clip.mp4", fps={config.frame_rate:g})  # by imageio and imageio-ffmpeg'
        return "\n".join([*lines, f"frames = pipe({prompt}, {call_text}).frames[0]", export])
    return "\n".join([*lines, f"image = pipe({prompt}, {call_text}).images[0]"])


def _opened(config: Any) -> tuple[list[str], str]:
    """(lines that open the pictures of a prompt, how they are given)."""
    several = f"  # of several: image=[picture, …], up to {config.pictures[1]}" if config.pictures[1] > 2 else ""
    lines = [f'picture = diffusers.utils.load_image("path/or/address/of/a/picture"){several}']
    lines += getattr(config.model, "plain_lines", lambda size: [])(config.size(evaluation=True)[-2:])
    if config.pictures[0] != 2:
        return lines, "image=picture"
    return [
        *lines,
        'last = diffusers.utils.load_image("path/or/address/of/the/last/picture")',
    ], "last_image=last, image=picture"


def _loads(folder: str, parts: Iterable[str], why: str = "") -> list[str]:
    """Of an adapter that lies as `adapters.files_of` says."""
    parts = list(parts)
    lines = [] if parts == [SECOND] else [f"pipe.load_lora_weights({folder}){why}"]
    more = f'pipe.load_lora_weights({folder[:-1]}/{SECOND}", load_into_transformer_2=True){why}'
    return [*lines, more] if SECOND in parts else lines


def _source(config: Any, *, adapter: bool) -> str:
    """Of the weights below the adapter, or of the whole pipeline that a run left."""
    return as_python(from_root(resolve(config.model.path))) if adapter else FOLDER


def _settings(config: Any, pipe: Any, *, adapter: bool) -> list[str]:
    """What tells `from_pretrained` which files to read and how."""
    asked = {name: getattr(config.model, name, None) for name in ("revision", "variant") if adapter}
    settings = [f"{name}={as_python(value)}" for name, value in asked.items() if value is not None]
    absent = [part for part, value in pipe.components.items() if value is None]
    absent = [part for kind in ("encoder", "tokenizer") for part in absent if kind in part]
    return [*settings, *(f"{part}=None" for part in absent), f"dtype=torch.{config.dtype}"]


def _arguments(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name}={value if isinstance(value, Code) else as_python(value)}" for name, value in values.items()
    )
