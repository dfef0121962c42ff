"""What a rollout of texts declares: lengths, demonstrations, likelihoods of answers, and columns that a config can rehearse."""

from __future__ import annotations

import gc
import math
import shutil
from dataclasses import replace

import pytest
import torch
from tiny_vlm import PROMPTS, change, folder, library_logprobs, policy, rows_of, sample

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.video_grounding.demonstrations import LastRow
from grpo_mm.pipelines.vlm.answers import AnswerLikelihood, answer_tokens
from grpo_mm.pipelines.vlm.engine import VlmEngine
from grpo_mm.pipelines.vlm.policy import VlmPolicyConfig
from grpo_mm.pipelines.vlm.sampling.generation import Generated, HfGenerator
from grpo_mm.rewards.text.tag_format import TagFormat
from grpo_mm.types import Outputs, Prompt, Rollout

PROMPT = Prompt("span", "When does it start", demo="<answer>2.0 to 5.5</answer>")


def with_stops(p, every):
    """A policy that ends its answers at any of many tokens, so that lengths differ."""
    p.loaded = replace(p.loaded, stop=frozenset(range(0, len(p.processor.tokenizer), every)) - set(p.loaded.forbidden))
    return p


def test_a_row_ends_with_its_stop_token_and_what_follows_is_not_trained():
    p = with_stops(policy(), 7)
    rollout, outputs = sample(p, group_size=8, max_new_tokens=9)
    length_N, stop = rollout.columns["length"], torch.tensor(sorted(p.loaded.stop))
    assert len(length_N.unique()) > 2
    for i, length in enumerate(length_N.tolist()):
        inside, ends = torch.arange(9) < length, torch.isin(rollout.record.token_NA[i], stop)
        assert torch.equal(rollout.mask_NA[i], inside)
        assert not ends[: length - 1].any() and bool(ends[length - 1]) is not bool(rollout.columns["truncated"][i])
        assert torch.equal(rollout.columns["eos"][i], ends & inside)
        assert not rollout.record.token_NA[i, length:].any() and not rollout.behaviour_NA[i, length:].any()
        text = p.processor.tokenizer.decode(rollout.record.token_NA[i, : length - int(ends[length - 1])])
        assert outputs.items[i] == text
        total = float(rollout.behaviour_NA[i, :length].sum())
        assert float(rollout.columns["logprob_sum"][i]) == pytest.approx(total, rel=1e-5)
        assert float(rollout.columns["logprob_mean"][i]) == pytest.approx(total / length, rel=1e-5)
    assert rollout.columns["truncated"].any() and not rollout.columns["truncated"].all()


def test_rows_that_end_early_and_leave_the_cache_change_nothing():
    p = with_stops(policy(), 3)
    rollout, _ = sample(p, group_size=8, max_new_tokens=24)
    for i, length in enumerate(rollout.columns["length"].tolist()):
        record = rollout.record
        tokens = record.token_NA[i, :length]
        plain = library_logprobs(p.model, p, record.contexts[int(record.context_N[i])], tokens)
        assert torch.allclose(plain, rollout.behaviour_NA[i, :length], atol=1e-4)


def assert_same_answers(found, wanted):
    assert torch.equal(found.record.token_NA, wanted.record.token_NA)
    torch.testing.assert_close(found.behaviour_NA, wanted.behaviour_NA, atol=1e-4, rtol=1e-5)


def decodes(p):
    """Rows of each forward that takes one token of a row."""
    rows = []
    p.model.model.language_model.layers[0].mlp.register_forward_hook(
        lambda _, given, __: rows.append(given[0].shape[0]) if given[0].shape[1] == 1 else None
    )
    return rows


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("batch", [1, 5, 8, 13])
def test_rows_that_join_as_others_end_draw_what_they_draw_alone(batch, attention, by_number):
    p = with_stops(policy(attention=attention), 9)
    whole, _ = sample(p, group_size=6, max_new_tokens=32)
    rows = decodes(p)
    rollout, _ = sample(p, group_size=6, max_new_tokens=32, generator=HfGenerator(batch=batch))
    assert_same_answers(rollout, whole)
    lengths = rollout.columns["length"]
    assert max(rows) <= batch and sum(rows) >= int((lengths - 1).sum())


