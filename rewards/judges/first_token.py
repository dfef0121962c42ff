"""A judge without CLIP and without words: which picture a chat model would name, by the probability of its answer's first token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.identity import FREE
from grpo_mm.rewards.judges.comparing import Pair, Verdict
from grpo_mm.rewards.judges.vlm import picture
from grpo_mm.rewards.judges.vlm_yes_no import single_tokens
from grpo_mm.rewards.shared.networks import Network
from grpo_mm.rewards.shared.weights import DType, check_model, check_packages
from grpo_mm.weights.pretrained import check_chat, check_vocabulary, load_model, load_processor

QUESTION = (
    "Both pictures were generated from this text: {prompt}\nWhich of them shows it better and is the better picture? Answer with 1 for the "
    "first or 2 for the second, nothing else."
)


@dataclass
class FirstTokenJudge(Network):
    """The first picture wins with probability (p + 1 - q) / 2, where p is the chance of "1" against "2" as the two stand, and q as they
    stand the other way round: what a model likes about a place cancels out.

    No answer is generated, so a pair takes two forwards of one token.

    Source: the question for a choice as in arXiv:2509.08826 (RewardDance), which compares p(yes); here both orders are asked. Deviates:
    no reasoning is asked for.
    """

    model: str = "Qwen/Qwen2.5-VL-7B-Instruct"
    """A chat model for several pictures in transformers' format: a name on the hub or a local folder."""
    question: str = QUESTION
    """`{prompt}` stands for the prompt's text."""
    decided: bool = False
    """Whether the likelier one wins wholly (1, 0, or 0.5 for exactly as likely), instead of with its probability."""
    batch_size: int = field(default=8, metadata=FREE)
    """Questions in one forward; changes memory and speed, not the scores."""
    dtype: DType = "bfloat16"
    """What the network computes in."""

    def __post_init__(self) -> None:
        if "{prompt}" not in self.question:
            raise ConfigError("first_token judge: the question has no {prompt}, so that it would not know the text.")

    def check(self) -> None:
        """Raises ConfigError if transformers or a local folder is missing."""
        check_packages("transformers")
        check_model("model", self.model)

    @torch.no_grad()
    def __call__(self, pairs: Sequence[Pair]) -> list[Verdict | None]:
        """A verdict for each pair, "overall" alone; None where the model gives NaN."""
        self._load()
        asked = [(pair, order) for pair in pairs for order in (False, True)]
        chunks = [asked[i : i + self.batch_size] for i in range(0, len(asked), self.batch_size)]
        first_N = torch.cat([self._first(chunk) for chunk in chunks]) if chunks else torch.zeros(0)
        wins = ((first_N[0::2] + 1 - first_N[1::2]) / 2).tolist()
        return [self._verdict(win) for win in wins]

    def _verdict(self, win: float) -> Verdict | None:
        if win != win:
            return None
        return {"overall": float(win > 0.5) if self.decided and win != 0.5 else win}

    def _first(self, asked: Sequence[tuple[Pair, bool]]) -> Tensor:
        """The chance that the one that is shown first is named, [n]."""
        turns = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": text}]}]
            for text in (self.question.replace("{prompt}", pair.prompt.text) for pair, _ in asked)
        ]
        texts = [self._processor.apply_chat_template(t, add_generation_prompt=True, tokenize=False) for t in turns]
        images = [
            [picture(one) for one in ((pair.second, pair.first) if turned else (pair.first, pair.second))]
            for pair, turned in asked
        ]
        inputs: Any = self._processor(text=texts, images=images, padding=True, return_tensors="pt")
        out = self._model.generate(
            **inputs.to(self._device, self._model.dtype), max_new_tokens=1, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        log_p_NV = out.logits[0].float().log_softmax(-1)
        one, two = (log_p_NV[:, tokens].logsumexp(-1) for tokens in self._tokens)
        return (one - two).sigmoid().cpu()

    def _build(self) -> torch.nn.Module:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self._processor = load_processor(AutoProcessor, self.model, parts=("tokenizer", "image_processor"))
        check_chat(self._processor, where=self.model, media=["image", "image"])
        self._processor.tokenizer.padding_side = "left"
        self._tokens = [single_tokens(self._processor.tokenizer, word) for word in ("1", "2")]
        model = load_model(AutoModelForImageTextToText, self.model, dtype=getattr(torch, self.dtype))
        check_vocabulary(self._processor.tokenizer, model, where=self.model)
        return model
