"""Where modules stood before there were rooms: an old path still leads to its module, with one deprecation warning.

Users' configs and rewards name `package.module:Name`, and so do run folders that were written before. Nothing in the package
itself imports by an old path. To end it, delete this file and what imports it.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_UNDER_THE_SAME_NAME = (  # old package, new room, modules
    ("grpo_mm", "grpo_mm.processes", "clock distributed rng"),
    ("grpo_mm", "grpo_mm.rollout", "budget function_reward groups prompt_stream rows safe_call scoring table"),
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
    ("grpo_mm", "grpo_mm.training", "benchmarks evaluate learner onlooker run_folder trainer"),
    ("grpo_mm", "grpo_mm.tools", "bench console inference method_table prediction_files zoo_build"),
    ("grpo_mm.pipelines.flow", "grpo_mm.pipelines.flow.models", "adapters card family flux sd3"),
    ("grpo_mm.pipelines.flow", "grpo_mm.pipelines.flow.trees", "branching drawing forest grow tree"),
    ("grpo_mm.pipelines.flow", "grpo_mm.pipelines.flow.engines", "calibrate engine forward forward_record"),
    ("grpo_mm.pipelines.vlm", "grpo_mm.pipelines.vlm.models", "adapters card families loading"),
    ("grpo_mm.pipelines.vlm", "grpo_mm.pipelines.vlm.prompting", "chat contexts illustration record shared_media"),
    ("grpo_mm.pipelines.vlm", "grpo_mm.pipelines.vlm.forwards", "cascade flex lines network packing prefix_attention"),
    ("grpo_mm.pipelines.vlm", "grpo_mm.pipelines.vlm.prompt_sharing", "prefix_cost replay shared_forward sharing_check"),
    ("grpo_mm.pipelines.vlm", "grpo_mm.pipelines.vlm.sampling", "generation running"),
    ("grpo_mm.pipelines.vlm", "grpo_mm.pipelines.video_grounding", "alterations demonstrations difficulty shuffled_frames"),
    ("grpo_mm.pipelines.vlm", "grpo_mm.pipelines.spatial", "picture_size"),
    ("grpo_mm.rewards", "grpo_mm.rewards.shared", "weights"),
    ("grpo_mm.rewards", "grpo_mm.rewards.images", "aesthetic clip_score colors detectors geneval hps image_quality image_reward jpeg nearest_neighbour ocr pick_score quality_guard shape_world vlm_yes_no"),
    ("grpo_mm.rewards", "grpo_mm.rewards.text", "edit_similarity information_consistency mean_relative_accuracy peer_similarity repetition response_length spans tag_format text_overlap typed_answer"),
    ("grpo_mm.rewards", "grpo_mm.rewards.video", "box_track temporal_iou time_line timestamp_matching"),
    ("grpo_mm.rewards", "grpo_mm.rewards.spatial", "box_coordinates box_grounding box_matching box_reading box_sketch box_text boxes detection_confidence detection_map grit perception_boxes referring_box spacer vigorl"),
    ("grpo_mm.rewards", "grpo_mm.rewards.judges", "agreement answer_store pairing prompt_pictures unified_reward verdicts vlm vlm_server win_rate"),
    ("grpo_mm.rewards", "grpo_mm.rewards.faithfulness", "answer_judge conclusions consistency scene_claims semantic_grounding sentences"),
    ("grpo_mm.datasets", "grpo_mm.datasets.shared", "annotated_rows checked_fields difficulty files gathered hub swapped"),
    ("grpo_mm.datasets", "grpo_mm.datasets.images", "geneval ocr"),
    ("grpo_mm.datasets", "grpo_mm.datasets.media", "frame_folder frame_sampling frame_store picture_sequence video_decoders video_index"),
    ("grpo_mm.datasets", "grpo_mm.datasets.video", "activitynet_captions charades_sta got10k grounding nextgqa qvhighlights timechat timelens tvgbench video_quality video_r1 vsi_bench"),
    ("grpo_mm.datasets", "grpo_mm.datasets.spatial", "annotated_boxes blanked blink cv_bench grounded_cot mmvp picture_questions referring sat tallyqa vsr"),
    ("grpo_mm.datasets", "grpo_mm.datasets.chat", "conversations messages"),
    ("grpo_mm.datasets", "grpo_mm.datasets.worlds", "clip_world scene_world shape_world"),
)  # fmt: skip
_RENAMED = {
    "grpo_mm.collectors": "grpo_mm.rollout.collectors",
    "grpo_mm.config": "grpo_mm.config.typed_yaml",
    "grpo_mm.datasets.video": "grpo_mm.datasets.media.media_files",
    "grpo_mm.report": "grpo_mm.looking.report",
    "grpo_mm.rewards.judges": "grpo_mm.rewards.judges.comparing",
    "grpo_mm.run_checks": "grpo_mm.config.checks",
}

_ROOMS_OF_THE_SAME_NAME = frozenset({"grpo_mm.config", "grpo_mm.datasets.video", "grpo_mm.rewards.judges"})
"""Packages now, which answer for the module by `former_names`."""

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


def former_names(room: str) -> Callable[[str], Any]:
    """The `__getattr__` of a room that has the path of a module that moved: the module's names are found there too."""

    def look_up(name: str) -> Any:
        if not name.startswith("__") and find_spec(f"{room}.{name}") is None:
            module = importlib.import_module(MOVED[room])
            if hasattr(module, name):
                _tell(room, MOVED[room], stacklevel=3)
                return getattr(module, name)
        raise AttributeError(f"module {room!r} has no attribute {name!r}")

    return look_up


def install() -> None:
    """Lets `import` find modules by their old paths."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


_told: set[str] = set()


def _tell(old: str, new: str, *, stacklevel: int) -> None:
    if old not in _told:
        _told.add(old)
        warnings.warn(f"{old} has moved: import {new}.", MovedModule, stacklevel=stacklevel + 1)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        new = present_path(fullname) if fullname.startswith("grpo_mm.") else None
        if new is None or fullname in _ROOMS_OF_THE_SAME_NAME:
            return None
        return ModuleSpec(fullname, _Alias(new))


class _Alias(Loader):
    """Puts the module of the new path under the old one: both names are one module, its classes are the same classes."""

    def __init__(self, new: str) -> None:
        self.new = new

    def exec_module(self, module: ModuleType) -> None:
        _tell(module.__name__, self.new, stacklevel=2)
        parent, _, name = module.__name__.rpartition(".")
        if not isinstance(getattr(sys.modules[parent], name, module), ModuleType):
            sys.modules[parent].__class__ = _KeepsItsFunctions
        sys.modules[module.__name__] = importlib.import_module(self.new)


class _KeepsItsFunctions(ModuleType):
    """`import package.name` sets the module as an attribute of its package; here a function of that name stays what it is."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and callable(vars(self).get(name))):
            super().__setattr__(name, value)
