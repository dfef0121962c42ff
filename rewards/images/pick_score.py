"""PickScore: which picture of a prompt do people pick?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.identity import FREE
from grpo_mm.rewards.shared.network_sizes import network_bytes
from grpo_mm.rewards.shared.networks import Network
from grpo_mm.rewards.shared.pictures import takes_pictures
from grpo_mm.rewards.shared.weights import DType, check_model, check_packages
from grpo_mm.types import Prompt
from grpo_mm.weights.pretrained import check_vocabulary, load_model, load_processor


@dataclass
class PickScore(Network):
    """score = exp(logit scale) × cosine of the picture's and the prompt's CLIP features / divisor.

    The part `raw` is the score before the division, 17 to 24 for most pictures. Prompts longer than 77 tokens are cut.

    Source: arXiv:2305.01569; the division by 26 is Flow-GRPO's (arXiv:2505.05470, flow_grpo/pickscore_scorer.py).
    """

    goldens: ClassVar[str] = "pictures"
    """What it is tried on (`grpo_mm/golden`)."""
    model: str = "yuvalkirstain/PickScore_v1"
    """A CLIP in transformers' format: a name on the hub or a local folder."""
    processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    """Where the tokenizer and the preparation of pictures come from; a name or a folder."""
    divisor: float = 26.0
    """26 brings the score near 1, as in Flow-GRPO; others report it over 100, or as it is (1)."""
    batch_size: int = field(default=32, metadata=FREE)
    """Pictures or texts in one forward; changes memory and speed, not the scores."""
    dtype: DType = "float32"
    """What the network computes in."""

    def network_bytes(self) -> int | None:
        """Of its weights; None where it is no published network whose size is known."""
        return network_bytes(self.model, self.dtype)

    def __post_init__(self) -> None:
        if self.divisor <= 0:
            raise ConfigError(f"divisor = {self.divisor}, wanted more than 0.")

    def check(self) -> None:
        """Raises ConfigError if transformers or a local folder is missing."""
        check_packages("transformers")
        check_model("model", self.model)
        check_model("processor", self.processor, file="tokenizer_config.json")

    @takes_pictures
    @torch.no_grad()
    def __call__(self, items: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """uint8 [M, 3, H, W] and M prompts -> score [M], raw [M]."""
        self._load()
        texts = list(dict.fromkeys(prompt.text for prompt in prompts))  # a group shares its prompt
        texts_TD = torch.cat([self._text_features(texts[i : i + 256]) for i in range(0, len(texts), 256)])
        text_M = torch.tensor([texts.index(prompt.text) for prompt in prompts], device=texts_TD.device)
        images_MD = torch.cat([self._image_features(chunk) for chunk in items.split(self.batch_size)])
        raw = self._model.logit_scale.float().exp() * (images_MD * texts_TD[text_M]).sum(-1)
        return {"score": raw / self.divisor, "raw": raw}

    def _image_features(self, images: Tensor) -> Tensor:
        pixels = self.pixels(images).to(self._model.dtype)
        return F.normalize(self._model.get_image_features(pixel_values=pixels).pooler_output.float(), dim=-1)

    def _text_features(self, texts: list[str]) -> Tensor:
        tokens = self._processor(text=texts, padding=True, truncation=True, max_length=77, return_tensors="pt")
        features = self._model.get_text_features(**tokens.to(self._device)).pooler_output
        return F.normalize(features.float(), dim=-1)

    def pixels(self, images: Tensor) -> Tensor:
        """What the image encoder gets: the library's own preparation, on the model's device, [M, 3, size, size]."""
        self._load()
        prepare = self._processor.image_processor
        images = images.to(self._device)
        return prepare(images=list(images), input_data_format="channels_first", return_tensors="pt")["pixel_values"]

    def _build(self) -> torch.nn.Module:
        from transformers import AutoModel, AutoProcessor

        self._processor = load_processor(AutoProcessor, self.processor, parts=("tokenizer", "image_processor"))
        model = load_model(AutoModel, self.model, dtype=getattr(torch, self.dtype))
        check_vocabulary(self._processor.tokenizer, model.text_model, where=f"{self.processor} for {self.model}")
        return model
