"""What the verbs of `grpo_mm` and the command line call: `train`, its report, media by name."""

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

from grpo_mm.config.recorded import is_recorded_run
from grpo_mm.config.run_config import RunConfig, Scorer, read
from grpo_mm.config.without_effect import tell_what_has_no_effect
from grpo_mm.errors import ConfigError, UserError
from grpo_mm.links import check_links
from grpo_mm.looking.progress_lines import Nobody, ProgressLines, Told, heard
from grpo_mm.looking.report.page import write_report
from grpo_mm.looking.trackers import Trackers, check_installed
from grpo_mm.outside import place, shown
from grpo_mm.pipelines.vlm.engine_server.elsewhere import drawn_elsewhere
from grpo_mm.processes.distributed import Processes
from grpo_mm.rewards.service.elsewhere import scored_elsewhere
from grpo_mm.rollout.reward_use import check_call
from grpo_mm.run.data import RunData
from grpo_mm.run.handshake import check_alike, check_disk_is_shared
from grpo_mm.run.run_folder import (
    RunFolder,
    Start,
    check_folder,
    exclusive,
    find_checkpoint,
    folder_of,
    open_folder,
    starts_over,
)
from grpo_mm.training.trainer import OnStep, Trainer
from grpo_mm.waiting import torch_came_first
from grpo_mm.weights.stateful import stateful_parts

log = logging.getLogger(__name__)


def train(
    config: RunConfig | str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    rewards: Mapping[str, Callable[..., Any] | Scorer] | None = None,
    fresh: bool = False,
    accept: bool = False,
    checkpoint: str | None = None,
    on_step: OnStep | None = None,
    told: Told | None = None,
    trust: bool = False,
) -> dict[str, Any]:
    """Runs a config to its end, or goes on with it where it was interrupted.

    Args:
        config: a config, the path of its file, the name of a shipped one, or a dict of the same keys.
        overrides: "key.sub=value" texts, as on the command line.
        rewards: replaces the config's rewards by functions (arguments by name: `grpo_mm.rollout.reward_arguments`) or reward objects.
        fresh: start over; the run that lies in the folder is moved aside, to NAME.1 and so on.
        accept: go on although noted settings, code or data have changed (docs/reference.md); the record tells them.
        checkpoint: go on from this one ("step_000020") instead of the newest.
        on_step: called after each step with its number and metrics.
        told: who hears of the run while it goes on; None: `ProgressLines()`, lines through logging ("grpo_mm.progress"), which go
            to the standard error stream where logging is not set up.
        trust: import what a config.yaml that lies in a run folder names, see `grpo_mm.config.run_config.read`.

    Returns:
        The summary that also lies in `summary.json`. If the run had come to its end before, nothing is run, and the summary has a
        sentence "nothing_was_run" and a list "differs" of what has changed since.

    Raises:
        UserError: something the user can fix, before any model is loaded.
        TrainingStopped: every reward failed, too many non-finite updates, or the disk is full.
    """
    check_links()
    config = _own_state(_as_run_config(config, overrides, trust=trust))
    if rewards is not None and not isinstance(rewards, Mapping):
        raise ConfigError(f"rewards is {shown(rewards)}; wanted a dict of names: {{'mine': my_reward}}.")
    if rewards:
        config = replace(
            config, rewards={name: r if isinstance(r, Scorer) else Scorer(use=r) for name, r in rewards.items()}
        )
    for name, scorer in (config.rewards | config.watched_rewards).items():
        check_call(name, scorer.use)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    placed = replace(
        config,
        rewards=scored_elsewhere(config.rewards),
        watch=scored_elsewhere(config.watch),
        engine=drawn_elsewhere(config.engine),
    )
    placed.check(world=world)
    tell_what_has_no_effect(config)
    folder = folder_of(config)
    data = RunData(config)
    how = {"fresh": fresh, "checkpoint": checkpoint, "accept": accept}
    if world == 1:
        processes = None
    else:
        processes = Processes(device=config.device, matmul=config.matmul, distributed=config.distributed)
    with nullcontext() if processes is None else processes.telling():
        return _train(config, placed, folder, processes, data, on_step=on_step, told=told, **how)