def test_places_do_not_stay_empty_while_others_wait(by_number):
    p = with_stops(policy(), 9)
    rows = decodes(p)
    rollout, _ = sample(p, group_size=6, max_new_tokens=32, generator=HfGenerator(batch=8))
    lengths = rollout.columns["length"]
    one_batch_after_the_other = sum(int(part.max()) - 1 for part in lengths.split(8))
    assert len(rows) < 0.8 * one_batch_after_the_other


SHORT = tuple(Prompt(str(i), "one") for i in range(10))
LONG = tuple(Prompt(f"long {i}", "When does it start " * 30) for i in range(6))


@pytest.mark.parametrize(
    "prompts", [(*SHORT, *LONG), (*LONG, *SHORT), (*LONG[:1], *SHORT, *LONG[1:])], ids=["rise", "fall", "mixed"]
)
def test_places_and_their_room_keep_to_the_limit_of_tokens(prompts, by_number):
    """All short rows fit at once, or seven long ones."""
    p = with_stops(policy(), 4)
    whole, _ = sample(p, prompts, group_size=2, max_new_tokens=40)
    limit = 7 * (40 + max(len(context) for context in whole.record.contexts))
    held = []
    p.model.model.language_model.layers[-1].self_attn.register_forward_hook(
        lambda _, __, given, ___: held.append(given["past_key_values"].running.layers[-1][0].shape)
        if given["hidden_states"].shape[1] == 1 else None, with_kwargs=True,
    )  # fmt: skip
    rollout, _ = sample(p, prompts, group_size=2, max_new_tokens=40, generator=HfGenerator(batch_tokens=limit))
    assert_same_answers(rollout, whole)
    assert max(places for places, *_ in held) >= 8
    assert max(places * room for places, _, room, _ in held) <= limit


def test_keys_and_values_are_held_once():
    p = with_stops(policy(), 40)
    held, steps = [], []

    def count(_, __, given, ___):
        steps.append(given["hidden_states"].shape[1] == 1)
        if steps[-1] and len(steps) % 4 == 0:
            running = given["past_key_values"].running
            own = [part for layer in running.layers for part in layer]
            shape = own[0].shape[1:2] + own[0].shape[3:]
            tensors = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]
            alive = {
                t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
                for t in tensors
                if t.dim() == 4 and t.shape[1:2] + t.shape[3:] == shape and t.shape[2] > 30
            }
            held.append(sum(alive.values()) / sum(part.untyped_storage().nbytes() for part in own))

    gc.collect()
    gc.freeze()  # what was there before is not looked at
    p.model.model.language_model.layers[0].self_attn.register_forward_hook(count, with_kwargs=True)
    try:
        sample(p, LONG, group_size=4, max_new_tokens=90, generator=HfGenerator(batch=10))
    finally:
        gc.unfreeze()
    # The layer that grows is there twice for a moment; below .9 the count would have missed the keys themselves.
    assert len(held) > 12 and 0.9 < max(held) < 1.3


def test_rows_at_once_keep_to_the_limit_of_tokens(by_number):
    p = with_stops(policy(), 9)
    whole, _ = sample(p, group_size=4, max_new_tokens=16)
    longest = max(len(context) for context in whole.record.contexts) + 16
    rows = decodes(p)
    rollout, _ = sample(p, group_size=4, max_new_tokens=16, generator=HfGenerator(batch_tokens=3 * longest))
    assert_same_answers(rollout, whole)
    shortest = min(len(context) for context in whole.record.contexts) + 16
    assert max(rows) <= 3 * longest // shortest and len(rows) > 16
    rows.clear()
    sample(p, group_size=4, max_new_tokens=16, generator=HfGenerator(batch_tokens=1))
    assert set(rows) == {1}


