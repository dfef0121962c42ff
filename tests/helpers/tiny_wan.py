"""Tiny random checkpoints in Wan's formats, made of the real classes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from tiny_models import WORDS, randomise

MULTISTEP = dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def umt5(width: int):
    """(a text encoder of UMT5's kind, its tokenizer)."""
    from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -3.0) for word in WORDS] + [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    config = UMT5Config(
        vocab_size=len(pieces), d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2, pad_token_id=0, eos_token_id=1,
        tie_word_embeddings=False,
    )  # fmt: skip
    return UMT5EncoderModel(config), T5Tokenizer(vocab=pieces, extra_ids=0)


def transformer(*, channels: int = 4, layers: int = 2, seed: int = 0, **settings):
    from diffusers import WanTransformer3DModel

    torch.manual_seed(seed)
    network = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=channels, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=32, num_layers=layers, rope_max_seq_len=64, **settings,
    )  # fmt: skip
    randomise(network)
    return network


def decoder(**settings):
    """8 pixels a side and 4 frames to a latent."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[-0.7, 0.1, 0.9, -0.3], latents_std=[2.8, 1.4, 2.3, 1.2], **settings,
    )  # fmt: skip


def image_encoder():
    """(a CLIP that sees 17 tokens of a picture, what prepares pictures for it)."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8,
        projection_dim=16,
    )  # fmt: skip
    return CLIPVisionModel(config), CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )


def _save(folder: Path, pipeline: str, **parts) -> Path:
    import diffusers

    reader, tokenizer = umt5(16)
    made = dict(
        scheduler=diffusers.UniPCMultistepScheduler(**MULTISTEP),
        text_encoder=reader,
        tokenizer=tokenizer,
        vae=decoder(),
    )
    getattr(diffusers, pipeline)(**(made | parts)).save_pretrained(folder)
    return folder


def build_wan(folder: Path) -> Path:
    """Wan2.1, text to video."""
    return _save(folder, "WanPipeline", transformer=transformer())


def build_wan_i2v(folder: Path, *, last: bool = False) -> Path:
    """Wan2.1, picture to video: 4 channels more tell which frames are given, 4 hold them; a CLIP sees the picture. `last`: with the last frame."""
    torch.manual_seed(1)
    sees, prepares = image_encoder()
    positions = dict(pos_embed_seq_len=2 * 17) if last else {}
    network = transformer(channels=12, image_dim=16, added_kv_proj_dim=24, **positions)
    return _save(folder, "WanImageToVideoPipeline", transformer=network, image_encoder=sees, image_processor=prepares)


def build_wan_5b(folder: Path) -> Path:
    """Wan2.2-TI2V-5B, for texts and for pictures: a time for each token, and a decoder of its own form."""
    torch.manual_seed(2)
    vae = decoder(
        patch_size=2, in_channels=12, out_channels=12, is_residual=True, decoder_base_dim=4, scale_factor_spatial=16
    )
    return _save(folder, "WanPipeline", transformer=transformer(), vae=vae, expand_timesteps=True)


def build_wan_a14b(folder: Path) -> Path:
    """Wan2.2-T2V-A14B: two experts."""
    two = dict(transformer=transformer(seed=3), transformer_2=transformer(seed=4))
    return _save(folder, "WanPipeline", **two, boundary_ratio=0.875)


def build_wan_a14b_i2v(folder: Path) -> Path:
    """Wan2.2-I2V-A14B: two experts, and no CLIP."""
    two = dict(transformer=transformer(channels=12, seed=5), transformer_2=transformer(channels=12, seed=6))
    return _save(folder, "WanImageToVideoPipeline", **two, boundary_ratio=0.7)


BUILDERS = {
    "t2v": build_wan, "i2v": build_wan_i2v, "flf": partial(build_wan_i2v, last=True), "5b": build_wan_5b, "a14b": build_wan_a14b,
    "a14b_i2v": build_wan_a14b_i2v,
}  # fmt: skip
"""Form of checkpoint -> what makes one."""
