"""Layers of a network through torch.compile: layers of one class are compiled once between them, for all lengths."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import torch
from torch import nn

from grpo_mm.errors import ConfigError

BACKEND = "inductor"
"""What makes code of a traced layer, a name of `torch._dynamo.list_backends()`."""
MOST_FORMS = 64
"""Forms of one layer: with and without gradients, with an adapter and without it, with one row, with the keys of a prompt, … torch
warns when a layer has more, and runs these as they are."""


def check_compiler(device: torch.device) -> None:
    """Raises ConfigError where the device is a CPU and there is no C++ compiler that makes code for it."""
    if device.type != "cpu" or BACKEND != "inductor":
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise ConfigError(
            "policy.compile: on a CPU it needs a C++ compiler, and none is found. Install g++ or clang, or leave it out."
        ) from None


def compile_layers(layers: Iterable[nn.Module], *, apart: str | None = None) -> None:
    """Compiles the forward of each layer, with sizes that may change.

    Layers share what was compiled, so a deep network starts as quickly as a shallow one. What stands around them is left as it is,
    and a layer that is computed again in the backward pass is compiled within that.

    Args:
        apart: the name of a part of each layer that is run as it is, such as an attention that asks caches; a graph breaks there.
    """
    import torch._dynamo as dynamo

    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, MOST_FORMS)
    for layer in layers:
        if apart is not None:
            part = getattr(layer, apart)
            part.forward = torch.compiler.disable(part.forward)
        layer.forward = torch.compile(layer.forward, dynamic=True, backend=BACKEND)


def compiled_counts() -> dict[str, float]:
    """Of this process so far: `compile/graphs` that were made and `compile/graph_breaks` in them; {} where nothing was compiled."""
    from torch._dynamo.utils import counters

    graphs = counters["stats"]["unique_graphs"]
    return {"compile/graphs": float(graphs), "compile/graph_breaks": float(sum(breaks().values()))} if graphs else {}


def breaks() -> dict[str, int]:
    """How many graph breaks there were, by the first line of torch's reason."""
    from torch._dynamo.utils import counters

    found: dict[str, int] = {}
    for why, number in counters["graph_break"].items():
        line = inspect.cleandoc(why).splitlines()[0]
        found[line] = found.get(line, 0) + number
    return found


def told(counts: dict[str, float]) -> str:
    """One line for the log."""
    why = "; ".join(f"{number} × {line}" for line, number in sorted(breaks().items()))
    return f"compiled: {counts['compile/graphs']:.0f} graphs, {counts['compile/graph_breaks']:.0f} graph breaks" + (
        f" ({why})" if why else ""
    )
