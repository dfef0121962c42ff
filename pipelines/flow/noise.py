"""Where a rollout is random: one vector `noise_level_S`, and which of its steps are trained.

"All steps", "fast", "SDE window", "sliding window" and "calibrated noise" are values of this vector, not modes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.processes.rng import stream


class Noise(Protocol):
    """The noise levels of training step `step` on a schedule of S steps, [S] float32; the same for all rows.

    A pure function of its arguments (and of the state of a component that has one).
    """

    def __call__(self, sigma_S1: Tensor, *, step: int, seed: int) -> Tensor: ...

    def trained_steps(self, steps: int) -> int:
        """How many steps are noisy at most."""
        ...

    def check(self, steps: int) -> None:
        """Raises ConfigError if a window is empty or overruns."""
        ...


@dataclass(frozen=True)
class AllSteps:
    """Noise on every step (Flow-GRPO, DanceGRPO).

    `last`: also on the step to σ = 0. It is never trained: its noise stays in the image. Without it the last step gives
    x̂0, as DanceGRPO decodes.

    Source: arXiv:2505.05470; arXiv:2505.07818, section 3.
    """

    level: float = 0.7
    """Strength of the noise: a of the kernel's standard deviation, such as a·√(σ/(1-σ)) for flow_sde; 0: none."""
    last: bool = False
    """Also on the step to σ = 0, whose noise stays in the picture and is never trained."""

    def __call__(self, sigma_S1: Tensor, *, step: int, seed: int) -> Tensor:
        level_S = torch.full((sigma_S1.numel() - 1,), self.level)
        if not self.last:
            level_S[-1] = 0
        return level_S

    def trained_steps(self, steps: int) -> int:
        return steps - 1

    def check(self, steps: int) -> None:
        if steps < 2:
            raise ConfigError(
                f"{steps} denoising step leaves nothing to train: the last one is never trained. Use 2 or more."
            )


@dataclass(frozen=True)
class Window:
    """Noise on `size` neighbouring steps whose start is drawn anew for each training step (Flow-GRPO-Fast).

    `within` = (low, high): the window lies in steps low … high - 1. With high - low = size it is fixed. One window for
    all rows of a training step: members of a group with different windows are not comparable.

    Source: arXiv:2505.05470, released code (sde_window_size, sde_window_range).
    """

    size: int
    """Neighbouring denoising steps with noise, which are those that are trained."""
    within: tuple[int, int]
    """[low, high]: the window lies in steps low … high - 1, counted from 0."""
    level: float = 0.7
    """Strength of the noise: a of the kernel's standard deviation, such as a·√(σ/(1-σ)) for flow_sde; 0: none."""

    def __call__(self, sigma_S1: Tensor, *, step: int, seed: int) -> Tensor:
        low, high = self.within
        start = int(torch.randint(low, high - self.size + 1, (), generator=stream(seed, "noise_window", step)))
        return _levels(sigma_S1.numel() - 1, start, self.size, self.level)

    def trained_steps(self, steps: int) -> int:
        return self.size

    def check(self, steps: int) -> None:
        low, high = self.within
        _check_window(steps, size=self.size, first=low, last=high - self.size)


@dataclass(frozen=True)
class SlidingWindow:
    """Noise on a window that moves over the run (MixGRPO); never empty, and never on the last step.

    progressive: the start advances by `stride` every `every` training steps, and returns to 0 past the end.
    random: the start is uniform for each training step.
    decay: like progressive, but the training steps spent at position l fall linearly from `every` to 1.
    exp_decay: the training steps spent at position l are ⌈every · exp(-.1 · max(0, l - 13))⌉.
    frozen: the start stays 0.

    Source: arXiv:2507.21802 (MixGRPO), section 3.2; τ = `every`, s = `stride`, w = `size`. The released window shrinks
    near the end and is empty there once; here the start is clamped instead.
    """

    size: int = 4
    """w: neighbouring denoising steps with noise, which are those that are trained."""
    every: int = 25
    """τ: training steps that the window stays where it is."""
    stride: int = 1
    """s: denoising steps by which it moves."""
    strategy: Literal["progressive", "random", "decay", "exp_decay", "frozen"] = "progressive"
    """How its start moves over the run, as told above."""
    roll_back: bool = True
    """Past the end it returns to 0; false: it stays at the end."""
    level: float = 0.7
    """Strength of the noise: a of the kernel's standard deviation, such as a·√(σ/(1-σ)) for flow_sde; 0: none."""

    def __call__(self, sigma_S1: Tensor, *, step: int, seed: int) -> Tensor:
        steps = sigma_S1.numel() - 1
        return _levels(steps, self.start(steps, step=step, seed=seed), self.size, self.level)

    def start(self, steps: int, *, step: int, seed: int) -> int:
        """The first step of the window at training step `step`."""
        positions = list(range(0, steps - 1 - self.size, self.stride)) + [steps - 1 - self.size]
        if self.strategy == "frozen":
            return 0
        if self.strategy == "random":
            return int(torch.randint(0, positions[-1] + 1, (), generator=stream(seed, "noise_window", step)))
        if self.strategy == "progressive":
            stay = [self.every] * len(positions)
        elif self.strategy == "exp_decay":
            stay = [math.ceil(self.every * math.exp(-0.1 * max(0, position - 13))) for position in positions]
        else:
            last = max(1, len(positions) - 1)
            stay = [max(1, round(self.every - (self.every - 1) * i / last)) for i in range(len(positions))]
        step = step % sum(stay) if self.roll_back else min(step, sum(stay) - 1)
        for position, length in zip(positions, stay, strict=True):
            if step < length:
                return position
            step -= length
        raise AssertionError("a step lies within one round")

    def trained_steps(self, steps: int) -> int:
        return self.size

    def check(self, steps: int) -> None:
        if self.every < 1 or self.stride < 1:
            raise ConfigError(
                f"sliding_window: every = {self.every} and stride = {self.stride}; both must be at least 1."
            )
        _check_window(steps, size=self.size, first=0, last=steps - 1 - self.size)


