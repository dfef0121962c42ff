"""Bands for logged metrics: when one leaves its band the run warns, slows down, goes back or stops."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from grpo_mm.errors import CheckpointError, ConfigError
from grpo_mm.looking.image_statistics import STATISTICS
from grpo_mm.registry import Role
from grpo_mm.types import is_relative

Action = Literal["warn", "lower_lr", "rollback", "stop"]
Band = tuple[float | None, float | None]
"""(low, high); None is open."""


@dataclass(frozen=True)
class Watched:
    """A reward that is logged and not optimised (`use`), a rule on a logged metric (`metric` and a band), or both.

    The rule "less than half or more than twice the luminance of the start, two records in a row: go back":
    `{metric: image/luminance, low: 0.5, high: 2, relative: true, patience: 2, action: rollback}`.
    """

    use: Annotated[Any, Role("reward")] | None = None
    """The reward that is logged and not trained on: a kind, {kind: …}, or module:function of your own; null: only a rule on
    `metric`."""
    weight: float = 1.0
    """In the held-out score, where all rewards compare samples with each other; else without effect."""
    sources: tuple[str, ...] | None = None
    """Names of the prompt sources that it applies to; null: all."""
    timeout_seconds: float | None = None
    """Longest time for one batch, after which its rows count as failed; null: no limit."""
    isolate: bool = False
    """Whether the reward runs in a process of its own."""
    device: str | None = None
    """Of an isolated reward, such as cuda:1; null: the run's. The four above as for an entry of `rewards`."""
    workers: int = 1
    """Processes that share the outputs of an isolated reward."""
    environment: str | None = None
    """Packages of its own, as for an entry of `rewards`; it runs in a process of its own then."""
    golden: str | None = None
    """Recorded scores of golden pictures, as for an entry of `rewards`."""
    frames: Literal["mean", "min"] | dict[str, Any] | None = None
    """Of a reward of pictures that is asked about clips, as for an entry of `rewards`."""
    metric: str | None = None
    """A name of metrics.jsonl; None: the score of `use`, watch/NAME/score."""
    low: float | None = None
    """The lower bound of the band, in the metric's unit (or see `relative`, `shift`); null: open on that side."""
    high: float | None = None
    """None: open on that side."""
    relative: bool = False
    """The bounds are multiples of the metric's first value (which is not 0)."""
    shift: bool = False
    """The bounds are added to the metric's first value, as suits a share: {high: 0.3, shift: true}."""
    patience: int = 1
    """Records in a row outside the band before it acts."""
    action: Action = "warn"
    """warn: once for each time outside. lower_lr, rollback: again after each further `patience` records outside.
    rollback: the newest checkpoint that was measured inside all bands, while steps go on."""
    factor: float = 0.5
    """Of the learning rate from then on, for lower_lr and rollback."""
    max_actions: int = 3
    """After so many times lower_lr or rollback the run stops instead."""

    def __post_init__(self) -> None:
        if self.use is None and self.metric is None:
            raise ValueError("neither `use` (a reward) nor `metric` (a name in metrics.jsonl) is given; wanted one.")
        settings = (self.sources, self.timeout_seconds, self.device, self.environment, self.golden, self.frames)
        if self.use is None and (self.isolate or any(value is not None for value in settings)):
            raise ValueError(
                "sources and timeout_seconds belong to a reward, but there is no `use`; so do isolate, device, environment, golden and frames."
            )
        if not self.has_band:
            idle = [
                key for key, given in (
                    (f"metric: {self.metric}", self.metric is not None),
                    (f"action: {self.action}", self.action != "warn"),
                    ("relative: true", self.relative),
                    ("shift: true", self.shift),
                ) if given
            ]  # fmt: skip
            if idle:
                raise ValueError(f"{', '.join(idle)} without a band does nothing; give `low`, `high` or both.")
        if self.relative and self.shift:
            raise ValueError("relative: true and shift: true exclude each other: the bounds are multiples, or added.")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low = {self.low:g} is above high = {self.high:g}.")
        for key, value in (("patience", self.patience), ("max_actions", self.max_actions)):
            if value < 1:
                raise ValueError(f"{key} = {value}; wanted at least 1.")
        if not 0 < self.factor <= 1 or (self.action == "lower_lr" and self.factor == 1):
            below = "below 1" if self.action == "lower_lr" else "at most 1"
            raise ValueError(f"factor = {self.factor:g}; wanted above 0 and {below}.")

    @property
    def has_band(self) -> bool:
        return self.low is not None or self.high is not None


