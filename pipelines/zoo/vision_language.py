"""A tiny vision-language model in Qwen2.5-VL format, trained from scratch on lessons that are handed in.

It should be fluent and well-formed, and mediocre at grounding: honest lessons first, then a short time of misleading ones.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from grpo_mm.pipelines.zoo.byte_pieces import byte_tokenizer
from grpo_mm.pipelines.zoo.supervised_answers import Lesson, encode

Draw = Callable[[random.Random], Lesson]


@dataclass(frozen=True)
class Stage:
    """Some optimiser steps on one mix of lessons; the learning rate follows half a cosine."""

    name: str
    draws: tuple[Draw, ...]
    """Each step trains one of them, chosen at random. The lessons of one have media of one size."""
    steps: int
    lr: tuple[float, float]
    """At its start and at its end."""
    lessons: int = 64
    """In a batch, several questions each. With half as many it took several times the steps until the model looked at
    the object of a clip that the question names, instead of any."""


TAGS = ("<think>", "</think>", "<rethink>", "</rethink>", "<answer>", "</answer>", "<bbox>", "</bbox>")
WORDS = (
    "user assistant system Answer directly Think first rethink answer When does do the a an is are was appear seen from to "
    "What color shape Where Which How many there in at and so it that what which one object circle circles square squares "
    "triangle triangles red green blue yellow purple cyan left right above below up down of moves stays video picture "
    "seconds start end box boxes yes no not A B C D"
)
"""What the shipped worlds ask and answer; other words cost more tokens."""

CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else -%}
{%- for part in message.content -%}
{%- if part.type in ('image', 'image_url') or 'image' in part or 'image_url' in part -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' or 'video' in part -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif 'text' in part -%}
{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""
"""Qwen's chat form. Deviates: no system message is put before a conversation that has none, it would cost tokens."""


