"""The grid that a checkpoint's own scheduler gives, as its plain diffusers pipeline samples on it."""

from __future__ import annotations

import copy
import inspect
import logging
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.outside import BadJson, parse_json, reason, shown
from grpo_mm.pipelines.flow.models.family import resolve
from grpo_mm.pipelines.flow.schedule import Schedule
from grpo_mm.pipelines.flow.solver import DpmSolverPP, Euler

log = logging.getLogger(__name__)

Exponent = Callable[[Mapping[str, Any], int, int], float]

FOLLOWED = "FlowMatchEulerDiscreteScheduler"
UNIPC = "UniPCMultistepScheduler"
"""What Wan's checkpoints are sampled by. Of a flow (`use_flow_sigmas`) it has the same shift, and other steps: of second order,
from σ spaced evenly, at times that are cut to whole numbers. Its shift is followed, by Euler steps."""
MULTISTEP = "DPMSolverMultistepScheduler"
OF_A_FLOW = {
    "use_flow_sigmas": True, "prediction_type": "flow_prediction", "algorithm_type": "dpmsolver++", "solver_type": "midpoint",
    "solver_order": 2, "final_sigmas_type": "zero", "thresholding": False, "use_karras_sigmas": False,
    "use_exponential_sigmas": False, "use_beta_sigmas": False, "use_lu_lambdas": False, "use_dynamic_shifting": False,
}  # fmt: skip
"""Settings with which that scheduler draws a flow as `dpmpp_2m` does (Sana)."""
TRAIN_TIMESTEPS = 1000
"""What σ is multiplied by for the network, here and in the pipelines."""
NAME_ONE = "Name a grid of your own, e.g. engine.schedule={kind: shifted, shift: 3}."
FIRST_STEP = 2e-3
"""How far below 1 a multistep scheduler begins: its noise levels are those of whole timesteps. Rollouts begin at 1, at pure noise."""
SAME = 1e-5
"""σ that differ by less are one grid: both are float32, computed in another order."""


