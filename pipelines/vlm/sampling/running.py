"""Answers that are being drawn at the same time: what they have read so far, and who leaves and joins.

n rows   K keys of prompt and answer, room for more behind them   D width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from grpo_mm.pipelines.vlm.forwards.network import Network
from grpo_mm.pipelines.vlm.forwards.prefix_attention import KeysValues, Layer, States, each, keys_held
from grpo_mm.pipelines.vlm.prompt_sharing.shared_forward import read_each, read_prompts
from grpo_mm.pipelines.vlm.prompting.contexts import Context
from grpo_mm.processes.clock import phase

ROOM = 64
"""Keys that there is room for before all are copied; one more at a time would copy them for every token."""
FREE = -1
"""Instead of a request: the place is nobody's."""


@dataclass(frozen=True)
class Running:
    """Rows in places that others take after them. What is of a row: nothing in a free place.

    Keys and values are held once: methods write in place or replace layer by layer, and what they return takes the place of what
    they were called on.
    """

    row_n: Tensor
    """[n] which request each row is, or FREE. On the CPU, like the four that follow."""
    drawn_n: Tensor
    """[n] tokens that it has."""
    prompt_n: Tensor
    """[n] tokens of its prompt."""
    most_n: Tensor
    """[n] tokens of its prompt and of its answer at its longest."""
    start_n: Tensor
    """[n] rotary position of its first token."""
    hidden_nD: Tensor
    """What its next token is drawn from."""
    layers: list[Layer]
    """A row's keys stand side by side from the first on; a state is that after its last token."""

    @property
    def live(self) -> Tensor:
        """Places of rows."""
        return torch.nonzero(self.row_n != FREE).flatten()

    @property
    def keys_n(self) -> Tensor:
        return self.prompt_n + self.drawn_n

    def without(self, ended: Tensor) -> Running:
        """Places [m] become free."""
        row_n, *counts = (count_n.index_fill(0, ended, 0) for count_n in self._counts())
        return Running(row_n.index_fill(0, ended, FREE), *counts, self.hidden_nD, self.layers)

    def only(self, here: Tensor) -> Running:
        """Some of the places; costs a copy of their keys."""
        there = here.to(self.hidden_nD.device)
        kept = Running(*(count_n[here] for count_n in self._counts()), self.hidden_nD[there], self.layers)
        for layer, parts in enumerate(self.layers):
            if isinstance(parts, States):
                self.layers[layer] = each(parts, lambda part: part[there])
            else:
                self.layers[layer] = each(parts, lambda part: part[there, :, : kept.wanted_room()])
        return kept

    def joined(self, other: Running) -> Running:
        """The others in free places, and in new ones if these do not suffice; free places that are left over go."""
        free = torch.nonzero(self.row_n == FREE).flatten()
        if len(free) > len(other.row_n):
            return self.only(torch.cat([self.live, free[: len(other.row_n)]])).joined(other)
        into = torch.cat([free, len(self.row_n) + torch.arange(len(other.row_n) - len(free))])
        more, there = len(into) - len(free), into.to(self.hidden_nD.device)
        counts = (
            pad(count_n, (0, more)).index_copy(0, into, new_m)
            for count_n, new_m in zip(self._counts(), other._counts())
        )
        hidden_nD = pad(self.hidden_nD, (0, 0, 0, more)).index_copy(0, there, other.hidden_nD)
        both = Running(*counts, hidden_nD, self.layers)
        wide, longest = both.wanted_room(), int(other.keys_n.max())
        for layer, parts in enumerate(self.layers):
            if isinstance(parts, States):
                whole = (part.new_zeros(len(part) + more, *part.shape[1:]) for part in parts)
                self.layers[layer] = States(
                    *(_replaced(w, p, there, n) for w, p, n in zip(whole, parts, other.layers[layer]))
                )
                continue
            if more or wide > self.room(layer):
                parts = tuple(_sized(part, more, wide) for part in parts)
            for part_nhKd, new_mhKd in zip(parts, other.layers[layer]):
                part_nhKd[there, :, :longest] = new_mhKd[:, :, :longest]
            self.layers[layer], other.layers[layer] = parts, ()
        return both

    def _counts(self) -> tuple[Tensor, ...]:
        return self.row_n, self.drawn_n, self.prompt_n, self.most_n, self.start_n

    def room(self, layer: int) -> int:
        return keys_held([self.layers[layer]])

    def wanted_room(self) -> int:
        """Keys to make room for where they are copied anyway."""
        return min(int(self.keys_n.max()) + ROOM, int(self.most_n.max()))

    def after(self, network: Network, token_n: Tensor) -> Running:
        """One token further."""
        wide = int(self.keys_n.max()) + 1
        keys_n, position_n = torch.stack([self.keys_n, self.start_n + self.drawn_n]).to(network.device)
        mask = torch.arange(wide, device=network.device) <= keys_n[:, None]
        if network.attention == "sdpa":  # which looks into a mask of two dimensions, and waits for the device
            mask = mask[:, None, None]
        cache = _Behind(self, keys_n, wide)
        position_3n1 = position_n.expand(3, -1)[..., None]
        hidden_n1D, _ = network.language(token_n[:, None], position_3n1, mask=mask, cache=cache)
        return replace(self, drawn_n=self.drawn_n + (self.row_n != FREE), hidden_nD=hidden_n1D[:, -1])


