"""From rows to texts: one prefill a prompt, samples that differ by their own random streams, demonstrations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.findings import Finding
from grpo_mm.identity import FREE, NOTED
from grpo_mm.ledger.entries import Ledger, Plan
from grpo_mm.pipelines.vlm.answers import AnswerLikelihood
from grpo_mm.pipelines.vlm.examine import examine
from grpo_mm.pipelines.vlm.ledger import vlm_ledger
from grpo_mm.pipelines.vlm.models.families import check_model, positions_on_disk
from grpo_mm.pipelines.vlm.policy import VlmPolicy, VlmPolicyConfig
from grpo_mm.pipelines.vlm.prompting.chat import opened_by_template
from grpo_mm.pipelines.vlm.prompting.contexts import Context
from grpo_mm.pipelines.vlm.prompting.illustration import clip, thumbnails
from grpo_mm.pipelines.vlm.prompting.record import PROVIDES, TextRecord
from grpo_mm.pipelines.vlm.sampling.generation import Draw, Generated, HfGenerator, Request
from grpo_mm.processes.clock import count, phase
from grpo_mm.processes.progress import report
from grpo_mm.processes.rng import stream
from grpo_mm.registry import Role
from grpo_mm.types import WHOLE_ROW, Outputs, Prompt, Rollout, Rows

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VlmEngine:
    """How answers are sampled. The temperature is the policy's: `policy.temperature`."""

    max_new_tokens: int = field(default=512, metadata=NOTED)
    top_p: float = field(default=1.0, metadata=NOTED)
    """Below 1 rare tokens are not drawn, while log-probabilities are those of the whole distribution, before and after:
    ratios stay exact, the rollout is then slightly off-policy (as in GRPO-CARE and TempSamp-R1, .95 and .85)."""
    generator: Annotated[Any, Role("generator")] = field(default_factory=HfGenerator, metadata=NOTED)
    demonstrate: Annotated[Any, Role("demonstration")] | None = None
    """Which rows of a group are demonstrations instead of samples; None: no row."""
    answer_likelihood: AnswerLikelihood | None = None
    """Adds the column `answer_likelihood`."""
    reference_log_ratio: bool = False
    """Adds the column `ref_log_ratio`, the log-probability of a row when sampled minus that of the reference: for
    {kind: kl_in_reward}. A forward pass of the reference more for each row."""
    eval_temperature: float = field(default=0.0, metadata=NOTED)
    """Of held-out evaluation; 0: the most probable token each time."""
    eval_max_new_tokens: int | None = field(default=None, metadata=NOTED)
    """None: as in training."""
    eval_prompts_at_once: int = field(default=256, metadata=FREE)
    """Prompts of a held-out set whose media are in memory at once, on each rank."""

    provides = PROVIDES
    output_noun = "texts"
    logged = ("length", "truncated", "media_failed", "logprob_mean", "entropy_mean")
    """Columns worth a line in the log: their means over rows that are no demonstrations. entropy_mean: where the generator tells."""

    @property
    def snapshots(self) -> frozenset[str]:
        """Copies of the weights that sampling reads."""
        likelihood = set() if self.answer_likelihood is None else {self.answer_likelihood.of}
        return frozenset(likelihood | ({"ref"} if self.reference_log_ratio else set()))

    @property
    def examined_first(self) -> bool:
        """Whether another program draws, so that it is compared with the trainer before a run begins."""
        return not getattr(self.generator, "is_the_trainers", False)

    tells_finished = True
    """It hands out the samples of a prompt while others are drawn."""

    @property
    def draws_apart(self) -> bool:
        """Whether it draws with weights of its own once they are handed over, so that the policy may be trained meanwhile."""
        return getattr(self.generator, "draws_apart", False) and not self.snapshots

    def hand_over(self, policy: VlmPolicy) -> None:
        """The weights in place, for a `sample` in another thread, which names them by `Snapshots.as_of`."""
        self.generator.hand_over(policy.network)

    @property
    def whole_groups(self) -> bool:
        """Whether the samples of a group depend on how many there are."""
        return self.demonstrate is not None

    def check(self, policy: VlmPolicyConfig, *, group_size: int, training_steps: int = 1) -> None:
        """Raises ConfigError for settings that cannot work together."""
        if not isinstance(policy, VlmPolicyConfig):
            raise ConfigError(f"engine vlm samples from policy vlm, found {type(policy).__name__}.")
        positions = positions_on_disk(policy.path)
        for name in ("max_new_tokens", "eval_max_new_tokens", "eval_prompts_at_once"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"engine.{name} = {value}; wanted at least 1.")
            if name != "eval_prompts_at_once" and value is not None and positions is not None and value >= positions:
                raise ConfigError(
                    f"engine.{name} = {value}; the checkpoint has positions for {positions} tokens (max_position_embeddings), of "
                    "prompt and answer together."
                )
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"engine.top_p = {self.top_p}; wanted a share in (0, 1].")
        if self.eval_temperature < 0:
            raise ConfigError(f"engine.eval_temperature = {self.eval_temperature}; wanted 0 (no chance) or above.")
        self.generator.check()
        if self.top_p < 1 and not getattr(self.generator, "tells_top_p", True):
            raise ConfigError(
                "engine.top_p below 1: this generator tells log-probabilities within it, and the trainer's are of the whole distribution. "
                "Leave it at 1, or use engine.generator.kind = hf."
            )
        family = check_model(policy.path)
        if self.examined_first and family is not None:
            family.refuse("engine.generator.kind = vllm", instead="Use engine.generator.kind=hf.")
        if self.examined_first and (policy.video_positions != "authors" or policy.quantize):
            raise ConfigError(
                "engine.generator: an engine of its own computes positions by the authors' rule and has no quantised base: wanted "
                "policy.video_positions = authors, and no policy.quantize."
            )
        if self.demonstrate is not None:
            self.demonstrate.check(group_size)
        if self.answer_likelihood is not None:
            self.answer_likelihood.check()

    def actions(self) -> int:
        """Actions of a row, A: the same for all rows, so that rollouts can be joined."""
        return self.max_new_tokens

    def trained_actions(self, group_size: int) -> int:
        """Actions of a group that are trained, at most: what rows do not write is not trained."""
        return group_size * self.max_new_tokens

    def pictures(self, group_size: int) -> int:
        """Texts of a group that rewards see."""
        return group_size

    def network_calls(
        self, policy: VlmPolicyConfig, *, prompts: int, group_size: int, needs: frozenset[str], step: int, seed: int
    ) -> dict[str, int]:
        """Planned network calls: one is one row through the network once, its tokens drawn one by one or not.

        As many as there can be: demonstrations draw nothing, and only rows with an answer have its likelihood.
        """
        rows = prompts * group_size
        calls = {"rollout": rows, "train": rows}
        asked = ["ref"] * (any("ref" in name.split("_") for name in needs) + self.reference_log_ratio)
        asked += [] if self.answer_likelihood is None else [self.answer_likelihood.of]
        return calls | {name: rows * asked.count(name) for name in asked}

    def describe(self, policy: VlmPolicyConfig, *, rows: int, group_size: int, needs: frozenset[str]) -> list[str]:
        """What `show` says of the rollout."""
        shown = "no limit" if policy.chat.max_prompt_tokens is None else f"at most {policy.chat.max_prompt_tokens}"
        said = [f"a row: {shown} prompt tokens, at most {self.max_new_tokens} answer tokens (each is an action)"]
        return [*said, *(self.generator.describe() if hasattr(self.generator, "describe") else ())]

    def ledger(self, policy: VlmPolicyConfig, plan: Plan) -> Ledger:
        """Bytes and operations of a step, see `vlm_ledger`."""
        return vlm_ledger(policy, self, plan)

    def table_columns(self, group_size: int) -> dict[str, Tensor]:
        """The columns of one group's table, so that a config can be rehearsed without sampling."""
        sample = torch.arange(group_size)
        shape = (group_size, self.max_new_tokens)
        length_N = (1 + sample).clamp_max(self.max_new_tokens)
        columns = text_columns(
            torch.arange(shape[1]).expand(shape), length_N, torch.full(shape, -1.0),
            stop=frozenset(), demo_N=None if self.demonstrate is None else torch.zeros(group_size, dtype=torch.bool),
        )  # fmt: skip
        columns["entropy_mean"] = torch.ones(group_size)
        if self.answer_likelihood is not None:
            columns["answer_likelihood"] = torch.full((group_size,), 0.5)
        if self.reference_log_ratio:
            columns["ref_log_ratio"] = torch.zeros(group_size)
        whole = torch.full((group_size,), WHOLE_ROW)
        return {"sample": sample, "action": whole, "tag": torch.zeros_like(whole)} | columns

    @torch.no_grad()
    def sample(
        self,
        policy: VlmPolicy,
        rows: Rows,
        *,
        step: int,
        seed: int,
        needs: frozenset[str],
        finished: Callable[[int, list[str]], None] | None = None,
    ) -> tuple[Rollout, Outputs]:
        """Draws an answer for every row. Rows of a prompt that cannot be read stay empty: nothing trained, nothing scored.

        finished: hears of the texts of each prompt, in the order of its rows, as soon as all of them are there. A prompt some of whose
            rows are demonstrations is not told.
        """
        contexts, context_N = _encode(policy, rows)
        failed_N = torch.tensor([bool(contexts[c].failure) for c in context_N.tolist()], dtype=torch.bool)
        demo_N = torch.zeros_like(failed_N) if self.demonstrate is None else self.demonstrate.rows(rows) & ~failed_N
        keys, drawn = _keys(rows), torch.nonzero(~demo_N & ~failed_N).flatten()
        requests = [
            Request(contexts[int(context_N[i])], stream(seed, "tokens", step, *keys[i])) for i in drawn.tolist()
        ]
        told = None if finished is None else _Finished(policy, rows, drawn, finished)
        draw = Draw(self.max_new_tokens, policy.loaded.stop, policy.config.temperature, self.top_p, told)
        made = self._drawn(policy, requests, draw)
        shape = (len(rows), self.max_new_tokens)
        token_NA, behaviour_NA = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
        length_N = torch.zeros(shape[0], dtype=torch.int64)
        token_NA[drawn], length_N[drawn], behaviour_NA[drawn] = made.token_NA, made.length_N, made.logprob_NA
        for i in torch.nonzero(demo_N).flatten().tolist():
            ids = self.demonstrate.tokens(rows.prompts[int(rows.prompt_N[i])], policy.loaded, most=self.max_new_tokens)
            token_NA[i, : len(ids)], length_N[i] = torch.tensor(ids), len(ids)
            behaviour_NA[i, : len(ids)] = torch.nan
        mask_NA = torch.arange(self.max_new_tokens) < length_N[:, None]
        record = TextRecord(tuple(contexts), context_N, token_NA, length_N)
        columns = text_columns(
            token_NA, length_N, behaviour_NA, stop=policy.loaded.stop, demo_N=demo_N if self.demonstrate else None
        )
        if made.entropy_NA is not None:
            columns["entropy_mean"] = torch.full((shape[0],), torch.nan)
            columns["entropy_mean"][drawn] = made.entropy_NA.sum(1) / made.length_N
        if self.answer_likelihood is not None:
            columns["answer_likelihood"] = self.answer_likelihood(policy, record, policy.processor.tokenizer.decode)
        if self.reference_log_ratio:
            columns["ref_log_ratio"] = _reference_log_ratio(policy, record, behaviour_NA, mask_NA)
        rollout = Rollout(
            prompts=rows.prompts,
            prompt_N=rows.prompt_N,
            sample_N=rows.sample_N,
            behaviour_NA=behaviour_NA.to(policy.device),
            mask_NA=mask_NA.to(policy.device),
            record=record,
            columns=columns,
        )
        shown = torch.nonzero(~failed_N).flatten()
        texts = row_texts(policy, token_NA[shown], length_N[shown])
        return rollout, Outputs(items=texts, row_M=shown)

    def amounts(self, rollout: Rollout) -> dict[str, int]:
        """Tokens of a rollout, for the log. answer_tokens: drawn, end of turn included. prompt_tokens: of the prompts with their
        media, once for each answer that was drawn behind them."""
        record = rollout.record
        drawn_N = (
            ~rollout.columns["demo"].bool() if "demo" in rollout.columns else torch.ones_like(record.length_N).bool()
        )
        prompt_C = torch.tensor([len(context) for context in record.contexts])
        return {
            "prompt_tokens": int(prompt_C[record.context_N[drawn_N]].sum()),
            "answer_tokens": int(record.length_N[drawn_N].sum()),
        }

    def _drawn(self, policy: VlmPolicy, requests: Sequence[Request], draw: Draw) -> Generated:
        count("rollout_calls", len(requests))
        made = self.generator.generate(policy.network, requests, draw)
        if made.weights not in (None, policy.snapshots.which):
            raise RuntimeError(f"answers of the weights {made.weights}, and {policy.snapshots.which} are in place")
        return made

    def illustrate(self, policy: VlmPolicyConfig, prompt: Prompt) -> Tensor | None:
        """The prompt's first picture, uint8 [1, 3, H, W], or a few frames of its first video [K, 3, H, W], frame k from the
        moment (k + 1/2) / K of its length; small. None where there is nothing to see."""
        return thumbnails(policy.media, prompt)

    def clip(self, policy: VlmPolicyConfig, prompt: Prompt) -> Tensor | None:
        """The prompt's first video for playing, uint8 [K, 3, H, W], small; None where it has none."""
        return clip(policy.media, prompt)

    def examine(self, policy: VlmPolicy, rows: Rows, *, seed: int) -> Iterator[Finding]:
        """Whether the generator and the trainer see and compute the same; see `examine`."""
        return examine(self, policy, rows, seed=seed)

    def usage(self, policy: VlmPolicy) -> dict[str, str]:
        """For the model card: what loads the product into plain transformers and answers as evaluation does."""
        chance = self.eval_temperature > 0
        drawn = {"temperature": self.eval_temperature, "top_p": self.top_p, "top_k": 0} if chance else {}
        most = self.eval_max_new_tokens or self.max_new_tokens
        how = f"drawn at temperature {self.eval_temperature:g} and top-p {self.top_p:g}" if chance else "greedy"
        words = {"drawn": f"Answers are {how}, of at most {most} tokens."}
        return policy.usage(do_sample=chance, **drawn, max_new_tokens=most) | words

    @torch.no_grad()
    def render(self, policy: VlmPolicy, rows: Rows, *, seed: int) -> list[str | None]:
        """Texts of the rows for evaluation; None for a prompt that cannot be read.

        The contexts of `eval_prompts_at_once` prompts are in memory; the next ones are read meanwhile.
        """
        windows = _windows(rows, self.eval_prompts_at_once)
        texts: list[str | None] = []
        for window, following in zip(windows, [*windows[1:], None]):
            if following is not None:
                policy.announce([following.prompts[p] for p in following.prompt_N.unique().tolist()])
            texts += self._rendered(policy, window, seed=seed)
            if len(windows) > 1:
                report("rows of the held-out set", len(texts), len(rows))
        return texts

    def _rendered(self, policy: VlmPolicy, rows: Rows, *, seed: int) -> list[str | None]:
        contexts, context_N = _encode(policy, rows)
        keys = _keys(rows)
        whose = [contexts[c] for c in context_N.tolist()]
        good = [i for i, context in enumerate(whose) if not context.failure]
        chance = self.eval_temperature > 0
        requests = [Request(whose[i], stream(seed, "eval_tokens", *keys[i]) if chance else None) for i in good]
        length = self.eval_max_new_tokens or self.max_new_tokens
        draw = Draw(length, policy.loaded.stop, self.eval_temperature or 1.0, self.top_p if chance else 1.0)
        made = self._drawn(policy, requests, draw)
        texts = dict(zip(good, row_texts(policy, made.token_NA, made.length_N), strict=True))
        return [texts.get(i) for i in range(len(rows))]


