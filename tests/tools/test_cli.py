"""The command line: what each command prints, and one paragraph with exit code 2 for whatever a user can mend."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from children import command_line, in_child
from PIL import Image
from safetensors.torch import load_file
from tiny_runs import (
    PROMPTS,
    ROOT,
    accelerate_launch,
    launching,
    record,
    summary,
    weights,
    write_config,
)
from typer.testing import CliRunner

from grpo_mm.cli import app
from grpo_mm.config.methods import METHODS
from grpo_mm.registry import load, table

NEEDY = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Needy:
    needs = frozenset({"logprobs", "entropy"})
    couples = "action"
    def __call__(self, values, view): ...
"""

# What is typed after `grpo-mm`, and what the answer must hold. CONFIG is a config that would run, HERE its folder.
REFUSED = {
    "an unknown key": ("train CONFIG optim.lrr=1", "unknown key 'lrr'. Did you mean 'lr'? Known keys: lr, betas"),
    "an unknown key in letters of its own": ("train CONFIG größe=1", "unknown key 'größe'"),
    "a word for a number": ("train CONFIG steps=many", "steps: found 'many'"),
    "a truth for a number": ("train CONFIG steps=true", "steps: found True; input should be a number"),
    "half a step": ("train CONFIG steps=1.5", "steps: found 1.5"),
    "no number": ("train CONFIG optim.lr=.nan", "optim.lr: found nan; input should be a finite number"),
    "a number that is too large": (f"train CONFIG optim.lr={'9' * 9000}", "… "),
    "a name that is too long": (f"train CONFIG name={'x' * 9000}", "at most 100 characters"),
    "a config that is not there": ("train HERE/none.yaml", "no config file HERE/none.yaml. In that folder: "),
    "a config with tabs": ("train HERE/tabs.yaml", r"found character '\t'"),
    "a config that is not UTF-8": ("train HERE/latin.yaml", "codec can't decode byte 0xe9"),
    "a config that is a list": ("train HERE/list.yaml", "holds list, wanted a mapping"),
    "a key that stands twice": ("train HERE/twice.yaml", "the key 'steps' stands twice"),
    "a parent that has a parent": ("train HERE/child.yaml", "which itself inherits 'run.yaml'. One level is allowed"),
    "an override without a value": ("train CONFIG steps", "override 'steps' is not of the form key.sub=value"),
    "a prompt file that is not there": (
        "train CONFIG prompts.lines.use.path=none.txt",
        "none.txt: no such file (looked in ",
    ),
    "an empty prompt file": ("train CONFIG prompts.lines.use.path=HERE/empty.txt", "empty.txt: there is no prompt"),
    "an empty file of held-out prompts": (
        "train CONFIG eval_prompts.lines.use.path=HERE/empty.txt",
        "there is no prompt",
    ),
    "no prompts at all": ("train CONFIG prompts={}", "at least one entry each under `prompts`, `rewards`"),
    "a group of one": (
        "train CONFIG group_size=1",
        "group_size = 1, but the advantage compares samples within a group",
    ),
    "sizes that do not divide": (
        "train CONFIG prompts_per_step=3",
        "prompts_per_step = 3 does not divide into updates.count = 2",
    ),
    "more updates than actions": (
        "train CONFIG updates={by: action, count: 3}",
        "a row trains 2 actions. Use at most 2",
    ),
    "an objective without its values": (
        "train CONFIG objective=[{kind: needy:Needy}]",
        "needs entropy, which the policy does not",
    ),
    "one denoising step": ("train CONFIG engine.steps=1", "1 denoising step leaves nothing to train"),
    "no noise": ("train CONFIG engine.kernel=ode", "a ratio objective needs noise"),
    "an empty window": ("train CONFIG engine.noise={kind: window, size: 0, within: [0, 2]}", "has size 0: it is empty"),
    "a window that overruns": (
        "train CONFIG engine.noise={kind: window, size: 2, within: [1, 3]}",
        "reaches step 2 of 3",
    ),
    "a size between two tokens": ("train CONFIG policy.height=30", "policy.height = 30; wanted a multiple of"),
    "a negative clip range": (
        "train CONFIG objective=[{kind: clipped_ratio, clip_low: -1}]",
        "objective.0: clip_low = -1.0 and clip_high = 0.0001; wanted 0 or more",
    ),
    "a negative length": ("train CONFIG policy.text_length=-1", "policy.text_length = -1; wanted at least 0"),
    "no threads": ("train CONFIG threads=0", "threads = 0; wanted at least 1"),
    "no held-out samples": (
        "train CONFIG evaluation.samples_per_prompt=0",
        "samples_per_prompt = 0; wanted at least 1",
    ),
    "patience without evaluations": (
        "train CONFIG evaluation.patience=2",
        "evaluation.every = 0 there is none to count",
    ),
    "evaluations without prompts": (
        "train CONFIG evaluation.every=2 eval_prompts={}",
        "no `eval_prompts` to evaluate on",
    ),
    "no checkpoint kept": ("train CONFIG checkpoints.keep_last=0", "checkpoints.keep_last = 0; wanted at least 1"),
    "a time limit of nothing": (
        "train CONFIG rewards.bright.timeout_seconds=0",
        "timeout_seconds = 0.0; wanted above 0",
    ),
    "no reward": ("train CONFIG rewards={}", "at least one entry each under `prompts`, `rewards`"),
    "a reward's module": (
        "train CONFIG rewards.bright.use.path=none:f",
        "no module named 'none'. Is it installed, or in the folder",
    ),
    "a reward's name": (
        "train CONFIG rewards.bright.use.path=tiny_rewards:birght",
        "has no 'birght'. Did you mean 'bright'?",
    ),
    "a source that is not there": ("train CONFIG rewards.bright.sources=[films]", "source 'films'; there are: lines"),
    "a folder for a name": ("train CONFIG name=a/b", "name is 'a/b'; wanted a plain folder name"),
    "a folder that is no checkpoint": (
        "train CONFIG policy.model.path=HERE",
        "not a diffusers checkpoint: it has no model_index.json",
    ),
    "another family's checkpoint": (
        "train CONFIG policy.model.kind=flux",
        "holds a StableDiffusion3Pipeline, wanted a FluxPipeline",
    ),
    "a family that is not there": ("train CONFIG policy.model.kind=sd33", "Did you mean 'sd3'? There are: sd3, flux"),
    "a folder that is no adapter": (
        "train CONFIG policy.lora.start_from=HERE",
        "not an adapter: it has no pytorch_lora_weights",
    ),
    "a device that is not there": (
        "train CONFIG device=tpu",
        "device: found 'tpu'; input should be 'auto', 'cpu' or 'cuda'",
    ),
    "a tracker that is not there": ("train CONFIG trackers=[mlflow]", "should be 'tensorboard' or 'wandb'"),
    "a run folder in a file": ("train CONFIG runs_dir=HERE/empty.txt", "empty.txt is a file"),
    "a run folder that is something else": (
        "train CONFIG name=other",
        "exists and is no run folder (it has no config.yaml)",
    ),
    "a checkpoint that is not there": (
        "train CONFIG --checkpoint step_9",
        "has no checkpoint 'step_9'; there are: none",
    ),
    "going back and starting over": (
        "train CONFIG --fresh --checkpoint x",
        "--fresh starts over without any checkpoint",
    ),
    "showing what cannot run": ("show CONFIG steps=0", "steps = 0; wanted at least 1"),
    "sampling from no run": ("sample HERE --prompt x", "HERE is not a run folder: it has no config.yaml"),
    "sampling nothing": ("sample CONFIG --prompt x --count 0", "wanted at least one of each"),
    "pictures into a file": ("sample CONFIG --prompt x --out HERE/empty.txt", "cannot be written to HERE/empty.txt"),
    "evaluating no run": ("eval HERE", "HERE is not a run folder"),
    "a config's checkpoint": ("eval CONFIG --checkpoint step_1", "needs a run folder; CONFIG is a config"),
    "exporting no run": ("export HERE", "HERE has no checkpoint yet"),
    "exporting a config": ("export CONFIG", "CONFIG is no run folder; export takes a folder"),
    "two ways to ask": ("sample CONFIG --prompt x --raw --source lines", "--raw asks the bare text"),
    "a source that the run has not": ("sample CONFIG --prompt x --source films", "the run trains on lines"),
    "evidence over other files": ("eval CONFIG --out HERE", "HERE holds files already, and nothing is overwritten"),
    "a report of no run": ("report HERE/none", "HERE/none is not a run folder"),
    "no steps to time": ("bench CONFIG --steps 0", "steps = 0; wanted at least 1"),
    "a model that is not in the zoo": ("zoo path nothing", "no checkpoint 'nothing' in the zoo"),
    "a recipe that is not in the zoo": ("zoo build nothing --out HERE/z", "no recipe 'nothing' in the zoo"),
    "a kind of method that is not there": (
        "methods --kind trick",
        "there is no kind 'trick' of method; there are: advantage",
    ),
}

