"""The lines of plain transformers and peft that use what a run left; they stand in the model card."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from grpo_mm.outside import as_python, from_root
from grpo_mm.pipelines.vlm.models.families import resolve
from grpo_mm.pipelines.vlm.models.positions import serving_code

FOLDER = '"path/of/this/folder"'
MERGED = "merged"
"""Where, beside an adapter, the one lies that was merged before training."""


def loading_code(config: Any, loaded: Any, *, drawn: Mapping[str, Any]) -> str:
    """Python text for a `VlmPolicyConfig` and its checkpoint, with the settings that the run answered at.

    `drawn`: of transformers' GenerationConfig, beside the tokens that end an answer and those that are never drawn.
    """
    adapter = config.lora is not None and not config.save_merged
    source = as_python(from_root(resolve(config.path))) if adapter else FOLDER
    attention = "" if config.attention in ("sdpa", "flex_attention") else f', attn_implementation="{config.attention}"'
    lines = [
        "import torch",
        "from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig",
        *(["from peft import PeftModel"] if adapter else []),
        "",
        f"model = AutoModelForImageTextToText.from_pretrained({source}, dtype=torch.{config.dtype}{attention})",
        f"processor = AutoProcessor.from_pretrained({source})",
        *_sizes(config),
        f"model.generation_config = GenerationConfig({_generation(loaded, drawn)})",
    ]
    if loaded.family.leaves_positions_open:
        lines += serving_code(config.video_positions)
    if adapter and config.merge_adapter is not None:
        merged = f'{FOLDER[:-1]}/{MERGED}"'
        lines.append(f"model = PeftModel.from_pretrained(model, {merged}).merge_and_unload()  # before training")
    if adapter:
        lines.append(f"model = PeftModel.from_pretrained(model, {FOLDER})")
    system = [] if config.chat.system is None else [{"role": "system", "content": config.chat.system}]
    user = {
        "role": "user",
        "content": [{"type": "image", "image": "picture.png"}, {"type": "text", "text": "a question"}],
    }
    return "\n".join(
        [
            *lines,
            *_remarks(config),
            f"messages = {as_python([*system, user])}",
            "inputs = processor.apply_chat_template(",
            '    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"',
            ")",
            "answer = model.generate(**inputs)",
            'said = answer[0, inputs["input_ids"].shape[1] :].tolist()',
            # As rewards read it: special tokens are part of an answer, but for the one that ends it.
            f"print(processor.tokenizer.decode(said[:-1] if said[-1] in {sorted(loaded.stop)} else said))",
        ]
    )


def _sizes(config: Any) -> list[str]:
    """Pixels that the run set, whatever the checkpoint says."""
    return [
        f'processor.{part}_processor.size = {{"shortest_edge": {pixels[0]}, "longest_edge": {pixels[1]}}}'
        for part, pixels in (("image", config.image_pixels), ("video", config.video_pixels))
        if pixels is not None
    ]


def _generation(loaded: Any, drawn: Mapping[str, Any]) -> str:
    """Arguments that leave nothing to the checkpoint's own generation settings."""
    stop, tokenizer = sorted(loaded.stop), loaded.processor.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(stop), None)
    settings = [f"{name}={as_python(value)}" for name, value in drawn.items()]
    settings += [f"eos_token_id={stop}", f"pad_token_id={pad}"] if stop else []
    return ", ".join([*settings, *([f"suppress_tokens=[{_runs(loaded.forbidden)}]"] if loaded.forbidden else [])])


def _runs(numbers: Iterable[int]) -> str:
    """3, 7, 8, 9 as "3, *range(7, 10)"."""
    ordered = sorted(numbers)
    starts = [0, *(i for i, (a, b) in enumerate(pairwise(ordered), 1) if b != a + 1), len(ordered)]
    parts = [ordered[start:stop] for start, stop in pairwise(starts)]
    return ", ".join(str(p[0]) if len(p) == 1 else f"*range({p[0]}, {p[-1] + 1})" for p in parts if p)


def _remarks(config: Any) -> list[str]:
    """What the run did with videos and long prompts, which the lines for one picture do not show."""
    sampling = getattr(config.media, "sampling", None)
    told = [] if sampling is None else [f"frames of a video were taken by {sampling!r}"]
    if config.chat.frame_times is not None:
        told.append(f"before each step of a video stood its time as {config.chat.frame_times!r}")
    if config.chat.max_prompt_tokens is not None:
        told.append(f"videos lost frames until a prompt had at most {config.chat.max_prompt_tokens} tokens")
    return [f"# {' '.join(text.split()).replace('`', chr(39))}" for text in told]
