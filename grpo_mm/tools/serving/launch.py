"""A config as a launch: the commands of its trainers and services, and where they go."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from grpo_mm.config.run_config import RunConfig, read
from grpo_mm.errors import UserError
from grpo_mm.launch.bell import Bell, NoBell, ring
from grpo_mm.launch.here import Here
from grpo_mm.launch.launcher import Job, Launcher, while_stopping_on_signals
from grpo_mm.launch.over_ray import OverRay
from grpo_mm.launch.places import Place, Wanted
from grpo_mm.launch.services import ToServe
from grpo_mm.launch.settings import ENGINES
from grpo_mm.pipelines.vlm.engine_server.elsewhere import drawn_by
from grpo_mm.processes.services import SCHEME

TOKEN = "GRPO_MM_TOKEN"
PYTHON = "{python}"
"""That of the worker: what Ray has installed for it is there."""
HANDED_ON = (
    "GRPO_MM_",
    "HF_",
    "OMP_",
    "MKL_",
    "NCCL_",
    "GLOO_",
    "TORCH_",
    "TRANSFORMERS_",
    "WANDB_",
    "PIP_",
    "PYTHONPATH",
    "XDG_CONFIG_HOME",
    "XDG_CACHE_HOME",
)
"""Beginnings of the names of variables that trainers and services get from who launches, on whatever machine they are."""


def launch(
    config: Path,
    overrides: Sequence[str],
    *,
    address: str | None,
    options: Sequence[str] = (),
    first: Sequence[str] = (),
    told: Callable[[str], None] = print,
    trust: bool = False,
) -> int:
    """Trains a config over a Ray cluster, or on this machine (address: None), until it has ended; the exit code.

    Args:
        options: of `grpo-mm train`, for every start; `first`: for the first one alone.

    Raises:
        UserError: a config that cannot run, a cluster that cannot be reached, no room, a service that does not come up; a launcher of
            this run that is there already.
    """
    settings = read(config, overrides, trust=trust)
    as_launched(settings).check_settings(world=settings.launch.trainers)
    folder = str(settings.folder.absolute())
    place: Place = Here() if address is None else OverRay(address)
    try:
        bell = NoBell() if address is None else Bell(folder)
        job = job_of(settings, config, overrides, place=place, options=options, first=first)
    except BaseException:
        place.close()
        raise
    many = f"{settings.launch.trainers} trainer{'s' * (settings.launch.trainers > 1)} of {job.trainer.words()}"
    served = "".join(
        f", {each.replicas} × {each.name} ({', '.join(each.rewards) or 'draws'}) of {each.wanted.words()}"
        for each in job.services
    )
    told(f"{many}{served}, on {place.name}")
    launcher = Launcher(job, place, told=told, stop_asked=bell.rung)
    put_back = while_stopping_on_signals(launcher)
    try:
        return launcher.launch()
    finally:
        put_back()


def as_launched(settings: RunConfig) -> RunConfig:
    """The config as its trainers have it: servers of the launch draw, instead of those that the engine names or would start."""
    if settings.launch.engines is None or not hasattr(settings.engine, "generator"):
        return settings
    names = [f"{SCHEME}{ENGINES}/{i}" for i in range(settings.launch.engines.replicas)]
    return replace(settings, engine=drawn_by(settings.engine, names, token_env=None))


def job_of(
    settings: RunConfig,
    config: Path,
    overrides: Sequence[str],
    *,
    place: Place,
    options: Sequence[str] = (),
    first: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Job:
    """What is started for a config that was read. The token by which trainers and services know each other is new for each launch,
    unless the environment has one."""
    environment = os.environ if environment is None else environment
    asked, folder = settings.launch, os.getcwd()
    handed = {name: value for name, value in environment.items() if name.startswith(HANDED_ON)}
    handed.setdefault(TOKEN, secrets.token_hex(16))
    gpus = asked.gpus
    if gpus is None:
        gpus = 1.0 if settings.device != "cpu" and place.gpus() else 0.0
    name = str(config.absolute()) if config.exists() else str(config)
    train = [PYTHON, "-m", "grpo_mm.cli", "train", name, *overrides]
    services = [
        ToServe(
            name=service,
            wanted=Wanted(one.cpus, one.gpus, one.resources, one.runtime_env),
            settings={
                "command": [
                    one.python or PYTHON, "-m", "grpo_mm.cli", "serve", name, *overrides, "--host", "{host}", "--port", "{port}",
                    "--token-env", TOKEN, *(word for reward in one.rewards for word in ("--only", reward)),
                    *(["--trust"] if "--trust" in options else []),
                ],
                "environment": handed, "folder": folder, "token": handed[TOKEN],
            },
            replicas=one.replicas,
            rewards=one.rewards,
        )
        for service, one in asked.scorers.items()
    ]  # fmt: skip
    if asked.engines is not None:
        one = asked.engines
        command = [
            one.python or PYTHON, "-m", "grpo_mm.cli", "serve", name, *overrides, "--engine", "--host", "{host}", "--port", "{port}",
            "--token-env", TOKEN, *(["--trust"] if "--trust" in options else []),
        ]  # fmt: skip
        wanted = Wanted(one.cpus, gpus if one.gpus is None else one.gpus, one.resources, one.runtime_env)
        made = {"command": command, "environment": handed, "folder": folder, "token": handed[TOKEN]}
        services.append(ToServe(name=ENGINES, wanted=wanted, settings=made, replicas=one.replicas))
    return Job(
        run=str(settings.folder.absolute()), folder=folder, command=[*train, *options], first=list(first), environment=handed,
        launch=asked, trainer=Wanted(asked.cpus, gpus, asked.resources), services=services,
    )  # fmt: skip


def ask_to_stop(run: Path, address: str | None) -> str:
    """Asks the launcher of a run folder to stop it; what was done, in words.

    Raises:
        UserError: no launch of this run is under way there; without Ray.
    """
    if address is None:
        raise UserError(
            "a launch without Ray is asked to stop by Ctrl-C or SIGTERM to its process; --drain is for --ray."
        )
    return ring(str(run.absolute()), address)
