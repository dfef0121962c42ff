"""Using a run, or an untrained model, without training: pictures or texts, and held-out scores."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpo_mm import registry
from grpo_mm.config.by_policy import filled
from grpo_mm.config.recorded import is_own, is_recorded, with_places
from grpo_mm.config.run_config import RunConfig, build_config, read_mapping, recorded_mapping, with_what_lies_beside
from grpo_mm.config.shipped import config_file
from grpo_mm.config.sizes import check_sizes
from grpo_mm.config.typed_yaml import build, read_yaml
from grpo_mm.errors import ConfigError
from grpo_mm.golden.comparing import check_goldens
from grpo_mm.outside import is_text, place, shown
from grpo_mm.processes.distributed import Processes
from grpo_mm.rollout.scoring import Scoring
from grpo_mm.run.data import held_out_prompts
from grpo_mm.run.run_folder import RunFolder
from grpo_mm.run.which_checkpoint import chosen_checkpoint
from grpo_mm.tools.asking import phrased
from grpo_mm.tools.drawn_files import DRAWN, drawn_ending, write_drawn
from grpo_mm.tools.numbered import numbered_folder
from grpo_mm.training.evaluate import EvalResult
from grpo_mm.training.evaluate import evaluate as score_held_out
from grpo_mm.types import Clips, Pictures, Prompt, Rows, is_seen, sound_items
from grpo_mm.weights import checkpoint as checkpoints

log = logging.getLogger(__name__)


class Loaded:
    """A policy on its device with the weights of a run's checkpoint, or as it was before training."""

    def __init__(
        self,
        run: str | Path | Mapping[str, Any],
        *,
        overrides: Sequence[str],
        checkpoint: str | int | None,
        scores: bool,
        media: bool = False,
        trust: bool = False,
    ) -> None:
        run = place_of(run)
        self.config = config = _config(run, overrides, scores=scores, trust=trust)
        if media and not hasattr(config.engine, "illustrate") and getattr(config.policy, "pictures", (0, 0))[1] == 0:
            raise ConfigError(
                f"the engine {registry.kind_of('engine', type(config.engine))} looks at no media; leave them out, or take a model that reads some."
            )
        if scores:
            config.check()
        else:
            check_sizes(config)
            config.policy.check()
            config.engine.check(config.policy, group_size=config.group_size)
        path = _checkpoint(run, checkpoint)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.processes = Processes(device=config.device, matmul=config.matmul)
        self.policy = config.policy.load(self.processes.device)
        self.trained, self.step, self.state = path is not None, 0, {}
        """Whether a run trained it; to which step, and the plain values of that checkpoint."""
        if path is not None:
            loaded = checkpoints.read(path, RunFolder(run).run)
            self.step, self.state = int(loaded.state.get("step", 0)), loaded.state
            checkpoints.load_strictly(self.policy.trainable, loaded.tensors["weights"], what=str(path))
            self.policy.snapshots.load(loaded.tensors["snapshots"])

    @property
    def averaged(self) -> bool:
        """Whether the weights that the run evaluates and leaves are the averaged ones."""
        return self.trained and self.config.ema is not None and self.config.ema.evaluate

    def weights(self):
        """Those that the run itself evaluates and leaves as its product: the averaged ones where `ema.evaluate` says so.

        Raises:
            ConfigError: they are asked for, and the checkpoint has none.
        """
        if not self.averaged:
            return nullcontext()
        if "ema" not in self.policy.snapshots:
            raise ConfigError(
                "`ema` asks for averaged weights, but the run kept none. Leave it out, or ema.evaluate=false."
            )
        return self.policy.snapshots.use("ema")


def place_of(run: str | Path | Mapping[str, Any]) -> Path | Mapping[str, Any]:
    """A run folder, a config's file, which may be a shipped one, or a mapping as it is."""
    return run if isinstance(run, Mapping) else config_file(place(run, what="the run"))


def _checkpoint(run: Path | Mapping[str, Any], name: str | int | None) -> Path | None:
    if isinstance(run, Mapping) or not run.is_dir():
        if name is not None:
            told = "what was given" if isinstance(run, Mapping) else run
            raise ConfigError(f"--checkpoint {name} needs a run folder; {told} is a config, which has no checkpoints.")
        return None
    folder = RunFolder(run)
    if not checkpoints.steps(folder.checkpoints):
        raise ConfigError(f"{run} has no checkpoint yet. Give its config file to use the untrained model.")
    path = chosen_checkpoint(folder, "last" if name is None else name)
    checkpoints.verify(path, folder.run)
    return path


