"""Supervised flow matching for a pipeline in Stable Diffusion 3 format."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from grpo_mm.pipelines.zoo.autoencoder import encode

EMPTY_CAPTIONS = 0.1
"""Share of training rows without a caption, so that classifier-free guidance has something to lean on."""
EMPTY_T5_TOKENS = {0: 80, 16: 18, 256: 2}
"""Number of zero tokens that stand for the missing T5 encoder (`max_sequence_length` of the pipeline) and how often
each is trained. Zero is the cheapest; 256 is what a plain call of the pipeline uses."""


def train_flow(
    pipe: Any, images_NCHW: Tensor, captions: Sequence[str], *, steps: int, lr: float, save_every: int, batch: int = 64
) -> Iterator[tuple[int, float, Any]]:
    """Trains transformer and text encoders of `pipe` on uint8 images and their captions.

    Yields:
        (step, mean loss since the last one, a pipeline with the moving average of the weights, always the same object).
    """
    latents_NCHW, tokens_NL = encode(pipe.vae, images_NCHW), _tokens(pipe.tokenizer, captions)
    empty_L = _tokens(pipe.tokenizer, [""])[0]
    averaged = copy.deepcopy(pipe)
    parameters, averages = _trained_parameters(pipe), _trained_parameters(averaged)
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_up_and_decay(step, steps))
    losses = []
    for step in range(1, steps + 1):
        chosen_n = torch.randint(len(captions), (batch,))
        tokens_nL = torch.where(torch.rand(batch, 1) < EMPTY_CAPTIONS, empty_L, tokens_NL[chosen_n])
        loss = _flow_matching_loss(pipe, latents_NCHW[chosen_n], tokens_nL)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        with torch.no_grad():
            for average, parameter in zip(averages, parameters):
                average.lerp_(parameter, 1 - min(0.998, step / (step + 10)))
        if step % save_every == 0 or step == steps:
            yield step, sum(losses) / len(losses), averaged
            losses.clear()


def _trained_parameters(pipe: Any) -> list[Tensor]:
    return [
        parameter
        for model in (pipe.transformer, pipe.text_encoder, pipe.text_encoder_2)
        for parameter in model.parameters()
    ]


def _warm_up_and_decay(step: int, steps: int, warm_up: int = 100) -> float:
    return min(1, (step + 1) / warm_up) * (0.02 + 0.98 * math.cos(math.pi / 2 * step / steps) ** 2)


def _tokens(tokenizer, texts: Sequence[str]) -> Tensor:
    return tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids


def _flow_matching_loss(pipe: Any, latents_nCHW: Tensor, tokens_nL: Tensor) -> Tensor:
    """|v(x_σ, σ) - (noise - x)|² at logit-normal σ, shifted as the scheduler shifts it (arXiv:2403.03206, eq. 23)."""
    rows = len(latents_nCHW)
    counts, weights = torch.tensor(list(EMPTY_T5_TOKENS.items())).T
    empty_t5 = counts[torch.multinomial(weights.float(), 1)]
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
