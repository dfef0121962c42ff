"""A tiny text-to-video model in Wan's format, trained from scratch on clips that are handed in.

As the text-to-image model, it should render well and obey in part, so that reinforcement has something honest to teach.
"""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grpo_mm.pipelines.zoo.clip_autoencoder import encode, refine_decoder, train_clip_autoencoder
from grpo_mm.pipelines.zoo.flow_matching import fit, noised, padded_tokens, random_sigmas
from grpo_mm.pipelines.zoo.word_pieces import word_pieces
from grpo_mm.types import Clip, Clips, Prompt

Draw = Callable[[int, random.Random], tuple[np.ndarray, list[str]]]
"""(count, rng) -> uint8 [count, F, H, W, 3] and as many captions."""
Reward = Callable[[Clips, Sequence[Prompt]], dict[str, Tensor]]
"""(M clips, M prompts) -> named scores [M]."""

TEXT_TOKENS = 16
"""The longest caption has ten words; the end makes eleven."""
TEXT_LENGTHS = {TEXT_TOKENS: 90, 64: 8, 512: 2}
"""Number of tokens that the network reads (`max_sequence_length` of the pipeline), zeros where the text has ended, and how often
each is trained. The shortest is the cheapest; 512 is what a plain call of the pipeline uses."""
SHIFT = 3.0
"""Of the noise levels: clips want more of the high ones than pictures."""


@dataclass(frozen=True)
class Stage:
    """A part of the training, in the order in which they are given."""

    name: str
    """Its clips are drawn by it."""
    draw: Draw
    steps: int
    lr: float
    schedule_steps: int | None = None
    """Over which the learning rate falls, where that is not `steps`."""
    pool: int = 4000
    """Clips drawn once, kept as latents and trained on for many epochs."""
    prompts: Sequence[Prompt] = ()
    """Held-out prompts that are scored at every save, with the moving average of the weights."""


def build(
    out_dir: str | Path,
    *,
    stages: Sequence[Stage],
    fps: float,
    reward: Reward,
    seed: int = 0,
    autoencoder_steps: int = 900,
    decoder_steps: int = 500,
    autoencoder_pool: int = 4000,
    dim: int = 96,
    layers: int = 4,
    save_every: int = 200,
) -> None:
    """Trains the model and keeps its latest weights in `out_dir`, with the supervised curve in `curve.jsonl`.

    Args:
        stages: of the generator; the words of the first one's captions make the vocabulary.
        autoencoder_pool: clips of the first stage that the autoencoder learns from.
        decoder_steps: in which its decoder learns more, from latents that stay as they are.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "curve.jsonl").write_text("")
    started = time.monotonic()
    clips_NCFHW, captions = next(
        _drawn(stages[0].draw, autoencoder_pool, random.Random(f"{seed}/autoencoder"), autoencoder_pool)
    )
    torch.manual_seed(seed)
    vae = train_clip_autoencoder(clips_NCFHW, steps=autoencoder_steps)
    torch.manual_seed(seed)  # every part can be made again without those before it
    refine_decoder(vae, clips_NCFHW, steps=decoder_steps)
    torch.manual_seed(seed)
    averaged = untrained(vae, captions, dim=dim, layers=layers)
    size = dict(zip(("num_frames", "height", "width"), clips_NCFHW.shape[2:]))
    del clips_NCFHW

    def keep(pipe: Any, stage: Stage, step: int, loss: float) -> None:
        scores = score(pipe, stage.prompts, reward, fps=fps, **size) if stage.prompts else {}
        row = {"stage": stage.name, "step": step, "loss": round(loss, 4)}
        row |= {name: round(value, 4) for name, value in scores.items()}
        with (out_dir / "curve.jsonl").open("a") as curve:
            curve.write(json.dumps(row | {"seconds": round(time.monotonic() - started)}) + "\n")
        save(pipe, out_dir)

    for number, stage in enumerate(stages):
        if number:
            torch.manual_seed(seed)
        lessons = _lessons(averaged, stage.draw, stage.pool, random.Random(f"{seed}/{stage.name}"))
        for step, loss, latest in _trained(averaged, *lessons, stage, save_every=save_every):
            keep(latest, stage, step, loss)
        averaged = latest


def _drawn(draw: Draw, count: int, rng: random.Random, part: int) -> Iterator[tuple[Tensor, list[str]]]:
    for start in range(0, count, part):
        clips_NFHWC, captions = draw(min(part, count - start), rng)
        yield torch.from_numpy(clips_NFHWC).permute(0, 4, 1, 2, 3).contiguous(), captions


def _lessons(pipe: Any, draw: Draw, count: int, rng: random.Random, *, part: int = 500) -> tuple[Tensor, Tensor]:
    """Latents [N, C, f, h, w] and tokens [N, L]; the clips themselves would fill the memory."""
    parts = [
        (encode(pipe.vae, clips), padded_tokens(pipe.tokenizer, captions, length=TEXT_TOKENS))
        for clips, captions in _drawn(draw, count, rng, part)
    ]
    latents, tokens = zip(*parts)
    return torch.cat(latents), torch.cat(tokens)


def _trained(pipe: Any, latents: Tensor, tokens_NL: Tensor, stage: Stage, *, save_every: int, batch: int = 48):
    trained = ("transformer", "text_encoder")
    length = {"steps": stage.steps, "schedule_steps": stage.schedule_steps}
    return fit(pipe, latents, tokens_NL, trained, _loss, lr=stage.lr, save_every=save_every, batch=batch, **length)


def _loss(pipe: Any, latents_nCfhw: Tensor, tokens_nL: Tensor) -> Tensor:
    """|v(x_σ, σ) - (noise - x)|² at random σ; the texts' states as the pipeline cuts them."""
    lengths, weights = torch.tensor(list(TEXT_LENGTHS.items())).T
    length = int(lengths[torch.multinomial(weights.float(), 1)])
    mask_nL = tokens_nL != pipe.tokenizer.pad_token_id
    text_nLD = pipe.text_encoder(tokens_nL, mask_nL.long()).last_hidden_state * mask_nL[..., None]
    text_nLD = torch.nn.functional.pad(text_nLD, (0, 0, 0, length - text_nLD.shape[1]))
    sigma_n = random_sigmas(len(tokens_nL), shift=pipe.scheduler.config.shift)
    noisy, noise = noised(latents_nCfhw, sigma_n)
    velocity = pipe.transformer(noisy, 1000 * sigma_n, text_nLD).sample
    return (velocity - (noise - latents_nCfhw)).square().mean()


