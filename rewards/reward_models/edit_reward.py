"""EditReward: Qwen2.5-VL that sees a picture before and after, and the instruction between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

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
from grpo_mm.source_picture import source_of
from grpo_mm.types import Prompt

TOKEN = "<|Reward|>"
FOLLOWING = f"""The first picture was edited by an instruction; the second one is the result. Does the result do what the instruction asks, all of it, and leave the rest as it was?
Instruction: {{prompt}}
The rating of how the instruction was followed: {TOKEN}
"""
QUALITY = f"""The first picture was edited by an instruction; the second one is the result. Is the result by itself a good picture: plausible, sharp, free of seams, smears and broken shapes?
Instruction: {{prompt}}
The rating of the quality of the result: {TOKEN}
"""


@dataclass
class EditReward(BodyReward):
    """score = the mean of two heads' μ, one asked whether the instruction was followed, the other for quality; `following` and `quality`
    are parts, and `sigma` the σ that goes with the score.

    The source is the first picture of the prompt's media, the output the edited one; both are brought to about 256 tokens.

    Source: arXiv:2509.26346; inference_edit.py, model/qwen2_5_vl_trainer.py and config/EditReward-Qwen2.5-7B-VL.yaml of
    TIGER-AI-Lab/EditReward. Deviates: the questions are in our own words, so the published weights score a little differently: give the
    authors' as templates; a prompt that names a special token has it broken up.
    """

    needs_source: ClassVar[bool] = True
    goldens: ClassVar[str] = "edits"
    """What it is tried on (`grpo_mm/golden`)."""
    tokens: ClassVar[tuple[str, ...]] = (TOKEN,)
    path: str = "hf-hub:TIGER-Lab/EditReward-Qwen2.5-7B-VL/model.safetensors"
    """The weights, body and heads in one file under their published names: a file, here or on the hub, or a folder with model.safetensors
    or model.pth."""
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct"
    """Where the architecture, the tokenizer and the preparation of pictures come from; a name or a folder."""
    pooling: Literal["mean", "min", "sum"] = "mean"
    """How the heads become one score; mean is the published one, sum adds variances too."""
    following_template: str | None = None
    """A text file with the first question: {prompt} and <|Reward|> stand in it once; null: our own words."""
    quality_template: str | None = None
    """A text file with the second question; null: our own words."""
    pixels: int = PIXELS
    """Of a picture as the network sees it."""
    batch_size: int = field(default=4, metadata=FREE)
    """Pairs in one forward; changes memory and speed, not the scores."""
    dtype: DType = "bfloat16"
    """Of the body; the heads are float32."""

    @takes_pictures
    @torch.no_grad()
    def __call__(self, items: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """uint8 [M, 3, H, W] and M prompts with a picture -> score, sigma, following, quality, all [M].

        Raises:
            UserError: a prompt brings no picture.
        """
        self._load()
        templates = self._questions()
        found: list[list[Tensor]] = [[], []]
        for start in range(0, len(items), self.batch_size):
            rows = slice(start, start + self.batch_size)
            pairs = [
                [sized(source_of(prompt), self.pixels), sized(item, self.pixels)]
                for item, prompt in zip(items[rows], prompts[rows])
            ]
            for head, template in enumerate(templates):
                texts = [question(template, prompt.text) for prompt in prompts[rows]]
                found[head].append(self._ask(texts, pairs, head)[:, 0])
        said_HM2 = torch.stack([torch.cat(one) for one in found])
        pooled_M2 = pooled(said_HM2, self.pooling)
        return {
            "score": pooled_M2[:, 0], "sigma": pooled_M2[:, 1].exp(), "following": said_HM2[0, :, 0], "quality": said_HM2[1, :, 0],
        }  # fmt: skip

    def _questions(self) -> tuple[str, ...]:
        return (
            template_of("following_template", self.following_template, FOLLOWING, self.tokens),
            template_of("quality_template", self.quality_template, QUALITY, self.tokens),
        )

    def _build(self) -> nn.Module:
        return self._load_body(2, partial(mlp_head, outputs=2), ours(tensors_of(self.path)))


def pooled(said_HM2: Tensor, how: str) -> Tensor:
    """μ and log σ of H heads as one, [M, 2]: their mean, the smaller of each, or the sum of independent normals."""
    if how == "sum":
        log_sigma = (2 * said_HM2[:, :, 1]).exp().sum(0).log() / 2
        return torch.stack([said_HM2[:, :, 0].sum(0), log_sigma], -1)
    return said_HM2.min(0).values if how == "min" else said_HM2.mean(0)