ASK_ALL = """
import contextlib, io, json, sys, time
from grpo_mm.cli import main
answers = {}
for name, arguments in json.load(open(sys.argv[1])).items():
    sys.argv = ["grpo-mm", *arguments]
    said, began, code = io.StringIO(), time.perf_counter(), 0
    with contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as leaving:
            code = leaving.code
        except BaseException as error:
            code = repr(error)
    loaded = "diffusers" in sys.modules
    answers[name] = {"code": code, "said": said.getvalue(), "loaded": loaded, "seconds": time.perf_counter() - began}
json.dump(answers, open("answers.json", "w"))
"""


def words(line: str, places: dict[str, str]) -> list[str]:
    """A line as a shell splits it, with values that hold blanks kept whole."""
    found: list[str] = []
    for word in line.split(" "):
        depth = found[-1].count("{") - found[-1].count("}") if found else 0
        if depth:
            found[-1] += f" {word}"
        else:
            found.append(word)
    return [replaced(word, places) for word in found]


def replaced(text: str, places: dict[str, str]) -> str:
    for name, path in places.items():
        text = text.replace(name, path)
    return text


@pytest.fixture(scope="module")
def refusals(tiny_sd3, tmp_path_factory) -> tuple[dict, dict[str, str]]:
    """What a fresh process answers to each bad input, one after the other."""
    folder = tmp_path_factory.mktemp("refusals")
    config = write_config(folder, tiny_sd3)
    (folder / "needy.py").write_text(NEEDY)
    shutil.copy(ROOT / "tests/helpers/tiny_rewards.py", folder)
    (folder / "empty.txt").write_text("\n \n")
    (folder / "tabs.yaml").write_text("name: x\n\tsteps: 3\n")
    (folder / "latin.yaml").write_bytes("name: café".encode("latin-1"))
    (folder / "list.yaml").write_text("- a\n- b\n")
    (folder / "twice.yaml").write_text(config.read_text() + "steps: 4\n")
    (folder / "parent.yaml").write_text("inherit: run.yaml\n")
    (folder / "child.yaml").write_text("inherit: parent.yaml\n")
    (folder / "runs/other").mkdir(parents=True)
    (folder / "runs/other/thesis.txt").write_text("all there is")
    places = {"CONFIG": str(config), "HERE": str(folder)}
    asked = {name: words(line, places) for name, (line, _) in REFUSED.items()}
    if not torch.cuda.is_available():
        asked["CUDA where there is none"] = ["train", str(config), "device=cuda"]
    (folder / "asked.json").write_text(json.dumps(asked))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", ASK_ALL, "asked.json"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (folder / "runs").iterdir()} <= {"other", ".lock_tiny"}
    return json.loads((folder / "answers.json").read_text()), places


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_one_paragraph_and_exit_code_2_before_a_model_is_loaded(name, refusals):
    answers, places = refusals
    answer = answers[name]
    assert answer["code"] == 2, answer
    said = answer["said"].strip()
    assert said.partition(": ")[0] in ("ConfigError", "CheckpointError", "UserError"), said
    assert "\n\n" not in said and "Traceback" not in said and len(said) < 5000
    assert replaced(REFUSED[name][1], places) in said
    assert not answer["loaded"] and answer["seconds"] < 5


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_cuda_where_there_is_none_is_told(refusals):
    answer = refusals[0]["CUDA where there is none"]
    assert answer["code"] == 2 and "torch sees no CUDA device. Use device=cpu or device=auto." in answer["said"]


