"""Child processes that may be killed: each is forked from a server that has imported everything and started no thread.

Forking the test process itself would copy the locks that its other threads hold, and the child may wait for them for ever.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cloudpickle

IMPORTED_BEFOREHAND = (
    "torch", "diffusers", "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3", "peft", "accelerate",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl", "safetensors.torch", "pytest", "grpo_mm.cli", "grpo_mm.entry",
)  # fmt: skip
_server = get_context("forkserver")
_server.set_forkserver_preload(list(IMPORTED_BEFOREHAND))

Patch = tuple[Any, str, Any]
"""An object, the name of one of its attributes, and what stands there in the child."""


def in_child(
    work: Callable[[], object], output: Path, *, patches: Sequence[Patch] = (), timeout_seconds: float = 240
) -> int:
    """Runs `work` in a child process; its exit code, or minus the signal that ended it.

    What it prints goes to the file `output`. Environment and working directory are those of the caller, what the caller has
    patched is not: that is what `patches` are for.

    Raises:
        TimeoutError: the child still ran after `timeout_seconds`; it was killed.
    """
    return _wait(_start(work, output, patches=patches), output, timeout_seconds)


def launch(script: Path, *arguments: object, world: int = 2, timeout_seconds: float = 250) -> None:
    """Runs a script as two processes on the CPU (gloo), or more, with the environment that `accelerate launch` gives; fails with
    what they said."""
    codes, said = launched(script, *arguments, world=world, timeout_seconds=timeout_seconds)
    assert codes == [0] * world, "\n".join(text[-4000:] for text in said)


def launched(
    script: Path, *arguments: object, world: int = 2, timeout_seconds: float = 250
) -> tuple[list[int], list[str]]:
    """The same for processes that may fail: their exit codes, and what they said."""
    common = {
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    outputs = [script.with_suffix(f".rank{rank}.txt") for rank in range(world)]
    children = [
        _start(
            _as_script(script, arguments), output, environment={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank, output in enumerate(outputs)
    ]
    codes = [_wait(child, output, timeout_seconds) for child, output in zip(children, outputs, strict=True)]
    return codes, [output.read_text() for output in outputs]


def free_port() -> int:
    """Of no other test process, and below the ports that the system gives to connections."""
    for port in range(20_000 + os.getpid() % 1_000 * 10, 32_000):
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("localhost", port))
            return port
    raise OSError("no free port between 20000 and 32000")


def _as_script(script: Path, arguments: Sequence[object]) -> Callable[[], None]:
    words = [str(script), *map(str, arguments)]

    def work() -> None:
        import runpy

        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")

    return work


def _start(
    work: Callable[[], object],
    output: Path,
    *,
    patches: Sequence[Patch] = (),
    environment: Mapping[str, str] = {},  # noqa: B006
) -> Any:
    pickled = cloudpickle.dumps((work, tuple(patches)))
    child = _server.Process(target=_run, args=(pickled, str(output), os.getcwd(), {**os.environ, **environment}))
    child.start()
    return child


def _wait(child: Any, output: Path, timeout_seconds: float) -> int:
    child.join(timeout_seconds)
    if child.exitcode is None:
        child.kill()
        child.join()
        said = output.read_text() if output.exists() else ""
        raise TimeoutError(f"the child still ran after {timeout_seconds} s; it said: {said[-2000:]}")
    return child.exitcode


def command_line(*arguments: object) -> Callable[[], None]:
    """`grpo-mm ARGUMENTS` as work for `in_child`."""
    words = ["grpo-mm", *map(str, arguments)]

    def work() -> None:
        from grpo_mm.cli import main

        sys.argv = words
        main()

    return work


def _run(pickled: bytes, output: str, folder: str, environment: dict[str, str]) -> None:
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started with it ignored
        with open(output, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout = sys.stderr = file
            try:
                os.environ.clear()
                os.environ.update(environment)
                os.chdir(folder)
                work, patches = cloudpickle.loads(pickled)
                for target, name, value in patches:
                    setattr(target, name, value)
                work()
                code = 0
            except SystemExit as leaving:
                code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
            except BaseException:
                traceback.print_exc()
    finally:
        os._exit(code)
