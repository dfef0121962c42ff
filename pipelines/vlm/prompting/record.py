"""What a rollout of texts keeps so that its tokens can be replayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grpo_mm.pipelines.vlm.prompting.contexts import Context


@dataclass(frozen=True)
class TextRecord:
    """Token ids, and the context that each row continues. A context stands here once, however many rows share it."""

    contexts: tuple[Context, ...]
    context_N: Tensor
    """[N] int64, index into `contexts`."""
    token_NA: Tensor
    """[N, A] int64, 0 beyond the row's length. They are the ids that were sampled; no text is tokenised again."""
    length_N: Tensor
    """[N] int64, tokens of the row, the end-of-turn token among them; 0 where the prompt's media could not be read."""
    ref_NA: Tensor | None = None
    """[N, A] log-probabilities by the reference policy."""

    def take(self, rows: Tensor) -> TextRecord:
        """The rows named by an index tensor; contexts of the others are dropped."""
        used, context_N = torch.unique(self.context_N[rows], return_inverse=True)
        return replace(
            self,
            contexts=tuple(self.contexts[i] for i in used.tolist()),
            context_N=context_N,
            token_NA=self.token_NA[rows],
            length_N=self.length_N[rows],
            ref_NA=None if self.ref_NA is None else self.ref_NA[rows],
        )

    def cat(self, others: Sequence[TextRecord]) -> TextRecord:
        """The rows of this record, then those of others."""
        parts = [self, *others]
        contexts = {context: i for i, context in enumerate(dict.fromkeys(c for part in parts for c in part.contexts))}
        places = [torch.tensor([contexts[c] for c in part.contexts], dtype=torch.int64) for part in parts]
        return replace(
            self,
            contexts=tuple(contexts),
            context_N=torch.cat([place[part.context_N] for place, part in zip(places, parts)]),
            token_NA=torch.cat([part.token_NA for part in parts]),
            length_N=torch.cat([part.length_N for part in parts]),
            ref_NA=None if self.ref_NA is None else torch.cat([part.ref_NA for part in parts]),
        )


PROVIDES = frozenset({"logprobs", "token_logprobs", "ref_logprobs", "behaviour_logprobs", "entropy"})
"""logprobs, token_logprobs: of the token, of the distribution that is sampled from (temperature, no forbidden tokens);
ref_logprobs: under the reference; behaviour_logprobs: of the engine that sampled; entropy: of the distribution at that
place, in nats."""
