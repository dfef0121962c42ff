"""A tiny text-to-image model in Stable Diffusion 3 format, trained from scratch on pictures that are handed in.

It should render well and obey badly: how badly is decided by the captions that `draw` gives.
"""

from __future__ import annotations

import copy
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grpo_mm.pipelines.zoo.autoencoder import encode, train_autoencoder
from grpo_mm.pipelines.zoo.word_tokenizer import word_tokenizer
from grpo_mm.types import Prompt

Draw = Callable[[int, random.Random], tuple[np.ndarray, list[str]]]
"""(count, rng) -> uint8 [count, H, W, 3] and as many captions."""
Reward = Callable[[Tensor, Sequence[Prompt]], dict[str, Tensor]]
"""(uint8 [M, 3, H, W], M prompts) -> named scores [M]."""

TEXT_TOKENS = 12
EMPTY_T5_TOKENS = {0: 80, 16: 18, 256: 2}
"""Number of zero tokens that stand for the missing T5 encoder (`max_sequence_length` of the pipeline) and how often
each is trained. Zero is the cheapest; 256 is what a plain call of the pipeline uses."""


def build(
    out_dir: str | Path,
    *,
    draw: Draw,
    prompts: Sequence[Prompt] = (),
    reward: Reward | None = None,
    seed: int = 0,
    steps: int = 3000,
    batch: int = 128,
    lr: float = 1e-3,
    pool: int = 20_000,
    autoencoder_steps: int = 500,
    dim: int = 96,
    layers: int = 4,
    save_every: int = 250,
) -> None:
    """Trains the model and keeps its latest weights in `out_dir`, with the supervised curve in `curve.jsonl`.

    Args:
        draw: gives training images and captions; its captions make the vocabulary.
        prompts: held-out prompts that `reward` scores at every save, with the moving average of the weights.
        pool: images drawn once and trained on for many epochs.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "curve.jsonl").write_text("")
    torch.manual_seed(seed)
    images_NHWC, captions = draw(pool, random.Random(seed))
    images_NCHW = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).contiguous()
    vae = train_autoencoder(images_NCHW, steps=autoencoder_steps)
    pipe = _untrained(vae, captions, image_px=images_NCHW.shape[-1], dim=dim, layers=layers)
    data = (encode(vae, images_NCHW), pipe.tokenizer)
    started = time.monotonic()
    for step, loss, averaged in _train(pipe, *data, captions, steps, batch, lr, seed, save_every):
        scores = score(averaged, prompts, reward) if reward and prompts else {}
        with (out_dir / "curve.jsonl").open("a") as curve:
            row = {"step": step, "loss": loss, **scores, "seconds": time.monotonic() - started}
            curve.write(json.dumps({k: round(v, 4) for k, v in row.items()}) + "\n")
        save(averaged, out_dir)


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


def _train(pipe, latents_NCHW, tokenizer, captions, steps, batch, lr, seed, save_every):
    """Flow matching on transformer and text encoders; yields (step, loss, pipeline of averaged weights)."""
    tokens_NL = _tokens(tokenizer, captions)
    empty_L = _tokens(tokenizer, [""])[0]
    rng = random.Random(seed)
    models = (pipe.transformer, pipe.text_encoder, pipe.text_encoder_2)
    averaged = copy.deepcopy(pipe)
    averages = (averaged.transformer, averaged.text_encoder, averaged.text_encoder_2)
    parameters = [parameter for model in models for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, betas=(0.9, 0.98))
    warm_up = min(100, steps // 10 + 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / warm_up) * (0.02 + 0.98 * math.cos(math.pi / 2 * step / steps) ** 2)
    )
    losses = []
    for step in range(1, steps + 1):
        chosen_n = torch.randint(len(captions), (batch,))
        tokens_nL = torch.where(torch.rand(batch, 1) < 0.1, empty_L, tokens_NL[chosen_n])
        empty_t5 = rng.choices(list(EMPTY_T5_TOKENS), EMPTY_T5_TOKENS.values())[0]
        loss = _flow_matching_loss(pipe, latents_NCHW[chosen_n], tokens_nL, empty_t5)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        decay = min(0.998, step / (step + 10))
        with torch.no_grad():
            for average, model in zip(averages, models):
                for slow, fast in zip(average.parameters(), model.parameters()):
                    slow.lerp_(fast, 1 - decay)
        if step % save_every == 0 or step == steps:
            yield step, sum(losses) / len(losses), averaged
            losses.clear()


def _tokens(tokenizer, texts: Sequence[str]) -> Tensor:
    return tokenizer(
        list(texts), padding="max_length", max_length=TEXT_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids


def _flow_matching_loss(pipe, latents_nCHW: Tensor, tokens_nL: Tensor, empty_t5: int) -> Tensor:
    """|v(x_σ, σ) - (noise - x)|² at logit-normal σ, shifted as the scheduler shifts it (arXiv:2403.03206, eq. 23)."""
    rows = len(latents_nCHW)
    encoded = [model(tokens_nL, output_hidden_states=True) for model in (pipe.text_encoder, pipe.text_encoder_2)]
    text_nLD = torch.cat([one.hidden_states[-2] for one in encoded], dim=-1)
    text_nLD = torch.cat([text_nLD, text_nLD.new_zeros(rows, empty_t5, text_nLD.shape[-1])], dim=1)
    pooled_nD = torch.cat([one.text_embeds for one in encoded], dim=-1)
    sigma_n = torch.sigmoid(torch.randn(rows))
    shift = pipe.scheduler.config.shift
    sigma_n = shift * sigma_n / (1 + (shift - 1) * sigma_n)
    sigma_n111 = sigma_n.view(-1, 1, 1, 1)
    noise_nCHW = torch.randn_like(latents_nCHW)
    noisy_nCHW = (1 - sigma_n111) * latents_nCHW + sigma_n111 * noise_nCHW
    velocity_nCHW = pipe.transformer(noisy_nCHW, text_nLD, pooled_nD, 1000 * sigma_n).sample
    return (velocity_nCHW - (noise_nCHW - latents_nCHW)).square().mean()
