"""HPS v2.1: CLIP taught on human preferences."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from grpo_mm.identity import FREE
from grpo_mm.rewards.images.clip_score import check_clip
from grpo_mm.rewards.shared.network_sizes import network_bytes
from grpo_mm.rewards.shared.networks import Network
from grpo_mm.rewards.shared.pictures import takes_pictures
from grpo_mm.rewards.shared.weights import DType, check_file, load_strictly, read_tensors
from grpo_mm.types import Prompt
from grpo_mm.weights.weight_files import refusing


@dataclass
class Hps(Network):
    """score = cosine of the picture's and the prompt's features, .2 to .4 for most pictures.

    Source: arXiv:2306.09341; hpsv2/img_score.py of tgxs002/HPSv2. Deviates: float32 or bfloat16, where the
    authors' code runs in float16 autocast.
    """

    goldens: ClassVar[str] = "pictures"
    """What it is tried on (`grpo_mm/golden`)."""
    path: str = "hf-hub:xswu/HPSv2/HPS_v2.1_compressed.pt"
    """The weights: a file of tensors, here or on the hub; HPS_v2_compressed.pt is version 2.0."""
    model: str = "ViT-H-14"
    """The architecture: a name known to open_clip or a folder with open_clip_config.json."""
    antialias: bool = True
    """Smooth while shrinking. The authors leave it to torchvision, which smooths since version 0.17 and did not before."""
    batch_size: int = field(default=32, metadata=FREE)
    """Pictures or texts in one forward; changes memory and speed, not the scores."""
    dtype: DType = "float32"
    """What the network computes in."""

    def network_bytes(self) -> int | None:
        """Of its weights; None where it is no published network whose size is known."""
        return network_bytes(self.model, self.dtype)

    def check(self) -> None:
        """Raises ConfigError if open_clip or a local file is missing."""
        check_clip(self.model, None, weights=False)
        check_file("path", self.path)

    @takes_pictures
    @torch.no_grad()
    def __call__(self, items: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """uint8 [M, 3, H, W] and M prompts -> score [M]."""
        self._load()
        texts = list(dict.fromkeys(prompt.text for prompt in prompts))  # a group shares its prompt
        texts_TD = torch.cat([self._text_features(texts[i : i + 256]) for i in range(0, len(texts), 256)])
        text_M = torch.tensor([texts.index(prompt.text) for prompt in prompts], device=texts_TD.device)
        images_MD = torch.cat([self._image_features(chunk) for chunk in items.split(self.batch_size)])
        return {"score": (images_MD * texts_TD[text_M]).sum(-1)}

    def _image_features(self, images: Tensor) -> Tensor:
        size_px = self._model.visual.image_size
        size_px = size_px if isinstance(size_px, int) else size_px[0]
        pixels = hps_pixels(images.to(self._device), size_px=size_px, antialias=self.antialias)
        features = self._model.encode_image(pixels.to(getattr(torch, self.dtype)))
        return F.normalize(features.float(), dim=-1)

    def _text_features(self, texts: list[str]) -> Tensor:
        return F.normalize(self._model.encode_text(self._tokenizer(texts).to(self._device)).float(), dim=-1)

    def _build(self) -> torch.nn.Module:
        import open_clip

        name = f"local-dir:{self.model}" if os.path.isdir(self.model) else self.model
        precision = {"float32": "fp32", "bfloat16": "pure_bf16"}[self.dtype]
        with refusing(f"the CLIP model {name!r}"):
            model = open_clip.create_model(name, load_weights=False, precision=precision)
            self._tokenizer = open_clip.get_tokenizer(name)
        load_strictly(model, read_tensors(self.path), path=self.path)
        return model


def hps_pixels(images: Tensor, *, size_px: int, antialias: bool = True) -> Tensor:
    """uint8 [M, 3, H, W] -> float32 [M, 3, size_px, size_px]: the whole picture on black, in CLIP's colour scale.

    The longer side shrinks or grows to size_px (bicubic, not clipped to 0..1), and the shorter one is padded evenly.

    Source: hpsv2/src/open_clip/transform.py of tgxs002/HPSv2 (image_transform with resize_longest_max).
    """
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import normalize, resize

    scale = size_px / max(images.shape[2:])
    height, width = (round(side * scale) for side in images.shape[2:])
    small = resize(images.float() / 255, [height, width], InterpolationMode.BICUBIC, antialias=antialias)
    rows, columns = size_px - height, size_px - width
    padded = F.pad(small, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
    return normalize(padded, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
