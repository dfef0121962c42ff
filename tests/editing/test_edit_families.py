"""Families that edit: pictures of the prompt in rollout, replay, training and evaluation, and what a run leaves in plain diffusers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_families import FamilyModel, as_given
from test_flow_models import Redness, gap, perturb, train
from tiny_edits import BUILDERS, KINDS, smaller_sources, written_edits

from grpo_mm.advantages.actions.tree_backup import TreeBackup
from grpo_mm.advantages.baselines.group_norm import GroupNorm
from grpo_mm.advantages.combination.combine import WeightedSum
from grpo_mm.config.run_config import RunConfig
from grpo_mm.config.settings import Source
from grpo_mm.datasets.media.media_files import ImageFile
from grpo_mm.datasets.table.reader import Table
from grpo_mm.errors import UserError
from grpo_mm.objectives import ClippedRatio, Kl, Nft
from grpo_mm.pipelines.flow.engines.forward import EveryTimestep, ForwardProcess
from grpo_mm.pipelines.flow.kernels import cps, dance_sde, ddim, flow_sde
from grpo_mm.pipelines.flow.models.adapters import Lora
from grpo_mm.pipelines.flow.models.family import GEOMETRY
from grpo_mm.pipelines.flow.models.sources import SOURCES
from grpo_mm.pipelines.flow.noise import AllSteps, Window
from grpo_mm.pipelines.flow.policy import FlowPolicy
from grpo_mm.pipelines.flow.schedule import Shifted
from grpo_mm.pipelines.flow.trees.branching import Splits
from grpo_mm.registry import lookup
from grpo_mm.rollout.rows import plan_rows
from grpo_mm.rollout.scoring import Scorer
from grpo_mm.types import Prompt
from grpo_mm.weights.optim import Optim


@dataclass(frozen=True)
class EditModel(FamilyModel):
    """A family with its checkpoint and data of edits."""

    data: str = ""
    sources: str = "as_pipeline"

    @property
    def family(self):
        return lookup("flow_model", self.kind)(self.path, sources=self.sources)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return tuple(Table(self.data).load())

    def rows(self, group_size: int):
        return plan_rows(self.prompts, group_size=group_size, parts=1)[0]


@pytest.fixture(scope="module", autouse=True)
def small():
    with smaller_sources():
        yield


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory) -> EditModel:
    folder = tmp_path_factory.mktemp("edits")
    path = BUILDERS[request.param](folder / "model")
    return EditModel(request.param, str(path), data=str(written_edits(folder)))


@pytest.fixture(scope="module")
def policy(model) -> FlowPolicy:
    policy = model.load()
    perturb(policy)
    return policy


def at(policy: FlowPolicy, prompts, size=(32, 32), guidance: float = 4.0):
    """The guided velocity of prompts in one batch, at the same latents."""
    shape = policy.family.latent_shape(policy.pipe, *size)
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(3)).expand(len(prompts), *shape)
    with torch.no_grad():
        condition = policy.encode(prompts, size=size)
        return policy.velocity(x, torch.full((len(prompts),), 0.7), condition, size=size, guidance=guidance)


@pytest.mark.parametrize("kernel, level", [(flow_sde, 0.7), (dance_sde, 0.3), (cps, 0.8), (ddim, 1.0)])
def test_on_unchanged_weights_every_ratio_is_one(model, policy, kernel, level):
    engine = model.engine(schedule=Shifted(), kernel=kernel, noise=AllSteps(level=level), rollout_batch=4)
    rollout, outputs = engine.sample(policy, model.rows(3), step=0, seed=0, needs=frozenset())
    assert outputs.items.shape == (6, 3, 32, 32)
    for micro_batch in (1, 7):
        assert gap(policy, rollout, micro_batch) <= 1e-5


def test_pictures_of_unlike_sizes_say_in_a_batch_what_they_say_alone(model, policy):
    both = at(policy, model.prompts)
    for i, prompt in enumerate(model.prompts):
        torch.testing.assert_close(both[i : i + 1], at(policy, [prompt]), rtol=0, atol=2e-6)


def test_which_picture_it_is_counts(model, policy):
    one, other = model.prompts
    swapped = at(policy, [replace(one, media=other.media), replace(other, media=one.media)])
    assert float((swapped - at(policy, model.prompts)).flatten(1).abs().amax(1).min()) > 1e-3


def test_a_prompt_with_its_picture_is_encoded_once(model, policy, monkeypatch):
    policy.forget_texts()
    asked, own = [], policy.pipe.vae.encode
    monkeypatch.setattr(policy.pipe.vae, "encode", lambda *args, **kwargs: asked.append(1) or own(*args, **kwargs))
    for _ in range(2):
        policy.encode(model.prompts, size=(32, 32))
    assert len(asked) == 2
    policy.encode([replace(model.prompts[0], media=model.prompts[1].media)], size=(32, 32))
    policy.encode(model.prompts, size=(48, 32))
    assert len(asked) == 5


def test_pictures_have_as_many_pixels_as_are_drawn_where_the_config_says_so(model):
    policy = replace(model, sources="as_output").load(height=64, eval_height=128, width=64)
    small, large = (policy.encode(model.prompts, size=policy.size(evaluation=e)) for e in (False, True))
    tokens = policy.family.image_tokens(policy.pipe, 64, 64)
    for condition, most in ((small, 1.2 * tokens), (large, 1.2 * 2 * tokens)):
        number = condition[GEOMETRY].view(2, -1, 2).prod(2).sum(1)
        assert int(number.max()) == condition[SOURCES].shape[1] and int(number.max()) <= most
        assert condition[GEOMETRY][0].tolist() != condition[GEOMETRY][1].tolist()
    assert large[SOURCES].shape[1] > small[SOURCES].shape[1] or model.kind.startswith(
        "flux2"
    )  # never made larger there


def test_kontext_compares_shapes_in_whole_tokens_as_its_pipeline_does(monkeypatch):
    """634 × 509 pixels are 39 × 31 tokens of 16, nearer to 1184 / 880 than to 1104 / 944, and 634 / 509 is not."""
    from diffusers.image_processor import VaeImageProcessor
    from diffusers.pipelines.flux import pipeline_flux_kontext as plain
    from PIL import Image

    sizes = [(1104, 944), (1184, 880)]
    monkeypatch.setattr(plain, "PREFERRED_KONTEXT_RESOLUTIONS", sizes)
    picture = Image.new("RGB", (634, 509))
    height, width = VaeImageProcessor(vae_scale_factor=16).get_default_height_width(picture)
    wanted = min((abs(width / height - w / h), w, h) for w, h in sizes)[1:]
    family = lookup("flow_model", "flux_kontext")("any/kontext")
    found = family._size(SimpleNamespace(vae_scale_factor=8), picture, (1024, 1024))
    assert found == wanted[::-1] == (880, 1184)


def test_a_prompt_without_its_picture_is_refused(model, policy):
    if model.family.pictures[0]:
        with pytest.raises(UserError, match=r"'none' cannot be put to .*: it shows no pictures, and the model needs"):
            policy.encode([Prompt("none", "a red circle")])


def test_a_prompt_whose_picture_cannot_be_read_comes_to_nothing_and_the_others_do_not(model, tmp_path, caplog):
    policy = model.load()
    one, other = model.prompts
    (tmp_path / "gone.png").write_bytes(b"no picture")
    gone = replace(other, id="gone", media=(ImageFile(str(tmp_path / "gone.png")),))
    rows = plan_rows((one, gone), group_size=2, parts=1)[0]
    _, outputs = model.engine(schedule=Shifted()).sample(policy, rows, step=0, seed=0, needs=frozenset())
    items = [outputs.items[i] for i in outputs.item_index().tolist()]
    drawn = {int(rows.prompt_N[row]): items[i] is not None for i, row in enumerate(outputs.row_M.tolist())}
    assert drawn == {0: True, 1: False} and policy.unreadable == {"gone"}
    rendered = model.engine().render(policy, plan_rows((one, gone), group_size=1, parts=1)[0], seed=0)
    assert [item is None for item in rendered] == [False, True]
    assert "a picture of it cannot be read" in caplog.text and "1 such prompts so far" in caplog.text


def run_of(model: EditModel, runs_dir: Path, *, name: str = "run", policy: dict | None = None, **settings) -> RunConfig:
    defaults = dict(
        name=name, runs_dir=str(runs_dir), policy=model.config(**(policy or {})), engine=model.engine(),
        prompts={"edits": Source(Table(model.data))}, rewards={"redness": Scorer(Redness())},
        steps=3, prompts_per_step=2, group_size=3, optim=Optim(lr=0.01), samples_every=0, device="cpu",
        objective=(ClippedRatio(), Kl(form="gaussian", weight=0.04)),
    )  # fmt: skip
    return RunConfig(**(defaults | settings))


@pytest.fixture(scope="module", params=["adapter", pytest.param("model", marks=pytest.mark.slow)])
def trained(request, model, tmp_path_factory) -> SimpleNamespace:
    lora = Lora(rank=3, alpha=5) if request.param == "adapter" else None
    config = run_of(model, tmp_path_factory.mktemp("runs"), policy={"lora": lora})
    done = train(config, rows=model.rows(1))
    done.product = config.folder / request.param
    return done


def test_three_steps_train_and_the_product_edits_alike_in_plain_diffusers(model, trained):
    assert len(trained.steps) == 3
    for row in trained.steps:
        assert row["policy/logprob_gap"] <= 1e-5 and row["optim/grad_norm"] > 0
    assert trained.steps[-1]["objective/ref_kl"] > 1e-10
    engine, policy, rows = trained.config.engine, trained.policy, model.rows(1)
    assert (engine.latents(policy, rows, seed=0) - trained.start).abs().max() > 1e-3
    pipe = model.pipeline(trained.product if policy.product == "model" else None)
    if policy.product == "adapter":
        pipe.load_lora_weights(trained.product)
    ours = engine.render(policy, rows, seed=0).int()
    start, size = engine.evaluation_noise(policy, rows, seed=0), policy.size(evaluation=True)
    for i, latents in enumerate(as_given(pipe, start, *size)):
        pictures = policy.config.open_pictures(model.prompts[i])
        drawn = pipe(
            prompt=model.prompts[i].text, latents=latents[None], num_inference_steps=engine.eval_steps, output_type="pt",
            **model.family.plain_size(size), **model.family.plain_pictures(pipe, pictures, size),
            **model.family.plain_call(guidance=policy.config.guidance, text_length=64),
        )  # fmt: skip
        assert ((drawn.images[0] * 255).round().int() - ours[i]).abs().max() <= 1
    card = (trained.product / "README.md").read_text()
    assert model.family.pipeline in card and "image=picture" in card and "tags: [image-to-image, " in card


def test_a_tree_and_the_forward_process_train(model, tmp_path):
    model = replace(model, sources="as_output")
    tree = model.engine(noise=Window(size=2, within=(0, 2)), tree=Splits(factor=2), seeds=1)
    stages = (GroupNorm(), WeightedSum(), TreeBackup())
    config = run_of(
        model, tmp_path, name="tree", engine=tree, group_size=4, steps=1, objective=(ClippedRatio(),), advantage=stages
    )
    done = train(config, rows=model.rows(1))
    assert done.steps[0]["optim/grad_norm"] > 0 and done.steps[0]["policy/logprob_gap"] <= 1e-5
    nft = ForwardProcess(steps=3, eval_steps=2, draws=EveryTimestep(), beta=1.0)
    done = train(run_of(model, tmp_path, name="nft", engine=nft, steps=1, objective=(Nft(),)), rows=model.rows(1))
    assert done.steps[0]["optim/grad_norm"] > 0