@pytest.mark.parametrize(
    "settings",
    [{}, {"answer_likelihood": AnswerLikelihood(of="ref")}, {"demonstrate": LastRow()}, {"reference_log_ratio": True}],
    ids=str,
)
def test_the_rehearsal_has_the_columns_of_a_rollout(settings):
    p = policy()
    p.snapshots.take("ref")
    engine = VlmEngine(max_new_tokens=40, **settings)
    rollout, _ = engine.sample(p, rows_of((PROMPT,), 4), step=0, seed=0, needs=frozenset())
    rehearsed = engine.table_columns(4)
    assert set(rehearsed) == {"sample", "action", "tag"} | set(rollout.columns)
    for name, column in rollout.columns.items():
        assert (rehearsed[name].dtype, rehearsed[name].shape) == (column.dtype, column.shape), name


def test_a_demonstration_takes_the_last_row_and_its_old_value_is_open(by_number):
    p = policy()
    plain, _ = sample(p, (PROMPT, PROMPTS[0]), group_size=3, max_new_tokens=24)
    rollout, outputs = sample(p, (PROMPT, PROMPTS[0]), group_size=3, max_new_tokens=24, demonstrate=LastRow())
    assert rollout.columns["demo"].tolist() == [0, 0, 1, 0, 0, 0]  # the second prompt has no demonstration
    assert outputs.items[2] == PROMPT.demo
    length = int(rollout.columns["length"][2])
    assert rollout.behaviour_NA[2, :length].isnan().all() and not rollout.behaviour_NA[2, length:].any()
    assert not rollout.columns["truncated"][2]
    others = torch.tensor([0, 1, 3, 4, 5])
    assert torch.equal(plain.record.token_NA[others], rollout.record.token_NA[others])
    ((_, values),) = p.logprobs(
        rollout, p.plan(rollout, rollout.behaviour_NA.isnan()), needs=frozenset({"logprobs"}), grad=False
    )
    tokens = rollout.record.token_NA[2, :length]
    wanted = library_logprobs(p.model, p, rollout.record.contexts[int(rollout.record.context_N[2])], tokens)
    assert torch.allclose(values["logprobs"][0, :length], wanted, atol=1e-4)


def test_a_demonstration_is_tokenised_as_the_chat_template_would():
    p = policy()
    ids = LastRow("<think></think>{demo}").tokens(PROMPT, p.loaded, most=64)
    told = [
        {"role": "user", "content": [{"type": "text", "text": PROMPT.text}]},
        {"role": "assistant", "content": [{"type": "text", "text": "<think></think>" + PROMPT.demo}]},
    ]
    whole = p.processor.tokenizer(p.processor.apply_chat_template(told))["input_ids"]
    start = len(p.encode(PROMPT))
    assert whole[start : start + len(ids)] == ids and p.processor.tokenizer.decode(ids[-1:]) == "<|im_end|>"
    assert p.loaded.end_of_turn in p.loaded.stop


def test_the_end_of_turn_is_found_where_the_prompt_already_opens_the_thinking(tmp_path):
    shutil.copytree(folder("qwen2_5_vl"), tmp_path / "thinking")
    template = tmp_path / "thinking" / "chat_template.jinja"
    opening = "<|im_start|>assistant\n"
    template.write_text(template.read_text().replace(opening + "{%", opening + "<think>\n{%"))
    p = VlmPolicyConfig(path=str(tmp_path / "thinking")).load(torch.device("cpu"))
    asked = p.processor.tokenizer.decode(p.encode(PROMPT).input_ids_L)
    assert (
        asked.endswith("assistant\n<think>\n") and p.processor.tokenizer.decode([p.loaded.end_of_turn]) == "<|im_end|>"
    )


@pytest.mark.parametrize(
    ("demo", "message"),
    [
        ("word " * 99, "engine.max_new_tokens is 16"),
        (3, "is a int; wanted the text"),
        ("<|image_pad|>", "never sampled"),
    ],
    ids=["long", "number", "placeholder"],
)
def test_a_demonstration_that_no_row_could_be_is_refused(demo, message):
    with pytest.raises(ConfigError, match=f"prompt 'span'.*{message}"):
        sample(policy(), (replace(PROMPT, demo=demo),), max_new_tokens=16, demonstrate=LastRow())


