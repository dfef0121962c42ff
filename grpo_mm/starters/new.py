"""`grpo-mm new`: a folder to start from, which trains at once and is changed line by line into one's own run."""

from __future__ import annotations

import os
from pathlib import Path

from grpo_mm.errors import UserError
from grpo_mm.outside import place, plain, reason, shown
from grpo_mm.starters.readers import data_file, reader, written
from grpo_mm.starters.sample_rows import draw_rows, media_files

KINDS = {
    "vqa": "questions about pictures, answered in words",
    "video": "when does something happen in a video",
    "image": "pictures made from texts",
}
TRAIN_ROWS, TEST_ROWS = 20, 8
CONFIG, REWARDS = "config.yaml", "my_rewards.py"


def new(kind: str, folder: str | Path) -> list[Path]:
    """Writes a starter of a kind of `KINDS` into a folder, which is made; returns what was written, the media by their folder.

    Raises:
        UserError: another kind, or one of the files is there already; then nothing was written.
    """
    _check_kind(kind)
    folder = place(folder, what="FOLDER")
    sizes = {"train": TRAIN_ROWS, "test": TEST_ROWS}
    splits = {"train": "train", "test": "report"}
    data = {split: folder / data_file(kind, split) for split in sizes}
    media = [folder / name for split, count in sizes.items() for name in media_files(kind, splits[split], count)]
    _check_free(folder, [folder / CONFIG, folder / REWARDS, *data.values(), *media])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for split, count in sizes.items():
            rows = draw_rows(kind, folder, splits[split], count)
            data[split].write_text(written(kind, rows), encoding="utf-8")
        (folder / REWARDS).write_text(_text(f"{kind}_rewards.txt"), encoding="utf-8")
        (folder / CONFIG).write_text(_config(kind), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{plain(str(folder))} cannot be written: {reason(error)}. Name another folder.") from error
    return [folder / CONFIG, folder / REWARDS, *data.values(), *sorted({path.parent for path in media})]


def next_steps(kind: str, folder: Path) -> list[str]:
    """What to do with a folder that `new` wrote, a line each."""
    return [
        f"cd {folder}",
        "grpo-mm train config.yaml steps=3 name=try     # runs as it is, in a minute on a CPU; then look at runs/try/report.html",
        "grpo-mm show config.yaml                       # every key with its default, and what a step costs",
        "grpo-mm explain policy.micro_batch             # what a key means",
        f"Then put your own rows into {data_file(kind, 'train')} and {data_file(kind, 'test')}, your model into policy of {CONFIG},",
        f"and what you want into {REWARDS}.",
    ]


def _check_kind(kind: str) -> None:
    if kind == "edit":
        raise UserError(
            f"no model that edits pictures is supported yet, so there is no starter for it; there are: {', '.join(KINDS)}."
        )
    if kind not in KINDS:
        there = "; ".join(f"{name} ({what})" for name, what in KINDS.items())
        raise UserError(f"there is no starter {shown(kind)}; there are: {there}.")


def _check_free(folder: Path, files: list[Path]) -> None:
    try:
        if os.path.lexists(folder) and not folder.is_dir():
            raise UserError(f"{plain(str(folder))} is there and is no folder. Name another one.")
        taken = [path for path in files if os.path.lexists(path)]
    except (OSError, ValueError) as error:
        raise UserError(f"{plain(str(folder))} cannot be a folder: {reason(error)}. Name another one.") from error
    if taken:
        names = ", ".join(str(path.relative_to(folder)) for path in taken[:4])
        raise UserError(
            f"{plain(str(folder))} holds {names}{', …' if len(taken) > 4 else ''} already, and nothing is overwritten. Name another folder."
        )


def _config(kind: str) -> str:
    text = _text(f"{kind}.yaml")
    for split in ("train", "test"):
        text = text.replace(f"READER_OF_{split.upper()}", reader(kind, split))
    return text


def _text(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
