"""What rewards take for pictures: uint8, or floats whose range is declared; never a guess from the numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpo_mm.errors import UserError
from grpo_mm.outside import finite_number, shown
from grpo_mm.types import Clips, is_relative


@dataclass(frozen=True, eq=False)
class FloatPictures:
    """Pictures as floats, with the numbers that mean black and white.

    Example: Hps()(FloatPictures(images, low=-1.0, high=1.0), prompts).
    """

    images: Any
    """[M, 3, H, W], or a list of [3, H, W]."""
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        low, high = finite_number(self.low), finite_number(self.high)
        if low is None or high is None or not low < high:
            raise UserError(f"pictures from low = {shown(self.low)} to high = {shown(self.high)}; wanted low < high.")
        if not hasattr(self.images, "__len__"):
            raise UserError(f"FloatPictures hold a {type(self.images).__name__}; wanted floats [M, 3, H, W].")


def takes_pictures(score: Callable[..., Any]) -> Callable[..., Any]:
    """For the `__call__` of a reward that works on uint8 [M, 3, H, W]: it then takes whatever `ready` does.

    Pictures of different sizes are scored size by size; what is no picture (None, NaN) gets NaN.

    Raises:
        UserError: as `ready`, or a reward that compares pictures gets them in several sizes; clips.
    """

    @functools.wraps(score)
    def scored(self: Any, items: Any, prompts: Sequence[Any], *groups: Tensor) -> dict[str, Tensor]:
        if isinstance(items, Tensor) and items.dtype == torch.uint8 and items.ndim == 4 and items.shape[1] == 3:
            return score(self, items, prompts, *groups)
        if isinstance(items, Clips):
            raise UserError(
                f"{type(self).__name__} scores pictures, and these are clips: say frames: mean, or min, beside its `use`."
            )
        pictures = ready(items)
        if len(prompts) != len(pictures):
            raise UserError(f"{len(pictures)} pictures and {len(prompts)} prompts; wanted one prompt for each picture.")
        by_size: dict[Any, list[int]] = {}
        for i, picture in enumerate(pictures):
            if picture is not None:
                by_size.setdefault(picture.shape, []).append(i)
        if len(by_size) > 1 and is_relative(self):
            raise UserError(f"pictures of {len(by_size)} sizes cannot be compared with each other; bring them to one.")
        found: dict[str, Tensor] = {"score": torch.full((len(pictures),), torch.nan)}
        for rows in by_size.values():
            index = torch.tensor(rows)
            here = torch.stack([pictures[i] for i in rows])
            parts = score(self, here, [prompts[i] for i in rows], *(group[index] for group in groups))
            for name, value in parts.items():
                value = torch.as_tensor(value, dtype=torch.float32).cpu()
                found.setdefault(name, torch.full((len(pictures),), torch.nan))[index] = value
        return found

    scored.takes = "pictures"  # type: ignore[attr-defined]
    return scored


def ready(items: Any) -> list[Tensor | None]:
    """uint8 [3, H, W] each: of [M, 3, H, W] or a sequence of [3, H, W] in uint8 (tensors or arrays), of PIL pictures in RGB,
    or of `FloatPictures`, where numbers beyond the range are cut to it. None for None, and for floats that are not all finite.

    Raises:
        UserError: anything else, floats without a declared range first of all.
    """
    if isinstance(items, FloatPictures):
        return [None if one is None else _from_floats(one, items) for one in items.images]
    if isinstance(items, str | bytes) or not hasattr(items, "__len__"):
        raise UserError(f"pictures are a {type(items).__name__}; wanted uint8 [M, 3, H, W].")
    return [None if one is None else _checked(one) for one in items]


def _checked(one: Any) -> Tensor:
    if hasattr(one, "getbands"):
        import numpy as np

        if one.mode != "RGB":
            raise UserError(f"a PIL picture of mode {one.mode}; wanted RGB: only you know what its other bands mean.")
        return torch.from_numpy(np.array(one)).permute(2, 0, 1).contiguous()
    picture = _tensor(one)
    if picture.is_floating_point() and picture.ndim == 3:
        raise UserError(
            f"pictures are {picture.dtype}, and their numbers do not tell whether 1.0 is white. Give uint8, or say the range: "
            "grpo_mm.rewards.shared.pictures.FloatPictures(images, low=0.0, high=1.0)."
        )
    if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] != 3 or not picture.numel():
        shape = f"{picture.dtype} {list(picture.shape)}" if hasattr(one, "shape") else type(one).__name__
        raise UserError(f"a picture is {shape}; wanted uint8 [3, H, W].")
    return picture


def _tensor(one: Any) -> Tensor:
    """Of a tensor or an array, also one that is turned or read only; empty for anything else."""
    import numpy as np

    if isinstance(one, np.ndarray):
        fine = one.flags.writeable and all(stride >= 0 for stride in one.strides)
        one = one if fine else one.copy()
    try:
        return torch.as_tensor(one) if hasattr(one, "shape") else torch.zeros(0)
    except TypeError:  # an array of objects
        return torch.zeros(0)


def _from_floats(given: Any, declared: FloatPictures) -> Tensor | None:
    one = _tensor(given)
    if not hasattr(given, "shape"):
        raise UserError(f"a picture is {type(given).__name__}; wanted floats [3, H, W] in FloatPictures.")
    if not one.is_floating_point() or one.ndim != 3 or one.shape[0] != 3 or not one.numel():
        raise UserError(f"a picture is {one.dtype} {list(one.shape)}; wanted floats [3, H, W] in FloatPictures.")
    if not one.isfinite().all():
        return None
    unit = (one.float() - declared.low) / (declared.high - declared.low)
    return (unit.clamp(0, 1) * 255).round().to(torch.uint8)