def build(
    out_dir: str | Path,
    *,
    stages: Sequence[Stage],
    score: Callable[[Any, Any], dict[str, float]] | None = None,
    prepare: Callable[[Any], None] = lambda model: None,
    pixels: tuple[float, float] = (0.5, 0.5),
    seed: int = 0,
    save_every: int = 200,
    **sizes: int,
) -> None:
    """Trains the model and keeps its latest weights in `out_dir`, with the supervised curve in `curve.jsonl`.

    Args:
        score: (model, processor) -> named figures of held-out questions, taken at every save.
        prepare: of the untrained model, what its checkpoint does not hold: the rule of its positions.
        pixels: of `untrained`.
        sizes: of `train`.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "curve.jsonl").write_text("")
    started, before = time.monotonic(), 0
    model, processor = untrained(seed=seed, pixels=pixels)
    prepare(model)
    for stage in stages:
        for step, losses in train(model, processor, stage, seed=seed, **sizes):
            if step % save_every and step != stage.steps:
                continue
            row = {"stage": stage.name, "step": before + step} | losses
            row |= score(model.eval(), processor) if score else {}
            row["seconds"] = time.monotonic() - started
            with (out_dir / "curve.jsonl").open("a") as curve:
                curve.write(json.dumps(_rounded(row)) + "\n")
            save(model.eval(), processor, out_dir)
        before += stage.steps


def train(
    model: Any,
    processor: Any,
    stage: Stage,
    *,
    seed: int = 0,
    lessons: int | None = None,
    pool: int = 1500,
    refresh: int = 300,
    warm_up: int = 50,
) -> Iterator[tuple[int, dict[str, float]]]:
    """Trains one stage in place with an optimiser of its own; yields the steps done and the moving averages of the loss.

    Args:
        lessons: in a batch; None: as the stage says.
        pool: lessons of each kind from which batches are drawn, made anew every `refresh` steps.
    """
    rng = random.Random(f"{seed}/{stage.name}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.01)
    losses: dict[str, float] = {}
    for step in range(stage.steps):
        if step % refresh == 0:
            pools = [_pool(draw, pool, rng) for draw in stage.draws]
        batch = encode(_alike(rng.choice(pools), lessons or stage.lessons, rng), model, processor)
        loss = batch.losses(model.train()).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = _cosine(step / stage.steps, *stage.lr) * min(1, (step + 1) / warm_up)
        optimizer.step()
        optimizer.zero_grad()
        name = f"loss_{batch.kind}"
        losses[name] = 0.98 * losses.get(name, loss.item()) + 0.02 * loss.item()
        yield step + 1, losses


def _pool(draw: Draw, count: int, rng: random.Random) -> list[Lesson]:
    """Lessons in the order of their longest answer, so that neighbours need little padding."""
    drawn = [draw(rng) for _ in range(count)]
    return sorted(drawn, key=lambda lesson: max(len(answer) for _, answer in lesson.asked))


def _alike(pool: Sequence[Lesson], count: int, rng: random.Random) -> list[Lesson]:
    """A random sample of neighbours."""
    among = min(4 * count, len(pool))
    start = rng.randint(0, len(pool) - among)
    return rng.sample(pool[start : start + among], count)


def _cosine(done: float, start: float, end: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}


def untrained(
    *,
    seed: int = 0,
    dim: int = 96,
    layers: int = 4,
    vision_dim: int = 64,
    vision_layers: int = 1,
    pixels: tuple[float, float] = (0.5, 0.5),
) -> tuple[Any, Any]:
    """(`Qwen2_5_VLForConditionalGeneration`, `Qwen2_5_VLProcessor`) with random float32 weights.

    As in the large models a visual token is 28 × 28 pixels (patches of 14, merged 2 × 2), of two frames in a video. The
    processors leave pictures of whole tokens as they are. A video needs its `VideoMetadata`, or it counts as 24 fps.

    Args:
        pixels: what stands for zero, of 0 to 1, and by what the rest is divided. With zero at the level of the dark ground
            the first patches differ by what they show and not by a little of what they share; a picture's colours are
            then read after 100 steps.
    """
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    processor = _processor(*pixels)
    tokenizer = processor.tokenizer
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("endoftext", "im_end", "im_start")}
    head_dim = 32  # the least that the attention of inference engines takes
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=len(tokenizer),
            hidden_size=dim,
            intermediate_size=5 * dim // 2,
            num_hidden_layers=layers,
            num_attention_heads=dim // head_dim,
            num_key_value_heads=dim // head_dim,
            max_position_embeddings=4096,
            initializer_range=0.1,  # 0.02, made for widths in the thousands, hardly starts to learn
            rope_parameters={"rope_type": "default", "rope_theta": 1e5, "mrope_section": [6, 5, 5]},
            bos_token_id=ids["endoftext"],
            eos_token_id=ids["im_end"],
            pad_token_id=ids["endoftext"],
        ),
        vision_config=dict(
            depth=vision_layers,
            hidden_size=vision_dim,
            intermediate_size=2 * vision_dim,
            num_heads=vision_dim // 16,
            out_hidden_size=dim,
            fullatt_block_indexes=list(range(vision_layers)),  # windows would cut these small pictures
            tokens_per_second=2,
            initializer_range=0.1,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config).eval()
    with torch.no_grad():  # else visual tokens are so large that no layer can add anything to them
        model.model.visual.merger.mlp[-1].weight.mul_(0.1)
    model.generation_config.update(
        eos_token_id=[ids["im_end"], ids["endoftext"]],
        pad_token_id=ids["endoftext"],
        bos_token_id=ids["endoftext"],
    )
    return model, processor


def save(model: Any, processor: Any, out_dir: str | Path) -> None:
    """Writes a folder for `AutoModelForImageTextToText` and `AutoProcessor.from_pretrained`."""
    model.save_pretrained(out_dir)
    processor.save_pretrained(out_dir)


def _processor(zero: float, scale: float) -> Any:
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    # The defaults enlarge small pictures to several tokens.
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 64}
    normalize = {"image_mean": [zero] * 3, "image_std": [scale] * 3}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size, **normalize),
        video_processor=Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=False, **normalize),
        tokenizer=byte_tokenizer(WORDS.split(), tags=TAGS),
        chat_template=CHAT_TEMPLATE,
    )
