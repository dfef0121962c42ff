"""Tiny random reward models in the formats of the real ones; nothing downloads."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from grpo_mm.rewards.images.image_reward import BlipSize

WORDS = ("a", "photo", "of", "red", "green", "blue", "circle", "square", "the", "and")
BERT_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
BLIP = BlipSize(
    image_px=32, patch_px=8, image_width=16, image_layers=2, image_heads=2, text_width=24, text_layers=2, text_heads=3,
    vocabulary=len(BERT_WORDS) + 2, text_positions=40,
)  # fmt: skip
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Wide enough that different inputs give clearly different outputs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


def build_pick_score(folder: Path) -> str:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTextConfig, CLIPVisionConfig

    from grpo_mm.pipelines.zoo.word_tokenizer import word_tokenizer

    tokenizer = word_tokenizer(WORDS, max_length=77)
    shared = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    size = len(tokenizer)
    text = CLIPTextConfig(
        vocab_size=size, bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1, **shared
    )
    image = CLIPVisionConfig(image_size=32, patch_size=8, **shared)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=image.to_dict(), projection_dim=12))
    randomise(model)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(100))
    model.save_pretrained(folder)
    prepare = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=prepare, tokenizer=tokenizer).save_pretrained(folder)
    return str(folder)


def build_open_clip(folder: Path) -> str:
    """A random open_clip model with its weights, as a folder for `local-dir` and as the HPS authors store theirs."""
    import open_clip

    model_cfg = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    }
    model = open_clip.CLIP(**model_cfg)
    randomise(model)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {}}))
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, folder / "hps.pt")
    return str(folder)


def build_aesthetic_head(folder: Path) -> str:
    """The published layout, with the head's input as wide as the tiny CLIP's features."""
    widths = [(0, 16, 1024), (2, 1024, 128), (4, 128, 64), (6, 64, 16), (7, 16, 1)]
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for index, wide, narrow in widths:
        tensors[f"layers.{index}.weight"] = torch.randn(narrow, wide, generator=generator) / wide**0.5
        tensors[f"layers.{index}.bias"] = torch.randn(narrow, generator=generator)
    path = folder / "sac+logos+ava1-l14-linearMSE.pth"
    torch.save(tensors, path)
    return str(path)


def published_image_reward(size: BlipSize) -> dict[str, torch.Tensor]:
    """Random weights under the names of the file that the authors publish."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}

    def add(name: str, *shape: int) -> None:
        tensors[name] = 0.3 * torch.randn(shape, generator=generator)

    def linear(name: str, wide: int, narrow: int) -> None:
        add(f"{name}.weight", narrow, wide)
        add(f"{name}.bias", narrow)

    def norm(name: str, width: int) -> None:
        add(f"{name}.weight", width)
        add(f"{name}.bias", width)

    eye, read = "blip.visual_encoder", "blip.text_encoder"
    image, text = size.image_width, size.text_width
    add(f"{eye}.cls_token", 1, 1, image)
    add(f"{eye}.pos_embed", 1, (size.image_px // size.patch_px) ** 2 + 1, image)
    add(f"{eye}.patch_embed.proj.weight", image, 3, size.patch_px, size.patch_px)
    add(f"{eye}.patch_embed.proj.bias", image)
    for i in range(size.image_layers):
        block = f"{eye}.blocks.{i}"
        norm(f"{block}.norm1", image)
        linear(f"{block}.attn.qkv", image, 3 * image)
        linear(f"{block}.attn.proj", image, image)
        norm(f"{block}.norm2", image)
        linear(f"{block}.mlp.fc1", image, 4 * image)
        linear(f"{block}.mlp.fc2", 4 * image, image)
    norm(f"{eye}.norm", image)
    tensors[f"{read}.embeddings.position_ids"] = torch.arange(size.text_positions)[None]
    add(f"{read}.embeddings.word_embeddings.weight", size.vocabulary, text)
    add(f"{read}.embeddings.position_embeddings.weight", size.text_positions, text)
    norm(f"{read}.embeddings.LayerNorm", text)
    for i in range(size.text_layers):
        layer = f"{read}.encoder.layer.{i}"
        for kind, source in (("attention", text), ("crossattention", image)):
            linear(f"{layer}.{kind}.self.query", text, text)
            linear(f"{layer}.{kind}.self.key", source, text)
            linear(f"{layer}.{kind}.self.value", source, text)
            linear(f"{layer}.{kind}.output.dense", text, text)
            norm(f"{layer}.{kind}.output.LayerNorm", text)
        linear(f"{layer}.intermediate.dense", text, 4 * text)
        linear(f"{layer}.output.dense", 4 * text, text)
        norm(f"{layer}.output.LayerNorm", text)
    linear("blip.vision_proj", image, 256)
    linear("blip.text_proj", text, 256)
    for index, wide, narrow in [(0, text, 1024), (2, 1024, 128), (4, 128, 64), (6, 64, 16), (7, 16, 1)]:
        linear(f"mlp.layers.{index}", wide, narrow)
        tensors[f"mlp.layers.{index}.weight"] /= 0.3 * wide**0.5
    return tensors


def build_image_reward(folder: Path) -> dict:
    """Settings of a tiny ImageReward, its weights under the published names."""
    from transformers import BertTokenizer

    BertTokenizer(vocab={word: i for i, word in enumerate(BERT_WORDS)}).save_pretrained(folder)
    torch.save(published_image_reward(BLIP), folder / "ImageReward.pt")
    return {"path": str(folder / "ImageReward.pt"), "tokenizer": str(folder), "size": BLIP}


def build_qwen_vl(folder: Path) -> str:
    """A Qwen2.5-VL of a few thousand parameters that knows letters, yes, Yes and no."""
    from tokenizers import pre_tokenizers
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2Tokenizer,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    merges = [("y", "e"), ("ye", "s"), ("Y", "e"), ("Ye", "s"), ("n", "o"), ("Ġ", "no")]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
               "<|video_pad|>"]  # fmt: skip
    vocab = {token: i for i, token in enumerate([*letters, *(a + b for a, b in merges), *special])}
    tokenizer = Qwen2Tokenizer(
        vocab=vocab, merges=merges, eos_token="<|im_end|>", pad_token="<|endoftext|>", additional_special_tokens=special
    )
    pixels = {"min_pixels": 28 * 28, "max_pixels": 6 * 28 * 28}
    Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**pixels), tokenizer, Qwen2VLVideoProcessor(**pixels), chat_template=CHAT
    ).save_pretrained(folder)
    text = {
        "vocab_size": len(vocab), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        "bos_token_id": vocab["<|im_start|>"], "eos_token_id": vocab["<|im_end|>"],
        "pad_token_id": vocab["<|endoftext|>"],
    }  # fmt: skip
    vision = {"depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 24, "out_hidden_size": 32,
              "fullatt_block_indexes": [1]}  # fmt: skip
    model = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config=text, vision_config=vision, image_token_id=vocab["<|image_pad|>"],
            video_token_id=vocab["<|video_pad|>"], vision_start_token_id=vocab["<|vision_start|>"],
            vision_end_token_id=vocab["<|vision_end|>"],
        )
    )  # fmt: skip
    randomise(model)
    model.save_pretrained(folder)
    return str(folder)


def build_dino(folder: Path) -> str:
    from transformers import DINOv3ViTConfig, DINOv3ViTImageProcessor, DINOv3ViTModel

    model = DINOv3ViTModel(
        DINOv3ViTConfig(
            image_size=32, patch_size=8, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, num_register_tokens=2,
        )
    )  # fmt: skip
    randomise(model)
    model.save_pretrained(folder)
    DINOv3ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)
