"""The checkpoints of a run on its disk: written at once or beside training, read for all processes, and let go of."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path

from torch import Tensor

from grpo_mm.config.settings import Checkpoints
from grpo_mm.processes.distributed import Processes
from grpo_mm.processes.peak_memory import GIB
from grpo_mm.run.mark import replace_text
from grpo_mm.run.run_folder import RunFolder
from grpo_mm.weights import checkpoint
from grpo_mm.weights.background import Writer, copied, free_memory, size_of
from grpo_mm.weights.checkpoint import Checkpoint

log = logging.getLogger(__name__)

MARGIN = 1.2
"""Of main memory, that a copy of a checkpoint leaves free."""


class Kept:
    """All processes call its methods together, but for `check` and `end`."""

    def __init__(self, folder: RunFolder, settings: Checkpoints, processes: Processes) -> None:
        self.folder, self.settings, self.processes = folder, settings, processes
        self._writer = Writer()
        self._beside = processes.beside() if settings.in_background else None
        self._told_of_room = False

    def save(self, made: Checkpoint, *, step: int, healthy: int | None, best: int | None) -> None:
        """Writes a checkpoint and lets go of those that are no longer kept, at once or beside what follows.

        Args:
            healthy: the step up to which weights were measured inside all bands; None: nobody watches.
            best: the step with the best held-out score so far.
        """
        if self._beside is None or not self._has_room_for(made):
            self._write(made, step, self.processes, healthy, best)
            return
        self.wait()
        if self.processes.cuts_weights or self.processes.is_main:
            made = copied(made)
        self._writer.begin(lambda: self._write(made, step, self._beside, healthy, best))

    def wait(self) -> None:
        """Until nothing is being written; raises what went wrong."""
        self.processes.everywhere(self._writer.wait)

    def check(self) -> None:
        """Of this process: raises what went wrong, once."""
        self._writer.check()

    def end(self) -> None:
        """Of this process, where the run ends for another reason."""
        self._writer.end()

    def read(self, path: Path) -> Checkpoint:
        """A checkpoint that the main process has verified for all, and sends to those that do not see its disk."""
        processes, kept = self.processes, []
        processes.by_main(lambda: checkpoint.verify(path, self.folder.run) and None)
        seen = all(processes.gather_all(path.is_dir()))
        read = partial(checkpoint.read, path, verified=True)
        processes.everywhere(lambda: kept.append(read()) if seen or processes.is_main else None)
        if seen:
            return kept[0]
        own = kept[0] if kept else Checkpoint({}, {})
        names = processes.by_main(lambda: {file: list(named) for file, named in own.tensors.items()})
        tensors = {
            file: {name: processes.by_main(partial(_tensor, own, file, name)) for name in named}
            for file, named in names.items()
        }
        return Checkpoint(tensors, processes.by_main(lambda: own.state))

    def step_to_go_back_to(self, healthy: int) -> int:
        """Of the newest checkpoint whose weights were measured inside all bands, which they were up to step `healthy`."""

        def found() -> int:
            step = self._newest_healthy(healthy)
            return checkpoint.steps(self.folder.checkpoints)[0] if step is None else step

        return self.processes.by_main(found)

    def prune(self, *, healthy: int | None, best: int | None) -> None:
        """Deletes what is no longer kept and lists what there is in checkpoints.jsonl."""
        self.processes.by_main(lambda: self._prune(healthy, best))

    def _write(self, made: Checkpoint, step: int, processes: Processes, healthy: int | None, best: int | None) -> None:
        where = self.folder.checkpoints
        if processes.cuts_weights:
            run = self.folder.run if processes.is_main else None
            checkpoint.write(where, made, step=step, run=run, processes=processes)
        else:
            processes.by_main(lambda: checkpoint.write(where, made, step=step, run=self.folder.run))
        processes.by_main(lambda: self._prune(healthy, best))

    def _prune(self, healthy: int | None, best: int | None) -> None:
        settings, there = self.settings, checkpoint.steps(self.folder.checkpoints)
        keep = {*there[-settings.keep_last :], *({best} if settings.keep_best else ())}
        keep |= {self._newest_healthy(healthy)} if healthy is not None else set()
        others = checkpoint.of_others(self.folder.checkpoints, self.folder.run)
        checkpoint.prune(self.folder.checkpoints, keep=keep | others)
        rows = [{"step": s, "name": checkpoint.name_of(s), "best": s == best} for s in there if s in keep]
        replace_text(self.folder.path / "checkpoints.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def _newest_healthy(self, healthy: int) -> int | None:
        return max((s for s in checkpoint.steps(self.folder.checkpoints) if s <= healthy), default=None)

    def _has_room_for(self, made: Checkpoint) -> bool:
        """Of main memory, on all processes; else it is written at once, which the log says the first time."""
        writes = self.processes.cuts_weights or self.processes.is_main
        needed, free = size_of(made) if writes else 0, free_memory()
        short = free is not None and needed * MARGIN > free
        found = not any(self.processes.gather(short))
        if not found and not self._told_of_room:
            self._told_of_room = True
            log.warning(
                "checkpoints.in_background: a copy of a checkpoint takes %.1f GiB of main memory, which is short; they are written at once",
                needed / GIB,
            )
        return found


def _tensor(loaded: Checkpoint, file: str, name: str) -> Tensor:
    return loaded.tensors[file][name]
