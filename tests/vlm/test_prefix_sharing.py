"""A prompt that its answers share gives the log-probabilities and gradients of a prompt repeated for each."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_vlm import FAMILIES, PROMPTS, change, clip, each_family, policy, sample

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.vlm.forwards import cascade, lines
from grpo_mm.pipelines.vlm.models.adapters import Lora
from grpo_mm.pipelines.vlm.prompt_sharing.shared_forward import answer_hidden, read_prompts
from grpo_mm.processes.rng import stream
from grpo_mm.types import Prompt, Rollout

LATE = Prompt("late", "when", media=(clip(8, fps=0.2, seed=6),))
"""Its clock runs ahead of the text after it."""
LENGTHS = (8, 3, 1, 8, 0, 5, 2, 8, 4, 7, 6, 1, 1, 1, 8, 2, 3, 0)
"""Of three answers to each of six prompts: an empty one, one token alone, a group in which nothing follows the first token."""


def ragged(p, prompts=(*PROMPTS[:5], LATE)) -> Rollout:
    """Answers of random tokens, groups of different sizes; the last row of two groups is left out."""
    rollout, _ = sample(p, prompts)
    length_N = torch.tensor(LENGTHS[: rollout.num_rows])
    inside_NA = torch.arange(8) < length_N[:, None]
    record = replace(rollout.record, length_N=length_N, token_NA=rollout.record.token_NA.where(inside_NA, 0))
    short = rollout.record.token_NA == 0
    record = replace(record, token_NA=torch.where(short & inside_NA, 40, record.token_NA))
    rollout = replace(rollout, record=record, mask_NA=inside_NA)
    return rollout.take(torch.tensor([n for n in range(rollout.num_rows) if n not in (3, 8)]))


def trained(p, rollout: Rollout, weight_NA=None, needs=("logprobs",)):
    """(the named values [N, A], the gradient of their weighted sum by parameter)."""
    shape = rollout.mask_NA.shape
    weight_NA = torch.randn(shape, generator=stream(0, "weight")) if weight_NA is None else weight_NA
    found = {name: torch.zeros(shape) for name in needs}
    plan = p.plan(rollout, rollout.mask_NA)
    for index, values in p.logprobs(rollout, plan, needs=frozenset(needs), grad=True):
        for name in needs:
            found[name].view(-1)[index] = values[name].detach().cpu()
        weight = (weight_NA * rollout.mask_NA).flatten()[index].to(p.device)
        sum((values[name] * weight).sum() for name in needs).backward()
    gradient = {name: v.grad.cpu() for name, v in p.trainable.items() if v.grad is not None}
    for value in p.trainable.values():
        value.grad = None
    return found, gradient


MOST = 5e-5
"""A hundred ulps of the logits; what is wrong differs by hundredths."""


def assert_equal(found, wanted, *, most=MOST):
    for name, value in wanted[0].items():
        assert torch.allclose(found[0][name], value, rtol=0, atol=most), name
    assert found[1].keys() == wanted[1].keys()
    for name, value in wanted[1].items():
        difference = float((found[1][name] - value).abs().max())
        assert difference <= most * max(1.0, float(value.abs().max())), (name, difference)


FORMS = ("cascade", "masked", "rows", "eager")
"""Two calls put together (SDPA on a CPU), one call with a mask (SDPA elsewhere), one line for each row, the library's eager."""


def form_of(p, form: str):
    """The policy with its answers' attention in one of the forms."""
    if form in ("masked", "rows"):
        p.model.config.get_text_config()._attn_implementation = p.network.attention = "sdpa"
    return p


@pytest.fixture(params=FORMS)
def form(request, monkeypatch) -> str:
    if request.param == "rows":
        monkeypatch.setattr(lines, "one_text_each", lambda *_: True)
    return request.param


@each_family
def test_values_and_all_gradients_are_those_of_repeated_prompts(family, form):
    """Pictures, several of them, clips with a time scale, both, and text alone, in one forward."""
    settings = {"attention": "eager" if form == "eager" else "sdpa", "train_tower": True, "micro_batch": 99}
    once, again = (policy(family, prefix_sharing=sharing, **settings) for sharing in ("on", "off"))
    rollout = ragged(form_of(once, form), (*PROMPTS[1:], LATE) if family == "qwen2_5_vl" else PROMPTS)
    needs = ("logprobs", "entropy")
    wanted = trained(again, rollout, needs=needs)
    assert len(wanted[1]) > 60 and all(float(g.abs().max()) > 1e-3 for n, g in wanted[1].items() if "lm_head" not in n)
    assert_equal(trained(once, rollout, needs=needs), wanted)


