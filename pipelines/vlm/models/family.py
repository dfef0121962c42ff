"""What the pipeline asks of a model family; entries of `families` fill it in, and override what a family does in another way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.vlm.models.positions import VideoPositions, follow_authors

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a language layer, under the same names in most families."""


@dataclass(frozen=True)
class Family:
    """How a family tells time, and how it takes visual features.

    Example: Qwen2.5-VL at one frame a second and two frames a patch: a step of the temporal grid is 2 s, and with
    tokens_per_second = 2 the temporal positions of a video run 0, 4, 8, …
    """

    model_type: str
    time: Literal["order", "seconds_per_grid", "text"]
    """order: temporal positions count frames, seconds are unknown to the model. seconds_per_grid: they are scaled by the
    processor's `second_per_grid_ts`. text: a time stamp stands before each frame of a video."""
    deepstack: bool = False
    """Features of early vision layers are added to the first language layers."""
    recurrent: bool = False
    """Some language layers carry a state from token to token in place of keys and values (linear attention)."""
    experts: bool = False
    """Language layers have experts that a router chooses from; their weights stand in stacked tensors."""
    more_linear: tuple[str, ...] = ()
    """Linear layers of a language layer beside LINEAR."""
    not_adapted: tuple[str, ...] = ()
    """Of LINEAR, what no adapter is put on."""
    without: Mapping[str, str] = field(default_factory=dict)
    """Settings that do not go with the family, and why."""

    def refuse(self, setting: str, *, instead: str) -> None:
        """Raises ConfigError if the setting does not go with the family."""
        if setting in self.without:
            raise ConfigError(f"{setting}: {self.without[setting]} ({self.model_type}). {instead}")

    def said(self, *, adapter: bool, experts: bool = False) -> list[str]:
        """What a user should know of the family before a run. experts: whether the adapter is on them too."""
        linear = (
            ["linear attention as torch code has it; the package flash-linear-attention keeps less"]
            if self.recurrent
            else []
        )
        if not self.experts:
            return linear
        trained = "experts and router are trained with the rest"
        if adapter:
            left = f", and {', '.join(self.not_adapted)}" if self.not_adapted else ""
            trained = (
                f"the adapter leaves {'the router as it is' if experts else 'experts and router as they are'}{left}"
            )
            trained += ", and is on each expert's gate, up and down projections" if experts else ""
        return [*linear, f"mixture of experts: {trained}; the router's loss for balance is no part of the objective"]

    def tower(self, model: Any) -> list[nn.Module]:
        """What makes visual features, the vision tower first."""
        return [model.model.visual]

    def tower_blocks(self, model: Any) -> nn.ModuleList:
        """The tower's blocks, each of which can be computed apart."""
        return model.model.visual.blocks

    @property
    def tower_has_windows(self) -> bool:
        """Whether the tower's attention is handed the borders of windows, as those of Qwen are."""
        return True

    @property
    def fits_media(self) -> bool:
        """Whether media that make frames can make them as the processor would, so that nothing resizes them again."""
        return True

    def refused_media(self, kinds: Sequence[str], frames: Sequence[int]) -> str:
        """Why the library has no way to show what a prompt brings; "" where it has one.

        Args:
            kinds: "image" or "video", one for each of the media, in order. frames: of each video.
        """
        return ""

    def tile(self, config: Any) -> tuple[int, tuple[int, ...]] | None:
        """(visual tokens, pixels) of a tile, where pictures and frames are cut into tiles of one size."""
        return None

    def frames_a_step(self, config: Any) -> int:
        """Frames of a video that share their visual tokens."""
        return config.vision_config.temporal_patch_size

    def finished(self, inputs: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
        """What the processor made, with the kind of each token (0 text, 1 picture, 2 video) where it leaves that out."""
        inputs.setdefault("mm_token_type_ids", torch.zeros_like(inputs["input_ids"]))
        return inputs

    def placeholders(self, config: Any, ids_L: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Where visual tokens of each kind stand, [L] bool each, of the first L tokens of a prompt."""
        return {kind: ids_L == getattr(config, f"{kind}_token_id") for kind in ("image", "video")}

    def visual_tokens(self, config: Any, inputs: Mapping[str, Tensor]) -> dict[str, int]:
        """How many visual tokens of each kind the pixels make."""
        merge = config.vision_config.spatial_merge_size**2
        grids = {kind: inputs.get(f"{kind}_grid_thw") for kind in ("image", "video")}
        return {kind: 0 if grid is None else int(grid.prod(-1).sum()) // merge for kind, grid in grids.items()}

    def rotary(self, position_3nL: Tensor) -> Tensor:
        """Positions as the language model takes them."""
        return position_3nL

    def video_metadata(self, time_F: Tensor, fps: float) -> Any:
        """What the processor must be told of frames that are sampled already; without it, it assumes 24 frames a second.

        Args:
            time_F: [F] seconds of each frame. fps: of the sampled frames.
        """
        from transformers.video_utils import VideoMetadata

        if self.time == "text":  # stamps are index / fps: indices in seconds give the exact times
            return VideoMetadata(total_num_frames=len(time_F), fps=1.0, frames_indices=time_F.tolist())
        return VideoMetadata(total_num_frames=len(time_F), fps=fps, frames_indices=list(range(len(time_F))))

    @property
    def leaves_positions_open(self) -> bool:
        """Whether rules differ in where text goes on after a video. Where times are text, frames are pictures to all."""
        return self.time != "text"

    def follow(self, model: Any, rule: VideoPositions) -> None:
        """Makes the model find its positions by the rule; "library": by the installed transformers' own."""
        if rule == "authors" and self.leaves_positions_open:
            follow_authors(model)

    def positions(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """Rotary positions of one prompt by the rule that the model follows, [3, L] int64; `inputs` as the processor made them."""
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw")
        names += ("second_per_grid_ts",) if self.time == "seconds_per_grid" else ()
        position_3NL, _ = model.model.get_rope_index(**{name: inputs[name] for name in names if name in inputs})
        return position_3NL[:, 0]

    def features(
        self, model: Any, inputs: Mapping[str, Tensor], *, kind: str, device: torch.device, **given: Any
    ) -> Tensor | None:
        """`given`: more for the attention of the tower. Of kind "image" or "video", [1 + D, tokens, width]: visual tokens in order, then (deepstack) those for the first D language layers. None where the prompt has nothing of the kind."""
        pixels = inputs.get("pixel_values" if kind == "image" else "pixel_values_videos")
        if pixels is None:
            return None
        grid = inputs[f"{kind}_grid_thw"].to(device)
        found = getattr(model.model, f"get_{kind}_features")(pixels.to(device), grid, return_dict=True, **given)
        levels = [found.pooler_output, *(found.deepstack_features if self.deepstack else ())]
        # One tensor for each picture or video, or (deepstack in older versions) one for all.
        return torch.stack([level if torch.is_tensor(level) else torch.cat(list(level)) for level in levels])
