"""Families whose text encoder is a language model: texts of their own lengths, training, and what it leaves in plain diffusers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from test_flow_models import CPU, EVAL_ROWS, PROMPTS, ROWS, Model, gap, perturb, roll, run_config, train, velocity_of
from tiny_families import BUILDERS
from torch import Tensor

from grpo_mm.advantages.actions.tree_backup import TreeBackup
from grpo_mm.advantages.baselines.group_norm import GroupNorm
from grpo_mm.advantages.combination.combine import WeightedSum
from grpo_mm.objectives import ClippedRatio, Nft
from grpo_mm.pipelines.flow.conforming.plain import in_three
from grpo_mm.pipelines.flow.engines.engine import FlowEngine
from grpo_mm.pipelines.flow.engines.forward import EveryTimestep, ForwardProcess
from grpo_mm.pipelines.flow.kernels import cps, dance_sde, ddim, flow_sde
from grpo_mm.pipelines.flow.models.adapters import Lora
from grpo_mm.pipelines.flow.models.known import known_pipeline
from grpo_mm.pipelines.flow.noise import AllSteps, Window
from grpo_mm.pipelines.flow.policy import FlowPolicy
from grpo_mm.pipelines.flow.schedule import Shifted
from grpo_mm.pipelines.flow.trees.branching import Splits
from grpo_mm.registry import lookup
from grpo_mm.types import Prompt, Rollout

TEXT_LENGTH = 64
STAGES = (GroupNorm(), WeightedSum(), TreeBackup())


@dataclass(frozen=True)
class FamilyModel(Model):
    """On its own grid, and as its plain pipeline is called."""

    @property
    def family(self):
        return lookup("flow_model", self.kind)(self.path)

    @property
    def guidance(self) -> float:
        return 4.0

    def config(self, **settings):
        return super().config(**{"text_length": TEXT_LENGTH, **settings})

    def engine(self, **settings) -> FlowEngine:
        return FlowEngine(**(dict(steps=3, eval_steps=3) | settings))

    def pipeline(self, path: str | Path | None = None):
        import diffusers

        pipe = getattr(diffusers, self.family.pipeline).from_pretrained(path or self.path)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def plain_pictures(model: FamilyModel, pipe, policy: FlowPolicy, engine: FlowEngine) -> Tensor:
    """[2, 3, H, W] in levels, drawn one by one with the call of the model card, from the latents of our evaluation."""
    call = model.family.plain_call(guidance=policy.config.guidance, text_length=TEXT_LENGTH)
    start = engine.evaluation_noise(policy, EVAL_ROWS, seed=0)
    height, width = policy.size(evaluation=True)
    found = []
    for p, latents in zip(EVAL_ROWS.prompt_N.tolist(), as_given(pipe, start, height, width)):
        drawn = pipe(
            prompt=PROMPTS[p].text, latents=latents[None], num_inference_steps=engine.eval_steps, height=height, width=width,
            output_type="pt", **call,
        )  # fmt: skip
        found.append((in_three(model.family, drawn.images) * 255).round())
    return torch.cat(found)


def as_given(pipe, latents: Tensor, height: int, width: int) -> Tensor:
    """Latents in the layout that a pipeline takes them in, which need not be that of its network."""
    if not type(pipe).__name__.startswith("Flux2"):
        return latents
    side = pipe.vae_scale_factor * 2
    return latents.transpose(1, 2).reshape(len(latents), -1, height // side, width // side)


@pytest.fixture(scope="module", params=list(BUILDERS))
def model(request, checkpoints) -> FamilyModel:
    return FamilyModel(request.param, checkpoints[request.param])


@pytest.fixture(scope="module")
def policy(model) -> FlowPolicy:
    policy = model.load()
    perturb(policy)
    return policy


@pytest.mark.parametrize("kernel, level", [(flow_sde, 0.7), (dance_sde, 0.3), (cps, 0.8), (ddim, 1.0)])
def test_on_unchanged_weights_every_ratio_is_one(model, policy, kernel, level):
    engine = model.engine(schedule=Shifted(), kernel=kernel, noise=AllSteps(level=level), rollout_batch=4)
    rollout, _ = roll(policy, engine)
    for micro_batch in (1, 7):
        assert gap(policy, rollout, micro_batch) <= 1e-5


def test_a_text_says_the_same_alone_and_beside_longer_ones(model, policy):
    """Shorter texts are filled up, and what is filled up is not seen."""
    texts = [Prompt("s", "a"), Prompt("l", "a photo of the blue square and many red circles above it")]
    x = torch.randn((1, *policy.family.latent_shape(policy.pipe, 32, 32)), generator=torch.Generator().manual_seed(3))
    at = dict(size=(32, 32), guidance=model.guidance)
    with torch.no_grad():
        both = policy.velocity(x.expand(2, *x.shape[1:]), torch.tensor([0.7, 0.7]), policy.encode(texts), **at)
        for i, text in enumerate(texts):
            alone = policy.velocity(x, torch.tensor([0.7]), policy.encode([text]), **at)
            torch.testing.assert_close(both[i : i + 1], alone, rtol=0, atol=2e-6)
    assert float((both[0] - both[1]).abs().max()) > 1e-3


def test_rollouts_of_texts_of_other_lengths_are_joined(model, policy):
    engine = model.engine(schedule=Shifted(), noise=Window(size=2, within=(0, 2)))
    one, _ = roll(policy, engine)
    longer = replace(ROWS, prompts=(Prompt("l/0", "a red circle " * 6), PROMPTS[1]))
    other, _ = engine.sample(policy, longer, step=0, seed=0, needs=frozenset())
    joined = Rollout.cat([one, other])
    assert joined.behaviour_NA.shape[0] == 2 * one.behaviour_NA.shape[0]
    assert gap(policy, joined, 5) <= 1e-5


def test_a_detached_half_gives_the_same_velocity(model):
    if not hasattr(model.family, "halves"):
        pytest.skip("guidance is an input of this network")
    settings = dict(lora=Lora(rank=3, alpha=5))
    whole, detached = model.load(**settings), model.load(**settings, detach_unconditional=True)
    perturb(whole), perturb(detached)
    torch.testing.assert_close(velocity_of(detached), velocity_of(whole), rtol=0, atol=1e-6)


@pytest.fixture(scope="module", params=["adapter", "model"])
def trained(request, model, tmp_path_factory):
    lora = Lora(rank=3, alpha=5) if request.param == "adapter" else None
    config = run_config(model, tmp_path_factory.mktemp("runs"), policy={"lora": lora})
    done = train(config)
    done.product = config.folder / request.param
    return done


def test_three_steps_train_and_the_product_renders_the_same_pictures_in_plain_diffusers(model, trained):
    assert len(trained.steps) == 3
    for row in trained.steps:
        assert row["policy/logprob_gap"] <= 1e-5 and row["optim/grad_norm"] > 0
    assert trained.steps[-1]["objective/ref_kl"] > 1e-10
    engine = trained.config.engine
    assert (engine.latents(trained.policy, EVAL_ROWS, seed=0) - trained.start).abs().max() > 1e-3
    pipe = model.pipeline(trained.product if trained.policy.product == "model" else None)
    if trained.policy.product == "adapter":
        pipe.load_lora_weights(trained.product)
    ours = engine.render(trained.policy, EVAL_ROWS, seed=0).int()
    assert (ours - plain_pictures(model, pipe, trained.policy, engine).int()).abs().max() <= 1
    assert model.family.pipeline in (trained.product / "README.md").read_text()


def test_a_tree_and_the_forward_process_train(model, tmp_path):
    tree = model.engine(noise=Window(size=2, within=(0, 2)), tree=Splits(factor=2), seeds=1)
    done = train(
        run_config(
            model,
            tmp_path,
            name="tree",
            engine=tree,
            group_size=4,
            steps=1,
            objective=(ClippedRatio(),),
            advantage=STAGES,
        )
    )
    assert done.steps[0]["optim/grad_norm"] > 0 and done.steps[0]["policy/logprob_gap"] <= 1e-5
    nft = ForwardProcess(steps=3, eval_steps=2, draws=EveryTimestep(), beta=1.0)
    done = train(run_config(model, tmp_path, name="nft", engine=nft, steps=1, objective=(Nft(),)))
    assert done.steps[0]["optim/grad_norm"] > 0


def test_bfloat16_agrees_with_itself(model):
    policy = model.load(dtype="bfloat16")
    perturb(policy)
    rollout, outputs = roll(policy, model.engine(schedule=Shifted()))
    assert outputs.items.dtype == torch.uint8 and rollout.record.latent_V.dtype == torch.float32
    assert gap(policy, rollout, 6) <= 0.02


def test_a_checkpoint_is_of_its_family_and_makes_pictures_of_whole_tokens(model):
    from grpo_mm.errors import ConfigError

    model.config().check()
    with pytest.raises(ConfigError, match="wanted a multiple of"):
        model.config(height=33).check()
    assert model.config().load(CPU).family.pipeline == type(model.pipeline()).__name__


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, name, billions",
    [
        ("qwen_image", "Qwen/Qwen-Image", 20.4),
        ("z_image", "Tongyi-MAI/Z-Image", 6.15),
        ("flux2_klein", "black-forest-labs/FLUX.2-klein-base-4B", 3.9),
        ("flux2_klein", "black-forest-labs/FLUX.2-klein-9B", 9.1),
        ("flux2", "black-forest-labs/FLUX.2-dev", 32.2),
        ("qwen_image21", "Qwen/Qwen-Image-2.1", 7.1),
        ("sana", "Efficient-Large-Model/Sana_600M_1024px_diffusers", 0.59),
        ("sana", "Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers", 1.6),
        ("sana", "Efficient-Large-Model/SANA1.5_4.8B_1024px_diffusers", 4.72),
        ("sd3", "stabilityai/stable-diffusion-3.5-large", 8.06),
        ("sd3", "stabilityai/stable-diffusion-3.5-large-turbo", 8.06),
    ],
)
def test_a_known_name_has_about_as_many_weights_as_its_authors_say(kind, name, billions):
    pipe, _ = known_pipeline(lookup("flow_model", kind)(name))
    assert type(pipe).__name__ == lookup("flow_model", kind).pipeline
    assert sum(p.numel() for p in pipe.transformer.parameters()) / 1e9 == pytest.approx(billions, rel=0.02)