CUTS = {
    "one answer": {"micro_batch": 1},
    "two answers": {"micro_batch": 2},
    "by tokens": {"micro_batch": 99, "micro_batch_tokens": 60},
    "checkpoints": {"micro_batch": 99, "gradient_checkpointing": True},
    "checkpoints and parts": {"micro_batch": 2, "gradient_checkpointing": True, "head_chunk": 3},
}


EACH_CUT = [
    (family, cut) for family in FAMILIES for cut in CUTS if family == "qwen2_5_vl" or cut == "checkpoints and parts"
]
"""Every cut of one family, and of the others the one that has most in it."""


@pytest.mark.parametrize(("family", "cut"), EACH_CUT)
def test_parts_with_a_backward_pass_each_give_the_gradient_of_the_whole(family, cut):
    whole = policy(family, train_tower=True, prefix_sharing="on", micro_batch=99)
    parts = policy(family, train_tower=True, prefix_sharing="on", **CUTS[cut])
    rollout = ragged(whole)
    assert len(whole.plan(rollout, rollout.mask_NA)) == 1
    assert_equal(trained(parts, rollout), trained(whole, rollout))


def test_the_first_token_alone_trains_the_prompt():
    rollout = ragged(policy())
    weight_NA = torch.zeros(rollout.mask_NA.shape)
    weight_NA[:, 0] = torch.linspace(-1, 1, rollout.num_rows)
    wanted = trained(policy(prefix_sharing="off", train_tower=True), rollout, weight_NA)
    assert float(wanted[1]["model.visual.blocks.0.attn.qkv.weight"].abs().max()) > 1e-3
    for most in (99, 1):
        found = trained(policy(prefix_sharing="on", train_tower=True, micro_batch=most), rollout, weight_NA)
        assert_equal(found, wanted)


@each_family
def test_another_answer_changes_nothing_not_even_by_rounding(family, form):
    p = policy(family, attention="eager" if form == "eager" else "sdpa", prefix_sharing="on", micro_batch=99)
    p = form_of(p, form)
    rollout = ragged(p)
    row, length = next((n, k) for n, k in enumerate(rollout.record.length_N.tolist()) if k > 4)
    token_NA = rollout.record.token_NA.clone()
    token_NA[row, :length] = 50 + torch.arange(length)
    other = replace(rollout, record=replace(rollout.record, token_NA=token_NA))
    before, after = (trained(p, r)[0]["logprobs"] for r in (rollout, other))
    rest = torch.arange(rollout.num_rows) != row
    assert torch.equal(before[rest], after[rest])
    assert float((before[row] - after[row])[1:length].abs().max()) > 1e-2


@each_family
def test_positions_are_those_of_the_library_for_every_prompt_with_its_answer(family):
    p = policy(family, prefix_sharing="on", micro_batch=99)
    rollout = ragged(p, (*PROMPTS[1:], LATE))
    given = []
    p.model.model.language_model.register_forward_pre_hook(
        lambda _, __, call: given.append(call["position_ids"]), with_kwargs=True
    )
    trained(p, rollout)
    prompts_3cL, answers_3cT = given
    start = [0] * len(rollout.record.contexts)
    for row, length in enumerate(rollout.record.length_N.tolist()):
        number = int(rollout.record.context_N[row])
        context, more = rollout.record.contexts[number], max(0, length - 1)
        inputs = {k: v for k, v in context.inputs.items() if k != "mm_token_type_ids"}
        ids = torch.cat([context.input_ids_L, rollout.record.token_NA[row, :more]])[None]
        types = torch.cat([context.inputs["mm_token_type_ids"], torch.zeros(1, more, dtype=torch.int64)], dim=1)
        library, _ = p.model.model.get_rope_index(input_ids=ids, mm_token_type_ids=types, **inputs)
        found = answers_3cT[:, number, start[number] : start[number] + more]
        start[number] += more
        assert torch.equal(torch.cat([prompts_3cL[:, number, : len(context)], found], dim=1), library[:, 0])
    assert answers_3cT.shape[2] == max(start)


