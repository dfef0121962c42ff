"""All rewards of a run over some outputs, with their failures counted."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
from torch import Tensor

from grpo_mm.environments.requirements import requirements
from grpo_mm.errors import ConfigError, UserError
from grpo_mm.identity import FREE
from grpo_mm.outside import plain, reason, shown
from grpo_mm.processes.clock import count, phase
from grpo_mm.processes.distributed import Processes
from grpo_mm.processes.progress import report
from grpo_mm.registry import Role, load
from grpo_mm.rollout.isolated import IsolatedReward, sendable
from grpo_mm.rollout.isolated_pool import IsolatedPool
from grpo_mm.rollout.outputs.frames import Setting, gathered, read_frames, spread
from grpo_mm.rollout.outputs.takes import check_items
from grpo_mm.rollout.own_copies import is_own, own_prompt
from grpo_mm.rollout.returned_scores import MOST_PARTS
from grpo_mm.rollout.reward_use import as_reward, in_sets, move, shares_calls
from grpo_mm.rollout.safe_call import all_nan, bounded, own_limit, score_safely
from grpo_mm.rollout.surroundings import interrupted, kept
from grpo_mm.rollout.weights_at_hand import with_settings
from grpo_mm.types import Clips, Pictures, Prompt, is_relative, join_items, pick_items, sound_items

REWARDS = "rewards"
"""What calls are counted under, if they are not only watched."""
SHOWN = 5
"""Prompts that a warning names."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scorer:
    """A named reward: its weight, the prompt sources it applies to (None: all), its time limit, and where it runs."""

    use: Annotated[Any, Role("reward")]
    """What scores."""
    weight: float = 1.0
    """In the sum that is optimised, and in the held-out score."""
    sources: tuple[str, ...] | None = None
    """Names of prompt sources; null: all."""
    timeout_seconds: float | None = field(default=None, metadata=FREE)
    """For all outputs of a step on one rank; None: the reward's own, which judges have."""
    isolate: bool = field(default=False, metadata=FREE)
    """In a process of its own: it may crash, be killed or hang (with a time limit) without ending the run."""
    device: str | None = field(default=None, metadata=FREE)
    """Of an isolated reward, e.g. cpu or cuda:1; None: the run's."""
    workers: int = field(default=1, metadata=FREE)
    """Of an isolated reward: so many processes share its outputs, for one that looks at each output alone and is slow on a
    CPU, as reading texts in pictures is."""
    environment: str | None = field(default=None, metadata=FREE)
    """Packages of its own: the name of a file in rewards/environments/, or the path of one (name==version, one a line). Made once
    and kept; the reward runs there in a process of its own, as with isolate: true."""
    golden: str | None = field(default=None, metadata=FREE)
    """A file that `grpo-mm golden --record` wrote: the scores of golden pictures that it has to give at the start. null: those that ship
    with the scorer, where there are any."""
    constant_steps: int | None = field(default=None, metadata=FREE)
    """A step in which all outputs get one score is warned of; so many in a row stop the run. null: what the reward says of itself
    (networks and remote rewards: 3; rules that are right or wrong: never); 0: never."""
    frames: Setting = None
    """Of a reward of pictures that is asked about clips: mean or min of the scores of their frames, or {take: min, at_most: 4}. Without
    at_most it is 8 frames, evenly spread, the first and the last among them; null: all. The part worst_frame is the lowest."""
    early: bool = field(default=False, metadata=FREE)
    """Asked about the samples of a prompt as soon as they are there, while others are still drawn: for one that looks at each output,
    or at those of one prompt, alone, and waits for somebody, as a server. Its time limit then holds for those of a prompt. Remote rewards and judges behind servers
    are asked about all prompts at once that ended while they were asked before. It needs an engine that hands out samples on its way, as
    those that draw texts."""


def is_apart(scorer: Any) -> bool:
    """Whether an entry of `rewards` or `watch` runs in a process of its own."""
    return scorer.isolate or scorer.environment is not None