def test_the_answer_is_found_on_tokens_whatever_their_borders():
    decode = "".join
    assert answer_tokens(["<answer>", "a", "b", "</answer>"], decode) == (1, 3)
    assert answer_tokens(["x<ans", "wer>", "a", " b", "</", "answer>y"], decode) == (2, 4)
    assert answer_tokens(["<answer", ">a", "b", "c<", "/answer>"], decode) == (2, 3)  # tokens that share a tag are out
    assert answer_tokens(["<answer>", "a", "</answer>", "<answer>", "b", "</answer>"], decode) == (4, 5)
    assert answer_tokens(["<answer>", "</answer>"], decode) is None
    assert answer_tokens(["<answer>", "a"], decode) is None and answer_tokens([], decode) is None
    assert answer_tokens(["<a>", "1", "</a>"], decode, tag="a") == (1, 2)


def test_the_answer_is_found_beside_characters_that_take_several_tokens():
    tokenizer = policy().processor.tokenizer
    ids = tokenizer("<think>é → 図</think><answer>3 図 7</answer>", add_special_tokens=False)["input_ids"]
    start, end = answer_tokens(ids, tokenizer.decode)
    assert tokenizer.decode(ids[start:end]) == "3 図 7"


@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
@pytest.mark.parametrize("of", ["ref", "ema"])
def test_answer_likelihood_is_that_of_the_slow_policy_on_the_answer_alone(of, mean):
    p = policy()
    prompt = replace(PROMPT, demo="<think>red</think><answer>2.0 to 5.5</answer> left")
    p.snapshots.take(of)
    slow = {name: value.detach().clone() for name, value in p.trainable.items()}
    change(p, scale=0.02)
    rollout, _ = sample(
        p, (prompt,), group_size=2, max_new_tokens=32, demonstrate=LastRow(),
        answer_likelihood=AnswerLikelihood(of=of, mean=mean),
    )  # fmt: skip
    found = rollout.columns["answer_likelihood"]
    assert math.isnan(found[0])  # a random text has no answer
    with torch.no_grad():
        for name, value in p.trainable.items():
            value.copy_(slow[name])
    length = int(rollout.columns["length"][1])
    tokens = rollout.record.token_NA[1, :length]
    plain = library_logprobs(p.model, p, rollout.record.contexts[0], tokens)
    start, end = answer_tokens(tokens.tolist(), p.processor.tokenizer.decode)
    wanted = plain[start:end].mean().exp() if mean == "geometric" else plain[start:end].exp().mean()
    assert p.processor.tokenizer.decode(tokens[start:end]) == "2.0 to 5.5"
    assert float(found[1]) == pytest.approx(float(wanted), rel=1e-3)


def test_answer_likelihood_needs_the_weights_it_names():
    engine = VlmEngine(max_new_tokens=32, demonstrate=LastRow(), answer_likelihood=AnswerLikelihood())
    assert engine.snapshots == {"ema"}
    with pytest.raises(ConfigError, match="reads the weights 'ema', but the run keeps none"):
        engine.sample(policy(), rows_of((PROMPT,), 2), step=0, seed=0, needs=frozenset())


def test_the_log_ratio_to_the_reference_is_that_of_whole_rows():
    p = policy()
    p.snapshots.take("ref")
    same, _ = sample(p, group_size=2, reference_log_ratio=True)
    assert same.columns["ref_log_ratio"].abs().max() < 1e-3
    slow = policy()
    change(p, scale=0.02)
    rollout, _ = sample(
        p, (PROMPT, *PROMPTS), group_size=2, reference_log_ratio=True, demonstrate=LastRow(), max_new_tokens=24
    )
    ratio_N = rollout.columns["ref_log_ratio"]
    assert ratio_N.isnan().tolist() == [False, True] + 12 * [False]
    for row in (0, 5):
        length, record = int(rollout.columns["length"][row]), rollout.record
        tokens = record.token_NA[row, :length]
        plain = library_logprobs(slow.model, slow, record.contexts[int(record.context_N[row])], tokens)
        assert float(ratio_N[row]) == pytest.approx(float((rollout.behaviour_NA[row, :length] - plain).sum()), rel=1e-3)