@dataclass(frozen=True)
class OfCheckpoint:
    """Whatever the scheduler's settings say: static or resolution-dependent shift, a terminal σ, Karras, exponential, beta."""

    scheduler: Any
    """A diffusers scheduler; it is never changed."""
    evenly: bool
    """Whether the pipeline hands its scheduler linspace(1, 1/S, S), as FLUX does, instead of leaving the spacing to it."""
    exponent: Exponent | None = None
    """µ of the resolution-dependent shift from (scheduler's settings, image tokens, steps); None: as FLUX.1 computes it."""
    listed: tuple[float, ...] | None = None
    """What the pipeline hands its scheduler instead of even steps (`sample_sigmas` in model_index.json)."""
    instead_of: str = ""
    """The class of the checkpoint's own scheduler, where this one stands in for it."""

    @property
    def solver(self) -> Any:
        """How evaluation goes from σ to σ."""
        return DpmSolverPP() if type(self.scheduler).__name__ == MULTISTEP else Euler()

    def timed(self, sigma: Tensor) -> Tensor:
        """The noise level that the plain pipeline tells its network at `sigma`: that scheduler counts in whole timesteps."""
        return sigma if isinstance(self.solver, Euler) else (sigma * TRAIN_TIMESTEPS).floor() / TRAIN_TIMESTEPS

    def in_diffusers(self, steps: int) -> tuple[dict[str, Any], float]:
        """As of `Shifted`: no settings where the pipeline's own scheduler makes this grid."""
        return {
            "shift": float(self.scheduler.config.shift)
        } if self.instead_of else {}, 1 / steps if self.evenly else float(self.scheduler.sigma_min)

    def in_words(self, *, image_tokens: int) -> str:
        config = self.scheduler.config
        if isinstance(self.solver, DpmSolverPP):
            return (
                f"DPM-Solver++ in place of Euler, shift {float(config.flow_shift):g}, by the checkpoint's own scheduler"
            )
        if config.use_dynamic_shifting:
            kind = config.get("time_shift_type", "exponential")
            shift = f"{kind} shift by µ, which depends on the size of the picture"
            if self.exponent is None:
                shift = f"{kind} shift by µ = {_mu(config, image_tokens):.4g}, which depends on the size of the picture"
        else:
            shift = f"shift {float(config.shift):g}"
        if self.instead_of:
            return f"{shift}, as the checkpoint says, by a {FOLLOWED} in the place of its {self.instead_of}"
        return f"{shift}, by the checkpoint's own scheduler"

    def __call__(self, steps: int, *, image_tokens: int) -> Tensor:
        """Raises ConfigError for a grid that does not fall from 1 to 0."""
        sigma_S1 = self._said(steps, image_tokens)
        near = SAME if isinstance(self.solver, Euler) else FIRST_STEP
        if abs(float(sigma_S1[0]) - 1) < near:
            sigma_S1[0] = 1.0
        falls = bool((sigma_S1.diff() < 0).all()) and float(sigma_S1[0]) == 1 and float(sigma_S1[-1]) == 0
        if len(sigma_S1) != steps + 1 or not falls:
            raise ConfigError(
                f"the checkpoint's scheduler gives {len(sigma_S1) - 1} steps from σ = {float(sigma_S1[0]):g} to "
                f"{float(sigma_S1[-1]):g}; wanted {steps}, falling from 1 to 0. {NAME_ONE}"
            )
        return sigma_S1

    def exact(self, steps: int, *, image_tokens: int) -> Tensor:
        """For evaluation: that of a multistep scheduler as it is, which begins just below 1. Raises as a call."""
        rounded = self(steps, image_tokens=image_tokens)
        return rounded if isinstance(self.solver, Euler) else self._said(steps, image_tokens)

    def _said(self, steps: int, image_tokens: int) -> Tensor:
        scheduler, config = copy.deepcopy(self.scheduler), self.scheduler.config
        asked: dict[str, Any] = {"num_inference_steps": steps}
        if self.listed is not None:
            if len(self.listed) != steps:
                raise ConfigError(
                    f"the checkpoint lists the noise levels of {len(self.listed)} steps (sample_sigmas), and {steps} are asked for: set "
                    f"engine.steps and engine.eval_steps to {len(self.listed)}. {NAME_ONE}"
                )
            asked = {"sigmas": list(self.listed)}
        elif self.evenly:
            asked = {"sigmas": torch.linspace(1, 1 / steps, steps, dtype=torch.float64).numpy()}
        try:
            if config.use_dynamic_shifting:
                asked["mu"] = (self.exponent or _mu)(config, image_tokens, steps)
            scheduler.set_timesteps(**asked)
        except Exception as error:
            raise ConfigError(f"the checkpoint's scheduler gives no grid ({reason(error)}). {NAME_ONE}") from error
        return scheduler.sigmas.float().cpu()


def grid_of(family: Any) -> dict[str, Any]:
    """What a family says of its grid: arguments of the functions here."""
    return {"evenly": getattr(family, "even_sigmas", False), "exponent": getattr(family, "shift_exponent", None)}


def own_schedule(pipe: Any, *, evenly: bool, exponent: Exponent | None = None) -> OfCheckpoint:
    """The grid of a loaded pipeline.

    Raises:
        ConfigError: its scheduler steps otherwise than the Euler steps that are taken here, or there is none.
    """
    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is None:
        raise ConfigError(f"the checkpoint has no scheduler, so it has no grid of its own. {NAME_ONE}")
    check_scheduler(type(scheduler).__name__, scheduler.config)
    euler = followed(scheduler)
    listed = getattr(pipe, "config", {}).get("sample_sigmas")
    return OfCheckpoint(
        euler, evenly, exponent, listed=None if listed is None else tuple(map(float, listed)),
        instead_of="" if euler is scheduler else type(scheduler).__name__,
    )  # fmt: skip


def followed(scheduler: Any) -> Any:
    """The scheduler whose steps are taken: a checkpoint's own, or in the place of UniPC that of Euler with the same shift."""
    if type(scheduler).__name__ != UNIPC:
        return scheduler
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=float(scheduler.config.flow_shift))


