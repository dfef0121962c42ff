"""`grpo-mm`: train, export, sample, eval, show, explain, new, configs, calibrate, methods, report, bench, doctor, serve, environment, golden, launch, conform, zoo."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import re
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grpo_mm.errors import TrainingStopped, UserError
from grpo_mm.links import check_links
from grpo_mm.moved import MovedModule
from grpo_mm.outside import expanded, shown
from grpo_mm.tools.plain_output import PlainFormatter, say, say_error

if TYPE_CHECKING:
    from grpo_mm.tools.held_out import HeldOut

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    help="Group-relative policy optimisation for generative and vision-language models.",
)  # fmt: skip
zoo_app = typer.Typer(no_args_is_help=True, help="The tiny checkpoints that ship with the package.")
app.add_typer(zoo_app, name="zoo")


def at_home(text: str | Path) -> Path:
    """A path, with `~` expanded where the shell has not done it (`--out=~/x`)."""
    return Path(expanded(str(text)))


Trust = Annotated[bool, typer.Option("--trust", help="import code that a run folder's config names")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key.sub=value settings on top of the file")]


def main() -> None:
    """Runs a command; what a user can fix is one paragraph and exit code 2, a stopped run exit code 3."""
    logging.basicConfig(level=logging.WARNING if is_main() else logging.ERROR)
    for handler in logging.root.handlers:
        handler.setFormatter(PlainFormatter("%(levelname)s %(message)s"))
    logging.getLogger("grpo_mm").setLevel(logging.INFO if is_main() else logging.ERROR)
    if is_main() and not sys.warnoptions:
        # Python shows deprecations of scripts only; a config that names an old path is to be seen too.
        warnings.filterwarnings("default", category=MovedModule)
    if not _is_in_a_run(sys.argv[1:]):
        sys.path.append(os.getcwd())  # a user's own rewards lie where the command is started
    try:
        check_links()
        app()
    except (UserError, TrainingStopped) as error:
        say_error(f"{type(error).__name__}: {error}")
        sys.exit(2 if isinstance(error, UserError) else 3)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and error.filename is None:
            raise
        what = "there is no space left on the device" if full else f"a file cannot be read or written: {error.strerror}"
        say_error(f"{what} ({os.fsdecode(error.filename or 'report or pictures')}).")
        sys.exit(3)


def _is_in_a_run(arguments: list[str]) -> bool:
    """Whether the command is started in a run folder, or in one that it names, without --trust: a module that lies there came
    with that folder."""
    here = os.getcwd()
    named = [a for a in arguments if os.path.isfile(os.path.join(a, "config.yaml"))]
    inside = any(f"{here}{os.sep}".startswith(f"{os.path.realpath(folder)}{os.sep}") for folder in named)
    is_run = os.path.isfile("config.yaml") and any(map(os.path.isfile, ("run.json", "versions.json")))
    return "--trust" not in arguments and (is_run or inside)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(parser=at_home, help="a YAML file")],
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option(help="start over; the run that lies there is moved to NAME.1")] = False,
    accept: Annotated[
        bool,
        typer.Option("--accept", help="go on with noted changes (docs/reference.md), and write them into the record"),
    ] = False,
    checkpoint: Annotated[str | None, typer.Option(help="go on from this checkpoint instead of the newest")] = None,
    trust: Trust = False,
) -> None:
    """Trains a config, or goes on where the run was interrupted."""
    from grpo_mm.config.run_config import read
    from grpo_mm.entry import train as run
    from grpo_mm.looking.report.page import write_report
    from grpo_mm.tools.console import before_after, progress

    if config.is_dir():
        raise UserError(f"{config} is a folder; train takes the config's file, such as {config}/config.yaml.")
    settings = read(config, overrides or [], trust=trust)
    folder = settings.folder.absolute()  # a reward may change the working folder
    try:
        with progress() if is_main() else nullcontext() as told:
            summary = run(settings, fresh=fresh, accept=accept, checkpoint=checkpoint, told=told)
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from the newest checkpoint", err=True)
        say(f"grpo-mm export {folder} --checkpoint best|last|STEP writes what any checkpoint holds", err=True)
        raise typer.Exit(130) from None
    if is_main():
        report = write_report(folder)
        before_after(summary, folder, report)


def is_main() -> bool:
    """Whether this is the only process, or the first of several."""
    return os.environ.get("RANK", "0") == "0"


@app.command()
def export(
    run: Annotated[Path, typer.Argument(parser=at_home, help="a run folder, whether the run has ended or not")],
    checkpoint: Annotated[str, typer.Option(help="best (held-out score), last, or a step's number")] = "last",
    to: Annotated[Path | None, typer.Option(parser=at_home, help="a new folder; default: RUN/export/step_…")] = None,
    merged: Annotated[
        bool,
        typer.Option("--merged", help="the adapter in the weights of a whole checkpoint, which loads without peft"),
    ] = False,
    trust: Trust = False,
) -> None:
    """Writes the adapter or model of any checkpoint, with its card, as plain diffusers, transformers and peft load it."""
    from grpo_mm.tools.export import export as write

    say(write(run, checkpoint=checkpoint, to=to, merged=merged, trust=trust))


@app.command()
def sample(
    run: Annotated[Path, typer.Argument(parser=at_home, help="a run folder, or a config for the untrained model")],
    prompt: Annotated[list[str], typer.Option("--prompt", help="may be given several times")],
    media: Annotated[
        list[Path] | None,
        typer.Option("--media", parser=at_home, help="a picture or video that every prompt is about; may be repeated"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=at_home, help="folder for the pictures, or for answers.json; default: RUN/samples_drawn/001, 002, …"
        ),
    ] = None,
    count: Annotated[int, typer.Option(help="samples of each prompt")] = 1,
    seed: Annotated[int, typer.Option(help="of the initial noise, or of the tokens")] = 0,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="key.sub=value")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="best, last (default), or a step's number")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="the bare text, without the template of the run's prompts")
    ] = False,
    source: Annotated[str | None, typer.Option(help="whose template, where the run's prompts have several")] = None,
    word: Annotated[list[str] | None, typer.Option("--word", help="NAME=TEXT for {NAME} in the template")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False,
    trust: Trust = False,
) -> None:
    """Draws pictures, or prints answers, with the sampler of the evaluation and the prompt template of training.

    Pictures: latents.safetensors holds the initial noise of each. Answers: all of a prompt are the same unless the run
    evaluates at a temperature, e.g. --set engine.eval_temperature=1.
    """
    from grpo_mm.entry import opened_medium
    from grpo_mm.tools.inference import sample as draw

    opened = [opened_medium(path, what="--media") for path in media or []]
    if unnamed := [text for text in word or [] if "=" not in text]:
        raise UserError(f"--word {unnamed[0]}: wanted NAME=TEXT.")
    words = dict(text.partition("=")[::2] for text in word or [])
    made = draw(
        run, prompts=prompt, media=opened, out=out, count=count, seed=seed, overrides=overrides or [], trust=trust,
        checkpoint=checkpoint, raw=raw, source=source, words=words,
    )  # fmt: skip
    if as_json:
        say(json.dumps(made.as_json(), indent=1, ensure_ascii=False))
        return
    for text, answers in zip(prompt, made.answers):
        say(text)
        for answer in answers:
            say(f"  {'(not asked; see above)' if answer is None else answer}")
    for path in made.files:
        say(path)


@app.command("eval")
def evaluate(
    run: Annotated[
        Path | None,
        typer.Argument(
            parser=at_home, help="a run folder, or a config for the untrained model; not with --predictions"
        ),
    ] = None,
    overrides: Overrides = None,
    checkpoint: Annotated[str | None, typer.Option(help="best, last (default), or a step's number")] = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=at_home, help="a new folder for predictions and result; default: RUN/evals/001, 002, …"),
    ] = None,
    predictions: Annotated[
        list[Path] | None,
        typer.Option("--predictions", parser=at_home, help="a file of predictions to score; may be repeated"),
    ] = None,
    annotations: Annotated[
        list[Path] | None,
        typer.Option("--annotations", parser=at_home, help="the file that tells what is right; may be repeated"),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--as", help="form of the files: qvhighlights, charades, activitynet, tvgbench, nextgqa, blink"),
    ] = None,
    answered_only: Annotated[
        bool, typer.Option("--answered-only", help="leave out queries without a prediction; else they count as 0")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False,
    trust: Trust = False,
) -> None:
    """Scores the held-out prompts with the deterministic sampler, or predictions that lie in files (in per cent).

    grpo-mm eval --predictions preds.jsonl --annotations highlight_val_release.jsonl --as qvhighlights
    """
    if predictions:
        from grpo_mm.tools.prediction_files import score_files

        if run is not None or checkpoint is not None or out is not None:
            raise UserError("--predictions asks no model: leave out the run, its overrides, --checkpoint and --out.")
        if form is None or not annotations:
            raise UserError("--predictions needs --annotations FILE and --as FORM beside it.")
        found = score_files(form, predictions=predictions, annotations=annotations, answered_only=answered_only)
    elif run is None or annotations or form or answered_only:
        raise UserError("eval needs a run folder or a config, or else --predictions, --annotations and --as.")
    else:
        from grpo_mm.tools.held_out import held_out

        told = held_out(run, overrides=overrides or [], checkpoint=checkpoint, out=out, trust=trust)
        if is_main():
            say(json.dumps(told.as_json(), indent=1)) if as_json else _tell(told)
        return
    if as_json:
        numbers = {name: value if math.isfinite(value) else None for name, value in found.items()}
        say(json.dumps(numbers, indent=1))
        return
    for name, value in found.items():
        digits = 0 if name.endswith("queries") else 2 if predictions else 4
        say(f"{name:40s} {value:.{digits}f}")


def _tell(told: HeldOut) -> None:
    """A line for each metric, with its standard error where it is a mean over prompts; then of what, and where the evidence is."""
    for name, value in told.metrics.items():
        error = told.standard_errors.get(name)
        say(f"{name:40s} {value:.4f}" + ("" if error is None else f" ± {error:.4f}"))
    say(
        f"{told.prompts} prompts, {told.samples_per_prompt} sample{'s' * (told.samples_per_prompt > 1)} each, {told.weights} weights"
        + (f" of step {told.step}" if told.step else "")
        + "; ± is one standard error over the prompts"
    )
    say(
        f"predictions  {told.folder / 'predictions.jsonl'}"
        if told.folder
        else "nothing was written; --out FOLDER keeps the predictions"
    )


@app.command()
def show(
    config: Annotated[Path, typer.Argument(parser=at_home, help="a YAML file, or a run folder")],
    overrides: Overrides = None,
    devices: Annotated[int, typer.Option(min=1, help="GPUs that share the prompts of a step")] = 1,
    sharded: Annotated[bool, typer.Option(help="each GPU keeps a part of the weights, else each holds all")] = False,
    gpu: Annotated[
        str, typer.Option(help="the card that seconds are estimated for, e.g. rtx4090, a100, h100, h200")
    ] = "h100",
    share: Annotated[float, typer.Option(min=0.01, max=1.0, help="of the card's peak that is reached")] = 0.4,
    price: Annotated[float | None, typer.Option(min=0.0, help="of one GPU for an hour")] = None,
    measured: Annotated[
        Path | None, typer.Option(parser=at_home, help="a file of `grpo-mm bench --json`: seconds from there")
    ] = None,
    memory: Annotated[
        bool, typer.Option(help="the ledger of memory and time, which takes some seconds for a large model")
    ] = True,
    trust: Trust = False,
) -> None:
    """Prints the resolved config, the batch arithmetic, a ledger (does it fit, how long, what does it cost) and what the data hold.

    No weights are loaded. Values that the file does not say are marked: a default and whose, of the method, set on the command
    line. What still keeps it from training (data not set, files that are not there, media that nobody reads) comes last, with
    exit code 2.
    """
    from grpo_mm.ledger.words import Asked
    from grpo_mm.tools.show import shown_lines

    asked = Asked(gpu, devices, share, price, sharded, bench=measured)
    for line in shown_lines(config, overrides or [], trust=trust, asked=asked, memory=memory):
        say(line)


@app.command()
def calibrate(
    config: Annotated[Path, typer.Argument(parser=at_home, help="a YAML file")],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(parser=at_home, help="the noise file to write")] = Path("noise.json"),
    rounds: Annotated[int, typer.Option(help="rollouts at most")] = 100,
    start: Annotated[float, typer.Option(help="start from Flow-SDE's curve with this noise level")] = 0.7,
    trust: Trust = False,
) -> None:
    """Finds a noise level for every denoising step (DenseGRPO); use the file with noise={kind: noise_file, path: …}."""
    from grpo_mm.pipelines.flow.calibrated import Calibrated
    from grpo_mm.tools.calibrate import calibrate as run

    def show(number: int, level_S) -> None:
        say(f"round {number}: {' '.join(f'{level:.3f}' for level in level_S.tolist())}")

    found = run(
        config, overrides or [], out=out, settings=Calibrated(rounds=rounds, start=start), on_round=show, trust=trust
    )
    how = "every level has turned often enough" if found["frozen"] else "the rounds ran out while levels still moved"
    say(f"{out}: {found['rounds']} rounds, {how}")


@app.command()
def methods(
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False,
    kind: Annotated[str | None, typer.Option(help="sampler, advantage, objective, reward, strategy, preset, …")] = None,
) -> None:
    """Lists every method and component: name, kind, paper, module, function, config."""
    from grpo_mm.config.methods import METHODS
    from grpo_mm.registry import entries, table

    kinds = sorted({entry.role for entry in table()} | {"method"})
    if kind is not None and kind not in kinds:
        raise UserError(f"there is no kind {kind!r} of method; there are: {', '.join(kinds)}.")
    rows = []
    for entry in entries(kind):
        module, _, function = entry.target.partition(":")
        preset = entry.role == "preset"
        rows.append(
            {"name": entry.kind, "kind": entry.role, "paper": entry.paper, "module": "" if preset else module,
             "function": function, "config": entry.config}
        )  # fmt: skip
    rows += [
        {"name": method.key, "kind": "method", "paper": f"arXiv:{method.arxiv}", "module": "", "function": "",
         "config": f"grpo_mm/presets/{method.file.name}"}
        for method in METHODS if kind in (None, "method")
    ]  # fmt: skip
    if as_json:
        say(json.dumps(rows, indent=1))
        return
    for row in rows:
        say(f"{row['kind']:12s} {row['name']:20s} {row['paper']:18s} {row['module'] or row['config']}")


@app.command()
def new(
    kind: Annotated[str, typer.Argument(help="vqa, video or image")],
    folder: Annotated[Path, typer.Argument(parser=at_home, help="is made; existing files are never overwritten")],
) -> None:
    """Writes a folder to start from: a commented config, your own reward, sample data. It trains at once, on a tiny model."""
    from grpo_mm.starters.new import new as write
    from grpo_mm.starters.new import next_steps

    for path in write(kind, folder):
        say(f"wrote {path}")
    say("\nNext:")
    for line in next_steps(kind, folder):
        say(f"  {line}")


@app.command()
def explain(
    words: Annotated[
        list[str], typer.Argument(help="policy.micro_batch, micro_batch, reward temporal_iou, dapo, num_generations …")
    ],
) -> None:
    """Tells what a key of a config, a component or a method means: type, default, kinds, unit."""
    from grpo_mm.tools.keys.explain import explain as told

    for line in told(*words):
        say(line)


@app.command("configs")
def shipped_configs(
    name: Annotated[Path | None, typer.Argument(help="print where this one lies")] = None,
) -> None:
    """Lists the configs that ship with the package; each name does where a command takes a config's file."""
    from grpo_mm.config.shipped import SHIPPED, first_line, near_names, shipped_file, shipped_names

    if name is None:
        for one in shipped_names():
            say(f"{one:44s} {first_line(one)}")
        say(f"They lie in {SHIPPED}, with files for `accelerate launch --config_file` in accelerate/.")
        return
    found = shipped_file(name)
    if found is None:
        near = near_names(name)
        raise UserError(
            f"no config {shown(str(name))} ships with the package."
            + (f" Did you mean {', '.join(near)}?" if near else " `grpo-mm configs` lists those that do.")
        )
    say(found)


