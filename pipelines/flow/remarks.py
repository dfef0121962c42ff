"""What is worth knowing of a checkpoint before it is trained: said by `grpo-mm show` and by a run, refusing nothing."""

from __future__ import annotations

from typing import Any

from grpo_mm.outside import shown
from grpo_mm.pipelines.flow.models.family import resolve
from grpo_mm.pipelines.flow.published.distilled import (
    listed_steps,
    signs_of_checkpoint,
    signs_of_name,
    steps_of_name,
)


def remarks(policy: Any, engine: Any) -> list[str]:
    """Sentences on a `FlowPolicyConfig` and its engine."""
    model, said = policy.model, []
    if 0 < policy.guidance <= 1 and model.network_rows(policy.guidance) == 2:
        said.append(
            f"policy.guidance = {policy.guidance:g} guides: {model.pipeline} counts guidance from 0, so that "
            f"{policy.guidance:g} is what others call {1 + policy.guidance:g}. 0 is no guidance."
        )
    return said + _of_distilled(policy, engine)


def _of_distilled(policy: Any, engine: Any) -> list[str]:
    signs, name = distilled_signs(policy)
    if not signs:
        return []
    path = resolve(policy.model.path)
    listed = listed_steps(path, revision=getattr(policy.model, "revision", None))
    made_for = steps_of_name(name, listed=listed)
    about = "few steps" if made_for is None else f"about {made_for} steps"
    said = [f"{shown(name)} is distilled to {about}: {' and '.join(signs)}. policy.model.distilled=false denies it."]
    asked = {key: getattr(engine, key) for key in ("steps", "eval_steps") if hasattr(engine, key)}
    others = [f"engine.{key} = {value}" for key, value in asked.items() if value != made_for]
    if others and made_for is not None:
        said.append(
            f"It is made for {made_for} steps, and {' and '.join(others)}: with more steps pictures of such a checkpoint lose contrast "
            "and detail, and a reward may rise by undoing the distillation."
        )
    if policy.guidance > 1 or policy.model.network_rows(policy.guidance) == 2:
        none = 0 if policy.model.network_rows(1.0) == 2 else 1
        said.append(
            f"policy.guidance = {policy.guidance:g}: such checkpoints have their guidance within; guided again, pictures are burnt and "
            f"diverse samples become alike. policy.guidance={none} is none."
        )
    if hasattr(engine, "noise"):
        steps = made_for or engine.steps
        said.append(
            f"A noise level that suits a checkpoint of many steps is too high here: each of {engine.steps} steps takes away much noise, "
            "nothing after them repairs what the noise has done, and pictures blur until the reward falls. Measure it first: "
            f"grpo-mm calibrate CONFIG engine.steps={steps} --out noise.json, then train with engine.steps={steps} "
            "engine.noise={kind: noise_file, path: noise.json} engine.kernel=dance_sde."
        )
    return said


def distilled_signs(policy: Any) -> tuple[list[str], str]:
    """(what says that the checkpoint, or an adapter on it, is distilled; the name that it is of)."""
    told = getattr(policy.model, "distilled", None)
    path = resolve(policy.model.path)
    if told is False:
        return [], path
    adapters = [policy.merge_adapter, policy.lora.start_from if policy.lora is not None else None]
    for adapter in filter(None, adapters):
        if signs := signs_of_name(adapter):
            return signs, adapter
    signs = [] if path.startswith("random:") else signs_of_checkpoint(path, revision=policy.model.revision)
    return (["policy.model.distilled says so"] if told else signs), path
