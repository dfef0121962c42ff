"""The newer families with their weights cut over two processes: the gradient of one process, with other rows in each of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_vlm
from children import launch
from newer_vlm import MAKERS
from safetensors.torch import load_file, save_file
from test_vlm_sharding import PART, ROWS, gradient, made, moved, norm

from grpo_mm.pipelines.vlm.models.adapters import Lora
from grpo_mm.processes.distributed import Distributed, Processes

QUICK = ("qwen3_5_moe", "internvl")
"""The others are slow."""
SCRIPT = """
import sys
from test_newer_sharded import work

work(*sys.argv[1:])
"""


@pytest.mark.parametrize("family", [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in MAKERS])
def test_a_newer_family_has_the_gradient_of_one_process(family, tmp_path):
    script = tmp_path / "work.py"
    script.write_text(SCRIPT)
    launch(script, tmp_path, family, tiny_vlm.folder(family))
    loss, wanted = gradient(tiny(family), made("uneven", family), PART, Processes(device="cpu"))
    found = load_file(tmp_path / "found.safetensors")
    assert found.keys() == wanted.keys() and len(found) > 5 and loss != 0
    assert norm({k: found[k] - wanted[k] for k in wanted}) < 1e-5 * norm(wanted) > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_5_moe", "qwen3_vl_moe"])
def test_an_adapter_on_experts_has_the_gradient_of_one_process(family, tmp_path):
    script = tmp_path / "work.py"
    script.write_text(SCRIPT)
    launch(script, tmp_path, family, tiny_vlm.folder(family), "experts")
    loss, wanted = gradient(tiny(family, "experts"), made("uneven", family), PART, Processes(device="cpu"))
    found = load_file(tmp_path / "found.safetensors")
    assert found.keys() == wanted.keys() and any(".experts." in name for name in found) and loss != 0
    assert norm({k: found[k] - wanted[k] for k in wanted}) < 1e-5 * norm(wanted) > 0


def tiny(family: str, trained: str = "all", **given):
    how = {"train_tower": True} if trained == "all" else {"lora": Lora(rank=2, alpha=4, experts=True)}
    return moved(tiny_vlm.policy(family, micro_batch=2, prefix_sharing="on", **how, **given))


def work(folder: str, family: str, checkpoint: str, trained: str = "all") -> None:
    """What a process does."""
    tiny_vlm._FOLDERS[family] = checkpoint
    processes = Processes(device="cpu", distributed=Distributed(kind="sharded", timeout_minutes=2))
    p = tiny(family, trained, shard=processes.shard)
    _, found = gradient(p, made("uneven", family), PART, processes, own=ROWS["uneven"][processes.rank])
    if processes.is_main:
        save_file({k: v.contiguous() for k, v in found.items()}, Path(folder) / "found.safetensors")
