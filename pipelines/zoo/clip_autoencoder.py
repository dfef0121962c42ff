"""A tiny autoencoder of clips for latent diffusion, trained from scratch: Wan's, which looks back in time only."""

from __future__ import annotations

import torch
from torch import Tensor


def train_clip_autoencoder(
    clips_NCFHW: Tensor,
    *,
    steps: int,
    batch: int = 8,
    lr: float = 3e-3,
    kl_weight: float = 1e-3,
    channels: int = 8,
    latent_channels: int = 8,
):
    """A diffusers `AutoencoderKLWan` that takes 4 × 4 pixels of four frames together; the first frame stands alone.

    Args:
        clips_NCFHW: [N, 3, 4k + 1, H, W] uint8.
        kl_weight: of the KL divergence per latent element, as for pictures.
        channels: at full resolution, where most of the time goes.

    Returns:
        The model in eval mode; `latents_mean` and `latents_std` bring each channel of its latents to mean 0 and variance 1.
    """
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan(
        base_dim=channels,
        z_dim=latent_channels,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.0] * latent_channels,
        latents_std=[1.0] * latent_channels,
        scale_factor_spatial=4,
    )
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        pixels_nCFHW = to_pixels(clips_NCFHW[torch.randint(len(clips_NCFHW), (batch,))])
        posterior = vae.encode(pixels_nCFHW).latent_dist
        decoded_nCFHW = vae.decode(posterior.sample()).sample
        error = (decoded_nCFHW - pixels_nCFHW).abs().mean() + (decoded_nCFHW - pixels_nCFHW).square().mean()
        kl = (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean() / 2  # its own `kl` is for pictures
        loss = error + kl_weight * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    vae.eval().requires_grad_(False)
    sample_NCFHW = encode(vae, clips_NCFHW[:1024])
    vae.register_to_config(
        latents_mean=[round(value, 4) for value in sample_NCFHW.mean((0, 2, 3, 4)).tolist()],
        latents_std=[round(value, 4) for value in sample_NCFHW.std((0, 2, 3, 4)).tolist()],
    )
    return vae


def encode(vae, clips_NCFHW: Tensor, *, batch: int = 64) -> Tensor:
    """uint8 clips to normalised latents [N, C, f, h, w]."""
    with torch.no_grad():
        parts = [vae.encode(to_pixels(part)).latent_dist.mean for part in clips_NCFHW.split(batch)]
    return (torch.cat(parts) - _per_channel(vae.config.latents_mean)) / _per_channel(vae.config.latents_std)


def _per_channel(values: list[float]) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1, 1)


def to_pixels(clips_NCFHW: Tensor) -> Tensor:
    return clips_NCFHW.float() / 127.5 - 1


def refine_decoder(
    vae, clips_NCFHW: Tensor, *, steps: int, batch: int = 8, lr: float = 2e-3, noise: float = 0.15
) -> None:
    """Trains the decoder alone, on latents that stay as they are but for a little noise, as a generator's are never exact.

    Args:
        noise: standard deviation, in normalised latents.
    """
    latents_NCfhw = encode(vae, clips_NCFHW)
    mean, std = _per_channel(vae.config.latents_mean), _per_channel(vae.config.latents_std)
    decoding = [*vae.post_quant_conv.parameters(), *vae.decoder.parameters()]
    for parameter in decoding:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(decoding, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        chosen_n = torch.randint(len(clips_NCFHW), (batch,))
        near_nCfhw = latents_NCfhw[chosen_n] + noise * torch.randn_like(latents_NCfhw[:batch])
        difference = vae.decode(near_nCfhw * std + mean).sample - to_pixels(clips_NCFHW[chosen_n])
        optimizer.zero_grad()
        (difference.abs().mean() + difference.square().mean()).backward()
        torch.nn.utils.clip_grad_norm_(decoding, 1.0)
        optimizer.step()
        schedule.step()
    vae.requires_grad_(False)
