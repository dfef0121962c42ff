"""Presets against plain references: statistics of the whole batch by loops, and what every surrogate is on-policy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_methods_all import a_table, earned, everyone, rewards_of, sampled, stages_of, these

from grpo_mm.advantages.credit import credit
from grpo_mm.config.methods import METHODS, find, preset
from grpo_mm.config.typed_yaml import component
from grpo_mm.processes.distributed import Processes
from grpo_mm.registry import Role
from grpo_mm.rollout.table import gather
from grpo_mm.weights.update import _with_columns, make_view

# ── dense and ragged groups, and unscored rows, where statistics span the batch ──


def normalised(value, *, ddof, eps):
    """Of the finite values of an array; the others stay NaN."""
    scored = np.isfinite(value)
    spread = value[scored].std(ddof=ddof) if scored.sum() > ddof else 0.0
    return (value - value[scored].mean()) / (spread + eps) if scored.any() else value


def by_group(change, group, *columns):
    found = np.full(len(group), np.nan)
    for g in np.unique(group):
        found[group == g] = change(*(c[group == g] for c in columns))
    return found


def gdpo(reward, group, table):
    each = [by_group(lambda r: normalised(r, ddof=1, eps=1e-4), group, r) for r in reward.values()]
    return normalised(sum(each), ddof=1, eps=1e-4)


def bnpo(reward, group, table):
    def one(r):
        rates = np.array([np.nanmean(r[group == g]) for g in np.unique(group)])
        m, v = rates.mean(), rates.var(ddof=1)
        k = m * (1 - m) / v - 1
        alpha, beta = max(1, 1 + k * m / 3), max(1, 1 + k * (1 - m) / 3)
        norm = math.exp(math.lgamma(alpha) + math.lgamma(beta) - math.lgamma(alpha + beta))

        def advantage(r):
            p = np.nanmean(r)
            return (r - p) * norm / (p ** (alpha - 1) * (1 - p) ** (beta - 1))

        return by_group(advantage, group, r)

    return np.mean([one(r) for r in reward.values()], axis=0)


def grpo_lambda(reward, group, table):
    (r,) = reward.values()
    right = np.where(np.isfinite(r), r > 0.5, np.nan)
    length = table.columns["length"].double().numpy()
    rates = {g: np.nanmean(right[group == g]) for g in np.unique(group)}
    shortest = sorted(rates, key=lambda g: (-rates[g], g))[: max(1, round(0.2 * len(rates)))]

    def shaped(right, length, group):
        if group[0] not in shortest or not np.nansum(right):
            return right
        z = normalised(np.where(right == 1, length, np.nan), ddof=0, eps=1e-300)
        return np.where(right == 1, 1 - 0.2 / (1 + np.exp(-z)), right)

    return by_group(lambda r: normalised(r, ddof=0, eps=1e-4), group, by_group(shaped, group, right, length, group))


def spo(reward, group, table):
    (r,) = reward.values()
    return normalised(r - 0.5, ddof=1, eps=1e-8)


def faithful_grpo(reward, group, table):
    accurate = reward["accuracy"] > 0
    parts = [
        0.5 * reward["accuracy"] + 0.5 * reward["format"],
        np.where(accurate, reward["consistency"], np.nan),
        np.where(accurate, reward["semantic_grounding"], np.nan),
        reward["spatial_grounding"],
    ]
    task, *constraints = (by_group(lambda r: normalised(r, ddof=1, eps=1e-4), group, part) for part in parts)
    return normalised(task + sum(np.nan_to_num(c) for c in constraints), ddof=1, eps=1e-4)


REFERENCE = {"gdpo": gdpo, "bnpo": bnpo, "grpo_lambda": grpo_lambda, "spo": spo, "faithful_grpo": faithful_grpo}


@these(tuple(REFERENCE))
@pytest.mark.parametrize("shape", ["dense", "ragged", "unscored"])
def test_statistics_of_the_batch_are_those_of_a_plain_loop(method, shape):
    rollout, table = a_table(method)
    if shape == "dense":
        rows = everyone()
        rollout, local = sampled(method, rows.take(torch.nonzero(rows.sample_N < 3).flatten()))
        table = gather([local], weights=table.weights)
    if shape == "unscored":
        gone_M = (table.columns["prompt"] == 2) & (table.columns["sample"] < 2)
        table = table.with_values({n: v.masked_fill(gone_M, torch.nan) for n, v in table.values.items()})
        table = replace(table, columns=table.columns | {"failed": gone_M})
    group = table.columns["prompt"].numpy()
    sizes = {"dense": [3] * 4, "ragged": [5, 3, 7, 5], "unscored": [5, 3, 7, 5]}[shape]
    assert np.bincount(group).tolist() == sizes
    reward = {name: table.values[name].numpy() for name in rewards_of(method)}
    wanted = REFERENCE[method.name](reward, group, table)
    found = earned(method, table, rollout)[:, 0]
    assert np.isnan(wanted).sum() == (2 if shape == "unscored" else 0) and np.nanmax(np.abs(wanted)) > 0.1
    torch.testing.assert_close(found, torch.from_numpy(wanted), rtol=1e-9, atol=1e-9, equal_nan=True)


# ── on-policy, the surrogate of every preset is REINFORCE with its advantages ──

SURROGATES = ("clipped_ratio", "cispo", "sapo", "gmpo", "kl_cov", "truncated")
CLIPPED = [m for m in METHODS if preset(m.key)["objective"][0]["kind"] in SURROGATES]
ROW_MEANS = ("sapo", "gmpo")
"""Terms that average over each row if nothing is said; the others over actions."""


def test_all_but_the_set_losses_grao_and_what_leaves_out_actions_have_a_surrogate():
    assert {m.name for m in METHODS} - {m.name for m in CLIPPED} == {"disco", "drpo", "grao", "high_entropy"}


def share(term, mask):
    """What each action counts for in the mean over the update, [N, A], by loops."""
    how = term.get("aggregate", "row" if term["kind"] in ROW_MEANS else "token")
    if term.get("ratio") == "product":  # whose gradient is the sum over the row
        how = "row_sum"
    rows = sum(bool(row.any()) for row in mask)
    each = np.zeros(mask.shape)
    for n, row in enumerate(mask):
        size = {"token": mask.sum(), "row": rows * row.sum(), "row_sum": rows, "constant": rows * mask.shape[1]}[how]
        each[n] = row / max(1, size)
    return each


@pytest.mark.parametrize("method", CLIPPED, ids=lambda m: m.key)
def test_on_policy_the_gradient_of_a_preset_is_reinforce(method):
    rollout, table = a_table(method)
    found = credit(table, stages_of(method), rollout=rollout, rank=0)
    settings = preset(method.key)["objective"][0]
    term = component(Role("objective"), settings, path="objective")
    view = make_view(rollout, found, rollout.mask_NA, rollout.behaviour_NA, Processes(device="cpu"))
    logprobs = rollout.behaviour_NA.clone().requires_grad_()
    values = {"logprobs": logprobs, "token_logprobs": logprobs}
    (slope,) = torch.autograd.grad(term(values, _with_columns(view, rollout, [term])).value(), logprobs)
    mask = (rollout.mask_NA & found.keep_NA).numpy()
    wanted = -found.advantage_NA.numpy() * share(settings, mask)
    assert np.abs(wanted).max() > 1e-3
    torch.testing.assert_close(slope, torch.from_numpy(wanted), rtol=1e-9, atol=1e-12)


def test_the_presets_between_them_use_every_mean():
    used = {preset(m.key)["objective"][0].get("aggregate") for m in CLIPPED}
    assert used >= {"token", "row", "row_sum", "constant"}
    assert preset(find("rloo").key)["objective"][0]["ratio"] == "product"