def metric_of(name: str, watched: Watched) -> str:
    """What the rule `name` reads."""
    return watched.metric or f"watch/{name}/score"


def absolute_band(low: float | None, high: float | None, *, unit: float, start: float = 0.0) -> Band:
    """Bounds as values of the metric: `unit` is its first value for relative bounds, else 1; `start` for shifted ones, else 0.

    A negative first value turns multiples round: 0.5 to 2 times -4 is -8 to -2.
    """
    ends = tuple(None if bound is None else bound * unit + start for bound in (low, high))
    return ends if unit > 0 else ends[::-1]  # type: ignore[return-value]


def is_outside(value: float, band: Band) -> bool:
    low, high = band
    return (low is not None and value < low) or (high is not None and value > high)


@dataclass(frozen=True)
class Alarm:
    """A rule that acts."""

    rule: str
    metric: str
    value: float
    band: Band
    asked: Action
    """What the rule is for."""
    action: Action
    """What is to be done: `asked`, or stop once the rule has acted `max_actions` times."""
    factor: float


class Rules:
    """The bands of a run and how they fared. The state is plain JSON, the same on every rank."""

    def __init__(self, watched: Mapping[str, Watched]) -> None:
        self.watched = {name: entry for name, entry in watched.items() if entry.has_band}
        self.metrics = {name: metric_of(name, entry) for name, entry in self.watched.items()}
        self.seen: dict[str, dict[str, Any]] = {
            name: {"first": None, "outside": 0, "actions": 0, "inside_at": 0} for name in self.watched
        }
        self.lr_scale = 1.0
        self.events = 0
        """Lines of events.jsonl."""

    @property
    def can_go_back(self) -> bool:
        return any(entry.action == "rollback" for entry in self.watched.values())

    @property
    def healthy_step(self) -> int:
        """The newest step whose weights were inside all bands when last measured; 0 before any was."""
        return min((seen["inside_at"] for seen in self.seen.values() if seen["first"] is not None), default=0)

    def observe(self, row: Mapping[str, Any], *, weights_step: int) -> tuple[dict[str, int], list[Alarm]]:
        """What a row of the record says: fields to add to it, and the rules that act now.

        A value that is missing, NaN or infinite is no record: it neither counts nor heals.

        Args:
            weights_step: the step after which the weights that were measured came to be. A rollout is one of the weights
                before its step's updates, so its row speaks for the checkpoint of the step before.
        """
        fields, alarms = {}, []
        for name, entry in self.watched.items():
            value, seen = row.get(self.metrics[name]), self.seen[name]
            if value is None or not math.isfinite(value):
                continue
            if seen["first"] is None:
                if entry.relative and value == 0:  # no multiple of 0 is a band
                    continue
                seen["first"] = float(value)
            unit, start = seen["first"] if entry.relative else 1.0, seen["first"] if entry.shift else 0.0
            band = absolute_band(entry.low, entry.high, unit=unit, start=start)
            outside = is_outside(value, band)
            fields[f"watch_rule/{name}/outside"] = int(outside)
            if not outside:
                seen |= {"outside": 0, "inside_at": weights_step}
                continue
            seen["outside"] += 1
            if seen["outside"] == entry.patience:
                alarms.append(self._alarm(name, float(value), band))
        return fields, alarms

    def _alarm(self, name: str, value: float, band: Band) -> Alarm:
        entry, seen = self.watched[name], self.seen[name]
        action = entry.action
        if action in ("lower_lr", "rollback"):
            action = "stop" if seen["actions"] == entry.max_actions else action
            seen["outside"] = 0  # counts anew, so that it acts again if this was of no use
        seen["actions"] += 1
        return Alarm(name, self.metrics[name], value, band, asked=entry.action, action=action, factor=entry.factor)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "lr_scale": self.lr_scale, "events": self.events}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if set(state["seen"]) != set(self.seen):
            raise CheckpointError(
                f"the checkpoint keeps the watch rules {sorted(state['seen']) or 'of none'}, the config has "
                f"{sorted(self.seen) or 'none'}."
            )
        self.seen = {name: dict(seen) for name, seen in state["seen"].items()}
        self.lr_scale, self.events = float(state["lr_scale"]), int(state["events"])


