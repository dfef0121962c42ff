"""Defaults that are a matter of what a policy makes: it says them, here they are filled in below everything that a config says.

A policy's `defaults(engine)` gives plain values, as a config would have them:
`{"objective": [...], "advantage": [...], "optim": {...}, "kinds": [({"kind": "clipped_ratio"}, {"clip_low": 0.2}), …]}`.
"kinds" fills in the fields of components of the objective and the advantage, also of those within others; of several entries that
fit, the first counts. A policy that says nothing has the defaults of the classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grpo_mm import registry
from grpo_mm.config.typed_yaml import component
from grpo_mm.errors import ConfigError
from grpo_mm.registry import Role

WHOLE = ("objective", "advantage")
Kinds = Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]


def defaults_of(policy: Any, engine: Any) -> Mapping[str, Any]:
    """What a policy says, {} for one that says nothing."""
    return policy.defaults(engine) if hasattr(policy, "defaults") else {}


def filled(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The plain settings of a run with what its policy says where they say nothing."""
    try:
        policy, engine = (component(Role(role), mapping[role], path=role) for role in ("policy", "engine"))
    except (ConfigError, KeyError):  # `build` tells it, in its own order
        return dict(mapping)
    found, said = dict(mapping), defaults_of(policy, engine)
    for key in WHOLE:
        if found.get(key) is None and key in said:
            found[key] = said[key]
        if key in found:
            found[key] = _with_kinds(found[key], said.get("kinds", ()))
    if "optim" in said and isinstance(found.get("optim", {}), Mapping):
        found["optim"] = {**said["optim"], **found.get("optim", {})}
    return found


def _with_kinds(value: Any, kinds: Kinds) -> Any:
    if isinstance(value, (list, tuple)):
        return [_with_kinds(part, kinds) for part in value]
    if isinstance(value, str):
        filled_in = _with_kinds({"kind": value}, kinds)
        return value if len(filled_in) == 1 else filled_in
    if not isinstance(value, Mapping):
        return value
    found = {
        key: part if key == "kind" else _with_kinds(part, kinds) if _is_part(part) else part
        for key, part in value.items()
    }
    for wanted, settings in kinds:
        if all(found.get(key) == asked for key, asked in wanted.items()):
            return found | {key: default for key, default in settings.items() if key not in found}
    return found


def _is_part(value: Any) -> bool:
    """Whether it is a component within a component, or a list of such."""
    parts = value if isinstance(value, (list, tuple)) else [value]
    return any(isinstance(part, Mapping) and "kind" in part for part in parts)


def policy_kind(policy: Any) -> str:
    return registry.kind_of("policy", policy)
