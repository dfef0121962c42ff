"""docs/own_data.md is true: its commands run, on data that it draws, and print what it says."""

from __future__ import annotations

import io
import logging
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch

from grpo_mm.cli import main
from grpo_mm.config.run_config import read

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/own_data.md").read_text()
CONFIGS = sorted((ROOT / "configs/own_data").glob("*.yaml"))
SHORT = ["steps=1", "evaluation.limit=4", "prompts_per_step=2", "group_size=2", "engine.max_new_tokens=8"]
TUTORIALS = {
    part.partition("\n")[0]: re.findall(r"```(\w+)\n(.*?)```", part, re.DOTALL) for part in PAGE.split("\n## ")[1:3]
}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_read_and_its_settings_agree(config):
    read(config).check_settings()


def said_by(commands: str, *, further: list[str]) -> Iterator[str]:
    """What the lines of a block print, one text each; `further` are settings of a run."""
    for line in commands.strip().splitlines():
        words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', line)]
        if words[0] == "python":
            runpy.run_path(words[1])
            yield ""
        elif words[0] == "grpo-mm":
            code, found = _main([*words[1:], *(further if words[1] == "train" else [])])
            assert code == (2 if "ConfigError" in found else 0), found[-2000:]
            yield found
        else:
            yield subprocess.run(words, capture_output=True, text=True, check=True).stdout


def _main(arguments: list[str]) -> tuple[int, str]:
    """In this process, as a fresh one takes longer to import than to answer: the exit code, and what was printed."""
    said, root, own = io.StringIO(), logging.getLogger(), logging.getLogger("grpo_mm")
    before, path, argv, threads, level = (
        list(root.handlers),
        list(sys.path),
        sys.argv,
        torch.get_num_threads(),
        own.level,
    )
    root.handlers, sys.argv = [], ["grpo-mm", *arguments]
    try:
        with redirect_stdout(said), redirect_stderr(said):
            main()
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        root.handlers, sys.path[:], sys.argv = before, path, argv
        torch.set_num_threads(threads)
        own.setLevel(level)
    return code, said.getvalue()


def followed(blocks: list[tuple[str, str]], folder: Path, *, further: list[str]) -> Iterator[tuple[str, str]]:
    """(what the page says, what was printed) of each block of commands that has an output."""
    for config in CONFIGS:
        shutil.copy(config, folder)
    printed = ""
    for kind, text in blocks:
        if kind == "python":
            (folder / text.partition("\n")[0].removeprefix("# ")).write_text(text)
        elif kind == "bash":
            printed = "\n".join(said_by(text, further=further))
        elif kind == "text":
            yield text, " ".join(printed.replace(str(folder) + "/", "").split())


OF_THE_WHOLE_RUN = "│", "Better", "product"
"""How lines begin whose figures are those of all steps."""


@pytest.mark.parametrize("name", TUTORIALS)
def test_the_commands_of_a_tutorial_print_what_the_page_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = 0
    for promised, printed in followed(TUTORIALS[name], tmp_path, further=SHORT):
        for line in promised.strip().splitlines():
            if not line.startswith(OF_THE_WHOLE_RUN):
                assert " ".join(line.split()) in printed
                seen += 1
    assert seen >= 5 and Path("runs").is_dir()


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", TUTORIALS)
def test_the_whole_run_of_a_tutorial_rises_as_the_page_says(name, tmp_path, monkeypatch):
    """The row of the score has its names, and figures near those of the page, which are of one machine."""
    monkeypatch.chdir(tmp_path)
    rows = 0
    for promised, printed in followed(TUTORIALS[name], tmp_path, further=[]):
        for line in promised.strip().splitlines():
            if line.startswith("│ score"):
                names = re.escape(line.split("│")[1].strip())
                before, after = (float(number) for number in re.findall(r" (\d\.\d+) ", line)[:2])
                found = [float(n) for n in re.findall(rf"│ {names} │ (\d\.\d+) │ (\d\.\d+)", printed)[0]]
                assert found[0] == pytest.approx(before, abs=0.05) and found[1] == pytest.approx(after, abs=0.12)
                assert found[1] > found[0] + 0.05
                rows += 1
            elif line.startswith("Better"):
                assert "Better: held-out score" in printed
            else:
                assert " ".join(line.split()) in printed
    assert rows == 1
