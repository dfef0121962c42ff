"""The nouns of group-relative policy optimisation.

Axes used across the package (upper case: the whole axis; lower case: a slice of it in one forward):

    P prompts   N rows: all samples of all prompts, flat   A actions of a row (denoising steps, tokens, …)
    M outputs: things that can be scored   K rewards   S denoising steps   C H W image

Rows know their prompt by an integer, `prompt_N`; nothing assumes N == P * group_size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """What the policy is asked, and what only the rewards may know.

    Example: Prompt(id="geneval/12", text="a photo of two dogs", target={"include": [{"class": "dog", "count": 2}]})
    """

    id: str
    """Stable over runs: random streams are keyed by it."""
    text: str
    media: tuple[Any, ...] = ()
    """Images or videos (paths or arrays) that belong to the prompt. The core does not look inside."""
    messages: tuple[Mapping[str, str], ...] = ()
    """The turns before the question, {"role": "system" | "user" | "assistant", "content": "…"}; `text` is the last user's turn."""
    target: Any = None
    """For rewards only: metadata, ground truth. Never shown to the policy."""
    demo: Any = None
    """A demonstration that a collector may inject. The core does not look inside."""
    source: str = ""
    """The name of the prompt source, so that rewards can differ by source."""
    repeat_of: str = ""
    """Set where a step asks one prompt twice: the repeat has an id, and so noise, of its own; what is remembered of prompts
    (value trackers) goes by the id given here."""


@dataclass(frozen=True)
class Rows:
    """Which samples this rank makes.

    Example: the second of two ranks, two prompts × two samples: prompt_N = [1, 1], sample_N = [0, 1].
    """

    prompts: tuple[Prompt, ...]
    """All prompts of the step, the same tuple on every rank."""
    prompt_N: Tensor
    """[N] int64, index into `prompts`."""
    sample_N: Tensor
    """[N] int64, number of the sample within its group."""
    group_size: int
    """Samples of each prompt on all ranks: the shape of a group's rollout depends on it."""

    def __len__(self) -> int:
        return self.prompt_N.shape[0]

    def take(self, rows: Tensor) -> Rows:
        return replace(self, prompt_N=self.prompt_N[rows], sample_N=self.sample_N[rows])


class Record(Protocol):
    """What an engine must keep to replay its actions. The core only selects and joins rows."""

    def take(self, rows: Tensor) -> Record: ...

    def cat(self, others: Sequence[Any]) -> Record:
        """This record's rows, then those of the others."""
        ...


@dataclass(frozen=True)
class Rollout:
    """Rows × actions with their log-probabilities.

    Example: two prompts, three samples each, four trained denoising steps: prompt_N = [0, 0, 0, 1, 1, 1],
    sample_N = [0, 1, 2, 0, 1, 2], behaviour_NA is [6, 4].
    """

    prompts: tuple[Prompt, ...]
    """The prompts that `prompt_N` counts in; the same tuple on every rank."""
    prompt_N: Tensor
    """[N] int64, index into `prompts`."""
    sample_N: Tensor
    """[N] int64, number of the sample within its group; with the prompt it names the row on any rank."""
    behaviour_NA: Tensor
    """[N, A] log-probability by the engine that sampled; NaN for rows it did not sample (demonstrations)."""
    mask_NA: Tensor
    """[N, A] bool, the actions that may be trained."""
    record: Any
    """A `Record`; only the policy that goes with the engine looks inside."""
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    """Declared columns, each [N] or [N, A], e.g. the seed of a row, or the tree edge of an action."""
    old_NA: Tensor | None = None
    """[N, A] log-probability that ratios are taken against, in the training context; NaN entries are filled by one pass
    without gradient before the first update. None: `behaviour_NA`."""

    def __post_init__(self) -> None:
        rows, actions = self.behaviour_NA.shape
        for name in ("prompt_N", "sample_N"):
            if getattr(self, name).shape != (rows,):
                raise ValueError(f"{name} has shape {tuple(getattr(self, name).shape)}, wanted ({rows},)")
        if self.mask_NA.shape != (rows, actions):
            raise ValueError(f"mask_NA has shape {tuple(self.mask_NA.shape)}, wanted ({rows}, {actions})")
        for name, column in self.columns.items():
            if tuple(column.shape) not in ((rows,), (rows, actions)):
                raise ValueError(
                    f"the column {name!r} has shape {tuple(column.shape)}, wanted ({rows},) or ({rows}, {actions})"
                )

    @property
    def num_rows(self) -> int:
        return self.behaviour_NA.shape[0]

    @property
    def num_actions(self) -> int:
        return self.behaviour_NA.shape[1]

    def take(self, rows: Tensor) -> Rollout:
        """The rows named by an index tensor, in its order."""
        names = [f.name for f in fields(self) if f.name.endswith(("_N", "_NA")) and getattr(self, f.name) is not None]
        picked = {name: getattr(self, name)[rows] for name in names}
        columns = {name: column[rows] for name, column in self.columns.items()}
        return replace(self, **picked, columns=columns, record=self.record.take(rows))

    @staticmethod
    def cat(parts: Sequence[Rollout]) -> Rollout:
        """The rows of all parts, which share their prompts."""
        first = parts[0]
        if len(parts) == 1:
            return first
        names = [f.name for f in fields(first) if f.name.endswith(("_N", "_NA")) and getattr(first, f.name) is not None]
        return replace(
            first,
            **{name: torch.cat([getattr(part, name) for part in parts]) for name in names},
            columns={name: torch.cat([part.columns[name] for part in parts]) for name in first.columns},
            record=first.record.cat([part.record for part in parts[1:]]),
        )


