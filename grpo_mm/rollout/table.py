"""The small table of rewards and declared columns that every rank holds whole.

Rows are outputs, sorted by (prompt, sample, action, tag), so that sums are taken in the same order on 1 or 64 ranks and
the credit is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.processes.rng import stream_seed
from grpo_mm.rollout.groups import group_ids
from grpo_mm.types import WHOLE_ROW, Batch, Prompt

KEYS = ("prompt", "sample", "action", "tag")
TRAINED = "trained"
"""A column that a stage may make, bool: rows without it are compared with the others and then left out."""
STALENESS = "staleness"
"""The column of a run that draws ahead: optimiser updates between the weights that drew a row and those that train on it."""
PER_ACTION = "per_action"
"""A column [M, A] that a stage may make: what single actions of a row earn beside the row's advantage. NaN leaves one out."""


@dataclass(frozen=True)
class Table:
    """Outputs × (values, columns), gathered from all ranks.

    Example: two prompts × two samples scored by one reward: values = {"shape": [.5, 1., 0., .25]},
    columns = {"prompt": [0, 0, 1, 1], "sample": [0, 1, 0, 1], "action": [-1, -1, -1, -1], "tag": [0, 0, 0, 0]}.
    """

    values: Mapping[str, Tensor]
    """Component name → [M] float64; rewards at first, advantages after the stages. NaN = could not be scored."""
    columns: Mapping[str, Tensor]
    """[M] each, or [M, A] for what a row says of its actions. `action` may be WHOLE_ROW or BASELINE; `prompt_id` is the same
    at every step, `prompt` is not."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Component name → its weight when components are summed."""

    def __len__(self) -> int:
        return self.columns["prompt"].shape[0]

    def key(self, names: tuple[str, ...]) -> Tensor:
        """Dense comparison-set ids [M] of the named columns; no names: everything is one set."""
        missing = [name for name in names if name not in self.columns]
        if missing:
            raise ConfigError(
                f"the advantage compares by {list(names)}, but the rollout has no column {missing[0]!r}; "
                f"it has {sorted(self.columns)}."
            )
        if not names:
            return torch.zeros(len(self), dtype=torch.int64)
        # Ids first, column by column, so that a column of fractions is a key too.
        return group_ids(*(group_ids(self.columns[name]) for name in names))

    def at_action(self, name: str) -> Tensor:
        """The entry of a [M, A] column at the action (or unit) that each row of the table credits, [M]."""
        return self.columns[name].gather(1, self.columns["action"].clamp_min(0)[:, None])[:, 0]

    def plus_per_action(self, value_MA: Tensor) -> Table:
        """With [M, A] advantages of single actions (not units), added to those that earlier stages gave."""
        before = self.columns.get(PER_ACTION)
        total_MA = value_MA if before is None else before + value_MA
        return replace(self, columns={**self.columns, PER_ACTION: total_MA})

    def leaving_out(self, out_M: Tensor) -> Table:
        """With rows marked [M] bool that are compared with the others and then not trained."""
        trained_M = self.columns.get(TRAINED, torch.ones(len(self), dtype=torch.bool)) & ~out_M
        return replace(self, columns={**self.columns, TRAINED: trained_M})

    def only_value(self, stage: str) -> tuple[str, Tensor]:
        """The name and values [M] of the one component that there is; ConfigError for the `stage` if there are more."""
        if len(self.values) != 1:
            raise ConfigError(
                f"{stage} works on one value, found {len(self.values)} components ({', '.join(sorted(self.values))}): put "
                "the stage {kind: weighted_sum} before it."
            )
        return next(iter(self.values.items()))

    def take(self, index: Tensor) -> Table:
        """The rows named by an index tensor, in its order."""
        return replace(
            self,
            values={name: value[index] for name, value in self.values.items()},
            columns={name: column[index] for name, column in self.columns.items()},
        )

    def with_values(self, values: Mapping[str, Tensor]) -> Table:
        return replace(self, values=values)


def id_numbers(names: Sequence[str]) -> Tensor:
    """The entries of the column `prompt_id` for the ids of prompts, int64: the same in every run."""
    return torch.tensor([stream_seed(0, "prompt_id", name) for name in names], dtype=torch.int64)


def prompt_ids(prompts: Sequence[Prompt]) -> Tensor:
    """The entries of the column `prompt_id` [P]; a prompt that is asked twice in a step is one prompt."""
    return id_numbers([prompt.repeat_of or prompt.id for prompt in prompts])


def local_table(
    batch: Batch,
    *,
    applies_to: Mapping[str, Callable[[Prompt], bool] | None],
    optional: Collection[str] = (),
) -> Table:
    """The rows of this rank.

    `applies_to`: reward name → whether it scores a prompt (None: all). A reward that does not apply to a row is NaN
    there; one that applies and gave no finite score marks the row in the column `failed`, unless it is `optional`.
    """
    outputs, rollout = batch.outputs, batch.rollout
    row_M = outputs.row_M.cpu()
    last = -1 if outputs.action_M is None or not len(outputs) else int(outputs.action_M.max())
    if "unit" not in rollout.columns and last >= rollout.num_actions:
        raise ValueError(f"an output credits action {last}, counted from 0; the rows have {rollout.num_actions}.")
    prompt_M = rollout.prompt_N.cpu()[row_M]
    size = len(outputs)
    columns = {
        "prompt": prompt_M,
        "sample": rollout.sample_N.cpu()[row_M],
        "action": torch.full((size,), WHOLE_ROW) if outputs.action_M is None else outputs.action_M.cpu(),
        "tag": torch.zeros(size, dtype=torch.int64) if outputs.tag_M is None else outputs.tag_M.cpu(),
        "local_row": row_M,
        "prompt_id": prompt_ids(rollout.prompts)[prompt_M],
    }
    taken = sorted(set(rollout.columns) & set(columns))
    if taken:
        raise ValueError(f"a rollout must not declare the column {taken[0]!r}: the table has one of that name")
    columns |= {name: column.cpu()[row_M] for name, column in rollout.columns.items()}
    values: dict[str, Tensor] = {}
    failed_M = torch.zeros(size, dtype=torch.bool)
    for name, scores in batch.scores.items():
        asked = applies_to.get(name)
        applies_P = torch.tensor([asked is None or asked(prompt) for prompt in rollout.prompts])
        score_M = scores["score"].double().cpu()
        scored_M = applies_P[prompt_M] & torch.isfinite(score_M)
        if name not in optional:
            failed_M |= applies_P[prompt_M] & ~scored_M
        values[name] = torch.where(scored_M, score_M, torch.nan)
    return Table(values=values, columns=columns | {"failed": failed_M})


def gather(tables: list[Table], *, weights: Mapping[str, float]) -> Table:
    """Joins the tables of all ranks (in rank order) and sorts the rows by key."""
    columns = {name: torch.cat([t.columns[name] for t in tables]) for name in tables[0].columns}
    columns["rank"] = torch.cat([torch.full((len(t),), rank) for rank, t in enumerate(tables)])
    values = {name: torch.cat([t.values[name] for t in tables]) for name in tables[0].values}
    order = torch.arange(columns["prompt"].shape[0])
    for name in reversed(KEYS):
        order = order[torch.argsort(columns[name][order], stable=True)]
    return Table(
        values={name: value[order] for name, value in values.items()},
        columns={name: column[order] for name, column in columns.items()},
        weights=dict(weights),
    )
