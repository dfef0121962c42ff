"""Which pictures a checkpoint can make, as its settings say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grpo_mm.errors import ConfigError
from grpo_mm.outside import finite_number, shown
from grpo_mm.pipelines.weight_files import on_this_disk
from grpo_mm.weights.weight_files import read_settings

USUAL_TOKEN_PX = 16
USUAL_FRAMES = 4
PACKED = 2
"""Latents along a side of one image token, for networks without a table of positions."""

HALVINGS = {"block_out_channels": 1, "encoder_block_out_channels": 1, "temperal_downsample": 0}
"""Lists in the settings of autoencoders -> how many of their entries do not halve the sides of a picture."""


@dataclass(frozen=True)
class PictureSizes:
    """Example: Stable Diffusion 3.5 medium is PictureSizes(16, 6144)."""

    token_px: int = USUAL_TOKEN_PX
    """The side of one image token, in pixels."""
    most_px: int | None = None
    """The longest side for which the network's table has positions; None: positions are computed, for any side."""

    latent_frames: int = USUAL_FRAMES
    """Of clips: frames that one latent frame stands for, after the first, which stands for one."""

    def check_frames(self, setting: str, frames: int) -> None:
        """Raises ConfigError unless a clip of so many frames can be made."""
        if frames < 1 or (frames - 1) % self.latent_frames:
            least = max(0, frames - 1) // self.latent_frames * self.latent_frames + 1
            raise ConfigError(
                f"{setting} = {frames}; wanted one more than a multiple of {self.latent_frames}, of which the decoder makes them: "
                f"{least} or {least + self.latent_frames}."
            )

    def check(self, setting: str, side_px: int) -> None:
        """Raises ConfigError unless a side of so many pixels can be made."""
        if side_px < 1 or side_px % self.token_px:
            raise ConfigError(
                f"{setting} = {side_px}; wanted a multiple of {self.token_px}, the side of one image token."
            )
        if self.most_px is not None and side_px > self.most_px:
            raise ConfigError(
                f"{setting} = {side_px}; wanted at most {self.most_px}: the checkpoint's network has positions for "
                f"{self.most_px // self.token_px} image tokens of {self.token_px} pixels along a side."
            )


def sizes_on_disk(path: str, *, revision: str | None = None) -> PictureSizes:
    """Of a checkpoint in a local folder or in the hub's cache; of one that is not here only the usual side of a token."""
    folder = on_this_disk(path, revision=revision, file="model_index.json")
    files = [] if folder is None else [folder / part / "config.json" for part in ("vae", "transformer")]
    there = [read_settings(file) if file.is_file() else {} for file in files] or [{}, {}]
    return sizes_of(*there, where=path)


def sizes_of(vae: Mapping[str, Any], transformer: Mapping[str, Any], *, where: str) -> PictureSizes:
    """From the settings of both parts; empty ones tell nothing.

    Raises:
        ConfigError: settings that no such part has; `where` is the checkpoint.
    """
    name = next((name for name in HALVINGS if vae.get(name) is not None), None)
    if name is None:
        return PictureSizes()
    if not isinstance(vae[name], (list, tuple)):
        raise ConfigError(f"{where}, vae/config.json: {name} is {shown(vae[name])}; wanted a list.")
    latent_px = _count(
        vae.get("scale_factor_spatial") or 2 ** (len(vae[name]) - HALVINGS[name]), "scale_factor_spatial", where, "vae"
    )
    frames = _count(
        vae.get("scale_factor_temporal") or _frames_of(vae) or USUAL_FRAMES, "scale_factor_temporal", where, "vae"
    )
    positions = transformer.get("pos_embed_max_size")
    if name == "encoder_block_out_channels":  # so deep that its latents are not packed
        return PictureSizes(latent_px * _count(transformer.get("patch_size", 1), "patch_size", where))
    if positions is None:
        return PictureSizes(PACKED * latent_px, latent_frames=frames)
    token_px = latent_px * _count(transformer.get("patch_size", PACKED), "patch_size", where)
    return PictureSizes(token_px, token_px * _count(positions, "pos_embed_max_size", where))


def _frames_of(vae: Mapping[str, Any]) -> int:
    halved = vae.get("temperal_downsample")
    return 2 ** sum(map(bool, halved)) if isinstance(halved, (list, tuple)) else 0


def _count(value: Any, name: str, where: str, part: str = "transformer") -> int:
    number = finite_number(value)
    if number is None or number < 1 or number != int(number):
        raise ConfigError(
            f"{where}, {part}/config.json: {name} is {shown(value)}; wanted a whole number of at least 1."
        )
    return int(number)
