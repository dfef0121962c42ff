"""Windows of one length in one call: the same features and gradients as window by window, in a number of calls that is small."""

from __future__ import annotations

import runpy

import pytest
import tiny_vlm
import torch
from conftest import ROOT
from torch.nn.functional import scaled_dot_product_attention

from grpo_mm.pipelines.vlm.forwards import windows
from grpo_mm.pipelines.vlm.forwards.windows import attend_windows, windows_of

LENGTHS = {
    "one": [7], "alike": [4, 4, 4], "two kinds": [2, 3, 2], "many": [5, 1, 5, 16, 2, 1, 16, 5], "with none": [3, 0, 3, 2, 0],
}  # fmt: skip


@pytest.mark.parametrize("name", LENGTHS)
def test_tokens_attend_within_their_windows(name):
    lengths, generator = LENGTHS[name], torch.Generator().manual_seed(0)
    border = torch.tensor([0, *lengths]).cumsum(0)
    given = [torch.randn(2, sum(lengths), 8, generator=generator).requires_grad_() for _ in range(3)]
    out = attend_windows(*given, windows_of(border), 0.3)
    parts = zip(*(part.split(lengths, dim=1) for part in given))
    slow = torch.cat([scaled_dot_product_attention(*(p[None] for p in part), scale=0.3)[0] for part in parts], dim=1)
    weight = torch.randn(out.shape, generator=generator)
    found, wanted = (torch.autograd.grad((weight * o).sum(), given, retain_graph=True) for o in (out, slow))
    assert torch.allclose(out, slow, rtol=0, atol=1e-6)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(found, wanted))


def test_the_plan_of_the_docstring():
    plan = windows_of(torch.tensor([0, 2, 5, 7]))
    assert plan.sizes == [(2, 2), (1, 3)]
    assert plan.order_T.tolist() == [0, 1, 5, 6, 2, 3, 4] and plan.back_T.tolist() == [0, 1, 4, 5, 6, 2, 3]
    assert windows_of(torch.tensor([0, 3, 6])).order_T is None


def features_and_gradient(policy, prompts):
    """Features of the prompts, and the gradient of the tower's first weights."""
    found = [policy.network.features(policy.encode(prompt)) for prompt in prompts]
    total = sum((f * torch.linspace(-1, 1, f.numel()).view_as(f)).sum() for f in found)
    total.backward()
    return found, next(policy.model.model.visual.parameters()).grad


@tiny_vlm.each_family
def test_features_are_those_of_the_library_in_few_calls(family, monkeypatch):
    prompts = (tiny_vlm.Prompt("big", "what", media=(tiny_vlm.picture(224, 308),)), *tiny_vlm.PROMPTS[1:5])
    calls, found = {}, {}
    real = scaled_dot_product_attention
    for way in ("together", "apart"):
        policy = tiny_vlm.policy(family, train_tower=True)
        tower = policy.model.model.visual
        assert tower.config._attn_implementation == windows.NAME
        if way == "apart":
            tower.config._attn_implementation = "sdpa"
        counted = calls.setdefault(way, [])

        def count(query, *args, counted=counted, **settings):
            counted.append(query.shape)
            return real(query, *args, **settings)

        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", count)
        monkeypatch.setattr(windows, "scaled_dot_product_attention", count)
        found[way] = features_and_gradient(policy, prompts)
    for a, b in zip(found["together"][0], found["apart"][0]):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)
    assert torch.allclose(found["together"][1], found["apart"][1], rtol=1e-5, atol=1e-6)
    blocks = len(tower.blocks)
    assert len(calls["together"]) <= 4 * blocks * len(prompts)
    if family == "qwen2_5_vl":  # one of its two blocks looks at windows, of which the big picture has 15
        assert len(calls["apart"]) > 2 * len(calls["together"])


@pytest.mark.parametrize("name, most, least_apart", [
    ("Qwen/Qwen2.5-VL-7B-Instruct", 64, 10_000),
    pytest.param("Qwen/Qwen2-VL-7B-Instruct", 32, 1_000, marks=pytest.mark.slow),
    pytest.param("Qwen/Qwen3-VL-8B-Instruct", 32, 800, marks=pytest.mark.slow),
])  # fmt: skip
def test_a_video_of_64_frames_takes_tens_of_calls(name, most, least_apart):
    """Of a tower with the published layers, patches and windows, narrow as it is."""
    tokens, apart, together, gap = runpy.run_path(str(ROOT / "docs/scripts/tower.py"))["row"](name)
    assert tokens > 5_000 and apart > least_apart and together <= most
    assert gap < 1e-4
