"""`train`: the Python entry, and what the command line calls."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from grpo_mm.config.run_config import RunConfig, Scorer, read
from grpo_mm.config.without_effect import tell_what_has_no_effect
from grpo_mm.errors import ConfigError
from grpo_mm.links import check_links
from grpo_mm.outside import reason, shown
from grpo_mm.processes.distributed import Processes
from grpo_mm.rollout.reward_use import check_call
from grpo_mm.training.run_folder import (
    check_folder,
    exclusive,
    find_checkpoint,
    folder_of,
    open_folder,
    starts_over,
)
from grpo_mm.training.trainer import OnStep, Trainer
from grpo_mm.weights.stateful import stateful_parts

log = logging.getLogger(__name__)


def train(
    config: RunConfig | str | Path,
    overrides: Sequence[str] = (),
    *,
    rewards: Mapping[str, Callable[..., Any] | Scorer] | None = None,
    fresh: bool = False,
    accept: bool = False,
    checkpoint: str | None = None,
    on_step: OnStep | None = None,
    trust: bool = False,
) -> dict[str, Any]:
    """Runs a config to its end, or goes on with it where it was interrupted.

    Args:
        config: a config, or the path of its file.
        overrides: "key.sub=value" texts, as on the command line.
        rewards: replaces the config's rewards by functions (arguments by name: `grpo_mm.rollout.reward_arguments`) or reward objects.
        fresh: start over; the run that lies in the folder is moved aside, to NAME.1 and so on.
        accept: go on although noted settings, code or data have changed (docs/reference.md); the record tells them.
        checkpoint: go on from this one ("step_000020") instead of the newest.
        on_step: called after each step with its number and metrics.
        trust: import what a config.yaml that lies in a run folder names, see `grpo_mm.config.run_config.read`.

    Returns:
        The summary that also lies in `summary.json`. If the run had come to its end before, nothing is run, and the summary has a
        sentence "nothing_was_run" and a list "differs" of what has changed since.

    Raises:
        UserError: something the user can fix, before any model is loaded.
        TrainingStopped: every reward failed, too many non-finite updates, or the disk is full.
    """
    check_links()
    if not isinstance(config, RunConfig):
        if Path(config).is_dir():
            raise ConfigError(f"{config} is a folder; train takes the config's file, such as {config}/config.yaml.")
        config = read(config, overrides, trust=trust)
    elif overrides:
        raise ConfigError(
            "overrides go with the path of a config file; a RunConfig is changed with dataclasses.replace."
        )
    config = _own_state(config)
    if rewards is not None and not isinstance(rewards, Mapping):
        raise ConfigError(f"rewards is {shown(rewards)}; wanted a dict of names: {{'mine': my_reward}}.")
    if rewards:
        config = replace(
            config, rewards={name: r if isinstance(r, Scorer) else Scorer(use=r) for name, r in rewards.items()}
        )
    for name, scorer in (config.rewards | config.watched_rewards).items():
        check_call(name, scorer.use)
    config.check(world=int(os.environ.get("WORLD_SIZE", "1")))
    tell_what_has_no_effect(config)
    folder = folder_of(config)
    fresh = fresh or starts_over(folder)
    start = check_folder(config, fresh=fresh, checkpoint_name=checkpoint, accept=accept)
    if start.done is not None:
        log.log(logging.WARNING if start.done["differs"] else logging.INFO, "%s", start.done["nothing_was_run"])
        return start.done
    if start.over and not fresh:
        log.info("%s holds another run, without a checkpoint and without a product: it gives way.", folder.path)
    fresh = fresh or start.over
    if fresh or find_checkpoint(folder, checkpoint) is None:
        for _, part in stateful_parts(config):
            part.check_files() if hasattr(part, "check_files") else None  # that only a run from the start reads
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    processes = Processes(device=config.device, log_with=config.trackers, project_dir=str(folder.path))
    with exclusive(folder) if processes.is_main else nullcontext():
        trainer = Trainer(config, folder, processes)
        if processes.is_main:
            open_folder(config, fresh=fresh, start=start)
        processes.barrier()
        if config.trackers:
            _start_trackers(config, processes)
        try:
            return trainer.run(from_checkpoint=checkpoint, on_step=on_step)
        finally:
            if config.trackers:
                processes.accelerator.end_training()


def _start_trackers(config: RunConfig, processes: Processes) -> None:
    """Raises ConfigError for whatever a tracker raises: no key, no network, no such project."""
    try:
        processes.accelerator.init_trackers(config.name)
    except Exception as error:
        raise ConfigError(
            f"trackers: {', '.join(config.trackers)} cannot be started: {reason(error)}. trackers=[] goes without."
        ) from error


def _own_state(config: RunConfig) -> RunConfig:
    """The config with its own copy of the parts that learn beside the weights, so that it can be trained twice."""
    parts = ("advantage", "collector", "engine", "objective")
    return replace(config, **{name: deepcopy(getattr(config, name)) for name in parts})
