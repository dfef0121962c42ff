"""Two launchers on one machine, as two nodes are started, each in a working folder of its own, where only the first sees its files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from children import free_port
from conftest import ROOT
from safetensors.torch import load_file
from test_exactness import assert_equal, write
from test_sharded_checkpoints import SETTINGS
from tiny_runs import PYTHONPATH, record

from grpo_mm.config.typed_yaml import merge
from grpo_mm.entry import train
from grpo_mm.weights import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
AS_ACCELERATE = (
    "accelerate.commands.launch", "--config_file", str(ROOT / "configs/accelerate/sharded2x8.yaml"), "--num_processes", "2",
    "--machine_rank", "{node}", "--main_process_ip", "127.0.0.1", "--main_process_port", "{port}",
)  # fmt: skip
AS_TORCHRUN = (
    "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", "--node_rank", "{node}",
    "--master_addr", "127.0.0.1", "--master_port", "{port}",
)  # fmt: skip
LAUNCHERS = {"accelerate": AS_ACCELERATE, "torchrun": AS_TORCHRUN}


def on_two_nodes(launcher: str, folder: Path, config: Path, *settings: str) -> tuple[list[int], list[str]]:
    """Exit codes and what was said, of each node; node R works in `folder`/nodeR."""
    port, nodes = free_port(), []
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    for node in range(2):
        here = folder / f"node{node}"
        here.mkdir(exist_ok=True, parents=True)
        words = [word.format(node=node, port=port) for word in LAUNCHERS[launcher]]
        command = [sys.executable, "-m", *words, "-m", "grpo_mm.cli", "train", str(config), "runs_dir=runs", *settings]
        nodes.append(
            subprocess.Popen(
                command, cwd=here, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    try:
        said = [node.communicate(timeout=250)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    return [node.returncode for node in nodes], said


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_whole_weights_need_no_disk_in_common(launcher, tiny_sd3, tmp_path):
    config = write(tmp_path / "run", tiny_sd3, merge(SETTINGS, {"distributed": {"timeout_minutes": 1.5}}))
    for steps in (2, 3):  # the second start goes on from what the first node alone has on its disk
        codes, said = on_two_nodes(launcher, tmp_path, config, f"steps={steps}")
        assert codes == [0, 0], "\n".join(text[-4000:] for text in said)
    train(config)
    run, alone = tmp_path / "node0/runs/tiny", config.parent / "runs/tiny"
    for part in ("weights", "snapshots"):
        found, wanted = (dict(checkpoint.read(here / "checkpoints/step_000003").tensors[part]) for here in (run, alone))
        assert_equal(found, wanted, to=1e-9)
    file = "model/transformer/diffusion_pytorch_model.safetensors"
    assert_equal(load_file(run / file), load_file(alone / file), to=1e-9)
    rows = {name: [row["reward/bright/mean"] for row in record(here)] for name, here in (("two", run), ("one", alone))}
    assert rows["two"] == pytest.approx(rows["one"], abs=1e-9) and len(rows["two"]) == 3
    assert json.loads((run / "summary.json").read_text())["steps"] == 3
    assert files(tmp_path / "node1") == []


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_weights_that_are_cut_need_one_and_say_so_at_the_start(launcher, tiny_sd3, tmp_path):
    more = {"distributed": {"kind": "sharded", "timeout_minutes": 1.5}}
    config = write(tmp_path / "run", tiny_sd3, merge(SETTINGS, more))
    codes, said = on_two_nodes(launcher, tmp_path, config)
    assert 0 not in codes
    for text in said:
        assert "process 1 does not see the run folder" in text and "has to lie on a disk that all nodes share" in text
        assert "step 1/" not in text
    assert files(tmp_path / "node0") == files(tmp_path / "node1") == []  # nothing was begun
