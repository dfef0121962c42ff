"""Supervised flow matching, and its loss for a pipeline in Stable Diffusion 3 format."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from grpo_mm.pipelines.zoo.autoencoder import encode

EMPTY_CAPTIONS = 0.1
"""Share of training rows without a caption, so that classifier-free guidance has something to lean on."""
EMPTY_T5_TOKENS = {0: 80, 16: 18, 256: 2}
"""Number of zero tokens that stand for the missing T5 encoder (`max_sequence_length` of the pipeline) and how often
each is trained. Zero is the cheapest; 256 is what a plain call of the pipeline uses."""


Loss = Callable[[Any, Tensor, Tensor], Tensor]
"""(pipeline, latents [n, ...], tokens [n, L]) -> the mean squared error of the velocity."""


def train_flow(
    pipe: Any, images_NCHW: Tensor, captions: Sequence[str], *, steps: int, lr: float, save_every: int, batch: int = 64
) -> Iterator[tuple[int, float, Any]]:
    """Trains transformer and text encoders of a pipeline in Stable Diffusion 3 format on uint8 images and their captions.

    Yields:
        as `fit`.
    """
    latents_NCHW, tokens_NL = encode(pipe.vae, images_NCHW), padded_tokens(pipe.tokenizer, captions)
    trained = ("transformer", "text_encoder", "text_encoder_2")
    yield from fit(
        pipe,
        latents_NCHW,
        tokens_NL,
        trained,
        _flow_matching_loss,
        steps=steps,
        lr=lr,
        save_every=save_every,
        batch=batch,
    )


def fit(
    pipe: Any,
    latents_N: Tensor,
    tokens_NL: Tensor,
    trained: Sequence[str],
    loss_of: Loss,
    *,
    steps: int,
    lr: float,
    save_every: int,
    batch: int,
    schedule_steps: int | None = None,
) -> Iterator[tuple[int, float, Any]]:
    """Trains the parts of `pipe` that `trained` names on normalised latents [N, ...] and the tokens of their captions.

    Args:
        schedule_steps: over which the learning rate falls to nearly 0, where that is not `steps`.

    Yields:
        (step, mean loss since the last one, a pipeline with the moving average of the weights, always the same object).
    """
    empty_L = padded_tokens(pipe.tokenizer, [""], length=tokens_NL.shape[1])[0]
    averaged = copy.deepcopy(pipe)
    parameters, averages = _parameters(pipe, trained), _parameters(averaged, trained)
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _warm_up_and_decay(step, schedule_steps or steps)
    )
    losses = []
    for step in range(1, steps + 1):
        chosen_n = torch.randint(len(tokens_NL), (batch,))
        tokens_nL = torch.where(torch.rand(batch, 1) < EMPTY_CAPTIONS, empty_L, tokens_NL[chosen_n])
        loss = loss_of(pipe, latents_N[chosen_n], tokens_nL)
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


def _parameters(pipe: Any, names: Sequence[str]) -> list[Tensor]:
    return [parameter for name in names for parameter in getattr(pipe, name).parameters()]


def _warm_up_and_decay(step: int, steps: int, warm_up: int = 100) -> float:
    return min(1, (step + 1) / warm_up) * (0.02 + 0.98 * math.cos(math.pi / 2 * step / steps) ** 2)


def padded_tokens(tokenizer, texts: Sequence[str], *, length: int | None = None) -> Tensor:
    """[N, L]; L is `length`, by default the longest text that the tokenizer takes."""
    return tokenizer(
        list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids


def _flow_matching_loss(pipe: Any, latents_nCHW: Tensor, tokens_nL: Tensor) -> Tensor:
    """|v(x_σ, σ) - (noise - x)|² at random σ."""
    rows = len(latents_nCHW)
    counts, weights = torch.tensor(list(EMPTY_T5_TOKENS.items())).T
    empty_t5 = counts[torch.multinomial(weights.float(), 1)]
    encoded = [model(tokens_nL, output_hidden_states=True) for model in (pipe.text_encoder, pipe.text_encoder_2)]
    text_nLD = torch.cat([one.hidden_states[-2] for one in encoded], dim=-1)
    text_nLD = torch.cat([text_nLD, text_nLD.new_zeros(rows, empty_t5, text_nLD.shape[-1])], dim=1)
    pooled_nD = torch.cat([one.text_embeds for one in encoded], dim=-1)
    sigma_n = random_sigmas(rows, shift=pipe.scheduler.config.shift)
    noisy_nCHW, noise_nCHW = noised(latents_nCHW, sigma_n)
    velocity_nCHW = pipe.transformer(noisy_nCHW, text_nLD, pooled_nD, 1000 * sigma_n).sample
    return (velocity_nCHW - (noise_nCHW - latents_nCHW)).square().mean()


def random_sigmas(rows: int, *, shift: float) -> Tensor:
    """Logit-normal noise levels [n], shifted as the scheduler shifts them (arXiv:2403.03206, eq. 23)."""
    sigma_n = torch.sigmoid(torch.randn(rows))
    return shift * sigma_n / (1 + (shift - 1) * sigma_n)


def noised(latents_n: Tensor, sigma_n: Tensor) -> tuple[Tensor, Tensor]:
    """(x_σ, noise) of latents [n, ...] at noise levels [n]."""
    sigma = sigma_n.view(-1, *[1] * (latents_n.dim() - 1))
    noise = torch.randn_like(latents_n)
    return (1 - sigma) * latents_n + sigma * noise, noise