@dataclass(frozen=True)
class GeometricWindow:
    """Noise on `size` neighbouring steps whose start i is drawn anew for each training step with P(i) ∝ ratio^i.

    Early starts are likelier. One window for all rows of a training step.

    Source: arXiv:2512.08153 (TreeGRPO), truncated geometric law with r = .5.
    """

    size: int = 3
    """Neighbouring denoising steps with noise, which are those that are trained."""
    ratio: float = 0.5
    """r: how much less likely each later start is."""
    level: float = 0.7
    """Strength of the noise: a of the kernel's standard deviation, such as a·√(σ/(1-σ)) for flow_sde; 0: none."""

    def __call__(self, sigma_S1: Tensor, *, step: int, seed: int) -> Tensor:
        steps = sigma_S1.numel() - 1
        weight = torch.tensor([self.ratio**i for i in range(steps - self.size)], dtype=torch.float64)
        start = int(torch.multinomial(weight, 1, generator=stream(seed, "noise_window", step)))
        return _levels(steps, start, self.size, self.level)

    def trained_steps(self, steps: int) -> int:
        return self.size

    def check(self, steps: int) -> None:
        if not 0 < self.ratio <= 1:
            raise ConfigError(f"geometric_window: ratio = {self.ratio}; wanted a number in (0, 1].")
        _check_window(steps, size=self.size, first=0, last=steps - 1 - self.size)


@dataclass(frozen=True)
class Levels:
    """A noise level for each step, given as numbers; those of the last step are sampled and not trained."""

    levels: tuple[float, ...]
    """Strength of the noise at each denoising step, the first one first; 0: no noise, so not trained."""

    def __call__(self, sigma_S1: Tensor, *, step: int, seed: int) -> Tensor:
        return torch.tensor(self.levels)

    def trained_steps(self, steps: int) -> int:
        return sum(level > 0 for level in self.levels[: steps - 1])

    def check(self, steps: int) -> None:
        if len(self.levels) != steps or min(self.levels) < 0:
            raise ConfigError(
                f"noise: {len(self.levels)} levels for {steps} denoising steps; wanted as many, each 0 or more."
            )


def _levels(steps: int, start: int, size: int, level: float) -> Tensor:
    level_S = torch.zeros(steps)
    level_S[start : start + size] = level
    return level_S


def _check_window(steps: int, *, size: int, first: int, last: int) -> None:
    if size < 1:
        raise ConfigError(f"the noise window has size {size}: it is empty, and nothing would be trained.")
    if last < first:
        raise ConfigError(f"a noise window of {size} steps does not fit into its range of {last - first + size}.")
    if first < 0 or last + size > steps - 1:
        raise ConfigError(
            f"the noise window reaches step {last + size - 1} of {steps} (counted from 0); the last one that can be "
            f"trained is {steps - 2}. Shorten the window or its range."
        )


def trained_mask(noise_level_S: Tensor, sigma_S1: Tensor) -> Tensor:
    """[S] bool: steps with noise whose σ' > 0. Noise of a step to σ' = 0 stays in the image and is not trained."""
    return (noise_level_S > 0) & (sigma_S1[1:] > 0)


def trained_steps(noise_level_S: Tensor, sigma_S1: Tensor) -> list[int]:
    """The numbers of the steps in `trained_mask`."""
    return torch.nonzero(trained_mask(noise_level_S, sigma_S1)).flatten().tolist()


def trained_subset(num_noisy: int, *, fraction: float, generator: torch.Generator) -> Tensor:
    """A random ⌈fraction · num_noisy⌉ of 0 … num_noisy - 1, sorted, [A]: DanceGRPO's τ (arXiv:2505.07818)."""
    keep = max(1, math.ceil(fraction * num_noisy - 1e-9))
    if keep == num_noisy:
        return torch.arange(num_noisy)
    return torch.randperm(num_noisy, generator=generator)[:keep].sort().values