def check_scheduler(name: str, config: Mapping[str, Any]) -> None:
    """Raises ConfigError for a scheduler whose steps are no plain Euler steps in σ · 1000."""
    if name == UNIPC:
        _check_unipc(config)
        return
    odd = [f"{key}: {shown(config[key])}" for key in ("stochastic_sampling", "invert_sigmas") if config.get(key)]
    if name == MULTISTEP:
        given = {"use_flow_sigmas": False, "prediction_type": "epsilon"} | dict(config)  # as the class has them
        odd += [f"{key}: {shown(given[key])}" for key, value in OF_A_FLOW.items() if given.get(key, value) != value]
    if config.get("num_train_timesteps", TRAIN_TIMESTEPS) != TRAIN_TIMESTEPS:
        odd.append(f"num_train_timesteps: {shown(config['num_train_timesteps'])}")
    if name not in (FOLLOWED, MULTISTEP) or odd:
        raise ConfigError(
            f"the checkpoint is sampled by a {shown(name).strip(chr(39))}{' with ' + ', '.join(odd) if odd else ''}, which cannot be "
            f"followed here: wanted a {FOLLOWED} of {TRAIN_TIMESTEPS} timesteps that is neither stochastic nor inverted, or a "
            f"{MULTISTEP} of flow sigmas. {NAME_ONE}"
        )


