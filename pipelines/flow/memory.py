"""What memory a run will take, estimated from the headers of the checkpoint's files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from grpo_mm.pipelines.flow.models.family import resolve
from grpo_mm.pipelines.flow.policy import FlowPolicyConfig

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2}
GIB = 2**30


def parameter_counts(folder: Path) -> dict[str, int]:
    """Component → number of weights, read from the safetensors headers of a diffusers folder."""
    counts: dict[str, int] = {}
    for file in sorted(folder.glob("*/*.safetensors")):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        tensors = {k: v["shape"] for k, v in header.items() if k != "__metadata__"}
        counts[file.parent.name] = counts.get(file.parent.name, 0) + sum(math.prod(shape) for shape in tensors.values())
    return counts


def lora_count(folder: Path, targets: tuple[str, ...], rank: int) -> int:
    """Weights of an adapter on the transformer: rank · (in + out) for each target module."""
    total = 0
    for file in (folder / "transformer").glob("*.safetensors"):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        for name, entry in header.items():
            if name.endswith(".weight") and name.removesuffix(".weight").endswith(targets) and len(entry["shape"]) == 2:
                total += rank * sum(entry["shape"])
    return total


def memory_lines(policy: FlowPolicyConfig, engine: Any, *, rows: int, needs_reference: bool) -> list[str]:
    """The estimate in words; a model that is not on this disk cannot be measured."""
    folder = Path(resolve(policy.model.path)).expanduser()
    counts = parameter_counts(folder) if folder.is_dir() else {}
    if "transformer" not in counts:
        return [f"memory: {policy.model.path} is not a local folder, so its size is unknown here"]
    network, wide = counts["transformer"], max(4, BYTES[policy.dtype])
    if policy.lora is None:
        trained, resident = network, network * wide
    else:
        trained = lora_count(folder, policy.lora.targets or policy.model.lora_targets, policy.lora.rank)
        resident = network * BYTES[policy.dtype] + trained * wide
    parts = {
        "transformer": resident,
        "gradients and Adam": trained * 3 * wide,
        "snapshots": trained * wide * int(needs_reference),
        "encoders": 0 if "encoders" in policy.offload else _encoders(counts) * BYTES[policy.dtype],
        "decoder": 0 if "decoder" in policy.offload else counts.get("vae", 0) * 4,
        "stored transitions": rows * engine.actions() * _latent_size(folder, policy) * 2 * wide,
    }
    words = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items() if size)
    return [
        f"{trained / 1e6:.2f} M trained of {network / 1e6:.2f} M weights of the transformer",
        f"memory per process, GiB: {words}; sum {sum(parts.values()) / GIB:.2f}, activations of "
        f"{policy.micro_batch} transitions come on top (`grpo-mm bench` measures them)",
    ]


def _encoders(counts: dict[str, int]) -> int:
    return sum(number for name, number in counts.items() if name.startswith("text_encoder"))


def _latent_size(folder: Path, policy: FlowPolicyConfig) -> int:
    vae = json.loads((folder / "vae" / "config.json").read_text())
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    return vae["latent_channels"] * (policy.height // factor) * (policy.width // factor)
