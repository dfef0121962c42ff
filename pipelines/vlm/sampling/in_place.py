"""The weights of a policy that are in place, for an engine that has the same model a second time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

HEAD = "lm_head.weight"
ADAPTED, FACTORS = ".base_layer.", ".lora_"
"""In names of a model with an adapter: weights under it, and its own."""


class InPlace:
    """Under the names of the checkpoint. A snapshot that is used is what is in place."""

    def __init__(self, model: Any, wrapped: Any | None, snapshots: Any) -> None:
        """wrapped: the model with its adapter, a `PeftModel`; None: the model itself is trained. snapshots: `Snapshots` of what is trained."""
        self._model, self._wrapped, self._snapshots = model, wrapped, snapshots

    @property
    def which(self) -> tuple[int, str]:
        """Names them, as `Snapshots.which`: the same name, the same numbers."""
        return self._snapshots.which

    @property
    def rank(self) -> int:
        """The largest rank of the adapter; 0: the model itself is trained."""
        if self._wrapped is None:
            return 0
        config = self._wrapped.peft_config["default"]
        return max(config.r, *config.rank_pattern.values(), 1)

    def base(self) -> Iterator[tuple[str, Tensor]]:
        """The model's weights without its adapter. The head is among them where it is tied as well: who packs it, keeps a copy."""
        self._snapshots.check_held()
        told = set()
        for name, value in self._model.state_dict().items():
            if FACTORS not in name:
                told.add(plain := name.replace(ADAPTED, "."))
                yield plain, value.detach()
        if HEAD not in told:
            yield HEAD, self._model.lm_head.weight.detach()

    def write_adapter(self, folder: Path) -> None:
        """Writes the adapter as `PeftModel.from_pretrained` expects it."""
        self._snapshots.check_held()
        self._wrapped.save_pretrained(folder, selected_adapters=["default"])
