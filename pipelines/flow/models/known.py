"""Pipelines of released checkpoints without numbers, from a folder's config files or, by hub name, from published configurations.

The test compares the number of weights that follow with the published ones.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import torch

from grpo_mm.errors import ConfigError
from grpo_mm.outside import shown
from grpo_mm.pipelines.flow.models.family import parts_of, read_index, resolve
from grpo_mm.pipelines.flow.published import families, sizes, wan
from grpo_mm.pipelines.flow.published.wan import t5_tokenizer
from grpo_mm.pipelines.weight_files import on_this_disk
from grpo_mm.pipelines.zoo.random_weights import FLUX_TRANSFORMERS, SD3_TRANSFORMERS
from grpo_mm.pipelines.zoo.word_tokenizer import word_tokenizer

NAMED = families.NAMED | sizes.NAMED | wan.NAMED
RANDOM = "random:"
_DUAL = {"qk_norm": "rms_norm"}
SD3: dict[str, dict[str, Any]] = {
    "stabilityai/stable-diffusion-3-medium-diffusers": dict(
        num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=192
    ),
    "stabilityai/stable-diffusion-3.5-medium": SD3_TRANSFORMERS["sd35_medium"] | _DUAL,
    "stabilityai/stable-diffusion-3.5-large": SD3_TRANSFORMERS["sd35_large"] | _DUAL,
    "stabilityai/stable-diffusion-3.5-large-turbo": SD3_TRANSFORMERS["sd35_large"] | _DUAL,
}
FLUX: dict[str, dict[str, Any]] = {
    "black-forest-labs/FLUX.1-dev": FLUX_TRANSFORMERS["flux_dev"] | {"guidance_embeds": True},
    "black-forest-labs/FLUX.1-Kontext-dev": FLUX_TRANSFORMERS["flux_dev"] | {"guidance_embeds": True},
    "black-forest-labs/FLUX.1-schnell": FLUX_TRANSFORMERS["flux_dev"] | {"guidance_embeds": False},
}
SIZES = {"sd35_medium": "stabilityai/stable-diffusion-3.5-medium", "sd35_large": "stabilityai/stable-diffusion-3.5-large",
         "flux_dev": "black-forest-labs/FLUX.1-dev"}  # fmt: skip
_T5 = dict(
    vocab_size=32_128, d_model=4096, d_kv=64, d_ff=10_240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"
)


def known_pipeline(family: Any) -> tuple[Any, str]:
    """(a pipeline whose networks are on the meta device, where its sizes come from).

    Raises:
        ConfigError: it is not on this disk and no size that is known here.
    """
    path = family.path
    folder = (
        None
        if path.startswith(RANDOM)
        else on_this_disk(resolve(path), revision=family.revision, file="model_index.json")
    )
    if folder is not None:
        return _from_folder(folder), f"{shown(path)}: config files on this disk"
    name = SIZES.get(path.removeprefix(RANDOM), path)
    if name in SD3:
        return _sd3(SD3[name]), f"{shown(path)}: the published configuration, from the table of known sizes"
    if name in FLUX:
        return _flux(
            FLUX[name], family.pipeline
        ), f"{shown(path)}: the published configuration, from the table of known sizes"
    if name in NAMED:
        return NAMED[name](), f"{shown(path)}: the published configuration, from the table of known sizes"
    raise ConfigError(
        f"{shown(path)} is neither on this disk nor a size that is known here ({', '.join([*SD3, *FLUX, *NAMED])}): download it, or set "
        "policy.model.path to a folder."
    )


def _from_folder(folder: Path) -> Any:
    import diffusers

    index = read_index(folder)
    parts = {name: _part(folder, name, value) for name, value in parts_of(index).items()}
    cls = getattr(diffusers, index["_class_name"])
    takes = set(inspect.signature(cls.__init__).parameters)
    settings = {name: value for name, value in index.items() if name in takes - set(parts)}
    return cls(**{name: part for name, part in parts.items() if part is not None or name in takes}, **settings)


def _part(folder: Path, name: str, value: list[Any]) -> Any:
    if value == [None, None] or not (folder / name).is_dir():
        return None
    cls = getattr(importlib.import_module(value[0]), value[1])
    if not issubclass(cls, torch.nn.Module):
        return cls.from_pretrained(folder / name)
    with torch.device("meta"):
        if value[0] == "diffusers":
            return cls.from_config(cls.load_config(folder / name))
        return cls(cls.config_class.from_pretrained(folder / name))


def _sd3(size: dict[str, Any]) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    with torch.device("meta"):
        transformer = SD3Transformer2DModel(
            sample_size=128, patch_size=2, in_channels=16, out_channels=16, attention_head_dim=64,
            joint_attention_dim=4096, pooled_projection_dim=2048, **size,
        )  # fmt: skip
        return StableDiffusion3Pipeline(
            transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=_vae(scaling=1.5305, shift=0.0609), text_encoder=_clip(768, 12, projected=True), tokenizer=_tokenizer(),
            text_encoder_2=_clip(1280, 32, projected=True), tokenizer_2=_tokenizer(),
            text_encoder_3=_t5(), tokenizer_3=t5_tokenizer(),
        )  # fmt: skip


def _flux(size: dict[str, Any], pipeline: str) -> Any:
    import diffusers
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    with torch.device("meta"):
        transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=64,
            joint_attention_dim=4096,
            pooled_projection_dim=768,
            axes_dims_rope=(16, 56, 56),
            **size,
        )
        return getattr(diffusers, pipeline)(
            transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            vae=_vae(scaling=0.3611, shift=0.1159), text_encoder=_clip(768, 12, projected=False), tokenizer=_tokenizer(),
            text_encoder_2=_t5(), tokenizer_2=t5_tokenizer(),
        )  # fmt: skip


def _vae(*, scaling: float, shift: float) -> Any:
    from diffusers import AutoencoderKL

    blocks = 4
    return AutoencoderKL(
        sample_size=1024, latent_channels=16, block_out_channels=(128, 256, 512, 512), layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
        scaling_factor=scaling, shift_factor=shift, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip


def _clip(width: int, layers: int, *, projected: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=49_408, hidden_size=width, intermediate_size=4 * width, projection_dim=width, num_hidden_layers=layers,
        num_attention_heads=width // 64,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def _t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(**_T5))


def _tokenizer() -> Any:
    """A stand-in: texts are filled up to the same length whatever they say."""
    return word_tokenizer(["a", "photo", "of"], max_length=77)
