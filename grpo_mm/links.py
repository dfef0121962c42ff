"""A checkout without its symbolic links lacks folders of the package; this says so before anything else fails."""

from __future__ import annotations

from pathlib import Path

from grpo_mm.errors import UserError

FOLDERS = ("datasets", "pipelines", "rewards", "configs")


def check_links(package: Path = Path(__file__).parent) -> None:
    """Raises UserError if a folder of the package is not there."""
    missing = [name for name in FOLDERS if not (package / name).is_dir()]
    if missing:
        raise UserError(
            f"{package} lacks {', '.join(missing)}: in a checkout these are symbolic links to the folders beside it, and "
            "archives, copies or git on Windows may drop them. Run `git config core.symlinks true && git checkout -- "
            f"{package.name}`, or in {package}: "
            + " && ".join(f"ln -sfn ../{name} {name}" for name in missing)
            + ". A wheel (`pip install .` from a whole checkout) needs no links."
        )
