"""What differs between the model families; one small entry each, recognised by `model_type` in config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_mm.errors import ConfigError
from grpo_mm.outside import plain, shown
from grpo_mm.pipelines import zoo
from grpo_mm.pipelines.vlm.models.family import LINEAR, Family
from grpo_mm.pipelines.vlm.models.glm4v import Glm4v
from grpo_mm.pipelines.vlm.models.internvl import InternVl
from grpo_mm.pipelines.weight_files import on_this_disk
from grpo_mm.weights.weight_files import read_settings

MIXTURE = {
    "policy.compile": "its experts take as many tokens as the router sends them, which a compiled layer cannot",
    "policy.quantize": "its experts, most of the weights, stand in stacked tensors that are not quantised",
    "policy.attention = flex_attention": "it was not tried with flex_attention",
    "distributed.sequence": "its experts were not tried with rows that are cut over processes",
    "engine.generator.kind = vllm": "how vLLM takes its weights was not tried",
}
STATE = {
    "policy.compile": "its layers with linear attention were not tried compiled",
    "policy.quantize": "its layers with linear attention were not tried quantised",
    "policy.attention = flex_attention": "its answers carry a state, so that each has a line of its own",
    "distributed.sequence": "its layers with linear attention read tokens in their order, so that a row cannot be cut",
    "engine.generator.kind = vllm": "how vLLM takes its weights was not tried",
}
TILES = {
    "policy.image_pixels": "its tiles have one size, and its processor's settings say how many a picture is cut into",
    "policy.video_pixels": "its frames are tiles of one size",
    "policy.quantize": "it was not tried quantised",
    "policy.compile": "it was not tried compiled",
    "policy.attention = flex_attention": "it was not tried with flex_attention",
    "distributed.sequence": "its tower was not tried cut over processes",
    "engine.generator.kind = vllm": "how vLLM takes its tiles was not tried",
}
GLM = {
    "policy.quantize": "it was not tried quantised",
    "policy.compile": "it was not tried compiled",
    "policy.attention = flex_attention": "it was not tried with flex_attention",
    "distributed.sequence": "its tower was not tried cut over processes",
    "engine.generator.kind = vllm": "how vLLM takes its videos was not tried",
}
FAMILIES = {
    family.model_type: family
    for family in (
        Family("qwen2_vl", "order"),
        Family("qwen2_5_vl", "seconds_per_grid"),
        Family("qwen3_vl", "text", deepstack=True),
        Family("qwen3_vl_moe", "text", deepstack=True, experts=True, without=MIXTURE),
        Family(
            "qwen3_5",
            "text",
            recurrent=True,
            without=STATE,
            more_linear=("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"),
        ),
        Family(
            "qwen3_5_moe",
            "text",
            recurrent=True,
            experts=True,
            without=MIXTURE | STATE,
            more_linear=("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"),
        ),
        InternVl("internvl", "order", without=TILES),
        Glm4v("glm4v", "text", more_linear=("gate_up_proj",), without=GLM),
        Glm4v("glm46v", "text", more_linear=("gate_up_proj",), without=GLM),
        Glm4v(
            "glm4v_moe", "text", experts=True, not_adapted=("gate_proj", "up_proj", "down_proj"), without=GLM | MIXTURE
        ),
    )
}


def family_of(model_type: str, *, path: str) -> Family:
    """Raises ConfigError for a model type that is not in the table."""
    if model_type not in FAMILIES:
        raise ConfigError(f"{path} holds a {model_type!r} model; wanted one of {', '.join(FAMILIES)}.")
    return FAMILIES[model_type]


def resolve(path: str) -> str:
    """The folder or hub name: "zoo:NAME" is the shipped checkpoint of that name."""
    if path.startswith("zoo:"):
        return str(zoo.path(path.removeprefix("zoo:")))
    return str(Path(path).expanduser()) if path.startswith("~") else path


def check_model(path: str) -> Family | None:
    """The family of a local folder; None where there is none and `path` may be a hub name.

    Raises:
        ConfigError: the folder, or what `path` names, holds no such model.
    """
    folder = Path(resolve(path))
    if not folder.exists() and not path.startswith((".", "/", "~")):
        if path.count("/") != 1:
            raise ConfigError(
                f"policy.path {path!r} is neither an existing folder nor a hub name of the form owner/name."
            )
        return None
    if not folder.exists():
        raise ConfigError(f"policy.path: there is no folder {plain(path)}.")
    file = folder / "config.json"
    if not file.is_file():
        raise ConfigError(f"{path} is no transformers checkpoint: it has no config.json.")
    return family_of(plain(str(read_settings(file).get("model_type")), 80), path=path)


def positions_on_disk(path: str) -> int | None:
    """Tokens of the longest prompt with its answer, as the settings of a checkpoint say that is here; None where none says."""
    folder = on_this_disk(resolve(path), file="config.json")
    return None if folder is None else positions_of(read_settings(folder / "config.json"), where=path)


def positions_of(settings: Mapping[str, Any], *, where: str) -> int | None:
    """`max_position_embeddings` of the language model.

    Raises:
        ConfigError: it is no whole number above 0.
    """
    text = settings.get("text_config")
    found = (text if isinstance(text, Mapping) else settings).get("max_position_embeddings")
    if found is not None and (isinstance(found, bool) or not isinstance(found, int) or found < 1):
        raise ConfigError(
            f"{where}, config.json: max_position_embeddings is {shown(found)}; wanted a whole number above 0."
        )
    return found


def adapter_targets(names: Sequence[str] = LINEAR) -> str:
    """A pattern for peft that names linear layers of the language model and can never match one of the vision tower.

    Module names in full read `model.language_model.layers.0.self_attn.q_proj`, those of the tower `model.visual.…`.
    """
    return rf"(.*\.)?language_model\.layers\.\d+\.(.*\.)?({'|'.join(re.escape(name) for name in names)})"
