"""Is the text that the prompt asks for written in the picture?"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.identity import FREE
from grpo_mm.outside import finite_number, shown
from grpo_mm.rewards.answers.writing import normal_form
from grpo_mm.rewards.shared.edit_distance import edit_distance
from grpo_mm.rewards.shared.pictures import takes_pictures
from grpo_mm.types import Prompt


def text_similarity(recognised: str, target: str) -> float:
    """1 if the target stands somewhere in the recognised text, else 1 - min(edits, length) / length; 0 to 1.

    Upper and lower case are alike, blanks of all kinds are ignored, and both texts are compared in `normal_form` (composed
    letters, ligatures, full width, one kind of apostrophes); length is that of the target so written, and edits the Levenshtein
    distance between the whole recognised text and the target.

    Raises:
        ValueError: the target is empty or blank.

    Source: Flow-GRPO, arXiv:2505.05470 (visual text rendering); flow_grpo/ocr.py of yifan123/flow_grpo. Deviates: there only
    plain blanks are dropped, and texts are compared as they are encoded.
    """
    recognised, target = _letters(recognised), _letters(target)
    if not target:
        raise ValueError("the target text is empty")
    edits = 0 if target in recognised else edit_distance(recognised, target)
    return 1 - min(edits, len(target)) / len(target)


def quoted_text(text: str) -> str | None:
    """The first span in double quotes, straight or typographic, that is not blank; None if there is none."""
    spans = ("".join(found.groups("")) for found in _QUOTED.finditer(text))
    return next((span for span in spans if _letters(span)), None)


_QUOTED = re.compile(r'"([^"]*+)"|[“”„‟]([^“”„‟]*+)[“”‟]|«([^«»]*+)»|「([^「」]*+)」|『([^『』]*+)』')


def _letters(text: str) -> str:
    """For comparing: `normal_form` without case and blanks."""
    return normal_form("".join(normal_form(text).split()).lower())


@dataclass
class OcrReward:
    """`text_similarity` between what RapidOCR reads in the picture and the text asked for.

    The text is prompt.target["text"], a text or a number, or else the first double-quoted span of the prompt; NaN if there is
    neither.
    Lines are read from top to bottom and joined. RapidOCR brings its weights along; it runs on the CPU.
    Deviates from Flow-GRPO, which uses PaddleOCR (the same family of networks, another release).
    """

    goldens: ClassVar[str] = "writings"
    """What it is tried on (`grpo_mm/golden`)."""
    min_confidence: float = 0.5
    """Lines of which the recogniser is less sure are dropped; PaddleOCR's and RapidOCR's default."""
    threads: int = field(default=1, metadata=FREE)
    """CPU threads of the network."""

    def __post_init__(self) -> None:
        self._engine: Any = None

    def check(self) -> None:
        """Raises ConfigError if RapidOCR or onnxruntime is missing."""
        missing = [name for name in ("rapidocr", "onnxruntime") if importlib.util.find_spec(name) is None]
        if missing:
            raise ConfigError(f"ocr reward: {' and '.join(missing)} not installed; pip install 'grpo_mm[ocr]'.")

    def to(self, device: torch.device | str) -> OcrReward:
        """Loads RapidOCR, which stays on the CPU."""
        if self._engine is None:
            self._load()
        return self

    @takes_pictures
    def __call__(self, items: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """uint8 [M, 3, H, W] and M prompts -> score [M], and found [M]: 1 if the text is there letter by letter."""
        targets = [target_text(prompt) for prompt in prompts]
        scores = [
            float("nan") if target is None else text_similarity(self.read(image), target)
            for image, target in zip(items, targets)
        ]
        score = torch.tensor(scores, dtype=torch.float32)
        return {"score": score, "found": torch.where(score.isnan(), torch.nan, (score == 1).float())}

    def read(self, image: Tensor) -> str:
        """All the text in a uint8 picture [3, H, W], lines joined without a separator; "" if there is none."""
        self.to("cpu")
        pixels = image.flip(0).permute(1, 2, 0).contiguous().cpu().numpy()  # flip: an array is taken for BGR
        return "".join(self._engine(pixels).txts or ())

    def _load(self) -> None:
        self.check()
        from rapidocr import RapidOCR

        self._engine = RapidOCR(
            params={
                "Global.log_level": "error",
                "Global.text_score": self.min_confidence,
                "Global.use_cls": False,  # as Flow-GRPO: text that stands on its head is not read
                "EngineConfig.onnxruntime.intra_op_num_threads": self.threads,
            }
        )


def target_text(prompt: Prompt) -> str | None:
    """The text to render: that of the target, of which a number is one too, else the quoted one; None if there is neither.

    Raises:
        ValueError: the target's text is neither a text nor a number.
    """
    text = prompt.target.get("text") if isinstance(prompt.target, Mapping) else None
    if finite_number(text) is not None:
        return str(text)
    if text is not None and not isinstance(text, str):
        raise ValueError(f"prompt {prompt.id!r}: the text of its target is {shown(text)}; wanted a text or a number.")
    return text if text is not None and _letters(text) else quoted_text(prompt.text)
