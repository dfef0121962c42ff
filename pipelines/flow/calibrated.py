"""DenseGRPO's noise calibration: as much noise at each step as leaves gains and losses in balance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpo_mm.advantages.actions.gains import Gains
from grpo_mm.advantages.combination.combine import WeightedSum
from grpo_mm.errors import ConfigError
from grpo_mm.identity import REFUSED
from grpo_mm.rollout.table import Table
from grpo_mm.types import BASELINE

KERNEL = "dance_sde"
"""With one level a step g = ψ(step) it is the paper's ψ-SDE."""


def flow_sde_levels(sigma_S1: Tensor, a: float) -> Tensor:
    """The g of Flow-SDE with noise level a, [S]: a·√(σ/(1 - σ)), with 1 - σ' for 1 - σ at σ = 1; the last step has none."""
    sigma, sigma_next = sigma_S1[:-1].double(), sigma_S1[1:].double()
    room = torch.where(sigma >= 1, 1 - sigma_next, 1 - sigma)
    level_S = a * (sigma / room).sqrt()
    level_S[-1] = 0
    return level_S.float()


@dataclass
class Calibrated:
    """Per-step noise levels ψ that follow the signs of the gains, then freeze: noise as state of the run.

    After each rollout, with p gains above 0 and q below at a step: ψ += `step_size` where |p - q| < `tolerance` (gains and
    losses balance, so more exploration is affordable), else ψ -= `step_size`. Frozen when every ψ has turned `turns` times,
    or after `rounds` rollouts. Goes with engine.tree={kind: clean_images} and the kernel dance_sde.

    Source: arXiv:2601.20218 (DenseGRPO), section 4.2, tolerance ε1 = 2, step ε2 = .01. The start, the number of rounds and
    when to stop are not given (uncertain): ours start from Flow-SDE's curve with a = `start`, and never go below `floor`.
    """

    start: float = 0.7
    tolerance: int = 2
    step_size: float = 0.01
    floor: float = 0.05
    turns: int = 3
    rounds: int = 100

    _shift: list[float] = field(default_factory=list, init=False, repr=False)
    """What was added to the start of each step."""
    _direction: list[int] = field(default_factory=list, init=False, repr=False)
    _turned: list[int] = field(default_factory=list, init=False, repr=False)
    _rounds: int = field(default=0, init=False, repr=False)
    _base: list[float] = field(default_factory=list, init=False, repr=False)
    _levels: list[float] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        sizes = (self.start, self.step_size, self.floor)
        if not all(0 < size < 1e3 for size in sizes) or min(self.tolerance, self.turns, self.rounds) < 1:
            raise ConfigError(
                f"calibrated: start = {self.start}, step_size = {self.step_size}, floor = {self.floor} must be above 0, and "
                f"tolerance = {self.tolerance}, turns = {self.turns}, rounds = {self.rounds} at least 1."
            )

    @property
    def kernel(self) -> str:
        return KERNEL

    @property
    def frozen(self) -> bool:
        return self._rounds >= self.rounds or (bool(self._turned) and min(self._turned) >= self.turns)

    def __call__(self, sigma_S1: Tensor, *, step: int, seed: int) -> Tensor:
        base_S = flow_sde_levels(sigma_S1, self.start)
        self._base = base_S[:-1].tolist()
        shift = torch.tensor(self._shift or [0.0] * len(self._base))
        level_S = torch.cat([(base_S[:-1] + shift).clamp_min(self.floor), base_S[-1:]])
        self._levels = level_S[:-1].tolist()
        return level_S

    def trained_steps(self, steps: int) -> int:
        return steps - 1

    def check(self, steps: int) -> None:
        if steps < 2:
            raise ConfigError(f"{steps} denoising step leaves nothing to calibrate. Use 2 or more.")

    def update(self, table: Table) -> None:
        """Moves every ψ by the signs of the gains in a step's table of raw rewards."""
        if self.frozen:
            return
        if not (table.columns["action"] == BASELINE).any():
            raise ConfigError(
                "calibrated noise needs the gain of every step: use engine.tree={kind: clean_images}, or a file that "
                "`grpo-mm calibrate` wrote."
            )
        gained = Gains()(WeightedSum()(table))
        (gain_M,), action_M = gained.values.values(), gained.columns["action"]
        size = len(self._base)
        self._shift = self._shift or [0.0] * size
        self._direction, self._turned = self._direction or [0] * size, self._turned or [0] * size
        for action in range(size):
            gain = gain_M[action_M == action]
            direction = 1 if abs(int((gain > 0).sum()) - int((gain < 0).sum())) < self.tolerance else -1
            shift = self._shift[action] + direction * self.step_size
            self._shift[action] = max(shift, self.floor - self._base[action])
            self._turned[action] += direction == -self._direction[action]
            self._direction[action] = direction
        self._rounds += 1

    def metrics(self) -> dict[str, float]:
        """The levels of the last rollout."""
        return {f"noise/level_{i:02d}": level for i, level in enumerate(self._levels)}

    def state_dict(self) -> dict[str, Any]:
        return {"shift": self._shift, "direction": self._direction, "turned": self._turned, "rounds": self._rounds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._shift, self._direction = list(state["shift"]), list(state["direction"])
        self._turned, self._rounds = list(state["turned"]), int(state["rounds"])


@dataclass(frozen=True)
class NoiseFile:
    """Noise levels that `grpo-mm calibrate` wrote; the file names its kernel and its schedule, which must be the run's.

    `content` is what the file holds: it is read when the config is, and travels with the config of a run, so that a run does
    not depend on the file once it began, and does not go on with another one.
    """

    path: str
    content: dict[str, Any] | None = field(default=None, metadata=REFUSED)
    """None: read the file."""

    def __post_init__(self) -> None:
        if self.content is None and Path(self.path).is_file():
            read = read_noise(self.path)
            object.__setattr__(self, "content", {key: read[key] for key in ("kernel", "sigmas", "levels")})
        elif self.content is not None:
            check_noise(self.content, self.path)

    def _get(self, key: str) -> Any:
        return (self.content or read_noise(self.path))[key]

    @property
    def kernel(self) -> str:
        return self._get("kernel")

    def __call__(self, sigma_S1: Tensor, *, step: int, seed: int) -> Tensor:
        return torch.tensor(self._get("levels"), dtype=torch.float32)

    def check_schedule(self, sigma_S1: Tensor) -> None:
        """Raises ConfigError unless the levels were calibrated on this schedule."""
        found, here = torch.tensor(self._get("sigmas"), dtype=torch.float32), sigma_S1.cpu().float()
        if found.shape == here.shape and torch.allclose(found, here, atol=1e-4):
            return
        size = min(len(found), len(here))
        first = next((i for i in range(size) if abs(found[i] - here[i]) > 1e-4), size)
        raise ConfigError(
            f"{self.path} was calibrated on another schedule: σ_{first} is {_at(found, first)} there, {_at(here, first)} in this "
            "run. Use the same steps and schedule, or calibrate again."
        )

    def trained_steps(self, steps: int) -> int:
        return sum(level > 0 for level in self._get("levels")[: steps - 1])

    def check(self, steps: int) -> None:
        levels = self._get("levels")
        if len(levels) != steps:
            raise ConfigError(
                f"{self.path} holds {len(levels)} noise levels, but the run has {steps} denoising steps. Use "
                f"engine.steps={len(levels)}, or calibrate again."
            )


def _at(sigma: Tensor, index: int) -> str:
    return f"{float(sigma[index]):.4f}" if index < len(sigma) else "absent"


def read_noise(path: str) -> dict[str, Any]:
    """The content of a noise file; ConfigError if it is none."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"noise file {path}: {error.strerror}. `grpo-mm calibrate CONFIG --out {path}` writes one."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"noise file {path} is not valid JSON: {error}. `grpo-mm calibrate CONFIG --out {path}` writes one."
        ) from error
    check_noise(found, path)
    return found


def check_noise(found: Any, path: str) -> None:
    """Raises ConfigError unless `found` is what a noise file holds."""
    wanted = {"kernel": str, "sigmas": list, "levels": list}
    if not isinstance(found, dict) or not all(isinstance(found.get(k), t) for k, t in wanted.items()):
        raise ConfigError(f"noise file {path} must hold `kernel`, `sigmas` and `levels`.")
    if found["kernel"] != KERNEL:
        raise ConfigError(f"noise file {path} names the kernel {found['kernel']!r}; its levels are for {KERNEL}.")
    numbers = [*found["sigmas"], *found["levels"]]
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) and 0 <= v < 1e30 for v in numbers):
        raise ConfigError(f"noise file {path}: sigmas and levels must be finite numbers of 0 or more.")


def write_noise(path: Path, *, sigma_S1: Tensor, level_S: Tensor, about: Mapping[str, Any]) -> None:
    """The file that `noise_file` reads; `about` says where it came from."""
    content = {"kernel": KERNEL, "sigmas": sigma_S1.tolist(), "levels": level_S.tolist(), **about}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
