"""Do the sampler and the trainer see and compute the same? Compared in an order in which the first difference is the cause of the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.findings import Finding
from grpo_mm.pipelines.vlm.policy import VlmPolicy
from grpo_mm.pipelines.vlm.prompting.record import TextRecord
from grpo_mm.pipelines.vlm.sampling.generation import Draw, Request
from grpo_mm.pipelines.vlm.suspects import having, put, suspects
from grpo_mm.processes.rng import stream
from grpo_mm.types import Rows

DRAWN_ONCE = 512
"""First tokens of one prompt, for the distribution that is drawn from."""
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 0.3}
"""Largest difference of a log-probability, by what the network computes in."""
LEAST_PROBABILITY = 1e-4
IMPOSSIBLE = 100.0
CHANGE = 0.02
"""Of the trained weights, as a share of their own size: enough to be seen in every answer."""
EXPLAINED = 0.25
"""A mistake explains a difference of which no more than this share is left once the trainer makes it as well."""


def examine(engine: Any, policy: VlmPolicy, rows: Rows, *, seed: int) -> Iterator[Finding]:
    """One finding after the other. The weights are changed on the way, and put back.

    Args:
        engine: a `VlmEngine`, whose generator is examined.
        rows: some answers of each of a few prompts; rows of prompts that cannot be read are left out.
    """
    asked = replace(engine, demonstrate=None, answer_likelihood=None, reference_log_ratio=False, top_p=1.0)
    examined = _Examined(asked, policy, rows, seed)
    yield from examined.prompts_as_read()
    drawn = examined.draws()
    yield from examined.log_probabilities(drawn, "")
    yield from examined.seeds(drawn)
    yield examined.distribution()
    yield from examined.trainer_alone(drawn)
    yield from examined.after_a_change()


class _Examined:
    def __init__(self, engine: Any, policy: VlmPolicy, rows: Rows, seed: int) -> None:
        self.engine, self.policy, self.rows, self.seed = engine, policy, rows, seed
        self.prompts = [p for p in rows.prompts if not policy.encode(p).failure]
        if not self.prompts:
            raise ConfigError("none of the prompts that were chosen can be read; there is nothing to compare.")
        self.by_id = {p.id: p for p in self.prompts}
        self.bound = BOUNDS[policy.network.precision]

    def draws(self) -> tuple[TextRecord, Tensor]:
        """Some answers of each prompt, and what the sampler says of them, [N, A]."""
        rollout, _ = self.engine.sample(self.policy, self.rows, step=0, seed=self.seed, needs=frozenset())
        return rollout.record, rollout.behaviour_NA.cpu()

    def prompts_as_read(self) -> Iterator[Finding]:
        """The tokens of prompts, where the generator says what it read."""
        contexts = [self.policy.encode(prompt) for prompt in self.prompts]
        draw = Draw(1, self.policy.loaded.stop, self.policy.config.temperature)
        requests = [Request(c, stream(self.seed, "examined", c.prompt_id)) for c in contexts]
        found = self.engine.generator.generate(self.policy.network, requests, draw)
        if found.prompt_ids is None:
            yield Finding(
                "tokens of prompts", math.nan, 0, "this generator is handed them and does not say what it read"
            )
            return
        wrong = [(c, ids) for c, ids in zip(contexts, found.prompt_ids) if c.input_ids_L.tolist() != ids.tolist()]
        why = _how_ids_differ(wrong[0][0].input_ids_L, wrong[0][1], self.policy) if wrong else ""
        yield Finding("tokens of prompts", float(len(wrong)), 0, why or f"{len(contexts)} prompts, token by token")

    def log_probabilities(
        self, drawn: tuple[TextRecord, Tensor], when: str, before: Mapping[str, Tensor] | None = None
    ) -> Iterator[Finding]:
        """Of the first token of each answer, then of all."""
        record, sampler_NA = drawn
        mask_NA = torch.arange(sampler_NA.shape[1]) < record.length_N[:, None]
        apart_NA = _apart(sampler_NA, self._trainer(record)).where(mask_NA, 0)
        cause = ""
        if float(apart_NA.max()) > self.bound:
            cause = self._explained(record, sampler_NA, mask_NA, apart_NA, before)
        first, whole = float(apart_NA[:, 0].max()), float(apart_NA.max())
        count = f"{int(mask_NA.sum())} tokens of {len(record.token_NA)} answers"
        yield Finding(f"log-probability of first tokens{when}", first, self.bound, cause or "sampler against trainer")
        unlike = "what differs comes with the length of an answer: its keys and values, or its positions"
        yield Finding(
            f"log-probability of all tokens{when}",
            whole,
            self.bound,
            cause if first > self.bound else (cause or (unlike if whole > self.bound else count)),
        )

    def _trainer(self, record: TextRecord) -> Tensor:
        rows = torch.nonzero(record.length_N > 0).flatten()
        value_NA = torch.zeros(record.token_NA.shape)
        parts = self.policy.replay.forwards(record, rows)
        for (found, _), part in zip(
            self.policy.replay.values(record, parts, entropy=False, grad=False, charge="examined"), parts
        ):
            value_NA[part] = found.detach().float().cpu()
        return value_NA

    def _explained(self, record: TextRecord, sampler_NA: Tensor, mask_NA: Tensor, apart_NA: Tensor, before: Any) -> str:
        """The mistake that leaves least of the difference."""
        left = {}
        for suspect in suspects(self.policy, self.by_id, before):
            with torch.no_grad(), suspect.under():
                other_NA = _apart(sampler_NA, self._trainer(suspect.of(record))).where(mask_NA, 0)
            left[suspect.cause] = float(other_NA.mean() / apart_NA.mean())
        best = min(left, key=left.__getitem__)
        if left[best] <= EXPLAINED:
            return best
        at_once = float(apart_NA[:, 0].max()) > self.bound
        return (
            "it has read another prompt, other pictures or has other weights: the first tokens differ already" if at_once
            else "unknown; none of the usual mistakes explains it"
        )  # fmt: skip

    def seeds(self, drawn: tuple[TextRecord, Tensor]) -> Iterator[Finding]:
        """Answers of one prompt are drawn apart, and are drawn again from the same seeds."""
        record, sampler_NA = drawn
        of_group = [record.token_NA[record.context_N == c] for c in range(len(record.contexts))]
        equal = [len(tokens.unique(dim=0)) == 1 for tokens in of_group]
        chance = math.exp(
            min(0.0, float(sampler_NA.sum(1).max()) * (self.rows.group_size - 1))
        )  # that one answer came every time
        said = "all answers of a prompt are one: they share a seed, or are drawn without chance" if all(equal) else (
            "answers of a prompt are drawn apart")  # fmt: skip
        figure = 1.0 if all(equal) and chance < LEAST_PROBABILITY else 0.0
        yield Finding("prompts whose answers are all one", figure, 0, said)
        again, _ = self.draws()
        same = float((again.token_NA != record.token_NA).any(1).sum())
        yield Finding("answers that the same seeds do not give again", same, 0, "drawn a second time")

    def distribution(self) -> Finding:
        """First tokens of one prompt against the trainer's distribution: a chi-square test."""
        context = self.policy.encode(self.prompts[0])
        draw = Draw(1, self.policy.loaded.stop, self.policy.config.temperature)
        requests = [Request(context, stream(self.seed, "examined", k)) for k in range(DRAWN_ONCE)]
        token_N = self.engine.generator.generate(self.policy.network, requests, draw).token_NA[:, 0]
        with torch.no_grad():
            hidden, _ = self.policy.network.hidden([context])
            logprob_V = self.policy.network.distribution.logprobs(self.policy.network.logits(hidden[0, -1])).cpu()
        probability = _chi_square(torch.bincount(token_N, minlength=len(logprob_V)), logprob_V.double().exp())
        words = f"{DRAWN_ONCE} first tokens of one prompt against the trainer's distribution, chi-square"
        return Finding("probability of what was drawn", probability, LEAST_PROBABILITY, words, at_least=True)

    def trainer_alone(self, drawn: tuple[TextRecord, Tensor]) -> Iterator[Finding]:
        """How far rounding takes the trainer itself: why a ratio is not exactly 1."""
        record, _ = drawn
        own_NA, replay = self._trainer(record), self.policy.replay
        for words, thing, values in (
            ("one row in a forward", replay, {"micro_batch": 1}),
            ("prompts repeated" if replay.shares(record) else "prompts shared", replay, {"sharing": "off" if replay.shares(record) else "on"}),
            ("bfloat16 against float32", self.policy.network, {"autocast": torch.bfloat16 if self.policy.network.precision == torch.float32 else torch.float32}),
        ):  # fmt: skip
            with torch.no_grad(), having(thing, **values):
                apart = float((self._trainer(record) - own_NA).abs().max())
            is_exact = "bfloat16" not in words
            yield Finding(f"trainer: {words}", apart, self.bound, "the trainer against itself", asked=is_exact)

    def after_a_change(self) -> Iterator[Finding]:
        """The same once the weights have been changed in place, as by an update."""
        if self.policy.shards is not None:
            yield Finding(
                "log-probabilities, weights changed", math.nan, 0, "not compared where weights are cut over processes"
            )
            return
        before = {name: p.detach().clone() for name, p in self.policy.trainable.items()}
        changed = {name: _changed(name, p) for name, p in before.items()}
        put(self.policy, changed)
        try:
            yield from self.log_probabilities(self.draws(), ", weights changed", before)
        finally:
            put(self.policy, before)


