"""Where the pairs of an adapter file belong in networks, and putting them there: into the weights, or as factors that are trained.

Every pair of the file finds a place, and every place that the file's settings name gets a pair; else it is refused by name.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from grpo_mm.errors import ConfigError
from grpo_mm.outside import shown
from grpo_mm.weights.adapter_file import AdapterFile, Factors, as_lora_config
from grpo_mm.weights.weight_files import name_some


@dataclass(frozen=True)
class Place:
    """Modules whose outputs stand one after the other in a layer of another layout.

    Example: Place(("attn.to_q", "attn.to_k", "attn.to_v")) for a layer that gives all three at once.
    """

    modules: tuple[str, ...]
    swapped: bool = False
    """The two halves of the output change places: scale and shift in the other order."""


@dataclass(frozen=True, eq=False)
class Part:
    """A network that an adapter may be for, and how files name what is in it."""

    name: str
    """As the part of a pipeline: "transformer", "text_encoder", …"""
    network: nn.Module
    prefixes: tuple[str, ...]
    """In front of names with dots; "" for bare names."""
    flat_prefixes: tuple[str, ...] = ()
    """In front of names whose dots are underscores."""
    aliases: Mapping[str, Place] = field(default_factory=dict)
    """Names of other layouts."""
    refusal: str | None = None
    """Why an adapter of this part is not taken."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Example: Pair(a [4, 64], b [64, 4], alpha=8.0): weight += 2 · B A."""

    a: Tensor
    b: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def delta(self, dtype: torch.dtype) -> Tensor:
        """What it adds to the weight, [out, in], computed in `dtype`."""
        return (self.alpha / self.rank) * (self.b.to(dtype) @ self.a.to(dtype))

    def at_scale_one(self) -> Pair:
        """The same with its scale within B, in float32: what means one thing to every tool."""
        return Pair(self.a.float(), (self.alpha / self.rank) * self.b.float(), float(self.rank))


Placed = dict[str, dict[str, Pair]]
"""Part → module of its network → pair."""


def place(file: AdapterFile, parts: Sequence[Part]) -> Placed:
    """Each pair of the file at its modules.

    Raises:
        ConfigError: a name leads nowhere, to two places or to a place that is taken; a shape does not fit; a place is left out.
    """
    tables = [(part, *_tables(part)) for part in parts]
    found: Placed = {}
    lost = []
    for factors in file.pairs:
        at = _find(factors.module, tables)
        if at is None:
            lost.append(factors.module)
            continue
        part, where = at
        if part.refusal is not None:
            raise ConfigError(f"{file.path}: {shown(factors.module)} is for {part.name}: {part.refusal}")
        for module, pair in _split(factors, part, where, file).items():
            if module in found.setdefault(part.name, {}):
                raise ConfigError(f"{file.path}: two of its pairs are for {part.name}.{module}.")
            found[part.name][module] = pair
    if lost:
        networks = " and ".join(sorted({type(part.network).__name__ for part in parts}))
        raise ConfigError(
            f"{file.path}: {len(lost)} of its {len(file.pairs)} pairs find no layer in {networks}: {name_some(lost)}. It is for "
            "another model, or its names are of a tool that is not known here."
        )
    for part in parts:
        _check_whole(file, part, found.get(part.name, {}), first=part is parts[0])
    return found


def merge_into(network: nn.Module, pairs: Mapping[str, Pair], *, where: str) -> None:
    """Adds the pairs to the weights for good; computed in float32 at least and rounded once.

    Raises:
        ConfigError: a weight is shared with another module, or a sum is not finite.
    """
    check_untied(network, pairs, where=where)
    for name, pair in pairs.items():
        weight = network.get_submodule(name).weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        total = weight.data.to(wide) + pair.delta(wide).to(weight.device)
        if not torch.isfinite(total.to(weight.dtype)).all():
            raise ConfigError(
                f"{where}: merged into {name} it gives values that are NaN or infinite in {weight.dtype}."
            )
        weight.data.copy_(total)


def check_untied(network: nn.Module, names: Iterable[str], *, where: str) -> None:
    """Raises ConfigError if the weight of one of the modules is another module's too (a head tied to the embedding)."""
    holders = collections.Counter(id(p) for module in network.modules() for p in module.parameters(recurse=False))
    for name in names:
        if holders[id(network.get_submodule(name).weight)] > 1:
            raise ConfigError(
                f"{where}: the weight of {name} is shared with another module (tied), which an adapter of one of them would "
                "change too when it is merged. Untie them in the checkpoint first."
            )


def lora_settings(pairs: Mapping[str, Pair], network: nn.Module, *, said: Any = None) -> dict[str, Any]:
    """Arguments of peft's LoraConfig that make exactly these pairs; `said`: target_modules of the file, kept where they do."""
    rank, alpha = (
        collections.Counter(values).most_common(1)[0][0]
        for values in ((p.rank for p in pairs.values()), (p.alpha for p in pairs.values()))
    )
    return {
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "target_modules": _targets(pairs, network, said),
        "rank_pattern": {f"^{re.escape(n)}": p.rank for n, p in pairs.items() if p.rank != rank},
        "alpha_pattern": {f"^{re.escape(n)}": p.alpha for n, p in pairs.items() if p.alpha != alpha},
    }


