"""A context as vLLM takes it: the very ids and pixels that the trainer's processor made, so that nothing is decoded or resized twice."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from grpo_mm.pipelines.vlm.prompting.contexts import Context

PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
CLOCK = "second_per_grid_ts"


@dataclass(frozen=True)
class Place:
    """Where a picture or a video stands in the tokens."""

    first: int
    length: int
    inside: tuple[bool, ...] | None = None
    """[length] which of them stand for its features; None: all."""


@dataclass(frozen=True)
class Item:
    """A picture or a video of a prompt."""

    name: str
    """Of what it shows: the engine takes what it knows by a name for the same."""
    place: Place


@dataclass(frozen=True, eq=False)
class EngineInput:
    """Of one prompt, without vLLM's own types, so that it can be sent to another process."""

    ids: list[int]
    items: dict[str, list[Item]]
    """Kind (image, video) -> in the order of the prompt. Empty: text alone."""
    tensors: dict[str, Tensor]
    """Pixels, grids and clocks of all of them, under the names of the processor."""

    @cached_property
    def for_vllm(self) -> Any:
        """As vLLM's engine takes it."""
        from vllm.inputs import mm_input, tokens_input
        from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems, PlaceholderRange

        if not self.items:
            return tokens_input(self.ids)
        fields = {}
        for kind in self.items:
            fields[PIXELS[kind]] = MultiModalFieldConfig.flat_from_sizes(
                kind, self.tensors[f"{kind}_grid_thw"].prod(-1)
            )
            fields[f"{kind}_grid_thw"] = MultiModalFieldConfig.batched(kind, keep_on_cpu=True)
        if CLOCK in self.tensors:
            fields[CLOCK] = MultiModalFieldConfig.batched("video", keep_on_cpu=True)
        places, names = {}, {}
        for kind, items in self.items.items():
            names[kind] = [item.name for item in items]
            places[kind] = [
                PlaceholderRange(p.first, p.length, None if p.inside is None else torch.tensor(p.inside))
                for p in (item.place for item in items)
            ]
        return mm_input(self.ids, MultiModalKwargsItems.from_hf_inputs(self.tensors, fields), names, places)


@dataclass(eq=False)
class EngineInputs:
    """Makes them once for a context and keeps them as long as it lives."""

    config: Any
    """Of the model."""
    _made: WeakKeyDictionary[Context, EngineInput] = field(default_factory=WeakKeyDictionary)

    def __call__(self, context: Context) -> EngineInput:
        if context not in self._made:
            self._made[context] = self._input(context)
        return self._made[context]

    def _input(self, context: Context) -> EngineInput:
        tensors: dict[str, Tensor] = {}
        items = {}
        for kind in PIXELS:
            if f"{kind}_grid_thw" in context.inputs:
                grid = context.inputs[f"{kind}_grid_thw"]
                tensors |= {name: context.inputs[name] for name in (PIXELS[kind], f"{kind}_grid_thw")}
                places = self._places(context.input_ids_L, kind, grid)
                items[kind] = [Item(*pair) for pair in zip(_names(kind, grid, context.inputs), places, strict=True)]
        if items and CLOCK in context.inputs:
            tensors[CLOCK] = torch.as_tensor(context.inputs[CLOCK]).float()
        return EngineInput(context.input_ids_L.tolist(), items, tensors)

    def _places(self, ids_L: Tensor, kind: str, grid: Tensor) -> list[Place]:
        """From the first placeholder to the last."""
        token = getattr(self.config, f"{kind}_token_id")
        merged = self.config.vision_config.spatial_merge_size**2
        # Times stand between the frames of a Qwen3-VL video, and the engine looks for <|vision_start|> inside.
        lead = int(kind == "video" and self.config.model_type == "qwen3_vl")
        found = []
        for at in torch.nonzero(ids_L == token).flatten().split((grid.prod(-1) // merged).tolist()):
            first, last = int(at[0]) - lead, int(at[-1])
            inside = ids_L[first : last + 1] == token
            found.append(Place(first, last + 1 - first, None if bool(inside.all()) else tuple(inside.tolist())))
        return found


def _names(kind: str, grid: Tensor, inputs: Mapping[str, Tensor]) -> list[str]:
    clock = [""] * len(grid) if CLOCK not in inputs or kind == "image" else torch.as_tensor(inputs[CLOCK]).tolist()
    parts = inputs[PIXELS[kind]].split(grid.prod(-1).tolist())
    return [
        hashlib.blake2b(
            repr((kind, part.dtype, grid[i].tolist(), clock[i])).encode() + part.contiguous().view(torch.uint8).numpy().tobytes(),
            digest_size=16,
        ).hexdigest()
        for i, part in enumerate(parts)
    ]  # fmt: skip