def _config(run: Path | Mapping[str, Any], overrides: Sequence[str], *, scores: bool, trust: bool) -> RunConfig:
    """The config of a run folder, of a file, or a mapping. Sampling needs neither prompt files nor the user's own rewards."""
    mapping = _mapping(run, overrides)
    if not scores:
        mapping |= {"prompts": {}, "eval_prompts": {}, "rewards": {}, "watch": {}}
    if isinstance(run, Mapping):
        return build(RunConfig, filled(mapping))
    return build_config(mapping, run, overrides, trust=trust)


def _mapping(run: Path | Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    if isinstance(run, Mapping):
        return read_mapping(run, overrides)
    return recorded_mapping(run, overrides) if run.is_dir() else read_yaml(run, overrides, RunConfig)


@dataclass(frozen=True)
class Sampled:
    """Example: two answers to one prompt: Sampled([Path("samples/answers.json")], [["2.0 to 5.5", "3.0 to 5.0"]], …)."""

    files: list[Path]
    """What was written for people: the pictures, or the file of the answers."""
    answers: list[list[str | None]]
    """Of each prompt; None where its media could not be read. Empty where the run makes pictures."""
    asked: list[str]
    """Each prompt as it was asked: in the words of training, unless `raw`."""
    step: int
    """Of the checkpoint that drew; 0: the untrained model."""
    averaged: bool = False
    """Whether its averaged weights drew, as they do in the run's evaluation."""

    def as_json(self) -> dict[str, Any]:
        """What `sample --json` prints."""
        return {
            "step": self.step,
            "weights": "averaged" if self.averaged else "trained" if self.step else "untrained",
            "asked": self.asked,
            "answers": self.answers,
            "files": [str(path) for path in self.files],
        }


def sample(
    run: str | Path | Mapping[str, Any],
    *,
    prompts: Sequence[str],
    out: str | Path | None = None,
    media: Sequence[Any] = (),
    count: int = 1,
    seed: int = 0,
    overrides: Sequence[str] = (),
    trust: bool = False,
    checkpoint: str | int | None = None,
    raw: bool = False,
    source: str | None = None,
    words: Mapping[str, str] = {},  # noqa: B006
) -> Sampled:
    """`count` samples of each prompt by the run's evaluation sampler, asked in the words of its training.

    Pictures become `000_0.png`, …, clips `000_0.mp4`, … (prompt, sample), clips animated ones, with the initial noise of all as `latents.safetensors`; texts become
    `answers.json`.

    Args: those of `grpo_mm.sample`; what `sample` wrote into `out` before is overwritten, and the run's media component opens `media`.
    """
    if count < 1 or not prompts:
        raise ConfigError(f"{len(prompts)} prompts × count = {count} samples; wanted at least one of each.")
    if isinstance(prompts, str) or not all(isinstance(text, str) for text in prompts):
        raise ConfigError(f"the prompts are {shown(prompts)}; wanted a list of texts.")
    for text in prompts:
        if not is_text(text):
            raise ConfigError(f"--prompt {shown(text)} holds bytes that are not UTF-8; give it in UTF-8.")
    if raw and (source is not None or words):
        raise ConfigError("--raw asks the bare text: leave out --source and --word.")
    run = place_of(run)
    texts = list(prompts)
    if not raw:
        sources = _sources(run, overrides)
        texts = phrased(prompts, sources, run=run, trust=trust, source=source, words=words)
        if not media and any(mark in text for text in set(texts) - set(prompts) for mark in ("<image>", "<video>")):
            log.warning("the run's questions are about a picture or a video, and none is given: --media")
    if out is not None:
        out = place(out, what="--out")
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"the samples cannot be written to {out}: {error}.") from error
        _check_overwritten(out)
    loaded = Loaded(run, overrides=overrides, checkpoint=checkpoint, scores=False, media=bool(media), trust=trust)
    if out is None:
        within = run if isinstance(run, Path) and run.is_dir() else Path()
        out = numbered_folder(within / "samples_drawn")
    asked = tuple(Prompt(id=f"sample/{i}", text=text, media=tuple(media)) for i, text in enumerate(texts))
    size = len(asked)
    rows = Rows(asked, torch.arange(size).repeat_interleave(count), torch.arange(count).repeat(size), count)
    with loaded.weights():
        items = loaded.config.engine.render(loaded.policy, rows, seed=seed)
    if is_seen(items):
        return Sampled(_write_pictures(loaded, rows, items, out, seed=seed), [], texts, loaded.step, loaded.averaged)
    answers = [list(items[p * count : (p + 1) * count]) for p in range(size)]
    path = out / "answers.json"
    said = [
        {"prompt": prompt, "answers": found} | ({"asked": text} if text != prompt else {})
        for prompt, text, found in zip(prompts, texts, answers, strict=True)
    ]
    path.write_text(json.dumps(said, indent=1, ensure_ascii=False), encoding="utf-8", errors="replace")
    return Sampled([path], answers, texts, loaded.step, loaded.averaged)