@app.command()
def report(run: Annotated[Path, typer.Argument(parser=at_home, help="a run folder")]) -> None:
    """Writes the run as one HTML page."""
    from grpo_mm.entry import report as write

    say(write(run))


@app.command()
def bench(
    config: Annotated[Path, typer.Argument(parser=at_home, help="a YAML file")],
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(help="timed steps after one warm-up step")] = 5,
    vs: Annotated[list[str] | None, typer.Option(help="key.sub=value of a second variant; the two take turns")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False,
    trust: Trust = False,
) -> None:
    """Seconds and memory by phase of whole training steps, without evaluation or logging."""
    from grpo_mm.tools.bench import bench as measure
    from grpo_mm.tools.bench import table

    result = measure(config, overrides or [], steps=steps, vs=vs or [], trust=trust)
    say(json.dumps(result, indent=1) if as_json else table(result))


@app.command()
def doctor(
    config: Annotated[Path, typer.Argument(parser=at_home, help="a YAML file")],
    overrides: Overrides = None,
    trust: Trust = False,
) -> None:
    """Compares sampler and trainer on a few prompts: why a ratio is not 1. Ends with 1 at a difference."""
    from grpo_mm.tools.doctor import doctor as examine
    from grpo_mm.tools.doctor import report, scorers

    text, is_well = report(examine(config, overrides or [], trust=trust))
    say(text)
    for line in scorers(config, overrides or [], trust=trust):
        say(line)
    if not is_well:
        raise typer.Exit(1)


