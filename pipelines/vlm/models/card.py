"""The lines of plain transformers and peft that use what a run left; they stand in the model card."""

from __future__ import annotations

from typing import Any

from grpo_mm.pipelines.vlm.models.families import Family, resolve
from grpo_mm.pipelines.vlm.models.positions import serving_code


def loading_code(config: Any, family: Family) -> str:
    """Python text for a `VlmPolicyConfig`."""
    base, adapter = resolve(config.path), config.lora is not None and not config.save_merged
    source = f'"{base}"' if adapter else '"path/of/this/folder"'
    lines = [
        "from transformers import AutoModelForImageTextToText, AutoProcessor",
        *(["from peft import PeftModel"] if adapter else []),
        "",
        f'model = AutoModelForImageTextToText.from_pretrained({source}, dtype="auto")',
        f"processor = AutoProcessor.from_pretrained({source})",
    ]
    if family.leaves_positions_open:
        lines += serving_code(config.video_positions)
    if adapter and config.merge_adapter is not None:
        lines.append(
            f'model = PeftModel.from_pretrained(model, "{config.merge_adapter}").merge_and_unload()  # before training'
        )
    if adapter:
        lines.append('model = PeftModel.from_pretrained(model, "path/of/this/folder")')
    system = [] if config.chat.system is None else [{"role": "system", "content": config.chat.system}]
    user = {
        "role": "user",
        "content": [{"type": "image", "image": "picture.png"}, {"type": "text", "text": "a question"}],
    }
    return "\n".join(
        [
            *lines,
            f"messages = {[*system, user]!r}",
            "inputs = processor.apply_chat_template(",
            '    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"',
            ")",
            "answer = model.generate(**inputs, max_new_tokens=512)",
            "print(processor.batch_decode(answer[:, inputs['input_ids'].shape[1] :], skip_special_tokens=True)[0])",
        ]
    )
