"""What a run is: one YAML file, checked for contradictions before any model is loaded."""

from __future__ import annotations

import logging
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from grpo_mm import outside
from grpo_mm.config.beside import with_files_beside
from grpo_mm.config.by_policy import filled
from grpo_mm.config.checks import check_settings
from grpo_mm.config.methods import preset
from grpo_mm.config.overrides import check_overrides, override
from grpo_mm.config.python_values import as_yaml_would
from grpo_mm.config.recorded import is_own, is_recorded, read_recorded, with_places
from grpo_mm.config.settings import Checkpoints, Evaluation, Settings, Updates
from grpo_mm.config.shipped import config_file
from grpo_mm.config.typed_yaml import build, convert, dump, read_yaml, resolved, with_parent
from grpo_mm.errors import ConfigError, UserError
from grpo_mm.outside import place, shown
from grpo_mm.registry import only_known
from grpo_mm.rollout.prompt_stream import Source
from grpo_mm.rollout.scoring import Scorer
from grpo_mm.rollout.surroundings import interrupted, kept

__all__ = [
    "Checkpoints",
    "Evaluation",
    "RunConfig",
    "Scorer",
    "Source",
    "Updates",
    "differences",
    "plain",
    "read",
    "read_mapping",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunConfig(Settings):
    """Settings that can be checked: the type that `read` gives, and that everything else is handed."""

    def check(self, world: int = 1) -> None:
        """Raises ConfigError for anything that cannot run, before any model is loaded."""
        self.check_settings(world)
        self.policy.check()
        for parts in (self.prompts, self.eval_prompts, self.rewards, self.watch):
            check_parts(parts)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                f"device is {self.device!r}, but torch sees no CUDA device. Use device=cpu or device=auto."
            )

    def check_settings(self, world: int = 1) -> None:
        """The part of `check` that looks at no file and no machine: contradictions of the settings themselves."""
        check_settings(self, world)


def check_parts(parts: Mapping[str, Any]) -> None:
    """Of entries with a `use`: its own `check`; raises ConfigError for whatever it raises.

    A reward in an environment of its own is checked there when it is loaded: what it needs is not here.
    """
    for name, part in parts.items():
        if getattr(part, "environment", None) is not None:
            continue
        with kept(name, "code of"):
            _check_part(name, part.use)


def _check_part(name: str, use: Any) -> None:
    """Its own `check`; raises ConfigError for whatever code that is not ours raises there."""
    check = getattr(use, "check", None)
    try:
        if callable(check):
            check()
    except UserError:
        raise
    except BaseException as error:
        ours = type(use).__module__.partition(".")[0] == "grpo_mm"
        if ours or isinstance(error, KeyboardInterrupt) and interrupted():
            raise
        raise ConfigError(f"{name}: its check fails: {outside.reason(error)}.") from error


def read(
    config: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    trust: bool = False,
    unset: list[str] | None = None,
) -> RunConfig:
    """The run that a file, or a mapping of the same keys, and its overrides describe; `check` it before use.

    A name that no file has here may be that of a config that ships with the package ("quickstart/flow.yaml"). Files that a config
    names are looked for in the current folder, then beside the config. Values of a mapping may also be objects, such as a reward.

    `unset`: takes down which ${data.NAME} have no value, for those who only count; None: that is refused.

    `config` may be a run folder. Its config, and a config.yaml that lies in one, are data: code that no room of this package
    lists is imported for them only if an override names it, with `trust`, or if this user's own training wrote that config
    in that place.
    """
    where = "the config"
    try:
        if isinstance(config, Mapping):
            found = build(RunConfig, filled(read_mapping(config, overrides, unset=unset)))
        else:
            path = config_file(place(config, what="the config"))
            where = str(path)
            mapping = (
                recorded_mapping(path, overrides)
                if path.is_dir()
                else read_yaml(path, overrides, RunConfig, unset=unset)
            )
            found = build_config(mapping, path, overrides, trust=trust)
        _tell_what_stands_above(found)
        return found
    except ConfigError as error:
        said = str(error) if str(error).startswith((where, "no config file")) else f"{where}: {error}"
        raise ConfigError(outside.plain(said, 4000)) from error


def read_mapping(
    config: Mapping[str, Any], overrides: Sequence[str] = (), *, unset: list[str] | None = None
) -> dict[str, Any]:
    """The plain mapping of a config that was written in Python; an `inherit`ed file is looked for in the current folder."""
    check_overrides(overrides)
    return resolved(own_mapping(config), overrides, RunConfig, where="the config", unset=unset)


def own_mapping(config: Mapping[str, Any]) -> dict[str, Any]:
    """What such a config says, with its parent below it: without a method and overrides."""
    return with_parent(as_yaml_would(config), where="the config", folder=Path())


def recorded_mapping(folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The plain config of a run folder, with overrides on top."""
    check_overrides(overrides)
    mapping = read_recorded(folder)
    for text in overrides:
        mapping = override(mapping, text, RunConfig)
    return mapping


def build_config(mapping: Mapping[str, Any], path: Path, overrides: Sequence[str], *, trust: bool) -> RunConfig:
    """The run that a plain mapping describes; `path` is where it was read."""
    folder = path if path.is_dir() else path.parent
    own = is_recorded(path) and is_own(folder)
    if trust or own or not is_recorded(path):
        mapping = with_places(mapping, folder) if own else mapping
        return build(RunConfig, filled(with_what_lies_beside(mapping, path)))
    _refuse_secrets(mapping, path, overrides)
    with only_known(str(path), named=overrides):
        return build(RunConfig, filled(mapping))


def with_what_lies_beside(mapping: Any, path: Path, *, key: str = "") -> Any:
    """A plain config, or its part `key`, with the files that lie beside the config's file; code there can be imported then."""
    if not path.is_file():
        return mapping
    if (beside := str(path.resolve().parent)) not in sys.path:
        sys.path.append(beside)  # a user's own rewards may lie beside the config
    return mapping if is_recorded(path) else with_files_beside(mapping, path.parent, key)


def _refuse_secrets(value: Any, path: Path, overrides: Sequence[str]) -> None:
    """A run folder also says which secret of the environment goes to which server."""
    for key, part in (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    ):
        if (
            key in ("api_key_env", "token_env")
            and part is not None
            and not any(str(part) in text for text in overrides)
        ):
            raise ConfigError(
                f"{path} would send the environment variable {shown(part)} to a server that it names. If you trust it, add --trust."
            )
        _refuse_secrets(part, path, overrides)


def _tell_what_stands_above(config: RunConfig) -> None:
    """A method fills in what the file leaves out: where the file has its own, that may not be what was wanted."""
    if config.method is None:
        return
    asked, hints = preset(config.method), typing.get_type_hints(RunConfig, include_extras=True)
    own = [
        key
        for key in ("advantage", "objective", "collector", "updates")
        if key in asked and dump(convert(hints[key], asked[key], path=key)) != dump(getattr(config, key))
    ]
    if own:
        log.warning(
            "method %s: the config has its own %s, which stand above the method's; %s takes the method's.",
            config.method, " and ".join(own), " ".join(f"{key}=null" for key in own),
        )  # fmt: skip


def plain(config: RunConfig) -> dict[str, Any]:
    """The resolved config as plain values, defaults included."""
    return dump(config)


def differences(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys at which two plain configs differ."""
    found = []
    for key in sorted(set(a) | set(b), key=str):
        left, right = a.get(key), b.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += differences(left, right, f"{prefix}{key}.")
        elif left != right:
            found.append(f"{prefix}{key}: {shown(left)} there, {shown(right)} here")
    return found
