"""Tiny random checkpoints in Wan's formats, made of the real classes."""

from __future__ import annotations

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


def build_wan(folder: Path) -> Path:
    """A WanPipeline of Wan2.1's form (T2V)."""
    from diffusers import UniPCMultistepScheduler, WanPipeline

    network = transformer()
    reader, tokenizer = umt5(16)
    WanPipeline(
        transformer=network, scheduler=UniPCMultistepScheduler(**MULTISTEP), vae=decoder(), text_encoder=reader,
        tokenizer=tokenizer,
    ).save_pretrained(folder)  # fmt: skip
    return folder


BUILDERS = {"wan": build_wan}
"""Form of checkpoint -> what makes one."""
