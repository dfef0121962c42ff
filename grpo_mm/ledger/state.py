"""The entries that do not depend on what is sampled: weights, gradients, optimiser, copies of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from grpo_mm.ledger.entries import Entry, Phase, Plan
from grpo_mm.ledger.quantized import layers_of


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Each storage once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def held(module: nn.Module | None) -> int:
    """Bytes of parameters and buffers."""
    return 0 if module is None else bytes_of([*module.parameters(), *module.buffers()])


def of_training(owner: str, module: nn.Module, plan: Plan) -> tuple[Entry, ...]:
    """Weights, optimiser and snapshots of a network, some of whose parameters are trained."""
    trained = [p for p in module.parameters() if p.requires_grad]
    count, size = sum(p.numel() for p in trained), bytes_of(trained)
    layers = layers_of(module)
    packed = bytes_of(tensor for layer in layers for tensor in (layer.weight, layer.scales))
    frozen = held(module) - size - packed
    names = {
        "ref": "reference weights",
        "ema": "averaged weights",
        "sampling": "sampling weights",
        "ahead": "weights of the rows drawn ahead",
    }
    kinds = ", ".join(sorted({layer.quantized for layer in layers}))
    entries = [
        Entry(f"{owner}, quantized", packed, kinds, split="weights"),
        Entry(owner + (", frozen" if size and frozen else ""), frozen, _dtype(module, False), split="weights"),
        Entry(f"{owner}, trained", size, _dtype(module, True), split="weights"),
        Entry("moments of AdamW", count * plan.optimiser_bytes, "float32", split="weights"),
        *(
            _snapshot(names.get(name, name), size, plan.reference_dtype if name == "ref" else "float32")
            for name in plan.snapshots
            if name != "ahead"
        ),
        *(_drawn_ahead(names["ahead"], size) if "ahead" in plan.snapshots else ()),
    ]
    if plan.copies_checkpoints:
        copies = (e for e in entries if e.owner in names.values() and e.when in ("", "replicated"))
        kept = size + sum(entry.bytes for entry in copies) + count * plan.optimiser_bytes
        entries.append(Entry("copy of a checkpoint", kept, "float32", place="host", split="weights"))
    return tuple(entry for entry in entries if entry.bytes)


def _snapshot(owner: str, size: int, dtype: str) -> Entry:
    return Entry(owner, size // (1 + (dtype == "bfloat16")), dtype, split="weights")


def _drawn_ahead(owner: str, size: int) -> tuple[Entry, ...]:
    """In main memory; on the device where weights are cut."""
    cut = (Entry(owner, size, "float32", split="weights", when=form) for form in ("sharded", "forward"))
    return Entry(owner, size, "float32", place="host", when="replicated"), *cut


def of_forward(
    module: nn.Module,
    compute: str,
    *,
    size: int,
    copies: int = 0,
    gradients: int = 0,
    blocks: Sequence[nn.Module] = (),
) -> tuple[Entry, ...]:
    """What a pass holds of the weights beside those that are there all the time.

    Args:
        compute: the dtype that products run in; `size` is that of one number.
        copies: bytes of weights that autocast has cast; sharded weights are gathered in that dtype instead.
        gradients: bytes of those that are added up; whole on each device until the update is done.
        blocks: what comes and goes with `distributed.gather = forward`, one at a time, with its own gradients.
    """
    numbers = sum(p.numel() for p in module.parameters())
    sizes = [[p.numel() for p in block.parameters()] for block in blocks]
    one = numbers - sum(map(sum, sizes)) + max(map(sum, sizes), default=0)
    trained = [sum(p.numel() for p in block.parameters() if p.requires_grad) for block in blocks]
    share = max(trained, default=0) / max(1, sum(p.numel() for p in module.parameters() if p.requires_grad))
    within = (
        Entry("gradients", gradients, "float32", split="weights", when="forward"),
        Entry("gradients of a block", round(gradients * share), "float32", when="forward"),
        Entry("gathered weights", one * size, compute, when="forward"),
    )
    return (
        *(within if blocks else ()),
        Entry("gradients", gradients, "float32", when="whole"),
        Entry("compute copies (autocast)", copies, compute, when="replicated"),
        Entry("gathered weights", numbers * size, compute, when="sharded"),
    )


def of_optimiser(module: nn.Module, plan: Plan) -> Phase:
    """The step of AdamW, and the sums of `ema` after it."""
    trained = [p for p in module.parameters() if p.requires_grad]
    size, largest = bytes_of(trained), max((p.numel() * p.element_size() for p in trained), default=0)
    root = 0 if plan.fused else size if plan.foreach else 2 * largest
    parts = (
        Entry("gradients", size, "float32", split="weights"),
        Entry("root of the second moment", root, "float32", split="weights"),
    )
    return Phase("optimiser step", parts, "train an adapter (policy.lora={rank: 32})")


def _dtype(module: nn.Module, trained: bool) -> str:
    packed = {id(layer.weight) for layer in layers_of(module)}
    here = (p for p in module.parameters() if p.requires_grad == trained and id(p) not in packed)
    found = {str(p.dtype).removeprefix("torch.") for p in here}
    return ", ".join(sorted(found))
