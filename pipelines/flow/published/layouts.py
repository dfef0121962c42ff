"""Names of layers in the authors' own layouts of FLUX.2 and Z-Image, as ComfyUI, kohya's scripts and ai-toolkit write adapters.

Of the form of `adapter_parts.SD3`: names outside the blocks, then by (their list of blocks, ours) names within a block; "a b c" are
layers one after the other, "~a" one with its halves in the other order. A test holds the tables against diffusers' converters.
"""

from __future__ import annotations

Layout = tuple[dict[str, str], dict[tuple[str, str], dict[str, str]]]

_EXPANDED = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.to_add_out", "attn.add_q_proj", "attn.add_k_proj",
    "attn.add_v_proj", "ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out",
)  # fmt: skip
FLUX2: Layout = (
    {
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
        "guidance_in.in_layer": "time_guidance_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer": "time_guidance_embed.guidance_embedder.linear_2",
        "single_stream_modulation.lin": "single_stream_modulation.linear",
        "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
        "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
        "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": "~norm_out.linear",
    },
    {
        ("double_blocks", "transformer_blocks"): {
            "img_attn.qkv": "attn.to_q attn.to_k attn.to_v",
            "img_attn.proj": "attn.to_out.0",
            "txt_attn.qkv": "attn.add_q_proj attn.add_k_proj attn.add_v_proj",
            "txt_attn.proj": "attn.to_add_out",
            "img_mlp.0": "ff.linear_in",
            "img_mlp.2": "ff.linear_out",
            "txt_mlp.0": "ff_context.linear_in",
            "txt_mlp.2": "ff_context.linear_out",
        },
        ("single_blocks", "single_transformer_blocks"): {
            "linear1": "attn.to_qkv_mlp_proj",
            "linear2": "attn.to_out",
        },
        ("sformer_blocks", "transformer_blocks"): {name: name for name in _EXPANDED},
    },
)
""""sformer_blocks": some exports have cut the name so."""
_ATTENTION = {
    "attention.qkv": "attention.to_q attention.to_k attention.to_v",
    "attention.to.q": "attention.to_q",
    "attention.to.k": "attention.to_k",
    "attention.to.v": "attention.to_v",
    "attention.out": "attention.to_out.0",
}
Z_IMAGE: Layout = (
    {
        "x_embedder": "all_x_embedder.2-1",
        "final_layer.linear": "all_final_layer.2-1.linear",
        "final_layer.adaLN_modulation.1": "all_final_layer.2-1.adaLN_modulation.1",
    },
    {(blocks, blocks): _ATTENTION for blocks in ("layers", "noise_refiner", "context_refiner")},
)
NEWER: dict[str, Layout] = {"Flux2Transformer2DModel": FLUX2, "ZImageTransformer2DModel": Z_IMAGE}
