"""Wan's forms as policies: replay, training, what a run leaves in the plain pipeline, trees and the forward process."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from test_flow_models import gap, perturb, values_of
from wan_models import FORMS, SIZE, WanModel, checkpoint

from grpo_mm.advantages.actions.tree_backup import TreeBackup
from grpo_mm.advantages.baselines.group_norm import GroupNorm
from grpo_mm.advantages.combination.combine import WeightedSum
from grpo_mm.config.run_config import RunConfig
from grpo_mm.errors import ConfigError
from grpo_mm.objectives import ClippedRatio, Nft
from grpo_mm.pipelines.flow.engines.forward import EveryTimestep, ForwardProcess
from grpo_mm.pipelines.flow.kernels import cps, dance_sde, ddim, flow_sde
from grpo_mm.pipelines.flow.models.adapters import Lora, load_plain
from grpo_mm.pipelines.flow.noise import AllSteps, SlidingWindow, Window
from grpo_mm.pipelines.flow.schedule import Shifted
from grpo_mm.pipelines.flow.trees.branching import Splits
from grpo_mm.processes.distributed import Processes
from grpo_mm.run.run_folder import open_folder
from grpo_mm.training.trainer import Trainer
from grpo_mm.types import Clips

QUICK = ("a14b_i2v",)
"""Two experts, and pictures of prompts; the other forms are slow twins."""
LORA = Lora(rank=3, alpha=5)
EVERY = [pytest.param(form, marks=() if form in QUICK else pytest.mark.slow) for form in FORMS]


@pytest.fixture(scope="module")
def model(request, tmp_path_factory) -> WanModel:
    return WanModel(request.param, checkpoint(FORMS[request.param][1], tmp_path_factory.getbasetemp() / "wan"))


@pytest.fixture(scope="module")
def policy(model):
    policy = model.load()
    perturb(policy)
    return policy


def roll(model, policy, engine, group_size: int = 2):
    return engine.sample(policy, model.rows(group_size), step=0, seed=0, needs=frozenset())


def train(config: RunConfig, *, fresh: bool = True):
    config.check()
    trainer = Trainer(config, open_folder(config, fresh=fresh), Processes(device="cpu"))
    steps: list[dict[str, float]] = []
    trainer.run(on_step=lambda _, row: steps.append(row))
    return trainer.learner.policy, steps


@pytest.mark.parametrize("model", EVERY, indirect=True)
def test_on_unchanged_weights_every_ratio_is_one_for_every_kernel(model, policy):
    for kernel, level in ((flow_sde, 0.7), (dance_sde, 0.3), (cps, 0.8), (ddim, 1.0)):
        engine = model.engine(schedule=Shifted(), kernel=kernel, noise=AllSteps(level=level), rollout_batch=3)
        rollout, outputs = roll(model, policy, engine)
        assert gap(policy, rollout, 1) <= 1e-5 and gap(policy, rollout, 7) <= 1e-5
    assert isinstance(outputs.items, Clips) and len(outputs.items) == 4
    assert outputs.items[0].frames_FCHW.shape == (SIZE[0], 3, *SIZE[1:])


@pytest.mark.parametrize("model", ["a14b_i2v"], indirect=True)
def test_a_forward_has_rows_of_one_expert(model, policy):
    rollout, _ = roll(model, policy, model.engine(schedule=Shifted(), noise=AllSteps(level=0.7)))
    plan = policy.plan(rollout, rollout.mask_NA)
    kinds = [policy._expert(rollout.record.sigma_of(rollout.record.states(index))).unique().tolist() for index in plan]
    assert kinds == [[0], [1]]
    assert torch.cat(plan).sort().values.tolist() == list(range(8))


@pytest.mark.parametrize("model", ["a14b_i2v"], indirect=True)
def test_rows_of_both_experts_in_one_call_are_what_each_says_alone(model, policy):
    x = torch.randn((2, *policy.family.latent_shape(policy.pipe, *SIZE)), generator=torch.Generator().manual_seed(1))
    condition, at = policy.encode(model.prompts), dict(size=SIZE, guidance=4.0)
    with torch.no_grad():
        both = policy.velocity(x, torch.tensor([0.3, 0.9]), condition, **at)
        for i, sigma in enumerate((0.3, 0.9)):
            own = {name: value[i : i + 1] for name, value in condition.items()}
            alone = policy.velocity(x[i : i + 1], torch.tensor([sigma]), own, **at)
            torch.testing.assert_close(both[i : i + 1], alone, rtol=0, atol=2e-6)
        other = policy.velocity(x, torch.tensor([0.9, 0.9]), condition, **at)
    assert float((both[0] - other[0]).abs().max()) > 1e-3


WAYS = [(form, way) for form in FORMS for way in ("adapter", "model")]


@pytest.mark.parametrize(
    "model, way",
    [pytest.param(*pair, marks=() if pair == ("a14b_i2v", "adapter") else pytest.mark.slow) for pair in WAYS],
    indirect=["model"],
)
def test_three_steps_train_and_the_product_draws_the_same_clips_in_the_plain_pipeline(model, way, tmp_path):
    config = model.run(tmp_path, policy={"lora": LORA if way == "adapter" else None, "eval_frames": 9})
    trained, steps = train(config)
    assert len(steps) == 3
    for row in steps:
        assert row["policy/logprob_gap"] <= 1e-5 and row["optim/grad_norm"] > 0 and row["reward/failed_frac"] == 0
    assert steps[-1]["objective/ref_kl"] > 1e-12
    card = (config.folder / way / "README.md").read_text()
    assert f"tags: [{'image' if model.family.pictures[0] else 'text'}-to-video, " in card
    pipe = model.pipeline(None if way == "adapter" else config.folder / "model")
    if way == "adapter":
        load_plain(pipe, config.folder / "adapter")
    ours = config.engine.render(trained, model.rows(1), seed=0)
    assert ours[0].frames_FCHW.shape[0] == 9 and ours[0].fps == model.family.fps
    start = config.engine.evaluation_noise(trained, model.rows(1), seed=0)
    family, size = model.family, trained.size(evaluation=True)
    for prompt, clip, latents in zip(model.prompts, ours, start, strict=True):
        shown = family.plain_pictures(pipe, list(prompt.media), size)
        call = family.plain_call(guidance=4.0, text_length=trained.config.text_length)
        there = pipe(
            prompt=prompt.text, latents=latents[None], num_inference_steps=3, output_type="pt", **family.plain_size(size), **call,
            **shown,
        ).frames[0]  # fmt: skip
        assert (clip.frames_FCHW.int() - (there * 255).round().int()).abs().max() <= 1


@pytest.mark.parametrize("model", EVERY, indirect=True)
def test_a_tree_and_the_forward_process_train(model, tmp_path):
    tree = dict(engine=model.engine(noise=Window(size=2, within=(0, 2)), tree=Splits(factor=2), seeds=1), group_size=4)
    stages = (GroupNorm(), WeightedSum(), TreeBackup())
    _, steps = train(model.run(tmp_path, name="tree", steps=1, objective=(ClippedRatio(),), advantage=stages, **tree))
    assert steps[0]["optim/grad_norm"] > 0 and steps[0]["policy/logprob_gap"] <= 1e-5
    nft = ForwardProcess(steps=3, eval_steps=2, draws=EveryTimestep(), beta=1.0)
    _, steps = train(model.run(tmp_path, name="nft", steps=1, engine=nft, objective=(Nft(),)))
    assert steps[0]["optim/grad_norm"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("model", ["a14b"], indirect=True)
def test_a_run_of_two_experts_goes_on_where_it_was(model, tmp_path):
    from dataclasses import replace

    whole, _ = train(model.run(tmp_path, name="whole", steps=2))
    train(model.run(tmp_path, name="parts", steps=1))
    gone_on, steps = train(replace(model.run(tmp_path, name="parts", steps=2)), fresh=False)
    assert len(steps) == 1 and {name.split(".")[0] for name in whole.trainable} == {"transformer", "transformer_2"}
    for name, p in whole.trainable.items():
        torch.testing.assert_close(gone_on.trainable[name], p, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["transformer", "transformer_2"])
@pytest.mark.parametrize("model", ["a14b"], indirect=True)
def test_one_expert_is_trained_and_the_other_stays(model, which, tmp_path):
    alone = WanModel(model.kind, model.path, settings=(("trained", (which,)),))
    config = alone.run(tmp_path, steps=2)
    trained, steps = train(config)
    assert {name.split(".")[0] for name in trained.trainable} == {which}
    assert all(row["optim/grad_norm"] > 0 for row in steps)
    files = {str(file.relative_to(config.folder)) for file in (config.folder / "adapter").rglob("*.safetensors")}
    name = "pytorch_lora_weights.safetensors"
    assert files == {f"adapter/{name}" if which == "transformer" else f"adapter/transformer_2/{name}"}
    again = alone.load(lora=Lora(start_from=str(config.folder / "adapter")))
    for name, p in trained.trainable.items():
        torch.testing.assert_close(again.trainable[name], p, rtol=0, atol=1e-7)
    rollout, _ = roll(alone, trained, alone.engine(schedule=Shifted(), noise=AllSteps(level=0.7)))
    assert rollout.mask_NA.tolist() == [[which == "transformer", which == "transformer_2"]] * 4
    engine = alone.engine(
        schedule=Shifted(), noise=Window(size=1, within=(0, 1) if which == "transformer_2" else (1, 2))
    )
    with pytest.raises(ConfigError, match="no step that could be trained is at its noise levels"):
        roll(alone, trained, engine)


@dataclass(frozen=True)
class Lowest:
    """Of the sampler's noise levels the lowest alone, which the expert of low noise has."""

    def count(self, steps: int) -> int:
        return 1

    def __call__(self, sigma_S1, generator):
        return sigma_S1[-2:-1]


