"""Settings that another setting makes void: the one place that says so. What contradicts is refused in `checks`.

A policy and an engine say their own: `without_effect() -> [sentence]` of a policy, `without_effect(policy)` of an engine. A policy
may also say what is worth knowing of its model: `remarks(engine)`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any

import torch

from grpo_mm.config.settings import Settings
from grpo_mm.outside import shown
from grpo_mm.types import is_relative

log = logging.getLogger(__name__)
EVALUATED = {
    "policy": ("eval_height", "eval_width"), "engine": ("eval_steps", "eval_temperature", "eval_max_new_tokens"),
    "evaluation": ("limit", "samples_per_prompt", "show"),
}  # fmt: skip
"""What only an evaluation reads."""


def tell_what_has_no_effect(config: Settings) -> None:
    """Logs a warning for each, and for what is worth knowing of the model."""
    for said in (*without_effect(config), *remarks(config)):
        log.warning("%s", said)


def remarks(config: Settings) -> list[str]:
    """What the policy wants to be known of its model, a sentence each."""
    return config.policy.remarks(config.engine) if hasattr(config.policy, "remarks") else []


def without_effect(config: Settings) -> list[str]:
    """A sentence for every setting that was changed from its default, and that another one makes void."""
    own = [*(config.policy.without_effect() if hasattr(config.policy, "without_effect") else ())]
    own += config.engine.without_effect(config.policy) if hasattr(config.engine, "without_effect") else []
    return [
        *own,
        *_of_evaluation(config),
        *_of_weights(config),
        *_of_training(config),
        *_of_columns(config),
        *_of_place(config),
    ]


def is_set(thing: Any, name: str) -> bool:
    """Whether a field of a dataclass has another value than its default."""
    field = next((f for f in fields(thing) if f.name == name), None)
    if field is None:
        return False
    default = field.default_factory() if field.default_factory is not MISSING else field.default
    return bool(getattr(thing, name) != default)


def _of_evaluation(config: Settings) -> Iterator[str]:
    evaluation = config.evaluation
    if not config.eval_prompts:
        for part, names in EVALUATED.items():
            thing = getattr(config, part)
            for name in names if hasattr(type(thing), "__dataclass_fields__") else ():
                if is_set(thing, name):
                    yield _void(
                        f"{part}.{name}", getattr(thing, name), "there are no `eval_prompts`, so nothing is evaluated"
                    )
    elif evaluation.samples_per_prompt > 1 and getattr(config.engine, "eval_temperature", None) == 0:
        why = "engine.eval_temperature = 0 draws the same answer each time"
        yield _void("evaluation.samples_per_prompt", evaluation.samples_per_prompt, why)
    count = (config.steps - 1) // evaluation.every if evaluation.every else 0
    if evaluation.patience is not None and count and evaluation.patience > count:
        yield _void(
            "evaluation.patience", evaluation.patience, f"{config.steps} steps have {count} evaluations on their way"
        )
    for name, source in config.eval_prompts.items():
        if source.weight != 1:
            yield _void(f"eval_prompts.{name}.weight", source.weight, "an evaluation asks every prompt once")


def _of_weights(config: Settings) -> Iterator[str]:
    (name, source), *others = config.prompts.items()
    if not others and source.weight != 1:
        yield _void(f"prompts.{name}.weight", source.weight, "there is no other source to weigh it against")
    absolute = [n for n, scorer in config.rewards.items() if scorer.weight and not is_relative(scorer.use)]
    for name, watched in config.watched_rewards.items():
        if watched.weight != 1 and absolute:
            yield _void(f"watch.{name}.weight", watched.weight, "the held-out score is that of `rewards`")
    ema = config.ema
    used = ema is None or ema.evaluate or "ema" in getattr(config.engine, "snapshots", ())
    if not used and not any("ema" in need.split("_") for need in config.needs):
        yield "ema: averaged weights are kept, and nothing reads them: evaluate is false, and no term of the objective asks for them."


def _samples_apart(config: Settings) -> bool:
    """Whether rows are sampled in other shapes than they are trained in, in low precision: texts are, token by token."""
    return getattr(config.policy, "dtype", "float32") == "bfloat16" and config.policy.unit == "row"


def _of_training(config: Settings) -> Iterator[str]:
    updates = config.steps * config.updates.total
    if config.optim.warmup_updates >= updates:
        yield (
            f"optim.lr = {config.optim.lr:g} is never reached: optim.warmup_updates = {config.optim.warmup_updates}, and the run makes "
            f"{updates} updates."
        )
    if config.old_logprobs != "rollout" and not any("logprobs" in need for need in config.needs):
        yield _void("old_logprobs", config.old_logprobs, "no term of the objective reads log-probabilities")
    if config.old_logprobs == "rollout" and "logprobs" in config.needs and _samples_apart(config):
        yield (
            "old_logprobs: rollout compares log-probabilities of two kinds: in bfloat16 those of the sampler differ from those of the "
            "trainer, so ratios do not begin at 1. old_logprobs=auto avoids it."
        )
    early = [name for name, scorer in config.rewards.items() if scorer.early]
    if early and not getattr(config.engine, "tells_finished", False):
        yield _void(f"rewards.{early[0]}.early", True, "the engine hands out its samples when all are there")
    elif early and config.offload_rewards:
        yield _void(
            f"rewards.{early[0]}.early", True, "with offload_rewards all rewards wait for their turn on the device"
        )
    if config.samples_every > config.steps and is_set(config, "samples_every"):
        yield _void("samples_every", config.samples_every, f"the run has {config.steps} steps, so no rollout is kept")
    for number, term in enumerate(config.objective):
        for part in (term, getattr(term, "of", None)):
            ratio = getattr(part, "ratio", "unit")
            if part is not None and hasattr(part, "unit") and ratio != "unit" and is_set(part, "unit"):
                yield _void(
                    f"objective.{number}.unit", part.unit, f"it goes with ratio: unit, and the ratio is {ratio}"
                )


def _of_columns(config: Settings) -> Iterator[str]:
    parts = (*config.advantage, *config.objective, config.collector)
    read = frozenset().union(*(getattr(part, "columns", frozenset()) for part in parts))
    by_name = {str(getattr(part, name, None)) for part in parts for name in ("column", "by", "target", "likelihood")}
    if (
        config.reference_dtype != "float32"
        and not config.needs_reference
        and "ref" not in getattr(config.engine, "snapshots", ())
    ):
        yield _void("reference_dtype", config.reference_dtype, "the run keeps no reference")
    for key, column in (("reference_log_ratio", "ref_log_ratio"), ("answer_likelihood", "answer_likelihood")):
        if getattr(config.engine, key, None) and column not in read | by_name:
            yield _void(
                f"engine.{key}",
                "on",
                f"no stage and no term reads the column {column}, which costs a forward for each row",
            )
    if config.sketch is not None and getattr(config.engine, "output_noun", "pictures") == "pictures":
        yield _void("sketch", type(config.sketch).__name__, "it is drawn of texts, and this run makes pictures")


def _of_place(config: Settings) -> Iterator[str]:
    if config.distributed.kind == "replicated" and config.distributed.shard_over is not None:
        why = "nothing is cut: distributed.kind is replicated"
        yield _void("distributed.shard_over", config.distributed.shard_over, why)
    if config.distributed.kind == "replicated" and config.distributed.gather != "phase":
        why = "nothing is cut: distributed.kind is replicated"
        yield _void("distributed.gather", config.distributed.gather, why)
    if config.distributed.kind == "sharded" and os.environ.get("WORLD_SIZE", "1") == "1":
        yield _void("distributed.kind", "sharded", "one process holds all weights; start several (configs/accelerate)")
    if config.optim.fused and config.optim.moments != "float32":
        yield _void("optim.fused", True, f"optim.moments is {config.optim.moments}, which has kernels of its own")
    on_cpu = config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available())
    offload = getattr(config.policy, "offload", None)
    if on_cpu and offload:
        yield _void("policy.offload", list(offload), "everything is in main memory: the device is the CPU")
    if on_cpu and config.offload_rewards:
        yield _void("offload_rewards", True, "everything is in main memory: the device is the CPU")


def _void(key: str, value: Any, why: str) -> str:
    return f"{key} = {shown(value)} has no effect: {why}."
