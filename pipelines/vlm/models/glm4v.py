"""GLM-4.1V, GLM-4.5V: videos are pictures between two tokens, each followed by its second; three axes of positions, as in Qwen2-VL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from grpo_mm.pipelines.vlm.models.family import Family


@dataclass(frozen=True)
class Glm4v(Family):
    """Visual tokens of a video have the id of a picture's: which they are, the processor says by token types (1, 2)."""

    fits_media = False

    def refused_media(self, kinds: Sequence[str], frames: Sequence[int]) -> str:
        if len(set(kinds)) < 2:
            return ""
        return "it has both pictures and videos; the library's own GLM-4V model takes the one or the other in a prompt"

    def placeholders(self, config: Any, ids_L: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        types_L = inputs["mm_token_type_ids"][0, : len(ids_L)]
        return {kind: types_L == number for kind, number in (("image", 1), ("video", 2))}
