"""Settings of a flow policy: what is drawn, how the network computes, what is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch

from grpo_mm import registry
from grpo_mm.errors import ConfigError
from grpo_mm.identity import FREE, NOTED
from grpo_mm.outside import shown
from grpo_mm.pipelines.flow.models import adapters
from grpo_mm.pipelines.flow.models.adapters import Lora
from grpo_mm.pipelines.flow.models.family import Size, resolve, takes_guidance
from grpo_mm.pipelines.flow.models.picture_sizes import PictureSizes, sizes_on_disk
from grpo_mm.pipelines.flow.record import FORWARD_PROVIDES, PROVIDES
from grpo_mm.pipelines.flow.remarks import remarks
from grpo_mm.pipelines.opened import open_media
from grpo_mm.registry import Role
from grpo_mm.rollout.prompt_check import media_refused
from grpo_mm.types import Clip, Clips, Couples, Prompt
from grpo_mm.weights.adapter_file import check_adapter
from grpo_mm.weights.eight_bit import Quantized

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
"""No float16: gradients of mean log-probabilities underflow in it, and every GPU of today has bfloat16."""
MAX_TEXT_LENGTH = 512


@dataclass(frozen=True)
class FlowSettings:
    """All of them; `FlowPolicyConfig` makes the policy."""

    model: Annotated[Any, Role("flow_model")]
    """The checkpoint and its family."""
    lora: Lora | None = None
    """None: full fine-tuning of the transformer, with float32 master weights."""
    media: Annotated[Any, Role("media")] | None = None
    """Opens the pictures of prompts, for models that read some; null: the frame store with its defaults."""
    quantize: Quantized | None = None
    """Under an adapter: the linear layers of the frozen transformer's blocks have 4 bits (nf4) or 8 (int8), by bitsandbytes; null:
    `dtype`. The adapter is trained on top of these, and fits the same base quantized alike."""
    merge_adapter: str | None = None
    """An adapter that is merged into the weights before training starts."""
    save_merged: bool = False
    """What a run with `lora` leaves is a whole pipeline with the adapter in its weights, not the adapter alone."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """What the network computes in. Latents, log-probabilities and trained weights are float32 whatever this is."""
    guidance: float = field(default=1.0, metadata=NOTED)
    """> 1: the guided velocity is the policy, in rollout, training and evaluation alike. The number that the plain pipeline is given: Z-Image
    guides above 0 and counts from there."""
    detach_unconditional: bool = field(default=False, metadata=NOTED)
    """What the network says without the text is a constant of the gradient, as in the released code of Flow-GRPO: the same values, a
    gradient that leaves this half out, and half of the activations; what the sampler's network said serves until the first update.
    For models that are guided by two network rows."""
    height: int = 512
    """Pixels of a rollout."""
    width: int = 512
    """Pixels of a rollout."""
    eval_height: int | None = field(default=None, metadata=NOTED)
    """Pixels of an evaluation; null: as in training."""
    eval_width: int | None = field(default=None, metadata=NOTED)
    """Pixels of an evaluation; null: as in training."""
    frames: int | None = None
    """Frames of a rollout's clips, one more than a multiple of what the decoder makes of one latent frame (4n + 1); null: those of the
    family. Of a model that draws clips only, as the next two."""
    fps: float | None = field(default=None, metadata=NOTED)
    """Frames a second, for rewards and for who looks; null: that of the family. Nothing is drawn otherwise."""
    eval_frames: int | None = field(default=None, metadata=NOTED)
    """Frames of an evaluation's clips; null: as in training."""
    text_length: int = 128
    """Tokens of the longest text encoder."""
    micro_batch: int = field(default=16, metadata=FREE)
    """Transitions in one training forward; changes memory and speed, not the gradient."""
    decode_batch: int = field(default=16, metadata=FREE)
    """Latents that are decoded at once; changes memory and speed only."""
    gradient_checkpointing: bool = field(default=False, metadata=FREE)
    """Activations are computed again in the backward pass: less memory, more time."""
    compile: bool = field(default=False, metadata=FREE)
    """The blocks of the network through torch.compile, one compilation for blocks of a class: slower to start, faster a step on a GPU."""
    vae_slicing: bool = field(default=False, metadata=FREE)
    """Pictures are decoded one by one."""
    vae_tiling: bool = field(default=False, metadata=NOTED)
    """Pictures are decoded in overlapping tiles: less memory, and slightly other pictures."""
    offload: tuple[Literal["encoders", "decoder"], ...] = field(default=(), metadata=FREE)
    """Parts that stay in main memory except while they are used."""

    @property
    def blocks_in_order(self) -> bool:
        """Whether each forward goes through all blocks of the network, one after the other, so that their weights may come and go."""
        return not getattr(self.model, "experts", False)

    @property
    def provides(self) -> frozenset[str]:
        return PROVIDES | FORWARD_PROVIDES

    @property
    def unit(self) -> Couples:
        """One forward never splits an action."""
        return "action"

    @property
    def pictures(self) -> tuple[int, int]:
        """How many pictures of a prompt the model reads, at least and at most; (0, 0): texts alone."""
        return getattr(self.model, "pictures", (0, 0))

    def open_pictures(self, prompt: Prompt) -> list[Any]:
        """The prompt's media as PIL pictures in RGB, in their own sizes, in order; the first is the one to be edited.

        Raises:
            ConfigError: the model reads no pictures, or not so many; the media are no pictures.
            ValueError, OSError: one of them cannot be read.
        """
        why = media_refused(prompt, self.pictures)
        if why:
            raise ConfigError(f"prompt {shown(prompt.id)} cannot be put to {type(self.model).__name__}: {why}.")
        return [open_media(self._opens, item) for item in prompt.media]

    @property
    def _opens(self) -> Any:
        return registry.lookup("media", "frame_store")() if self.media is None else self.media

    def probe_media(self, prompt: Prompt) -> None:
        """Opens what the prompt shows, where the media can do so cheaply; raises what they raise."""
        for item in prompt.media if hasattr(self._opens, "probe") else ():
            self._opens.probe(item)

    def defaults(self, engine: Any) -> dict[str, Any]:
        """What a config that says nothing gets (`grpo_mm.config.by_policy`); the rest has the defaults of the classes.

        Log-probabilities of denoising steps are means over latent elements, so their clip range is narrow. Where finished samples are
        trained there are none, and a KL is one of velocities. Source: arXiv:2505.05470 and its released code; for velocities
        arXiv:2509.25050 (AWM).
        """
        clip = {"clip_low": 1e-4, "clip_high": 1e-4}
        finished = "velocity_shift_ref" in getattr(engine, "provides", ()) and "ref_logprobs" not in engine.provides
        return {
            "advantage": [{"kind": "group_norm"}, {"kind": "weighted_sum"}, {"kind": "clamp"}],
            "objective": [{"kind": "clipped_ratio", **clip}],
            "kinds": [
                ({"kind": "clipped_ratio"}, clip),
                *([({"kind": "kl"}, {"form": "velocity", "weight": 1e-3})] if finished else []),
            ],
        }

    def without_effect(self) -> list[str]:
        """Settings that others make void, a sentence each."""
        found = [] if self.lora is None else self.lora.without_effect()
        rows = self.model.network_rows(self.guidance)
        if 0 < self.guidance < 1 and rows < self.model.network_rows(2.0):
            found.append(f"policy.guidance = {self.guidance:g} has no effect: the model is guided above 1 only.")
        if self.guidance != 1 and self.model.network_rows(2.0) == 1 and not takes_guidance(self.model.path):
            found.append(
                f"policy.guidance = {self.guidance:g} has no effect: the checkpoint's network does not take it (guidance_embeds is false)."
            )
        if self.media is not None and self.pictures[1] == 0:
            found.append("policy.media has no effect: the model reads texts alone.")
        if self.text_length != FlowSettings.text_length and not getattr(self.model, "cuts_texts", True):
            found.append(
                f"policy.text_length = {self.text_length} has no effect: {self.model.pipeline} reads texts whole. `show` counts with it."
            )
        if self.detach_unconditional and rows == 1:
            found.append("policy.detach_unconditional has no effect: policy.guidance is not above 1.")
        if self.vae_slicing and self.decode_batch == 1:
            found.append(
                "policy.vae_slicing has no effect: policy.decode_batch = 1 decodes pictures one by one already."
            )
        return found

    def remarks(self, engine: Any) -> list[str]:
        """What is worth knowing of the checkpoint before it is trained, a sentence each."""
        return remarks(self, engine)

    def check(self) -> None:
        self.model.check()
        if self.lora is not None:
            self.lora.check()
        elif self.save_merged:
            raise ConfigError("policy.save_merged: there is no adapter; full fine-tuning leaves a whole pipeline.")
        self.check_sizes(sizes_on_disk(resolve(self.model.path), revision=getattr(self.model, "revision", None)))
        if self.quantize is not None and (self.lora is None or self.save_merged or self.dtype == "float64"):
            raise ConfigError(
                "policy.quantize is for a frozen base of float32 or bfloat16 under an adapter: give policy.lora, and leave out save_merged."
            )
        for name, least in (("micro_batch", 1), ("decode_batch", 1), ("text_length", 0), ("guidance", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"policy.{name} = {getattr(self, name)}; wanted at least {least}.")
        if self.text_length > MAX_TEXT_LENGTH:
            raise ConfigError(
                f"policy.text_length = {self.text_length}; wanted at most {MAX_TEXT_LENGTH}: plain pipelines take no longer texts, "
                "so what a run leaves could not be used as it was trained."
            )
        if self.merge_adapter is not None:
            for file in adapters.files_of(self.merge_adapter).values():
                check_adapter(file)
        if hasattr(self.model, "check_policy"):
            self.model.check_policy(self)
        if hasattr(self.media, "check"):
            self.media.check()
        if self.detach_unconditional and not hasattr(self.model, "halves"):
            raise ConfigError(
                f"policy.detach_unconditional: {type(self.model).__name__} has no unconditional half that could be detached; leave it out."
            )

    def check_sizes(self, sizes: PictureSizes) -> None:
        """Raises ConfigError for pictures that a checkpoint of these sizes cannot make."""
        for name in ("height", "width", "eval_height", "eval_width"):
            value = getattr(self, name)
            if value is not None:
                sizes.check(f"policy.{name}", value)
        for name in ("frames", "fps", "eval_frames"):
            value = getattr(self, name)
            if value is None:
                continue
            if not self.draws_clips:
                raise ConfigError(
                    f"policy.{name} = {value:g}: {type(self.model).__name__} draws pictures; leave it out."
                )
            if name != "fps":
                sizes.check_frames(f"policy.{name}", int(value))
            elif not 0 < value < math.inf:
                raise ConfigError(f"policy.fps = {value:g}; wanted above 0.")

    @property
    def draws_clips(self) -> bool:
        return getattr(self.model, "frames", None) is not None

    @property
    def makes(self) -> Literal["pictures", "clips"]:
        """What rewards are asked about."""
        return "clips" if self.draws_clips else "pictures"

    @property
    def frame_rate(self) -> float:
        """Of the clips of a model that draws clips, frames a second."""
        return float(self.model.fps if self.fps is None else self.fps)

    def size(self, *, evaluation: bool) -> Size:
        """What is drawn in training, or in evaluation: (height, width) in pixels, of clips (frames, height, width)."""
        height, width, frames = self.height, self.width, self.frames
        if evaluation:
            height, width, frames = self.eval_height or height, self.eval_width or width, self.eval_frames or frames
        return ((frames or self.model.frames), height, width) if self.draws_clips else (height, width)

    def stand_ins(self, prompts: Sequence[Prompt]) -> list[Any]:
        """What rewards are tried with before anything is sampled: pictures or clips of random pixels, and a light and a
        dark one, as `decode` gives them."""
        *frames, height, width = self.size(evaluation=False)
        size = (len(prompts), *frames, 3, height, width)
        noise = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        sorts = [noise, 192 + noise // 4, noise // 4]
        return [Clips(Clip(clip, self.frame_rate) for clip in sort) for sort in sorts] if frames else sorts
