"""The rewards of a config, served over HTTP to runs in other processes and on other machines."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml

from grpo_mm.config.run_config import RunConfig, check_parts, plain, read
from grpo_mm.errors import ConfigError, UserError
from grpo_mm.golden.comparing import check_goldens
from grpo_mm.outside import reason, shown
from grpo_mm.processes.distributed import Processes
from grpo_mm.processes.token import token_of
from grpo_mm.rewards.service.merging import ROWS, SECONDS
from grpo_mm.rewards.service.scorers import Scorers
from grpo_mm.rewards.service.server import Limits, application, check_host
from grpo_mm.rollout.scoring import Scorer, check_isolated
from grpo_mm.run.run_folder import versions

TOKEN = "GRPO_MM_TOKEN"
MOST_CONNECTIONS = 256
MIB = 2**20


def serve(
    config: str | Path,
    overrides: Sequence[str] = (),
    *,
    host: str = "127.0.0.1",
    port: int = 8420,
    max_mib: int = 64,
    token_env: str | None = None,
    seconds: float = 600.0,
    gather_rows: int = ROWS,
    gather_seconds: float = SECONDS,
    only: Sequence[str] = (),
    trust: bool = False,
    told: Callable[[str], None] = print,
) -> None:
    """Loads the rewards of a config, or `only` these, and serves them until it is interrupted; `told` gets the lines for who started it.

    Raises:
        ConfigError: no rewards, one that cannot be loaded, a token that is not set; a host that others reach, without a token.
        UserError: FastAPI or uvicorn is not installed; the address is taken.
    """
    absent = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if absent:
        raise UserError(f'serving needs {" and ".join(absent)}: pip install "grpo_mm[serve]".')
    token = token_of(TOKEN if token_env is None else token_env, must=token_env is not None)
    check_host(host, token)
    scorers = served_scorers(config, overrides, seconds=seconds, only=only, trust=trust, told=told)
    app = application(
        scorers, limits=Limits(max_mib * MIB, seconds=seconds), token=token, versions=versions(), gather_rows=gather_rows,
        gather_seconds=gather_seconds,
    )  # fmt: skip
    with _listening(host, port) as found:
        address = f"[{host}]" if ":" in host else host
        told(f"http://{address}:{found.getsockname()[1]} serves {', '.join(scorers.about())}; {_who(token)}")
        server_of(app).run(sockets=[found])


def served_scorers(
    config: str | Path,
    overrides: Sequence[str],
    *,
    seconds: float,
    only: Sequence[str] = (),
    trust: bool,
    told: Callable[[str], None],
) -> Scorers:
    """What a config names under `rewards`, and under `watch` with a `use`, loaded on its device; raises ConfigError as `serve`."""
    unset: list[str] = []
    settings = read(config, overrides, trust=trust, unset=unset)
    entries = settings.rewards | settings.watched_rewards
    _check_set(settings, unset)
    if not entries:
        raise ConfigError(f"{config} names no rewards, so there is nothing to serve.")
    if absent := [name for name in only if name not in entries]:
        raise ConfigError(f"{config} has no reward {shown(absent[0])}; it has {', '.join(entries)}.")
    entries = {name: entry for name, entry in entries.items() if not only or name in only}
    check_isolated(entries)
    check_parts(entries)
    for name, entry in entries.items():
        if entry.sources is not None:
            told(f"{name}: its sources are not looked at here; the run that asks has its own")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    names = ("use", "timeout_seconds", "isolate", "device", "workers", "environment", "golden", "frames")
    made = {name: Scorer(**{key: getattr(entry, key) for key in names}) for name, entry in entries.items()}
    device = Processes(device=settings.device, matmul=settings.matmul).device
    scorers = Scorers(made, device, most_seconds=seconds)
    scorers.scoring.load(leave=False)
    scorers.golden = {name: state.said for name, state in check_goldens(scorers.scoring).items()}
    return scorers


def _check_set(settings: RunConfig, unset: Sequence[str]) -> None:
    """Data that only prompts want may be missing; what rewards are made of may not."""
    text = yaml.safe_dump({key: plain(settings)[key] for key in ("rewards", "watch")})
    wanted = [name for name in unset if f"data.{name}" in text]
    if wanted:
        raise ConfigError(f"data.{wanted[0]} is not set, and a reward needs it; set data.{wanted[0]}=…")


def server_of(app: Any) -> Any:
    """The uvicorn server of an application, without lines for each request."""
    import uvicorn

    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            http="h11",
            ws="none",
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=5,
        )
    )


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        found = socket.create_server((host, port), family=family, backlog=512)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"{host}:{port} cannot be listened on: {reason(error)}. Use another --host or --port."
        ) from error
    return found


def _who(token: str | None) -> str:
    return "this machine may ask, nobody else" if token is None else "who has the token may ask"
