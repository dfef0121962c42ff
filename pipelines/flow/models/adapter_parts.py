"""Which parts of a pipeline an adapter may be for, and the names of their layers in the authors' own layouts of SD3 and FLUX.

Those of newer families: `published.layouts`; Qwen-Image and Sana have one layout, that of diffusers.

The layouts are those that diffusers' single-file loader reads (`convert_sd3_transformer_checkpoint_to_diffusers`,
`convert_flux_transformer_checkpoint_to_diffusers`); a test holds the tables against it.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from grpo_mm.pipelines.flow.models.networks import SECOND, networks_of
from grpo_mm.pipelines.flow.published.layouts import NEWER
from grpo_mm.weights.adapter_places import Part, Place

TRANSFORMER = ("transformer.", "diffusion_model.", "model.diffusion_model.", "unet.", "")
TRANSFORMER_FLAT = ("lora_unet_", "lora_transformer_", "lycoris_")


def adapter_parts(pipe: Any) -> list[Part]:
    """The transformer first, then the text encoders; what plain diffusers would leave out is refused by name."""
    parts = [transformer_part(pipe)]
    if SECOND in networks_of(pipe):
        parts.append(transformer_part(pipe, SECOND, prefixes=(f"{SECOND}.",), flat=(f"lora_{SECOND}_",)))
    clips = 0
    for number, name in enumerate(("text_encoder", "text_encoder_2", "text_encoder_3"), start=1):
        encoder = getattr(pipe, name, None)
        if encoder is None:
            continue
        kind, comfy = type(encoder).__name__, "t5xxl"
        if kind.startswith("CLIP"):
            comfy = ("clip_l", "clip_g")[min(clips, 1)]
            clips += 1
        prefixes = [f"{name}.", f"text_encoders.{comfy}.transformer.", f"text_encoders.{comfy}."]
        flat = [f"lora_te{number}_"] + (["lora_te_"] if number == 1 else [])
        if not kind.startswith("CLIP"):  # kohya counts T5 as the third, whatever stands before it
            flat.append("lora_te3_")
        # Versions of transformers differ in whether `text_model` stands in the names.
        prefixes = [p + inner for p in prefixes for inner in ("", "text_model.")]
        flat = [p + inner for p in flat for inner in ("", "text_model_")]
        loads = name in pipe._lora_loadable_modules
        refusal = None if loads else "plain diffusers does not load an adapter of that part. Take it out of the file."
        parts.append(Part(name, encoder, tuple(prefixes), tuple(flat), _with_text_model(encoder), refusal))
    return parts


def transformer_part(
    pipe: Any,
    name: str = "transformer",
    *,
    prefixes: tuple[str, ...] = TRANSFORMER,
    flat: tuple[str, ...] = TRANSFORMER_FLAT,
) -> Part:
    network = getattr(pipe, name)
    return Part(name, network, prefixes, flat, original_names(network))


def _with_text_model(encoder: nn.Module) -> dict[str, Place]:
    inner = "text_model."
    return {n.removeprefix(inner): Place((n,)) for n, _ in encoder.named_modules() if n.startswith(inner)}


def original_names(network: nn.Module) -> dict[str, Place]:
    """Name in the authors' layout → layers of the diffusers network that it stands for."""
    found: dict[str, Place] = {}
    outside, blocks = LAYOUTS.get(type(network).__name__, ({}, {}))
    for original, modules in outside.items():
        found[original] = _place(modules)
    for (original, ours), inside in blocks.items():
        for i in range(len(getattr(network, ours))):
            for name, modules in inside.items():
                found[f"{original}.{i}.{name}"] = _place(modules, f"{ours}.{i}.")
    if type(network).__name__ == "SD3Transformer2DModel":
        # Its last block only scales and shifts the text, in the other order.
        last = len(network.transformer_blocks) - 1
        name = f"joint_blocks.{last}.context_block.adaLN_modulation.1"
        found[name] = _place("~norm1_context.linear", f"transformer_blocks.{last}.")
    return found


def _place(modules: str, before: str = "") -> Place:
    """ "a b c": three layers one after the other; "~a": with its halves in the other order."""
    return Place(tuple(before + name for name in re.findall(r"[^\s~]+", modules)), swapped=modules.startswith("~"))


SD3 = (
    {
        "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
        "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
        "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
        "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": "~norm_out.linear",
    },
    {
        ("joint_blocks", "transformer_blocks"): {
            "x_block.attn.qkv": "attn.to_q attn.to_k attn.to_v",
            "x_block.attn.proj": "attn.to_out.0",
            "x_block.attn2.qkv": "attn2.to_q attn2.to_k attn2.to_v",
            "x_block.attn2.proj": "attn2.to_out.0",
            "x_block.adaLN_modulation.1": "norm1.linear",
            "x_block.mlp.fc1": "ff.net.0.proj",
            "x_block.mlp.fc2": "ff.net.2",
            "context_block.attn.qkv": "attn.add_q_proj attn.add_k_proj attn.add_v_proj",
            "context_block.attn.proj": "attn.to_add_out",
            "context_block.adaLN_modulation.1": "norm1_context.linear",
            "context_block.mlp.fc1": "ff_context.net.0.proj",
            "context_block.mlp.fc2": "ff_context.net.2",
        },
    },
)
FLUX = (
    {
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
        "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
        "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
        "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
        "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": "~norm_out.linear",
    },
    {
        ("double_blocks", "transformer_blocks"): {
            "img_attn.qkv": "attn.to_q attn.to_k attn.to_v",
            "img_attn.proj": "attn.to_out.0",
            "img_mod.lin": "norm1.linear",
            "img_mlp.0": "ff.net.0.proj",
            "img_mlp.2": "ff.net.2",
            "txt_attn.qkv": "attn.add_q_proj attn.add_k_proj attn.add_v_proj",
            "txt_attn.proj": "attn.to_add_out",
            "txt_mod.lin": "norm1_context.linear",
            "txt_mlp.0": "ff_context.net.0.proj",
            "txt_mlp.2": "ff_context.net.2",
            "processor.qkv_lora1": "attn.to_q attn.to_k attn.to_v",
            "processor.proj_lora1": "attn.to_out.0",
            "processor.qkv_lora2": "attn.add_q_proj attn.add_k_proj attn.add_v_proj",
            "processor.proj_lora2": "attn.to_add_out",
        },
        ("single_blocks", "single_transformer_blocks"): {
            "linear1": "attn.to_q attn.to_k attn.to_v proj_mlp",
            "linear2": "proj_out",
            "modulation.lin": "norm.linear",
            "processor.qkv_lora": "attn.to_q attn.to_k attn.to_v",
            "processor.proj_lora": "proj_out",
        },
    },
)
"""FLUX's `processor.…` are the names of XLabs' adapters."""
LAYOUTS = {"SD3Transformer2DModel": SD3, "FluxTransformer2DModel": FLUX, **NEWER}