@pytest.mark.parametrize("left", ["nothing", "text"])
def test_a_checkout_without_its_links_says_how_to_make_them(left, tmp_path):
    """Archives drop symbolic links; git on Windows writes their targets as text files."""
    folders = ("datasets", "pipelines", "rewards")
    shutil.copytree(ROOT / "grpo_mm", tmp_path / "grpo_mm", ignore=shutil.ignore_patterns(*folders, "__pycache__"))
    if left == "text":
        for name in folders:
            (tmp_path / "grpo_mm" / name).write_text(f"../{name}")
    command = [sys.executable, "-m", "grpo_mm.cli", "show", str(ROOT / "configs/quickstart/flow.yaml")]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(
        f"UserError: {tmp_path}/grpo_mm lacks datasets, pipelines, rewards: in a checkout these are"
    )
    assert "ln -sfn ../pipelines pipelines" in done.stderr and "\n\n" not in done.stderr.strip()


def say(*arguments: object) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def run(tiny_sd3, tmp_path_factory) -> Path:
    """A run that the command trained, with guidance and averaged weights."""
    folder = tmp_path_factory.mktemp("run")
    changes = {
        "steps": 2, "policy": {"guidance": 3.0}, "ema": {"decay": 0.5, "every_updates": 1}, "optim": {"lr": 0.01},
        "engine": {"eval_steps": 4}, "rewards": {"bright": {"use": {"path": "my_own:bright"}}},
    }  # fmt: skip
    config = write_config(folder, tiny_sd3, changes)
    (folder / "my_own.py").write_text((ROOT / "tests/helpers/tiny_rewards.py").read_text())

    def train() -> None:
        os.chdir(folder)  # where my_own.py lies
        command_line("train", config)()

    code = in_child(train, folder / "said.txt")
    assert code == 0, (folder / "said.txt").read_text()
    sys.path.append(str(folder))
    return folder / "runs/tiny"


