"""The batch arithmetic of a config in words, and what memory it will take."""

from __future__ import annotations

from grpo_mm.config.run_config import RunConfig
from grpo_mm.rollout.scoring import is_apart


def lines(config: RunConfig, world: int = 1) -> list[str]:
    """What `show` prints below the resolved config."""
    rows = config.prompts_per_step * config.group_size
    per_prompt = config.engine.trained_actions(config.group_size)
    each, rest = divmod(per_prompt, config.group_size)
    trained = f"{each} trained actions per row" if not rest else f"{per_prompt} trained actions per prompt"
    total = config.prompts_per_step * per_prompt
    updates, passes = config.updates.count, config.updates.passes
    report = [
        f"{config.prompts_per_step} prompts × {config.group_size} samples = {rows} rows per step, {rows // world} per process",
        f"{trained} = {total} actions per step",
        f"{updates} optimiser update(s) per step, split by {config.updates.by}: {total // updates} actions each"
        + (f", {passes} times over" if passes > 1 else ""),
        f"{config.steps} steps = {config.steps * updates * passes} optimiser updates",
    ]
    report += config.engine.describe(
        config.policy, rows=rows // world, group_size=config.group_size, needs=config.needs
    )
    calls = " + ".join(f"{number} {name}" for name, number in config.network_calls().items())
    pruned = any(getattr(stage, "keep", None) is not None for stage in config.advantage)
    batches, least = getattr(config.collector, "max_batches", 1), getattr(config.collector, "oversample", 1)
    if batches > 1:
        report.append(
            f"a step samples {least} to {batches * least} batches of prompts; rollout and rewards below are those of one"
        )
    prompts, samples = config.further_groups
    if prompts:
        report.append(
            f"beside the groups the collector samples up to {prompts} × {samples} rows, which the calls below include"
        )
    report.append(f"network calls per step: {calls}" + " (at most: what the advantage prunes is not trained)" * pruned)
    pictures = config.engine.pictures(config.group_size)
    noun = getattr(config.engine, "output_noun", "pictures")
    report.append(f"{noun} per step: {config.prompts_per_step * pictures}, {pictures} for each prompt")
    budget = "" if config.max_reward_calls is None else f" of at most {config.max_reward_calls}"
    apart = " in a process of its own"
    names = ", ".join(name + apart * is_apart(scorer) for name, scorer in config.rewards.items())
    return [*report, f"reward calls per step: {config.planned_reward_calls()}{budget} ({names})"]
