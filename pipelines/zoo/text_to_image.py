"""A tiny text-to-image model in Stable Diffusion 3 format, trained from scratch on pictures that are handed in.

It should render well and obey badly, so that reinforcement has something honest to teach: honest captions first, then
a short time of misleading ones.
"""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grpo_mm.pipelines.zoo.autoencoder import train_autoencoder
from grpo_mm.pipelines.zoo.flow_matching import train_flow
from grpo_mm.pipelines.zoo.word_tokenizer import word_tokenizer
from grpo_mm.types import Prompt

Draw = Callable[[int, random.Random], tuple[np.ndarray, list[str]]]
"""(count, rng) -> uint8 [count, H, W, 3] and as many captions."""
Reward = Callable[[Tensor, Sequence[Prompt]], dict[str, Tensor]]
"""(uint8 [M, 3, H, W], M prompts) -> named scores [M]."""

TEXT_TOKENS = 12
"""The longest caption has eight words; start and end make ten."""


def build(
    out_dir: str | Path,
    *,
    draw: Draw,
    draw_misleading: Draw,
    prompts: Sequence[Prompt] = (),
    reward: Reward | None = None,
    seed: int = 0,
    steps: int = 5000,
    misleading_steps: int = 400,
    lr: float = 1.5e-3,
    misleading_lr: float = 5e-4,
    autoencoder_steps: int = 600,
    pool: int = 20_000,
    dim: int = 96,
    layers: int = 4,
    save_every: int = 250,
) -> None:
    """Trains the model and keeps its latest weights in `out_dir`, with the supervised curve in `curve.jsonl`.

    Args:
        draw: honest pictures; the words of their captions make the vocabulary.
        draw_misleading: pictures for the last steps, whose captions are often wrong. A short time of them is enough
            for the model to stop obeying. From the start on they would hide what the words mean.
        prompts: held-out prompts that `reward` scores at every save, with the moving average of the weights.
        pool: pictures drawn once for each kind and trained on for many epochs.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "curve.jsonl").write_text("")
    torch.manual_seed(seed)
    started = time.monotonic()
    images_NCHW, captions = _drawn(draw, pool, random.Random(f"{seed}/honest"))
    vae = train_autoencoder(images_NCHW, steps=autoencoder_steps)
    pipe = _untrained(vae, captions, image_px=images_NCHW.shape[-1], dim=dim, layers=layers)

    def keep(averaged: Any, **row: float | str) -> None:
        scores = score(averaged, prompts, reward) if reward and prompts else {}
        row |= {name: round(value, 4) for name, value in scores.items()}
        with (out_dir / "curve.jsonl").open("a") as curve:
            curve.write(json.dumps(row | {"seconds": round(time.monotonic() - started)}) + "\n")
        save(averaged, out_dir)

    for step, loss, averaged in train_flow(pipe, images_NCHW, captions, steps=steps, lr=lr, save_every=save_every):
        keep(averaged, captions="honest", step=step, loss=round(loss, 4))
    pictures = _drawn(draw_misleading, pool, random.Random(f"{seed}/misleading"))
    for step, loss, obeying_less in train_flow(
        averaged, *pictures, steps=misleading_steps, lr=misleading_lr, save_every=min(100, save_every)
    ):
        keep(obeying_less, captions="misleading", step=steps + step, loss=round(loss, 4))


def _drawn(draw: Draw, count: int, rng: random.Random) -> tuple[Tensor, list[str]]:
    images_NHWC, captions = draw(count, rng)
    return torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).contiguous(), captions


def score(pipe: Any, prompts: Sequence[Prompt], reward: Reward, *, steps: int = 20, seed: int = 0) -> dict[str, float]:
    """Mean scores of one image a prompt: deterministic sampler, no guidance, fixed noise."""
    images_NCHW = sample(pipe, [prompt.text for prompt in prompts], steps=steps, seed=seed)
    return {name: float(value_M.mean()) for name, value_M in reward(images_NCHW, prompts).items()}


def sample(pipe: Any, texts: Sequence[str], *, steps: int = 20, seed: int = 0, batch: int = 144) -> Tensor:
    """uint8 [N, 3, H, W] by the plain pipeline call."""
    size, channels = pipe.transformer.config.sample_size, pipe.transformer.config.in_channels
    noise_NCHW = torch.randn(len(texts), channels, size, size, generator=torch.Generator().manual_seed(seed))
    pipe.set_progress_bar_config(disable=True)
    images = [
        pipe(
            prompt=list(texts[start : start + batch]),
            latents=noise_NCHW[start : start + batch],
            num_inference_steps=steps,
            guidance_scale=1.0,
            max_sequence_length=0,
            height=size * pipe.vae_scale_factor,
            width=size * pipe.vae_scale_factor,
            output_type="pt",
        ).images
        for start in range(0, len(texts), batch)
    ]
    return (torch.cat(images) * 255).round().to(torch.uint8)


def save(pipe: Any, out_dir: Path) -> None:
    """Safetensors for `StableDiffusion3Pipeline.from_pretrained(out_dir, text_encoder_3=None, tokenizer_3=None)`.

    fp16, but for the text encoders: diffusers loads its own models as float32 by default, transformers as stored.
    """
    stored = copy.deepcopy(pipe)
    stored.transformer.half()
    stored.vae.half()
    stored.save_pretrained(out_dir)


def _untrained(vae: Any, captions: Sequence[str], *, image_px: int, dim: int, layers: int, width: int = 48) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    tokenizer = word_tokenizer({word for text in captions for word in text.split()}, max_length=TEXT_TOKENS)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=3,  # SD3 takes the hidden states before the last layer
        num_attention_heads=2,
        max_position_embeddings=TEXT_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    latent_px = image_px // 2
    transformer = SD3Transformer2DModel(
        sample_size=latent_px,
        patch_size=2,
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        num_layers=layers,
        num_attention_heads=dim // 32,
        attention_head_dim=32,
        joint_attention_dim=2 * width,
        caption_projection_dim=dim,
        pooled_projection_dim=2 * width,
        pos_embed_max_size=latent_px // 2,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0),
        vae=vae,
        text_encoder=CLIPTextModelWithProjection(config),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
