"""vLLM's engine within its server: draws what is asked, takes weights, and says how it was started. Runs where vLLM runs."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from grpo_mm.outside import reason
from grpo_mm.pipelines.vlm.engine_server.served_weights import Declined, ServedWeights
from grpo_mm.pipelines.vlm.engine_server.wire import Answered, Asked
from grpo_mm.pipelines.vlm.sampling.vllm_settings import drawn_of, params_of
from grpo_mm.processes.own_folder import OwnFolder

CHANGING = "grpo_mm: changing"
"""What the engine notes of tokens that it should not have drawn."""


class ServedEngine:
    """`state` is vLLM's state of its application: `engine_client`, `vllm_config`, `args`."""

    def __init__(self, state: Any) -> None:
        self._client, self._config, self._args = state.engine_client, state.vllm_config, state.args
        self.weights = ServedWeights()
        self._boot = uuid.uuid4().hex
        self._asked = self._adapters = self._drawing = 0
        self._adapter: Any = None
        self._adapter_files: OwnFolder | None = None

    def about(self) -> dict[str, Any]:
        """How it was started and what it does. boot: another one each time that the server starts."""
        from vllm import __version__

        model, text = self._config.model_config, self._config.model_config.hf_text_config
        vision = getattr(model.hf_config, "vision_config", None)
        lora, media = self._config.lora_config, model.multimodal_config
        settings = {
            "dtype": str(model.dtype).removeprefix("torch."), "logprobs_mode": str(getattr(model.logprobs_mode, "value", model.logprobs_mode)),
            "max_model_len": model.max_model_len, "max_lora_rank": lora.max_lora_rank if lora else 0,
            "mm_device_do_normalize": bool(media and media.mm_device_do_normalize),
            "tensor_parallel_size": self._config.parallel_config.tensor_parallel_size,
            "api_server_count": getattr(self._args, "api_server_count", None) or 1,
        }  # fmt: skip
        return {
            "engine": f"vllm {__version__}", "boot": self._boot, "version": self.weights.version, "model": str(model.model), "settings": settings,
            "facts": facts_of(model.hf_config.model_type, text, vision), "drawing": self._drawing,
        }  # fmt: skip

    async def draw(self, asked: Asked) -> Answered:
        """Raises Declined: other weights are in place, or the engine cannot read such a prompt."""
        size = self._config.model_config.get_vocab_size()
        if max(asked.prompt.ids, default=0) >= size or not asked.prompt.ids:
            raise Declined(422, f"a prompt of {len(asked.prompt.ids)} tokens, wanted some, all below {size}")
        async with self.weights.drawing(asked.version):
            self._drawing += len(asked.seeds)
            try:
                outputs = await all_or_none([self._row(asked, seed) for seed in asked.seeds])
            finally:
                self._drawing -= len(asked.seeds)
        return Answered(
            [drawn_of(output) for output in outputs],
            [_versions(output) for output in outputs],
            list(outputs[0].prompt_token_ids),
            [_queued(output) for output in outputs],
        )

    async def _row(self, asked: Asked, seed: int | None) -> Any:
        try:
            params = params_of(asked.settings, seed=seed, temperature=asked.temperature)
        except (TypeError, ValueError) as error:
            raise Declined(422, f"settings that the engine does not take: {reason(error)}") from error
        self._asked += 1
        last = None
        try:
            async for output in self._client.generate(
                asked.prompt.for_vllm, params, f"grpo_mm-{self._boot}-{self._asked}", lora_request=self._adapter
            ):
                last = output
        except ValueError as error:
            raise Declined(422, f"the engine does not take the prompt: {reason(error)}") from error
        if last is None or not last.finished or last.outputs[0].finish_reason not in ("stop", "length"):
            raise Declined(503, "the engine gave an answer up")
        return last

    async def change(self, folder: Path, version: str, *, base: bool, adapter: bool) -> None:
        """New weights: files of a folder, `base-*.safetensors` under the checkpoint's names, and an adapter as peft writes it."""
        client = self._client
        await client.update_weight_version(CHANGING)
        await client.pause_generation(mode="wait", clear_cache=True)
        try:
            if base:
                await client.collective_rpc("reload_weights", kwargs={"weights_path": str(_only_base(folder))})
            await self._take_adapter(folder if adapter else None)
            # What it keeps of prompts and pictures was computed with the weights before.
            if not await client.reset_prefix_cache():
                raise RuntimeError("it holds on to what it keeps of prompts")
            await client.reset_encoder_cache()
        finally:
            await client.resume_generation()
        await client.update_weight_version(version)

    async def _take_adapter(self, folder: Path | None) -> None:
        """None: no adapter acts from now on."""
        before, kept = self._adapter, None
        self._adapter = None
        if folder is not None:
            from vllm.lora.request import LoRARequest

            kept = OwnFolder("adapter")  # read again where the engine has put it aside
            for path in folder.iterdir():
                if path.name.startswith("adapter_"):
                    shutil.copy(path, kept.path)
            self._adapters += 1  # a known number would serve what the engine has under it
            request = LoRARequest(f"adapter {self._adapters}", self._adapters, str(kept.path))
            await self._client.add_lora(request)
            self._adapter = request
        if before is not None:
            await self._client.remove_lora(before.lora_int_id)
        self._adapter_files = kept


async def all_or_none(rows: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """What each gives. Where one raises the others are given up, in the engine too, before it is told of."""
    tasks = [asyncio.ensure_future(row) for row in rows]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def facts_of(model_type: str, text: Any, vision: Any) -> dict[str, Any]:
    """By which a model of the same kind but other sizes is told, from the configs of its parts."""
    names = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    eyes = ("depth", "hidden_size", "patch_size", "temporal_patch_size", "spatial_merge_size")
    found = {"model_type": model_type, **{name: getattr(text, name, None) for name in names}}
    return found | {f"vision {name}": getattr(vision, name, None) for name in eyes}  # fmt: skip


def _versions(output: Any) -> list[str]:
    return [span.version for span in output.outputs[0].weight_versions or ()]


def _queued(output: Any) -> float:
    times = output.metrics
    return max(0.0, times.scheduled_ts - times.queued_ts) if times is not None and times.scheduled_ts else 0.0


def _only_base(folder: Path) -> Path:
    """A folder without the adapter, which is no part of the model's own weights."""
    alone = folder / "base"
    alone.mkdir(exist_ok=True)
    for path in folder.glob("base-*.safetensors"):
        (alone / path.name).symlink_to(path)
    return alone
