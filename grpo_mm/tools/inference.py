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
from grpo_mm.config.run_config import RunConfig, build_config, read_mapping, recorded_mapping
from grpo_mm.config.shipped import config_file
from grpo_mm.config.sizes import check_sizes
from grpo_mm.config.typed_yaml import build, read_yaml
from grpo_mm.errors import ConfigError
from grpo_mm.outside import is_text, place, shown
from grpo_mm.processes.distributed import Processes
from grpo_mm.rollout.scoring import Scoring
from grpo_mm.training.evaluate import evaluate as score_held_out
from grpo_mm.training.run_folder import RunFolder, find_checkpoint
from grpo_mm.training.trainer import held_out_prompts
from grpo_mm.types import Pictures, Prompt, Rows, is_pictures, sound_items
from grpo_mm.weights import checkpoint as checkpoints

log = logging.getLogger(__name__)


class Loaded:
    """A policy on its device with the weights of a run's checkpoint, or as it was before training."""

    def __init__(
        self,
        run: str | Path | Mapping[str, Any],
        *,
        overrides: Sequence[str],
        checkpoint: str | None,
        scores: bool,
        media: bool = False,
        trust: bool = False,
    ) -> None:
        run = run if isinstance(run, Mapping) else config_file(place(run, what="the run"))
        self.config = config = _config(run, overrides, scores=scores, trust=trust)
        if media and not hasattr(config.engine, "illustrate"):
            raise ConfigError(
                f"the engine {registry.kind_of('engine', type(config.engine))} looks at no media; leave them out."
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
        self.processes = Processes(device=config.device)
        self.policy = config.policy.load(self.processes.device)
        self.trained = path is not None
        if path is not None:
            loaded = checkpoints.read(path, RunFolder(run).run)
            checkpoints.load_strictly(self.policy.trainable, loaded.tensors["weights"], what=str(path))
            self.policy.snapshots.load(loaded.tensors["snapshots"])

    def weights(self):
        """Those that the run itself evaluates and leaves as its product: the averaged ones where `ema.evaluate` says so.

        Raises:
            ConfigError: they are asked for, and the checkpoint has none.
        """
        if self.config.ema is None or not self.config.ema.evaluate:
            return nullcontext()
        if self.trained and "ema" not in self.policy.snapshots:
            raise ConfigError(
                "`ema` asks for averaged weights, but the run kept none. Leave it out, or ema.evaluate=false."
            )
        return self.policy.snapshots.use("ema") if self.trained else nullcontext()


def _checkpoint(run: Path | Mapping[str, Any], name: str | None) -> Path | None:
    if isinstance(run, Mapping) or not run.is_dir():
        if name is not None:
            told = "what was given" if isinstance(run, Mapping) else run
            raise ConfigError(f"--checkpoint {name} needs a run folder; {told} is a config, which has no checkpoints.")
        return None
    folder = RunFolder(run)
    path = find_checkpoint(folder, name)
    if path is None:
        raise ConfigError(f"{run} has no checkpoint yet. Give its config file to use the untrained model.")
    checkpoints.verify(path, folder.run)
    return path


def _config(run: Path | Mapping[str, Any], overrides: Sequence[str], *, scores: bool, trust: bool) -> RunConfig:
    """The config of a run folder, of a file, or a mapping. Sampling needs neither prompt files nor the user's own rewards."""
    if isinstance(run, Mapping):
        mapping = read_mapping(run, overrides)
    else:
        mapping = recorded_mapping(run, overrides) if run.is_dir() else read_yaml(run, overrides, RunConfig)
    if not scores:
        mapping |= {"prompts": {}, "eval_prompts": {}, "rewards": {}, "watch": {}}
    if isinstance(run, Mapping):
        return build(RunConfig, mapping)
    return build_config(mapping, run, overrides, trust=trust)


@dataclass(frozen=True)
class Sampled:
    """Example: two answers to one prompt: Sampled([Path("samples/answers.json")], [["2.0 to 5.5", "3.0 to 5.0"]])."""

    files: list[Path]
    """What was written for people: the pictures, or the file of the answers."""
    answers: list[list[str | None]]
    """Of each prompt; None where its media could not be read. Empty where the run makes pictures."""


def sample(
    run: str | Path | Mapping[str, Any],
    *,
    prompts: Sequence[str],
    out: str | Path,
    media: Sequence[Any] = (),
    count: int = 1,
    seed: int = 0,
    overrides: Sequence[str] = (),
    trust: bool = False,
) -> Sampled:
    """`count` samples of each prompt by the evaluation sampler, written into `out`.

    Pictures become `000_0.png`, … (prompt, sample) with the initial noise of all as `latents.safetensors`; texts become
    `answers.json`.

    Args:
        media: what goes with every prompt, as the run's media component opens it.
        trust: import code that a run folder names.
    """
    if count < 1 or not prompts:
        raise ConfigError(f"{len(prompts)} prompts × count = {count} samples; wanted at least one of each.")
    for text in prompts:
        if not is_text(text):
            raise ConfigError(f"--prompt {shown(text)} holds bytes that are not UTF-8; give it in UTF-8.")
    out = place(out, what="--out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the samples cannot be written to {out}: {error}.") from error
    _check_overwritten(out)
    loaded = Loaded(run, overrides=overrides, checkpoint=None, scores=False, media=bool(media), trust=trust)
    asked = tuple(Prompt(id=f"sample/{i}", text=text, media=tuple(media)) for i, text in enumerate(prompts))
    size = len(asked)
    rows = Rows(asked, torch.arange(size).repeat_interleave(count), torch.arange(count).repeat(size), count)
    with loaded.weights():
        items = loaded.config.engine.render(loaded.policy, rows, seed=seed)
    if is_pictures(items):
        return Sampled(_write_pictures(loaded, rows, items, out, seed=seed), [])
    answers = [list(items[p * count : (p + 1) * count]) for p in range(size)]
    path = out / "answers.json"
    said = [{"prompt": prompt, "answers": texts} for prompt, texts in zip(prompts, answers)]
    path.write_text(json.dumps(said, indent=1, ensure_ascii=False), encoding="utf-8", errors="replace")
    return Sampled([path], answers)


def _check_overwritten(out: Path) -> None:
    """Raises ConfigError if the folder holds files of the names that are written here and `sample` has not written them."""
    answers, latents = out / "answers.json", out / "latents.safetensors"
    pictures = [path for path in out.glob("[0-9][0-9][0-9]_*.png") if re.fullmatch(r"[0-9]{3}_[0-9]+\.png", path.name)]
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
            isinstance(one, dict) and {"prompt", "answers"} == set(one) for one in found
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


def _write_pictures(loaded: Loaded, rows: Rows, images: Tensor | Pictures, out: Path, *, seed: int) -> list[Path]:
    from PIL import Image
    from safetensors.torch import save_file

    _, sound = sound_items(images)
    if not len(sound):
        raise ConfigError(
            f"none of {len(images)} pictures is one: all hold NaN or infinities. Are the weights, or an adapter, damaged?"
        )
    noise = loaded.config.engine.evaluation_noise(loaded.policy, rows, seed=seed)
    save_file({"latents": noise.cpu().contiguous()}, out / "latents.safetensors")
    names = zip(rows.prompt_N.tolist(), rows.sample_N.tolist())
    paths = [out / f"{p:03d}_{s}.png" for p, s in names]
    lost = [path for path, image in zip(paths, images, strict=True) if image is None]
    for path in lost:
        path.unlink(missing_ok=True)
        log.warning("%s is not written: the picture holds NaN or infinities", path)
    written = [paths[i] for i in sound.tolist()]
    for path, i in zip(written, sound.tolist(), strict=True):
        Image.fromarray(images[i].permute(1, 2, 0).numpy()).save(path)
    return written


def evaluate(
    run: str | Path | Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    checkpoint: str | None = None,
    trust: bool = False,
) -> dict[str, float]:
    """Held-out metrics of a run's checkpoint or of an untrained model; `trust`: import code that a run folder names."""
    loaded = Loaded(run, overrides=overrides, checkpoint=checkpoint, scores=True, trust=trust)
    config, device = loaded.config, loaded.processes.device
    prompts = held_out_prompts(config)
    if not prompts:
        raise ConfigError("the config has no `eval_prompts`.")
    with loaded.weights():
        result = score_held_out(
            config,
            loaded.policy,
            prompts,
            Scoring(config.rewards, device),
            Scoring(config.watched_rewards, device),
            loaded.processes,
        )
    return result.metrics
