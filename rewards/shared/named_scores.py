"""Several named scores of each text, as the columns that a reward gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def table(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Tensor]:
    """A value per text and name -> [M] each; NaN for a text of which a part is not known."""
    return {name: torch.tensor([row.get(name, torch.nan) for row in rows], dtype=torch.float64) for name in names}