def test_as_many_tokens_go_through_the_network_as_there_are():
    """Lp + Σ(L - 1): the last token of an answer predicts nothing that is trained."""
    p = policy(prefix_sharing="on", micro_batch=99)
    rollout, _ = sample(p, PROMPTS[:1], group_size=5)
    tokens = []
    p.model.model.language_model.layers[0].mlp.register_forward_hook(
        lambda _, __, out: tokens.append(out[..., 0].numel())
    )
    trained(p, rollout)
    answers = rollout.record.length_N.tolist()
    assert tokens == [len(rollout.record.contexts[0]), sum(answers) - 5]


@pytest.mark.parametrize("settings", [{}, {"micro_batch": 1}, {"gradient_checkpointing": True}], ids=str)
def test_adapters_learn_the_same(settings):
    def made(sharing, **more):
        p = policy(lora=Lora(rank=2), prefix_sharing=sharing, **more)
        change(p, scale=0.02)
        return p

    rollout = ragged(policy())
    assert_equal(trained(made("on", **settings), rollout), trained(made("off"), rollout))


@pytest.mark.parametrize("settings", [{"lora": Lora(rank=4)}, {}, {"gradient_checkpointing": True}], ids=str)
def test_bfloat16_agrees_within_its_rounding(settings):
    found = {}
    rollout = ragged(policy())
    for sharing, most in (("off", 99), ("on", 99), ("on", 1)):
        p = policy(dtype="bfloat16", prefix_sharing=sharing, micro_batch=most, **settings)
        change(p, scale=0.01)
        values, gradient = trained(p, rollout)
        norm = torch.cat([g.float().flatten() for g in gradient.values()])
        found[sharing, most] = values["logprobs"], norm
    wanted = found.pop(("off", 99))
    for values, gradient in found.values():
        assert float((values - wanted[0]).abs().mean()) < 0.02
        assert float((gradient - wanted[1]).norm() / wanted[1].norm()) < 0.1


def test_rows_share_by_context_not_by_group():
    """A hint makes another prompt: its rows, though of the same group, read it for themselves."""
    p, again = (policy(prefix_sharing=sharing, micro_batch=99) for sharing in ("on", "off"))
    plain, _ = sample(p, PROMPTS[:1], group_size=3)
    hinted, _ = sample(p, (replace(PROMPTS[0], text="look at the red circle then answer"),), group_size=2)
    rollout = Rollout.cat([plain, replace(hinted, prompts=plain.prompts)])
    rollout = replace(rollout, prompts=plain.prompts, prompt_N=torch.zeros(5, dtype=torch.int64))
    assert len(rollout.record.contexts) == 2
    assert_equal(trained(p, rollout), trained(again, rollout))


def test_reference_and_averaged_weights_read_a_prompt_once():
    p = policy(prefix_sharing="on", micro_batch=2)
    rollout = ragged(p)
    p.snapshots.take("ref")
    change(p)
    lines = []
    p.model.model.language_model.register_forward_pre_hook(
        lambda _, __, given: lines.append(given["inputs_embeds"] if given["past_key_values"] else None),
        with_kwargs=True,
    )  # fmt: skip
    found = p.with_values_of("ref", rollout, rollout.mask_NA).record.ref_NA
    prompts = [given for given in lines if given is not None]
    assert sum(len(given) for given in prompts) == len({c for c in rollout.record.context_N.tolist()})
    again = policy(prefix_sharing="off")
    wanted, _ = trained(again, rollout)
    assert torch.allclose(found, wanted["logprobs"], rtol=0, atol=MOST)


def test_a_trained_tower_runs_once_for_a_context_and_an_update_a_frozen_one_once_for_ever():
    for trained_tower, wanted in ((True, 3), (False, 1)):
        p = policy(prefix_sharing="on", micro_batch=1, train_tower=trained_tower)
        calls = []
        p.model.model.visual.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        rollout, _ = sample(p, PROMPTS[:1], group_size=4)
        p.snapshots.take("ref")
        trained(p, rollout)
        p.with_values_of("ref", rollout, rollout.mask_NA)
        assert len(calls) == wanted


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_attention_sees_what_the_mask_shows():
    """Values alone: it has no backward pass on a CPU."""
    rollout = ragged(policy())
    p, again = (policy(prefix_sharing=s, attention=a) for s, a in (("on", "flex_attention"), ("off", "sdpa")))
    p.snapshots.take("ref")
    found = p.with_values_of("ref", rollout, rollout.mask_NA).record.ref_NA
    wanted, _ = trained(again, rollout)
    assert torch.allclose(found, wanted["logprobs"], rtol=0, atol=MOST)


