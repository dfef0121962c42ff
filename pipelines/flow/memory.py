"""What memory a run will take, estimated from the headers of the checkpoint's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from grpo_mm.outside import shown
from grpo_mm.pipelines.flow.models.adapters import WEIGHT_NAME
from grpo_mm.pipelines.flow.models.family import resolve
from grpo_mm.pipelines.flow.policy import FlowPolicyConfig
from grpo_mm.pipelines.weight_files import Shapes, Uncounted, count, on_this_disk, weight_shapes

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2}
GIB = 2**30


def memory_lines(policy: FlowPolicyConfig, engine: Any, *, rows: int, needs_reference: bool) -> list[str]:
    """The estimate in words; a model that is not on this disk cannot be measured."""
    model = policy.model
    folder = on_this_disk(resolve(model.path), revision=getattr(model, "revision", None), file="model_index.json")
    if folder is None:
        return [
            f"memory: {shown(model.path)} is neither a local folder nor in the hub's cache, so its size is unknown here"
        ]
    try:
        network_shapes, others = _parameters(folder, policy)
    except Uncounted as error:
        return [f"memory: the size is unknown here: {error}"]
    network, wide = count(network_shapes), max(4, BYTES[policy.dtype])
    if policy.lora is None:
        trained, resident = network, network * wide
    else:
        trained = _adapter_count(network_shapes, policy)
        resident = network * BYTES[policy.dtype] + trained * wide
    parts = {
        "transformer": resident,
        "gradients and Adam": trained * 3 * wide,
        "snapshots": trained * wide * int(needs_reference),
        "encoders": 0 if "encoders" in policy.offload else _encoders(others) * BYTES[policy.dtype],
        "decoder": 0 if "decoder" in policy.offload else others.get("vae", 0) * 4,
        "stored transitions": rows * engine.actions() * _latent_size(folder, policy) * 2 * wide,
    }
    words = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items() if size)
    return [
        f"{trained / 1e6:.2f} M trained of {network / 1e6:.2f} M weights of the transformer",
        f"memory per process, GiB: {words}; sum {sum(parts.values()) / GIB:.2f}, activations of "
        f"{policy.micro_batch} transitions come on top (`grpo-mm bench` measures them)",
    ]


def _parameters(folder: Path, policy: FlowPolicyConfig) -> tuple[Shapes, dict[str, int]]:
    """(the transformer's parameters by name, the number of weights of every other part)."""
    variant = getattr(policy.model, "variant", None)
    tables = getattr(policy.model, "tables", ())
    network = weight_shapes(folder / "transformer", variant=variant)
    names = [f"text_encoder{number}" for number in ("", "_2", "_3")] + ["vae"]
    there = [name for name in names if (folder / name).is_dir()]
    others = {name: count(weight_shapes(folder / name, variant=variant)) for name in there}
    return {name: shape for name, shape in network.items() if name not in tables}, others


def _adapter_count(network: Shapes, policy: FlowPolicyConfig) -> int:
    """Weights of the adapter that is trained: rank · (in + out) for each target, or what `start_from` holds."""
    lora = policy.lora
    if lora.start_from is not None:
        local = Path(lora.start_from).expanduser()
        stored = weight_shapes(
            local if local.is_dir() else local.parent, file=local.name if local.is_file() else WEIGHT_NAME
        )
        return count(
            {n: s for n, s in stored.items() if "text_encoder" not in n and not n.endswith("alpha")}, tied=False
        )
    targets = tuple(lora.targets or policy.model.lora_targets)
    layers = {name.removesuffix(".weight"): shape for name, shape in network.items() if name.endswith(".weight")}
    chosen = [shape for name, shape in layers.items() if f".{name}".endswith(tuple(f".{t}" for t in targets))]
    return sum(lora.rank * sum(shape) for shape in chosen if len(shape) == 2)


def _encoders(counts: dict[str, int]) -> int:
    return sum(number for name, number in counts.items() if name.startswith("text_encoder"))


def _latent_size(folder: Path, policy: FlowPolicyConfig) -> int:
    vae = json.loads((folder / "vae" / "config.json").read_text())
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    return vae["latent_channels"] * (policy.height // factor) * (policy.width // factor)
