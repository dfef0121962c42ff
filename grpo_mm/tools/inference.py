"""Using a run, or an untrained model, without training: pictures or texts, and held-out scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpo_mm import registry
from grpo_mm.config.run_config import RunConfig
from grpo_mm.config.typed_yaml import build, override, read_yaml
from grpo_mm.errors import ConfigError
from grpo_mm.processes.distributed import Processes
from grpo_mm.rollout.scoring import Scoring
from grpo_mm.training.evaluate import evaluate as score_held_out
from grpo_mm.training.run_folder import RunFolder, find_checkpoint, read_config
from grpo_mm.training.trainer import held_out_prompts
from grpo_mm.types import Prompt, Rows
from grpo_mm.weights import checkpoint as checkpoints


class Loaded:
    """A policy on its device with the weights of a run's checkpoint, or as it was before training."""

    def __init__(
        self, run: Path, *, overrides: Sequence[str], checkpoint: str | None, scores: bool, media: bool = False
    ) -> None:
        self.config = config = _config(run, overrides, scores=scores)
        if media and not hasattr(config.engine, "illustrate"):
            raise ConfigError(
                f"the engine {registry.kind_of('engine', type(config.engine))} looks at no media; leave them out."
            )
        if scores:
            config.check()
        else:
            config.policy.check()
            config.engine.check(config.policy, group_size=config.group_size)
        path = _checkpoint(run, checkpoint)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.processes = Processes(device=config.device)
        self.policy = config.policy.load(self.processes.device)
        self.trained = path is not None
        if path is not None:
            loaded = checkpoints.read(path)
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


def _checkpoint(run: Path, name: str | None) -> Path | None:
    if not run.is_dir():
        if name is not None:
            raise ConfigError(f"--checkpoint {name} needs a run folder; {run} is a config, which has no checkpoints.")
        return None
    path = find_checkpoint(RunFolder(run), name)
    if path is None:
        raise ConfigError(f"{run} has no checkpoint yet. Give its config file to use the untrained model.")
    checkpoints.verify(path)
    return path


def _config(run: Path, overrides: Sequence[str], *, scores: bool) -> RunConfig:
    """The config of a run folder or of a file. Sampling needs neither prompt files nor the user's own rewards."""
    mapping = read_config(run) if run.is_dir() else read_yaml(run)
    for text in overrides:
        mapping = override(mapping, text)
    if not scores:
        mapping |= {"prompts": {}, "eval_prompts": {}, "rewards": {}, "watch": {}}
    return build(RunConfig, mapping)


@dataclass(frozen=True)
class Sampled:
    """Example: two answers to one prompt: Sampled([Path("samples/answers.json")], [["2.0 to 5.5", "3.0 to 5.0"]])."""

    files: list[Path]
    """What was written for people: the pictures, or the file of the answers."""
    answers: list[list[str | None]]
    """Of each prompt; None where its media could not be read. Empty where the run makes pictures."""


def sample(
    run: Path,
    *,
    prompts: Sequence[str],
    out: Path,
    media: Sequence[Any] = (),
    count: int = 1,
    seed: int = 0,
    overrides: Sequence[str] = (),
) -> Sampled:
    """`count` samples of each prompt by the evaluation sampler, written into `out`.

    Pictures become `000_0.png`, … (prompt, sample) with the initial noise of all as `latents.safetensors`; texts become
    `answers.json`.

    Args:
        media: what goes with every prompt, as the run's media component opens it.
    """
    if count < 1 or not prompts:
        raise ConfigError(f"{len(prompts)} prompts × count = {count} samples; wanted at least one of each.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the samples cannot be written to {out}: {error}.") from error
    loaded = Loaded(run, overrides=overrides, checkpoint=None, scores=False, media=bool(media))
    asked = tuple(Prompt(id=f"sample/{i}", text=text, media=tuple(media)) for i, text in enumerate(prompts))
    size = len(asked)
    rows = Rows(asked, torch.arange(size).repeat_interleave(count), torch.arange(count).repeat(size), count)
    with loaded.weights():
        items = loaded.config.engine.render(loaded.policy, rows, seed=seed)
    if isinstance(items, Tensor):
        return Sampled(_write_pictures(loaded, rows, items, out, seed=seed), [])
    answers = [list(items[p * count : (p + 1) * count]) for p in range(size)]
    path = out / "answers.json"
    said = [{"prompt": prompt, "answers": texts} for prompt, texts in zip(prompts, answers)]
    path.write_text(json.dumps(said, indent=1, ensure_ascii=False), encoding="utf-8", errors="replace")
    return Sampled([path], answers)


def _write_pictures(loaded: Loaded, rows: Rows, images: Tensor, out: Path, *, seed: int) -> list[Path]:
    from PIL import Image
    from safetensors.torch import save_file

    noise = loaded.config.engine.evaluation_noise(loaded.policy, rows, seed=seed)
    save_file({"latents": noise.cpu().contiguous()}, out / "latents.safetensors")
    names = zip(rows.prompt_N.tolist(), rows.sample_N.tolist())
    paths = [out / f"{p:03d}_{s}.png" for p, s in names]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return paths


def evaluate(run: Path, *, overrides: Sequence[str] = (), checkpoint: str | None = None) -> dict[str, float]:
    """Held-out metrics of a run's checkpoint or of an untrained model."""
    loaded = Loaded(run, overrides=overrides, checkpoint=checkpoint, scores=True)
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