class _OfAKind(list):
    """A slice is of the same kind."""

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return type(self)(found) if isinstance(at, slice) else found


class Pictures(_OfAKind):  # [U] uint8 tensors [3, H, W] of one size, or None
    """Pictures of which some came to nothing (None), as those that hold NaN; where all are sound they are one tensor."""


def is_pictures(items: Any) -> bool:
    """Whether items are pictures: [U, 3, H, W], or `Pictures`; else they are texts."""
    return isinstance(items, Tensor | Pictures)


@dataclass(frozen=True, eq=False)
class Clip:
    """A moving picture, with what its time axis means."""

    frames_FCHW: Tensor
    """uint8 [F, 3, H, W], one size."""
    fps: float
    """Frames a second."""


class Clips(_OfAKind):  # [U] Clip, or None
    """Moving pictures; None for those that came to nothing, as they hold NaN."""


def evenly(total: int, most: int | None) -> list[int]:
    """Which of `total` frames are looked at: the first, the last and some evenly between; of one, that in the middle; None: all."""
    if most is None or total <= most:
        return list(range(total))
    if most == 1:
        return [total // 2]
    return [round(i * (total - 1) / (most - 1)) for i in range(most)]


def is_seen(items: Any) -> bool:
    """Whether items are something to look at, pictures or clips; else they are texts."""
    return is_pictures(items) or isinstance(items, Clips)


def stills(clips: Clips) -> Pictures:
    """One picture of each clip, the frame in its middle; None where there is no clip. Example: of 5 frames that with the index 2."""
    return Pictures(None if clip is None else clip.frames_FCHW[len(clip.frames_FCHW) // 2] for clip in clips)


def pick_items(items: Any, index: Tensor) -> Any:
    """The items named by an index tensor, in its order and of the same kind."""
    if isinstance(items, Tensor):
        return items[index]
    return type(items)(items[i] for i in index.tolist())


def join_items(parts: Sequence[Any]) -> Any:
    """The items of all parts, which are of one kind."""
    if len(parts) == 1:
        return parts[0]
    if all(isinstance(part, Tensor) for part in parts):
        return torch.cat(list(parts))
    kind = Pictures if any(is_pictures(part) for part in parts) else Clips if isinstance(parts[0], Clips) else list
    return kind(item for part in parts for item in part)


def sound_items(pictures: Any) -> tuple[Tensor, Tensor]:
    """(uint8 [V, 3, H, W], [V] int64): the pictures that are any, of clips their `stills`, and which of the items they are."""
    if isinstance(pictures, Tensor):
        return pictures, torch.arange(len(pictures))
    pictures = stills(pictures) if isinstance(pictures, Clips) else pictures
    sound = [i for i, picture in enumerate(pictures) if picture is not None]
    images = torch.stack([pictures[i] for i in sound]) if sound else torch.zeros(0, 3, 1, 1, dtype=torch.uint8)
    return images, torch.tensor(sound, dtype=torch.int64)


def shown_items(pictures: Any, *, shade: int = 128) -> Tensor:
    """uint8 [U, 3, H, W] for a person to look at, of clips their `stills`: a grey plate stands for what is no picture."""
    if isinstance(pictures, Tensor):
        return pictures
    images, sound = sound_items(pictures)
    size = images.shape[1:] if len(images) else (3, 32, 32)
    plates = torch.full((len(pictures), *size), shade, dtype=torch.uint8)
    plates[sound] = images if len(images) else plates[sound]
    return plates


WHOLE_ROW = -1
"""The action of an output that credits every action of its row."""
BASELINE = -2
"""The action of an output that shows where a row started: a gain is measured from it, it credits nothing itself."""


@dataclass(frozen=True)
class Outputs:
    """Things that can be scored, and what each of them credits: an image per row, or several (per step, granularity).

    Example: two rows from one latent, each scored before and after its single action: three images for four outputs,
    row_M = [0, 0, 1, 1], action_M = [BASELINE, 0, BASELINE, 0], item_M = [0, 1, 0, 2].
    """

    items: Any
    """[U] what rewards see: uint8 images [U, 3, H, W] (`Pictures` where some are none), `Clips`, or a list of U texts. A row that
    came to nothing has no output."""
    row_M: Tensor
    """[M] int64, the row an output came from."""
    action_M: Tensor | None = None
    """[M] int64, the action it credits, WHOLE_ROW or BASELINE; None is all WHOLE_ROW."""
    tag_M: Tensor | None = None
    """[M] int64, a second label (granularity λ); None is all zero."""
    item_M: Tensor | None = None
    """[M] int64, the item of each output: what several outputs share is scored once. None: one item each, in order."""

    def __len__(self) -> int:
        return self.row_M.shape[0]

    def item_index(self) -> Tensor:
        """[M] int64, the item of each output."""
        return torch.arange(len(self)) if self.item_M is None else self.item_M

    def first_output(self) -> Tensor:
        """[U] int64, the first output that shows each item."""
        index, size = self.item_index(), len(self.items)
        return torch.full((size,), len(self)).scatter_reduce(0, index, torch.arange(len(self)), "amin")

    def pictures(self) -> Tensor:
        """[<= N] int64, one output for each row that has any: that of its last action, at the lowest tag."""
        action_M = torch.zeros(len(self)) if self.action_M is None else self.action_M.double()
        tag_M = torch.zeros(len(self)) if self.tag_M is None else self.tag_M.double()
        order = torch.argsort(tag_M, stable=True)
        order = order[torch.argsort(-action_M[order], stable=True)]
        order = order[torch.argsort(self.row_M[order], stable=True)]
        row = self.row_M[order]
        is_first = torch.ones_like(row, dtype=torch.bool)
        is_first[1:] = row[1:] != row[:-1]
        return order[is_first]

    @staticmethod
    def cat(parts: Sequence[Outputs], rows: Sequence[int]) -> Outputs:
        """The outputs of rollouts that are joined; `rows` is the number of rows of each."""
        if len(parts) == 1:
            return parts[0]
        starts = [sum(rows[:i]) for i in range(len(parts))]
        item_starts = [sum(len(part.items) for part in parts[:i]) for i in range(len(parts))]
        items = join_items([part.items for part in parts])

        def joined(name: str) -> Tensor | None:
            values = [getattr(part, name) for part in parts]
            return None if values[0] is None else torch.cat(values)

        return Outputs(
            items=items,
            row_M=torch.cat([part.row_M + start for part, start in zip(parts, starts)]),
            action_M=joined("action_M"),
            tag_M=joined("tag_M"),
            item_M=torch.cat([part.item_index() + start for part, start in zip(parts, item_starts)]),
        )


Scores = Mapping[str, Tensor]
"""What a reward returns: "score" [M] and any parts worth logging, float; NaN = could not be scored."""


class Reward(Protocol):
    """Scores outputs. Pure: looks at outputs and prompts only, so it can live in another process.

    `items` are uint8 images [U, 3, H, W], U clips (`Clips`) or U texts; `prompts` is aligned, one per item. A reward with the attribute
    `scope = "set"` compares items with each other (win rates, similarity): it is called once with whole groups and takes
    a third argument, group_U [U] int64, the comparison set of each item. A method `applies_to(prompt)` says which prompts it
    is asked about: a row it does not apply to is no failed row.
    """

    def __call__(self, items: Any, prompts: Sequence[Prompt]) -> Scores | Tensor | Sequence[float]: ...


def is_relative(reward: Any) -> bool:
    """Whether a reward compares the items of a set with each other instead of scoring each."""
    return getattr(reward, "scope", "output") == "set"


@dataclass(frozen=True)
class Credit:
    """What each action earned; read by pointwise and by set losses alike."""

    advantage_NA: Tensor
    """[N, A] float."""
    keep_NA: Tensor
    """[N, A] bool; actions left out cost nothing and count nowhere."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    """Columns that the stages made for the objective, [N, A] each, e.g. which rows a KL term holds back."""


@dataclass(frozen=True)
class Batch:
    """One rollout with what it earned, ready for the table."""

    rollout: Rollout
    outputs: Outputs
    scores: Mapping[str, Scores]
    """Reward name → its scores over the local outputs [M]."""
    part_N: Tensor | None = None
    """[N] int64, the update that trains a row, where the collector chose the rows; None: as they were planned."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What the collector has to tell, the same on every rank."""

    def output_prompts(self) -> list[Prompt]:
        """The prompt of each local output, M of them."""
        return prompts_of(self.rollout, self.outputs.row_M)


def prompts_of(rollout: Rollout, row: Tensor) -> list[Prompt]:
    """The prompts of rows named by an index tensor."""
    return [rollout.prompts[p] for p in rollout.prompt_N[row.cpu()].tolist()]


@dataclass(frozen=True)
class Counts:
    """Global sizes of one optimiser update: the only denominators there are."""

    actions: float
    """Trained actions on all ranks."""
    rows: float
    """Rows with at least one trained action, on all ranks."""
    max_actions: int
    """Actions a row can have, A."""


@dataclass(frozen=True)
class View:
    """What an objective may read beside the policy's values: one entry per action, any shape.

    In one forward it holds the actions seen there; for an objective that couples whole rows or groups it is [N, A].
    """

    old_logprobs: Tensor
    """NaN until the update's own forward has been: then what it gave, detached."""
    advantage: Tensor
    mask: Tensor
    """1 where the action is trained in this update, else 0."""
    row: Tensor
    """int64, the row of each action."""
    group: Tensor
    """int64, the prompt of each action."""
    row_actions: Tensor
    """How many actions of that row are trained in this update (at least 1)."""
    counts: Counts
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    """Columns that the advantage stages made, and those of the rollout that a term names, each in the shape of the others."""

    def map(self, change: Callable[[Tensor], Tensor]) -> View:
        """`change` applied to every tensor."""
        names = [f.name for f in fields(self) if f.name not in ("counts", "columns")]
        columns = {name: change(column) for name, column in self.columns.items()}
        return replace(self, **{name: change(getattr(self, name)) for name in names}, columns=columns)

    def at(self, index: Tensor) -> View:
        """The entries at flat positions into [N · A], in the shape of `index`."""
        index = index.to(self.mask.device)
        return self.map(lambda value: value.flatten()[index])


BEHAVIOUR = "behaviour_logprobs"
"""The column by which a term reads the log-probability of the engine that sampled; NaN for rows that it did not."""

Couples = Literal["action", "row", "group", "update"]
"""The smallest set of actions whose loss can be taken apart from the rest."""
ORDER: tuple[Couples, ...] = ("action", "row", "group", "update")


class Objective(Protocol):
    """One named term. `needs` are names of values that the policy must provide.

    A term that reads columns beside them names them in an attribute `columns`: what a stage made, what the rollout declares,
    or BEHAVIOUR.
    """

    @property
    def needs(self) -> frozenset[str]: ...

    @property
    def couples(self) -> Couples: ...

    def __call__(self, values: Mapping[str, Tensor], view: View) -> Term: ...


@dataclass(frozen=True)
class Term:
    """One named part of the objective: sum(loss · weight) / denominator."""

    name: str
    loss: Tensor
    """Any shape, one entry per action seen."""
    weight: Tensor
    """Same shape."""
    denominator: float
    """Global: the same number on every rank and in every micro-batch."""
    stats: Mapping[str, Tensor] = field(default_factory=dict)
    """Per-action numbers to log (ratio, clipped, …), same shape; averaged over the trained actions."""

    def value(self) -> Tensor:
        return (self.loss * self.weight).sum() / self.denominator