@dataclass(frozen=True)
class _Behind:
    """A cache that puts one key of each row behind those it has."""

    running: Running
    keys_n: Tensor
    wide: int
    """Keys of the row that has most, the new one included."""

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object) -> KeysValues:
        layers, row_n = self.running.layers, torch.arange(len(keys), device=keys.device)
        if self.wide > self.running.room(layer):
            layers[layer] = tuple(_sized(part, 0, self.running.wanted_room()) for part in layers[layer])
        for known, new in zip(layers[layer], (keys, values)):
            known[row_n, :, self.keys_n] = new[:, :, 0].to(known.dtype)
        known_keys, known_values = layers[layer]
        return known_keys[:, :, : self.wide], known_values[:, :, : self.wide]

    def get_conv_state(self, layer: int, **_: int) -> Tensor:
        return self.running.layers[layer].conv

    def get_recurrent_state(self, layer: int, **_: int) -> Tensor:
        return self.running.layers[layer].recurrent

    def is_recording_past(self, layer: int) -> bool:
        return True

    def update_conv_state(self, inputs: Tensor, layer: int, **_: Any) -> Tensor:
        known = self.running.layers[layer]
        whole = torch.cat([known.conv.to(inputs.dtype), inputs], dim=-1)
        self.running.layers[layer] = known._replace(conv=whole[..., -known.conv.shape[-1] :])
        return whole

    def update_recurrent_state(self, state: Tensor, layer: int, **_: Any) -> Tensor:
        self.running.layers[layer] = self.running.layers[layer]._replace(recurrent=state)
        return state

    def get_query_offset(self, layer: int = 0) -> int:
        return self.wide - 1

    def get_seq_length(self, layer: int = 0) -> int:
        return self.wide - 1

    def get_mask_sizes(self, query_length: int, layer: int = 0) -> tuple[int, int]:
        return self.wide, 0


def begun(network: Network, row_n: Tensor, contexts: Sequence[Context], *, max_new_tokens: int) -> Running:
    """Rows whose prompts, `contexts` of each, have been read: a prompt once, and once what several begin with."""
    with phase("prefill_network"):
        if network.shares_prefill:
            prompts = read_prompts(network, list(dict.fromkeys(contexts)))
            place_n = torch.tensor([prompts.contexts.index(context) for context in contexts])
        else:
            prompts, place_n = read_each(network, contexts), torch.arange(len(contexts))
    there, prompt_n = place_n.to(network.device), torch.tensor([len(context) for context in contexts])
    return Running(
        row_n,
        torch.zeros_like(row_n),
        prompt_n,
        prompt_n + max_new_tokens,
        torch.stack([context.response_positions(1)[0, 0] for context in contexts]),
        prompts.last_cD[there],
        [each(layer, lambda part: part[there]) for layer in prompts.layers],
    )


def _replaced(whole: Tensor, part: Tensor, there: Tensor, new: Tensor) -> Tensor:
    """`part`, then at the places `there` what is new, written into `whole`."""
    whole[: len(part)] = part
    whole[there] = new.to(whole.dtype)
    return whole


def _sized(part_nhKd: Tensor, more: int, wide: int) -> Tensor:
    """A copy with `more` places and room for `wide` keys in each."""
    part_nhKd = part_nhKd[:, :, :wide]
    return pad(part_nhKd, (0, 0, 0, wide - part_nhKd.shape[2], 0, 0, 0, more))
