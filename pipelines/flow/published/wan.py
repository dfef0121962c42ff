"""Published sizes of Wan, by hub name; networks without numbers.

Tokenizers are stand-ins: texts are filled up to the same length whatever they say.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

SMALL = dict(num_attention_heads=12, num_layers=30, ffn_dim=8960)
"""1.42 · 10⁹ weights."""
LARGE: dict[str, Any] = dict(num_attention_heads=40, num_layers=40, ffn_dim=13_824)
"""14.29 · 10⁹."""
MIDDLE = dict(num_attention_heads=24, num_layers=30, ffn_dim=14_336, in_channels=48, out_channels=48)
"""5.00 · 10⁹."""
SEES = dict(in_channels=36, image_dim=1280, added_kv_proj_dim=5120)
MEAN, STD = [0.0] * 48, [1.0] * 48
"""Of the autoencoder with 48 channels, whose numbers do not count here."""


def _wan(size: dict[str, Any], *, shift: float, **more: Any) -> Any:
    """Text to video: UMT5-XXL, 5.68 · 10⁹, reads."""
    from diffusers import WanPipeline

    return WanPipeline(**_parts(size, shift), **more)


def _i2v(size: dict[str, Any], *, shift: float, clip: bool = True, **more: Any) -> Any:
    from diffusers import WanImageToVideoPipeline
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    parts = _parts(size, shift)
    if clip:
        config = CLIPVisionConfig(
            hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, image_size=224, patch_size=14,
            projection_dim=1024,
        )  # fmt: skip
        with torch.device("meta"):
            parts["image_encoder"] = CLIPVisionModel(config)
        parts["image_processor"] = CLIPImageProcessor()
    return WanImageToVideoPipeline(**parts, **more)


def _two(make: Callable[..., Any], size: dict[str, Any], *, boundary: float, **more: Any) -> Any:
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        second = WanTransformer3DModel(**size)
    return make(size, transformer_2=second, boundary_ratio=boundary, **more)


def _parts(size: dict[str, Any], shift: float) -> dict[str, Any]:
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    reader = UMT5Config(
        vocab_size=256_384,
        d_model=4096,
        d_kv=64,
        d_ff=10_240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
    )
    of_48 = dict(
        base_dim=160, decoder_base_dim=256, z_dim=48, latents_mean=MEAN, latents_std=STD, is_residual=True, in_channels=12,
        out_channels=12, patch_size=2, scale_factor_spatial=16,
    )  # fmt: skip
    with torch.device("meta"):
        parts: dict[str, Any] = {
            "transformer": WanTransformer3DModel(**size),
            "vae": AutoencoderKLWan(**(of_48 if size.get("in_channels") == 48 else {})),
            "text_encoder": UMT5EncoderModel(reader),
        }
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    return parts | {"scheduler": scheduler, "tokenizer": t5_tokenizer()}


def t5_tokenizer() -> Any:
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)] + [
        (c, -5.0) for c in "abcdefghijklmnopqrstuvwxyz"
    ]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


NAMED: dict[str, Callable[[], Any]] = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": partial(_wan, SMALL, shift=3.0),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": partial(_wan, LARGE, shift=3.0),
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": partial(_i2v, LARGE | SEES, shift=3.0),
    "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers": partial(_i2v, LARGE | SEES, shift=5.0),
    "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers": partial(_i2v, LARGE | SEES | {"pos_embed_seq_len": 514}, shift=5.0),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": partial(_wan, MIDDLE, shift=5.0, expand_timesteps=True),
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": partial(_two, _wan, LARGE, shift=3.0, boundary=0.875),
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers": partial(
        _two, partial(_i2v, clip=False), LARGE | {"in_channels": 36}, shift=3.0, boundary=0.9
    ),
}
