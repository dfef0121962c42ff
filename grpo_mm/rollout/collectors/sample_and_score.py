"""The default collector: sample every row once, score what came out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import torch

from grpo_mm.errors import ConfigError
from grpo_mm.identity import FREE
from grpo_mm.rollout.collectors.more import More, Sample, Score
from grpo_mm.types import Batch, Outputs, Rollout, Rows, Scores


@dataclass(frozen=True)
class SampleAndScore:
    """One rollout per step, sampled in `pieces` of whole groups: while one is sampled, the one before is scored.

    With one piece (the default) scoring waits for sampling. More pay where a reward waits for somebody else, a judge on a
    server for instance; every piece is a smaller batch. The result is the same.
    """

    pieces: int = field(default=1, metadata=FREE)
    """Parts of a step's groups; above 1 one is scored while the next is sampled."""

    def __post_init__(self) -> None:
        if self.pieces < 1:
            raise ConfigError(f"sample_and_score: pieces = {self.pieces}; wanted at least 1.")

    def __call__(self, sample: Sample, score: Score, rows: Rows, more: More | None = None) -> list[Batch]:
        # One worker: rewards are called one at a time and in order, as they would be without it.
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="score") as worker:
            return self.begin(
                sample, partial(worker.submit, score) if self.pieces > 1 else partial(_at_once, score), rows
            )()

    def begin(
        self, sample: Sample, submit: Callable[[Rollout, Outputs], Future], rows: Rows
    ) -> Callable[[], list[Batch]]:
        """Samples now; what is given waits for the scores. For who has other things to do meanwhile.

        Args:
            submit: begins to score a piece that is sampled, one at a time and in order.
        """
        sampled: list[tuple[Rollout, Outputs]] = []
        waiting: list[Future] = []
        for piece in _pieces(rows, self.pieces):
            sampled.append(sample(piece))
            waiting.append(submit(*sampled[-1]))
        return lambda: [_joined(sampled, [one.result() for one in waiting])]


def _at_once(score: Score, rollout: Rollout, outputs: Outputs) -> Future:
    done: Future = Future()
    done.set_result(score(rollout, outputs))
    return done


def _joined(sampled: Sequence[tuple[Rollout, Outputs]], found: Sequence[dict[str, Scores]]) -> Batch:
    rollouts, outputs = [r for r, _ in sampled], [o for _, o in sampled]
    parts = {name: set().union(*(f[name] for f in found)) for name in found[0]}
    scores = {name: {part: _join(found, outputs, name, part) for part in sorted(parts[name])} for name in parts}
    joined = Outputs.cat(outputs, rows=[r.num_rows for r in rollouts])
    return Batch(Rollout.cat(rollouts), joined, scores)


def _pieces(rows: Rows, count: int) -> list[Rows]:
    """Runs of whole groups, in the order of the rows."""
    prompts = list(dict.fromkeys(rows.prompt_N.tolist()))
    chunks = torch.tensor(prompts).tensor_split(min(count, max(1, len(prompts))))
    return (
        [rows.take(torch.nonzero(torch.isin(rows.prompt_N, chunk)).flatten()) for chunk in chunks]
        if prompts
        else [rows]
    )


def _join(found: Sequence[dict[str, Scores]], outputs: Sequence[Outputs], name: str, part: str) -> torch.Tensor:
    """A part that a reward gave for some pieces only is NaN in the others."""
    return torch.cat([f[name].get(part, torch.full((len(o),), torch.nan)) for f, o in zip(found, outputs, strict=True)])
