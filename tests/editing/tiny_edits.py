"""Tiny random checkpoints of the families that edit, made of the real classes, with pictures of unlike sizes to be edited."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tiny_families import SHIFT, build_flux2, build_flux2_klein
from tiny_models import build_flux, randomise

SMALLER = 16
"""By which sides of sources are divided in quick tests: the pipelines' own are of about 1024 pixels."""


def build_flux_kontext(folder: Path, *, halvings: int = 1) -> Path:
    """A FluxKontextPipeline: the parts of a FluxPipeline, with an autoencoder that halves the sides so often."""
    from diffusers import AutoencoderKL, FluxKontextPipeline, FluxPipeline

    parts = FluxPipeline.from_pretrained(build_flux(folder / "parts")).components
    if halvings > 1:
        blocks = halvings + 1
        parts["vae"] = AutoencoderKL(
            in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8,) * blocks, layers_per_block=1,
            norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
            scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False, sample_size=16,
        )  # fmt: skip
    FluxKontextPipeline(
        **{name: part for name, part in parts.items() if name not in ("image_encoder", "feature_extractor")}
    ).save_pretrained(folder)
    return folder


def build_qwen_image_edit(folder: Path, *, plus: bool = False) -> Path:
    """A QwenImageEditPipeline, or QwenImageEditPlusPipeline; its text encoder sees pictures."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImageEditPipeline,
        QwenImageEditPlusPipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2VLProcessor

    from grpo_mm.pipelines.zoo import vision_language

    torch.manual_seed(0)
    reader, made = vision_language.untrained(dim=32, layers=2, vision_dim=32, vision_layers=1)
    processor = Qwen2VLProcessor(
        image_processor=made.image_processor, tokenizer=made.tokenizer, video_processor=made.video_processor,
        chat_template=made.chat_template,
    )  # fmt: skip
    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(2, 2, 4), zero_cond_t=plus,
    )  # fmt: skip
    decoder = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[-0.7, 0.1, 0.9, -0.3], latents_std=[2.8, 1.4, 2.3, 1.2],
    )  # fmt: skip
    randomise(transformer)
    (QwenImageEditPlusPipeline if plus else QwenImageEditPipeline)(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(**SHIFT), vae=decoder, text_encoder=reader,
        tokenizer=processor.tokenizer, processor=processor,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def build_qwen_image_edit_plus(folder: Path) -> Path:
    return build_qwen_image_edit(folder, plus=True)


BUILDERS = {
    "flux_kontext": build_flux_kontext,
    "qwen_image_edit": build_qwen_image_edit,
    "qwen_image_edit_plus": build_qwen_image_edit_plus,
    "flux2": build_flux2,
    "flux2_klein": build_flux2_klein,
}
"""Kind of flow model -> what makes a checkpoint of it."""


@contextmanager
def smaller_sources() -> Iterator[None]:
    """The plain pipelines, and with them ours, bring pictures to about 64 × 64 pixels instead of 1024 × 1024."""
    from diffusers.pipelines.flux import pipeline_flux_kontext as kontext
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as edit
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus

    own = edit.calculate_dimensions
    with pytest.MonkeyPatch.context() as patch:
        sizes = [(w // SMALLER, h // SMALLER) for w, h in kontext.PREFERRED_KONTEXT_RESOLUTIONS]
        patch.setattr(kontext, "PREFERRED_KONTEXT_RESOLUTIONS", sizes)
        patch.setattr(
            edit, "calculate_dimensions", lambda area, ratio: own(64 * 64 if area == 1024**2 else area, ratio)
        )
        patch.setattr(plus, "VAE_IMAGE_SIZE", 64 * 64)
        patch.setattr(plus, "CONDITION_IMAGE_SIZE", 96 * 96)
        yield


SLOW = ("qwen_image_edit", "flux2", "flux2_klein")
"""Whose twins are tried in every run of the tests: another template, or an optional picture, is what is their own."""
KINDS = [pytest.param(kind, marks=[pytest.mark.slow] * (kind in SLOW)) for kind in BUILDERS]
SIZES = ((96, 64), (64, 128))
"""(width, height) of the pictures before."""


def written_edits(folder: Path) -> Path:
    """JSON lines of two edits of pictures of unlike sizes, with the pictures beside them."""
    from PIL import Image

    rows = []
    for i, (size, colour, text) in enumerate(
        zip(SIZES, ("red", "blue"), ("a green circle", "the red square and a blue circle"))
    ):
        picture = Image.new("RGB", size, colour)
        picture.paste("white", (8, 8 + 8 * i, 40, 48))
        picture.save(folder / f"{i}.png")
        rows.append({"source_image": f"{i}.png", "instruction": text})
    path = folder / "edits.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
