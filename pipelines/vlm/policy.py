"""A vision-language model as a policy: log-probabilities of stored tokens, adapters, snapshots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from grpo_mm import registry
from grpo_mm.errors import ConfigError
from grpo_mm.identity import FREE, NOTED
from grpo_mm.pipelines.spatial.picture_size import with_picture_size
from grpo_mm.pipelines.vlm.forwards.cut_rows import check_heads, check_heads_of
from grpo_mm.pipelines.vlm.forwards.network import Network
from grpo_mm.pipelines.vlm.models import adapters
from grpo_mm.pipelines.vlm.models.adapters import Lora
from grpo_mm.pipelines.vlm.models.card import MERGED, loading_code
from grpo_mm.pipelines.vlm.models.families import check_model, resolve
from grpo_mm.pipelines.vlm.models.family import Family
from grpo_mm.pipelines.vlm.models.loading import Loaded, load
from grpo_mm.pipelines.vlm.models.positions import VideoPositions
from grpo_mm.pipelines.vlm.prompt_sharing.replay import Replay, Sharing
from grpo_mm.pipelines.vlm.prompting.ahead import EncodedAhead
from grpo_mm.pipelines.vlm.prompting.chat import Chat
from grpo_mm.pipelines.vlm.prompting.contexts import Encoder
from grpo_mm.pipelines.vlm.prompting.open_media import fit_media
from grpo_mm.pipelines.vlm.prompting.record import PROVIDES, TextRecord
from grpo_mm.pipelines.vlm.sampling.in_place import InPlace
from grpo_mm.processes.clock import count
from grpo_mm.processes.compiled import check_compiler, compile_layers
from grpo_mm.processes.distributed import Shard
from grpo_mm.processes.sequence import SequenceGroup
from grpo_mm.processes.shards import gathered
from grpo_mm.registry import Role
from grpo_mm.types import Couples, Prompt, Rollout
from grpo_mm.weights.adapter_file import check_adapter
from grpo_mm.weights.eight_bit import Quantized, bitsandbytes, mark_quantized, quantize
from grpo_mm.weights.snapshots import Snapshots

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""No float16, as for flow models."""


SAID = "It can be seen."
"""A sentence in place of an answer."""


