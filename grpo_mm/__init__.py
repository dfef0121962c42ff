"""Group-relative policy optimisation for generative and vision-language models.

`train`, `evaluate`, `sample`, `report`, `export`, `show` and `load_run` do what the commands of the same names do.
A config is the path of a YAML file, the name of one that ships with the package ("quickstart/flow.yaml"), or a dict of the same keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from grpo_mm import moved, waiting

if TYPE_CHECKING:
    from pathlib import Path

    from grpo_mm.config.run_config import RunConfig
    from grpo_mm.looking.progress_lines import Told
    from grpo_mm.tools.inference import Sampled
    from grpo_mm.tools.loaded_run import LoadedRun

__all__ = ["evaluate", "export", "load_run", "report", "sample", "show", "train"]

waiting.wait_passively()
moved.install()
__version__ = "0.1.0"


def train(
    config: RunConfig | str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    rewards: Mapping[str, Callable[..., Any]] | None = None,
    fresh: bool = False,
    accept: bool = False,
    checkpoint: str | None = None,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    told: Told | None = None,
    trust: bool = False,
) -> dict[str, Any]:
    """Trains a config to its end, or goes on where the run was interrupted.

    Example:
        summary = grpo_mm.train("quickstart/flow.yaml", ["steps=10", "name=bright"], rewards={"mine": bright})

    Args:
        config: a file, the name of a shipped config, or a dict of the same keys; in a dict values may be objects, such as a reader.
        overrides: "key.sub=value" texts, as on the command line.
        rewards: by name, in place of the config's: functions, whose arguments are filled in by their names
            (`grpo_mm.rollout.reward_arguments`), or reward objects.
        fresh: start over; the run that lies in the folder is moved aside, to NAME.1 and so on.
        accept: go on although noted settings, code or data have changed (docs/reference.md); the record tells them.
        checkpoint: go on from this one ("step_000020") instead of the newest.
        on_step: called after each step with its number and metrics.
        told: who hears of the run while it goes on; None: lines through logging ("grpo_mm.progress").
        trust: import code that the config of a run folder names.

    Returns:
        The summary, as in `summary.json` ("eval_before", "eval_after", "best_step", "seconds", "product", …), with "folder", the
        run folder, and "report", the page that was written into it.

    Raises:
        grpo_mm.errors.UserError: something that you can fix, before any model is loaded.
        grpo_mm.errors.TrainingStopped: every reward failed, too many non-finite updates, or the disk is full.
    """
    from grpo_mm.entry import train_and_report

    return train_and_report(
        config, overrides, rewards=rewards, fresh=fresh, accept=accept, checkpoint=checkpoint, on_step=on_step, told=told,
        trust=trust,
    )  # fmt: skip


def evaluate(
    run: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    checkpoint: str | int | None = None,
    trust: bool = False,
) -> dict[str, float]:
    """Held-out metrics, "eval/score" and others, of a run's checkpoint, or of a config's untrained model.

    Nothing is written; `grpo_mm.tools.held_out.held_out` keeps predictions, as the command does, and gives standard errors.

    Args:
        run: a run folder; a config (file, shipped name or dict) for the untrained model.
        overrides: "key.sub=value" texts, as on the command line.
        checkpoint: of the run: "last" (as None), "best", a step, or a name ("step_000020").
        trust: import code that the config of a run folder names, such as your own rewards.

    Raises:
        grpo_mm.errors.UserError: no such run or checkpoint, or a config without `eval_prompts`.
    """
    from grpo_mm.tools.inference import evaluate as score

    return score(run, overrides=overrides, checkpoint=checkpoint, trust=trust)


def sample(
    run: str | Path | Mapping[str, Any],
    prompts: str | Sequence[str],
    *,
    media: Sequence[Any] = (),
    out: str | Path | None = None,
    count: int = 1,
    seed: int = 0,
    overrides: Sequence[str] = (),
    checkpoint: str | int | None = None,
    raw: bool = False,
    source: str | None = None,
    words: Mapping[str, str] | None = None,
    trust: bool = False,
) -> Sampled:
    """Pictures or answers of a run, by the sampler of its evaluation, asked in the words of its training.

    `files` were written into `out`, `answers` are texts, `asked` is each prompt as it was asked.

    Args:
        run: a run folder; a config (file, shipped name or dict) for the untrained model.
        prompts: one text, or several.
        media: what every prompt is about: names of pictures and videos, or PIL pictures.
        out: a folder; None: the next number in RUN/samples_drawn, or in samples_drawn here where `run` is a config.
        count: samples of each prompt.
        seed: of the initial noise, or of the tokens.
        overrides: "key.sub=value" texts, as on the command line.
        checkpoint: of the run: "last" (as None), "best", a step, or a name ("step_000020").
        raw: the bare texts, without the template of the run's prompts.
        source: whose template, where the sources of the run's prompts have several.
        words: for further names in the template.
        trust: import code that the config of a run folder names.

    Raises:
        grpo_mm.errors.UserError: no such run, no prompt, or an `out` that holds other files of these names.
    """
    from grpo_mm.entry import opened_medium
    from grpo_mm.tools.inference import sample as draw

    asked = [prompts] if isinstance(prompts, str) else list(prompts)
    given = [opened_medium(item, what="media") for item in media]
    return draw(
        run, prompts=asked, media=given, out=out, count=count, seed=seed, overrides=overrides, trust=trust,
        checkpoint=checkpoint, raw=raw, source=source, words=words or {},
    )  # fmt: skip


def report(run: str | Path) -> Path:
    """Writes a run, finished or not, as one HTML page, and returns where: `report.html` in the run folder.

    Raises:
        grpo_mm.errors.UserError: no run lies there, or the page cannot be written.
    """
    from grpo_mm.entry import report as write

    return write(run)


def export(
    run: str | Path,
    checkpoint: str | int = "last",
    to: str | Path | None = None,
    *,
    merged: bool = False,
    trust: bool = False,
) -> Path:
    """Writes the weights of a checkpoint as plain diffusers, transformers or peft load them, and returns where.

    Args:
        run: a run folder.
        checkpoint: "last", "best" (held-out score), a step, or a name ("step_000020").
        to: a folder that is not there yet, or is empty; None: RUN/export/step_000020, with _merged behind it if so.
        merged: an adapter goes into the weights of a whole checkpoint, which loads without peft.
        trust: import code that the run's config names.

    Raises:
        grpo_mm.errors.UserError: no such run or checkpoint, or a folder that holds something else.
    """
    from grpo_mm.tools.export import export as write

    return write(run, checkpoint=checkpoint, to=to, merged=merged, trust=trust)


def show(
    config: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), *, trust: bool = False, memory: bool = True
) -> str:
    """The resolved config with all defaults, and what follows from it: batches, network calls, memory (unless it is not asked for, as
    it takes some seconds for a large model). No weights are loaded.

    Example:
        print(grpo_mm.show("quickstart/flow.yaml", ["group_size=24"]))

    Raises:
        grpo_mm.errors.ConfigError: it cannot be trained; the message says why and what to change.
    """
    from grpo_mm.tools.show import shown_lines

    return "\n".join(shown_lines(config, overrides, trust=trust, memory=memory))


def load_run(folder: str | Path) -> LoadedRun:
    """A run folder as plain values: config, metrics as columns, summary, samples, checkpoints. Imports no code that it names.

    Example:
        run = grpo_mm.load_run("runs/quickstart")
        steps, scores = run.curve("eval/score")
        table = pandas.DataFrame(run.metrics)

    Raises:
        grpo_mm.errors.UserError: no run lies there.
    """
    from grpo_mm.tools.loaded_run import load_run as load

    return load(folder)