def check_isolated(scorers: Mapping[str, Any]) -> None:
    """Of entries of `rewards` and `watch`.

    Raises:
        ConfigError: an isolated reward that a process of its own cannot make, a device that torch does not know, or one that is
            set for a reward in our own process; workers for such a one, or for a reward that compares outputs.
    """
    for name, scorer in scorers.items():
        if (getattr(scorer, "constant_steps", None) or 0) < 0:
            raise ConfigError(f"{name}: constant_steps = {scorer.constant_steps}; wanted 0 (never) or more, or null.")
        if scorer.workers < 1:
            raise ConfigError(f"{name}: workers = {scorer.workers}; wanted at least 1.")
        apart = is_apart(scorer)
        if scorer.workers > 1 and not apart:
            raise ConfigError(
                f"{name}: workers: {scorer.workers} are processes of a reward with isolate: true, or an environment."
            )
        if scorer.workers > 1 and is_relative(as_reward(scorer.use)):
            raise ConfigError(
                f"{name}: workers: {scorer.workers} share outputs, but this reward compares those of a group; wanted 1."
            )
        if scorer.device is not None and not apart:
            raise ConfigError(
                f"{name}: device: {scorer.device} is for a reward with isolate: true or an environment; others are on the run's device."
            )
        if scorer.device is not None:
            try:
                torch.device(scorer.device)
            except RuntimeError as error:
                raise ConfigError(
                    f"{name}: device: {reason(error, 80)}; wanted the like of cpu, cuda or cuda:1."
                ) from error
        if scorer.environment is not None:
            _environment_talk(name, scorer)
        elif scorer.isolate:
            sendable(name, scorer.use)


@dataclass(frozen=True, eq=False)
class _Task:
    """What one scorer is asked."""

    index_u: Tensor
    """Which of the rows, [u]."""
    items: Any
    prompts: list[Prompt]
    group_U: Tensor | None
    errors: list[str]
    """Why it could not be asked about some."""


TALK = "grpo_mm.rewards.environments.talk:EnvironmentTalk"
"""Handed in by its name, as rewards are: what a process in another environment is told is in the form of the service."""


def _environment_talk(name: str, scorer: Any) -> Any:
    """Raises ConfigError for an environment that there is not, and for a reward that cannot be made in one."""
    return load(TALK)(scorer.use, name=name, environment=requirements(scorer.environment))


@dataclass(frozen=True, eq=False)
class Group:
    """All outputs of one prompt."""

    prompt: int
    """Whose they are, as `Rollout.prompt_N` counts."""
    items: Any
    prompts: Sequence[Prompt]
    """The same prompt, for each."""


@dataclass(frozen=True, eq=False)
class Early:
    """What rewards said of some outputs before the others were there."""

    prompt: int
    """Whose they are, as `Rollout.prompt_N` counts."""
    answers: Mapping[str, tuple[dict[str, Tensor], list[str]]]
    """By reward: of the outputs that it applies to, in their order."""


def _isolated(name: str, scorer: Scorer) -> IsolatedReward | IsolatedPool:
    limit = scorer.timeout_seconds
    talk = None if scorer.environment is None else _environment_talk(name, scorer)
    if scorer.workers == 1:
        return IsolatedReward(scorer.use, name=name, timeout_seconds=limit, talk=talk)
    return IsolatedPool(scorer.use, name=name, workers=scorer.workers, timeout_seconds=limit, talk=talk)