@app.command()
def conform(
    path: Annotated[str, typer.Argument(help="a checkpoint: a folder, a downloaded hub name, or zoo:NAME")],
    model: Annotated[
        str | None, typer.Option(help="a kind of flow model, vlm, or package.module:Name; default: what it says it is")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
) -> None:
    """Compares a checkpoint with its plain pipeline, from text states to a saved adapter. Ends with 1 at the first difference."""
    from grpo_mm.tools.conform import conform as compared
    from grpo_mm.tools.conform import report

    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"--dtype is {shown(dtype)}; wanted float32 or bfloat16.")
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device is {shown(device)}; wanted auto, cpu or cuda.")
    text, is_well = report(list(compared(path, model=model, dtype=dtype, device=device)))
    say(text)
    if not is_well:
        raise typer.Exit(1)


@app.command()
def serve(
    config: Annotated[Path, typer.Argument(parser=at_home, help="a YAML file")],
    overrides: Overrides = None,
    host: Annotated[
        str, typer.Option(help="the address that is listened on; others than this machine need a token")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 8420,
    max_mib: Annotated[int, typer.Option(min=1, max=1024, help="largest request")] = 64,
    token_env: Annotated[
        str | None,
        typer.Option(help="environment variable that holds the token; default: GRPO_MM_TOKEN, if it is set"),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="for one call of a reward without a limit of its own")
    ] = 600.0,
    gather_rows: Annotated[
        int, typer.Option(min=0, help="outputs that requests of several ranks may have in one call; 0: each alone")
    ] = 256,
    gather_ms: Annotated[
        float, typer.Option(min=0.0, max=1000.0, help="that a call waits for others to join it")
    ] = 5.0,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="the name of a reward; may be repeated; default: all")
    ] = None,
    engine: Annotated[
        bool,
        typer.Option(
            "--engine", help="instead of rewards: a vLLM server that draws the answers of the config's policy"
        ),
    ] = False,
    log: Annotated[
        Path | None,
        typer.Option(parser=at_home, help="--engine: the file that vLLM writes to; default: a new one, which is told"),
    ] = None,
    trust: Trust = False,
) -> None:
    """Serves the rewards of a config, watched ones too, over HTTP: {kind: remote, url: …, reward: NAME} asks them. No policy is loaded.

    With --engine it starts a vLLM server of the policy instead, which {kind: vllm_server, urls: […]} asks for answers (docs/engines.md).
    """
    if engine:
        from grpo_mm.tools.serving.serve_engine import serve_engine

        return serve_engine(
            config, overrides or [], host=host, port=port, token_env=token_env, log=log, trust=trust, told=say
        )
    from grpo_mm.tools.serving.serve import serve as run

    run(
        config, overrides or [], host=host, port=port, max_mib=max_mib, token_env=token_env, seconds=seconds, trust=trust,
        gather_rows=gather_rows, gather_seconds=gather_ms / 1000, only=only or [], told=say,
    )  # fmt: skip


