"""What a run leaves when it ends: the product with its card, and the summary, which is written last."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from grpo_mm.config.run_config import RunConfig
from grpo_mm.looking.changes import read_changes
from grpo_mm.looking.origin import Origin
from grpo_mm.looking.verdict import verdict_of_folder
from grpo_mm.looking.watch import Rules
from grpo_mm.processes import clock
from grpo_mm.processes.distributed import Processes
from grpo_mm.rollout.phrasing import template_of, way_of
from grpo_mm.run.mark import replace_text
from grpo_mm.run.product import LARGEST_AT_AN_INTERRUPT, note_product, save_product, whole_policy
from grpo_mm.run.run_folder import RunFolder
from grpo_mm.training.learner import Learner

log = logging.getLogger(__name__)


class Ending:
    """All processes call its methods together. `state` is that of the loop."""

    def __init__(self, config: RunConfig, folder: RunFolder, learner: Learner, processes: Processes) -> None:
        self.config, self.folder, self.learner, self.processes = config, folder, learner, processes

    def finish(self, state: Mapping[str, Any], *, after: Mapping[str, float], rules: Rules) -> dict[str, Any]:
        """Writes the product and the summary of a run that has come to its end; gives the summary.

        Args:
            after: held-out metrics of the last step.
        """
        policy = self.learner.policy
        if self.learner.counters["updates"] == 0:
            log.warning("every update was skipped, so the product is the model as it was; look at the warnings above.")
        stopped = state["stopped_early"]
        origin = self._origin(state, f"stopped early by {stopped}" if stopped else "the last step")
        summary = {
            "name": self.config.name,
            "steps": state["step"],
            "stopped_early": state["stopped_early"],
            "eval_before": short_metrics(state["eval_before"] or {}),
            "eval_after": short_metrics(after),
            "best_step": state["best_step"],
            "seconds": {**state["seconds"], "total": sum(state["seconds"].values())},
            "network_calls": {k: v for k, v in state["calls"].items() if k in clock.NETWORK_CALLS},
            "reward_calls": {k: v for k, v in state["calls"].items() if k not in clock.NETWORK_CALLS},
            "bad_updates": self.learner.counters["bad_updates"],
            "product": policy.product,
            "product_of": asdict(origin),
        }
        summary |= self.processes.by_main(lambda: self._what_the_folder_says(rules))
        self._write_product(summary, origin)
        text = json.dumps(summary, indent=1, allow_nan=False)
        self.processes.by_main(lambda: replace_text(self.folder.summary, text))
        return summary

    def leave_product(self, state: Mapping[str, Any], why: str) -> None:
        """The product of a run that ends before its end; a large one is left to `grpo-mm export`, which the log says."""
        policy, path = self.learner.policy, self.folder.path
        size = getattr(policy, "product_bytes", 0)
        if size > LARGEST_AT_AN_INTERRUPT:
            log.warning(
                "no product of %.1f GB was written now; `grpo-mm export %s` makes it of step %d",
                size / 1e9,
                path,
                state["step"],
            )
            return
        origin, last = self._origin(state, why), state["eval_last"]
        after = last["metrics"] if last and last["step"] == state["step"] else {}
        summary = {
            "name": self.config.name, "steps": state["step"], "eval_before": short_metrics(state["eval_before"] or {}),
            "eval_after": short_metrics(after),
            "versions": self.processes.by_main(lambda: json.loads((path / "versions.json").read_text())),
        }  # fmt: skip
        self._write_product(summary, origin)
        log.info("%s: %s", path / policy.product, origin.words())

    def _what_the_folder_says(self, rules: Rules) -> dict[str, Any]:
        """Of the whole run, for its summary."""
        path = self.folder.path
        found = verdict_of_folder(
            path, rules=self.config.default_rules | rules.watched, watched=list(self.config.watched_rewards)
        )
        return {
            "changes": [str(change) for change in read_changes(path)],
            "verdict": found.to_json(),
            "versions": json.loads((path / "versions.json").read_text()),
        }

    def _origin(self, state: Mapping[str, Any], why: str) -> Origin:
        """Of a product of the present weights."""
        averaged = self.config.ema is not None and self.config.ema.evaluate
        weights = "averaged" if averaged else "trained"
        return Origin(state["step"], self.config.steps, weights, why, state["best_step"])

    def _write_product(self, summary: dict[str, Any], origin: Origin) -> None:
        """The main process writes it. An engine knows how evaluation drew; the card's lines draw so too."""
        policy, engine = self.learner.policy, self.config.engine
        usage = engine.usage(policy) if hasattr(engine, "usage") else policy.usage()
        asked = {name: template_of(way_of(source.use)) for name, source in self.config.prompts.items()}
        told = {name: template for name, template in asked.items() if template is not None}
        path = self.folder.path / policy.product
        with self.learner.evaluation_weights():
            whole = whole_policy(self.config, policy, self.processes)

            def write() -> None:
                save_product(whole, path, origin=origin, summary=summary, usage=usage, asked=told)
                note_product(self.folder.path, policy.product, origin)

            self.processes.by_main(write)


def short_metrics(found: Mapping[str, float]) -> dict[str, float | None]:
    """For the summary: without the statistics of pictures and texts, which the record and the report have."""
    found = {
        key.removeprefix("eval/"): value
        for key, value in found.items()
        if not key.startswith(("eval/image/", "eval/clip/", "eval/text/"))
    }
    return {key: value if math.isfinite(value) else None for key, value in found.items()}