@pytest.mark.parametrize("model", ["a14b_i2v"], indirect=True)
def test_draws_that_are_all_of_the_other_expert_train_nothing_and_end_nothing(model, tmp_path):
    """Which noise levels are drawn is luck, of each process too."""
    alone = WanModel(model.kind, model.path, settings=(("trained", ("transformer",)),))
    nft = ForwardProcess(steps=3, eval_steps=2, draws=Lowest(), beta=1.0)
    _, steps = train(alone.run(tmp_path, name="nft", steps=1, engine=nft, objective=(Nft(),)))
    assert steps[0]["optim/grad_norm"] == 0 and steps[0]["optim/bad_updates"] == 0


@pytest.mark.parametrize("model", ["a14b_i2v"], indirect=True)
def test_a_window_that_leaves_the_trained_expert_is_refused_before_anything_is_loaded(model, tmp_path):
    alone = WanModel(model.kind, model.path, settings=(("trained", ("transformer",)),))
    moves = SlidingWindow(size=1, every=1, stride=1, strategy="progressive")
    for schedule in (None, Shifted()):
        engine = alone.engine(steps=4, noise=moves, schedule=schedule)
        engine.check(alone.config(), group_size=2, training_steps=1)
        with pytest.raises(
            ConfigError, match="names transformer, and at training step [23] no noisy step is at its noise"
        ):
            engine.check(alone.config(), group_size=2, training_steps=3)
    model.engine(steps=4, noise=moves).check(model.config(), group_size=2, training_steps=3)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["a14b"], indirect=True)