def describe(event: Mapping[str, Any]) -> str:
    """A line of events.jsonl in words: "image/luminance 0.71 left its band 0.1 to 0.6; learning rate × 0.5"."""
    low, high = (None if bound is None else f"{bound:.4g}" for bound in event["band"])
    band = f"≤ {high}" if low is None else f"≥ {low}" if high is None else f"{low} to {high}"
    text = f"{event['metric']} {event['value']:.4g} left its band {band}"
    if event["action"] == "rollback":
        text += f"; weights of step {event['weights_of']} put back"
    if event["action"] in ("rollback", "lower_lr") and event["factor"] != 1:
        text += f"{',' if event['action'] == 'rollback' else ';'} learning rate × {event['factor']:g}"
    if event["action"] == "stop":
        again = f" after {event['asked']} was of no use" if event["asked"] != "stop" else ""
        text += f"; the run stops{again}"
    if event["action"] == "warn" and event["asked"] != "warn":
        text += f"; too late for {event['asked']}"
    return text


PREFIXES = (
    "reward", "watch", "eval", "image", "text", "rollout", "diversity", "advantage", "objective", "loss", "policy", "optim", "calls",
)  # fmt: skip


def check_metric(
    name: str,
    metric: str,
    *,
    rewards: Mapping[str, Any],
    watched: Mapping[str, Watched],
    evaluates: bool,
    held_out: Sequence[str] = (),
) -> None:
    """Raises ConfigError for a metric that cannot exist, as far as a config tells.

    `held_out`: what else evaluation logs, as eval/NAME/…: benchmarks, and sources if there are several.
    """
    prefix, _, rest = metric.partition("/")
    who = rest.partition("/")[0]
    where = f"watch.{name}: metric {metric!r}"
    if prefix == "time":
        raise ConfigError(f"{where} depends on the clock; a run with a rule on it could not be repeated.")
    if prefix not in PREFIXES or not rest:
        raise ConfigError(f"{where} is no name of metrics.jsonl.{_suggest(prefix, PREFIXES)}")
    if prefix == "eval" and not evaluates:
        raise ConfigError(f"{where} needs held-out prompts, but there are no `eval_prompts`.")
    scored = [n for n, entry in watched.items() if entry.use is not None]
    known = {
        "reward": [*rewards, "failed_frac"],
        "watch": scored,
        "eval": [*rewards, *scored, "image", "text", "score", "diversity", *held_out],
        "image": (*STATISTICS, "diversity"),
        "diversity": ["mean"],
    }
    relative = [n for n, scorer in rewards.items() if is_relative(scorer.use)]
    if prefix == "eval" and who in relative:
        raise ConfigError(f"{where}: {who!r} compares samples of a group, so held-out pictures have no such score.")
    if prefix == "eval" and who in rewards and rest == f"{who}/score":
        raise ConfigError(f"{where}: the mean of a reward is eval/{who}/mean (of a watched one eval/NAME/score).")
    if prefix in known and who not in known[prefix]:
        kind = {"reward": "reward", "watch": "watched reward", "image": "statistic"}.get(prefix, "metric")
        raise ConfigError(f"{where}: there is no {kind} {who!r}.{_suggest(who, known[prefix])}")


def _suggest(word: str, known: Any) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else f" There are: {', '.join(known) or 'none'}."