def test_planned_calls_are_those_that_are_made():
    from grpo_mm.processes import clock

    p = policy(lora=None)
    p.snapshots.take("ref")
    engine = VlmEngine(max_new_tokens=6, reference_log_ratio=True)
    before = clock.use(clock.Clock())
    rollout, _ = engine.sample(p, rows_of(PROMPTS, 2), step=0, seed=0, needs=frozenset())
    p.with_values_of("ref", rollout, rollout.mask_NA)
    list(p.logprobs(rollout, p.plan(rollout, rollout.mask_NA), needs=frozenset({"logprobs"}), grad=True))
    _, made = before.take()
    planned = engine.network_calls(p.config, prompts=6, group_size=2, needs=frozenset({"ref_logprobs"}), step=0, seed=0)
    assert (
        {name.removesuffix("_calls"): number for name, number in made.items()}
        == planned
        == {"rollout": 12, "train": 12, "ref": 24}
    )


def test_rollouts_of_further_prompts_join(by_number):
    p = policy()
    parts = [sample(p, PROMPTS, group_size=2)]
    rows = rows_of(PROMPTS, 2)
    for wanted in (slice(0, 5), slice(5, 12)):
        parts.append(
            VlmEngine(max_new_tokens=8).sample(
                p, rows.take(torch.arange(12)[wanted]), step=0, seed=0, needs=frozenset()
            )
        )
    whole, joined = parts[0], Rollout.cat([rollout for rollout, _ in parts[1:]])
    assert_same_answers(joined, whole[0])
    assert Outputs.cat([outputs for _, outputs in parts[1:]], rows=[5, 7]).items == whole[1].items


def test_a_rank_without_rows_samples_nothing():
    p, none = policy(), rows_of(PROMPTS, 1).take(torch.zeros(0, dtype=torch.int64))
    engine = VlmEngine(max_new_tokens=5, demonstrate=LastRow())
    rollout, outputs = engine.sample(p, none, step=0, seed=0, needs=frozenset())
    assert rollout.behaviour_NA.shape == (0, 5) and len(outputs) == 0 and engine.render(p, none, seed=0) == []
    whole, _ = sample(p, group_size=1, max_new_tokens=5)
    assert Rollout.cat([whole, rollout]).num_rows == len(PROMPTS)


def test_evaluation_is_greedy_or_drawn_from_its_own_streams():
    p, rows = policy(), rows_of(PROMPTS[:2], 2)
    greedy = VlmEngine(max_new_tokens=8).render(p, rows, seed=0)
    assert greedy[0] == greedy[1] and greedy == VlmEngine(max_new_tokens=8).render(p, rows, seed=1)
    drawn = [VlmEngine(max_new_tokens=8, eval_temperature=1.0).render(p, rows, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and drawn[0][0] != drawn[0][1]
    short = VlmEngine(max_new_tokens=8, eval_max_new_tokens=3).render(p, rows, seed=0)
    assert greedy[0].startswith(short[0]) and len(short[0]) < len(greedy[0])


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (VlmEngine(max_new_tokens=0), "max_new_tokens = 0"),
        (VlmEngine(top_p=0.0), "top_p = 0"),
        (VlmEngine(eval_temperature=-1.0), "eval_temperature"),
        (VlmEngine(generator=HfGenerator(batch=0)), "batch = 0"),
        (VlmEngine(demonstrate=LastRow("no place")), "wanted {demo} in it"),
        (VlmEngine(answer_likelihood=AnswerLikelihood(tag="<answer>")), "without < >"),
    ],
    ids=lambda value: "",
)
def test_settings_that_cannot_work_are_refused(engine, message):
    with pytest.raises(ConfigError, match=message):
        engine.check(VlmPolicyConfig(path=folder("qwen2_5_vl")), group_size=4)


