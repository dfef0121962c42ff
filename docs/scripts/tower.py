"""Calls of attention that a vision tower makes for a video, window by window and by lengths, for docs/benchmarks.md.

python docs/scripts/tower.py [FRAMES [HEIGHT WIDTH]]
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.nn import functional

from grpo_mm.pipelines.vlm.forwards import windows
from grpo_mm.pipelines.vlm.models.known import known_config

NAMES = ("Qwen/Qwen2-VL-7B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen3-VL-8B-Instruct")
NARROW = {
    "num_heads": 2,
    "out_hidden_size": 32,
    "intermediate_size": 32,
    "embed_dim": 32,
    "hidden_size": 32,
    "mlp_ratio": 1,
}
"""Widths; layers, patches, windows and which layers see a whole frame are the published ones."""


def tower_of(name: str) -> Any:
    """A narrow tower with random weights."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

    config = known_config(name)[0].vision_config
    for key, value in NARROW.items():
        if hasattr(config, key):
            setattr(config, key, value)
    classes = {
        "2-VL": Qwen2VisionTransformerPretrainedModel,
        "2.5": Qwen2_5_VisionTransformerPretrainedModel,
        "3-VL": Qwen3VLVisionModel,
    }
    (made,) = (c for part, c in classes.items() if f"Qwen{part}" in name)
    torch.manual_seed(0)
    return made._from_config(config, attn_implementation="sdpa").eval()


@torch.no_grad()
def asked(tower: Any, *, frames: int, height: int, width: int) -> tuple[int, torch.Tensor]:
    """(calls of attention, features [tokens, width]) of a video of so many frames and pixels."""
    config, real, calls = tower.config, functional.scaled_dot_product_attention, 0
    side = config.patch_size * config.spatial_merge_size
    high, wide = (pixels // side * config.spatial_merge_size for pixels in (height, width))
    grid = torch.tensor([[frames // config.temporal_patch_size, high, wide]])
    patch = config.in_channels * config.temporal_patch_size * config.patch_size**2
    pixels = torch.randn(int(grid.prod()), patch, generator=torch.Generator().manual_seed(0))

    def count(*args: Any, **settings: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return real(*args, **settings)

    functional.scaled_dot_product_attention = windows.scaled_dot_product_attention = count
    try:
        found = tower(pixels, grid_thw=grid).pooler_output
        return calls, found
    finally:
        functional.scaled_dot_product_attention = windows.scaled_dot_product_attention = real


def row(name: str, *, frames: int = 64, height: int = 320, width: int = 576) -> tuple[int, int, int, float]:
    """(visual tokens, calls window by window, calls by length, largest difference of a feature) of a tower."""
    tower, size = tower_of(name), {"frames": frames, "height": height, "width": width}
    apart, wanted = asked(tower, **size)
    windows.install(tower.config)
    together, found = asked(tower, **size)
    return len(found), apart, together, float((wanted - found).abs().max())


def main() -> None:
    torch.set_num_threads(1)
    size = dict(zip(("frames", "height", "width"), map(int, sys.argv[1:])))
    print("| tower | visual tokens | calls, window by window | calls, by length |\n| --- | --- | --- | --- |")
    for name in NAMES:
        tokens, apart, together, _ = row(name, **size)
        print(f"| {name.removeprefix('Qwen/')} | {tokens:,} | {apart:,} | {together} |")


if __name__ == "__main__":
    main()
