"""Whether a checkpoint is here what it is in its own library: which family it is of, and the table of that family's pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from grpo_mm.errors import ConfigError
from grpo_mm.findings import Finding, as_table, first_difference
from grpo_mm.outside import shown
from grpo_mm.pipelines.flow.models.family import read_index, resolve
from grpo_mm.pipelines.weight_files import on_this_disk
from grpo_mm.processes.distributed import Processes
from grpo_mm.registry import entries, load, lookup

VISION_LANGUAGE = "vlm"


def conform(path: str, *, model: str | None = None, dtype: str = "float32", device: str = "auto") -> Iterator[Finding]:
    """One finding after the other, in an order in which the first difference is the cause of the rest.

    Args:
        path: a folder, a hub name that has been downloaded, or zoo:NAME.
        model: a kind of flow model, or "vlm"; None: what the checkpoint says of itself.

    Raises:
        ConfigError: it is of no family that is known here, or cannot be loaded.
    """
    kind = model or kind_of_checkpoint(path)
    on = Processes(device=device).device
    if kind == VISION_LANGUAGE:
        from grpo_mm.pipelines.vlm.conform import conform as of_answers

        yield from of_answers(path, dtype=dtype, device=on)
    else:
        from grpo_mm.pipelines.flow.conforming.conform import conform as of_pictures

        yield from of_pictures(lookup("flow_model", kind)(path), dtype=dtype, device=on)


def kind_of_checkpoint(path: str) -> str:
    """The kind of flow model, by the pipeline that model_index.json names, or "vlm" where there is only a config.json."""
    folders = {file: on_this_disk(resolve(path), file=file) for file in ("model_index.json", "config.json")}
    there = {file: folder for file, folder in folders.items() if folder is not None and (folder / file).is_file()}
    if not there:
        raise ConfigError(
            f"{shown(path)} has neither a model_index.json nor a config.json on this disk: give a folder, or download it first."
        )
    folder = there.get("model_index.json")
    if folder is None:
        return VISION_LANGUAGE
    said = read_index(folder).get("_class_name")
    known = {getattr(load(entry.target), "pipeline", None): entry.kind for entry in entries("flow_model")}
    if said not in known:
        raise ConfigError(
            f"{shown(path)} holds a {shown(said)}; known are {', '.join(sorted(map(str, known)))}. For a family of your own give "
            "--model=package.module:Name (docs/adding_a_model.md)."
        )
    return known[said]


def report(findings: Sequence[Finding]) -> tuple[str, bool]:
    """The table with a last line, and whether all is well."""
    first = first_difference(findings)
    if first is None:
        return f"{as_table(findings)}\n\nIt is here what it is in its own library.", True
    return f"{as_table(findings)}\n\nFirst difference: {first.name}. {first.cause}.", False