def score(
    pipe: Any, prompts: Sequence[Prompt], reward: Reward, *, fps: float, steps: int = 20, **size: int
) -> dict[str, float]:
    """Mean scores of one clip a prompt: deterministic sampler, no guidance, fixed noise."""
    clips = Clips(
        Clip(frames, fps) for frames in sample(pipe, [prompt.text for prompt in prompts], steps=steps, **size)
    )
    return {name: float(value_M.mean()) for name, value_M in reward(clips, prompts).items()}


def sample(
    pipe: Any,
    texts: Sequence[str],
    *,
    num_frames: int,
    height: int,
    width: int,
    steps: int = 20,
    seed: int = 0,
    batch: int = 96,
) -> Tensor:
    """uint8 [N, F, 3, H, W] by the plain pipeline call."""
    generator = torch.Generator().manual_seed(seed)
    pipe.set_progress_bar_config(disable=True)
    clips = [
        pipe(
            prompt=list(texts[start : start + batch]),
            num_frames=num_frames,
            height=height,
            width=width,
            num_inference_steps=steps,
            guidance_scale=1.0,
            max_sequence_length=TEXT_TOKENS,
            generator=generator,
            output_type="pt",
        ).frames
        for start in range(0, len(texts), batch)
    ]
    return (torch.cat(clips) * 255).round().to(torch.uint8)


def save(pipe: Any, out_dir: Path) -> None:
    """Safetensors for `WanPipeline.from_pretrained(out_dir)`.

    fp16, but for the text encoder: diffusers loads its own models as float32 by default, transformers as stored.
    """
    stored = copy.deepcopy(pipe)
    stored.transformer.half()
    stored.vae.half()
    stored.save_pretrained(out_dir)


def untrained(vae: Any, captions: Sequence[str], *, dim: int, layers: int, width: int = 48) -> Any:
    """A `WanPipeline` around the autoencoder, with random weights and a vocabulary of the captions' words."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    tokenizer = word_pieces({word for text in captions for word in text.split()}, max_length=512)
    config = UMT5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=width // 2,
        d_ff=2 * width,
        num_layers=2,
        num_heads=2,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
    )
    transformer = WanTransformer3DModel(
        num_attention_heads=dim // 32,
        attention_head_dim=32,
        in_channels=vae.config.z_dim,
        out_channels=vae.config.z_dim,
        text_dim=width,
        freq_dim=64,
        ffn_dim=4 * dim,
        num_layers=layers,
        rope_max_seq_len=64,
    )
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(config),
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        transformer=transformer,
    )