@torch.no_grad()
def fill(network: nn.Module, pairs: Mapping[str, Pair]) -> None:
    """Writes the pairs over the factors that peft made, in the factors' own dtype; each gets one, each is used."""
    layers = {name: m for name, m in network.named_modules() if hasattr(m, "lora_A") and "default" in m.lora_A}
    assert set(layers) == set(pairs), sorted(set(layers) ^ set(pairs))
    for name, layer in layers.items():
        for factor, value in ((layer.lora_A, pairs[name].a), (layer.lora_B, pairs[name].b)):
            factor["default"].weight.copy_(value)
        assert abs(layer.scaling["default"] - pairs[name].alpha / pairs[name].rank) <= 1e-6 * abs(
            layer.scaling["default"]
        ), name


def _tables(part: Part) -> tuple[dict[str, Place], dict[str, set[Place]]]:
    """(by name with dots, by name without)"""
    dotted = {name: Place((name,)) for name, module in part.network.named_modules() if isinstance(module, nn.Linear)}
    dotted = {alias: at for alias, at in part.aliases.items() if all(m in dotted for m in at.modules)} | dotted
    flat: dict[str, set[Place]] = {}
    for name, at in dotted.items():
        flat.setdefault(name.replace(".", "_"), set()).add(at)
    return dotted, flat


def _find(
    name: str, tables: Iterable[tuple[Part, Mapping[str, Place], Mapping[str, set[Place]]]]
) -> tuple[Part, Place] | None:
    tables = list(tables)
    # Longer prefixes first: "text_encoder_2." before bare names, whatever part they belong to.
    dotted = sorted(
        ((prefix, part, table) for part, table, _ in tables for prefix in part.prefixes), key=lambda t: -len(t[0])
    )
    for spelling in _spellings(name):
        for prefix, part, table in dotted:
            if spelling.startswith(prefix) and (at := table.get(spelling.removeprefix(prefix))):
                return part, at
    for part, _, table in tables:
        for prefix in part.flat_prefixes:
            places = (
                table.get(name.removeprefix(prefix), set()) if name.startswith(prefix) and "." not in name else set()
            )
            if len(places) == 1:
                return part, next(iter(places))
    return None


PROCESSOR = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def _spellings(name: str) -> list[str]:
    """The name, and what older tools meant by it: "attn.processor.to_out_lora" is "attn.to_out.0"."""
    found = [name]
    if match := re.fullmatch(r"(.+?)(\.processor)?\.(\w+)_lora", name):
        module, layer = match[1], match[3]
        found += [f"{module}.{layer}", f"{module}.{layer}.0", f"{module}.{PROCESSOR.get(layer, layer)}"]
    return found


def _split(factors: Factors, part: Part, at: Place, file: AdapterFile) -> dict[str, Pair]:
    modules = [part.network.get_submodule(name) for name in at.modules]
    inside, rows = modules[0].in_features, [module.out_features for module in modules]
    if factors.a.shape[1] != inside or factors.b.shape[0] != sum(rows):
        raise ConfigError(
            f"{file.path}: the factors of {shown(factors.module)} have the shapes A {list(factors.a.shape)} and B "
            f"{list(factors.b.shape)}, for a weight of [{factors.b.shape[0]}, {factors.a.shape[1]}]; "
            f"{part.name}.{' + '.join(at.modules)} has [{sum(rows)}, {inside}]. It is for another model."
        )
    alpha = float(factors.a.shape[0]) if factors.alpha is None else factors.alpha
    b = torch.cat(factors.b.chunk(2)[::-1]) if at.swapped else factors.b
    return {name: Pair(factors.a, piece, alpha) for name, piece in zip(at.modules, b.split(rows), strict=True)}


def _check_whole(file: AdapterFile, part: Part, pairs: Mapping[str, Pair], *, first: bool) -> None:
    """Raises ConfigError if the file's settings name a layer that it has no pair for."""
    from peft.tuners.tuners_utils import check_target_module_exists

    said = file.configs.get(part.name) or (file.configs.get("") if first else None)
    config = None if said is None else as_lora_config(said)
    if config is None or part.refusal is not None:
        return
    linear = [name for name, module in part.network.named_modules() if isinstance(module, nn.Linear)]
    left = [name for name in linear if name not in pairs and check_target_module_exists(config, name)]
    if left:
        raise ConfigError(
            f"{file.path} is not whole: its settings (target_modules) name {len(left)} layers of {part.name} that it has no pair "
            f"for: {name_some(left)}."
        )


def _targets(pairs: Mapping[str, Pair], network: nn.Module, said: Any) -> list[str] | str:
    """What the file says, or endings of names, if it means exactly these modules; else all names in one pattern."""
    names = [name for name, _ in network.named_modules()]
    endings = sorted({re.split(r"\.\d+\.", name, maxsplit=1)[-1] for name in pairs})
    for tried in (said, endings):
        if isinstance(tried, str):
            matched = {name for name in names if re.fullmatch(tried, name)}
        else:
            matched = {name for name in names for end in tried or () if name == end or name.endswith(f".{end}")}
        if matched == set(pairs):
            return tried
    return "|".join(re.escape(name) for name in pairs)
