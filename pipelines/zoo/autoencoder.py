"""A tiny image autoencoder for latent diffusion, trained from scratch."""

from __future__ import annotations

import torch
from torch import Tensor


def train_autoencoder(images_NCHW: Tensor, *, steps: int, batch: int = 64, lr: float = 2e-3, kl_weight: float = 2e-3):
    """A diffusers `AutoencoderKL` that halves the image's height and width, with four latent channels.

    Args:
        images_NCHW: [N, 3, H, W] uint8.
        kl_weight: of the KL divergence per latent element; the noise it puts on the latents teaches the decoder to
            draw clean outlines from latents that are slightly off.

    Returns:
        The model in eval mode; `shift_factor` and `scaling_factor` bring its latents to mean 0 and variance 1.
    """
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=images_NCHW.shape[-1],
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        pixels_nCHW = to_pixels(images_NCHW[torch.randint(len(images_NCHW), (batch,))])
        posterior = vae.encode(pixels_nCHW).latent_dist
        decoded_nCHW = vae.decode(posterior.sample()).sample
        error = (decoded_nCHW - pixels_nCHW).abs().mean() + (decoded_nCHW - pixels_nCHW).square().mean()
        loss = error + kl_weight * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    vae.eval().requires_grad_(False)
    sample_NCHW = torch.cat([vae.encode(to_pixels(part)).latent_dist.mean for part in images_NCHW[:1024].split(128)])
    vae.register_to_config(shift_factor=sample_NCHW.mean().item(), scaling_factor=1 / sample_NCHW.std().item())
    return vae


def encode(vae, images_NCHW: Tensor, *, batch: int = 256) -> Tensor:
    """uint8 images to normalised latents."""
    with torch.no_grad():
        latents_NCHW = torch.cat([vae.encode(to_pixels(part)).latent_dist.mean for part in images_NCHW.split(batch)])
    return (latents_NCHW - vae.config.shift_factor) * vae.config.scaling_factor


def decode(vae, latents_NCHW: Tensor, *, batch: int = 256) -> Tensor:
    """Normalised latents to uint8 images."""
    with torch.no_grad():
        raw_NCHW = latents_NCHW / vae.config.scaling_factor + vae.config.shift_factor
        pixels_NCHW = torch.cat([vae.decode(part).sample for part in raw_NCHW.split(batch)])
    return ((pixels_NCHW.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_pixels(images_NCHW: Tensor) -> Tensor:
    return images_NCHW.float() / 127.5 - 1
