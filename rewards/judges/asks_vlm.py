"""What a reward that asks a vision-language model shares: the model's files are checked, and it is moved where there is one to move."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch

from grpo_mm.rewards.judges.vlm import JUDGE_SECONDS


class AsksVlm:
    """`vlm` is the reward's own setting."""

    timeout_seconds: ClassVar[float] = JUDGE_SECONDS
    vlm: Any

    def check(self) -> None:
        """Raises ConfigError if the model's folder is missing or the server's address is malformed."""
        if hasattr(self.vlm, "check"):
            self.vlm.check()

    @property
    def needs_device(self) -> bool:
        return bool(getattr(self.vlm, "needs_device", hasattr(self.vlm, "to")))

    def to(self, device: torch.device | str) -> Self:
        if hasattr(self.vlm, "to"):
            self.vlm.to(device)
        return self