def _apart(one: Tensor, other: Tensor) -> Tensor:
    """How far apart log-probabilities are; what one side holds to be impossible is a large number."""
    return (one - other).abs().nan_to_num(nan=IMPOSSIBLE, posinf=IMPOSSIBLE).clamp_max(IMPOSSIBLE)


def _changed(name: str, value: Tensor) -> Tensor:
    noise = torch.randn(value.shape, generator=stream(0, "examined", name)).to(value)
    return value + CHANGE * (value.std(unbiased=False) + 0.1) * noise


def _how_ids_differ(ours_L: Tensor, theirs_L: Tensor, policy: VlmPolicy) -> str:
    ours, theirs = ours_L.tolist(), theirs_L.tolist()
    config, decode = policy.model.config, policy.processor.tokenizer.decode
    for kind, token in (("picture", config.image_token_id), ("video", config.video_token_id)):
        if ours.count(token) != theirs.count(token) and (ours.count(token) == 0) == (theirs.count(token) == 0):
            return f"another resize: {theirs.count(token)} visual tokens of a {kind} in the engine, {ours.count(token)} here"
    if len(theirs) < len(ours) and theirs == ours[len(ours) - len(theirs) :]:
        lost = decode(ours[: len(ours) - len(theirs)])
        if lost.lstrip().startswith("<|im_start|>system") and lost.rstrip().endswith("<|im_end|>"):
            return "the prompt has lost its system turn"
        return f"the prompt is truncated at its start: {len(theirs)} of {len(ours)} tokens"
    if len(theirs) < len(ours) and theirs == ours[: len(theirs)]:
        return f"the prompt is truncated at its end: {len(theirs)} of {len(ours)} tokens"
    place = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    return f"from token {place} on: {decode(theirs[place : place + 5])!r} in the engine, {decode(ours[place : place + 5])!r} here"


def _chi_square(count_V: Tensor, probability_V: Tensor) -> float:
    """Probability of counts as unlikely as these; tokens that are expected fewer than 5 times stand together."""
    expected_V = probability_V * count_V.sum()
    often = expected_V >= 5
    observed = torch.cat([count_V[often].double(), count_V[~often].sum().double()[None]])
    expected = torch.cat([expected_V[often], expected_V[~often].sum()[None]])
    if float(expected[-1]) < 1e-9:
        if float(observed[-1]) > 0:
            return 0.0
        observed, expected = observed[:-1], expected[:-1]
    freedom = len(expected) - 1
    if freedom < 1:
        return 1.0
    statistic = float(((observed - expected) ** 2 / expected).sum())
    return float(
        torch.special.gammaincc(
            torch.tensor(freedom / 2.0, dtype=torch.float64), torch.tensor(statistic / 2, dtype=torch.float64)
        )
    )