def _sources(run: Path | Mapping[str, Any], overrides: Sequence[str]) -> Any:
    """`prompts` of the plain config, with what lies beside its file or lay where its run was started, as where it is built."""
    found = _mapping(run, overrides).get("prompts")
    if isinstance(run, Mapping):
        return found
    if is_recorded(run):
        folder = run if run.is_dir() else run.parent
        return with_places(found, folder, key="prompts") if is_own(folder) else found
    return with_what_lies_beside(found, run, key="prompts")


def _check_overwritten(out: Path) -> None:
    """Raises ConfigError if the folder holds files of the names that are written here and `sample` has not written them."""
    answers, latents = out / "answers.json", out / "latents.safetensors"
    drawn = re.compile(rf"[0-9]{{3}}_[0-9]+({'|'.join(map(re.escape, DRAWN))})")
    pictures = [path for path in sorted(out.glob("[0-9][0-9][0-9]_*")) if drawn.fullmatch(path.name)]
    links = [path for path in (answers, latents, *pictures) if path.is_symlink()]
    foreign = links[0] if links else None
    if foreign is None and answers.exists() and not _are_answers(answers):
        foreign = answers
    if foreign is None and (latents.exists() or pictures) and not _are_latents(latents):
        foreign = latents if latents.exists() else pictures[0]
    if foreign is not None:
        raise ConfigError(f"{foreign} is there, and not from `sample`, so it is not overwritten. Give another --out.")


def _are_answers(path: Path) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return isinstance(found, list) and all(
            isinstance(one, dict) and {"prompt", "answers"} == set(one) - {"asked"} for one in found
        )
    except (OSError, ValueError, RecursionError):
        return False


def _are_latents(path: Path) -> bool:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as stored:
            return list(stored.keys()) == ["latents"]
    except Exception:  # safetensors has an error of its own
        return False


def _write_pictures(
    loaded: Loaded, rows: Rows, images: Tensor | Pictures | Clips, out: Path, *, seed: int
) -> list[Path]:
    from safetensors.torch import save_file

    _, sound = sound_items(images)
    if not len(sound):
        raise ConfigError(
            f"none of {len(images)} pictures or clips is one: all hold NaN or infinities. Are the weights, or an adapter, damaged?"
        )
    noise = loaded.config.engine.evaluation_noise(loaded.policy, rows, seed=seed)
    save_file({"latents": noise.cpu().contiguous()}, out / "latents.safetensors")
    names = zip(rows.prompt_N.tolist(), rows.sample_N.tolist())
    paths = [out / f"{p:03d}_{s}{drawn_ending(images)}" for p, s in names]
    lost = [path for path, image in zip(paths, images, strict=True) if image is None]
    for path in lost:
        path.unlink(missing_ok=True)
        log.warning("%s is not written: what was drawn holds NaN or infinities", path)
    written = [paths[i] for i in sound.tolist()]
    for path, i in zip(written, sound.tolist(), strict=True):
        write_drawn(images[i], path)
    return written


def evaluate(
    run: str | Path | Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    checkpoint: str | int | None = None,
    trust: bool = False,
) -> dict[str, float]:
    """Held-out metrics of a run's checkpoint or of an untrained model; `trust`: import code that a run folder names.

    Nothing is written; `grpo_mm.tools.held_out` keeps predictions and gives standard errors.
    """
    return evaluated(Loaded(run, overrides=overrides, checkpoint=checkpoint, scores=True, trust=trust)).metrics


def evaluated(loaded: Loaded) -> EvalResult:
    """The held-out prompts of a loaded run, asked and scored.

    Raises:
        ConfigError: it has none.
    """
    config, device = loaded.config, loaded.processes.device
    prompts = held_out_prompts(config)
    if not prompts:
        raise ConfigError("the config has no `eval_prompts`.")
    rewards, watched = (Scoring(scorers, device) for scorers in (config.rewards, config.watched_rewards))
    for where, scoring in (("rewards", rewards), ("watch", watched)):
        scoring.load(leave=config.offload_rewards)
        check_goldens(scoring, place=where, told=loaded.processes.rank == 0)
        scoring.leave_device() if config.offload_rewards else None
    with loaded.weights():
        return score_held_out(config, loaded.policy, prompts, rewards, watched, loaded.processes)
