"""InternVL 3 and 3.5 as transformers has them (InternVLForConditionalGeneration): pictures as tiles of one size, positions in order.

A picture is cut into tiles, each of them 256 visual tokens; so is each frame of a video, with "Frame1: " before it. The language
model is a Qwen2 or Qwen3 that knows of one axis of positions only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from grpo_mm.pipelines.vlm.models.family import Family


@dataclass(frozen=True)
class InternVl(Family):
    """Frames are tiles of "image" as well: the processor puts all pixels into one tensor, in the order of the text."""

    leaves_positions_open = False
    tower_has_windows = False
    fits_media = False

    def tower(self, model: Any) -> list[nn.Module]:
        return [model.model.vision_tower, model.model.multi_modal_projector]

    def tower_blocks(self, model: Any) -> nn.ModuleList:
        return model.model.vision_tower.encoder.layer

    def frames_a_step(self, config: Any) -> int:
        return 1

    def refused_media(self, kinds: Sequence[str], frames: Sequence[int]) -> str:
        if len(set(frames)) < 2:
            return ""
        return f"its videos have {', '.join(map(str, frames))} frames; InternVL's processor takes several of one length only"

    def finished(self, inputs: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
        types = (inputs["input_ids"] == config.image_token_id).long()
        inputs.pop("num_patches", None)
        return inputs | {"mm_token_type_ids": types}

    def placeholders(self, config: Any, ids_L: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"image": ids_L == config.image_token_id}

    def visual_tokens(self, config: Any, inputs: Mapping[str, Tensor]) -> dict[str, int]:
        pixels = inputs.get("pixel_values")
        return {"image": 0 if pixels is None else len(pixels) * config.image_seq_length}

    def features(
        self, model: Any, inputs: Mapping[str, Tensor], *, kind: str, device: torch.device, **given: Any
    ) -> Tensor | None:
        pixels = inputs.get("pixel_values")
        if pixels is None:
            return None
        found = model.model.get_image_features(pixels.to(device), return_dict=True, **given)
        return found.pooler_output.flatten(0, 1)[None]

    def positions(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        return torch.arange(inputs["input_ids"].shape[1]).expand(3, -1)

    def rotary(self, position_3nL: Tensor) -> Tensor:
        return position_3nL[0]

    def tile(self, config: Any) -> tuple[int, tuple[int, ...]]:
        vision = config.vision_config
        return config.image_seq_length, (vision.num_channels, *vision.image_size)
