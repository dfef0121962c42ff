"""Module paths of before there were rooms lead on, with one warning each, and old run folders go on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from unittest import mock

import pytest
from conftest import ROOT
from tiny_runs import record, summary, weights, write_config

from grpo_mm import moved, registry
from grpo_mm.config import typed_yaml
from grpo_mm.entry import train
from grpo_mm.errors import ConfigError
from grpo_mm.looking.report import page
from grpo_mm.run.run_folder import read_config

BEFORE = (ROOT / "tests/helpers/module_paths_before_rooms.txt").read_text().split()
"""Every module of the package before the move, and of later moves those that moved."""
LOOK = """
import importlib, json, sys, warnings

found = {}
for path in sys.stdin.read().split():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        module = importlib.import_module(path)
        again = importlib.import_module(path)
    found[path] = {"module": module.__name__, "same": module is again is sys.modules[path],
                   "told": [str(w.message) for w in told if w.category.__name__ == "MovedModule"],
                   "deprecations": sum(issubclass(w.category, DeprecationWarning) and "has moved" in str(w.message) for w in told)}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, dict]:
    """What a fresh interpreter finds under every old path."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK], input="\n".join(BEFORE), cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_old_path_is_known():
    assert len(BEFORE) == 315 and set(moved.MOVED) <= set(BEFORE)


def test_every_old_path_leads_to_its_module(found):
    """Under its new name where it moved, told once; a room that has the name of a module tells when a name is taken from it."""
    wrong = []
    for path in BEFORE:
        new = path if path in ROOMS else moved.MOVED.get(path, path)
        told = [] if new == path else [f"{path} has moved: import {new}."]
        wanted = {"module": new, "same": True, "told": told, "deprecations": len(told)}
        if found[path] != wanted:
            wrong.append((path, found[path], wanted))
    assert wrong == []


ROOMS = {
    "grpo_mm.config": ("Role", "build", "component", "convert", "dump", "merge", "override", "read_yaml"),
    "grpo_mm.datasets.video": ("VideoFile", "ImageFile", "read_video"),
    "grpo_mm.rewards.judges": ("PointwiseJudge", "TransformersJudge", "ServerJudge"),
}


@pytest.mark.parametrize(("room", "names"), ROOMS.items(), ids=ROOMS)
def test_a_room_that_has_the_path_of_a_module_gives_its_names(room, names):
    code = (
        "import importlib, warnings\nwarnings.simplefilter('error')\n"
        f"try:\n    from {room} import {names[0]}\nexcept DeprecationWarning as told:\n    print(told)\n"
        f"from {room} import {', '.join(names)}\n"
        f"new = importlib.import_module({moved.MOVED[room]!r})\n"
        f"assert all(getattr(new, name) is globals()[name] for name in {names!r})\n"
        f"try:\n    from {room} import nothing_of_this_name\nexcept ImportError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told, missing = done.stdout.splitlines()
    assert told == f"{room} has moved: import {moved.MOVED[room]}." and "nothing_of_this_name" in missing


def test_nothing_in_the_package_asks_for_an_old_path():
    code = (
        "import warnings\nfrom grpo_mm import registry\nfrom grpo_mm.moved import MovedModule\n"
        "warnings.simplefilter('error', category=MovedModule)\nimport grpo_mm.cli, grpo_mm.entry, grpo_mm.tools.inference\n"
        "[registry.lookup(e.role, e.kind) for e in registry.table() if e.role != 'preset']\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


def test_a_function_with_the_name_of_a_module_that_moved_stays_a_function():
    """`grpo_mm.advantages.group_norm` was a module and is a function of the package."""
    code = (
        "import grpo_mm.advantages.group_norm, grpo_mm.advantages.gate\nimport grpo_mm.advantages as here\n"
        "from grpo_mm.advantages.group_norm import GroupNorm\n"
        "from grpo_mm.advantages import gate, group_norm\n"
        "assert all(callable(getattr(here, name)) for name in here.__all__)\n"
        "assert here.GroupNorm is GroupNorm and group_norm.__module__ == 'grpo_mm.advantages.baselines.group_norm'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_config_may_name_a_class_by_its_old_path():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = registry.lookup("reward", "grpo_mm.rewards.jpeg:JpegSize")
    assert found is registry.lookup("reward", "jpeg") and registry.kind_of("reward", found) == "jpeg"


def test_threads_may_ask_for_an_old_path_at_once():
    code = (
        "import sys, threading\nsys.setswitchinterval(1e-6)\nfailed = []\nstart = threading.Barrier(8)\n"
        "def ask():\n    start.wait()\n    try:\n        from grpo_mm.rewards.jpeg import JpegSize\n"
        "    except ImportError as error:\n        failed.append(error)\n"
        "threads = [threading.Thread(target=ask) for _ in range(8)]\n"
        "[t.start() for t in threads]\n[t.join() for t in threads]\nassert not failed, failed\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore::grpo_mm.moved.MovedModule")
def test_what_is_patched_by_an_old_path_reaches_the_code():
    class Fake: ...

    with mock.patch("grpo_mm.rewards.judges.ServerJudge", Fake), mock.patch("grpo_mm.rewards.jpeg.JpegSize", Fake):
        assert registry.lookup("judge", "server") is Fake and registry.lookup("reward", "jpeg") is Fake
    assert (
        registry.lookup("judge", "server").__name__ == "ServerJudge" and registry.lookup("reward", "jpeg") is not Fake
    )
    import grpo_mm.config

    with mock.patch("grpo_mm.config.convert", Fake):
        assert typed_yaml.convert is Fake
    assert typed_yaml.convert is not Fake and "read_yaml" in dir(grpo_mm.config)
    with mock.patch("grpo_mm.report.read_sheets", Fake):
        assert page.read_sheets is Fake


@pytest.mark.parametrize(
    "kind", ["grpo_mm.collectors.mine:Mine", "grpo_mm.rewards.judges:ServerJudge.x", "grpo_mm.rewards.jpeg:JpgSize"]
)
def test_a_name_that_is_not_there_is_refused_with_a_sentence(kind):
    with pytest.raises(ConfigError, match="no module named|has no") as refused:
        registry.lookup("reward", kind)
    assert "mine" in kind or f"Did you mean {'ServerJudge' if 'judges' in kind else 'JpegSize'!r}?" in str(
        refused.value
    )


def test_a_module_that_never_was_is_still_no_module():
    for path in ("grpo_mm.nothing", "grpo_mm.rewards.nothing", "grpo_mm.collectors.nothing"):
        with pytest.raises(ModuleNotFoundError):
            __import__(path)


def test_a_run_folder_that_names_old_paths_goes_on(tiny_sd3, tmp_path):
    """What has no kind stands in config.yaml by its path: in a run begun before the move by its old one."""
    old, new = "grpo_mm.rng:stream", "grpo_mm.processes.rng:stream"
    config = write_config(tmp_path, tiny_sd3, {"steps": 2, "samples_every": 0, "data": {"own": new}})
    train(config)
    run, whole, text = tmp_path / "runs/tiny", tmp_path / "whole", config.read_text()
    shutil.copytree(run, whole)
    for there, here in ((new, old), (old, old), (old, new)):
        (run / "config.yaml").write_text((whole / "config.yaml").read_text().replace(new, there))
        config.write_text(text.replace(new, here))
        assert read_config(run)["data"]["own"] == new
        found = train(config)
        assert found.pop("differs") == [] and "nothing was run" in found.pop("nothing_was_run")
        assert found == summary(whole)  # finished: nothing to do, and no other run
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints/step_000002")
    train(config)
    assert record(run) == record(whole) and weights(run, 2) == weights(whole, 2)
