"""Twelve mistakes of engines that draw answers: each is found, and named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from tiny_vlm import change, clip, picture, policy, rows_of

from grpo_mm.findings import as_table, first_difference
from grpo_mm.pipelines.vlm.engine import VlmEngine
from grpo_mm.pipelines.vlm.models.adapters import Lora
from grpo_mm.pipelines.vlm.prompting.chat import Chat
from grpo_mm.pipelines.vlm.sampling.generation import HfGenerator
from grpo_mm.pipelines.vlm.suspects import adapter_scaled, having
from grpo_mm.types import Prompt

PROMPTS = (
    Prompt("late", "when", media=(clip(8, fps=0.2, seed=6),)),
    Prompt("still", "what is red", media=(picture(56, 56),)),
)
SYSTEM = "the red circle"


@dataclass
class Faulty:
    """The reference generator with a mistake; says what it read, as engines do."""

    mistake: Callable
    """(network, requests, draw, generate) → what it gives."""

    def check(self):
        pass

    def generate(self, network, requests, draw):
        def generate(network, requests, draw):
            made = HfGenerator().generate(network, requests, draw)
            return replace(made, prompt_ids=tuple(request.context.input_ids_L for request in requests))

        return self.mistake(network, requests, draw, generate)


def found(mistake, **settings):
    p = policy(temperature=0.7, chat=Chat(system=SYSTEM), **settings)
    change(p, scale=0.3)
    generator = Faulty(mistake(p))
    before = {name: value.detach().clone() for name, value in p.trainable.items()}
    findings = list(VlmEngine(max_new_tokens=6, generator=generator).examine(p, rows_of(PROMPTS, 8), seed=0))
    assert all(torch.equal(before[name], value) for name, value in p.trainable.items())
    return findings


def none(p):
    return lambda network, requests, draw, generate: generate(network, requests, draw)


def stale(p):
    old = copy.copy(p.network)
    old.model = copy.deepcopy(p.model)
    old._features, old._latest = type(p.network._features)(), type(p.network._latest)()
    return lambda network, requests, draw, generate: generate(old, requests, draw)


def around(change_of):
    """A mistake that is a change of the network while it draws."""

    def mistake(p):
        def draws(network, requests, draw, generate):
            with change_of(p, network):
                return generate(network, requests, draw)

        return draws

    return mistake


def temperature_twice(p):
    return lambda network, requests, draw, generate: generate(
        network, requests, replace(draw, temperature=draw.temperature**2)
    )


def no_forbidden(p, network):
    nothing = torch.zeros_like(network.distribution.forbidden_V)
    return having(network, distribution=replace(network.distribution, forbidden_V=nothing))


def with_contexts(of):
    def mistake(p):
        def draws(network, requests, draw, generate):
            return generate(network, [replace(r, context=of(p, r.context)) for r in requests], draw)

        return draws

    return mistake


def by_other_rule(p, context):
    from grpo_mm.pipelines.vlm.suspects import _by_the_other_rule

    return _by_the_other_rule(p, context)


def resized(p, context):
    prompt = next(prompt for prompt in PROMPTS if prompt.id == context.prompt_id)
    if prompt.id == "still":
        prompt = replace(prompt, media=(picture(28, 56),))
    return p.encode(prompt)


def without_system(p, context):
    prompt = next(prompt for prompt in PROMPTS if prompt.id == context.prompt_id)
    whole = p.encode(prompt)
    ids = whole.input_ids_L.tolist()
    ends = ids.index(p.processor.tokenizer.convert_tokens_to_ids("<|im_end|>"))
    start = next(i for i in range(ends + 1, len(ids)) if p.processor.tokenizer.decode([ids[i]]) == "<|im_start|>")
    return cut_from(whole, start)


def truncated(p, context):
    return cut_from(context, 3)


def cut_from(context, start):
    inputs = dict(context.inputs)
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = inputs["mm_token_type_ids"][:, start:]
    return replace(
        context,
        input_ids_L=context.input_ids_L[start:],
        position_3L=context.position_3L[:, start:] - start,
        inputs=inputs,
    )


def one_seed(p):
    def draws(network, requests, draw, generate):
        states = {r.context: r.stream.get_state() for r in reversed(requests)}
        again = []
        for r in requests:
            generator = torch.Generator()
            generator.set_state(states[r.context])
            again.append(replace(r, stream=generator))
        return generate(network, again, draw)

    return draws


def ema(p):
    p.snapshots.take("ema")
    change(p, scale=0.3, seed=5)

    def draws(network, requests, draw, generate):
        with p.snapshots.use("ema"):
            return generate(network, requests, draw)

    return draws


def before_temperature(p):
    def draws(network, requests, draw, generate):
        made = generate(network, requests, draw)
        rows = torch.nonzero(made.length_N > 0).flatten()
        plain = replace(network.distribution, temperature=1.0)
        from grpo_mm.pipelines.vlm.prompting.record import TextRecord

        contexts = tuple(dict.fromkeys(r.context for r in requests))
        record = TextRecord(
            contexts, torch.tensor([contexts.index(r.context) for r in requests]), made.token_NA, made.length_N
        )
        value_NA = made.logprob_NA.clone()
        with having(network, distribution=plain):
            parts = p.replay.forwards(record, rows)
            for (values, _), part in zip(p.replay.values(record, parts, entropy=False, grad=False, charge="t"), parts):
                value_NA[part] = values
        return replace(made, logprob_NA=value_NA)

    return draws


MISTAKES = {
    "stale weights": (stale, "weights changed", "before the last change"),
    "temperature twice": (temperature_twice, "log-probability", "temperature acts twice"),
    "missing forbidden token": (around(no_forbidden), "log-probability", "never drawn"),
    "other resize": (with_contexts(resized), "tokens of prompts", "another resize"),
    "positions of another rule": (with_contexts(by_other_rule), "log-probability", "rule of positions"),
    "LoRA scale": (around(lambda p, network: adapter_scaled(p, 2.0)), "log-probability", "adapter acts twice"),
    "dropped system prompt": (with_contexts(without_system), "tokens of prompts", "lost its system turn"),
    "wrong dtype": (around(lambda p, network: having(network, autocast=torch.bfloat16)), "log-probability", "bfloat16"),
    "prompt truncated": (with_contexts(truncated), "tokens of prompts", "truncated"),
    "seeds shared by rows": (one_seed, "answers are all one", "share a seed"),
    "EMA instead of present weights": (ema, "log-probability", "'ema'"),
    "log-probs before temperature": (before_temperature, "log-probability", "before the temperature"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found_and_named(name):
    mistake, where, cause = MISTAKES[name]
    settings = {"lora": Lora(rank=4, alpha=8)} if name == "LoRA scale" else {}
    first = first_difference(found(mistake, **settings))
    assert first is not None and where in first.name and cause in first.cause, first


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_the_reference_generator_has_none_of_them(family):
    p = policy(family, temperature=0.7)
    change(p, scale=0.3)
    findings = list(VlmEngine(max_new_tokens=6).examine(p, rows_of(PROMPTS, 8), seed=0))
    assert first_difference(findings) is None, as_table(findings)
    assert len(findings) >= 10 and "DIFFERS" not in as_table(findings)
