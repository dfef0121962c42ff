"""Whether a server was started so that it can draw what is trained: each thing that does not fit is named with its flag."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpo_mm.errors import ConfigError
from grpo_mm.outside import shown
from grpo_mm.pipelines.vlm.engine_server.served_engine import facts_of
from grpo_mm.pipelines.vlm.forwards.network import Network


def check_fit(url: str, state: Mapping[str, Any], network: Network) -> None:
    """Raises ConfigError for a server that was started otherwise than the policy needs.

    Args:
        state: as the server says of itself.
    """
    settings, config, rank = state["settings"], network.model.config, network.in_place.rank
    ours = facts_of(config.model_type, config.get_text_config(), getattr(config, "vision_config", None))
    theirs = state.get("facts") or {}
    other = next((name for name, value in ours.items() if theirs.get(name) != value), None)
    if other is not None:
        raise ConfigError(
            f"{url} has another model, {shown(state.get('model'), 100)}: its {other} is {shown(theirs.get(other), 40)}, the policy's "
            f"{shown(ours[other], 40)}. Start it with --model {network.path}."
        )
    precision = str(network.precision).removeprefix("torch.")
    for name, found, wanted, flag in (
        (
            "log-probabilities",
            settings.get("logprobs_mode"),
            "processed_logprobs",
            "--logprobs-mode processed_logprobs",
        ),
        ("pixels", settings.get("mm_device_do_normalize"), False, "--no-mm-device-do-normalize"),
        ("precision", settings.get("dtype"), precision, f"--dtype {precision}"),
        ("processes that answer", settings.get("api_server_count"), 1, "--api-server-count 1"),
    ):
        if found != wanted:
            raise ConfigError(
                f"{url}: its {name}: {shown(found, 40)}, wanted {shown(wanted, 40)}. Start it with {flag}."
            )
    if rank > (settings.get("max_lora_rank") or 0):
        raise ConfigError(
            f"{url} takes adapters up to rank {settings.get('max_lora_rank') or 0}, and the policy's has {rank}. Start it with "
            f"--enable-lora --max-lora-rank {rank}."
        )  # fmt: skip
