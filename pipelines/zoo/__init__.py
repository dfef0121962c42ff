"""Tiny checkpoints in real formats that ship with the package, the code that makes them, and random weights and clips for benchmarks.

Nothing is trained here on data of others, and no pipeline's logic comes in.
"""

from pathlib import Path

from grpo_mm.errors import UserError

CHECKPOINTS = Path(__file__).parent / "checkpoints"


def path(name: str) -> Path:
    """The folder of a shipped checkpoint, as `from_pretrained` wants it. Example: path("text_to_image")."""
    if not (CHECKPOINTS / name).is_dir():
        shipped = sorted(folder.name for folder in CHECKPOINTS.glob("*/"))
        raise UserError(f"no checkpoint {name!r} in the zoo, which holds {', '.join(shipped) or 'none'}")
    return CHECKPOINTS / name
