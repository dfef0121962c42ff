"""Do answers to paraphrases of one question say the same? The group similarity of PS-GRPO (Con-RAG)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from grpo_mm.processes import rng
from grpo_mm.rewards.text.text_overlap import bleu, words
from grpo_mm.rollout.groups import group_ids, group_mean
from grpo_mm.types import Prompt

log = logging.getLogger(__name__)


def peers(set_U: Tensor, variant_U: Tensor) -> Tensor:
    """Pairs (item, item of another variant of its set), [2, E] int64: n (n - 1) g² for n variants of g items."""
    is_peer_UU = (set_U[:, None] == set_U) & (variant_U[:, None] != variant_U)
    return is_peer_UU.nonzero().T


def drawn_peers(variant_U: Tensor, *, variants: int, each: int, generator: torch.Generator) -> Tensor:
    """For every item of one set `each` items of `variants` other variants, all drawn anew, [2, E] int64.

    Fewer where there are fewer: at most n · g · variants · each pairs.
    """
    variant_U = group_ids(variant_U)
    size, num = len(variant_U), int(variant_U.max()) + 1
    draw_UV = torch.rand(size, num, generator=generator, dtype=torch.float64)
    draw_UV[torch.arange(size), variant_U] = torch.inf  # the own variant comes last
    place_UV = draw_UV.argsort(dim=1).argsort(dim=1)
    chosen_UV = (place_UV < variants) & (place_UV < num - 1)
    # Places of the items within each variant, by a second draw: variant number + a fraction sorts by both.
    draw_UU = variant_U + torch.rand(size, size, generator=generator, dtype=torch.float64)
    members_V = torch.bincount(variant_U, minlength=num)
    place_UU = draw_UU.argsort(dim=1).argsort(dim=1) - (torch.cumsum(members_V, 0) - members_V)[variant_U]
    return (chosen_UV[:, variant_U] & (place_UU < each)).nonzero().T


def mean_similarity(similarity_E: Tensor, pairs_2E: Tensor, *, items: int) -> Tensor:
    """The mean over each item's pairs, [U]; 0 for an item without any (a set of one variant).

    Source: arXiv:2510.04392 (PS-GRPO), exact over `peers`, scalable over `drawn_peers`. Grade C, two sources agree.
    """
    every = torch.arange(items)
    value = torch.cat([similarity_E.double(), similarity_E.new_full((items,), torch.nan).double()])
    return group_mean(value, torch.cat([pairs_2E[0], every])).nan_to_num()


@dataclass
class PeerSimilarity:
    """score = mean BLEU of a text with the texts that other paraphrases of its question led to.

    Each paraphrase is a prompt of its own, so that `group_norm` with its usual key compares the paraphrase's own samples;
    those of one question carry the same value under `key` of their target. It is a reward over sets, not a stage over a
    declared column, because only rewards see texts: a stage would need a rollout that computes similarities.

    All paraphrases of a question must be scored in one call: consecutive prompts of one step and one rank. Those that are
    alone score 0, with a warning.

    Trap: consistent mistakes pay, so add `answer_f1` where there are answers.

    Source: arXiv:2510.04392 (PS-GRPO / Con-RAG). Grade C. Uncertain: the paper's "BLEU-1/2"; here unigrams and bigrams
    together, `max_n`: 1 for unigrams alone.
    """

    scope: ClassVar[str] = "set"

    key: str = "question"
    """Name in the target of what paraphrases of one question have in common."""
    max_n: int = 2
    """Longest n-grams of BLEU, in words."""
    variants: int | None = None
    """How many other paraphrases each text is compared with (κ, 3 in the paper); None: all, all their samples."""
    each: int = 1
    """Samples of each of those (s)."""
    seed: int = 0
    """Of the draw of peers."""

    def __post_init__(self) -> None:
        if self.max_n < 1 or self.each < 1 or (self.variants is not None and self.variants < 1):
            raise ValueError(f"max_n = {self.max_n}, variants = {self.variants}, each = {self.each}; wanted 1 or more.")
        self._warned = False

    def __call__(self, items: Sequence[str], prompts: Sequence[Prompt], group_U: Tensor) -> dict[str, Tensor]:
        pairs = torch.cat([self._pairs(members, prompts, items) for members in self._sets(prompts, group_U)], dim=1)
        texts = [words(item) for item in items]
        similarity = [bleu(texts[i], texts[j], max_n=self.max_n) for i, j in pairs.T.tolist()]
        found_U = mean_similarity(torch.tensor(similarity, dtype=torch.float64), pairs, items=len(items))
        return {"score": found_U}

    def _sets(self, prompts: Sequence[Prompt], group_U: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(items, their variants) of each question; a prompt that names none is a question of its own."""
        names = [_question(prompt, self.key) for prompt in prompts]
        number = {name: i for i, name in enumerate(dict.fromkeys(names))}
        set_U = torch.tensor([number[name] for name in names])
        members = [(set_U == i).nonzero()[:, 0] for i in range(len(number))]
        found = [(index, group_U[index]) for index in members]
        alone = sum(len(variant.unique()) < 2 for _, variant in found)
        if alone and not self._warned:
            self._warned = True
            log.warning(
                "peer_similarity: %d of %d questions have one paraphrase in this call and score 0. Put the paraphrases of a "
                "question (equal target[%r]) side by side, and whole questions on each process.",
                alone, len(found), self.key,
            )  # fmt: skip
        return found

    def _pairs(self, found: tuple[Tensor, Tensor], prompts: Sequence[Prompt], items: Sequence[str]) -> Tensor:
        index, variant = found
        if self.variants is None:
            return index[peers(torch.zeros_like(index), variant)]
        content = [f"{prompts[i].id}\x1e{items[i]}" for i in index.tolist()]
        generator = rng.stream(self.seed, "peer_similarity", *content)
        return index[drawn_peers(variant, variants=self.variants, each=self.each, generator=generator)]


def _question(prompt: Prompt, key: str) -> tuple[str, Any]:
    named = prompt.target.get(key) if isinstance(prompt.target, dict) else None
    return ("prompt", prompt.id) if named is None else ("question", str(named))
