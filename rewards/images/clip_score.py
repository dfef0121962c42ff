"""CLIP similarity of picture and prompt."""

from __future__ import annotations

import difflib
import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.identity import FREE
from grpo_mm.rewards.shared.network_sizes import network_bytes
from grpo_mm.rewards.shared.networks import Network
from grpo_mm.rewards.shared.pictures import takes_pictures
from grpo_mm.types import Prompt
from grpo_mm.weights.weight_files import check_finite, check_weight_file, refusing


@dataclass
class ClipScore:
    """score = scale × cosine of the picture's and the prompt's features, both of length 1.

    With scale 1 it is the cosine itself (about 0.2 to 0.4 for matching pictures under OpenAI's ViT-L-14), as DanceGRPO reports
    it; Flow-GRPO's clipscore is scale = 100 / 30 = 3.333 (logit scale over 30), CLIPScore's own is 2.5.
    Not clipped at 0. Prompts longer than the model's context are cut.

    Source: arXiv:2104.08718, eq. in sec. 3, w = scale. Deviates: no max(., 0), and no "A photo depicts" in front.
    """

    goldens: ClassVar[str] = "pictures"
    """What it is tried on (`grpo_mm/golden`)."""
    constant_steps: ClassVar[int] = 3
    """As of other networks."""
    model: str = "ViT-L-14-quickgelu"
    """A name known to open_clip, "hf-hub:org/name", or a folder with open_clip_config.json and weights. OpenAI's weights need
    a model with quickgelu in its name: open_clip takes the other one with a warning only, and its scores are wrong."""
    pretrained: str | None = "openai"
    """A tag known to open_clip or a file with weights; not used with a folder or a hub name."""
    scale: float = 1.0
    """Times the cosine."""
    batch_size: int = field(default=32, metadata=FREE)
    """Pictures or texts in one forward; changes memory and speed, not the scores."""

    def network_bytes(self) -> int | None:
        """Of its weights; None where it is no published network whose size is known."""
        return network_bytes(self.model)

    def __post_init__(self) -> None:
        self._clip = Clip(self.model, self.pretrained)

    def check(self) -> None:
        """Raises ConfigError if open_clip or a local file is missing."""
        check_clip(self.model, self.pretrained)

    def to(self, device: torch.device | str) -> ClipScore:
        self._clip.to(device)
        return self

    @takes_pictures
    def __call__(self, items: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """uint8 [M, 3, H, W] and M prompts -> score [M]."""
        texts = sorted({prompt.text for prompt in prompts})  # a group shares its prompt
        text_features = torch.cat([self._clip.text_features(texts[i : i + 256]) for i in range(0, len(texts), 256)])
        place = {text: i for i, text in enumerate(texts)}
        index = torch.tensor([place[prompt.text] for prompt in prompts], device=text_features.device)
        image_features = torch.cat([self._clip.image_features(chunk) for chunk in items.split(self.batch_size)])
        return {"score": self.scale * (image_features * text_features[index]).sum(-1)}


class Clip(Network):
    """An open_clip model that is loaded when first needed; features are float32 of length 1."""

    def __init__(self, model: str, pretrained: str | None) -> None:
        self.name = f"local-dir:{model}" if os.path.isdir(model) else model
        self.pretrained = None if self.name.startswith(("local-dir:", "hf-hub:")) else pretrained

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        """uint8 [M, 3, H, W] -> [M, D] on the model's device."""
        self._load()
        pixels = tensor_transform(self._transform, images.to(self._device))
        return F.normalize(self._model.encode_image(pixels).float(), dim=-1)

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """M texts -> [M, D] on the model's device."""
        self._load()
        tokens = self._tokenizer(list(texts)).to(self._device)
        return F.normalize(self._model.encode_text(tokens).float(), dim=-1)

    def _build(self) -> torch.nn.Module:
        import open_clip

        with refusing(f"the CLIP model {self.name!r} (pretrained = {self.pretrained!r})"):
            model, _, self._transform = open_clip.create_model_and_transforms(
                self.name,
                pretrained=self.pretrained,
                require_pretrained=True,  # else a folder without weights is a random network
            )
            self._tokenizer = open_clip.get_tokenizer(self.name)
        check_finite(dict(model.named_parameters()), where=f"the CLIP model {self.name!r}")
        return model


def check_clip(model: str, pretrained: str | None, *, weights: bool = True) -> None:
    """Raises ConfigError if open_clip or a local file is missing, or plainly damaged; downloads nothing.

    `weights`: whether those of a folder are read, and not its architecture alone.
    """
    if importlib.util.find_spec("open_clip") is None:
        raise ConfigError("open_clip is not installed; pip install open_clip_torch.")
    if os.path.isdir(model):
        if not os.path.isfile(os.path.join(model, "open_clip_config.json")):
            raise ConfigError(f"model = {model!r} is a folder without open_clip_config.json; is it an open_clip model?")
        files = [file for ending in ("safetensors", "bin", "pth") for file in sorted(Path(model).glob(f"*.{ending}"))]
        if weights and not files:
            raise ConfigError(f"model = {model!r} holds no weights: it has no file *.safetensors, *.bin or *.pth.")
        if weights and len(files) == 1:  # of several open_clip chooses one
            check_weight_file(files[0])
    elif os.sep in model and ":" not in model:
        raise ConfigError(f"model = {model!r}: no such folder. For a model on the hub write hf-hub:{model}.")
    elif ":" not in model and model not in known_clips():
        near = difflib.get_close_matches(model, known_clips(), n=3)
        raise ConfigError(
            f"model = {model!r} is no name that open_clip knows"
            + (
                f"; do you mean {' or '.join(near)}?"
                if near
                else f", as {', '.join(sorted(known_clips())[:3])} and others are."
            )
        )
    if pretrained is None or os.path.isdir(model) or ":" in model:
        return
    if os.path.isfile(pretrained):
        check_weight_file(pretrained)
    elif os.sep in pretrained:
        raise ConfigError(f"pretrained = {pretrained!r}: no such file.")
    else:
        _check_tag(model, pretrained)


def _check_tag(model: str, tag: str) -> None:
    from open_clip import list_pretrained_tags_by_model
    from open_clip.pretrained import is_pretrained_cfg

    if not is_pretrained_cfg(model, tag):
        known = list_pretrained_tags_by_model(model)
        raise ConfigError(
            f"pretrained = {tag!r} is no file, and open_clip knows no such weights of {model}; "
            + (f"it knows {', '.join(known)}." if known else "it knows none: give a file.")
        )


def known_clips() -> set[str]:
    """Names of the architectures that open_clip has a file for; found without importing it, which takes seconds."""
    spec = importlib.util.find_spec("open_clip")
    folder = Path(spec.origin if spec is not None and spec.origin else "").parent / "model_configs"
    return {file.stem for file in folder.glob("*.json")}


def tensor_transform(transform: Any, images: Tensor) -> Tensor:
    """open_clip's evaluation transform, run on a uint8 batch [M, 3, H, W] on its device.

    The steps are the library's own; only what it does to PIL pictures is done here: the change to 0..1, and reading
    the size before a resize that keeps the ratio. Equal to the library on PIL pictures to a grey level or two.
    """
    *geometric, normalize = transform.transforms
    for step in geometric:
        images = _STEPS.get(type(step).__name__, _apply)(step, images)
    return normalize(images.float() / 255)


def _apply(step: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return step(images)


def _resize_keep_ratio(step: Any, images: Tensor) -> Tensor:
    from torchvision.transforms.functional import resize

    (height, width), (target_height, target_width) = images.shape[2:], step.size
    ratios = sorted((height / target_height, width / target_width))
    ratio = ratios[1] * step.longest + ratios[0] * (1 - step.longest)
    return resize(images, [round(height / ratio), round(width / ratio)], step.interpolation, antialias=True)


_STEPS: dict[str, Callable[[Any, Tensor], Tensor]] = {"ResizeKeepRatio": _resize_keep_ratio}
