"""A flow-matching model as a policy: guided velocity, log-probabilities of stored steps, adapters, snapshots."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from grpo_mm.errors import ConfigError, UserError
from grpo_mm.outside import reason, shown
from grpo_mm.pipelines.flow.conditions import by_kind, forget_oldest, key_of, stand_ins_for
from grpo_mm.pipelines.flow.models import adapters
from grpo_mm.pipelines.flow.models.card import MERGED, loading_code
from grpo_mm.pipelines.flow.models.family import GEOMETRY, Size, joined, resolve
from grpo_mm.pipelines.flow.models.networks import batches, each_of, network_of, networks_of, units_of
from grpo_mm.pipelines.flow.models.picture_sizes import sizes_of
from grpo_mm.pipelines.flow.settings import DTYPES, FlowSettings
from grpo_mm.processes.clock import count, phase
from grpo_mm.processes.compiled import check_compiler, compile_layers
from grpo_mm.processes.distributed import Shard
from grpo_mm.processes.shards import gathered
from grpo_mm.types import Clip, Clips, Pictures, Prompt, Rollout
from grpo_mm.weights.eight_bit import bitsandbytes, mark_quantized, quantize
from grpo_mm.weights.snapshots import Snapshots

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FlowPolicyConfig(FlowSettings):
    """Settings of a flow policy; `load` makes it."""

    def load(self, device: torch.device, *, shard: Shard | None = None) -> FlowPolicy:
        """shard: cuts the transformer's weights over processes; None: this one holds all of them."""
        if self.quantize is not None:
            bitsandbytes(f"policy.quantize = {self.quantize}")  # before gigabytes are read
        return FlowPolicy(self, device, shard=shard)