def _check_unipc(config: Mapping[str, Any]) -> None:
    """Raises ConfigError for one that samples no flow, or whose σ are more than shifted."""
    wanted = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "num_train_timesteps": TRAIN_TIMESTEPS}
    plain = ("use_dynamic_shifting", "shift_terminal", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
    odd = [f"{key}: {shown(config.get(key))}" for key, value in wanted.items() if config.get(key) != value]
    odd += [f"{key}: {shown(config[key])}" for key in plain if config.get(key)]
    if odd:
        raise ConfigError(
            f"the checkpoint is sampled by a {UNIPC} with {', '.join(odd)}, which cannot be followed here: wanted one of a flow "
            f"with a plain shift. {NAME_ONE}"
        )


def check_scheduler_files(model: Any) -> None:
    """The same before anything is loaded, as far as the local folder of a family's `path` tells."""
    config = _settings_on_disk(model)
    if config is not None:
        check_scheduler(str(config.get("_class_name", FOLLOWED)), config)


def schedule_on_disk(model: Any) -> OfCheckpoint | None:
    """The grid of a checkpoint of which nothing is loaded; None where its folder is not here. Its scheduler is one that is followed."""
    import diffusers

    config = _settings_on_disk(model)
    if config is None:
        return None
    name = str(config.get("_class_name", FOLLOWED))
    scheduler = followed(getattr(diffusers, name).from_config(config))
    return OfCheckpoint(scheduler, **grid_of(model), instead_of=name if name == UNIPC else "")


def _settings_on_disk(model: Any) -> dict[str, Any] | None:
    """Those of the scheduler in the local folder of a family's `path`. Raises ConfigError for a folder without, or a file that is none."""
    path = getattr(model, "path", None) or "random:"
    file = Path(resolve(path)) / "scheduler" / "scheduler_config.json"
    if path.startswith("random:") or not (file.parent.parent / "model_index.json").is_file():
        return None
    if not file.is_file():
        raise ConfigError(f"{shown(path)} has no scheduler/{file.name}, so it has no grid of its own. {NAME_ONE}")
    try:
        # A limit that is none is written so by diffusers, in its own files.
        text = re.sub(r'("lambda_min_clipped"\s*:\s*)-Infinity', r"\1null", file.read_text(encoding="utf-8"))
        config = parse_json(text)
    except (BadJson, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{shown(str(file))} cannot be read: {reason(error)}.") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{shown(str(file))} holds {shown(config)}; wanted the settings of a scheduler.")
    return config


def tell_of_a_stand_in(pipe: Any) -> bool:
    """One line in the log where the checkpoint's scheduler takes other steps than are taken here; True."""
    scheduler = pipe.scheduler
    if type(scheduler).__name__ == UNIPC:
        log.info(
            "the checkpoint is sampled by a %s of order %d; here Euler steps are taken, on the grid of a %s with its shift, %g. Same noise gives "
            "another sample: put that scheduler into the plain pipeline too, as the model card does.",
            UNIPC, scheduler.config.solver_order, FOLLOWED, scheduler.config.flow_shift,
        )  # fmt: skip
    return True


def tell_of_another_grid(
    schedule: Schedule, pipe: Any, *, evenly: bool, steps: int, image_tokens: int, exponent: Exponent | None = None
) -> None:
    """One line in the log where a config's grid is not the checkpoint's; the run does as the config says."""
    here = schedule(steps, image_tokens=image_tokens)
    try:
        own = own_schedule(pipe, evenly=evenly, exponent=exponent)(steps, image_tokens=image_tokens)
    except ConfigError as error:
        log.info("engine.schedule is followed; %s", str(error).removesuffix(NAME_ONE).rstrip(" ."))
        return
    gap_S1 = (here - own).abs()
    if float(gap_S1.max()) > SAME:
        at = int(gap_S1.argmax())
        log.info(
            "engine.schedule is followed, which is not the grid of the checkpoint's scheduler: of %d steps σ_%d is %.4f, "
            "there %.4f. Leave engine.schedule out to sample as the checkpoint does.",
            steps, at, float(here[at]), float(own[at]),
        )  # fmt: skip


def in_plain_diffusers(
    schedule: Schedule, pipe: Any, *, evenly: bool, steps: int, image_tokens: int, exponent: Exponent | None = None
) -> tuple[dict[str, Any] | None, str | None]:
    """(settings of the Euler scheduler to put in, or None where the pipeline's own will do; Python text of `sigmas`).

    The pipeline called with these `sigmas` samples on the grid of `schedule`; without any, None, where its scheduler takes none.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    if isinstance(schedule, OfCheckpoint) and isinstance(schedule.solver, DpmSolverPP):
        return None, None

    wanted = schedule(steps, image_tokens=image_tokens)
    tried: list[Any] = []
    with suppress(ConfigError):  # it has none, or one of another kind
        tried.append(own_schedule(pipe, evenly=evenly, exponent=exponent))
    tried += [schedule] if hasattr(schedule, "in_diffusers") else []
    for one in tried:
        settings, last = one.in_diffusers(steps)
        scheduler = one.scheduler if isinstance(one, OfCheckpoint) else FlowMatchEulerDiscreteScheduler(**settings)
        made = _from_even(scheduler, steps, last, mu=(exponent or _mu)(scheduler.config, image_tokens, steps))
        if made is not None and float((made - wanted).abs().max()) < SAME:
            return settings or None, f"numpy.linspace(1, {last:.7g}, {steps})"
    return {"shift": 1.0}, f"[{', '.join(f'{float(s):.7g}' for s in wanted[:-1])}]"


def _from_even(scheduler: Any, steps: int, last: float, *, mu: float) -> Tensor | None:
    """What a scheduler makes of linspace(1, last, S); None where it cannot."""
    scheduler = copy.deepcopy(scheduler)
    asked = {"mu": mu} if scheduler.config.use_dynamic_shifting else {}
    try:
        scheduler.set_timesteps(sigmas=torch.linspace(1, last, steps, dtype=torch.float64).numpy(), **asked)
    except Exception:  # whatever a scheduler makes of settings that it was not meant for
        return None
    sigma_S1 = scheduler.sigmas.float().cpu()
    return sigma_S1 if len(sigma_S1) == steps + 1 else None


def _mu(config: Mapping[str, Any], image_tokens: int, steps: int = 0) -> float:
    """The exponent of the resolution-dependent shift, as most pipelines compute it: whatever the number of steps."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    default = [parameter.default for parameter in inspect.signature(calculate_shift).parameters.values()][1:]
    return calculate_shift(image_tokens, *(config.get(name, d) for name, d in zip(names, default, strict=True)))