def test_each_expert_has_its_own_guidance_and_a_detached_half_says_the_same(model):
    own = WanModel(model.kind, model.path, settings=(("guidance_2", 2.0),))
    policies = [m.load(**s) for m, s in ((model, {}), (own, {}), (own, {"detach_unconditional": True}))]
    x = torch.randn((2, *own.family.latent_shape(policies[0].pipe, *SIZE)), generator=torch.Generator().manual_seed(1))
    said = []
    for one in policies:
        with torch.no_grad():
            condition = one.encode(own.prompts)
            said.append(one.velocity(x, torch.tensor([0.9, 0.3]), condition, size=SIZE, guidance=4.0))
    torch.testing.assert_close(said[0][0], said[1][0], rtol=0, atol=0)
    assert float((said[0][1] - said[1][1]).abs().max()) > 1e-3
    torch.testing.assert_close(said[2], said[1], rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["5b_i2v"], indirect=True)
def test_a_given_first_frame_is_in_the_clip_and_takes_no_gradient(model, policy):
    """The autoencoder's picture of it, whatever noise is added on the way."""
    rollout, outputs = roll(model, policy, model.engine(schedule=Shifted(), noise=AllSteps(level=0.7)), group_size=3)
    first = torch.stack([clip.frames_FCHW[0].int() for clip in outputs.items])
    assert (first[:3] - first[:1]).abs().max() <= 2 and (first[0] - first[3]).abs().max() > 2
    others = torch.stack([clip.frames_FCHW[1:].int() for clip in outputs.items])
    assert (others[0] - others[1]).abs().max() > 2


@pytest.mark.slow
@pytest.mark.parametrize("model", ["t2v"], indirect=True)
def test_bfloat16_agrees_with_itself_and_layers_computed_again_give_the_same_gradient(model):
    low = model.load(dtype="bfloat16")
    perturb(low)
    rollout, _ = roll(model, low, model.engine(schedule=Shifted()))
    assert gap(low, rollout, 6) <= 0.02
    gradients = []
    for again in (False, True):
        policy = model.load(gradient_checkpointing=again)
        perturb(policy)
        rollout, _ = roll(model, policy, model.engine(schedule=Shifted()))
        values_of(policy, rollout, "logprobs", grad=True)["logprobs"].sum().backward()
        gradients.append({name: p.grad for name, p in policy.trainable.items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)