def test_train_shows_the_reward_the_table_and_where_to_look(run):
    said = (run.parents[1] / "said.txt").read_text()
    assert "step 1/2  bright 0." in said and "step 2/2" in said
    table = next(line for line in said.splitlines() if line.startswith("│ score "))
    before, after = (summary(run)[key]["score"] for key in ("eval_before", "eval_after"))
    assert f"{before:.4f}" in table and f"{after:.4f}" in table and f"{after - before:+.4f}" in table
    for path in (run, run / "adapter", run / "report.html"):
        assert str(path) in said and path.exists()


def test_sampled_pictures_are_those_of_plain_diffusers_from_the_same_latents(run, tiny_sd3, tmp_path):
    from diffusers import StableDiffusion3Pipeline

    prompts = PROMPTS[:2]
    asked = [word for prompt in prompts for word in ("--prompt", prompt)]
    written = say("sample", run, *asked, "--count", 2, "--out", tmp_path / "after", "--seed", 5).split()
    assert written == [str(tmp_path / f"after/{name}.png") for name in ("000_0", "000_1", "001_0", "001_1")]
    say("sample", run.parents[1] / "run.yaml", *asked, "--count", 2, "--out", tmp_path / "before", "--seed", 5)
    pipe = StableDiffusion3Pipeline.from_pretrained(tiny_sd3)
    pipe.set_progress_bar_config(disable=True)
    pictures = {}
    for name in ("before", "after"):
        if name == "after":
            pipe.load_lora_weights(run / "adapter")
        latents = load_file(tmp_path / name / "latents.safetensors")["latents"]
        assert latents.shape == (4, 4, 16, 16)
        settings = dict(guidance_scale=3.0, num_inference_steps=4, height=32, width=32, max_sequence_length=16)
        plain = [
            pipe(prompts[i // 2], latents=latents[i : i + 1], output_type="np", **settings).images[0] for i in range(4)
        ]
        pictures[name] = [np.array(Image.open(p)) for p in sorted((tmp_path / name).glob("*.png"))]
        for ours, theirs in zip(pictures[name], plain, strict=True):
            assert np.abs(ours - 255 * theirs).max() < 0.51  # the pictures are rounded, nothing else
    assert any((a != b).any() for a, b in zip(*pictures.values()))


def test_sampling_needs_neither_prompt_files_nor_rewards(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    settings = yaml.safe_load((copy / "config.yaml").read_text())
    settings["prompts"]["lines"]["use"]["path"] = "gone.txt"
    settings["rewards"]["bright"]["use"] = "__main__:a_function_of_the_session_that_trained"
    (copy / "config.yaml").write_text(yaml.safe_dump(settings))
    say("sample", copy, "--prompt", "a red circle", "--out", tmp_path / "out")
    assert (tmp_path / "out/000_0.png").exists()


def numbers_of(text: str) -> dict[str, str]:
    """Metric → value, of what `eval` prints."""
    return {line.split()[0]: line.split()[1] for line in text.splitlines() if line.startswith("eval/")}


def test_eval_gives_the_scores_of_the_run(run):
    said = numbers_of(say("eval", run))
    assert float(said["eval/score"]) == pytest.approx(summary(run)["eval_after"]["score"], abs=1e-4)
    earlier = numbers_of(say("eval", run, "--checkpoint", "step_000001"))
    assert earlier.keys() == said.keys()
    text = say("eval", run.parents[1] / "run.yaml")
    assert "2 prompts, 1 sample each, untrained weights" in text and "nothing was written; --out FOLDER" in text
    untrained = numbers_of(text)
    assert float(untrained["eval/score"]) == pytest.approx(summary(run)["eval_before"]["score"], abs=1e-4)


def test_report_writes_one_page(run):
    assert say("report", run).strip() == str(run / "report.html")


def test_show_prints_what_would_run(run):
    said = say("show", run.parents[1] / "run.yaml", "engine.steps=4", "policy.micro_batch=2")
    assert "2 prompts × 4 samples = 8 rows per step, 8 per process" in said
    assert "3 trained actions per row = 24 actions per step" in said
    assert "2 optimiser update(s) per step, split by group: 12 actions each" in said
    assert "memory" in said and "GiB" in said and "network calls per step" in said
    resolved = yaml.safe_load(said[: said.index("2 prompts × 4")])
    assert resolved["engine"]["steps"] == 4 and resolved["optim"]["betas"] == [0.9, 0.999]


def test_methods_lists_what_there_is_and_nothing_else():
    rows = json.loads(say("methods", "--json"))
    assert len(rows) == len(table()) + len(METHODS) and all(
        set(row) == {"name", "kind", "paper", "module", "function", "config"} for row in rows
    )
    for row in rows:
        assert row["kind"] in ("preset", "method") or load(f"{row['module']}:{row['function']}")
        assert not row["config"] or (ROOT / row["config"]).is_file()
    assert {row["kind"] for row in rows} >= {"sampler", "advantage", "objective", "reward", "strategy", "preset"}
    samplers = {row["name"] for row in json.loads(say("methods", "--kind", "sampler", "--json"))}
    assert samplers == {"ode", "flow_sde", "dance_sde", "cps", "ddim"}
    assert "arXiv:2505.05470" in next(line for line in say("methods").splitlines() if " flow_sde " in line)


def test_bench_measures_phases(run):
    config = run.parents[1] / "run.yaml"
    found = json.loads(say("bench", config, "--steps", 1, "--json"))
    assert found["rows"] == 8 and found["threads"] == 1 and 0 <= found["outside_share"] < 1
    assert {"rollout_network", "train_network", "decode", "reward"} <= set(found["seconds_by_phase"])
    assert sum(found["seconds_by_phase"].values()) == pytest.approx(found["seconds_per_step"], rel=0.05)
    assert "outside network, encoder, decoder and reward" in say("bench", config, "--steps", 1)


def test_zoo_path_is_a_pipeline():
    from grpo_mm.pipelines.zoo import CHECKPOINTS

    if not (CHECKPOINTS / "text_to_image").is_dir():
        pytest.skip("the checkpoint is not built")
    assert (Path(say("zoo", "path", "text_to_image").strip()) / "model_index.json").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("processes", [1, 2])
def test_the_command_runs_under_accelerate_launch_and_goes_on_after_kill_9(processes, tiny_sd3, tmp_path):
    changes = {"steps": 30, "checkpoints": {"every": 4}, "watch": {"rank": {"use": "tiny_rewards:rank"}}}
    runs = {}
    for name in ("left alone", "killed"):
        (tmp_path / name).mkdir()
        config = write_config(tmp_path / name, tiny_sd3, changes)
        runs[name] = tmp_path / name / "runs/tiny"
        command = ["--num_processes", processes, "-m", "grpo_mm.cli", "train", config]
        if name == "killed":
            started = subprocess.Popen(**launching(*command), start_new_session=True)
            while len(record(runs[name])) < 10:
                time.sleep(0.05)
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()
            assert 0 < len(record(runs[name])) < 32
        accelerate_launch(*command)
    assert record(runs["killed"]) == record(runs["left alone"]) and len(record(runs["killed"])) == 32
    assert weights(runs["killed"], 30) == weights(runs["left alone"], 30)
    assert record(runs["killed"])[1]["watch/rank/score"] == (processes - 1) / 2


@pytest.mark.parametrize(("name", "still"), [("a.jfif", True), ("photo", True), ("a.JPG", True), ("a.mp4", False)])
def test_media_of_sample_are_pictures_by_what_they_hold(name, still, tmp_path):
    from PIL import Image

    from grpo_mm.datasets.media.media_files import ImageFile, VideoFile
    from grpo_mm.entry import opened_medium

    if still:
        Image.new("RGB", (8, 8)).save(tmp_path / name, "JPEG")
    else:
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypisom")
    assert isinstance(opened_medium(tmp_path / name, what="--media"), ImageFile if still else VideoFile)
