"""A context as vLLM takes it: the very ids and pixels that the trainer's processor made, so that nothing is decoded or resized twice."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from grpo_mm.pipelines.vlm.prompting.contexts import Context

PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
CLOCK = "second_per_grid_ts"


@dataclass(eq=False)
class EngineInputs:
    """Makes them once for a context and keeps them as long as it lives."""

    config: Any
    """Of the model."""
    _made: WeakKeyDictionary[Context, Any] = field(default_factory=WeakKeyDictionary)

    def __call__(self, context: Context) -> Any:
        if context not in self._made:
            self._made[context] = self._input(context)
        return self._made[context]

    def _input(self, context: Context) -> Any:
        from vllm.inputs import mm_input, tokens_input
        from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems

        ids, kinds = context.input_ids_L.tolist(), [k for k in PIXELS if f"{k}_grid_thw" in context.inputs]
        if not kinds:
            return tokens_input(ids)
        tensors, fields, places, names = {}, {}, {}, {}
        for kind in kinds:
            grid = context.inputs[f"{kind}_grid_thw"]
            fields[PIXELS[kind]] = MultiModalFieldConfig.flat_from_sizes(kind, grid.prod(-1))
            fields[f"{kind}_grid_thw"] = MultiModalFieldConfig.batched(kind, keep_on_cpu=True)
            tensors |= {name: context.inputs[name] for name in (PIXELS[kind], f"{kind}_grid_thw")}
            places[kind] = self._places(context.input_ids_L, kind, grid)
            names[kind] = _names(kind, grid, context.inputs)
        if CLOCK in context.inputs:
            fields[CLOCK] = MultiModalFieldConfig.batched("video", keep_on_cpu=True)
            tensors[CLOCK] = torch.as_tensor(context.inputs[CLOCK]).float()
        return mm_input(ids, MultiModalKwargsItems.from_hf_inputs(tensors, fields), names, places)

    def _places(self, ids_L: Tensor, kind: str, grid: Tensor) -> list[Any]:
        """Where each picture or video stands: from its first placeholder to its last."""
        from vllm.multimodal.inputs import PlaceholderRange

        token = getattr(self.config, f"{kind}_token_id")
        merged = self.config.vision_config.spatial_merge_size**2
        # Times stand between the frames of a Qwen3-VL video, and the engine looks for <|vision_start|> inside.
        lead = int(kind == "video" and self.config.model_type == "qwen3_vl")
        found = []
        for at in torch.nonzero(ids_L == token).flatten().split((grid.prod(-1) // merged).tolist()):
            first, last = int(at[0]) - lead, int(at[-1])
            inside = ids_L[first : last + 1] == token
            found.append(PlaceholderRange(first, last + 1 - first, None if bool(inside.all()) else inside))
        return found


def _names(kind: str, grid: Tensor, inputs: Mapping[str, Tensor]) -> list[str]:
    """Of what each picture or video shows: the engine takes what it knows by a name for the same."""
    clock = [""] * len(grid) if CLOCK not in inputs or kind == "image" else torch.as_tensor(inputs[CLOCK]).tolist()
    parts = inputs[PIXELS[kind]].split(grid.prod(-1).tolist())
    return [
        hashlib.blake2b(
            repr((kind, part.dtype, grid[i].tolist(), clock[i])).encode() + part.contiguous().view(torch.uint8).numpy().tobytes(),
            digest_size=16,
        ).hexdigest()
        for i, part in enumerate(parts)
    ]  # fmt: skip
