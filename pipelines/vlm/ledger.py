"""The ledger of a vision-language run: its own forwards, on a model of its own class without numbers, counted byte by byte."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from grpo_mm.ledger.counting import AsOnDevice, Counter, windowed_attention
from grpo_mm.ledger.entries import Entry, Ledger, Phase, Plan, cut_rows, swapped
from grpo_mm.ledger.quantized import bytes_read, count_of, said_of
from grpo_mm.ledger.state import bytes_of, of_forward, of_optimiser, of_training
from grpo_mm.pipelines.vlm import seen as sizes
from grpo_mm.pipelines.vlm.counted_experts import adapted_experts
from grpo_mm.pipelines.vlm.counted_layers import by_pattern
from grpo_mm.pipelines.vlm.forwards import cascade
from grpo_mm.pipelines.vlm.forwards.counted_scan import counted
from grpo_mm.pipelines.vlm.forwards.packing import pack
from grpo_mm.pipelines.vlm.forwards.prefix_attention import install
from grpo_mm.pipelines.vlm.models.families import family_of
from grpo_mm.pipelines.vlm.models.known import known_config
from grpo_mm.pipelines.vlm.models.loading import Loaded
from grpo_mm.pipelines.vlm.policy import DTYPES, VlmPolicy, VlmPolicyConfig
from grpo_mm.pipelines.vlm.prompting.contexts import Context
from grpo_mm.pipelines.vlm.prompting.record import TextRecord
from grpo_mm.pipelines.vlm.sampling.generation import HfGenerator, pick
from grpo_mm.pipelines.vlm.sampling.running import begun

SECONDS_A_LAYER = {False: 0.9e-3, True: 1.9e-3}
"""Without and with LoRA: what starting the kernels of one layer for one token took in processor time, measured at 28 layers."""
FEWER_TOKENS = "policy.micro_batch, policy.gradient_checkpointing=true, fewer frames or pixels (policy.media.sampling)"


def vlm_ledger(policy: VlmPolicyConfig, engine: Any, plan: Plan, *, seen: sizes.Seen | None = None) -> Ledger:
    """`seen`: what a prompt is known to be; None: assumed from the settings.

    Raises:
        ConfigError: a checkpoint that is neither here nor of a known size.
    """
    config, source = known_config(policy.path)
    if family_of(
        config.model_type, path=policy.path
    ).recurrent:  # its prompts are read one by one, layer by layer: minutes
        return by_pattern(lambda cut: _of_config(policy, engine, plan, cut, source, seen), config)
    return _of_config(policy, engine, plan, config, source, seen)


def _of_config(
    policy: VlmPolicyConfig, engine: Any, plan: Plan, config: Any, source: str, seen: sizes.Seen | None
) -> Ledger:
    net = _without_numbers(policy, config, plan.kind)
    seen = seen or sizes.assumed(policy, config, plan)
    family = net.loaded.family
    said = [
        f"sizes of {source}",
        *family.said(adapter=net.wrapped is not None, experts=policy.lora is not None and policy.lora.experts),
        f"a prompt: {seen.said}: {seen.visual} visual tokens and {seen.text} of text",
    ]
    contexts = sizes.contexts(seen, config, plan.prompts)
    with AsOnDevice(), counted(net.model), adapted_experts():
        return _counted(net, engine, plan, contexts, said)


def _without_numbers(policy: VlmPolicyConfig, config: Any, kind: str) -> VlmPolicy:
    """The policy as it loads, on the meta device; whole numbers stay on the CPU, where its code reads them."""
    from transformers import AutoModelForImageTextToText

    full, flex = policy.lora is None, policy.attention == "flex_attention"
    attention = "sdpa" if flex or policy.attention.startswith("flash") else policy.attention
    with torch.device("meta"):
        dtype = torch.float32 if full else DTYPES[policy.dtype]
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attention)
    family = family_of(config.model_type, path=policy.path)
    if family.tower_has_windows:
        _windows_at_once(model)
    loaded = Loaded(model, None, family, (), frozenset(), 0)
    made = VlmPolicy.of_model(replace(policy, merge_adapter=None, compile=False), loaded, torch.device("meta"))
    made.network.device = torch.device("cpu")
    if kind == "cpu" and made.network.attention == "sdpa" and not made.network.recurrent:
        text = model.config.get_text_config()
        install(text, cascade.NAME, cascade.attend_answers)
        made.network.attention = text._attn_implementation
    return made


def _windows_at_once(model: Any) -> None:
    """The tower's attention in one call a layer: thousands of windows take their time even without numbers."""
    from transformers import AttentionInterface

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, cu_seq_lens_q: Tensor, **__: Any
    ) -> tuple[Tensor, None]:
        return windowed_attention(query, key, value, cu_seq_lens_q.diff()), None

    vision = model.config.vision_config
    if vision._attn_implementation == "sdpa":
        name = "flash_counted"  # what says flash is handed all windows
        AttentionInterface.register(name, attention)
        vision._attn_implementation = name