def _train(
    config: RunConfig,
    placed: RunConfig,
    folder: RunFolder,
    processes: Processes | None,
    data: RunData,
    *,
    on_step: OnStep | None,
    told: Told | None,
    **how: Any,
) -> dict[str, Any]:
    """placed: the config with what scores elsewhere (`rewards.service.elsewhere`); the run folder knows nothing of that. processes:
    None: this one is alone, and does not know its device before the run folder allows that it begins."""
    if processes is None:
        fresh, start, begins = _start(config, data=data, **how)
    else:  # what a process finds in the folder is the main one's to say: nodes may have disks of their own
        check_alike(processes, config)
        fresh, start, begins = processes.by_main(lambda: _start(config, data=data, **how))
    if start.done is not None:
        log.log(logging.WARNING if start.done["differs"] else logging.INFO, "%s", start.done["nothing_was_run"])
        return start.done
    if start.over and not fresh:
        log.info("%s holds another run, without a checkpoint: it gives way.", folder.path)
    fresh = fresh or start.over
    if fresh or begins:
        for _, part in stateful_parts(config):
            part.check_files() if hasattr(part, "check_files") else None  # that only a run from the start reads
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    check_installed(config.trackers)
    if processes is None:
        processes = Processes(device=config.device, matmul=config.matmul, distributed=config.distributed)
    if torch_came_first and processes.device.type == "cpu" and torch.get_num_threads() > 1:
        log.info(
            "torch was imported before grpo_mm, so its threads spin while they wait: beside other processes threads=1, or grpo_mm "
            "imported first, is much faster"
        )
    check_disk_is_shared(processes, folder)
    trackers = None
    if processes.is_main and config.trackers:
        trackers = Trackers(config.trackers, folder.path, name=config.name)
    with exclusive(folder) if processes.is_main else nullcontext():
        told = (told if told is not None else ProgressLines()) if processes.is_main else Nobody()
        trainer = Trainer(placed, folder, processes, told=told, trackers=trackers, data=data)
        if processes.is_main:
            open_folder(config, fresh=fresh, start=start, data=data)
        processes.barrier()
        try:
            with heard():
                summary = trainer.run(from_checkpoint=how["checkpoint"], on_step=on_step)
            if trackers is not None:
                trackers.report(write_report(folder.path), verdict=summary["verdict"]["sentence"])
            return summary
        finally:
            if trackers is not None:
                trackers.finish()


def _start(
    config: RunConfig, *, fresh: bool, checkpoint: str | None, accept: bool, data: RunData
) -> tuple[bool, Start, bool]:
    """(whether it was begun to start over, how the run begins, whether there is no checkpoint to go on from)."""
    folder = folder_of(config)
    fresh = fresh or starts_over(folder)
    start = check_folder(config, fresh=fresh, checkpoint_name=checkpoint, accept=accept, data=data)
    begins = start.done is None and find_checkpoint(folder, checkpoint) is None
    return fresh, start, begins


def train_and_report(
    config: RunConfig | str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    trust: bool = False,
    **how: Any,
) -> dict[str, Any]:
    """`train` with what is left of it: the summary also says the "folder" and the "report" that was written there."""
    config = _as_run_config(config, overrides, trust=trust)
    folder = folder_of(config).path  # a reward may change the working folder
    summary = train(config, trust=trust, **how)
    if os.environ.get("RANK", "0") == "0":
        write_report(folder)
    return summary | {"folder": str(folder), "report": str(folder / "report.html")}


def report(run: str | Path) -> Path:
    """Writes `report.html` into a run folder.

    Raises:
        UserError: no run lies there, the page is not the run's own, or it cannot be written.
    """
    run = place(run, what="the run")
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is not a run folder: it has no config.yaml.")
    page = run / "report.html"
    if page.is_symlink() or (page.exists() and not is_recorded_run(run)):
        raise UserError(f"{page} is there, in a folder that no run has written, so it is not overwritten.")
    return write_report(run)


PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def opened_medium(item: Any, *, what: str) -> Any:
    """What stands in `Prompt.media` for the name of a file: a picture by its ending or by what it holds, else a video (its decoder
    tells whether it is one). An object, such as a picture of PIL, is taken as it is.

    Raises:
        UserError: there is no such file; `what` is the argument that named it.
    """
    from grpo_mm.datasets.media.media_files import ImageFile, VideoFile
    from grpo_mm.datasets.media.pictures import is_picture

    if not isinstance(item, (str, os.PathLike)):
        return item
    path = place(os.fspath(item), what=what)
    if not path.is_file():
        raise UserError(f"{what} {path}: there is no such file.")
    ending = path.suffix.lower()
    is_still = ending in PICTURE_ENDINGS or (ending != ".apng" and is_picture(str(path)))
    return ImageFile(str(path)) if is_still else VideoFile(str(path))


def _as_run_config(
    config: RunConfig | str | Path | Mapping[str, Any], overrides: Sequence[str], *, trust: bool
) -> RunConfig:
    if isinstance(config, RunConfig):
        if overrides:
            raise ConfigError(
                "overrides go with the path of a config file or a dict; a RunConfig is changed with dataclasses.replace."
            )
        return config
    if not isinstance(config, Mapping) and place(config, what="the config").is_dir():
        raise ConfigError(f"{config} is a folder; train takes the config's file, such as {config}/config.yaml.")
    return read(config, overrides, trust=trust)


def _own_state(config: RunConfig) -> RunConfig:
    """The config with its own copy of the parts that learn beside the weights, so that it can be trained twice."""
    parts = ("advantage", "collector", "engine", "objective")
    return replace(config, **{name: deepcopy(getattr(config, name)) for name in parts})
