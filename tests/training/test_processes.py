"""Processes that wait for each other: what goes wrong on one is told on all; what should be alike is compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from children import launch
from conftest import ROOT
from toy_learning import config_of

from grpo_mm.config.run_config import read
from grpo_mm.errors import ConfigError, UserError
from grpo_mm.processes.alike import bit_sums, checksum
from grpo_mm.processes.distributed import Distributed, Processes
from grpo_mm.run.handshake import first_difference

SCRIPT = """
import sys
from test_processes import work

work(*sys.argv[1:])
"""


def work(folder: str) -> None:
    """What a process finds, by name."""
    processes = Processes(device="cpu", distributed=Distributed(timeout_minutes=1))
    rank, found = processes.rank, {}

    def tried(name: str, ask) -> None:
        try:
            found[name] = ["", ask()]
        except Exception as error:
            found[name] = [type(error).__name__, str(error)]

    def fails_on(here: int, error: Exception):
        def ask() -> int:
            if rank == here:
                raise error
            return rank

        return ask

    tried("all", lambda: processes.everywhere(lambda: rank))
    tried("main", lambda: processes.by_main(lambda: f"said by {rank}"))
    tried("failed", lambda: processes.everywhere(fails_on(1, KeyError("gone"))))
    tried("refused", lambda: processes.by_main(fails_on(0, ConfigError("no such folder"))))
    same, other = torch.arange(6.0), torch.arange(6.0) + (torch.arange(6) == 3) * 1e-6 * rank
    tried("alike", lambda: processes.check_alike([same], when="now"))
    tried("apart", lambda: processes.check_alike([same, other], when="after step 7"))
    tried("still there", lambda: processes.sum(1.0))
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))


def test_what_goes_wrong_on_one_process_is_raised_on_all_and_they_go_on_together(tmp_path):
    script = tmp_path / "work.py"
    script.write_text(SCRIPT)
    launch(script, tmp_path)
    main, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert main["all"] == other["all"] == ["", [0, 1]] and main["main"] == other["main"] == ["", "said by 0"]
    assert (
        main["failed"] == ["TrainingStopped", "process 1 failed: KeyError: 'gone'"] and other["failed"][0] == "KeyError"
    )
    assert main["refused"] == ["ConfigError", "no such folder"] and other["refused"] == ["UserError", "no such folder"]
    assert main["alike"] == other["alike"] == ["", None]
    for found in (main["apart"], other["apart"]):
        assert found[0] == "TrainingStopped" and "processes 0 and 1 hold different weights after step 7" in found[1]
    assert main["still there"] == other["still there"] == ["", 2.0]


def test_one_process_asks_nobody():
    processes = Processes(device="cpu", distributed=Distributed(kind="sharded", shard_over=8))
    assert not processes.cuts_weights and processes.shard(torch.nn.Linear(2, 2), []) is None
    with pytest.raises(KeyError):
        processes.by_main(lambda: {}["gone"])


def test_a_sum_of_bits_adds_up_over_parts_and_sees_one_bit():
    whole = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    parts = [bit_sums([part])[0] for part in whole.chunk(2)]
    assert sum(parts) == bit_sums([whole])[0]
    other = whole.clone()
    other[3, 1] = torch.nextafter(other[3, 1], torch.tensor(9.0))
    assert checksum([whole]) != checksum([other]) and checksum([whole]) == checksum([whole.clone()])
    assert checksum([whole, other]) != checksum([other, whole])


def test_processes_that_were_started_otherwise_are_named():
    own = {"config": "a", "torch": "2.15.0"}
    first_difference([own, dict(own)])
    with pytest.raises(ConfigError, match=r"process 1 has torch '2.14.0' than process 0 \('2.15.0'\)"):
        first_difference([own, own | {"torch": "2.14.0"}])
    with pytest.raises(ConfigError, match="process 2 has another config than process 0"):
        first_difference([own, own, own | {"config": "b"}])


def test_what_cannot_be_cut_is_refused_before_anything_is_loaded():
    path = ROOT / "configs/quickstart/flow.yaml"
    with pytest.raises(UserError, match="shard_over = 3 does not divide 4 processes"):
        read(path, ["distributed={kind: sharded, shard_over: 3}"]).check_settings(world=4)
    with pytest.raises(UserError, match="policy.compile = true and distributed.kind = sharded"):
        read(path, ["distributed.kind=sharded", "policy.compile=true"]).check_settings()
    with pytest.raises(UserError, match=r"timeout_minutes = 0"):
        read(path, ["distributed.timeout_minutes=0"])
    with pytest.raises(UserError, match="keeps its weights whole"):
        replace(config_of("grpo"), distributed=Distributed(kind="sharded")).check_settings()
