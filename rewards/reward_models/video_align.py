"""VideoAlign's VideoReward: Qwen2-VL that rates a clip at three reward tokens."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from grpo_mm.errors import ConfigError, UserError
from grpo_mm.identity import FREE
from grpo_mm.outside import finite_number, shown
from grpo_mm.rewards.reward_models.body import (
    FACTOR,
    FILES,
    PIXELS,
    BodyReward,
    linear_head,
    ours,
    question,
    template_of,
    tensors_of,
)
from grpo_mm.rewards.shared.weights import DType
from grpo_mm.types import Clip, Prompt
from grpo_mm.weights.weight_files import read_settings

DIMENSIONS = ("VQ", "MQ", "TA")
"""Visual quality, motion quality, text alignment: the order of the tokens and of what the head says."""
TOKENS = tuple(f"<|{name}_reward|>" for name in DIMENSIONS)
FRAME_FACTOR, FEWEST_FRAMES, MOST_FRAMES = 2, 4, 768
QUESTION = f"""Rate a generated video in three respects, each by itself, from 0 (worst) to 10 (best).

Visual quality: is each frame free of errors, clear, rich in detail and pleasant to look at?
Rating of visual quality: {TOKENS[0]}

Motion quality: is the movement steady, natural, fluid, clear and of enough extent?
Rating of motion quality: {TOKENS[1]}

Text alignment: do subjects, movements, surroundings, style and camera follow the text?
Text: {{prompt}}
Rating of text alignment: {TOKENS[2]}
"""


@dataclass
class VideoAlign(BodyReward):
    """score = the sum of VQ, MQ and TA, each (what the head says - mean) / std of the checkpoint's own settings; the three are parts.

    Of a clip, frames are taken evenly for `fps` a second (an even number, at least 4), and brought to at most 256 tokens each.

    Source: arXiv:2501.13918; inference.py, train_reward.py, prompt_template.py and vision_process.py of KwaiVGI/VideoAlign. Deviates: the
    question is in our own words, so the published weights score a little differently: give the authors' as `template`; a prompt that
    names a special token has it broken up. Uncertain, as the weights could not be had here: the names in their files, and how a number
    of frames is rounded (down to an even one, as qwen_vl_utils does now).
    """

    goldens: ClassVar[str] = "clips"
    """What it is tried on (`grpo_mm/golden`)."""
    tokens: ClassVar[tuple[str, ...]] = TOKENS
    _medium: ClassVar[str] = "video"
    path: str = "hf-hub:KwaiVGI/VideoReward/model_config.json"
    """The published folder: model_config.json and model.pth or model.safetensors, there or in checkpoint-N; or that name on the hub."""
    model: str = "Qwen/Qwen2-VL-2B-Instruct"
    """Where the architecture, the tokenizer and the preparation of frames come from; a name or a folder."""
    template: str | None = None
    """A text file with the question: {prompt} and the three reward tokens stand in it once; null: our own words."""
    takes: ClassVar[str] = "clips"
    clip_fps: float = 8.0
    """Frames a second of clips that do not say it themselves (tensors); `Clips` do, and this is not read then."""
    fps: float = 2.0
    """Frames a second that the network sees, as published."""
    pixels: int = PIXELS
    """Of a frame, at most, as published."""
    batch_size: int = field(default=2, metadata=FREE)
    """Clips in one forward; changes memory and speed, not the scores."""
    dtype: DType = "bfloat16"
    """Of the body; the head is float32."""

    def __post_init__(self) -> None:
        if not self.clip_fps > 0 or not self.fps > 0:
            raise ConfigError(f"video_align: clip_fps = {self.clip_fps}, fps = {self.fps}; wanted above 0.")

    def check(self) -> None:
        """Raises ConfigError as `BodyReward.check`, or for a folder without its settings."""
        super().check()
        if os.path.isdir(self.path):
            _settings(self.path)
            _weights(self.path)

    @torch.no_grad()
    def __call__(self, items: Any, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """`Clips`, or uint8 [M, F, 3, H, W] or a list of [F, 3, H, W], and M prompts -> score [M], VQ, MQ, TA [M].

        Raises:
            UserError: outputs that are no clips.
        """
        self._load()
        (template,) = self._questions()
        clips = [frames_of(*_with_rate(item, self.clip_fps), self.fps, self.pixels) for item in items]
        found = []
        for start in range(0, len(clips), self.batch_size):
            rows = slice(start, start + self.batch_size)
            texts = [question(template, prompt.text) for prompt in prompts[rows]]
            found.append(self._ask_clips(texts, clips[rows])[:, :, 0])
        raw_MT = torch.cat(found)
        parts = {
            name: (raw_MT[:, i] - self._norm[f"{name}_mean"]) / self._norm[f"{name}_std"]
            for i, name in enumerate(DIMENSIONS)
        }
        return {"score": sum(parts.values(), torch.zeros_like(raw_MT[:, 0])), **parts}

    def _ask_clips(self, texts: Sequence[str], clips: Sequence[Tensor]) -> Tensor:
        content = [[{"type": "video"}, {"type": "text", "text": text}] for text in texts]
        asked = [
            self._processor.apply_chat_template(
                [{"role": "user", "content": one}], tokenize=False, add_generation_prompt=True
            )
            for one in content
        ]
        inputs = self._processor(
            text=asked, videos=list(clips), padding=True, return_tensors="pt",
            videos_kwargs={"do_resize": False, "do_sample_frames": False},
        )  # fmt: skip
        return self._read(inputs)

    def _questions(self) -> tuple[str, ...]:
        return (template_of("template", self.template, QUESTION, self.tokens),)

    def _build(self) -> nn.Module:
        folder = self.path if os.path.isdir(self.path) else _from_hub(self.path)
        settings = _settings(folder)
        self._norm = settings["norm"]
        tensors = ours(tensors_of(_weights(folder)), lora_scale=settings["lora_scale"])
        return self._load_body(1, partial(linear_head, outputs=1), tensors)


def _with_rate(item: Any, otherwise: float) -> tuple[Any, float]:
    return (item.frames_FCHW, item.fps) if isinstance(item, Clip) else (item, otherwise)


def frames_of(clip: Any, clip_fps: float, fps: float, pixels: int) -> Tensor:
    """The frames that the network sees of a clip, uint8 [f, 3, h, w]; raises UserError for what is no clip."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    if not isinstance(clip, Tensor) or clip.dtype != torch.uint8 or clip.ndim != 4 or clip.shape[1] != 3:
        form = f"{clip.dtype} {list(clip.shape)}" if isinstance(clip, Tensor) else type(clip).__name__
        raise UserError(f"video_align: an output is {form}; wanted a clip, uint8 [F, 3, H, W].")
    index = torch.linspace(0, len(clip) - 1, number_of_frames(len(clip), clip_fps, fps)).round().long()
    height, width = smart_resize(
        clip.shape[2], clip.shape[3], factor=FACTOR, min_pixels=min(128 * FACTOR**2, pixels), max_pixels=pixels
    )
    return resize(clip[index.to(clip.device)], [height, width], InterpolationMode.BICUBIC, antialias=True).cpu()