def test_keys_and_values_are_read_by_as_many_forwards_as_want_them():
    p = policy(prefix_sharing="on")
    rollout = ragged(p)
    with torch.no_grad():
        prompts = read_prompts(p.network, rollout.record.contexts)
        first, second = (answer_hidden(p.network, prompts, rollout.record) for _ in range(2))
    assert torch.equal(first, second) and first.shape[0] == int(rollout.record.length_N.sum())


def test_long_answers_take_a_line_each_where_a_mask_would_be_mostly_empty():
    def texts(tokens):
        return [lines.Text(0, torch.zeros(tokens), torch.zeros(3, tokens)) for _ in range(8)]

    for tokens, wanted in ((10, False), (200, True)):
        assert (
            lines.one_text_each("sdpa", (100,), texts(tokens))
            == lines.one_text_each("eager", (100,), texts(tokens))
            == wanted
        )
        assert not lines.one_text_each(cascade.NAME, (100,), texts(tokens))
        assert lines.one_text_each("flash_attention_2", (100,), texts(tokens))


def test_logits_of_a_few_tokens_exist_at_a_time():
    p = policy(prefix_sharing="on", micro_batch=99, head_chunk=4)
    rollout = ragged(p)
    p.snapshots.take("ref")
    shapes = []
    p.model.lm_head.register_forward_hook(lambda _, __, logits: shapes.append(logits.shape[:-1].numel()))
    trained(p, rollout, needs=("logprobs", "entropy"))
    tokens = int(rollout.record.length_N.sum())
    assert max(shapes) == 4 and sum(shapes) == 2 * tokens  # once more in the backward pass
    p.with_values_of("ref", rollout, rollout.mask_NA)
    assert max(shapes) == 4 and sum(shapes) == 3 * tokens


def test_check_passes_where_both_agree_and_stops_with_the_difference(monkeypatch):
    p = policy(prefix_sharing="check", micro_batch=99)
    rollout = ragged(p)
    assert_equal(trained(p, rollout), trained(policy(prefix_sharing="off"), rollout))
    monkeypatch.setattr(lines, "sees", _wrong)
    trained(form_of(p, "masked"), rollout)  # the first forwards have been checked
    for grad in (True, False):
        broken = form_of(policy(prefix_sharing="check", micro_batch=99), "masked")
        plan = broken.plan(rollout, rollout.mask_NA)
        with pytest.raises(ConfigError, match=r"a log-probability differs by .* 1e-05 is allowed in float32"):
            next(broken.logprobs(rollout, plan, needs=frozenset({"logprobs"}), grad=grad))


@pytest.mark.parametrize("settings", [{"lora": Lora(rank=4)}, {}], ids=str)
def test_check_takes_rounding_of_bfloat16_for_what_it_is(settings):
    p = policy(dtype="bfloat16", prefix_sharing="check", micro_batch=99, **settings)
    rollout = ragged(p)
    trained(p, rollout)
    broken = form_of(policy(dtype="bfloat16", prefix_sharing="check", micro_batch=99, **settings), "masked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "sees", _wrong)
        with pytest.raises(ConfigError, match="0.02 is allowed in bfloat16"):
            trained(broken, rollout)


def test_check_compares_gradients(monkeypatch):
    p = policy(prefix_sharing="check", micro_batch=99)
    rollout = ragged(p)
    monkeypatch.setattr(
        "grpo_mm.pipelines.vlm.prompt_sharing.replay.read_prompts", lambda *given: read_prompts(*given).cut_off()
    )
    plan = p.plan(rollout, rollout.mask_NA)
    with pytest.raises(ConfigError, match=r"the gradient of model\.\S+ differs by"):
        next(p.logprobs(rollout, plan, needs=frozenset({"logprobs"}), grad=True))


def _wrong(row_cT, length_c, *, longest):
    """Aligned with the first key: the common mistake, after which answers miss most of their prompt."""
    tokens = row_cT.shape[1]
    return torch.ones(len(row_cT), 1, tokens, longest + tokens, dtype=torch.bool).tril()
