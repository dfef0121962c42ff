"""What holds for all methods at once, on tables of toy rollouts with made-up rewards.

The identities between methods (RLOO and Dr.GRPO, NGRPO and GRPO, DRPO and DisCO, …) stand with their worked numbers, in the
files that the table of methods names.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from toy import ToyEngine, ToyPolicy, ToyPolicyConfig, ToyPrompts, ToyReward

from grpo_mm.advantages.credit import credit
from grpo_mm.config.methods import METHODS, OTHERS, PRESETS, find, preset
from grpo_mm.config.run_config import RunConfig
from grpo_mm.config.typed_yaml import Role, build, component, merge
from grpo_mm.errors import ConfigError
from grpo_mm.processes.distributed import Processes
from grpo_mm.processes.rng import stream
from grpo_mm.rollout.groups import group_sum
from grpo_mm.rollout.table import PER_ACTION, gather, local_table
from grpo_mm.tools.method_table import methods_page
from grpo_mm.training.learner import Learner
from grpo_mm.types import Batch, Rows

ROOT = Path(__file__).parents[2]
GROUPS = (5, 3, 7, 5)
"""Samples of each prompt: ragged, and odd for a median that is a row."""

UNITS = ("rank_grpo", "gigpo")
"""Rewards are given to units of a row: items of a list, steps of an episode."""
REWARDS = {
    "bnpo": ("a", "b"), "gdpo": ("a", "b"), "multi_label_grpo": ("a", "b"),
    "crpo": ("accuracy", "faithfulness", "comprehensiveness"),
    "p_grpo": ("outcome", "process"),
    "cobalt": ("pass_rate", "previous_best", "format"),
    "faithful_grpo": ("accuracy", "format", "consistency", "semantic_grounding", "spatial_grounding"),
}  # fmt: skip
"""Names of the rewards that a preset works on; the others have one."""
ACROSS_GROUPS = ("bnpo", "gdpo", "grpo_lambda", "spo", "faithful_grpo")
"""Statistics of the whole batch: what a group earns depends on the others."""
BATCH_SUM = ("gdpo", "spo", "faithful_grpo")
GROUP_SUM = (
    "grpo", "dr_grpo", "rloo", "dapo", "bnpo", "stratified_grpo", "rank_grpo", "gigpo", "m_grpo", "s_grpo", "multi_label_grpo",
    "crpo", "p_grpo", "grpo_lambda", "unlikely", "info_consistency_grpo", "ps_grpo", "cobalt", "gspo", "gspo_token", "cispo",
    "sapo", "gmpo", "kl_cov", "tis", "grao",
)  # fmt: skip
"""Advantages of a prompt add up to 0. Not: a median, imagined samples, trackers and priors, masks and weights, choices and
prefixes (which are worth something each), fairness, and marks in place of advantages."""
UNIT_FREE = (
    "grpo", "dapo", "stratified_grpo", "weighted_grpo", "microcoder_grpo", "graph_grpo", "gdpo", "multi_label_grpo", "crpo",
    "info_consistency_grpo", "ps_grpo", "xrpo", "gspo", "gspo_token", "cispo", "sapo", "gmpo", "kl_cov", "tis", "grao",
    "tempo", "qae",
)  # fmt: skip
"""r -> a r + b with a > 0 changes nothing, but for eps."""
SCALE_FREE = ("rank_grpo", "gigpo")
"""Only r -> a r: with b, long lists and episodes gain more. Not among either: the MAD with a floor in the reward's unit, and
what reads a reward as right or wrong."""
LINEAR = ("dr_grpo", "rloo")
"""r -> a r + b multiplies by a."""

every_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.key)


def these(names):
    chosen = [m for m in METHODS if m.name in names]
    assert {m.name for m in chosen} == set(names)
    return pytest.mark.parametrize("method", chosen, ids=lambda m: m.key)


def rewards_of(method):
    return REWARDS.get(method.name, ("r",))


def engine_of(method):
    return ToyEngine(outputs="unit" if method.name in UNITS else "row")


def stages_of(method):
    return [component(Role("advantage"), part, path="advantage") for part in preset(method.key)["advantage"]]


def everyone():
    rows = torch.tensor([(p, s) for p, size in enumerate(GROUPS) for s in range(size)])
    return Rows(tuple(ToyPrompts(len(GROUPS)).load()), rows[:, 0], rows[:, 1], max(GROUPS))


@cache
def a_policy():
    return ToyPolicy(ToyPolicyConfig(len(GROUPS), start=1.0))


def sampled(method, rows):
    """A rollout and its part of the table, where the same sample has the same rewards on every rank."""
    rollout, outputs = engine_of(method).sample(a_policy(), rows, step=0, seed=0, needs=frozenset())
    sample_N = rollout.sample_N
    length_N = rollout.columns["length"]
    columns = {
        "prior": 0.25 + 0.1 * rollout.prompt_N, "agent": sample_N % 2, "main": sample_N - sample_N % 2,
        "copies": 1 + sample_N // 2 % 2, "order": length_N, "ref_log_ratio": 0.1 * rollout.columns["logprob_sum"],
        "shared_prefix": (torch.arange(rollout.num_actions) == 0) & (sample_N > 0)[:, None],
    }  # fmt: skip
    if method.name == "ospo":
        columns["agent"] = sample_N
    rollout = replace(rollout, columns=rollout.columns | columns)
    credited = outputs.row_M if outputs.action_M is None else outputs.row_M + 1000 * outputs.action_M
    scores = {name: {"score": made_up(method, name, rollout, credited)} for name in rewards_of(method)}
    applies = {name: None for name in scores}
    return rollout, local_table(Batch(rollout, outputs, scores), applies_to=applies)


def made_up(method, name, rollout, credited_M):
    """Graded rewards, two in five of them 0; all different where a tie would leave the choice to the order of the rows."""
    row_M, unit_M = credited_M % 1000, credited_M // 1000
    keys = torch.stack([rollout.prompt_N[row_M], rollout.sample_N[row_M], unit_M], dim=1).tolist()
    drawn = [torch.rand(2, dtype=torch.float64, generator=stream(0, name, *key)) for key in keys]
    value, coin = torch.stack(drawn).unbind(1)
    return value if method.name == "mc_grpo" else value * (coin > 0.4)


def a_table(method):
    rollout, local = sampled(method, everyone())
    weights = {name: part.get("weight", 1.0) for name, part in preset(method.key).get("rewards", {}).items()}
    return rollout, gather([local], weights=weights)


def earned(method, table, rollout, *, rank=0, stages=None):
    """What every action earns, and beside it the marks that stages made for set losses, [N, (1 + marks) · A]; NaN: left out."""
    found = credit(table, stages or stages_of(method), rollout=rollout, rank=rank)
    parts = [found.advantage_NA, *(found.columns[name] for name in sorted(found.columns))]
    return torch.cat([part.masked_fill(~found.keep_NA, torch.nan) for part in parts], dim=1)


def values_after(method, table):
    for stage in stages_of(method):
        table = stage(table)
    (value_M,) = table.values.values()
    return value_M, table


def where(table, chosen_M):
    return table.take(torch.nonzero(chosen_M).flatten())


def mapped(table, change):
    return table.with_values({name: change(value) for name, value in table.values.items()})


def close(found, wanted, atol=1e-9):
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol, equal_nan=True)


# ── properties of the advantages ──


@every_method
def test_what_a_sample_earns_does_not_depend_on_the_order_of_the_rows(method):
    rollout, table = a_table(method)
    found = earned(method, table, rollout)
    assert found[found.isfinite()].abs().max() > 0.01
    for seed in range(3):
        order = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))
        close(earned(method, table.take(order), rollout), found)


@every_method
def test_ragged_groups_earn_what_each_earns_alone(method):
    rollout, table = a_table(method)
    together = earned(method, table, rollout)
    parts = [earned(method, where(table, table.columns["prompt"] == p), rollout) for p in range(len(GROUPS))]
    alone = torch.cat([part[rollout.prompt_N == p] for p, part in enumerate(parts)])
    if method.name in ACROSS_GROUPS:
        assert not torch.allclose(alone.nan_to_num(), together.nan_to_num())
    else:
        close(alone, together)


@these(GROUP_SUM)
def test_advantages_of_a_prompt_sum_to_zero(method):
    value_M, table = values_after(method, a_table(method)[1])
    close(group_sum(value_M, table.columns["prompt"]), torch.zeros(len(GROUPS), dtype=torch.float64))
    assert value_M.nan_to_num().abs().max() > 0.01


@these(BATCH_SUM)
def test_whitened_advantages_of_the_batch_sum_to_zero_and_have_variance_1(method):
    value_M, _ = values_after(method, a_table(method)[1])
    assert abs(float(value_M.sum())) < 1e-9 and float(value_M.var()) == pytest.approx(1, abs=1e-3)


@these(UNIT_FREE)
def test_the_unit_and_the_zero_of_the_reward_do_not_matter(method):
    rollout, table = a_table(method)
    close(earned(method, mapped(table, lambda r: 3 * r - 2), rollout), earned(method, table, rollout), 5e-3)


@these(SCALE_FREE)
def test_the_unit_of_rewards_of_steps_does_not_matter(method):
    rollout, table = a_table(method)
    close(earned(method, mapped(table, lambda r: 3 * r), rollout), earned(method, table, rollout), 5e-3)


@these(LINEAR)
def test_without_a_scale_advantages_have_the_unit_of_the_reward(method):
    rollout, table = a_table(method)
    table.columns["ref_log_ratio"].zero_()
    close(earned(method, mapped(table, lambda r: 3 * r - 2), rollout), 3 * earned(method, table, rollout))


LEFT_OUT = torch.nan


def shrunk(reward, table):
    """V_0.5: (1 - w) · gap, the distance to the prior as far as noise of 1/n explains it."""
    gap_M = reward - (2 * table.columns["prior"].double() - 1)
    return torch.minimum(gap_M**2, 1 / sizes(table)) / gap_M


def sizes(table):
    return torch.tensor(GROUPS, dtype=torch.float64)[table.columns["prompt"]]


DOCUMENTED = {
    ("dapo", 0): lambda t: LEFT_OUT, ("dapo", 1): lambda t: LEFT_OUT,
    ("unlikely", 0): lambda t: LEFT_OUT, ("unlikely", 1): lambda t: LEFT_OUT,
    ("ngrpo", 0): lambda t: -1 / (sizes(t) + 1).sqrt(), ("ngrpo", 1): lambda t: LEFT_OUT,
    ("v05", 0): lambda t: shrunk(0, t), ("v05", 1): lambda t: shrunk(1, t),
    ("disco", 1): lambda t: 1.0, ("drpo", 1): lambda t: 1.0,  # the reward; the loss drops prompts of one kind
}  # fmt: skip
"""What equal rewards of 0 or 1 earn where it is not 0."""


@every_method
@pytest.mark.parametrize("reward", [0, 1])
def test_equal_rewards_earn_the_documented_value(method, reward):
    if reward and method.name in (*SCALE_FREE, "s_grpo", "grpo_lambda"):
        pytest.skip("it tells apart the exits, lengths or steps of rows that are all right")
    _, table = a_table(method)
    table.columns["ref_log_ratio"].zero_()
    value_M, after = values_after(method, mapped(table, lambda r: torch.full_like(r, reward)))
    wanted = DOCUMENTED.get((method.name, reward), lambda t: 0.0)(table)
    wanted_M = torch.as_tensor(wanted, dtype=torch.float64).expand(len(table))
    close(value_M, wanted_M, 1e-5 if method.name == "ngrpo" else 1e-12)
    if PER_ACTION in after.columns and method.name != "rank_grpo":  # whose tokens answer for the length of the list
        assert not after.columns[PER_ACTION].nan_to_num().any()


@every_method
def test_samples_without_a_reward_are_left_out_and_take_no_part(method):
    rollout, table = a_table(method)
    stages = stages_of(method)
    # The third and fourth sample of a prompt: for M-GRPO an agent and the one that it called.
    gone_M = (table.columns["prompt"] == 2) & (table.columns["sample"] // 2 == 1)
    gone_N = (rollout.prompt_N == 2) & (rollout.sample_N // 2 == 1)
    hidden = mapped(table, lambda r: r.masked_fill(gone_M, torch.nan))
    hidden = replace(hidden, columns=hidden.columns | {"failed": gone_M})
    found, wanted = (earned(method, t, rollout, stages=stages) for t in (hidden, where(table, ~gone_M)))
    assert found[gone_N].isnan().all()
    close(found[~gone_N], wanted[~gone_N])


@every_method
def test_two_ranks_earn_what_one_does_to_the_last_bit(method):
    rollout, table = a_table(method)
    whole = earned(method, table, rollout)
    rows = everyone()
    halves = [torch.arange(len(rows))[:7], torch.arange(len(rows))[7:]]  # the second group is on both
    parts = [sampled(method, rows.take(half)) for half in halves]
    joined = gather([local for _, local in parts], weights=table.weights)
    for rank, ((part, _), half) in enumerate(zip(parts, halves)):
        found = earned(method, joined, part, rank=rank)
        assert torch.equal(found.nan_to_num(nan=99), whole[half].nan_to_num(nan=99))


# ── configs of presets ──


def settings_for(method, names):
    rewards = {name: {"use": ToyReward("unit" if method.name in UNITS else "graded")} for name in names}
    settings = {
        "name": "toy", "policy": ToyPolicyConfig(), "engine": engine_of(method), "prompts": {"toy": {"use": ToyPrompts()}},
        "steps": 1, "prompts_per_step": 4, "rewards": rewards, "device": "cpu", "samples_every": 0,
    }  # fmt: skip
    chosen = preset(method.key)
    return build(RunConfig, merge({"group_size": 5} | chosen, settings))


@every_method
def test_a_preset_makes_a_config_that_trains_a_step(method, tmp_path):
    config = settings_for(method, rewards_of(method))
    config.check_settings(1)
    config = replace(config, policy=ToyPolicyConfig(start=1.0))
    learner = Learner(config, Processes(device="cpu"), samples=tmp_path)
    before = learner.policy.logits.detach().clone()
    logged = learner.step(0)
    assert logged["optim/bad_updates"] == 0
    assert learner.policy.logits.isfinite().all() and not torch.equal(learner.policy.logits, before)


@these(("p_grpo", "cobalt", "faithful_grpo"))
def test_a_preset_names_the_reward_that_it_lacks(method):
    *others, last = rewards_of(method)
    with pytest.raises(ConfigError, match=rf"wanted the reward (or the column )?'{last}'"):
        settings_for(method, others).check_settings(1)


@these(("crpo", "faithful_grpo"))
def test_a_reward_that_a_preset_weighs_wants_its_use(method):
    with pytest.raises(ConfigError, match=r"rewards\.accuracy: the key 'use' is missing"):
        settings_for(method, ("format",))


FLOW_REFUSES = {
    "rloo": "ref_log_ratio", "dapo": "length", "stratified_grpo": "stratum", "microcoder_grpo": "incorrect",
    "gigpo": "state_key", "tempo": "token", "m_grpo": "agent", "graph_grpo": "chosen", "ospo": "agent", "s_grpo": "order",
    "grpo_lambda": "length", "unlikely": "logprob_mean", "xrpo": "logprob_mean", "drpo": "length", "grao": "demo",
}  # fmt: skip
"""The column that only a rollout of texts, lists, agents or a value model declares."""


def flow_config(method):
    quickstart = yaml.safe_load((ROOT / "configs/quickstart/flow.yaml").read_text())
    kept = {key: quickstart[key] for key in ("name", "steps", "prompts_per_step", "policy", "engine", "prompts")}
    rewards = {name: {"use": "shape_world"} for name in rewards_of(method)}
    return build(RunConfig, merge({"group_size": 9} | preset(method.key), kept | {"rewards": rewards}))


@every_method
def test_a_flow_engine_takes_a_method_or_says_what_is_missing(method):
    config = flow_config(method)
    if method.name not in (*FLOW_REFUSES, "rank_grpo", "high_entropy"):
        config.check_settings(1)
        return
    said = "compares the positions of a row, but the rollout scores rows as a whole"
    if method.name in FLOW_REFUSES:
        said = f"(needs|reads) the column '{FLOW_REFUSES[method.name]}'.* which .*the rollout does not declare"
    if method.name == "high_entropy":
        said = "the objective needs entropy, which the policy does not provide"
    with pytest.raises(ConfigError, match=said):
        config.check_settings(1)


# ── names, files and the page ──


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_a_name_of_several_papers_is_refused_with_the_candidates(name):
    here = [m.key for m in METHODS if m.name == name]
    with pytest.raises(ConfigError, match=r"is the name of several papers") as refused:
        find(name)
    assert here and all(key in str(refused.value) for key in here)
    assert all(other in str(refused.value) for other in OTHERS[name])
    assert str(refused.value).endswith(f"Write method: {here[0]}.")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("Dapo", "dapo"),
        ("DrGRPO", "dr_grpo"),
        ("Dr.GRPO", "dr_grpo"),
        ("V-0.5", "v05"),
        ("BNPO_2506.02864", "bnpo_2506.02864"),
    ],
)
def test_names_are_read_without_case_hyphens_and_dots(typed, meant):
    assert find(typed) is find(meant)


def test_every_name_is_told_apart_without_them():
    plain = [re.sub(r"[._-]", "", text.lower()) for m in METHODS for text in (m.name, m.key)]
    assert len(set(plain)) == len(plain)


@pytest.mark.parametrize("name", ["flow_grpo", "Mix-GRPO"])
def test_the_name_of_a_config_is_no_method_and_says_where_the_config_is(name):
    with pytest.raises(
        ConfigError, match=r"is a config, not a method that a config names: start from configs/flow/\w+\.yaml"
    ):
        find(name)


@every_method
def test_a_key_works_and_so_does_a_name_of_one_paper(method):
    assert find(method.key) is method and sum(m.key == method.key for m in METHODS) == 1
    if method.name not in OTHERS:
        assert find(method.name) is method


@pytest.mark.parametrize(("typed", "meant"), [("grppo", "grpo"), ("dr_gpro", "dr_grpo"), ("gspo_tokens", "gspo_token")])
def test_an_unknown_name_suggests_the_nearest(typed, meant):
    with pytest.raises(ConfigError, match=f"unknown method '{typed}'. Did you mean '{meant}'"):
        find(typed)
    with pytest.raises(ConfigError, match=r"unknown method 'zzzz'\. `grpo-mm methods` lists them"):
        find("zzzz")


@every_method
def test_a_line_of_the_table_has_its_preset_and_its_test(method):
    assert method.file.is_file() and method.arxiv in method.file.read_text()
    assert re.fullmatch(r"\d{4}\.\d{4,5}", method.arxiv) and method.title and method.changes
    assert re.search(rf"\b{method.name}(_{re.escape(method.arxiv)})?\b", (ROOT / method.tested).read_text())


def test_every_preset_has_its_line():
    assert sorted(path.name for path in PRESETS.glob("*.yaml")) == sorted(method.file.name for method in METHODS)


def test_the_page_names_what_a_config_may_say():
    named = re.findall(r"^\| `([^`]+)` \|.*presets/", methods_page(), flags=re.MULTILINE)
    assert len(named) == len(METHODS) and {find(name).key for name in named} == {m.key for m in METHODS}


def test_the_page_of_methods_is_up_to_date():
    assert (ROOT / "docs/methods.md").read_text(encoding="utf-8") == methods_page()