class Scoring:
    """Named scorers on a device. `errors` keeps the first failure of each, for the message if nothing can be scored."""

    def __init__(self, scorers: Mapping[str, Scorer], device: torch.device, *, counter: str = REWARDS) -> None:
        self.scorers = {name: replace(scorer, use=as_reward(scorer.use)) for name, scorer in scorers.items()}
        self.device, self.counter = device, counter
        self.first_error: dict[str, str] = {}
        self._warned: set[str] = set()
        self._parts: dict[str, set[str]] = {name: set() for name in scorers}
        self._isolated = {name: _isolated(name, scorer) for name, scorer in scorers.items() if is_apart(scorer)}
        self._frames = {name: read_frames(getattr(s, "frames", None), where=name) for name, s in scorers.items()}

    def __call__(
        self,
        items: Any,
        prompts: Sequence[Prompt],
        group_U: Tensor | None = None,
        *,
        prompt_U: Tensor | None = None,
        early: Sequence[Early] = (),
    ) -> dict[str, dict[str, Tensor]]:
        """Scorer name → {"score": [U], parts…}, float32 on the CPU; NaN where it failed or does not apply, and for an item
        that is None.

        `group_U`: [U] int64, the comparison sets, for rewards that compare items with each other; without it they are
        left out.

        `early`: what some rewards have said already, of whole prompts; `prompt_U`: [U] whose each item is.

        Rewards in processes of their own are asked first, and score beside those that follow; the result is the same.
        """
        self._tell_of_none(items, prompts)
        asked = {n: s for n, s in self.scorers.items() if group_U is not None or not is_relative(s.use)}
        tasks = {name: self._task(name, scorer, items, prompts, group_U) for name, scorer in asked.items()}
        said = {name: _gathered(name, task, prompt_U, early) for name, task in tasks.items()} if early else {}
        said = {name: answer for name, answer in said.items() if answer is not None}
        found = said | self._answers({name: task for name, task in tasks.items() if name not in said})
        return {name: self._told(name, tasks[name], found.get(name), len(prompts)) for name in asked}

    @property
    def asks_early(self) -> bool:
        """Whether a reward may be asked before all outputs are there."""
        return any(scorer.early for scorer in self.scorers.values())

    def ask_early(self, groups: Sequence[Group]) -> list[Early]:
        """Asks those rewards that may be asked early about all outputs of some prompts; for `__call__` to put in their places.

        Rewards that share calls (`reward_use.shares_calls`) are asked about all of them at once, others about one prompt after another.
        """
        early = {name: scorer for name, scorer in self.scorers.items() if scorer.early}
        found: list[dict[str, Any]] = [{} for _ in groups]
        shared = {name: scorer for name, scorer in early.items() if len(groups) > 1 and shares_calls(scorer.use)}
        for name, answers in self._early_of(shared, groups).items():
            for said, answer in zip(found, answers, strict=True):
                said[name] = answer
        alone = {name: scorer for name, scorer in early.items() if name not in shared}
        for said, group in zip(found, groups, strict=True):
            said.update((name, answers[0]) for name, answers in self._early_of(alone, [group]).items())
        return [Early(group.prompt, said) for group, said in zip(groups, found, strict=True)]

    def _early_of(self, scorers: Mapping[str, Scorer], groups: Sequence[Group]) -> dict[str, list[Any]]:
        """By reward that was asked: what it says of each of the groups. Its time limit holds for one."""
        if not scorers:
            return {}
        group_U = torch.repeat_interleave(torch.tensor([len(group.items) for group in groups]))
        items = join_items([group.items for group in groups]) if len(groups) > 1 else groups[0].items
        prompts = [prompt for group in groups for prompt in group.prompts]
        tasks = {name: self._task(name, scorer, items, prompts, group_U) for name, scorer in scorers.items()}
        found = self._answers(tasks, patience=float(len(groups)))
        return {name: _by_group(answer, group_U[tasks[name].index_u], len(groups)) for name, answer in found.items()}

    def rehearse(self, name: str, items: Any, prompts: Sequence[Prompt]) -> str | None:
        """Why this reward cannot score any of these outputs, which are not counted; None where it scored or left out some."""
        scorer = self.scorers[name]
        group = torch.zeros(len(prompts), dtype=torch.int64) if is_relative(scorer.use) else None
        scores, errors = self.ask(name, items, prompts, group)
        return None if not errors or scores["score"].isfinite().any() else errors[0]

    def applied(self, prompts: Sequence[Prompt]) -> dict[str, int]:
        """Scorer name → how many of the prompts it applies to, or cannot say whether it does: those are failures."""
        return {name: sum(applies_to(scorer, prompt) for prompt in prompts) for name, scorer in self.scorers.items()}

    def _task(self, name: str, scorer: Scorer, items: Any, prompts: Sequence[Prompt], group_U: Tensor | None) -> _Task:
        check_items(f"{'rewards' if self.counter == REWARDS else 'watch'}.{name}", scorer, items)
        different = {id(prompt): prompt for prompt in prompts}.values()
        with kept(name):
            rules = {id(prompt): _ruling(scorer, prompt) for prompt in different}
        ruled = [rules[id(prompt)] for prompt in prompts]  # the rows of a group hold one prompt
        errors = list(dict.fromkeys(rule for rule in ruled if isinstance(rule, str)))
        applies = [i for i, rule in enumerate(ruled) if rule is True]
        if not isinstance(items, Tensor):
            applies = [i for i in applies if items[i] is not None]
        index = torch.tensor(applies, dtype=torch.int64)
        chosen = pick_items(items, index) if applies else []
        if isinstance(chosen, Pictures):
            chosen, _ = sound_items(chosen)
        group = group_U[index] if group_U is not None and is_relative(scorer.use) else None
        return _Task(index, chosen, [prompts[i] for i in applies], group, errors)

    def _answers(
        self, tasks: Mapping[str, _Task], *, patience: float = 1.0
    ) -> dict[str, tuple[dict[str, Tensor], list[str]]]:
        """What the scorers that have something to score say; those in other processes all at once. patience: as of `ask`."""
        asked = {name: task for name, task in tasks.items() if task.prompts}
        apart = [name for name in asked if name in self._isolated]

        def answer(name: str) -> tuple[dict[str, Tensor], list[str]]:
            task = asked[name]
            return self.ask(name, task.items, task.prompts, task.group_U, patience=patience)

        with ThreadPoolExecutor(max(1, len(apart)), thread_name_prefix="grpo_mm-scores") as threads:
            try:
                waiting = (
                    {name: threads.submit(copy_context().run, answer, name) for name in apart} if len(asked) > 1 else {}
                )
                found = {}
                for name, task in asked.items():
                    report(f"scoring by {plain(name, 60)}", 0, len(task.prompts))
                    if name not in waiting:
                        with phase("reward"):
                            found[name] = answer(name)
                with phase("reward"):
                    found |= {name: one.result() for name, one in waiting.items()}
            except BaseException:  # Ctrl-C, or weights that cannot be loaded: the threads would wait for their answers
                for name in apart:
                    self._isolated[name].end()
                raise
        return found

    def _told(
        self, name: str, task: _Task, answer: tuple[dict[str, Tensor], list[str]] | None, rows: int
    ) -> dict[str, Tensor]:
        """The answer as columns of all rows, once its failures are told and its calls counted."""
        scores, failures = ({"score": torch.zeros(0)}, []) if answer is None else answer
        if answer is not None:
            count(self.counter, len(task.prompts))
        self._tell(name, [*task.errors, *failures])
        return {
            part: torch.full((rows,), torch.nan).index_put_((task.index_u,), value)
            for part, value in self._known_parts(name, scores).items()
        }

    def ask(
        self,
        name: str,
        items: Any,
        prompts: Sequence[Prompt],
        group_U: Tensor | None = None,
        *,
        patience: float = 1.0,
    ) -> tuple[dict[str, Tensor], list[str]]:
        """One scorer about outputs that it applies to: as `score_safely`, wherever it runs. Nothing is counted or told.

        patience: times its time limit, for who asks what several asked for.

        Raises:
            UserError: its weights are not what they should be, or what it asks is not there.
        """
        scorer, prompts = self.scorers[name], list(prompts)
        frames = self._frames[name]
        if frames is not None and isinstance(items, Clips):
            shown = spread(items, prompts, group_U, frames)
            scores, errors = self.ask(name, shown.items, shown.prompts, shown.group_V, patience=patience)
            return gathered(scores, shown.clip_V, clips=len(items), take=frames.take), errors
        if name in self._isolated:
            device = self._device_of(scorer)
            return self._isolated[name].score(items, prompts, device=device, group_U=group_U, patience=patience)
        try:
            with kept(name):
                move(scorer.use, self.device)
            limit = own_limit(scorer.use) if scorer.timeout_seconds is None else scorer.timeout_seconds
        except UserError:  # weights that are not what they should be: no row will ever be scored
            raise
        except BaseException as error:  # whatever a reward raises is a failed row
            if isinstance(error, KeyboardInterrupt) and interrupted():
                raise
            return all_nan(len(prompts)), [f"it could not be moved to {self.device}: {reason(error)}"]
        use = scorer.use if group_U is None else in_sets(scorer.use, group_U)
        limit = None if limit is None else limit * patience
        return score_safely(use, items, prompts, timeout_seconds=limit, by_row=group_U is None, name=name)

    def _device_of(self, scorer: Scorer) -> torch.device:
        return self.device if scorer.device is None else torch.device(scorer.device)

    def _tell(self, name: str, errors: Sequence[str]) -> None:
        if errors:
            self.first_error.setdefault(name, errors[0])
            if name not in self._warned:
                self._warned.add(name)
                log.warning("reward %r failed (its rows are left out): %s", name, errors[0])

    def _tell_of_none(self, items: Any, prompts: Sequence[Prompt]) -> None:
        """Pictures and clips that are none are failed rows: counted, and named."""
        if not isinstance(items, Pictures | Clips) or self.counter != REWARDS:
            return  # what is only watched sees the same pictures
        lost = [prompt.id for item, prompt in zip(items, prompts) if item is None]
        if lost:
            count("failed_clips" if isinstance(items, Clips) else "failed_pictures", len(lost))
            different = list(dict.fromkeys(lost))
            named = ", ".join(map(shown, different[:SHOWN])) + (", …" if len(different) > SHOWN else "")
            what = "clips" if isinstance(items, Clips) else "pictures"
            text = f"{len(lost)} of {len(items)} {what} hold NaN or infinities and are not scored; prompts {named}"
            log.warning("%s", text)
            # Where some are left, a row that fails besides has a reason of its own.
            for name in self.scorers if len(lost) == len(items) else ():
                self.first_error.setdefault(name, text)

    def _known_parts(self, name: str, scores: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The first 100 names of parts that came: a metric that is new in each step would fill the record."""
        known = self._parts[name]
        known.update([part for part in scores if part not in known][: MOST_PARTS - len(known)])
        left_out = [part for part in scores if part not in known and part != "score"]
        if left_out and f"{name}/parts" not in self._warned:
            self._warned.add(f"{name}/parts")
            log.warning("reward %r keeps naming new parts; from %s on they are left out", name, plain(left_out[0], 100))
        return {part: value for part, value in scores.items() if part in known or part == "score"}

    def load(self, *, leave: bool) -> None:
        """Loads what rewards load when they are first moved, so that damaged weights are known before anything is sampled.

        A reward in a process of its own is loaded there, when it is asked; one in an environment of its own at once, so that an
        environment that cannot be made is known too. `leave`: to main memory afterwards.

        Raises:
            UserError: the weights of one are not what they should be.
        """
        for name, scorer in self.scorers.items():
            if name in self._isolated:
                if scorer.environment is not None:
                    self._isolated[name].start(self._device_of(scorer))
                    self._isolated[name].leave_device() if leave else None
                continue
            try:
                for device in (self.device, torch.device("cpu"))[: 1 + leave]:
                    move(scorer.use, device)
            except UserError as error:
                place = "rewards" if self.counter == REWARDS else "watch"
                raise type(error)(with_settings(str(error), scorer.use, key=f"{place}.{name}.use")) from error
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # whatever a reward raises: told again, and counted, when it is asked
                log.debug("reward %r could not be loaded: %s", name, reason(error))

    def leave_device(self) -> None:
        """Network rewards go to main memory until they are asked again."""
        for name, scorer in self.scorers.items():
            if name in self._isolated:
                self._isolated[name].leave_device()
            else:
                move(scorer.use, torch.device("cpu"))


def _by_group(
    answer: tuple[dict[str, Tensor], list[str]], group_u: Tensor, groups: int
) -> list[tuple[dict[str, Tensor], list[str]]]:
    """The answer about rows of several groups as one for each; what failed is told of with the first."""
    scores, errors = answer
    return [
        ({part: value[group_u == group] for part, value in scores.items()}, [] if group else errors)
        for group in range(groups)
    ]


def _gathered(
    name: str, task: _Task, prompt_U: Tensor | None, early: Sequence[Early]
) -> tuple[dict[str, Tensor], list[str]] | None:
    """The answer to a task, of what was said prompt by prompt; None where the reward was not asked about all of it."""
    said = {one.prompt: one.answers[name] for one in early if name in one.answers}
    if prompt_U is None or not said:
        return None
    prompt_u = prompt_U[task.index_u]
    here = {prompt: torch.nonzero(prompt_u == prompt).flatten() for prompt in prompt_u.unique().tolist()}
    if any(prompt not in said or len(said[prompt][0]["score"]) != len(index) for prompt, index in here.items()):
        return None
    scores: dict[str, Tensor] = {"score": torch.full((len(prompt_u),), torch.nan)}
    for prompt, index in here.items():
        for part, value in said[prompt][0].items():
            scores.setdefault(part, torch.full((len(prompt_u),), torch.nan))[index] = value
    return scores, bounded([error for prompt in here for error in said[prompt][1]])


def applies_to(scorer: Scorer, prompt: Prompt) -> bool:
    """Whether a scorer is asked about a prompt: by the prompt's source, and by what the reward itself says.

    Where the reward fails to say, it applies: the row is a failed one.
    """
    return _ruling(scorer, prompt) is not False


def _ruling(scorer: Scorer, prompt: Prompt) -> bool | str:
    """True, False, or why the reward could not say."""
    if scorer.sources is not None and prompt.source not in scorer.sources:
        return False
    ruled = getattr(scorer.use, "applies_to", None)
    if ruled is None:
        return True
    try:
        return bool(ruled(prompt if is_own(scorer.use) else own_prompt(prompt)))
    except BaseException as error:  # whatever a reward raises is a failed row
        if isinstance(error, KeyboardInterrupt) and interrupted():
            raise
        return f"it cannot say whether it applies to {shown(prompt.id)}: {reason(error)}"


def mean_scores(
    scores: Mapping[str, Mapping[str, Tensor]],
    processes: Processes,
    *,
    prefix: str,
    names: Mapping[str, str],
    applied: Mapping[str, int],
) -> dict[str, float]:
    """Means over all ranks of every score and part, as `prefix/name/part`; `names` renames a part ("score": "mean").

    Beside a score stands `unscored_frac`, the share without one of the local rows that the reward is `applied` to.
    """
    local = {
        (name, part): (float(v.double().nansum()), int(v.isfinite().sum()), applied[name])
        for name, parts in scores.items()
        for part, v in parts.items()
    }
    metrics: dict[str, float] = {}
    ranks = processes.gather(local)
    # The score last: a part that is called "mean" must not take its place.
    for name, part in sorted(set().union(*ranks), key=lambda key: (key[0], key[1] == "score", key[1])):
        total, good, size = (sum(rank.get((name, part), (0.0, 0, 0))[i] for rank in ranks) for i in range(3))
        metrics[f"{prefix}/{name}/{names.get(part, part)}"] = total / good if good else float("nan")
        if part == "score" and good < size:
            metrics[f"{prefix}/{name}/unscored_frac"] = 1 - good / size
    return metrics
