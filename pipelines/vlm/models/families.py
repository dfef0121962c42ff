"""What differs between the model families; one small entry each, recognised by `model_type` in config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.outside import plain, shown
from grpo_mm.pipelines import zoo
from grpo_mm.pipelines.vlm.models.positions import VideoPositions, follow_authors
from grpo_mm.pipelines.weight_files import on_this_disk
from grpo_mm.weights.weight_files import read_settings

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a language layer, under the same names in all families."""


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

    def features(self, model: Any, pixels: Tensor, grid: Tensor, *, kind: str, **given: Any) -> Tensor:
        """`given`: more for the attention of the tower. Of kind "image" or "video", [1 + D, tokens, width]: visual tokens in order, then (deepstack) those for the first D language layers."""
        found = getattr(model.model, f"get_{kind}_features")(pixels, grid, return_dict=True, **given)
        levels = [found.pooler_output, *(found.deepstack_features if self.deepstack else ())]
        # One tensor for each picture or video, or (deepstack in older versions) one for all.
        return torch.stack([level if torch.is_tensor(level) else torch.cat(list(level)) for level in levels])


FAMILIES = {
    family.model_type: family
    for family in (
        Family("qwen2_vl", "order"),
        Family("qwen2_5_vl", "seconds_per_grid"),
        Family("qwen3_vl", "text", deepstack=True),
    )
}


def family_of(model_type: str, *, path: str) -> Family:
    """Raises ConfigError for a model type that is not in the table."""
    if model_type not in FAMILIES:
        raise ConfigError(f"{path} holds a {model_type!r} model; wanted one of {', '.join(FAMILIES)}.")
    return FAMILIES[model_type]


def resolve(path: str) -> str:
    """The folder or hub name: "zoo:NAME" is the shipped checkpoint of that name."""
    if path.startswith("zoo:"):
        return str(zoo.path(path.removeprefix("zoo:")))
    return str(Path(path).expanduser()) if path.startswith("~") else path


def check_model(path: str) -> None:
    """Raises ConfigError, before anything is loaded, when `path` is a local folder that holds no such model."""
    folder = Path(resolve(path))
    if not folder.exists() and not path.startswith((".", "/", "~")):
        if path.count("/") != 1:
            raise ConfigError(
                f"policy.path {path!r} is neither an existing folder nor a hub name of the form owner/name."
            )
        return
    if not folder.exists():
        raise ConfigError(f"policy.path: there is no folder {plain(path)}.")
    file = folder / "config.json"
    if not file.is_file():
        raise ConfigError(f"{path} is no transformers checkpoint: it has no config.json.")
    family_of(plain(str(read_settings(file).get("model_type")), 80), path=path)


def positions_on_disk(path: str) -> int | None:
    """Tokens of the longest prompt with its answer, as the settings of a checkpoint say that is here; None where none says."""
    folder = on_this_disk(resolve(path), file="config.json")
    return None if folder is None else positions_of(read_settings(folder / "config.json"), where=path)


def positions_of(settings: Mapping[str, Any], *, where: str) -> int | None:
    """`max_position_embeddings` of the language model.

    Raises:
        ConfigError: it is no whole number above 0.
    """
    text = settings.get("text_config")
    found = (text if isinstance(text, Mapping) else settings).get("max_position_embeddings")
    if found is not None and (isinstance(found, bool) or not isinstance(found, int) or found < 1):
        raise ConfigError(
            f"{where}, config.json: max_position_embeddings is {shown(found)}; wanted a whole number above 0."
        )
    return found


def adapter_targets(names: Sequence[str] = LINEAR) -> str:
    """A pattern for peft that names linear layers of the language model and can never match one of the vision tower.

    Module names in full read `model.language_model.layers.0.self_attn.q_proj`, those of the tower `model.visual.…`.
    """
    return rf"(.*\.)?language_model\.layers\.\d+\.(.*\.)?({'|'.join(re.escape(name) for name in names)})"
