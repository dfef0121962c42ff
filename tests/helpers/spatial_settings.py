"""The published spatial settings on this machine: what a user without the data and the GPUs gives in the place of theirs."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from conftest import ROOT
from taught_spatial import ANSWERS, write_spatial_data
from taught_vlm import teach

from grpo_mm.config.run_config import read
from grpo_mm.config.typed_yaml import read_yaml

CONFIGS = sorted((ROOT / "configs/spatial").glob("*.yaml"))
FORMATS = {"qwen25vl": "qwen2_5_vl", "qwen2vl": "qwen2_vl"}
"""Part of a config's name → the model format."""
ASKED = {
    "fgrpo": {"sat": "sat", "vgr": "boxes", "viscot": "boxes", "treevgr": "boxes", "eval_sat": "sat", "eval_cv_bench": "cv_bench"},
    "care": {"annotations": "sat", "eval_annotations": "cv_bench"},
    "grit": {"annotations": "grit", "eval_annotations": "grit"},
    "treevgr": {"vstar": "boxes", "counting": "counting", "eval_annotations": "boxes"},
    "vlm_r1_rec": {"annotations": "talk_box", "eval_annotations": "talk_box"},
    "vlm_r1_detection": {"annotations": "talk_boxes", "eval_annotations": "talk_boxes"},
    "visual": {"annotations": "talk_positions", "eval_annotations": "talk_positions"},
    "perception": {"grounding": "referring", "detection": "talk_positions", "ocr": "ocr", "eval_grounding": "referring"},
    "spacer": {"annotations": "video_r1", "eval_annotations": "vsi_bench"},
    "vigorl": {"annotations": "sat", "eval_annotations": "sat"},
}  # fmt: skip
"""How a config's name begins → its `data` key → the form of `taught_spatial` that it reads."""


def places_of(path: Path) -> list[str]:
    """All paths that a user gives, made up."""
    asked = read_yaml(path, ["prompts=null", "eval_prompts=null", "rewards=null"])["data"]
    made_up = {"judge_url": "http://localhost:1/v1"}
    return [f"data.{key}={made_up.get(key, f'{key}.json')}" for key, value in asked.items() if value is None]


def config_of(stem: str) -> Path:
    return ROOT / f"configs/spatial/{stem}.yaml"


@cache
def checkpoint(family: str) -> str:
    """A tiny checkpoint of a model format that writes well-formed answers at random, and now and then something else."""
    sources = [source for path in CONFIGS for source in read(path, places_of(path)).prompts.values()]
    questions = sorted({source.use.template for source in sources})
    folder, said = Path(tempfile.mkdtemp()) / family, ANSWERS[family]
    longest = max(said, key=len)  # and so the hardest to say: it is taught twice as often
    return teach(family, folder, steps=200, answers=(*said, longest), questions=questions)


@cache
def data() -> dict[str, str]:
    return write_spatial_data(Path(tempfile.mkdtemp()))


def paths(path: Path, folder: Path, *, judge_url: str) -> list[str]:
    """What a user gives for the `data` of a config; what a run writes goes to `folder`."""
    forms = next(forms for start, forms in ASKED.items() if path.stem.startswith(start))
    given = {
        "pictures": data()["pictures"], "videos": data()["videos"], "eval_videos": data()["videos"], "judge_url": judge_url,
        "judge_cache": f"{folder}/answers.db", "unpacked": f"{folder}/unpacked",
    }  # fmt: skip
    given |= {key: data()[form] for key, form in forms.items()}
    return [f"data.{key}={given[key]}" for key in read_yaml(path, places_of(path))["data"] if key in given]


def paths_and_sizes(path: Path, folder: Path, *, judge_url: str) -> list[str]:
    """Paths, picture and batch sizes, and lengths; nothing else."""
    plain = read_yaml(path, places_of(path))
    sampling = plain["policy"].get("media", {}).get("sampling", {})
    frames = ["frames=4", "min_pixels_frame=784", "max_pixels_frame=1568"] if sampling else []
    return [
        *paths(path, folder, judge_url=judge_url), f"policy.path={checkpoint(FORMATS[path.stem.split('_')[-2]])}",
        "policy.dtype=float32", "policy.micro_batch=16", "policy.image_pixels=[784, 7056]",
        *(f"policy.media.sampling.{size}" for size in frames), "engine.max_new_tokens=60", "engine.eval_max_new_tokens=60",
        "prompts_per_step=4", "steps=1", "device=cpu", "evaluation.every=0", "evaluation.limit=2", f"runs_dir={folder}/runs",
    ]  # fmt: skip
