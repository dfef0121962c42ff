"""The batch arithmetic of a config in words, and what memory it will take."""

from __future__ import annotations

from grpo_mm.run_config import RunConfig


def lines(config: RunConfig, world: int = 1) -> list[str]:
    """What `show` prints below the resolved config."""
    rows = config.prompts_per_step * config.group_size
    actions = config.engine.actions()
    updates = config.updates.count
    per_update = rows * actions // updates
    report = [
        f"{config.prompts_per_step} prompts × {config.group_size} samples = {rows} rows per step, {rows // world} per process",
        f"{actions} trained actions per row = {rows * actions} actions per step",
        f"{updates} optimiser update(s) per step, split by {config.updates.by}: {per_update} actions each",
        f"{config.steps} steps = {config.steps * updates} optimiser updates",
    ]
    report += config.engine.describe(
        config.policy,
        prompts=config.prompts_per_step,
        group_size=config.group_size,
        needs=config.needs,
        world=world,
    )
    budget = "" if config.max_reward_calls is None else f" of at most {config.max_reward_calls}"
    names = ", ".join(config.rewards)
    return [*report, f"reward calls per step: {config.planned_reward_calls()}{budget} ({names})"]
