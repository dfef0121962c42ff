"""ImageReward: BLIP reads the prompt while it looks at the picture, and a head says how well people would like it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from grpo_mm.identity import FREE
from grpo_mm.rewards.images.aesthetic import LinearHead
from grpo_mm.rewards.images.clip_score import tensor_transform
from grpo_mm.rewards.shared.networks import Network
from grpo_mm.rewards.shared.pictures import takes_pictures
from grpo_mm.rewards.shared.weights import DType, check_file, check_model, check_packages, load_strictly, read_tensors
from grpo_mm.types import Prompt
from grpo_mm.weights.pretrained import check_vocabulary, load_other

MAX_TOKENS = 35
MEAN, STD = 0.16717362830052426, 1.0333394966054072


@dataclass(frozen=True)
class BlipSize:
    """The sizes of ImageReward-v1.0: a ViT-L/16 for pictures of 224 px, and BERT-base that attends to its patches."""

    image_px: int = 224
    """Side of the square that the network sees, in pixels."""
    patch_px: int = 16
    """Side of a patch, in pixels."""
    image_width: int = 1024
    """Features of a patch."""
    image_layers: int = 24
    """Layers of the image encoder."""
    image_heads: int = 16
    """Attention heads of the image encoder."""
    text_width: int = 768
    """Features of a token."""
    text_layers: int = 12
    """Layers of the text encoder."""
    text_heads: int = 12
    """Attention heads of the text encoder."""
    vocabulary: int = 30524
    """Rows of the token embedding."""
    text_positions: int = 512
    """Tokens that the text encoder has positions for."""


@dataclass
class ImageReward(Network):
    """score = (head - mean) / std, where the head reads the text encoder's first token; mostly -2 to 2.

    The shorter side of a picture is brought to 224 px and the middle is cut out. Prompts longer than 35 tokens are cut.

    Source: arXiv:2304.05977; ImageReward/ImageReward.py of THUDM/ImageReward.
    """

    goldens: ClassVar[str] = "pictures"
    """What it is tried on (`grpo_mm/golden`)."""
    path: str = "hf-hub:THUDM/ImageReward/ImageReward.pt"
    """The weights under their published names: a file of tensors, here or on the hub."""
    tokenizer: str = "google-bert/bert-base-uncased"
    """A name on the hub or a local folder."""
    size: BlipSize = field(default_factory=BlipSize)
    """Sizes of the network, which are those of its weights."""
    batch_size: int = field(default=32, metadata=FREE)
    """Pictures or texts in one forward; changes memory and speed, not the scores."""
    dtype: DType = "float32"
    """Of the encoders; the head is float32."""

    def check(self) -> None:
        """Raises ConfigError if transformers, a local file or a local folder is missing."""
        check_packages("transformers")
        check_file("path", self.path)
        check_model("tokenizer", self.tokenizer, file="tokenizer_config.json")

    @takes_pictures
    @torch.no_grad()
    def __call__(self, items: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """uint8 [M, 3, H, W] and M prompts -> score [M], raw [M] (before the division by std)."""
        self._load()
        chunks = range(0, len(items), self.batch_size)
        raw = torch.cat([self._raw(items[i:j], prompts[i:j]) for i in chunks for j in [i + self.batch_size]])
        return {"score": (raw - MEAN) / STD, "raw": raw}

    def _raw(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        texts = [prompt.text for prompt in prompts]
        tokens = self._tokenizer(
            texts, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(self._device)
        pixels = image_reward_pixels(images.to(self._device), size_px=self.size.image_px)
        return self._model(pixels.to(getattr(torch, self.dtype)), tokens.input_ids, tokens.attention_mask)

    def _build(self) -> nn.Module:
        from transformers import AutoTokenizer

        self._tokenizer = load_other(AutoTokenizer, self.tokenizer)
        model = BlipWithHead(self.size)
        check_vocabulary(self._tokenizer, model.text, where=f"{self.tokenizer} for {self.path}")
        load_strictly(model, transformers_names(read_tensors(self.path)), path=self.path)
        model.image.to(getattr(torch, self.dtype))
        model.text.to(getattr(torch, self.dtype))
        return model


class BlipWithHead(nn.Module):
    """The scorer out of transformers' parts; `image`, `text` and `head` are what `transformers_names` fills."""

    def __init__(self, size: BlipSize) -> None:
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        super().__init__()
        image = BlipVisionConfig(
            image_size=size.image_px, patch_size=size.patch_px, hidden_size=size.image_width,
            intermediate_size=4 * size.image_width, num_hidden_layers=size.image_layers,
            num_attention_heads=size.image_heads,
            layer_norm_eps=1e-6,  # the original's; transformers' own default is 1e-5
        )  # fmt: skip
        text = BlipTextConfig(
            vocab_size=size.vocabulary, hidden_size=size.text_width, encoder_hidden_size=size.image_width,
            intermediate_size=4 * size.text_width, num_hidden_layers=size.text_layers,
            num_attention_heads=size.text_heads, max_position_embeddings=size.text_positions,
            is_decoder=True,  # builds the cross-attention; the forward below is not causal
        )  # fmt: skip
        self.image = BlipVisionModel(image)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        self.head = LinearHead(size.text_width)

    def forward(self, pixels: Tensor, token_ids_ML: Tensor, mask_ML: Tensor) -> Tensor:
        """[M, 3, H, W] and tokens [M, L] -> [M]."""
        patches = self.image(pixel_values=pixels).last_hidden_state
        read = self.text(
            input_ids=token_ids_ML, attention_mask=mask_ML, encoder_hidden_states=patches, is_decoder=False
        ).last_hidden_state
        return self.head(read[:, 0].float())


def image_reward_pixels(images: Tensor, *, size_px: int = 224) -> Tensor:
    """uint8 [M, 3, H, W] -> float32 [M, 3, size_px, size_px] as the authors prepare PIL pictures."""
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    steps = [
        Resize(size_px, InterpolationMode.BICUBIC, antialias=True),
        CenterCrop(size_px),
        Normalize(OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    ]
    return tensor_transform(Compose(steps), images)


_UNUSED = re.compile(r"blip\.(vision_proj|text_proj)\.|blip\.text_encoder\.embeddings\.position_ids$")
_RENAMED = (
    (r"^mlp\.", "head."),
    (r"^blip\.text_encoder\.", "text."),
    (r"^blip\.visual_encoder\.norm\.", "image.post_layernorm."),
    (r"^blip\.visual_encoder\.cls_token$", "image.embeddings.class_embedding"),
    (r"^blip\.visual_encoder\.pos_embed$", "image.embeddings.position_embedding"),
    (r"^blip\.visual_encoder\.patch_embed\.proj\.", "image.embeddings.patch_embedding."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.norm", r"image.encoder.layers.\1.layer_norm"),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.qkv\.", r"image.encoder.layers.\1.self_attn.qkv."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"image.encoder.layers.\1.self_attn.projection."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.mlp\.", r"image.encoder.layers.\1.mlp."),
)


def transformers_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published tensors under the names of `BlipWithHead`; those of BLIP's contrastive task are left out."""
    return {_renamed(name): tensor for name, tensor in tensors.items() if not _UNUSED.match(name)}


def _renamed(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name
