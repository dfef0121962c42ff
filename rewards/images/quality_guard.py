"""Does the picture still look like a picture? A reward against blur, grain, blank and harsh images that needs no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.identity import FREE
from grpo_mm.looking.image_statistics import image_statistics
from grpo_mm.rewards.shared.pictures import takes_pictures
from grpo_mm.types import Prompt

Band = tuple[float, float, float, float]
"""0 up to the first number, 1 from the second to the third, 0 from the fourth on, straight lines between."""


def band_score(value_M: Tensor, band: Band) -> Tensor:
    """[M] -> [M], 0 to 1: how far each value lies in a band."""
    none_below, all_from, all_to, none_above = band
    rising, falling = (value_M - none_below) / (all_from - none_below), (none_above - value_M) / (none_above - all_to)
    return torch.minimum(rising, falling).clamp(0, 1)


@dataclass
class QualityGuard:
    """score = the lower of two bands, sharpness and contrast as in `image_statistics`; 1 for ordinary pictures.

    It has no opinion within the bands, so it cannot be climbed for its own sake; it only costs to leave them. The parts
    are both statistics.

    The defaults come from photographs of 256 to 512 px, with a sharpness of 40 to 860 and a contrast of .09 to .30. A
    colour gradient has a sharpness of 1, a blank picture a contrast of 0, and grain of 17 grey levels adds a sharpness
    of 20 × 17² = 5780. Sharpness falls with size: drawn shapes of 32 px have 500 to 3500, photographs enlarged to
    1024 px come down to 5 to 160. So set the bands from pictures of the model before training.
    """

    sharpness: Band = (5.0, 30.0, 2000.0, 6000.0)
    """Variance of the Laplacian of luminance, 0 to 255."""
    contrast: Band = (0.02, 0.08, 0.35, 0.45)
    """Standard deviation of luminance, 0 to 1; half black and half white has .5."""
    batch_size: int = field(default=32, metadata=FREE)

    def __post_init__(self) -> None:
        for key in ("sharpness", "contrast"):
            none_below, all_from, all_to, none_above = band = getattr(self, key)
            if not none_below < all_from <= all_to < none_above:
                raise ConfigError(f"{key} = {list(band)}, wanted four numbers a < b <= c < d.")

    @takes_pictures
    def __call__(self, items: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """uint8 [M, 3, H, W] -> score, sharpness and contrast, [M] each; prompts are not read."""
        chunks = [image_statistics(chunk) for chunk in items.split(self.batch_size)]
        parts = {name: torch.cat([chunk[name] for chunk in chunks]) for name in ("sharpness", "contrast")}
        bands = [band_score(parts[name], getattr(self, name)) for name in parts]
        return {"score": torch.minimum(*bands), **parts}
