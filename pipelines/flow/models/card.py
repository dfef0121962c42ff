"""The lines of plain diffusers that use what a run left; they stand in the model card."""

from __future__ import annotations

from typing import Any

from grpo_mm.pipelines.flow.models.family import resolve


def loading_code(config: Any, pipe: Any) -> str:
    """Python text for a `FlowPolicyConfig` and its pipeline, with the settings that the policy was trained at."""
    name = type(pipe).__name__
    absent = "".join(f", {part}=None" for part, value in pipe.components.items() if value is None and "encoder" in part)
    absent += "".join(
        f", {part}=None" for part, value in pipe.components.items() if value is None and "tokenizer" in part
    )
    source = '"path/of/this/folder"' if config.lora is None else f'"{resolve(config.model.path)}"'
    lines = [f"from diffusers import {name}", "", f"pipe = {name}.from_pretrained({source}{absent})"]
    if config.merge_adapter is not None and config.lora is not None:
        lines += [
            f'pipe.load_lora_weights("{config.merge_adapter}")  # was merged before training',
            "pipe.fuse_lora()",
            "pipe.unload_lora_weights()",
        ]
    if config.lora is not None:
        lines.append('pipe.load_lora_weights("path/of/this/folder")')
    size = f"height={config.eval_height or config.height}, width={config.eval_width or config.width}"
    settings = f"guidance_scale={config.guidance}, max_sequence_length={config.text_length}"
    return "\n".join([*lines, f'image = pipe("a prompt", {size}, {settings}).images[0]'])