def number_of_frames(total: int, clip_fps: float, fps: float) -> int:
    """Of a clip of `total` frames: even, 4 to 768 and no more than there are, but for clips of fewer than 4 or an odd frame."""
    least = math.ceil(FEWEST_FRAMES / FRAME_FACTOR) * FRAME_FACTOR
    most = min(MOST_FRAMES, total) // FRAME_FACTOR * FRAME_FACTOR
    wanted = min(max(total / clip_fps * fps, least), most, total)
    return max(FRAME_FACTOR, int(wanted // FRAME_FACTOR * FRAME_FACTOR))


def _settings(folder: str) -> dict[str, Any]:
    """Means, deviations and the scale of adapters; raises ConfigError where a number is missing."""
    file = os.path.join(folder, "model_config.json")
    if not os.path.isfile(file):
        raise ConfigError(
            f"path = {folder!r} holds no model_config.json; wanted the folder as VideoAlign publishes it."
        )
    said = read_settings(file)
    norm = said.get("inference_config")
    names = [f"{name}_{kind}" for name in DIMENSIONS for kind in ("mean", "std")]
    numbers = {name: finite_number(norm.get(name)) for name in names} if isinstance(norm, Mapping) else {}
    wrong = [name for name in names if numbers.get(name) is None or (name.endswith("std") and not numbers[name] > 0)]
    if wrong:
        raise ConfigError(f"{file}: inference_config says no usable {', '.join(wrong)}.")
    return {"norm": numbers, "lora_scale": _lora_scale(said.get("peft_lora_config"), file)}


def _lora_scale(said: Any, file: str) -> float | None:
    if not isinstance(said, Mapping) or not said.get("lora_enable", True):
        return None
    rank, alpha = finite_number(said.get("lora_r")), finite_number(said.get("lora_alpha"))
    if rank is None or alpha is None or rank <= 0:
        raise ConfigError(
            f"{file}: peft_lora_config has lora_r = {shown(said.get('lora_r'))}, lora_alpha = {shown(said.get('lora_alpha'))}."
        )
    return alpha / (math.sqrt(rank) if said.get("use_rslora") else rank)


def _weights(folder: str) -> str:
    """The file of the newest checkpoint, or the one beside the settings; raises ConfigError."""
    steps = [name for name in os.listdir(folder) if re.fullmatch(r"checkpoint-\d+", name)]
    places = ["", *sorted(steps, key=lambda name: -int(name.partition("-")[2]))]
    files = [os.path.join(folder, place, name) for place in places for name in FILES]
    found = next((file for file in files if os.path.isfile(file)), None)
    if found is None:
        raise ConfigError(f"path = {folder!r} holds neither {' nor '.join(FILES)}, there or in checkpoint-N.")
    return found


def _from_hub(path: str) -> str:
    from huggingface_hub import snapshot_download

    from grpo_mm.weights.weight_files import refusing

    with refusing(path):
        return snapshot_download("/".join(path.removeprefix("hf-hub:").split("/")[:2]))