def test_one_sample_cannot_be_a_demonstration_and_another_policy_is_refused():
    with pytest.raises(ConfigError, match="group_size = 1"):
        VlmEngine(demonstrate=LastRow()).check(VlmPolicyConfig(path=folder("qwen2_5_vl")), group_size=1)
    with pytest.raises(ConfigError, match="samples from policy vlm"):
        VlmEngine().check(object(), group_size=4)


# ── templates that open the thinking ──

SAID = "the circle moves\n</think>\n<answer>2.0 to 5.0</answer>"


class Says:
    """Writes one answer, whatever is asked."""

    def __init__(self, p) -> None:
        self.ids = [*p.processor.tokenizer(SAID, add_special_tokens=False)["input_ids"], p.loaded.end_of_turn]

    def check(self) -> None: ...

    def generate(self, network, requests, draw) -> Generated:
        token_NA = torch.zeros(len(requests), draw.max_new_tokens, dtype=torch.int64)
        token_NA[:, : len(self.ids)] = torch.tensor(self.ids)
        return Generated(token_NA, torch.full((len(requests),), len(self.ids)), torch.zeros(token_NA.shape))


def opens(header: str):
    """A policy whose chat template ends every prompt with `header`."""
    p = policy()
    start = "<|im_start|>assistant\n"
    template = p.processor.chat_template
    assert template.count(start + "{%") == 1
    p.processor.chat_template = template.replace(start + "{%", start + header + "{%")
    return p


@pytest.mark.parametrize(
    ("header", "before"),
    [
        ("<think>\n", "<think>\n"), ("<think>", "<think>"), ("<think>\n\n", "<think>\n\n"), ("Sure.\n<think>\n", "<think>\n"),
        ("", ""), ("<think>\n\n</think>\n\n", ""), ("<|box_start|>", ""), ("so <b>x</b>", ""),
    ],
)  # fmt: skip
def test_what_the_template_opens_stands_before_the_text_that_is_scored(header, before):
    p = opens(header)
    engine, rows = VlmEngine(max_new_tokens=64, generator=Says(p)), rows_of((PROMPT,), 2)
    rollout, outputs = engine.sample(p, rows, step=0, seed=0, needs=frozenset())
    assert outputs.items == [before + SAID] * 2 == engine.render(p, rows, seed=0)
    assert rollout.record.token_NA[0, : len(Says(p).ids)].tolist() == Says(p).ids  # what was sampled, and no more
    assert TagFormat()(outputs.items, [PROMPT] * 2)["score"].tolist() == [float("<think>" in before)] * 2


def test_a_demonstration_goes_on_where_the_template_stopped():
    demo = "<think>it moves</think><answer>2.0 to 5.5</answer>"
    row, rows = Prompt("shown", "when", demo=demo), rows_of((Prompt("shown", "when", demo=demo),), 2)
    plain, opened = policy(), opens("<think>\n")
    ids = LastRow().tokens(row, opened.loaded, most=64)
    assert opened.processor.tokenizer.decode(ids[:-1]) == demo.removeprefix("<think>")
    assert LastRow().tokens(row, plain.loaded, most=64) == [
        *plain.processor.tokenizer(demo, add_special_tokens=False)["input_ids"], plain.loaded.end_of_turn,
    ]  # fmt: skip
    engine = VlmEngine(max_new_tokens=64, generator=Says(opened), demonstrate=LastRow())
    _, outputs = engine.sample(opened, rows, step=0, seed=0, needs=frozenset())
    assert outputs.items[1] == "<think>\n" + demo.removeprefix("<think>")
    assert TagFormat()(outputs.items, [row] * 2)["score"].tolist() == [1, 1]
    with pytest.raises(ConfigError, match="does not begin with <think>, which the chat template opens.*</think>{demo}"):
        LastRow().tokens(PROMPT, opened.loaded, most=64)