@app.command()
def environment(
    name: Annotated[
        str | None, typer.Argument(help="one that ships, or the path of a requirements file; without it all are listed")
    ] = None,
) -> None:
    """Makes the environment of a scorer ahead of the run (`environment: NAME` beside a reward's `use`), or lists those that ship."""
    from grpo_mm.environments.building import made
    from grpo_mm.environments.requirements import requirements
    from grpo_mm.environments.words import all_shipped, line

    if name is None:
        for text in all_shipped():
            say(text)
        return
    wanted = requirements(name)
    made(wanted)
    say(line(wanted))


@app.command()
def golden(
    config: Annotated[Path, typer.Argument(parser=at_home, help="a YAML file")],
    overrides: Overrides = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(help="of rewards or watch; may be repeated; default: all that have golden pictures"),
    ] = None,
    record: Annotated[
        Path | None, typer.Option(parser=at_home, help="write the scores into this file, for rewards.NAME.golden")
    ] = None,
    ship: Annotated[bool, typer.Option("--ship", help="write them beside the scorer's code, for everybody")] = False,
    tolerance: Annotated[float | None, typer.Option(min=0.0, help="how far a score may lie off")] = None,
    trust: Trust = False,
) -> None:
    """Scores the three golden pictures of a config's scorers and compares them with what is recorded, or records them."""
    from grpo_mm.tools.golden import golden as run

    for line in run(
        config, overrides or [], names=reward or [], to=record, beside=ship, tolerance=tolerance, trust=trust
    ):
        say(line)


