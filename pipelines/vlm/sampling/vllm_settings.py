"""What vLLM is told, in the trainer's process and as a server: how an answer is drawn, and how what it drew is read. Imports no vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpo_mm.pipelines.vlm.sampling.generation import Draw, Generated, Request
from grpo_mm.processes.clock import count

QUIET = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
ON_CPU = {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1"}
"""Read as vLLM is imported."""
NEVER = -100.0
"""Added to the logits of forbidden tokens."""
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class Drawn:
    """An answer as vLLM gave it."""

    ids: list[int]
    logprobs: list[float]
    cached: int = 0
    """Tokens of its prompt that were not read again."""


def allowed_rank(rank: int) -> int:
    """The least rank of an adapter, of those that the engine has kernels for, that holds this one."""
    return next((allowed for allowed in RANKS if allowed >= rank), rank)


def settings_of(draw: Draw, forbidden_V: Tensor) -> dict[str, Any]:
    """`SamplingParams` of all answers of a call, but for seed and temperature; values of JSON."""
    return {
        "top_p": 1.0, "max_tokens": draw.max_new_tokens, "logprobs": 0, "stop_token_ids": sorted(draw.stop), "ignore_eos": True,
        "detokenize": False, "skip_special_tokens": False,
        "logit_bias": {str(token): NEVER for token in torch.nonzero(forbidden_V).flatten().tolist()},
    }  # fmt: skip


def seed_of(request: Request) -> int | None:
    """From the row's own stream; None: the most probable token each time."""
    return None if request.stream is None else int(torch.randint(2**31, (), generator=request.stream))


def params_of(settings: dict[str, Any], *, seed: int | None, temperature: float) -> Any:
    """vLLM's `SamplingParams` of one answer."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    bias = {int(token): value for token, value in settings["logit_bias"].items()}
    return SamplingParams(
        **{**settings, "logit_bias": bias}, seed=seed, temperature=0.0 if seed is None else temperature,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )  # fmt: skip


def drawn_of(output: Any) -> Drawn:
    """Of vLLM's `RequestOutput`."""
    answer = output.outputs[0]
    ids = list(answer.token_ids)
    logprobs = [at[token].logprob for token, at in zip(ids, answer.logprobs)]
    return Drawn(ids, logprobs, cached=output.num_cached_tokens or 0)


def count_drawn(rows: Sequence[Drawn], prompt_tokens: Sequence[int]) -> None:
    """For the metrics: tokens of prompts that the engine was asked, each answer for itself, and how many of them it had read before."""
    count("engine_prompt_tokens", sum(prompt_tokens))
    count("engine_cached_tokens", sum(row.cached for row in rows))


def generated(
    rows: Sequence[Drawn], draw: Draw, *, prompt_ids: Sequence[Tensor], weights: tuple[int, str] | None
) -> Generated:
    """Of all answers of a call, in the order of the requests."""
    shape = (len(rows), draw.max_new_tokens)
    token_NA, logprob_NA = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.float32)
    length_N = torch.zeros(shape[0], dtype=torch.int64)
    for i, row in enumerate(rows):
        length_N[i] = len(row.ids)
        token_NA[i, : len(row.ids)] = torch.tensor(row.ids)
        logprob_NA[i, : len(row.ids)] = torch.tensor(row.logprobs)
    return Generated(token_NA, length_N, logprob_NA, prompt_ids=tuple(prompt_ids), weights=weights)
