"""Whether the processes of a run are of one mind, before they wait for each other: config, packages, the disk."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from grpo_mm.config.run_config import RunConfig, plain
from grpo_mm.errors import ConfigError
from grpo_mm.outside import shown
from grpo_mm.processes.distributed import Processes
from grpo_mm.run.run_folder import RunFolder, versions

MAY_DIFFER = ("platform", "git_commit")
SECONDS_TO_SIGHT = 5.0


def check_alike(processes: Processes, config: RunConfig) -> None:
    """All processes come together.

    Raises:
        ConfigError: some process was started with another config, or with other versions of what computes.
    """
    text = json.dumps(plain(config), sort_keys=True, default=str)
    own = {"config": hashlib.sha256(text.encode()).hexdigest()}
    own |= {name: version for name, version in versions().items() if name not in MAY_DIFFER}
    first_difference(processes.gather_all(own))


def check_disk_is_shared(processes: Processes, folder: RunFolder) -> None:
    """Processes that share the weights write checkpoints together; they come here together, before a model is loaded.

    Raises:
        ConfigError: some process does not see a file that the main one has put beside the run folder.
    """
    if not processes.cuts_weights:
        return
    runs = folder.path.parent
    mark = runs / f".seen_by_all_{processes.by_main(lambda: uuid4().hex)}"

    def put() -> None:
        runs.mkdir(parents=True, exist_ok=True)
        mark.touch()

    processes.by_main(put)
    try:
        found = processes.gather_all(_comes_to_sight(mark))
    finally:
        processes.by_main(lambda: mark.unlink(missing_ok=True))
    for rank, sees in enumerate(found):
        if not sees:
            raise ConfigError(
                f"process {rank} does not see the run folder {folder.path} of process 0. Weights that are cut over processes are saved by "
                "all of them: `runs_dir` has to lie on a disk that all nodes share."
            )


def _comes_to_sight(path: Path) -> bool:
    """Disks of a network show a new file some seconds later."""
    until = time.monotonic() + SECONDS_TO_SIGHT
    while not path.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def first_difference(ranks: Sequence[Mapping[str, Any]]) -> None:
    """Raises ConfigError that names the first process which is not like the main one, and in what."""
    main = ranks[0]
    for rank, found in enumerate(ranks):
        for name in sorted({*main, *found}):
            here, there = main.get(name), found.get(name)
            if here != there:
                what = "another config" if name == "config" else f"{name} {shown(there)}"
                said = "" if name == "config" else f" ({shown(here)})"
                raise ConfigError(
                    f"process {rank} has {what} than process 0{said}. Start all processes with the same command, in the same environment."
                )