@app.command()
def launch(
    words: Annotated[
        list[str], typer.Argument(help="[ADDRESS] CONFIG [key.sub=value …]; with --drain: [ADDRESS] RUN", metavar="…")
    ],
    ray: Annotated[
        bool, typer.Option("--ray", help="over a Ray cluster: ADDRESS is host:port, auto (default) or local")
    ] = False,
    drain: Annotated[
        bool, typer.Option("--drain", help="asks a launch that is under way to stop, with a checkpoint")
    ] = False,
    fresh: Annotated[bool, typer.Option(help="as of train, the first time")] = False,
    accept: Annotated[bool, typer.Option("--accept", help="as of train")] = False,
    checkpoint: Annotated[str | None, typer.Option(help="as of train, the first time")] = None,
    trust: Trust = False,
) -> None:
    """Trains a config with several processes and services that score for it (`launch` in the config), and starts again what dies.

    grpo-mm launch --ray 10.0.0.1:6379 CONFIG launch.trainers=16 launch.per_node=8

    Without --ray the processes are of this machine. Ctrl-C and SIGTERM finish the step and write a checkpoint, as for train.
    """
    from grpo_mm.tools.serving.launch import ask_to_stop
    from grpo_mm.tools.serving.launch import launch as run

    address = words.pop(0) if ray and _is_address(words[0]) else "auto"
    if not words:
        raise UserError("launch needs a CONFIG, and with --drain the run folder.")
    named = at_home(words[0])
    if drain:
        say(ask_to_stop(named, address if ray else None))
        return
    options = ["--trust"] * trust + ["--accept"] * accept
    first = ["--fresh"] * fresh + ([] if checkpoint is None else ["--checkpoint", checkpoint])
    code = run(named, words[1:], address=address if ray else None, options=options, first=first, told=say, trust=trust)
    if code:
        raise typer.Exit(code)


def _is_address(word: str) -> bool:
    return word in ("auto", "local") or re.fullmatch(r"(ray://)?[^/=\s]+:\d+", word) is not None


@zoo_app.command("build")
def zoo_build(
    name: Annotated[str, typer.Argument(help="text_to_image, text_to_video or vision_language")],
    out: Annotated[Path, typer.Option(parser=at_home, help="folder for the checkpoint")],
    seed: int = 0,
) -> None:
    """Makes a shipped checkpoint again from scratch."""
    from grpo_mm.tools.zoo_build import build

    build(name, out, seed=seed)


@zoo_app.command("path")
def zoo_path(name: Annotated[str, typer.Argument(help="text_to_image, text_to_video or vision_language")]) -> None:
    """Prints where a shipped checkpoint lies."""
    from grpo_mm.pipelines.zoo import path

    say(path(name))


if __name__ == "__main__":
    main()
