"""Starting a server: it ends with who started it, however that ends, and says why it does not come up. The program here is none of vLLM's."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grpo_mm.errors import ConfigError, UserError
from grpo_mm.pipelines.vlm.engine_server import keeper, starting
from grpo_mm.pipelines.vlm.engine_server.starting import Launch, start
from grpo_mm.tools.serving.serve_engine import launch_of, serve_engine

FAMILY = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(100)"])
open(sys.argv[1], "w").write(f"{os.getpid()} {child.pid}")
time.sleep(100)
"""
"""A program that starts another, which does not end when it is asked."""
ANSWERS = """
import http.server, sys
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answers).serve_forever()
"""
PARENT = """
import subprocess, sys, time
kept = subprocess.Popen([sys.executable, *sys.argv[1:]], stdin=subprocess.PIPE)
time.sleep(100)
"""


def there(pid: int) -> bool:
    """A process that is no mere entry of one that has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(is_so, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes in /proc")
@pytest.mark.parametrize("end", ["kill", "pipe", "term"])
def test_what_was_started_ends_with_who_started_it_however_that_ends(tmp_path, monkeypatch, end):
    monkeypatch.setenv("PYTHONPATH", "")
    told = tmp_path / "pids"
    command = [keeper.__file__, sys.executable, "-c", FAMILY, str(told)]
    if end == "kill":
        parent = subprocess.Popen([sys.executable, "-c", PARENT, *command])
    else:
        parent = subprocess.Popen([sys.executable, *command], stdin=subprocess.PIPE)
    pids: list[int] = []
    try:
        wait_for(lambda: told.exists() and len(told.read_text().split()) == 2)
        pids = [int(pid) for pid in told.read_text().split()]
        assert all(map(there, pids))
        if end == "kill":
            parent.kill()
        elif end == "pipe":
            parent.stdin.close()
        else:
            parent.terminate()
        parent.wait(20)
        wait_for(lambda: not any(map(there, pids)))
    finally:
        parent.kill()
        parent.wait()
        for pid in pids:
            if there(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def program(monkeypatch):
    """Instead of vLLM: a program that gets its port."""
    monkeypatch.setattr(starting, "find_spec", lambda name: object())

    def use(text: str) -> None:
        monkeypatch.setattr(Launch, "command", lambda self, port: [sys.executable, "-c", text, str(port)])

    return use


def test_a_server_that_answers_is_handed_over_and_stopped(program, tmp_path):
    program(ANSWERS)
    with start(Launch(model="x"), log=tmp_path / "logs" / "engine.log", seconds=30) as server:
        assert server.is_alive and server.url.startswith("http://127.0.0.1:")
        assert ANSWERS.splitlines()[1] in (tmp_path / "logs/engine.log").read_text()
    assert not server.is_alive and not starting._answers(f"{server.url}/health")


def test_one_that_ends_is_told_with_the_end_of_its_log(program, tmp_path):
    program("print('no such model'); raise SystemExit(3)")
    with pytest.raises(
        UserError, match=r"ended before it answered; the end of its log, .*engine.log:\n[^!]*no such model"
    ):
        start(Launch(model="x"), log=tmp_path / "engine.log", seconds=30)


def test_one_that_does_not_come_in_time_is_ended(program, tmp_path):
    program("import os, sys, time; print(os.getpid(), flush=True); time.sleep(100)")
    with pytest.raises(UserError, match="did not answer within 1 seconds"):
        start(Launch(model="x"), log=tmp_path / "engine.log", seconds=1)
    pid = int((tmp_path / "engine.log").read_text().split()[-1])
    wait_for(lambda: not there(pid))


def test_what_cannot_be_started_is_refused(monkeypatch, tmp_path):
    for settings, words in (
        ({"longest": 0}, "longest = 0"),
        ({"port": 70_000}, "port = 70000"),
        ({"memory_share": 1.5}, "memory_share"),
        ({"tensor_parallel": 2, "on_cpu": True}, "a CPU holds the whole model"),
    ):
        with pytest.raises(ConfigError, match=words):
            Launch(model="x", **settings)
    monkeypatch.setattr(starting, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install"):
        start(Launch(model="x"), log=tmp_path / "x")
    monkeypatch.setattr(starting, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match="there is no token"):
        start(Launch(model="x", host="0.0.0.0"), log=tmp_path / "x")


def test_what_vllm_is_told():
    command = " ".join(Launch(model="/m", tensor_parallel=4, devices="4,5,6,7", adapter_rank=20).command(8100))
    for words in (
        "--model /m", "--port 8100", "--tensor-parallel-size 4", "--enable-lora", "--max-lora-rank 32", "--dtype bfloat16",
        "--logprobs-mode processed_logprobs", "--no-mm-device-do-normalize", f"--middleware {starting.DOOR}", "--gpu-memory-utilization 0.9",
    ):  # fmt: skip
        assert words in command, words
    assert "--enforce-eager" not in command
    alone = " ".join(Launch(model="/m", on_cpu=True).command(1))
    assert "--enforce-eager" in alone and "lora" not in alone and "gpu" not in alone
    found = Launch(model="/m", devices="4,5").environment("secret")
    assert found["CUDA_VISIBLE_DEVICES"] == "4,5" and found["GRPO_MM_TOKEN"] == "secret"
    module, _, name = starting.DOOR.rpartition(".")
    assert hasattr(importlib.import_module(module), name)


def test_the_server_of_a_config_is_started_as_its_policy_needs():
    found = launch_of(
        "quickstart/video.yaml", ["policy.lora={rank: 12, alpha: 24}", "device=cpu"], host="127.0.0.1", port=8100
    )
    assert (found.dtype, found.adapter_rank, found.port, found.on_cpu) == ("float32", 12, 8100, True)
    assert (Path(found.model) / "config.json").is_file()
    room = launch_of("quickstart/video.yaml", ["engine.generator={kind: vllm, longest: 777}"], host="::1", port=0)
    assert (room.longest, room.adapter_rank) == (777, 0)
    with pytest.raises(ConfigError, match="only policies that write texts have an engine server"):
        launch_of("quickstart/flow.yaml", [], host="127.0.0.1", port=0)


def test_a_server_that_ends_ends_the_command(program, tmp_path):
    program(
        "import sys, threading, os\n"
        + ANSWERS.replace("http.server.HTTPServer", "threading.Timer(3, os._exit, [1]).start(); http.server.HTTPServer")
    )
    told: list[str] = []
    with pytest.raises(UserError, match="the vLLM server has ended; its log: .*engine.log"):
        serve_engine(
            "quickstart/video.yaml", host="127.0.0.1", port=0, token_env=None, log=tmp_path / "engine.log", told=told.append
        )  # fmt: skip
    assert "draws for runs with engine.generator={kind: vllm_server, urls: [http://127.0.0.1:" in told[-1]
