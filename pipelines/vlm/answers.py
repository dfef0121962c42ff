"""How likely a row's own answer is after its reasoning, by a slowly following policy (GRPO-CARE)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.vlm.prompting.record import TextRecord


@dataclass(frozen=True)
class AnswerLikelihood:
    """p = exp(mean over the answer's tokens of log π(token | prompt, reasoning, answer so far)), a column of the rollout.

    Source: arXiv:2506.16141 (GRPO-CARE), section 3, grade [A]. The algorithm box has the arithmetic mean of
    the probabilities, the released code the geometric one: the default is the code's.
    """

    of: Literal["ema", "ref"] = "ema"
    """Whose likelihood: averaged weights (the paper's slowly following reference), or the reference."""
    mean: Literal["geometric", "arithmetic"] = "geometric"
    """Over the answer's tokens: of log-probabilities (geometric), or of probabilities (arithmetic)."""
    tag: str = "answer"
    """The answer is what stands within this tag."""

    def check(self) -> None:
        if not self.tag.isidentifier():
            raise ConfigError(
                f"engine.answer_likelihood.tag = {self.tag!r}; wanted a name such as answer, without < >."
            )

    @torch.no_grad()
    def __call__(self, policy: Any, record: TextRecord, decode: Callable[[list[int]], str]) -> Tensor:
        """[N] float32 in (0, 1]; NaN for a row without an answer element.

        Raises:
            ConfigError: the run keeps no such weights.
        """
        inside_NA = torch.zeros_like(record.token_NA, dtype=torch.bool)
        for i, length in enumerate(record.length_N.tolist()):
            span = answer_tokens(record.token_NA[i, :length].tolist(), decode, tag=self.tag)
            if span is not None:
                inside_NA[i, span[0] : span[1]] = True
        rows = torch.nonzero(inside_NA.any(1)).flatten()
        found_N = torch.full((len(inside_NA),), torch.nan)
        if not rows.numel():
            return found_N
        # What comes after the answer plays no part.
        end_N = (inside_NA * (1 + torch.arange(inside_NA.shape[1]))).amax(1)
        logprob_NA = policy.values_under(self.of, replace(record, length_N=end_N, ref_NA=None), rows).cpu()
        found_N[rows] = self._mean(logprob_NA[rows], inside_NA[rows])
        return found_N

    def _mean(self, logprob_nA: Tensor, inside_nA: Tensor) -> Tensor:
        if self.mean == "geometric":
            return (logprob_nA.where(inside_nA, 0).sum(1) / inside_nA.sum(1)).exp()
        return logprob_nA.exp().where(inside_nA, 0).sum(1) / inside_nA.sum(1)


def answer_tokens(
    tokens: list[int], decode: Callable[[list[int]], str], *, tag: str = "answer"
) -> tuple[int, int] | None:
    """[start, end) of the tokens strictly inside the last `<tag>…</tag>` of a row; None if there is none, or it is empty.

    The element is the one that rewards read: a tag that is opened later and not closed does not count.

    Found on the tokens that were sampled: a token that holds a part of a tag is outside, and no text is tokenised again.
    """
    text = decode(tokens)
    inside, opened = None, -1
    for found in re.finditer(rf"<\s{{0,3}}(/?)\s{{0,3}}{re.escape(tag)}\s{{0,3}}>", text, re.IGNORECASE):
        if not found[1]:
            opened = found.end()
        elif opened >= 0:
            inside, opened = (opened, found.start()), -1
    if inside is None:
        return None
    start = _tokens_until(tokens, decode, inside[0], reach=True)
    end = _tokens_until(tokens, decode, inside[1], reach=False)
    return (start, end) if start < end else None


def _tokens_until(tokens: list[int], decode: Callable[[list[int]], str], place: int, *, reach: bool) -> int:
    """The fewest tokens whose text reaches `place` characters, or (`reach` false) the most whose text stays within them."""
    low, high = 0, len(tokens)
    while low < high:
        middle = (low + high) // 2 if reach else (low + high + 1) // 2
        length = len(decode(tokens[:middle]))
        if reach:
            low, high = (low, middle) if length >= place else (middle + 1, high)
        else:
            low, high = (middle, high) if length <= place else (low, middle - 1)
    return low