@dataclass(frozen=True)
class VlmPolicyConfig:
    """Settings of a vision-language policy; `load` makes it."""

    path: str
    """A folder or hub name of a Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5, InternVL 3 or GLM-4V checkpoint (docs/vlm_families.md), or
    zoo:NAME."""
    lora: Lora | None = None
    """None: full fine-tuning of the language model, with float32 master weights."""
    quantize: Quantized | None = None
    """Under an adapter: the frozen language model's linear layers have 4 bits (nf4) or 8 (int8), by bitsandbytes; null: `dtype`. The
    adapter is trained on top of these, and fits the same base quantized alike."""
    merge_adapter: str | None = None
    """An adapter that is merged into the weights before training starts."""
    save_merged: bool = field(default=False, metadata=FREE)
    """What a run with `lora` leaves is a whole checkpoint with the adapter in its weights, not the adapter alone."""
    train_tower: bool = False
    """Full fine-tuning trains the vision tower, with its merger, as well."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in. Log-probabilities and trained weights are float32 whatever this is."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] = field(default="sdpa", metadata=FREE)
    """flex_attention: of answers after a shared prompt, on a GPU; all else by sdpa."""
    temperature: float = field(default=1.0, metadata=NOTED)
    """Of the policy itself: rollouts are drawn from it, and ratios and KL are of the same distribution."""
    chat: Chat = field(default_factory=Chat, metadata=NOTED)
    """How a prompt is put to the model."""
    media: Annotated[Any, Role("media")] = field(
        default_factory=lambda: registry.lookup("media", "frame_store")(), metadata=NOTED
    )
    """Opens what stands in the prompts' media, and samples frames of videos."""
    image_pixels: tuple[int, int] | None = None
    """Least and most pixels of a picture as the model sees it; None: as the checkpoint says."""
    video_pixels: tuple[int, int] | None = None
    """The same of a frame (Qwen3-VL, Qwen3.5, GLM-4V: of all frames of a video together)."""
    video_positions: VideoPositions = "authors"
    """Where text goes on after a video of Qwen2-VL and Qwen2.5-VL. authors: above the highest position so far, the video's clock
    included, as the released checkpoints were trained and as vLLM has it. library: as the installed transformers has it, from
    5.3 on from the video's place in space; in some versions with a clock of whole seconds."""
    prefix_sharing: Sharing | bool = field(default="auto", metadata=FREE)
    """Whether a prompt goes through the network once for all of its answers, with the same log-probabilities and gradients up
    to rounding. auto: where the estimated gain is 1.15-fold at least. off: once for each answer, in sampling as well. check:
    on, after comparing both in the first forwards; a difference stops the run. YAML reads on and off as true and false."""
    micro_batch: int = field(default=8, metadata=FREE)
    """Rows in one training forward; changes memory and speed, not the gradient."""
    micro_batch_tokens: int | None = field(default=None, metadata=FREE)
    """At most so many tokens, prompts and fill included, in one training forward; at least one row goes. A prompt that is
    shared counts once."""
    head_chunk: int = field(default=1024, metadata=FREE)
    """Tokens whose distribution over the vocabulary exists at once."""
    gradient_checkpointing: bool = field(default=False, metadata=FREE)
    """Activations are computed again in the backward pass: less memory, more time."""
    compile: bool = field(default=False, metadata=FREE)
    """The layers of the language model and the blocks of the tower through torch.compile, but for their attention: slower to start,
    faster a step on a GPU. Layers of a class are compiled once, for all lengths."""
    encode_workers: int = field(default=1, metadata=FREE)
    """Threads that open the media of the next step's prompts and put them through the processor while this step is scored and
    trained; 0: they are read when they are asked. Changes no number; the contexts of one step more are in main memory."""

    @property
    def sharing(self) -> Sharing:
        """`prefix_sharing` in words."""
        named: dict[Any, Sharing] = {True: "on", False: "off"}
        return named.get(self.prefix_sharing, self.prefix_sharing)

    @property
    def provides(self) -> frozenset[str]:
        return PROVIDES

    makes: ClassVar[str] = "texts"
    """What rewards are asked about."""

    @property
    def unit(self) -> Couples:
        """One forward never splits a row."""
        return "row"

    def stand_ins(self, prompts: Sequence[Prompt]) -> list[list[str]]:
        """What rewards are tried with before anything is sampled: answers as one could be, the demonstration or the answer itself
        among them."""
        known = [p.target.get("answer") if isinstance(p.target, Mapping) else None for p in prompts]
        plain = [SAID if answer is None else str(answer) for answer in known]
        tagged = [f"<think>{SAID}</think><answer>{answer}</answer>" for answer in plain]
        shown = [p.demo if isinstance(p.demo, str) else text for p, text in zip(prompts, tagged, strict=True)]
        return [shown, tagged, plain, [SAID] * len(prompts)]

    def probe_media(self, prompt: Prompt) -> None:
        """Opens what the prompt shows, where the media can do so cheaply; raises what they raise."""
        for item in prompt.media if hasattr(self.media, "probe") else ():
            self.media.probe(item)

    def defaults(self, engine: Any) -> dict[str, Any]:
        """What a config that says nothing gets: the settings of GRPO on tokens (`grpo_mm.config.by_policy`).

        Source: clip range and KL arXiv:2402.03300; ratios of whole rows arXiv:2507.18071 (GSPO). Rewards are summed, then compared.
        The learning rate is ours: 1e-6 as runs on models of 3 to 8 billion parameters print it, 1e-5 for an adapter.
        """
        sequence = {"clip_low": 3e-4, "clip_high": 4e-4}
        return {
            "advantage": [{"kind": "weighted_sum"}, {"kind": "group_norm", "ddof": 1}],
            "objective": [{"kind": "clipped_ratio", "clip_low": 0.2, "clip_high": 0.2}],
            "optim": {"lr": 1e-6 if self.lora is None else 1e-5},
            "kinds": [
                ({"kind": "clipped_ratio", "ratio": "row"}, sequence),
                ({"kind": "clipped_ratio", "ratio": "row_token"}, sequence),
                ({"kind": "clipped_ratio"}, {"clip_low": 0.2, "clip_high": 0.2}),
                ({"kind": "kl"}, {"form": "k3", "weight": 0.04}),
            ],
        }

    def without_effect(self) -> list[str]:
        """Settings that others make void, a sentence each."""
        found = [] if self.lora is None else self.lora.without_effect()
        if self.chat.too_long == "skip" and self.chat.max_prompt_tokens is None:
            found.append(
                "policy.chat.too_long = skip has no effect: without chat.max_prompt_tokens no prompt is too long."
            )
        return found

    def check(self) -> None:
        family = check_model(self.path)
        if family is not None:
            self.check_family(family)
        if self.lora is not None:
            self.lora.check()
        elif self.save_merged:
            raise ConfigError("policy.save_merged: there is no adapter; full fine-tuning leaves a whole checkpoint.")
        if self.quantize is not None and (self.lora is None or self.save_merged):
            raise ConfigError(
                "policy.quantize is for a frozen base under an adapter: give policy.lora, and leave out save_merged (export --merged "
                "merges into the plain base)."
            )
        if self.lora is not None and self.train_tower:
            raise ConfigError(
                "policy.train_tower trains all weights of the tower: leave out policy.lora, or train_tower."
            )
        if self.merge_adapter is not None:
            check_adapter(self.merge_adapter)
        for name in ("micro_batch", "micro_batch_tokens", "head_chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"policy.{name} = {value}; wanted at least 1.")
        if self.encode_workers < 0:
            raise ConfigError(f"policy.encode_workers = {self.encode_workers}; wanted 0 (none) or more.")
        if self.temperature <= 0:
            raise ConfigError(
                f"policy.temperature = {self.temperature}; wanted above 0: without chance there are no log-probabilities."
            )
        if self.attention == "flash_attention_2" and self.dtype == "float32":
            raise ConfigError("policy.attention = flash_attention_2 computes in bfloat16: set policy.dtype=bfloat16.")
        if self.attention == "flex_attention" and self.sharing == "off":
            raise ConfigError(
                "policy.attention = flex_attention is for answers after a shared prompt; prefix_sharing is off."
            )
        for name in ("image_pixels", "video_pixels"):
            pixels = getattr(self, name)
            if pixels is not None and not 0 < pixels[0] <= pixels[1]:
                raise ConfigError(f"policy.{name} = {list(pixels)}; wanted [least, most].")
        self.chat.check()
        if hasattr(self.media, "check"):
            self.media.check()

    def check_family(self, family: Family) -> None:
        """Raises ConfigError for settings that do not go with the family of the checkpoint."""
        for name, default in (
            ("attention", "sdpa"),
            ("compile", False),
            ("quantize", None),
            ("image_pixels", None),
            ("video_pixels", None),
        ):
            value = getattr(self, name)
            for setting in (f"policy.{name}", f"policy.{name} = {value}") if value != default else ():
                family.refuse(setting, instead="Leave it out.")

    def load(
        self, device: torch.device, *, shard: Shard | None = None, sequence: SequenceGroup | None = None
    ) -> VlmPolicy:
        """shard: cuts the weights over processes; None: this one holds all of them. sequence: the processes that the tokens of a row
        are cut over where log-probabilities are computed; None: each row is one process's.

        Raises:
            ConfigError: rows cannot be cut with these settings, or with this model.
        """
        if self.quantize is not None:
            bitsandbytes(f"policy.quantize = {self.quantize}")  # before gigabytes are read
        if sequence is not None and (self.attention != "sdpa" or self.sharing == "check" or self.compile):
            raise ConfigError(
                f"distributed.sequence = {sequence.size} cuts rows under policy.attention = sdpa, without policy.compile, and with "
                "policy.prefix_sharing auto, on or off."
            )
        family = check_model(self.path)
        if sequence is not None and family is not None:
            family.refuse("distributed.sequence", instead="Leave it out.")
        if sequence is not None:
            check_heads_of(self.path, sequence.size)
        return VlmPolicy(self, device, shard=shard, sequence=sequence)


class VlmPolicy:
    """The model on its device, with the parameters that are trained."""

    def __init__(
        self,
        config: VlmPolicyConfig,
        device: torch.device,
        *,
        shard: Shard | None = None,
        sequence: SequenceGroup | None = None,
    ) -> None:
        full, flex = config.lora is None, config.attention == "flex_attention"
        if config.compile:
            check_compiler(device)
        loaded = load(
            config.path, dtype=torch.float32 if full else DTYPES[config.dtype],
            attention="sdpa" if flex else config.attention,
            image_pixels=config.image_pixels, video_pixels=config.video_pixels,
        )  # fmt: skip
        if sequence is not None:
            check_heads(loaded.model.config, sequence.size)
        self._take(config, loaded, device, shard, sequence)
        if config.chat.frame_times is not None and loaded.family.time == "text":
            raise ConfigError(
                f"policy.chat.frame_times: a {loaded.family.model_type} processor puts times before frames by itself; leave it out."
            )
        fit_media(config.media, loaded.processor.video_processor, loaded.family)
        encode = Encoder(loaded.processor, self.model, loaded.family, config.chat, config.media)
        self.encode = EncodedAhead(encode, workers=config.encode_workers)

    @classmethod
    def of_model(cls, config: VlmPolicyConfig, loaded: Loaded, device: torch.device) -> VlmPolicy:
        """The policy of a model that is made already, without what prepares prompts: for counting on models without numbers."""
        made = cls.__new__(cls)
        made._take(config, loaded, device)
        return made

    def _take(
        self, config: VlmPolicyConfig, loaded: Loaded, device: torch.device, shard: Shard | None = None,
        sequence: SequenceGroup | None = None,
    ) -> None:  # fmt: skip
        """What is trained, and how it is run."""
        self.config, self.device, self.unit = config, device, config.unit
        self.dtype, self.loaded, model = DTYPES[config.dtype], loaded, loaded.model
        full, flex = config.lora is None, config.attention == "flex_attention"
        config.check_family(loaded.family)
        if sequence is not None:
            loaded.family.refuse("distributed.sequence", instead="Leave it out.")
        loaded.family.follow(model, config.video_positions)
        self.merged = {} if config.merge_adapter is None else adapters.merge(model, config.merge_adapter)
        model.requires_grad_(full).eval()
        if not config.train_tower:
            for part in loaded.family.tower(model):
                part.requires_grad_(False)
        if config.quantize is not None:
            quantize([model.model.language_model], config.quantize, compute=self.dtype)
            mark_quantized(model, config.quantize)
        self.model, self.processor = model, loaded.processor
        self.wrapped = None if config.lora is None else adapters.add(model, config.lora)
        reduced = full and self.dtype != torch.float32
        self.shards = (
            None
            if shard is None
            else shard(model, _units(model, loaded.family), compute=self.dtype if reduced else None)
        )
        (model if self.wrapped is None else self.wrapped).to(device)
        if config.gradient_checkpointing:
            _checkpoint_layers(model)
        if config.compile:
            compile_layers(model.model.language_model.layers, apart="self_attn")
            compile_layers(loaded.family.tower_blocks(model), apart="attn")
        self.trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.snapshots = Snapshots(self.trainable, self.shards, adapted=None if config.lora is None else model)
        self.network = Network(
            model, loaded.family, path=resolve(config.path), in_place=InPlace(model, self.wrapped, self.snapshots), temperature=config.temperature, forbidden=loaded.forbidden,
            autocast=self.dtype if self.dtype != torch.float32 and not (reduced and self.shards is not None) else None,
            shares_prefill=config.sharing != "off", flex_answers=flex, sequence=sequence,
        )  # fmt: skip
        self.replay = Replay(
            self.network, sharing=config.sharing, micro_batch=config.micro_batch,
            micro_batch_tokens=config.micro_batch_tokens, head_chunk=config.head_chunk,
            checkpointing=config.gradient_checkpointing,
        )  # fmt: skip

    def as_seen(self, prompt: Prompt) -> Prompt:
        """The prompt with the sizes of its picture, before and after the processor's resize, in its target."""
        return with_picture_size(prompt, self.config.media, self.processor.image_processor)

    def announce(self, prompts: Sequence[Prompt]) -> None:
        """These prompts are asked next: their media are read beside what is done until then."""
        self.encode.announce(prompts)

    def plan(self, rollout: Rollout, mask_NA: Tensor) -> list[Tensor]:
        """Flat positions [n, A] of the rows with a masked action: whole rows, those of one prompt beside each other."""
        record: TextRecord = rollout.record
        rows = torch.nonzero(mask_NA.any(1)).flatten().cpu()
        actions = torch.arange(rollout.num_actions)
        return [part[:, None] * rollout.num_actions + actions for part in self.replay.forwards(record, rows)]

    def logprobs(
        self, rollout: Rollout, plan: Sequence[Tensor], *, needs: frozenset[str], grad: bool
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """For each forward of the plan: its flat positions [n, A] and the named values [n, A]; 0 beyond a row's end."""
        record: TextRecord = rollout.record
        # A rank that has run out still takes part in the collectives of a forward: row 0, weight nothing.
        none = torch.arange(min(1, rollout.num_rows))
        parts = [index[:, 0] // rollout.num_actions if index.numel() else none for index in plan]
        found = self.replay.values(record, parts, entropy="entropy" in needs, grad=grad, charge="train_network")
        for (logprob_nA, entropy_nA), index, rows in zip(
            found, plan, parts
        ):  # found first: it has to be asked to its end
            count("train_calls" if grad else "value_calls", len(rows))
            values = {"logprobs": logprob_nA, "token_logprobs": logprob_nA}
            if entropy_nA is not None:
                values["entropy"] = entropy_nA
            if "behaviour_logprobs" in needs:
                values["behaviour_logprobs"] = rollout.behaviour_NA.to(self.device)[rows]
            if record.ref_NA is not None:
                values["ref_logprobs"] = record.ref_NA[rows]
            yield index, values if index.numel() else {name: v.flatten()[:0] for name, v in values.items()}

    @torch.no_grad()
    def with_values_of(self, name: str, rollout: Rollout, mask_NA: Tensor, *, weights: str | None = "ref") -> Rollout:
        """The rollout with the log-probabilities of a snapshot of the weights, kept as `name` ("ref"), where masked."""
        if name != "ref":
            raise ValueError(f"a text rollout keeps no values of {name!r}, only those of the reference.")
        rows = torch.unique(torch.nonzero(mask_NA.any(1)).flatten().cpu())
        ref_NA = self.values_under(weights, rollout.record, rows)
        return replace(rollout, record=replace(rollout.record, ref_NA=ref_NA))

    @torch.no_grad()
    def values_under(self, weights: str | None, record: TextRecord, rows: Tensor) -> Tensor:
        """Log-probabilities of the tokens of some rows under a snapshot of the weights, [N, A]; 0 for the other rows.

        Raises:
            ConfigError: the run keeps no such snapshot.
        """
        if weights is not None and weights not in self.snapshots:
            raise ConfigError(
                f"the engine or an objective reads the weights {weights!r}, but the run keeps none: give `ema`, or a term of "
                "the objective that uses the reference."
            )
        value_NA = torch.zeros(record.token_NA.shape, device=self.device)
        name = weights or "ref"
        parts = self.replay.forwards(record, rows)
        with self.snapshots.use(weights) if weights else nullcontext(), gathered(self.shards):
            found = self.replay.values(record, parts, entropy=False, grad=False, charge=f"{name}_network")
            for (logprob_nA, _), part in zip(found, parts):
                value_NA[part.to(self.device)] = logprob_nA
            count(f"{name}_calls", len(rows))
        return value_NA

    @property
    def product(self) -> str:
        """What a run leaves: "adapter" or "model"."""
        return "model" if self.config.lora is None or self.config.save_merged else "adapter"

    @property
    def product_bytes(self) -> int:
        """About so many it takes to write: the trained factors in float32, or all weights."""
        if self.product == "adapter":
            return 4 * sum(p.numel() for p in self.trainable.values())
        return sum(p.numel() * self.dtype.itemsize for p in self.model.parameters())

    def usage(self, **drawn: Any) -> dict[str, str]:
        """For the model card: the base model and the lines that load the product into plain transformers and peft.

        `drawn`: how answers are drawn, as transformers' GenerationConfig names it; greedy and 512 tokens if nothing is said.
        """
        return {
            "base_model": resolve(self.config.path),
            "library": "peft" if self.product == "adapter" else "transformers",
            "code": loading_code(self.config, self.loaded, drawn=drawn or {"do_sample": False, "max_new_tokens": 512}),
            "tags": "image-text-to-text",
        }

    def save(self, folder: Path) -> None:
        """The product of a run: an adapter for peft, or a whole checkpoint for `from_pretrained`."""
        if self.wrapped is None:
            adapters.save_model(self.model, self.processor, folder, dtype=self.dtype)
        elif self.config.save_merged:
            adapters.save_merged(self.wrapped, self.processor, folder)
        else:
            adapters.save_adapter(self.wrapped, folder)
            if self.merged:
                adapters.save_pairs(self.wrapped.get_base_model(), self.merged, folder / MERGED)


def _units(model: Any, family: Family) -> list[list[Any]]:
    """What of a model is gathered at once: a layer, a block of the tower; embeddings and head together, which may be one weight."""
    layers = [*model.model.language_model.layers, *family.tower_blocks(model)]
    return [*([layer] for layer in layers), [model.get_input_embeddings(), model.lm_head]]


def _checkpoint_layers(model: Any) -> None:
    """Layers are computed again in the backward pass; transformers does so in training mode only, where dropout acts."""
    dropout = getattr(model.config.get_text_config(), "attention_dropout", 0.0)
    if dropout:
        raise ConfigError(
            f"policy.gradient_checkpointing: the checkpoint's attention_dropout is {dropout}, which would make ratios "
            "differ from 1 by chance. Set it to 0 in its config.json."
        )
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in model.model.language_model.layers:
        # Caches of shared prompts are read only, or keep what came first: a layer that is computed again may meet them.
        layer._can_checkpoint_with_cache = True