class FlowPolicy:
    """The model on its device, with the parameters that are trained."""

    def __init__(self, config: FlowPolicyConfig, device: torch.device, *, shard: Shard | None = None) -> None:
        self.config, self.device, self.unit = config, device, config.unit
        self.family = config.model
        self.dtype = DTYPES[config.dtype]
        self.math_dtype = torch.promote_types(self.dtype, torch.float32)
        if config.compile:
            check_compiler(device)
        self.pipe = self.family.load(self.dtype, full=config.lora is None)
        self._sizes = sizes_of(self.pipe.vae.config, self.pipe.transformer.config, where=self.family.path)
        if config.text_length < 1 and self.pipe.components.get(self.family.encoders[-1]) is not None:
            raise ConfigError(
                f"policy.text_length = 0, but {self.family.path} has {self.family.encoders[-1]}, which reads at least 1 token; "
                "0 is for checkpoints without it."
            )
        self.merged = {} if config.merge_adapter is None else adapters.merge(self.pipe, config.merge_adapter)
        self.network: nn.Module = network_of(self.pipe)
        self.trained = tuple(getattr(self.family, "trained", None) or networks_of(self.pipe))
        """Of the pipeline's networks, the names of those that are trained."""
        for network in each_of(self.network) if config.quantize is not None else ():
            blocks = [part for part in network.children() if isinstance(part, nn.ModuleList)]
            quantize(blocks, config.quantize, compute=self.dtype)
            mark_quantized(network, config.quantize)
        if config.lora is None:
            for name in self.trained:
                getattr(self.pipe, name).requires_grad_(True)
        else:
            adapters.add(
                self.pipe,
                config.lora,
                targets=self.family.lora_targets,
                dtype=self.math_dtype,
                trained=self.trained,
            )
        self._reduced = config.lora is None and self.dtype == torch.bfloat16
        compute = self.dtype if self._reduced else None
        self.shards = None if shard is None else shard(self.network, units_of(self.network), compute=compute)
        self.trainable = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        self._place()
        if config.gradient_checkpointing:
            for network in each_of(self.network):
                network.enable_gradient_checkpointing()
        if config.vae_slicing:
            self.pipe.vae.enable_slicing()
        if config.vae_tiling:
            self.pipe.vae.enable_tiling()
        if config.compile:
            compile_layers(block for unit in units_of(self.network) for block in unit)
        self.snapshots = Snapshots(self.trainable, self.shards, adapted=None if config.lora is None else self.network)
        self._conditions: dict[Any, dict[str, Tensor]] = {}
        """By what `key_of` says of a prompt, on the CPU."""
        self.pictured = False  # whether a prompt with pictures was seen
        self.unreadable: set[str] = set()
        """Ids of prompts whose pictures could not be read."""
        self.grid_is_told = False  # whether the log says that another grid than the checkpoint's is sampled on

    def _place(self) -> None:
        for name, part in self.pipe.components.items():
            if isinstance(part, nn.Module):
                away = (name in self.family.encoders and "encoders" in self.config.offload) or (
                    name == "vae" and "decoder" in self.config.offload
                )
                part.to("cpu" if away else self.device)

    def size(self, *, evaluation: bool) -> Size:
        """(height, width) in pixels, of clips (frames, height, width), to sample with.

        Raises:
            ConfigError: the network has no positions for a picture of this size; known here of a checkpoint that was not on the disk
                when the config was checked.
        """
        self.config.check_sizes(self._sizes)
        return self.config.size(evaluation=evaluation)

    def encode(self, prompts: Sequence[Prompt], *, size: Size | None = None) -> dict[str, Tensor]:
        """The condition of each prompt, [P, ...]; each is encoded once and alone, so that a batch cannot change it.

        size: (height, width) in pixels of what is drawn with it, which counts for models that read pictures; None: that of rollouts.

        A prompt whose pictures cannot be read is encoded with grey ones and named in `unreadable`: what is drawn of it is nothing
        (`without_unreadable`), and the log says why.

        Raises:
            UserError: a prompt with pictures for a model that reads none, or one without what it reads.
        """
        size = size or self.size(evaluation=False)
        with phase("encode"):
            rows, moved = [], False
            for prompt in prompts:
                given = self._pictures(prompt)
                key = key_of(prompt, given, size)
                self.pictured |= bool(given)
                if key not in self._conditions:
                    if not moved:
                        self._move(self.family.encoders, self.device, "encoders")
                        self._move(["vae"] if self.config.pictures[1] else [], self.device, "decoder")
                        moved = True
                    c = self._encoded(prompt, given, size)
                    self._conditions[key] = {k: v.to("cpu") for k, v in c.items()}
                rows.append(self._conditions[key])
            if moved:
                self._move(self.family.encoders, "cpu", "encoders")
                self._move(["vae"] if self.config.pictures[1] else [], "cpu", "decoder")
            condition = {k: v.to(self.device) for k, v in joined(rows).items()}
            forget_oldest(self._conditions)
        return condition

    def _pictures(self, prompt: Prompt) -> list[Any]:
        """Grey ones for a prompt that is unreadable."""
        if prompt.id not in self.unreadable:
            try:
                return self.config.open_pictures(prompt)
            except UserError:
                raise
            except (ValueError, OSError) as error:
                self._say_unreadable(prompt, error)
        return stand_ins_for(prompt)

    def _encoded(self, prompt: Prompt, given: list[Any], size: Size) -> Mapping[str, Tensor]:
        asked = {"text_length": self.config.text_length, "guidance": self.config.guidance}
        if self.config.pictures[1] == 0:
            return self.family.encode(self.pipe, prompt.text, **asked)
        try:
            return self.family.encode(self.pipe, prompt.text, **asked, pictures=given, size=size)
        except ValueError as error:  # what a pipeline says of pictures that are too small, or too long and narrow
            if not given or prompt.id in self.unreadable:
                raise
            self._say_unreadable(prompt, error)
            return self.family.encode(self.pipe, prompt.text, **asked, pictures=stand_ins_for(prompt), size=size)

    def _say_unreadable(self, prompt: Prompt, error: Exception) -> None:
        self.unreadable.add(prompt.id)
        log.warning(
            "prompt %s: a picture of it cannot be read (%s): what is drawn of it comes to nothing; %d such prompts so far",
            shown(prompt.id), reason(error), len(self.unreadable),
        )  # fmt: skip

    def forget_texts(self) -> None:
        """What is kept of encoded texts is encoded again when it is asked for."""
        self._conditions.clear()

    def _move(self, names: Sequence[str], device: torch.device | str, part: Literal["encoders", "decoder"]) -> None:
        if part in self.config.offload:
            for name in names:
                module = getattr(self.pipe, name, None)
                if module is not None:
                    module.to(device)

    def velocity(
        self, x: Tensor, sigma: Tensor, condition: Mapping[str, Tensor], *, size: Size, guidance: float
    ) -> Tensor:
        """The guided velocity in float32 (float64 for a float64 model), [n, ...]."""
        return self.velocity_and_half(x, sigma, condition, size=size, guidance=guidance)[0]

    def velocity_and_half(
        self, x: Tensor, sigma: Tensor, condition: Mapping[str, Tensor], *, size: Size, guidance: float,
        of_none: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """The guided velocity, and the unconditional half of it where that is a constant (`detach_unconditional`), [n, ...] each.

        Rows whose pictures are of unlike sizes, and those of either expert, go through the network one kind after the other (`by_kind`).

        of_none: that half, where these weights have said it before.
        """
        call = partial(self._velocity_and_half, size=size, guidance=guidance)
        kinds = [condition[GEOMETRY]] if GEOMETRY in condition else []
        kinds += [self._expert(sigma)[:, None]] if self._has_experts and not sigma.is_meta else []
        if kinds:
            return by_kind(call, torch.cat(kinds, dim=1), x, sigma, condition, of_none)
        return call(x, sigma, condition, of_none)

    def _velocity_and_half(
        self, x: Tensor, sigma: Tensor, condition: Mapping[str, Tensor], of_none: Tensor | None, *, size: Size, guidance: float
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        # Trained weights are float32, those of an adapter as well, and products are taken in the network's own precision. Every
        # weight is met once, so that a cache of what was cast would be copies that nobody asks for.
        low = self.dtype == torch.bfloat16 and not (
            self._reduced and self.shards is not None
        )  # cut: they are gathered in it
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=low, cache_enabled=not low):
            at = (self.pipe, x.to(self.dtype), sigma.to(self.math_dtype), condition)
            if not self.config.detach_unconditional or self.family.network_rows(guidance) == 1:
                return self.family.velocity(*at, guidance=guidance, size=size).to(self.math_dtype), None
            if of_none is None and not torch.is_grad_enabled():
                of_none, of_text = self.family.halves(*at, size=size)
            else:
                if of_none is None:
                    with torch.no_grad():
                        of_none = self.family.half(*at, size=size, text=False)
                of_text = self.family.half(*at, size=size, text=True)
            if hasattr(self.family, "guidance_at"):
                guidance = self.family.guidance_at(self.pipe, sigma, guidance)
        return self.family.guided(of_none, of_text, guidance), of_none

    @property
    def _has_experts(self) -> bool:
        return isinstance(self.network, nn.ModuleDict)

    def _expert(self, sigma: Tensor) -> Tensor:
        """Which network says the velocity at noise levels [...], int64 of that shape."""
        if not self._has_experts:
            return torch.zeros_like(sigma, dtype=torch.int64)
        return self.family.expert_of(self.pipe, sigma.flatten().to(self.math_dtype)).view(sigma.shape)

    def trains_at(self, sigma: Tensor) -> Tensor:
        """Whether a network that is trained says the velocity at noise levels [...], bool of that shape."""
        names = list(networks_of(self.pipe))
        own = torch.tensor([names.index(name) for name in self.trained], device=sigma.device)
        return torch.isin(self._expert(sigma), own)

    def check_trains_at(self, sigma: Tensor) -> None:
        """Raises ConfigError if no network that is trained says the velocity at any of the noise levels [n] of a step, whoever draws which."""
        if sigma.numel() and not self.trains_at(sigma).any():
            raise ConfigError(
                f"policy.model.trained names {' and '.join(self.trained)}, and no step that could be trained is at its noise levels. "
                "Move the noisy steps (engine.noise), or train the other network."
            )

    @torch.no_grad()
    def decode(self, latents: Tensor, *, size: Size) -> Tensor | Pictures | Clips:
        """Latents [n, ...] to uint8 images [n, 3, H, W] on the CPU; `Pictures` if some hold NaN or infinities, None for these. Of a
        model that draws clips: `Clips`.

        Beside the pictures themselves, memory holds one batch of `decode_batch`.
        """
        images, sound_n = None, torch.ones(len(latents), dtype=torch.bool)
        with phase("decode"):
            self._move(["vae"], self.device, "decoder")
            start = 0
            for part in latents.split(self.config.decode_batch):
                decoded = self.family.decode(self.pipe, part, size=size).float()
                decoded = decoded.transpose(1, 2) if self.config.draws_clips else decoded  # clips: [n, F, 3, H, W]
                here = slice(start, start := start + len(part))
                sound_n[here] = decoded.isfinite().flatten(1).all(1).cpu()
                unit = (decoded / 2 + 0.5).clamp(0, 1)
                if images is None:
                    images = torch.empty(len(latents), *unit.shape[1:], dtype=torch.uint8)
                images[here] = (unit * 255).round().nan_to_num().to(torch.uint8).cpu()
            self._move(["vae"], "cpu", "decoder")
        if self.config.draws_clips:
            rate, found = self.config.frame_rate, zip(images, sound_n.tolist(), strict=True)
            return Clips(Clip(frames, rate) if sound else None for frames, sound in found)
        if sound_n.all():
            return images
        return Pictures(image if sound else None for image, sound in zip(images, sound_n.tolist(), strict=True))

    def plan(self, rollout: Rollout, mask_NA: Tensor) -> list[Tensor]:
        """Flat positions of the masked actions in forwards of at most `micro_batch` latents, in the order of sampling.

        Actions that start from one latent come in one forward and share its network call; a forward has rows of one expert.
        """
        position = torch.nonzero(mask_NA.flatten().bool()).flatten()
        if not position.numel():
            return []
        state, place = torch.unique(rollout.record.states(position), return_inverse=True)
        forward = batches(self._expert(rollout.record.sigma_of(state)), self.config.micro_batch)
        order = torch.argsort(forward[place] * len(state) + place, stable=True)
        return list(position[order].split(torch.bincount(forward[place]).tolist()))

    def logprobs(
        self, rollout: Rollout, plan: Sequence[Tensor], *, needs: frozenset[str], grad: bool
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """For each forward of the plan: its flat positions [n] and the named values [n]."""
        record = rollout.record
        for index in plan:
            with torch.set_grad_enabled(grad), phase("train_network"):
                # A rank that has run out still takes part in the collectives of a forward: row 0, weight nothing.
                here = index if index.numel() else index.new_zeros(1)
                state, place = torch.unique(record.states(here), return_inverse=True)
                of_none = self._half_at(record, state)
                velocity = self._velocity_at(record, state, of_none=of_none)
                rows = self.family.network_rows(record.guidance) - (of_none is not None)
                count("train_calls" if grad else "value_calls", state.numel() * rows)
                values = record.values(here, velocity[place], needs, rollout.mask_NA)
            yield index, {k: v[: index.numel()] for k, v in values.items()}

    def _velocity_at(self, record: Any, state: Tensor, *, of_none: Tensor | None = None) -> Tensor:
        """The velocity at states [n] of a record, [n, ...]."""
        x, sigma, place = record.network_input(state)
        condition = {k: v[place] for k, v in record.condition.items()}
        return self.velocity_and_half(x, sigma, condition, size=record.size, guidance=record.guidance, of_none=of_none)[
            0
        ]

    def _half_at(self, record: Any, state: Tensor) -> Tensor | None:
        """The unconditional half at states [n], which the sampler kept; None once the weights are others."""
        kept = getattr(record, "half", None)
        return None if kept is None or kept.weights != self.snapshots.which else kept.of_none_V[state]

    @torch.no_grad()
    def with_values_of(self, name: str, rollout: Rollout, mask_NA: Tensor, *, weights: str | None = "ref") -> Rollout:
        """The rollout with another policy's velocity, kept as `name`, wherever a masked action starts.

        `weights`: a snapshot of the weights; None: the present ones.
        """
        record = rollout.record
        position = torch.nonzero(mask_NA.flatten().bool()).flatten()
        state = record.states(position).unique()
        swapped = self.snapshots.use(weights) if weights else nullcontext()
        with phase(f"{name}_network"), swapped, gathered(self.shards):
            forward = batches(self._expert(record.sigma_of(state)), self.config.micro_batch)
            order = torch.argsort(forward, stable=True)
            parts = state[order].split(torch.bincount(forward).tolist()) if len(state) else ()
            found = [self._velocity_at(record, part) for part in parts]
            state = state[order]
            count(f"{name}_calls", state.numel() * self.family.network_rows(record.guidance))
        velocity = torch.cat(found) if found else record.network_input(state)[0]
        return replace(rollout, record=record.with_velocity(name, state, velocity))

    @property
    def product(self) -> str:
        """What a run leaves: "adapter" or "model"."""
        return "model" if self.config.lora is None or self.config.save_merged else "adapter"

    @property
    def product_bytes(self) -> int:
        """About so many it takes to write: the trained factors in float32, or all weights of the pipeline."""
        if self.product == "adapter":
            return 4 * sum(p.numel() for p in self.trainable.values())
        parts = [part for part in self.pipe.components.values() if isinstance(part, nn.Module)]
        return sum(p.numel() * p.element_size() for part in parts for p in part.parameters())

    def usage(
        self, *, sigmas: str | None = None, scheduler: Mapping[str, Any] | None = None, steps: int | None = None
    ) -> dict[str, str]:
        """For the model card: the base model and the lines that load the product into plain diffusers.

        sigmas, scheduler: what an engine's grid is in plain diffusers, as `in_plain_diffusers` gives it; steps: of an evaluation.
        """
        return {
            "base_model": resolve(self.family.path),
            "library": "diffusers",
            "tags": f"{'image' if self.pictured or self.config.pictures[0] else 'text'}-to-{'video' if self.config.draws_clips else 'image'}",
            "code": loading_code(
                self.config,
                self.pipe,
                merged=tuple(self.merged),
                sigmas=sigmas,
                scheduler=scheduler,
                steps=steps,
                pictured=self.pictured or self.config.pictures[0] > 0,  # an export has seen no prompt
            ),
        }

    def save(self, folder: Path) -> None:
        """The product of a run: an adapter for `load_lora_weights`, or a whole pipeline for `from_pretrained`.

        Beside an adapter lies the one that was merged before training, which it stands upon.
        """
        if self.config.lora is None:
            adapters.save_pipeline(self.pipe, folder, dtype=self.dtype)
        elif self.config.save_merged:
            adapters.save_merged(self.pipe, folder)
        else:
            adapters.save_adapter(self.pipe, folder)
            if self.merged:
                adapters.save_placed(self.pipe, self.merged, folder / MERGED)
