"""`grpo-mm calibrate`: rollouts of an untrained policy until the noise levels stop moving; writes a noise file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from grpo_mm.advantages import Clamp, Gains, GroupNorm, WeightedSum
from grpo_mm.config.run_config import Evaluation, RunConfig, read
from grpo_mm.errors import ConfigError, TrainingStopped
from grpo_mm.objectives import ClippedRatio
from grpo_mm.outside import parse_json, place
from grpo_mm.pipelines.flow import kernels
from grpo_mm.pipelines.flow.calibrated import Calibrated, write_noise
from grpo_mm.pipelines.flow.engines.engine import FlowEngine
from grpo_mm.pipelines.flow.trees.branching import CleanImages
from grpo_mm.processes.distributed import Processes
from grpo_mm.training.learner import Learner


def calibrate(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    out: Path,
    settings: Calibrated | None = None,
    on_round: Callable[[int, torch.Tensor], None] | None = None,
    trust: bool = False,
) -> dict[str, Any]:
    """Calibrates the noise of a config's policy, prompts and rewards, and writes `out`.

    The weights are not trained. Of the config's engine the schedule, solver, seeds and sizes are used; its own tree stays
    if it is {kind: clean_images}.

    Returns:
        {"levels", "sigmas", "rounds", "frozen"}; frozen is False if the rounds ran out first.
    """
    config = read(path, overrides, trust=trust)
    out = place(out, what="--out")
    if not isinstance(config.engine, FlowEngine):
        raise ConfigError("calibrate works on an engine of kind flow.")
    if os.path.lexists(out) and not _is_noise_file(out):
        raise ConfigError(f"{out} is there and is no noise file, so it is not overwritten. Give another --out.")
    try:  # now, and not after the rounds
        was_there = out.exists()
        out.open("a").close()
        if not was_there:
            out.unlink()
    except OSError as error:
        raise ConfigError(
            f"the noise file cannot be written to {out}: {error.strerror}. Make its folder, or give another --out."
        ) from error
    noise = Calibrated() if settings is None else settings
    config = _untrained(config, noise)
    config.check()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    processes = Processes(device=config.device, matmul=config.matmul, distributed=config.distributed)
    with TemporaryDirectory() as folder:
        learner = Learner(config, processes, samples=Path(folder))
    policy = learner.policy
    tokens = policy.family.image_tokens(policy.pipe, *policy.size(evaluation=False))
    sigma_S1 = config.engine.on_grid_of(policy).schedule(config.engine.steps, image_tokens=tokens)
    rounds = 0
    while not noise.frozen:
        for batch in learner.rollout(rounds)[0]:
            table = learner.table(batch)
            if bool(table.columns["failed"].all()):
                errors = [e for rank in processes.gather(learner.rewards.first_error) for e in rank.values()]
                raise TrainingStopped(
                    f"round {rounds + 1}: every one of {len(table)} rows failed to be scored. The first error was:\n"
                    + (errors[0] if errors else "no exception: the reward returned NaN for every row.")
                )
            noise.update(table)
        rounds += 1
        if on_round is not None:
            on_round(rounds, noise(sigma_S1, step=0, seed=0))
    level_S = noise(sigma_S1, step=0, seed=0)
    stopped = "turned" if rounds < noise.rounds else "rounds ran out"
    about = {
        "config": str(path),
        "rounds": rounds,
        "stopped": stopped,
        "trajectories_per_round": config.prompts_per_step * config.group_size,
    }
    if processes.is_main:
        write_noise(out, sigma_S1=sigma_S1, level_S=level_S, about=about)
    return {"levels": level_S.tolist(), "sigmas": sigma_S1.tolist(), "rounds": rounds, "frozen": stopped == "turned"}


def _is_noise_file(path: Path) -> bool:
    """One that may be overwritten: what this command has written, or an empty file."""
    try:
        text = "" if path.is_dir() else path.read_text(encoding="utf-8")
        return path.is_dir() or not text or {"kernel", "sigmas", "levels"} <= set(parse_json(text))
    except (OSError, ValueError, TypeError):
        return False


def _untrained(config: RunConfig, noise: Calibrated) -> RunConfig:
    """The config with that noise and clean images, and without what only training or evaluation needs."""
    tree = config.engine.tree if isinstance(config.engine.tree, CleanImages) else CleanImages()
    engine = replace(
        config.engine, noise=noise, kernel=kernels.dance_sde, logprob="gaussian", tree=tree, train_fraction=1.0,
        train_within=None,
    )  # fmt: skip
    return replace(
        config, engine=engine, watch={}, eval_prompts={}, evaluation=Evaluation(), samples_every=0, trackers=(),
        advantage=(WeightedSum(), Gains(), GroupNorm(key=("prompt", "action")), Clamp()), objective=(ClippedRatio(),),
        ema=None, sampling=None, reference_reset=None,
    )  # fmt: skip
