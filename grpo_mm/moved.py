"""Where modules stood before there were rooms, or in another one: an old path still leads to its module, with one deprecation warning.

Users' configs and rewards name `package.module:Name`, and so do run folders that were written before. Nothing in the package
itself imports by an old path. They end with version 0.3: delete this file and what imports it.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_UNDER_THE_SAME_NAME = (  # old package, new room, modules
    ("grpo_mm", "grpo_mm.processes", "clock distributed rng"),
    ("grpo_mm", "grpo_mm.rollout", "function_reward groups prompt_stream rows safe_call scoring table"),
    ("grpo_mm", "grpo_mm.rollout.collectors", "budget"),
    ("grpo_mm.collectors", "grpo_mm.rollout.collectors", "allocate dynamic_sampling more prioritised sample_and_score unsolved"),
    ("grpo_mm.advantages", "grpo_mm.advantages.shared", "ranges signals"),
    ("grpo_mm.advantages", "grpo_mm.advantages.state", "lagrangian value_tracker"),
    ("grpo_mm.advantages", "grpo_mm.advantages.baselines", "agents fleet_norm group_norm median_norm quantile_norm shrinkage stratified virtual_norm"),
    ("grpo_mm.advantages", "grpo_mm.advantages.scales", "beta_norm gardo negative_weight rank_factor"),
    ("grpo_mm.advantages", "grpo_mm.advantages.combination", "average combine gate outcome"),
    ("grpo_mm.advantages", "grpo_mm.advantages.bonuses", "consistency_bonus demonstrations length_switch list_shape novelty pass_rate_ladder reward_terms serial_decay temporal_bonus"),
    ("grpo_mm.advantages", "grpo_mm.advantages.actions", "anchor_states choices gains prefix_tree reward_to_go sum_tags tree_backup"),
    ("grpo_mm.advantages", "grpo_mm.advantages.masks", "drop_degenerate leave_out select shuffle truncation"),
    ("grpo_mm", "grpo_mm.weights", "checkpoint optim snapshots stateful update"),
    ("grpo_mm", "grpo_mm.looking", "diversity image_statistics metrics model_card samples transcripts watch"),
    ("grpo_mm.report", "grpo_mm.looking.report", "curves pictures rules texts words"),
    ("grpo_mm", "grpo_mm.config", "arithmetic methods run_config"),
    ("grpo_mm", "grpo_mm.training", "benchmarks evaluate learner onlooker trainer"),
    ("grpo_mm", "grpo_mm.run", "run_folder"),
    ("grpo_mm.training", "grpo_mm.run", "changes clearing data data_digests handshake mark product run_folder state which_checkpoint"),
    ("grpo_mm", "grpo_mm.tools", "bench console inference method_table prediction_files zoo_build"),
    ("grpo_mm.tools", "grpo_mm.tools.serving", "serve"),
    ("grpo_mm.pipelines.flow", "grpo_mm.pipelines.flow.models", "adapters card family flux sd3"),
    ("grpo_mm.pipelines.flow", "grpo_mm.pipelines.flow.trees", "branching drawing forest grow tree"),
    ("grpo_mm.pipelines.flow", "grpo_mm.pipelines.flow.engines", "engine forward forward_record"),
    ("grpo_mm.pipelines.flow", "grpo_mm.tools", "calibrate"),
    ("grpo_mm.pipelines.vlm", "grpo_mm.pipelines.vlm.models", "adapters card families loading"),
    ("grpo_mm.pipelines.vlm", "grpo_mm.pipelines.vlm.prompting", "chat contexts illustration record shared_media"),
    ("grpo_mm.pipelines.vlm", "grpo_mm.pipelines.vlm.forwards", "cascade flex lines network packing prefix_attention"),
    ("grpo_mm.pipelines.vlm", "grpo_mm.pipelines.vlm.prompt_sharing", "prefix_cost replay shared_forward sharing_check"),
    ("grpo_mm.pipelines.vlm", "grpo_mm.pipelines.vlm.sampling", "generation running"),
    ("grpo_mm.pipelines.vlm", "grpo_mm.pipelines.video_grounding", "alterations demonstrations difficulty shuffled_frames"),
    ("grpo_mm.pipelines.vlm", "grpo_mm.pipelines.spatial", "picture_size"),
    ("grpo_mm.rewards", "grpo_mm.rewards.shared", "weights"),
    ("grpo_mm.rewards", "grpo_mm.rewards.images", "aesthetic clip_score colors detectors geneval hps image_quality image_reward jpeg nearest_neighbour ocr pick_score quality_guard shape_world"),
    ("grpo_mm.rewards", "grpo_mm.rewards.text", "edit_similarity information_consistency mean_relative_accuracy peer_similarity repetition response_length spans tag_format text_overlap typed_answer"),
    ("grpo_mm.rewards", "grpo_mm.rewards.video", "box_track temporal_iou time_line timestamp_matching"),
    ("grpo_mm.rewards", "grpo_mm.rewards.spatial", "box_coordinates box_grounding box_matching box_reading box_sketch box_text boxes detection_confidence detection_map grit perception_boxes referring_box spacer vigorl"),
    ("grpo_mm.rewards", "grpo_mm.rewards.judges", "agreement answer_store pairing prompt_pictures unified_reward verdicts vlm vlm_server vlm_yes_no win_rate"),
    ("grpo_mm.rewards", "grpo_mm.rewards.faithfulness", "answer_judge conclusions consistency scene_claims semantic_grounding sentences"),
    ("grpo_mm.datasets", "grpo_mm.datasets.shared", "annotated_boxes annotated_rows blanked checked_fields files gathered hub picture_questions swapped"),
    ("grpo_mm.datasets", "grpo_mm.datasets.images", "geneval ocr"),
    ("grpo_mm.datasets", "grpo_mm.datasets.media", "frame_folder frame_sampling frame_store picture_sequence video_decoders video_index"),
    ("grpo_mm.datasets", "grpo_mm.datasets.video", "activitynet_captions charades_sta difficulty got10k grounding nextgqa qvhighlights timechat timelens tvgbench video_quality video_r1 vsi_bench"),
    ("grpo_mm.datasets", "grpo_mm.datasets.spatial", "blink cv_bench grounded_cot mmvp referring sat tallyqa vsr"),
    ("grpo_mm.datasets", "grpo_mm.datasets.chat", "conversations messages"),
    ("grpo_mm.datasets", "grpo_mm.datasets.worlds", "clip_world scene_world shape_world"),
)  # fmt: skip
_RENAMED = {
    "grpo_mm.collectors": "grpo_mm.rollout.collectors",
    "grpo_mm.config": "grpo_mm.config.typed_yaml",
    "grpo_mm.datasets.video": "grpo_mm.datasets.media.media_files",
    "grpo_mm.pipelines.flow.memory": "grpo_mm.pipelines.flow.ledger",
    "grpo_mm.report": "grpo_mm.looking.report",
    "grpo_mm.rewards.benchmarks.answers": "grpo_mm.rewards.answers.choices",
    "grpo_mm.rewards.judges": "grpo_mm.rewards.judges.comparing",
    "grpo_mm.run_checks": "grpo_mm.config.checks",
}

_ROOMS_OF_THE_SAME_NAME = frozenset({"grpo_mm.config", "grpo_mm.datasets.video", "grpo_mm.rewards.judges"})
"""Packages now, which stand for the module by `hand_on`."""

MOVED: dict[str, str] = {
    f"{old}.{name}": f"{new}.{name}" for old, new, names in _UNDER_THE_SAME_NAME for name in names.split()
}
MOVED |= _RENAMED
"""Old dotted path → new one."""


class MovedModule(DeprecationWarning):
    """A module is asked for by the path that it had before there were rooms."""


def present_path(path: str) -> str | None:
    """The new dotted path of a module that moved; None for any other."""
    if path in MOVED:
        return MOVED[path]
    parent, _, name = path.rpartition(".")  # a module of a package that moved as a whole
    return f"{MOVED[parent]}.{name}" if parent in MOVED and parent not in _ROOMS_OF_THE_SAME_NAME else None


def present_target(target: str) -> str:
    """`package.module:Name` as it reads now; anything else as it is."""
    module, colon, name = target.partition(":")
    return f"{present_path(module) or module}{colon}{name}"


def tell(old: str, *, stacklevel: int = 2) -> None:
    """Warns, once a process for each old path; `stacklevel` as of `warnings.warn`, counted from the caller."""
    if old not in _told and old in MOVED:
        _told.add(old)
        warnings.warn(f"{old} has moved: import {MOVED[old]}.", MovedModule, stacklevel=stacklevel + 1)


def hand_on(room: str, module: str) -> None:
    """Lets a package stand for one of its modules, or for one that has left its path: names that the package does not have
    are found, set and deleted there."""
    package = sys.modules[room]
    package.__class__ = _Room
    vars(package).update(_stands_for=module, _deleted=set())


def install() -> None:
    """Lets `import` find modules by their old paths."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


