"""Starting over: what a run has written is deleted by its names, and nothing else in its folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

OF_A_RUN = re.compile(
    r"(\.writing_)?(config\.yaml|versions\.json|sources\.json|sampler\.json|scorers\.json|events\.jsonl|changes\.jsonl|summary\.json|product\.json|checkpoints\.jsonl|report\.html)"
    r"|(metrics|held_out)\.(jsonl|writing)|\.writing_(report|metrics\.jsonl)"
)
WITHIN = {
    "checkpoints": r"(\.writing_)?step_[0-9]{6,18}/([A-Za-z0-9_]+\.safetensors|(state|manifest)\.json)",
    "samples": r"(\.writing_)?(step_[0-9]+|eval_(before|after|step_[0-9]+))(\.(png|json|jsonl))?"
    r"|media/(\.writing_)?[0-9a-f]{16}\.(png|jpeg)",
    "adapter": r"README\.md|(merged/)?[^/]+\.(safetensors|json)",
    "model": r"README\.md|([^/]+/)?[^/]+\.(safetensors|json|jinja|txt|model)",
}
"""Folder → what a run writes there. Records of trackers are known by their own names, wherever they lie."""
PROBES = ("config.json", "state.json", f"{'0' * 16}.png")
"""What stands for the files that a folder within these is for."""
WITHIN |= {f".writing_{name}": WITHIN[name] for name in ("adapter", "model")}
OF_A_TRACKER = re.compile(r"events\.out\.tfevents\.[^/]*|hparams\.yml")


def clear(folder: Path, *, name: str) -> list[str]:
    """Deletes what a run called `name` has written into its folder; gives what else lies there, which stays.

    The summary and the checkpoints go first: a run without them has not begun. No link is followed or deleted.
    """
    left: list[str] = []
    for place in ("summary.json", "checkpoints"):
        _clear(folder, place, name, left)
    for place in sorted(os.listdir(folder)):
        if place not in ("run.json", ".writing_run.json", "checkpoints"):
            _clear(folder, place, name, left)
    return sorted(set(left))


def links(folder: Path) -> list[str]:
    """Links in a run folder through which a run would write or delete: of its files, and of folders that hold any."""
    found = [name for name in sorted(os.listdir(folder)) if name == "metrics.writing" and (folder / name).is_symlink()]
    for place in WITHIN:
        for top, folders, files in os.walk(folder / place):
            names = (os.path.relpath(os.path.join(top, name), folder / place) for name in sorted((*folders, *files)))
            found += [
                f"{place}/{name}" for name in names if (folder / place / name).is_symlink() and _is_written(place, name)
            ]
    return found


def _is_written(place: str, name: str) -> bool:
    return place == "checkpoints" or any(
        re.fullmatch(WITHIN[place], n) for n in (name, *(f"{name}/{p}" for p in PROBES))
    )


def _clear(folder: Path, place: str, name: str, left: list[str]) -> None:
    path = folder / place
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_dir():
        _delete(path, place, left, ours=bool(OF_A_RUN.fullmatch(place)))
        return
    if place not in WITHIN and place != name:
        left.append(f"{place}/")
        return
    for top, folders, files in os.walk(path, topdown=False):  # which does not go into links
        for file in (*files, *(f for f in folders if os.path.islink(os.path.join(top, f)))):
            within = os.path.relpath(os.path.join(top, file), path)
            ours = re.fullmatch(WITHIN[place], within) if place in WITHIN else OF_A_TRACKER.fullmatch(file)
            _delete(Path(top, file), f"{place}/{within}", left, ours=bool(ours))
        if not os.listdir(top):
            os.rmdir(top)


def _delete(path: Path, shown: str, left: list[str], *, ours: bool) -> None:
    if ours and not path.is_symlink():
        path.unlink()
    else:
        left.append(shown)
