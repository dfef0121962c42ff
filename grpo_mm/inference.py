"""Using a run, or an untrained model, without training: pictures and held-out scores."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from grpo_mm import checkpoint as checkpoints
from grpo_mm.config import build, override, read_yaml
from grpo_mm.distributed import Processes
from grpo_mm.errors import ConfigError
from grpo_mm.evaluate import evaluate as score_held_out
from grpo_mm.run_config import RunConfig
from grpo_mm.run_folder import RunFolder, find_checkpoint, read_config
from grpo_mm.scoring import Scoring
from grpo_mm.trainer import held_out_prompts
from grpo_mm.types import Prompt, Rows


class Loaded:
    """A policy on its device with the weights of a run's checkpoint, or as it was before training."""

    def __init__(self, run: Path, *, overrides: Sequence[str], checkpoint: str | None, scores: bool) -> None:
        self.config = config = _config(run, overrides, scores=scores)
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
        if path is not None:
            loaded = checkpoints.read(path)
            checkpoints.load_strictly(self.policy.trainable, loaded.tensors["weights"], what=str(path))
            self.policy.snapshots.load(loaded.tensors["snapshots"])

    def weights(self):
        """The averaged weights where the run kept them."""
        return self.policy.snapshots.use("ema") if "ema" in self.policy.snapshots else nullcontext()


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
    """The config of a run folder or of a file. Pictures alone need neither prompt files nor the user's own rewards."""
    mapping = read_config(run) if run.is_dir() else read_yaml(run)
    for text in overrides:
        mapping = override(mapping, text)
    if not scores:
        mapping |= {"prompts": {}, "eval_prompts": {}, "rewards": {}, "watch": {}}
    return build(RunConfig, mapping)


def sample(
    run: Path, *, prompts: Sequence[str], out: Path, count: int = 1, seed: int = 0, overrides: Sequence[str] = ()
) -> list[Path]:
    """Writes `out/000_0.png`, … and the initial noise of all pictures as `out/latents.safetensors`."""
    from PIL import Image
    from safetensors.torch import save_file

    if count < 1 or not prompts:
        raise ConfigError(f"{len(prompts)} prompts × count = {count} pictures; wanted at least one of each.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the pictures cannot be written to {out}: {error}.") from error
    loaded = Loaded(run, overrides=overrides, checkpoint=None, scores=False)
    asked = tuple(Prompt(id=f"sample/{i}", text=text) for i, text in enumerate(prompts))
    size = len(asked) * count
    rows = Rows(asked, torch.arange(len(asked)).repeat_interleave(count), torch.arange(count).repeat(len(asked)), count)
    with loaded.weights():
        images = loaded.config.engine.render(loaded.policy, rows, seed=seed)
    noise = loaded.config.engine.evaluation_noise(loaded.policy, rows, seed=seed)
    save_file({"latents": noise.cpu().contiguous()}, out / "latents.safetensors")
    paths = [out / f"{int(rows.prompt_N[i]):03d}_{int(rows.sample_N[i])}.png" for i in range(size)]
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
