"""HPSv3: Qwen2-VL taught on human preferences, from real photographs to poor generations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from grpo_mm.identity import FREE
from grpo_mm.rewards.reward_models.body import (
    PIXELS,
    BodyReward,
    mlp_head,
    ours,
    question,
    sized,
    template_of,
    tensors_of,
)
from grpo_mm.rewards.shared.pictures import takes_pictures
from grpo_mm.rewards.shared.weights import DType
from grpo_mm.types import Prompt

TOKEN = "<|Reward|>"
QUESTION = f"""Here is a generated picture and the text that it was made from. How much would people like it? Look at whether it shows what the text says, at its composition, light and colours, at sharpness and detail, and at faults such as wrong anatomy or broken letters.
Text: {{prompt}}
The rating of this picture as a whole: {TOKEN}
"""


@dataclass
class Hpsv3(BodyReward):
    """score = μ of a normal distribution that the head gives at the reward token, about -10 to 15; the part `sigma` is its σ.

    Every picture is brought to about 256 tokens, smaller ones too, in its own shape.

    Source: arXiv:2508.03789; hpsv3/inference.py, train.py and model/qwen2vl_trainer.py of MizzenAI/HPSv3. Deviates: the question is in our
    own words, so the published weights score a little differently: give the authors' as `template`. A prompt that names a special token
    has it broken up. Uncertain, as the weights could not be had here: that σ is the exponential of the second output (as in
    EditReward, which is built on it).
    """

    goldens: ClassVar[str] = "pictures"
    """What it is tried on (`grpo_mm/golden`)."""
    tokens: ClassVar[tuple[str, ...]] = (TOKEN,)
    path: str = "hf-hub:MizzenAI/HPSv3/HPSv3.safetensors"
    """The weights, body and head in one file under their published names; here or on the hub."""
    model: str = "Qwen/Qwen2-VL-7B-Instruct"
    """Where the architecture, the tokenizer and the preparation of pictures come from; a name or a folder."""
    template: str | None = None
    """A text file with the question: {prompt} and <|Reward|> stand in it once; null: our own words."""
    pixels: int = PIXELS
    """Of a picture as the network sees it."""
    batch_size: int = field(default=8, metadata=FREE)
    """Pictures or texts in one forward; changes memory and speed, not the scores."""
    dtype: DType = "bfloat16"
    """Of the body; the head is float32."""

    @takes_pictures
    @torch.no_grad()
    def __call__(self, items: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """uint8 [M, 3, H, W] and M prompts -> score [M], sigma [M]."""
        self._load()
        (template,) = self._questions()
        found = []
        for start in range(0, len(items), self.batch_size):
            rows = slice(start, start + self.batch_size)
            pictures = [[sized(item, self.pixels)] for item in items[rows]]
            found.append(self._ask([question(template, prompt.text) for prompt in prompts[rows]], pictures)[:, 0])
        mean_and_log_sigma = torch.cat(found)
        return {"score": mean_and_log_sigma[:, 0], "sigma": mean_and_log_sigma[:, 1].exp()}

    def _questions(self) -> tuple[str, ...]:
        return (template_of("template", self.template, QUESTION, self.tokens),)

    def _build(self) -> nn.Module:
        return self._load_body(1, partial(mlp_head, outputs=2), ours(tensors_of(self.path)))
