"""The model seen as functions of contexts: features of media, embeddings, hidden states, distributions of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from grpo_mm.pipelines.vlm.forwards import cascade, cut_rows, flex, windows
from grpo_mm.pipelines.vlm.forwards.cascade import SharedPrompts
from grpo_mm.pipelines.vlm.forwards.cut_rows import CutText, CutTower, own_tokens
from grpo_mm.pipelines.vlm.forwards.flex import FlexPrompts
from grpo_mm.pipelines.vlm.forwards.prefix_attention import install
from grpo_mm.pipelines.vlm.models.family import Family
from grpo_mm.pipelines.vlm.prompting.contexts import Context
from grpo_mm.pipelines.vlm.prompting.shared_media import media_look, same_media
from grpo_mm.processes.clock import phase
from grpo_mm.processes.sequence import SequenceGroup


@dataclass(frozen=True)
class TokenDistribution:
    """What tokens are drawn from, in sampling and in training alike: softmax of the logits over the temperature.

    `forbidden_V` [V] bool: tokens that are never drawn. A sampled image placeholder would ask for features that there are
    none of, so placeholders have probability 0 in the sampler and in the log-probabilities.
    """

    temperature: float
    forbidden_V: Tensor

    def logprobs(self, logits: Tensor, *, temperature: float | None = None) -> Tensor:
        """float32 log-probabilities of the vocabulary, shape of `logits` [..., V]."""
        scaled = logits.float() / (self.temperature if temperature is None else temperature)
        return scaled.masked_fill(self.forbidden_V, -torch.inf).log_softmax(-1)


class Network:
    """A transformers model of one of the families, on its device.

    Visual features of a frozen tower are computed once for the media of a context and live as long as it does: sampling, the
    reference, all updates, and other contexts with the same media share them.

    Within `cut` the tokens of each row are cut over a group of processes. What it gives is whole on each of them; `token_values` is
    to be asked the same of all, and each makes its part of the gradient.
    """

    def __init__(
        self,
        model: Any,
        family: Family,
        *,
        temperature: float,
        forbidden: Sequence[int],
        autocast: torch.dtype | None,
        shares_prefill: bool = True,
        flex_answers: bool = False,
        path: str = "",
        in_place: Any = None,
        sequence: SequenceGroup | None = None,
    ) -> None:
        """path: the checkpoint. in_place: its weights as they are now (`InPlace`); both for engines that have the model once more.
        sequence: the processes that rows are cut over within `cut`."""
        self.model, self.family, self.autocast = model, family, autocast
        self.shares_prefill, self.recurrent = shares_prefill, family.recurrent
        self.device = next(model.parameters()).device
        text = model.config.get_text_config()
        if flex_answers:
            install(text, flex.NAME, flex.attend_answers)
        elif text._attn_implementation == "sdpa" and self.device.type == "cpu" and not self.recurrent:
            install(text, cascade.NAME, cascade.attend_answers)
        self.attention: str = text._attn_implementation
        tower = family.tower(model)
        if family.tower_has_windows and tower[0].config._attn_implementation == "sdpa":
            windows.install(tower[0].config)
        self._sequence, self._cut = sequence, None
        if sequence is not None:
            cut_rows.install(text)
            cut_rows.install_tower(tower[0])
        size = model.lm_head.weight.shape[0]
        forbidden_V = torch.zeros(size, dtype=torch.bool, device=self.device)
        forbidden_V[[token for token in forbidden if token < size]] = True
        self.distribution = TokenDistribution(temperature, forbidden_V)
        self.tower_is_frozen = not any(p.requires_grad for part in tower for p in part.parameters())
        self.path, self.in_place = path, in_place
        self._features: WeakKeyDictionary[Context, Tensor] = WeakKeyDictionary()
        self._latest: WeakValueDictionary[object, Context] = WeakValueDictionary()
        """By what its media look like."""

    @property
    def precision(self) -> torch.dtype:
        """What it computes in."""
        return self.autocast or self.model.dtype

    def _precision(self) -> Any:
        if self.autocast is None:
            return nullcontext()
        # Every weight is met once, so that a cache of what was cast would be copies that nobody asks for.
        return torch.autocast(self.device.type, dtype=self.autocast, cache_enabled=False)

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Rows are cut over the group of processes, where there is one; its members come in with the same rows."""
        before, self._cut = self._cut, self._sequence
        try:
            yield
        finally:
            self._cut = before

    @property
    def cut_over(self) -> SequenceGroup | None:
        """The processes that rows are cut over now."""
        return self._cut

    def features(self, context: Context) -> Tensor | None:
        """Visual tokens in the order of their placeholders, [1 + D, tokens, width]; None without media."""
        if "pixel_values" not in context.inputs and "pixel_values_videos" not in context.inputs:
            return None
        if context in self._features:
            return self._features[context]
        look = media_look(context)
        known = self._latest.get(look)  # another question about the same video
        if known is not None and same_media(known, context):
            self._features[context], self._latest[look] = self._features[known], context
            return self._features[context]
        grad = nullcontext() if not self.tower_is_frozen else torch.no_grad()
        with grad, self._precision(), phase("tower_network"):
            found = self._tower(context)
        if self.tower_is_frozen:
            self._features[context], self._latest[look] = found, context
        return found

    def _tower(self, context: Context) -> Tensor:
        parts, places = [], []
        held = self.family.placeholders(self.model.config, context.input_ids_L, context.inputs)
        for kind, here_L in held.items():
            cut = {} if self._cut is None else {"cut": CutTower(self._cut)}
            found = self.family.features(self.model, context.inputs, kind=kind, device=self.device, **cut)
            if found is not None:
                parts.append(found)
                places.append(torch.nonzero(here_L).flatten())
        order = torch.argsort(torch.cat(places)).to(self.device)
        return torch.cat(parts, dim=1)[:, order]

    def hidden(
        self,
        contexts: Sequence[Context],
        token_nT: Tensor | None = None,
        *,
        first: int | None = None,
        cache: Any = None,
        use_cache: bool = False,
    ) -> tuple[Tensor, Any]:
        """Last hidden states of rows that are a context and its answer so far, [n, L, width], and the cache.

        Rows are joined without a gap and filled up on the right, so that no mask is needed: a token sees what is before
        it. What stands beyond a row's end is of no use to anybody.

        Args:
            contexts: of each row. token_nT: [n, T] ids of the answers; None: prompts only.
            first: only so many tokens of each context, all of its media among them.
        """
        lengths = [len(context) if first is None else first for context in contexts]
        answers = 0 if token_nT is None else token_nT.shape[1]
        n, longest = len(contexts), max(lengths) + answers
        ids_nL = torch.zeros(n, longest, dtype=torch.int64)
        position_3nL = torch.zeros(3, n, longest, dtype=torch.int64)
        for i, (context, length) in enumerate(zip(contexts, lengths)):
            ids_nL[i, :length] = context.input_ids_L[:length]
            position_3nL[:, i, :length] = context.position_3L[:, :length]
            if token_nT is not None:
                ids_nL[i, length : length + answers] = token_nT[i].cpu()
                position_3nL[:, i, length : length + answers] = context.response_positions(answers)
        visual_nL = torch.zeros(n, longest, dtype=torch.bool)
        for i, context in enumerate(contexts):  # of the prompts only: answers never hold placeholders
            ids = context.input_ids_L[:first]
            held = self.family.placeholders(self.model.config, ids, context.inputs)
            visual_nL[i, : len(ids)] = torch.stack(list(held.values())).any(0)
        found = {
            context: self.features(context) for context in dict.fromkeys(contexts)
        }  # once, also where it is trained
        features = [found[context] for context in contexts if found[context] is not None]
        return self.language(ids_nL, position_3nL, visual_nL, features, cache=cache, use_cache=use_cache)

    def language(
        self,
        ids_nL: Tensor,
        position_3nL: Tensor,
        visual_nL: Tensor | None = None,
        features: Sequence[Tensor] = (),
        *,
        mask: Tensor | None = None,
        cache: Any = None,
        use_cache: bool = False,
        shared_prompts: SharedPrompts | FlexPrompts | None = None,
    ) -> tuple[Tensor, Any]:
        """The language model on ids [n, L] with visual features at `visual_nL`; [n, L, width] and the cache.

        `mask`: [n, past + L] bool, the keys that exist, or [n, 1, L, past + L], those that each token attends to, bool or
        (eager) what is added to the scores; None: all keys exist.
        `shared_prompts`: what the tokens, then those of answers, attend to before themselves.
        """
        extra: dict[str, Any] = {} if shared_prompts is None else {"shared_prompts": shared_prompts}
        tokens, group = ids_nL.shape[1], self._cut
        if group is not None:
            extra = {"cut": CutText(group, tokens, mask, cache, shared_prompts)}
            filled, mask, cache = group.filled(tokens), None, None
            ids_nL, position_3nL = (group.own(part, -1, filled=filled) for part in (ids_nL, position_3nL))
        with self._precision():
            embeds_nLD = self.model.get_input_embeddings()(ids_nL.to(self.device))
            if features:
                visual_nL = visual_nL.to(self.device)
                level_V = torch.cat(list(features), dim=1).to(embeds_nLD.dtype)
                if group is not None:
                    visual_nL, level_V = own_tokens(group, filled, visual_nL, level_V)
                embeds_nLD = embeds_nLD.masked_scatter(visual_nL[..., None], level_V[0])
                if self.family.deepstack:
                    extra |= {"visual_pos_masks": visual_nL, "deepstack_visual_embeds": list(level_V[1:])}
            found = self.model.model.language_model(
                inputs_embeds=embeds_nLD,
                position_ids=self.family.rotary(position_3nL.to(self.device)),
                attention_mask=mask,
                past_key_values=cache,
                use_cache=use_cache,
                **extra,
            )
            hidden_nLD = found.last_hidden_state
            if group is not None:
                hidden_nLD = group.gathered(hidden_nLD, 1)[:, :tokens]
        return hidden_nLD, found.past_key_values

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., V] of hidden states [..., width]."""
        with self._precision():
            return self.model.lm_head(hidden)

    def token_values(
        self, hidden_TD: Tensor, token_T: Tensor, *, entropy: bool, chunk: int
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities of tokens, and the entropy where they were drawn, float32 [T] each.

        `chunk` places at a time, computed again in the backward pass: the logits of a whole batch never exist at once.
        """
        if self._cut is not None and token_T.numel():
            return self._cut_values(hidden_TD, token_T, self._cut, entropy=entropy, chunk=chunk)
        pieces = list(self._chunks(hidden_TD, token_T, entropy=entropy, chunk=chunk))
        if not pieces:
            return hidden_TD.float().sum(-1), hidden_TD.float().sum(-1) if entropy else None
        logprob_T = torch.cat([logprob for logprob, _ in pieces])
        return logprob_T, torch.cat([e for _, e in pieces]) if entropy else None

    def _cut_values(
        self, hidden_TD: Tensor, token_T: Tensor, group: SequenceGroup, *, entropy: bool, chunk: int
    ) -> tuple[Tensor, Tensor | None]:
        """Each process finds its part, and is told the others'."""
        tokens, filled = len(token_T), group.filled(len(token_T))
        own = (group.own(part, 0, filled=filled) for part in (hidden_TD, token_T))
        parts = list(zip(*self._chunks(*own, entropy=entropy, chunk=chunk)))
        logprob_T, *rest = (None if part[0] is None else group.joined(torch.cat(part), 0)[:tokens] for part in parts)
        return logprob_T, rest[0]

    def _chunks(
        self, hidden_TD: Tensor, token_T: Tensor, *, entropy: bool, chunk: int
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        def of(hidden: Tensor, token: Tensor) -> tuple[Tensor, Tensor | None]:
            logprob_tV = self.distribution.logprobs(self.logits(hidden))
            logprob = logprob_tV.gather(-1, token[:, None])[:, 0]
            if not entropy:
                return logprob, None
            return logprob, -(logprob_tV.exp() * logprob_tV.nan_to_num(neginf=0.0)).sum(-1)

        for hidden, token in zip(hidden_TD.split(chunk), token_T.split(chunk)):
            if not token.numel():
                continue
            yield checkpoint(of, hidden, token, use_reentrant=False) if torch.is_grad_enabled() else of(hidden, token)
