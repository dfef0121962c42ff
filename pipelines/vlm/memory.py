"""How many weights a run trains and what memory they take, from the headers of the checkpoint's files."""

from __future__ import annotations

import re
from typing import Any

from grpo_mm.outside import shown
from grpo_mm.pipelines.vlm.models.families import resolve
from grpo_mm.pipelines.weight_files import Uncounted, count, on_this_disk, weight_shapes

LORA_FILE = "adapter_model.safetensors"
BYTES = {"float32": 4, "bfloat16": 2}
GIB = 2**30
_TOWER = re.compile(r"(^|\.)visual\.")


def memory_lines(policy: Any, *, needs_reference: bool) -> list[str]:
    """The estimate in words for a `VlmPolicyConfig`; a model that is not on this disk cannot be measured."""
    folder = on_this_disk(resolve(policy.path), file="config.json")
    if folder is None:
        return [
            f"memory: {shown(policy.path)} is neither a local folder nor in the hub's cache, so its size is unknown here"
        ]
    try:
        shapes = weight_shapes(folder)
        trained = _trained(shapes, policy)
    except Uncounted as error:
        return [f"memory: the size is unknown here: {error}"]
    total = count(shapes)
    full = policy.lora is None
    parts = {
        "model": total * 4 if full else total * BYTES[policy.dtype] + trained * 4,
        "gradients and Adam": trained * 3 * 4,
        "snapshots": trained * 4 * int(needs_reference),
    }
    words = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items() if size)
    return [
        f"{trained / 1e6:.2f} M trained of {total / 1e6:.2f} M weights",
        f"memory per process, GiB: {words}; sum {sum(parts.values()) / GIB:.2f}, activations and what generation keeps come "
        "on top (`grpo-mm bench` measures them)",
    ]


def _trained(shapes: dict[str, tuple[int, ...]], policy: Any) -> int:
    lora = policy.lora
    if lora is None:
        return count({n: s for n, s in shapes.items() if policy.train_tower or not _TOWER.search(n)})
    if lora.start_from is not None:
        local = on_this_disk(resolve(lora.start_from), file="adapter_config.json")
        if local is None:
            raise Uncounted(f"the adapter {shown(lora.start_from)} is not here")
        return count(weight_shapes(local, file=LORA_FILE), tied=False)
    target = re.compile(rf"(^|\.)layers\.\d+\.(.*\.)?({'|'.join(map(re.escape, lora.targets))})\.weight")
    layers = [s for n, s in shapes.items() if target.search(n) and not _TOWER.search(n) and len(s) == 2]
    return sum(lora.rank * sum(shape) for shape in layers)