_told: set[str] = set()


class _Room(ModuleType):
    _stands_for: str

    def _is_of_the_module(self, name: str) -> bool:
        # A name that was deleted comes back to where it was: this is how patches are undone.
        there = name in vars(self._module()) or name in vars(self)["_deleted"]
        return there and name not in vars(self) and not name.startswith("__")

    def _module(self) -> ModuleType:
        return importlib.import_module(self._stands_for)

    def __getattr__(self, name: str) -> Any:
        # Asking for a module of the package comes here too, before it is imported; that is no name of the other one.
        if name.isidentifier() and not name.startswith("_") and find_spec(f"{self.__name__}.{name}") is None:
            found = vars(self._module())
            if name in found:
                tell(self.__name__)
                return found[name]
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) or not self._is_of_the_module(name):
            super().__setattr__(name, value)
        else:
            setattr(self._module(), name, value)

    def __delattr__(self, name: str) -> None:
        if self._is_of_the_module(name):
            vars(self)["_deleted"].add(name)
            delattr(self._module(), name)
        else:
            super().__delattr__(name)

    def __dir__(self) -> list[str]:
        return sorted({*vars(self), *(name for name in vars(self._module()) if not name.startswith("_"))})


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        new = present_path(fullname) if fullname.startswith("grpo_mm.") else None
        if new is None or fullname in _ROOMS_OF_THE_SAME_NAME:
            return None
        if fullname not in MOVED and find_spec(new) is None:
            return None
        return ModuleSpec(fullname, _Alias(new))


class _Alias(Loader):
    """Gives the module of the new path under the old one: both names are one module, its classes are the same classes."""

    def __init__(self, new: str) -> None:
        self.new = new

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        tell(spec.name)
        parent, _, name = spec.name.rpartition(".")
        if not isinstance(getattr(sys.modules[parent], name, sys), ModuleType):
            sys.modules[parent].__class__ = _KeepsItsFunctions
        module = importlib.import_module(self.new)
        self.own_spec = module.__spec__  # `import` sets that of the old name
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.own_spec


class _KeepsItsFunctions(ModuleType):
    """`import package.name` sets the module as an attribute of its package; here a function of that name stays what it is."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and callable(vars(self).get(name))):
            super().__setattr__(name, value)