def _counted(made: VlmPolicy, engine: Any, plan: Plan, contexts: list[Context], said: list[str]) -> Ledger:
    model, replay = made.model, made.replay
    trained = sum(p.numel() for p in made.trainable.values())
    size = bytes_of(made.trainable.values())
    record = _record(contexts, plan.group_size, engine.max_new_tokens)
    replay.sharing = "on" if replay.shares(record) else "off"
    compute = str(made.dtype).removeprefix("torch.")
    tower, features, tower_flops = _tower(made, contexts, plan.kind)
    update, train_flops = _update(made, record, plan, size)
    whole = _whole_hidden(made, record)
    phases, flops = (
        [cut_rows(update, plan.sequence, whole=whole), of_optimiser(model, plan)],
        {"train": train_flops / plan.sequence},
    )
    if plan.sequence > 1:
        said.append(
            f"activations of training are those of a {plan.sequence}th of each row (distributed.sequence); answers are drawn whole"
        )
    value, copies, value_flops = _values(made, record)
    weights = partial(of_forward, model, compute, size=made.dtype.itemsize)
    micro = ("policy.micro_batch", made.replay.micro_batch)
    others = [name for name in ("ref", "old", "ema") if plan.calls.get(name)]
    if others:
        parts = (swapped(size), *weights(copies=copies), Entry("activations", value))
        phases.append(cut_rows(Phase("reference pass", parts, FEWER_TOKENS, micro), plan.sequence, whole=whole))
    for name in ("value", *others):
        flops[name] = value_flops * plan.calls.get(name, 0) / max(1, plan.rows)
    token_steps = token_bytes = 0.0
    if isinstance(engine.generator, HfGenerator):
        rows = _at_once(engine, [len(c) + engine.max_new_tokens for c in _of_rows(record)])
        drawn, prefill_flops, keys = _drawing(made, record, rows, engine.max_new_tokens)
        phases.append(drawn)
        flops["prefill"] = prefill_flops * plan.calls.get("rollout", plan.rows) / max(1, plan.rows)
        token_steps = -(-plan.calls.get("rollout", plan.rows) // max(1, rows)) * engine.max_new_tokens
        token_bytes = keys / 2 + bytes_read(model, rows, size=2 if made.dtype == torch.bfloat16 else 4)
    else:
        said.append(f"the generator {type(engine.generator).__name__} keeps its own memory, which is in no line")
    flops["tower"] = tower_flops * plan.prompts
    resident = of_training("weights", model, plan)
    if made.network.tower_is_frozen and features:
        resident += (Entry("visual features of a step's prompts", features * plan.prompts, compute, split="rows"),)
    phases.append(tower)
    pixels = sum(t.numel() * 4 for t in contexts[0].inputs.values() if t.is_floating_point()) * plan.prompts
    if pixels:
        place = "device" if plan.kind == "cpu" else "host"
        resident += (Entry("pixels of a step's prompts", pixels, "float32", place=place, split="rows"),)
    layers = model.config.get_text_config().num_hidden_layers
    return Ledger(
        resident, tuple(phases), flops, token_steps, token_bytes, layers * SECONDS_A_LAYER[made.wrapped is not None],
        low_precision=made.dtype == torch.bfloat16, trained=trained,
        weights=count_of(model) - (trained if made.wrapped is not None else 0), said=(*said, *said_of(model)),
        devices=plan.devices, can_shard=made.config.quantize is None,
    )  # fmt: skip


def _record(contexts: list[Context], group_size: int, length: int) -> TextRecord:
    """Every answer at its longest."""
    context_N = torch.arange(len(contexts)).repeat_interleave(group_size)
    rows = len(context_N)
    return TextRecord(tuple(contexts), context_N, torch.full((rows, length), 7), torch.full((rows,), length))


def _whole_hidden(made: VlmPolicy, record: TextRecord) -> int:
    """Bytes of what goes into and comes out of the language model in one forward, where each process has a part of what is between."""
    rows = made.replay.forwards(record, torch.arange(len(record.length_N)))[0]
    contexts = record.context_N[rows]
    read = contexts.unique() if made.replay.sharing == "on" else contexts
    tokens = sum(len(record.contexts[c]) for c in read.tolist()) + int(record.length_N[rows].sum())
    return 2 * tokens * made.model.config.get_text_config().hidden_size * made.dtype.itemsize


def _of_rows(record: TextRecord) -> list[Context]:
    return [record.contexts[c] for c in record.context_N.tolist()]


def _at_once(engine: Any, length_N: list[int]) -> int:
    """Rows that are drawn together."""
    generator = engine.generator
    return len(next(iter(pack(length_N, most=generator.batch, most_tokens=generator.batch_tokens))))


def _tower(made: VlmPolicy, contexts: list[Context], kind: str) -> tuple[Phase, int, float]:
    """(the tower over one prompt's media, bytes of its features, its operations). The features then stand for those of all
    contexts: all are of one size."""
    pixels = [t for t in contexts[0].inputs.values() if t.is_floating_point()]
    with Counter() as counter, torch.no_grad():
        found = made.network.features(contexts[0])
        peak, copies, kept = counter.peak, counter.copies, 0 if found is None else bytes_of([found])
    if found is not None:
        for context in contexts:
            made.network._features[context] = found
    there = sum(t.numel() * t.element_size() for t in pixels) if kind != "cpu" else 0
    weights = of_forward(made.model, str(made.dtype).removeprefix("torch."), size=made.dtype.itemsize, copies=copies)
    parts = (*weights, Entry("activations", peak - copies), Entry("pixels of a prompt", there, "float32"))
    return Phase("vision tower", parts, "fewer frames or pixels"), kept, counter.flops


def _update(made: VlmPolicy, record: TextRecord, plan: Plan, size: int) -> tuple[Phase, float]:
    """(forward and backward of the fullest forwards of one update, operations of a step's training)."""
    replay, rows = made.replay, torch.arange(len(record.length_N))
    per_update = rows[: max(plan.group_size, len(rows) // max(1, plan.updates))]
    parts = replay.forwards(record, per_update)
    several = len(parts) > 1
    shown = [part for part in parts if record.context_N[part].unique().equal(record.context_N[parts[0]].unique())][:2]
    if not made.network.tower_is_frozen:
        made.network._features.clear()
    with _gradients(made, there=several), Counter() as counter:
        done, at = 0, []
        for logprob_nA, _ in replay.values(record, shown, entropy=False, grad=True, charge="train_network"):
            logprob_nA.sum().backward()
            done += len(shown[len(at)])
            at.append(counter.flops)
            del logprob_nA
        peak, copies, flops = counter.peak, counter.copies, counter.flops
    activations = max(0, peak - copies - (0 if several else size))
    if len(shown) > 1 and made.replay.sharing == "on":  # of a prompt once, of its parts each
        again, prompts = at[1] - at[0], int(record.context_N.max()) + 1
        step = prompts * (flops - 2 * again) + again * len(rows) / len(shown[1])
    else:
        step = flops * len(rows) / max(1, done)
    step *= plan.calls.get("train", plan.rows) / max(1, plan.rows)
    compute = str(made.dtype).removeprefix("torch.")
    weights = of_forward(made.model, compute, size=made.dtype.itemsize, copies=copies, gradients=size)
    setting = ("policy.micro_batch", replay.micro_batch)
    return Phase("update", (*weights, Entry("activations", activations)), FEWER_TOKENS, setting), step


@contextmanager
def _gradients(made: VlmPolicy, *, there: bool) -> Iterator[None]:
    """Gradients of earlier forwards, which later ones are added to."""
    for p in made.trainable.values():
        p.grad = torch.empty_like(p) if there else None
    try:
        yield
    finally:
        for p in made.trainable.values():
            p.grad = None


def _values(made: VlmPolicy, record: TextRecord) -> tuple[int, int, float]:
    """(activations of a pass without gradient, weights that autocast casts, operations of such a pass over the whole record)."""
    rows = torch.arange(len(record.length_N))
    part = made.replay.forwards(record, rows)[0]
    with Counter() as counter, torch.no_grad():
        for _ in made.replay.values(record, [part], entropy=False, grad=False, charge="ref_network"):
            pass
    return counter.peak - counter.copies, counter.copies, counter.flops * len(rows) / len(part)


def _drawing(made: VlmPolicy, record: TextRecord, rows: int, length: int) -> tuple[Phase, float, int]:
    """(reading the prompts of the rows that are drawn at once and their last token, operations of a step's prefill, keys)."""
    contexts = _of_rows(record)[:rows]
    with Counter() as counter, torch.no_grad():
        running = begun(made.network, torch.arange(rows), contexts, max_new_tokens=length)
        flops = counter.flops
        late = replace(running, drawn_n=torch.full((rows,), max(0, length - 2)), layers=running.layers)
        del running
        if length > 1:
            late = late.after(made.network, torch.full((rows,), 7))
        keys, late_dtype = sum(bytes_of(layer) for layer in late.layers), late.layers[0][0].dtype
        logprob_nV = made.network.distribution.logprobs(made.network.logits(late.hidden_nD))
        pick(logprob_nV, torch.zeros(rows, dtype=torch.float64), torch.zeros(rows, dtype=torch.bool), top_p=0.9)
        peak, copies = counter.peak, counter.copies
    dtype = str(late_dtype).removeprefix("torch.")
    compute = str(made.dtype).removeprefix("torch.")
    weights = of_forward(made.model, compute, size=made.dtype.itemsize, copies=copies)
    narrow = keys * made.dtype.itemsize // late_dtype.itemsize  # weights that are gathered in this dtype make such keys
    entries = (
        *weights,
        Entry("keys and values", keys, dtype, when="replicated"),
        Entry("keys and values", narrow, compute, when="sharded"),
        Entry("activations", max(0, peak - copies - keys)),
    )
    distinct = len(dict.fromkeys(contexts))
    phase = Phase(
        "drawing answers", entries, "engine.generator.batch or batch_tokens", ("engine.generator.batch", rows)
    )
    return phase, flops / distinct * len(record.contexts), keys
