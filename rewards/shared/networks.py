"""Networks of rewards: loaded when they are first needed, frozen, moved between devices by phase."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch

from grpo_mm.rewards.shared.weights import check_model
from grpo_mm.weights.pretrained import load_other
from grpo_mm.weights.weight_files import refusing


class Network:
    """What a reward with a network shares; it builds the network in `_build`.

    Not a dataclass: the settings are the reward's own fields.
    """

    constant_steps: ClassVar[int] = 3
    """So many steps in a row in which it gives all outputs one and the same number stop the run (`rollout.spread`)."""
    _device: torch.device | str = "cpu"
    _model: Any = None

    def _build(self) -> torch.nn.Module:
        """The network, on the CPU; tokenizers and the like are kept on the way."""
        raise NotImplementedError

    def to(self, device: torch.device | str) -> Self:
        """Loads the network at the first call; moves it between devices by phase."""
        self._device = device
        self._load()
        return self

    def _load(self) -> None:
        if self._model is None:
            with refusing(f"the network of {type(self).__name__}"):
                self._model = self._build().eval().requires_grad_(False)
        self._model.to(self._device)


class Tokens:
    """What a reward that may count tokens shares: `tokenizer`, a folder or a name on the hub; "" is none.

    Loaded when it is first asked.
    """

    tokenizer: str
    _tokenizer: Any = None

    def check(self) -> None:
        """Raises ConfigError if the folder holds no tokenizer."""
        if self.tokenizer:
            check_model("tokenizer", self.tokenizer, file="tokenizer_config.json")

    def to(self, device: torch.device | str) -> Self:
        """Loads the tokenizer, if there is one; it has no device."""
        if self.tokenizer and self._tokenizer is None:
            self.check()
            from transformers import AutoTokenizer

            self._tokenizer = load_other(AutoTokenizer, self.tokenizer)
        return self

    def token_ids(self, text: str) -> list[int]:
        """Of a text, without special tokens."""
        self.to("cpu")
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]