class _Finished:
    """Tells of a prompt's texts when the last of its rows has ended."""

    def __init__(self, policy: VlmPolicy, rows: Rows, drawn: Tensor, tell: Callable[[int, list[str]], None]) -> None:
        """drawn: [n] the row of each request."""
        self.policy, self.tell, self.opened = policy, tell, opened_by_template(policy.processor)
        self.prompt_n = rows.prompt_N[drawn].tolist()
        whole = torch.bincount(rows.prompt_N, minlength=len(rows.prompts)).tolist()
        asked = torch.bincount(rows.prompt_N[drawn], minlength=len(rows.prompts)).tolist()
        self.left = {p: asked[p] for p in set(self.prompt_n) if asked[p] == whole[p]}
        self.answers: dict[int, dict[int, Tensor]] = {p: {} for p in self.left}

    def __call__(self, request: int, tokens: Tensor) -> None:
        prompt = self.prompt_n[request]
        if prompt not in self.left:
            return
        self.answers[prompt][request] = tokens
        self.left[prompt] -= 1
        if not self.left[prompt]:
            answers = self.answers.pop(prompt)
            self.tell(
                prompt, [_text(self.policy, self.opened, answers[request].tolist()) for request in sorted(answers)]
            )


def text_columns(
    token_NA: Tensor, length_N: Tensor, behaviour_NA: Tensor, *, stop: frozenset[int], demo_N: Tensor | None
) -> dict[str, Tensor]:
    """What advantage stages and objectives may read of rows of tokens; [N] each but `token` and `eos`.

    length: tokens, end of turn included. truncated: the row was cut off at the limit. logprob_sum, logprob_mean: of the
    engine that sampled, NaN for demonstrations. demo: 1 for these, where the engine puts any in. media_failed: the prompt could
    not be read.
    """
    inside_NA = torch.arange(token_NA.shape[1]) < length_N[:, None]
    ends_NA = torch.isin(token_NA, torch.tensor(sorted(stop), dtype=torch.int64)) & inside_NA
    total_N = behaviour_NA.where(inside_NA, 0).sum(1)
    return {
        "length": length_N,
        "truncated": (length_N == token_NA.shape[1]) & ~ends_NA.any(1),
        "logprob_sum": total_N,
        "logprob_mean": total_N / length_N.clamp_min(1),
        **({} if demo_N is None else {"demo": demo_N.long()}),
        "media_failed": length_N == 0,
        "token": token_NA,
        "eos": ends_NA,
    }


