"""SD3 and FLUX as policies: exact replay, training, and products that plain diffusers renders to the same pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from grpo_mm.config.run_config import RunConfig, Scorer, Source
from grpo_mm.errors import ConfigError
from grpo_mm.objectives import ClippedRatio, Kl, RatioNorm
from grpo_mm.pipelines.flow.engines.engine import FlowEngine
from grpo_mm.pipelines.flow.kernels import cps, dance_sde, ddim, flow_sde
from grpo_mm.pipelines.flow.models.adapters import WEIGHT_NAME, Lora
from grpo_mm.pipelines.flow.models.flux import Flux
from grpo_mm.pipelines.flow.models.sd3 import Sd3
from grpo_mm.pipelines.flow.noise import AllSteps, Window
from grpo_mm.pipelines.flow.policy import FlowPolicy, FlowPolicyConfig
from grpo_mm.pipelines.flow.sampling import encode_rows
from grpo_mm.pipelines.flow.schedule import DiffusersSd3, FluxShift, Shifted
from grpo_mm.processes.distributed import Processes
from grpo_mm.rollout.rows import plan_rows
from grpo_mm.run.run_folder import open_folder
from grpo_mm.training.trainer import Trainer
from grpo_mm.types import Counts, Prompt, Rollout, Rows, View
from grpo_mm.weights.optim import Optim
from grpo_mm.weights.snapshots import Ema

CPU = torch.device("cpu")
TEXT_LENGTH = 8
PROMPTS = (Prompt("p/0", "a red circle"), Prompt("p/1", "a photo of the blue square"))
ROWS, _ = plan_rows(PROMPTS, group_size=3, parts=1)
EVAL_ROWS, _ = plan_rows(PROMPTS, group_size=1, parts=1)
LORA = Lora(rank=3, alpha=5)


@dataclass(frozen=True)
class Model:
    """A family with its checkpoint, its own diffusers grid and a guidance that matters."""

    kind: str
    path: str

    @property
    def family(self):
        return Sd3(self.path) if self.kind == "sd3" else Flux(self.path)

    @property
    def guidance(self) -> float:
        return 4.5 if self.kind == "sd3" else 3.5

    def config(self, **settings) -> FlowPolicyConfig:
        defaults = dict(
            model=self.family, lora=LORA, height=32, width=32, text_length=TEXT_LENGTH, guidance=self.guidance
        )
        return FlowPolicyConfig(**(defaults | settings))

    def load(self, **settings) -> FlowPolicy:
        torch.manual_seed(0)  # the start of an adapter
        return self.config(**settings).load(CPU)

    def engine(self, **settings) -> FlowEngine:
        schedule = DiffusersSd3() if self.kind == "sd3" else FluxShift()
        return FlowEngine(**(dict(steps=3, eval_steps=3, schedule=schedule) | settings))

    def pipeline(self, path: str | Path | None = None):
        """The plain diffusers pipeline."""
        from diffusers import FluxPipeline, StableDiffusion3Pipeline

        cls = StableDiffusion3Pipeline if self.kind == "sd3" else FluxPipeline
        pipe = cls.from_pretrained(path or self.path)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def assert_plain_diffusers_renders_the_same(pipe, policy: FlowPolicy, engine: FlowEngine) -> None:
    """Latents and pictures of the evaluation rows, from the same initial latents."""
    height, width = policy.size(evaluation=True)

    def plain(output: str) -> Tensor:
        return pipe(
            [PROMPTS[p].text for p in EVAL_ROWS.prompt_N], latents=engine.evaluation_noise(policy, EVAL_ROWS, seed=0),
            guidance_scale=policy.config.guidance, num_inference_steps=engine.eval_steps, height=height, width=width,
            max_sequence_length=TEXT_LENGTH, output_type=output,
        ).images  # fmt: skip

    torch.testing.assert_close(engine.latents(policy, EVAL_ROWS, seed=0), plain("latent"), rtol=0, atol=1e-4)
    images = engine.render(policy, EVAL_ROWS, seed=0)
    assert images.shape == (2, 3, height, width)
    assert (images.int() - (plain("pt") * 255).round().int()).abs().max() <= 1


@pytest.fixture(scope="module", params=["sd3", "flux"])
def model(request) -> Model:
    return Model(request.param, request.getfixturevalue(f"tiny_{request.param}"))


@pytest.fixture(scope="module")
def policy(model) -> FlowPolicy:
    """An adapter that has moved away from its start, which is kept as "ref". Tests leave it as it is."""
    policy = model.load()
    policy.snapshots.take("ref")
    perturb(policy)
    return policy


def perturb(policy: FlowPolicy, size: float = 0.05) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in policy.trainable.values():
            p.add_(size * torch.randn(p.shape, generator=generator).to(p))


def values_of(
    policy: FlowPolicy, rollout: Rollout, *needs: str, grad: bool = False, micro_batch: int = 16
) -> dict[str, Tensor]:
    """Named values [N, A] by replay."""
    found: dict[str, Tensor] = {}
    plan = [part for forward in policy.plan(rollout, rollout.mask_NA) for part in forward.split(micro_batch)]
    for index, values in policy.logprobs(rollout, plan, needs=frozenset(needs), grad=grad):
        for name, value in values.items():
            found.setdefault(name, torch.zeros(rollout.behaviour_NA.numel(), dtype=value.dtype))[index] = value
    return {name: value.view(rollout.behaviour_NA.shape) for name, value in found.items()}


def velocity_of(policy: FlowPolicy) -> Tensor:
    """The guided velocity on fixed latents of the evaluation rows."""
    condition, condition_N = encode_rows(policy, EVAL_ROWS)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn((2, *policy.family.latent_shape(policy.pipe, 32, 32)), generator=generator)
    with torch.no_grad():
        return policy.velocity(
            x.to(policy.math_dtype), torch.tensor([0.9, 0.4]), {k: v[condition_N] for k, v in condition.items()},
            size=(32, 32), guidance=policy.config.guidance,
        )  # fmt: skip


# ── replay ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "kernel, form, level",
    [
        (flow_sde, "gaussian", 0.7),
        (dance_sde, "gaussian", 0.3),
        (cps, "gaussian", 0.8),
        (cps, "cps", 0.8),
        (ddim, "gaussian", 1.0),
    ],
)
def test_on_unchanged_weights_every_ratio_is_one(model, policy, kernel, form, level):
    settings = dict(kernel=kernel, logprob=form, noise=AllSteps(level=level))
    for rollout_batch in (2, 16):
        rollout, _ = roll(policy, model.engine(schedule=Shifted(), rollout_batch=rollout_batch, **settings))
        assert rollout.behaviour_NA.shape == (6, 2)
        for micro_batch in (1, 7):
            assert gap(policy, rollout, micro_batch) <= 1e-6
    # On the diffusers grid the last trained step goes to σ' = .009, where CPS and DDIM have a std of about .0085: that
    # magnifies what another batch shape rounds in the network, so the shape is kept there.
    rollout, _ = roll(policy, model.engine(rollout_batch=6, **settings))
    assert gap(policy, rollout, 6) <= 1e-6


def roll(policy: FlowPolicy, engine: FlowEngine, *needs: str):
    return engine.sample(policy, ROWS, step=0, seed=0, needs=frozenset(needs))


def gap(policy: FlowPolicy, rollout: Rollout, micro_batch: int) -> float:
    """The largest |log ratio|."""
    logprobs = values_of(policy, rollout, "logprobs", micro_batch=micro_batch)["logprobs"]
    return float((logprobs - rollout.behaviour_NA).abs().max())


def test_other_weights_give_other_ratios_and_masked_actions_are_not_asked_for(model, policy):
    with policy.snapshots.use("ref"):
        rollout, _ = roll(policy, model.engine(noise=Window(size=2, within=(0, 2))))
    log_ratio = values_of(policy, rollout, "logprobs")["logprobs"] - rollout.behaviour_NA
    assert log_ratio.abs().min() > 1e-6
    only_first = replace(rollout, mask_NA=torch.arange(2).eq(0).expand(6, 2))
    assert values_of(policy, only_first, "logprobs")["logprobs"][:, 1].abs().max() == 0


def test_prompt_and_guidance_matter(model, policy):
    unguided = model.load(guidance=1.0)
    perturb(unguided)
    assert (velocity_of(policy) - velocity_of(unguided)).abs().max() > 1e-4
    condition = policy.encode(PROMPTS)
    assert (condition["tokens"][0] - condition["tokens"][1]).abs().max() > 1e-3


def test_a_prompt_is_encoded_alike_alone_and_in_company(policy):
    policy._conditions.clear()
    alone = policy.encode(PROMPTS[1:])
    policy._conditions.clear()
    together = policy.encode(PROMPTS)
    assert all(torch.equal(together[k][1:], alone[k]) for k in together)


# ── precision and memory ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("lora", [LORA, None], ids=["adapter", "full"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_latents_logprobs_and_trained_weights_are_at_least_float32(model, lora, dtype):
    policy = model.load(lora=lora, dtype=dtype)
    wide = torch.float64 if dtype == "float64" else torch.float32
    assert {p.dtype for p in policy.trainable.values()} == {wide}
    frozen = {p.dtype for p in policy.network.parameters() if not p.requires_grad}
    assert frozen == ({getattr(torch, dtype)} if lora else set())
    assert policy.pipe.vae.dtype == wide
    assert policy.pipe.text_encoder.dtype == getattr(torch, dtype)
    rollout, outputs = roll(policy, model.engine(), "mean_shift_old")
    record = rollout.record
    for tensor in (record.latent_V, record.velocity_old_V, rollout.behaviour_NA):
        assert tensor.dtype == wide
    assert outputs.items.dtype == torch.uint8
    # The batch shape of the rollout: in bfloat16 another one may round differently.
    logprobs = values_of(policy, rollout, "logprobs", micro_batch=6)["logprobs"]
    assert logprobs.dtype == wide
    assert (logprobs - rollout.behaviour_NA).abs().max() <= 1e-6


@pytest.mark.parametrize("lora", [LORA, None], ids=["adapter", "full"])
def test_low_precision_rounds_neither_masters_nor_decoder(model, lora):
    stored = model.pipeline()
    policy = model.load(lora=lora, dtype="bfloat16")
    assert_same_weights(policy.pipe.vae, stored.vae)
    if lora is None:
        assert_same_weights(policy.network, stored.transformer)
    else:
        close = {k: v.bfloat16() for k, v in stored.transformer.state_dict().items()}
        weights = {k.replace(".base_layer", ""): v for k, v in policy.network.state_dict().items() if "lora_" not in k}
        assert all(torch.equal(weights[k], close[k]) for k in close)


def test_guidance_is_applied_in_float32(tiny_sd3):
    policy = Model("sd3", tiny_sd3).load(dtype="bfloat16")
    velocity = velocity_of(policy)
    assert not torch.equal(velocity, velocity.bfloat16().float())


def assert_same_weights(network, other) -> None:
    a, b = network.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("lora", [LORA, None], ids=["adapter", "full"])
def test_gradient_checkpointing_gives_the_same_gradients(model, lora):
    grads = []
    for checkpointing in (False, True):
        policy = model.load(lora=lora, gradient_checkpointing=checkpointing)
        perturb(policy)
        rollout, _ = roll(policy, model.engine())
        values_of(policy, rollout, "logprobs", grad=True)["logprobs"].sum().backward()
        grads.append({k: p.grad for k, p in policy.trainable.items()})
        assert policy.network.is_gradient_checkpointing == checkpointing
    without_gradient = {k for k, g in grads[0].items() if g is None}
    assert len(without_gradient) < len(grads[0]) / 4
    for name, grad in grads[0].items():
        if grad is None:
            assert grads[1][name] is None
        else:
            torch.testing.assert_close(grads[1][name], grad, rtol=1e-5, atol=1e-8)
    assert max(float(g.abs().max()) for g in grads[0].values() if g is not None) > 1e-4


def test_micro_batches_do_not_change_the_gradient(model):
    policy = model.load(dtype="float64")
    perturb(policy)
    rollout, _ = roll(policy, model.engine())
    grads = []
    for micro_batch in (2, 16):
        logprobs = values_of(policy, rollout, "logprobs", grad=True, micro_batch=micro_batch)["logprobs"]
        found = torch.autograd.grad(logprobs.sum(), list(policy.trainable.values()), allow_unused=True)
        grads.append(torch.cat([g.flatten() for g in found if g is not None]))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-9, atol=1e-12)


def test_slicing_and_tiling_reach_the_decoder_and_keep_the_picture(model, policy):
    latents = torch.randn(
        (3, *policy.family.latent_shape(policy.pipe, 32, 32)), generator=torch.Generator().manual_seed(0)
    )
    assert not policy.pipe.vae.use_slicing and not policy.pipe.vae.use_tiling
    sliced = model.load(vae_slicing=True, vae_tiling=True, decode_batch=1)
    assert sliced.pipe.vae.use_slicing and sliced.pipe.vae.use_tiling
    images = policy.decode(latents, size=(32, 32))
    assert images.shape == (3, 3, 32, 32)
    sliced.pipe.vae.disable_tiling()  # tiles of 16 pixels are blended, which changes the picture
    assert (images.int() - sliced.decode(latents, size=(32, 32)).int()).abs().max() <= 1


@pytest.mark.parametrize("offload", [(), ("encoders",), ("decoder",), ("encoders", "decoder")])
def test_offloaded_parts_stay_in_main_memory(model, offload):
    policy = model.config(offload=offload).load(torch.device("meta"))  # any device but the CPU
    encoders = [getattr(policy.pipe, name) for name in policy.family.encoders]
    assert {part.device.type for part in encoders} == {"cpu" if "encoders" in offload else "meta"}
    assert policy.pipe.vae.device.type == ("cpu" if "decoder" in offload else "meta")
    assert policy.network.device.type == "meta"


def test_offloading_changes_no_number(model, policy):
    offloading = model.load(offload=("encoders", "decoder"))
    here, there = policy.encode(PROMPTS), offloading.encode(PROMPTS)
    assert all(torch.equal(here[k], there[k]) for k in here)
    latents = torch.zeros(1, *policy.family.latent_shape(policy.pipe, 16, 16))
    assert torch.equal(policy.decode(latents, size=(16, 16)), offloading.decode(latents, size=(16, 16)))


def test_training_and_evaluation_may_differ_in_size(model):
    policy, engine = model.load(eval_height=16, eval_width=48), model.engine()
    assert roll(policy, engine)[1].items.shape == (6, 3, 32, 32)
    assert engine.render(policy, EVAL_ROWS, seed=0).shape == (2, 3, 16, 48)


# ── where weights come from ─────────────────────────────────────────────────────────────────────────────────────────


def test_revision_and_variant_reach_the_hub_and_the_files(model, tmp_path, monkeypatch):
    import diffusers
    import huggingface_hub

    pipe = model.pipeline().to(torch.float16)
    folder = tmp_path / "half"
    pipe.save_pretrained(folder, variant="fp16")
    asked = []

    def fetched(*names, revision, **settings):
        asked.append((revision, settings.get("variant")))
        return str(folder / "model_index.json" if len(names) == 2 else folder)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetched)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", fetched)
    policy = model.load(model=replace(model.family, path="owner/name", variant="fp16", revision="v2"))
    assert asked == [("v2", None), ("v2", "fp16")]
    stored = {k: v.float() for k, v in pipe.transformer.state_dict().items()}
    weights = {k.replace(".base_layer", ""): v for k, v in policy.network.state_dict().items() if "lora_" not in k}
    assert all(torch.equal(weights[k], stored[k]) for k in stored)


def test_a_variant_that_is_not_there_is_a_config_error(model):
    with pytest.raises(ConfigError, match="fp16"):
        model.load(model=replace(model.family, variant="fp16"))


@pytest.mark.parametrize("problem", ["absent", "empty", "other pipeline", "broken", "no name"])
def test_a_folder_without_the_wanted_pipeline_is_refused_before_loading(model, problem, tmp_path):
    path = tmp_path / "model"
    if problem != "absent":
        path.mkdir()
    if problem == "other pipeline":
        (path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    if problem == "broken":
        (path / "model_index.json").write_text("{")
    family = replace(model.family, path="sd3.5" if problem == "no name" else str(path))
    wanted = {
        "absent": "there is no folder", "empty": "no model_index.json", "other pipeline": "StableDiffusionXLPipeline",
        "broken": "not valid JSON", "no name": "owner/name",
    }  # fmt: skip
    with pytest.raises(ConfigError, match=wanted[problem]):
        model.config(model=family).check()
    with pytest.raises(ConfigError):
        model.config(model=type(model.family)(str(tmp_path))).check()


@pytest.mark.parametrize("setting", ["height", "width", "eval_height", "eval_width"])
@pytest.mark.parametrize("value", [0, -16, 34, 33])
def test_a_size_that_leaves_half_a_token_is_refused(model, setting, value):
    with pytest.raises(ConfigError, match=f"policy.{setting} = {value}; wanted a multiple of 4"):
        model.config(**{setting: value}).check()


def test_without_files_on_disk_a_token_is_taken_to_have_16_pixels(model):
    hub = replace(model.family, path="owner/name")
    model.config(model=hub, height=48).check()
    with pytest.raises(ConfigError, match="multiple of 16"):
        model.config(model=hub, height=40).check()


def test_one_family_refuses_the_checkpoint_of_the_other(model):
    other = Flux if model.kind == "sd3" else Sd3
    with pytest.raises(ConfigError, match="wanted a"):
        model.config(model=other(model.path)).check()
    model.config().check()


def test_a_model_in_the_home_folder_is_found(model, monkeypatch):
    folder = Path(model.path)
    monkeypatch.setenv("HOME", str(folder.parent))
    config = model.config(model=replace(model.family, path=f"~/{folder.name}"))
    config.check()
    config.load(CPU)


# ── the reference and other copies of the weights ───────────────────────────────────────────────────────────────────

KL_VALUES = ("logprobs", "ref_logprobs", "mean_shift_ref", "velocity_shift_ref", "std", "dt", "mean_shift_old")
KL_FORMS = ("gaussian", "gaussian_no_dt", "mean_shift", "velocity", "k2", "k3")


def kl_of(form: str, values: dict[str, Tensor]) -> Tensor:
    """KL per action: the loss of the term with β = 1."""
    every = torch.ones_like(values["std"])
    view = View(
        old_logprobs=values["logprobs"], advantage=every, mask=every, row=every, group=every, row_actions=every,
        counts=Counts(every.numel(), len(every), every.shape[1]),
    )  # fmt: skip
    return Kl(form=form, weight=1.0)(values, view).loss


@pytest.mark.parametrize("kernel, level", [(flow_sde, 0.7), (dance_sde, 0.3), (cps, 0.8), (ddim, 1.0)])
def test_every_kl_is_zero_at_the_start_and_positive_with_a_gradient_after_an_update(model, policy, kernel, level):
    with policy.snapshots.use("ref"):
        rollout, _ = roll(policy, model.engine(kernel=kernel, noise=AllSteps(level=level)), *KL_VALUES)
        rollout = policy.with_values_of("ref", rollout, rollout.mask_NA)
        start = values_of(policy, rollout, *KL_VALUES)
    again = policy.with_values_of("ref", rollout, rollout.mask_NA)
    assert torch.equal(again.record.velocity_ref_V, rollout.record.velocity_ref_V)
    after = values_of(policy, rollout, *KL_VALUES, grad=True)
    for form in KL_FORMS:
        assert kl_of(form, start).abs().max() < 1e-9
        kl = kl_of(form, after)
        assert kl.min() > 0
        grads = torch.autograd.grad(kl.mean(), list(policy.trainable.values()), retain_graph=True, allow_unused=True)
        assert sum(float(g.norm()) for g in grads if g is not None) > 0


def test_the_closed_form_kl_has_the_published_variance(model, policy):
    with policy.snapshots.use("ref"):
        rollout, _ = roll(policy, model.engine(), *KL_VALUES)
        rollout = policy.with_values_of("ref", rollout, rollout.mask_NA)
    record = rollout.record
    values = values_of(policy, rollout, *KL_VALUES)
    sigma, sigma_next, level = record.sigmas()
    dt = sigma - sigma_next
    g2 = level**2 * sigma / torch.where(sigma >= 1, dt, 1 - sigma)
    shift_NA = torch.zeros(6, 2)
    for a in range(2):
        x, sigmas = record.x_NA[:, a], (sigma[:, a], sigma_next[:, a], level[:, a])
        with torch.no_grad():
            velocity = policy._velocity_at(record, record.from_NA[:, a])
        difference = (
            flow_sde(x, velocity, *sigmas)[0] - flow_sde(x, record.velocity_old_V[record.from_NA[:, a]], *sigmas)[0]
        )
        shift_NA[:, a] = (difference**2).flatten(1).mean(1)
    close = dict(rtol=1e-3, atol=0)
    torch.testing.assert_close(values["dt"], dt)
    torch.testing.assert_close(values["mean_shift_old"], shift_NA, **close)
    torch.testing.assert_close(values["mean_shift_ref"], shift_NA, **close)
    torch.testing.assert_close(kl_of("gaussian", values), shift_NA / (2 * g2 * dt), **close)
    torch.testing.assert_close(kl_of("gaussian_no_dt", values), shift_NA / (2 * g2), **close)


def test_the_reference_of_a_new_adapter_is_the_base_model(policy):
    with policy.snapshots.use("ref"):
        reference = velocity_of(policy)
    assert (velocity_of(policy) - reference).abs().max() > 1e-4
    policy.network.disable_adapters()
    base = velocity_of(policy)
    policy.network.enable_adapters()
    torch.testing.assert_close(base, reference, rtol=0, atol=1e-6)


@pytest.mark.parametrize("lora", [LORA, None], ids=["adapter", "full"])
def test_weights_come_back_bit_for_bit_after_the_average_was_used(model, lora):
    policy = model.load(lora=lora, dtype="bfloat16")
    policy.snapshots.take("ema")
    perturb(policy)
    policy.snapshots.average("ema", 0.9)
    before = {k: v.clone() for k, v in policy.network.state_dict().items()}
    velocity = velocity_of(policy)
    with policy.snapshots.use("ema"):
        assert not torch.equal(velocity_of(policy), velocity)
    with pytest.raises(RuntimeError), policy.snapshots.use("ema"):
        raise RuntimeError("an evaluation that fails")
    assert all(torch.equal(before[k], v) for k, v in policy.network.state_dict().items())
    assert torch.equal(velocity_of(policy), velocity)


# ── training, and what it leaves ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class ListedPrompts:
    def load(self) -> list[Prompt]:
        return list(PROMPTS)


@dataclass(frozen=True)
class Redness:
    def __call__(self, items: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return (items[:, 0].float() - items[:, 2].float()).mean((1, 2)) / 255


def run_config(model: Model, runs_dir: Path, *, name: str = "run", policy: dict | None = None, **settings) -> RunConfig:
    defaults = dict(
        name=name, runs_dir=str(runs_dir), policy=model.config(**(policy or {})), engine=model.engine(),
        prompts={"listed": Source(ListedPrompts())}, rewards={"redness": Scorer(Redness())},
        steps=3, prompts_per_step=2, group_size=3, optim=Optim(lr=0.01), samples_every=0, device="cpu",
        objective=(ClippedRatio(), Kl(form="gaussian", weight=0.04)),
    )  # fmt: skip
    return RunConfig(**(defaults | settings))


def train(config: RunConfig, rows: Rows = EVAL_ROWS) -> SimpleNamespace:
    """A finished run: its trainer, the logged steps, and the evaluation latents of the untrained policy."""
    config.check()
    trainer = Trainer(config, open_folder(config, fresh=True), Processes(device="cpu"))
    start = config.engine.latents(trainer.learner.policy, rows, seed=0)
    steps: list[dict[str, float]] = []
    trainer.run(on_step=lambda _, row: steps.append(row))
    return SimpleNamespace(trainer=trainer, policy=trainer.learner.policy, steps=steps, start=start, config=config)


@pytest.fixture(scope="module", params=["adapter", "model"])
def trained(request, model, tmp_path_factory) -> SimpleNamespace:
    lora = LORA if request.param == "adapter" else None
    config = run_config(model, tmp_path_factory.mktemp("runs"), policy={"lora": lora}, ema=Ema(every_updates=1))
    done = train(config)
    done.product = config.folder / request.param
    return done


def load_product(model: Model, trained: SimpleNamespace):
    """Into plain diffusers."""
    if trained.policy.product == "model":
        return model.pipeline(trained.product)
    pipe = model.pipeline()
    pipe.load_lora_weights(trained.product)
    return pipe


def test_training_starts_on_policy_and_moves_the_weights(trained):
    assert len(trained.steps) == 3
    for row in trained.steps:
        assert row["policy/logprob_gap"] <= 1e-6
        assert row["optim/grad_norm"] > 0
        assert row["reward/failed_frac"] == 0
    kl = [row["objective/ref_kl"] for row in trained.steps]
    assert kl[0] == pytest.approx(0, abs=1e-9)
    assert kl[1] > 1e-6 and kl[2] > 1e-6
    assert trained.trainer.state["calls"]["rollout_calls"] > 0


@pytest.mark.parametrize("settings", [{}, {"guidance": 1.0}, {"eval_height": 48, "eval_width": 16}])
def test_before_training_plain_diffusers_renders_the_same_pictures(model, settings):
    assert_plain_diffusers_renders_the_same(model.pipeline(), model.load(**settings), model.engine())


def test_the_product_renders_the_same_pictures_in_plain_diffusers(model, trained):
    engine = trained.config.engine
    with trained.trainer.learner.evaluation_weights():
        moved = engine.latents(trained.policy, EVAL_ROWS, seed=0) - trained.start
        assert moved.abs().max() > 1e-3, "training changed nothing to compare"
        assert_plain_diffusers_renders_the_same(load_product(model, trained), trained.policy, engine)


def test_the_product_asks_for_nothing_of_ours(trained):
    for file in trained.product.rglob("*"):
        if file.is_file() and file.name != "README.md":
            assert b"grpo_mm" not in file.read_bytes(), file
    assert trained.product.joinpath("README.md").is_file()
    assert not list(trained.product.rglob("*.bin")) and not list(trained.product.rglob("*.pt"))


def test_a_bfloat16_run_leaves_a_float32_adapter_and_a_bfloat16_model(model, tmp_path):
    policy = model.load(dtype="bfloat16")
    perturb(policy)
    policy.save(tmp_path / "adapter")
    assert {t.dtype for t in load_file(tmp_path / "adapter" / WEIGHT_NAME).values()} == {torch.float32}
    full = model.load(dtype="bfloat16", lora=None)
    masters = {k: v.clone() for k, v in full.network.state_dict().items()}
    full.save(tmp_path / "model")
    stored = load_file(tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}
    assert full.network is full.pipe.transformer
    assert all(torch.equal(masters[k], v) for k, v in full.network.state_dict().items())


# ── adapters as a start ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory) -> SimpleNamespace:
    """A saved adapter and the velocity it gives."""
    policy = model.load(lora=Lora(rank=2, alpha=7))
    without = velocity_of(policy)
    perturb(policy)
    folder = tmp_path_factory.mktemp("adapter")
    policy.save(folder)
    return SimpleNamespace(folder=folder, velocity=velocity_of(policy), without=without)


def test_rank_and_alpha_travel_with_the_adapter(model, adapter):
    pipe = model.pipeline()
    pipe.load_lora_weights(adapter.folder)
    config = next(iter(pipe.transformer.peft_config.values()))
    assert (config.r, config.lora_alpha) == (2, 7)


def test_an_adapter_is_continued_unrounded_whatever_the_model_runs_in(model, adapter):
    stored = load_file(adapter.folder / WEIGHT_NAME)
    policy = model.load(dtype="bfloat16", lora=Lora(start_from=str(adapter.folder)))
    assert len(policy.trainable) == len(stored)
    for name, p in policy.trainable.items():
        assert torch.equal(p, stored["transformer." + name.replace(".default", "")])


@pytest.mark.parametrize("where", ["folder", "file"])
def test_training_goes_on_from_a_saved_adapter(model, adapter, where, tmp_path):
    start = adapter.folder if where == "folder" else adapter.folder / WEIGHT_NAME
    policy = model.load(lora=Lora(start_from=str(start)))
    torch.testing.assert_close(velocity_of(policy), adapter.velocity, rtol=0, atol=1e-6)
    assert all("lora_" in name and p.dtype == torch.float32 for name, p in policy.trainable.items())
    assert {min(p.shape) for p in policy.trainable.values()} == {2}
    perturb(policy)
    policy.save(tmp_path)
    again = model.load(lora=Lora(start_from=str(tmp_path)))
    torch.testing.assert_close(velocity_of(again), velocity_of(policy), rtol=0, atol=1e-6)
    pipe = model.pipeline()
    pipe.load_lora_weights(tmp_path)
    assert next(iter(pipe.transformer.peft_config.values())).lora_alpha == 7


@pytest.mark.parametrize("lora", [LORA, None], ids=["adapter", "full"])
def test_a_merged_adapter_gives_the_velocity_of_the_adapter(model, adapter, lora):
    policy = model.load(merge_adapter=str(adapter.folder), lora=lora)
    torch.testing.assert_close(velocity_of(policy), adapter.velocity, rtol=0, atol=1e-4)
    assert len(getattr(policy.network, "peft_config", {})) == (1 if lora else 0)
    assert (velocity_of(policy) - adapter.without).abs().max() > 1e-3


@pytest.mark.parametrize("key", ["merge_adapter", "lora"])
def test_an_adapter_that_is_not_there_is_refused_before_loading(model, key, tmp_path):
    for path in (str(tmp_path), str(tmp_path / "none.safetensors"), "./none", "none"):
        with pytest.raises(ConfigError, match="adapter"):
            model.config(**{key: path if key == "merge_adapter" else Lora(start_from=path)}).check()


def test_targets_that_match_nothing_are_refused(model):
    with pytest.raises((ConfigError, ValueError), match="nothing_like_this"):
        model.load(lora=Lora(targets=("nothing_like_this",)))


def test_guard_trains_from_the_stored_velocities(model, tmp_path):
    done = train(run_config(model, tmp_path, objective=(RatioNorm(),), steps=2))
    assert done.steps[0]["policy/logprob_gap"] <= 1e-6
    assert done.steps[0]["objective/ratio"] == pytest.approx(1, abs=1e-6)
    assert done.steps[1]["optim/grad_norm"] > 0
