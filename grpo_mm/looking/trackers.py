"""A run in TensorBoard or Weights & Biases: its metrics, config, pictures and answers, and where its report lies.

They are views: what a run needs is in its folder, and one that fails while the run goes on is told of once and ends nothing.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml

from grpo_mm.errors import ConfigError
from grpo_mm.looking.sample_tables import SampleTable, flat_settings, markdown, sample_table
from grpo_mm.outside import reason

log = logging.getLogger(__name__)

MOST_FAILURES = 20
"""In a row; after so many a tracker is left alone."""
PROJECT = "grpo_mm"
"""Of Weights & Biases, unless its own variable WANDB_PROJECT names another."""


def check_installed(names: Sequence[str]) -> None:
    """Raises ConfigError for a tracker whose package is not there."""
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    if absent:
        raise ConfigError(f"trackers: {', '.join(absent)} is not installed; pip install 'grpo_mm[{','.join(absent)}]'.")


class Tracker(Protocol):
    """One of them, through accelerate. Any method may raise anything."""

    def start(self, *, config: Mapping[str, Any], step: int, run_id: str, report: Path) -> None: ...
    def metrics(self, values: Mapping[str, float], step: int) -> None: ...
    def samples(self, table: SampleTable, step: int) -> None: ...
    def report(self, path: Path, step: int, verdict: str) -> None: ...
    def finish(self) -> None: ...


class Trackers:
    """The trackers of a run, on the main process; `start` comes first."""

    def __init__(self, names: Sequence[str], folder: Path, *, name: str) -> None:
        """folder: the run's; name: the run's."""
        self.folder, self.step = folder, 0
        self.live: dict[str, Tracker] = {kind: KINDS[kind](name, folder) for kind in names}
        self.failed: dict[str, int] = dict.fromkeys(names, 0)
        self._in_a_row: dict[str, int] = dict.fromkeys(names, 0)

    def start(self, config: Mapping[str, Any], *, step: int, run_id: str) -> None:
        """A run that goes on after `step` goes on there as well: what was sent of later steps gives way.

        Raises:
            ConfigError: a tracker that cannot be started, with its reason.
        """
        for kind, tracker in self.live.items():
            try:
                tracker.start(config=config, step=step, run_id=run_id, report=self.folder / "report.html")
            except Exception as error:  # of a service: whatever its client raises
                hint = " Log in, or keep it on this machine with WANDB_MODE=offline." if kind == "wandb" else ""
                raise ConfigError(
                    f"trackers: {kind} cannot be started ({reason(error)}).{hint} Or leave it out: trackers=[]."
                ) from error

    def metrics(self, row: Mapping[str, float]) -> None:
        """A row of metrics.jsonl."""
        self.step = int(row["step"])
        values = {name: value for name, value in row.items() if name != "step"}
        self._each(lambda tracker: tracker.metrics(values, self.step))

    def samples(self, name: str) -> None:
        """The sheet or the transcript of this name, if there is one."""

        def send(tracker: Tracker) -> None:
            table = sample_table(self.folder / "samples", name)
            if table is not None:
                tracker.samples(table, self.step)

        self._each(send)

    def report(self, path: Path, *, verdict: str = "") -> None:
        self._each(lambda tracker: tracker.report(path, self.step, verdict))

    def finish(self) -> None:
        """Says what was missed."""
        self._each(lambda tracker: tracker.finish())
        for kind, missed in self.failed.items():
            if missed > 1:
                log.warning("tracker %s missed %d things of this run; the run folder has everything", kind, missed)

    def _each(self, send: Callable[[Tracker], None]) -> None:
        for kind, tracker in self.live.items():
            if self._in_a_row[kind] >= MOST_FAILURES:
                self.failed[kind] += 1
                continue
            try:
                send(tracker)
                self._in_a_row[kind] = 0
            except Exception as error:  # of a service: whatever its client raises
                if not self.failed[kind]:
                    log.warning(
                        "tracker %s failed at step %d (%s); the run goes on, and its folder has everything",
                        kind, self.step, reason(error),
                    )  # fmt: skip
                self.failed[kind] += 1
                self._in_a_row[kind] += 1


class TensorBoard:
    """Event files in the run folder; a run that goes on adds one, which hides the later steps of those before."""

    def __init__(self, name: str, folder: Path) -> None:
        from accelerate.tracking import TensorBoardTracker

        self._begin = lambda step: TensorBoardTracker(name, folder, purge_step=step + 1 if step else 0)

    def start(self, *, config: Mapping[str, Any], step: int, run_id: str, report: Path) -> None:
        from torch.utils.tensorboard.summary import hparams

        self.accelerate = self._begin(step)
        self.accelerate.start()
        self.writer = self.accelerate.writer
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        self.writer.add_text("config", "".join(f"    {line}\n" for line in text.splitlines()), step)
        self.report(report, step, "")
        # Into this file: add_hparams of the writer would begin a folder of its own, which counts as another run.
        for summary in hparams(flat_settings(dict(config)), {}):
            self.writer.file_writer.add_summary(summary)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.accelerate.log(dict(values), step=step)

    def samples(self, table: SampleTable, step: int) -> None:
        if table.sheet is not None:
            self.writer.add_image(f"samples/{table.kind}", np.asarray(table.sheet), step, dataformats="HWC")
        self.writer.add_text(f"samples/{table.kind}", markdown(table), step)
        asked = {id(p): p for p in table.pictures if p is not None} if table.sheet is None else {}
        for i, picture in enumerate(asked.values()):
            self.writer.add_image(f"samples/{table.kind}_media/{i}", np.asarray(picture), step, dataformats="HWC")
        self.writer.flush()

    def report(self, path: Path, step: int, verdict: str) -> None:
        made = "" if path.exists() else " (made at the end, or by `grpo-mm report`)"
        link = f"[{path}]({path.absolute().as_uri()}){made}"
        self.writer.add_text("report", f"{verdict}\n\n{link}" if verdict else link, step)

    def finish(self) -> None:
        self.accelerate.finish()


class Wandb:
    """A run of the project "grpo_mm", under the run's name; its identity is that of the run folder, so that a run goes on in it."""

    def __init__(self, name: str, folder: Path) -> None:
        from accelerate.tracking import WandBTracker

        project = os.environ.get("WANDB_PROJECT") or PROJECT
        self._begin = lambda run_id: WandBTracker(project, name=name, id=run_id, resume="allow")

    def start(self, *, config: Mapping[str, Any], step: int, run_id: str, report: Path) -> None:
        self.accelerate = self._begin(run_id)
        self.accelerate.start()
        self.run = self.accelerate.run
        # Steps of its own only ever rise: a run that goes back to a checkpoint would lose what it does again.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")
        self.accelerate.store_init_configuration({**config, "report": str(report.absolute())})

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.accelerate.log({**values, "step": step})

    def samples(self, table: SampleTable, step: int) -> None:
        import wandb

        pictures = [None if picture is None else wandb.Image(picture) for picture in table.pictures]
        has_pictures = any(picture is not None for picture in pictures)
        columns = [*table.columns, *(["picture"] if has_pictures else [])]
        data = [[*row, *([picture] if has_pictures else [])] for row, picture in zip(table.rows, pictures)]
        sent: dict[str, Any] = {f"samples/{table.kind}_table": wandb.Table(columns=columns, data=data)}
        if table.sheet is not None:
            sent[f"samples/{table.kind}"] = wandb.Image(table.sheet, caption=table.caption)
        self.accelerate.log({**sent, "step": step})

    def report(self, path: Path, step: int, verdict: str) -> None:
        import wandb

        self.run.summary["report"] = str(path.absolute())
        self.run.summary["verdict"] = verdict
        self.accelerate.log({"report": wandb.Html(path.read_text(encoding="utf-8")), "step": step})

    def finish(self) -> None:
        self.accelerate.finish()


KINDS: dict[str, Callable[[str, Path], Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb}