def _reference_log_ratio(policy: VlmPolicy, record: TextRecord, behaviour_NA: Tensor, mask_NA: Tensor) -> Tensor:
    """Σ_t (log π(token) - log π_ref(token)) of each row, [N]; NaN for demonstrations, which nobody sampled."""
    ref_NA = policy.values_under("ref", record, torch.nonzero(mask_NA.any(1)).flatten()).cpu()
    return (behaviour_NA - ref_NA).where(mask_NA, 0).sum(1)


def row_texts(policy: VlmPolicy, token_NA: Tensor, length_N: Tensor) -> list[str]:
    """The text of each row as it was written, special tokens included, without the one that ends it.

    Before it stands what the chat template opened ("<think>"), so that rewards, benchmarks and transcripts see the element
    whole. The tokens of the row, and with them all log-probabilities, do not hold it.
    """
    opened = opened_by_template(policy.processor)
    return [_text(policy, opened, tokens[:length]) for tokens, length in zip(token_NA.tolist(), length_N.tolist())]


def _text(policy: VlmPolicy, opened: str, ids: list[int]) -> str:
    if ids and ids[-1] in policy.loaded.stop:
        ids = ids[:-1]
    return opened + policy.processor.tokenizer.decode(ids)


def _encode(policy: VlmPolicy, rows: Rows) -> tuple[list[Context], Tensor]:
    """The context of each distinct prompt of the rows, and which one each row has, [N]."""
    prompt_C, context_N = torch.unique(rows.prompt_N, return_inverse=True)
    with phase("encode"):
        contexts = [policy.encode(rows.prompts[p]) for p in prompt_C.tolist()]
    for context in contexts:
        if context.failure:
            count("failed_prompts", 1)
            log.warning("its rows are left out: %s", context.failure)
    return contexts, context_N


def _windows(rows: Rows, prompts: int) -> list[Rows]:
    """The rows in order, cut so that each piece has so many different prompts; a prompt's rows stand side by side."""
    different = torch.unique_consecutive(rows.prompt_N, return_inverse=True)[1]
    return [
        rows.take(torch.nonzero(different // prompts == k).flatten()) for k in (different // prompts).unique().tolist()
    ]


def _keys(rows: Rows) -> Sequence[tuple[str, int]]:
    """What names each row in random streams: its prompt and its number."""
    return [(rows.prompts[p].id, s) for p, s in zip(rows.prompt_N.tolist(), rows.sample_N.tolist(), strict=True)]
