"""Which rank makes which samples, and in which update they are trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from grpo_mm.types import Prompt, Rows


def seen_by(policy: Any, prompts: Iterable[Prompt]) -> tuple[Prompt, ...]:
    """The prompts with what only the policy can say of them (`policy.as_seen`, if it has one): rewards, reports and
    benchmarks read it in the target."""
    return tuple(map(policy.as_seen, prompts)) if hasattr(policy, "as_seen") else tuple(prompts)


def plan_rows(
    prompts: tuple[Prompt, ...], *, group_size: int, parts: int, rank: int = 0, world: int = 1
) -> tuple[Rows, Tensor]:
    """This rank's rows, and the update part each belongs to, [N].

    The prompts are cut into `parts` runs of whole groups; each run's rows are cut into `world` equal pieces. So every
    update trains the same rows whatever the number of ranks.

    Example: 2 prompts × 2 samples, 1 part, rank 1 of 2: prompt_N = [1, 1], sample_N = [0, 1].
    """
    prompt_N = torch.arange(len(prompts)).repeat_interleave(group_size)
    sample_N = torch.arange(group_size).repeat(len(prompts))
    mine = [piece.chunk(world)[rank] for piece in torch.arange(len(prompt_N)).chunk(parts)]
    rows = torch.cat(mine)
    part_N = torch.cat([torch.full((len(piece),), part) for part, piece in enumerate(mine)])
    return Rows(prompts, prompt_N[rows], sample_N[rows], group_size), part_N


def further_rows(
    prompts: tuple[Prompt, ...], *, first_P: Tensor, count_P: Tensor, group_size: int, rank: int = 0, world: int = 1
) -> Rows:
    """This rank's share of `count_P` samples of each prompt, numbered on from `first_P`; it may be empty.

    `group_size`: the most samples that a prompt can come to have.

    Example: 2 prompts, first_P = [2, 2], count_P = [0, 3]: prompt_N = [1, 1, 1], sample_N = [2, 3, 4].
    """
    prompt_N = torch.arange(len(prompts)).repeat_interleave(count_P)
    before_P = count_P.cumsum(0) - count_P
    sample_N = torch.arange(len(prompt_N)) - before_P[prompt_N] + first_P[prompt_N]
    mine = torch.tensor_split(torch.arange(len(prompt_N)), world)[rank]
    return Rows(prompts, prompt_N[mine], sample_N[mine], group_size)


def evaluation_rows(prompts: tuple[Prompt, ...], *, samples: int, rank: int, world: int) -> Rows:
    """A nearly equal share of prompts × samples for each rank; none may be left empty-handed but by its share."""
    zero_P, samples_P = torch.zeros(len(prompts), dtype=torch.int64), torch.full((len(prompts),), samples)
    return further_rows(prompts, first_P=zero_P, count_P=samples_P, group_size=samples, rank=rank, world=world)


def update_mask(mask_NA: Tensor, part_N: Tensor, *, by: str, part: int, parts: int) -> Tensor:
    """[N, A] bool: the actions that update number `part` trains; over all parts every action once."""
    if by == "group":
        return mask_NA & (part_N.to(mask_NA.device) == part)[:, None]
    action_A = torch.arange(mask_NA.shape[1], device=mask_NA.device)
    return mask_NA & (action_A % parts == part)[None, :]
