"""The layout that keeps four top-level folders one import package; each of these has broken a way of running it."""

from __future__ import annotations

import ast
import graphlib
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo_mm import registry
from grpo_mm.errors import UserError
from grpo_mm.links import FOLDERS, check_links

ROOT = Path(__file__).parents[1]
HEAVY = (
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "open_clip",
    "qwen_vl_utils",
    "decord",
    "datasets",
    "vllm",
    "ray",
    "wandb",
    "fastapi",
    "uvicorn",
)
CORE = [p for p in (ROOT / "grpo_mm").rglob("*.py") if p.relative_to(ROOT / "grpo_mm").parts[0] not in FOLDERS]


# ── folders and links ──


@pytest.mark.parametrize("name", FOLDERS)
def test_a_code_folder_is_a_relative_link_inside_the_package(name):
    link = ROOT / "grpo_mm" / name
    assert os.readlink(link) == f"../{name}"
    assert link.resolve() == ROOT / name and (ROOT / name).is_dir()


@pytest.mark.parametrize("name", FOLDERS)
def test_code_is_imported_as_part_of_the_package_and_lies_in_the_folder(name):
    spec = importlib.util.find_spec(f"grpo_mm.{name}")
    assert [Path(p).resolve() for p in spec.submodule_search_locations] == [ROOT / name]


def test_a_missing_link_is_explained_with_the_commands(tmp_path):
    check_links()
    (tmp_path / "pipelines").mkdir()
    with pytest.raises(
        UserError, match=r"lacks datasets, rewards.*ln -sfn \.\./datasets datasets && ln -sfn \.\./rewards"
    ):
        check_links(tmp_path)


def test_the_folder_datasets_is_no_package_of_its_own():
    """An __init__.py there would shadow Hugging Face's `datasets` for everything that is run from the root."""
    for folder in (ROOT / "datasets", ROOT / "tests", ROOT / "tests" / "datasets"):
        assert not (folder / "__init__.py").exists()
    for name in ("pipelines", "rewards"):
        assert not (ROOT / "tests" / name / "__init__.py").exists()


def test_tests_are_collected_without_touching_the_import_path(pytestconfig):
    assert pytestconfig.getoption("importmode") == "importlib"


def test_setuptools_packs_one_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["packages"]["find"] == {"include": ["grpo_mm*"]}
    assert "package-dir" not in project["tool"]["setuptools"]
    assert any(d.startswith("datasets") for d in project["project"]["dependencies"])


# ── imports ──


@pytest.fixture(scope="module")
def fresh() -> dict:
    """What a new interpreter in the root of the checkout finds."""
    code = f"""
import importlib.util, json, sys
found = {{"datasets": importlib.util.find_spec("datasets").origin}}
import grpo_mm
found["with the package"] = [m for m in ("torch", "pydantic", "yaml") if m in sys.modules]
import grpo_mm.training.trainer, grpo_mm.entry, grpo_mm.config.run_config, grpo_mm.cli
found["with the loop"] = [m for m in {HEAVY} if m in sys.modules]
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_bare_import_of_datasets_from_the_root_is_hugging_faces(fresh):
    found = Path(fresh["datasets"])  # a virtual environment may lie in the checkout
    assert found.name == "__init__.py" and found.parent != ROOT / "datasets"


def test_importing_the_package_takes_nothing_along(fresh):
    assert fresh["with the package"] == []


def test_the_loop_takes_torch_along_and_nothing_heavier(fresh):
    assert fresh["with the loop"] == []


def modules(tree: ast.AST) -> Iterator[str]:
    """Names of what is imported anywhere: at module level, inside functions, for types only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


BASE = "types errors registry identity moved outside media_words source_picture findings waiting"
"""Files of grpo_mm itself that every room may use; the other files there are doors (cli, entry, links)."""
MAY_IMPORT = {
    "processes": "",
    "environments": "",
    "golden": "environments looking rollout",
    "rollout": "environments processes rollout.outputs",
    "rollout.outputs": "",
    "advantages.shared": "rollout",
    "advantages.baselines": "advantages.shared rollout",
    "advantages.combination": "advantages.shared rollout",
    "advantages.bonuses": "advantages.baselines advantages.shared rollout",
    "advantages.masks": "advantages.baselines processes rollout",
    "advantages.scales": "advantages.baselines advantages.combination advantages.shared rollout",
    "advantages.actions": "advantages.baselines advantages.masks advantages.shared rollout",
    "advantages.state": "advantages.baselines advantages.combination advantages.shared rollout",
    "advantages": "advantages.actions advantages.baselines advantages.bonuses advantages.combination advantages.masks "
    "advantages.scales advantages.state rollout",
    "objectives": "rollout",
    "rollout.collectors": "advantages.baselines advantages.masks advantages.state rollout",
    "weights": "ledger processes rollout",
    "looking": "looking.clips",
    "looking.clips": "",
    "looking.report": "looking processes",
    "ledger": "",
    "config": "advantages launch looking objectives processes rollout rollout.collectors rollout.outputs weights",
    "run": "config looking processes rollout weights",
    "training": "advantages config golden ledger looking looking.clips objectives processes rollout rollout.collectors run weights",
    "tools": "advantages config datasets.shared datasets.worlds environments golden ledger looking looking.clips looking.report objectives pipelines pipelines.flow "
    "pipelines.flow.conforming pipelines.flow.engines pipelines.flow.models pipelines.flow.trees pipelines.vlm "
    "pipelines.vlm.models pipelines.zoo processes rewards.images rewards.text rewards.video rollout run training weights",
    "launch": "processes",
    "tools.keys": "config",
    "tools.serving": "config golden launch pipelines.vlm.engine_server pipelines.vlm.models processes rewards.service rollout run",
    "starters": "datasets.worlds",
    "pipelines": "",
    "pipelines.zoo": "processes",
    "pipelines.flow.published": "pipelines pipelines.zoo weights",
    "pipelines.flow.models": "pipelines pipelines.flow.published pipelines.zoo weights",
    "pipelines.flow": "ledger advantages.actions advantages.combination pipelines pipelines.flow.models pipelines.flow.published processes rollout weights",
    "pipelines.flow.editing": "pipelines.flow.models",
    "pipelines.flow.trees": "pipelines.flow processes",
    "pipelines.flow.engines": "ledger pipelines.flow pipelines.flow.models pipelines.flow.trees processes",
    "pipelines.flow.conforming": "pipelines pipelines.flow pipelines.flow.engines pipelines.flow.models processes rollout weights",
    "pipelines.vlm.models": "pipelines pipelines.zoo weights",
    "pipelines.vlm.prompting": "pipelines pipelines.vlm.models processes",
    "pipelines.vlm.forwards": "pipelines.vlm.models pipelines.vlm.prompting processes",
    "pipelines.vlm.prompt_sharing": "pipelines.vlm.forwards pipelines.vlm.prompting processes",
    "pipelines.vlm.sampling": "pipelines.vlm.forwards pipelines.vlm.prompt_sharing pipelines.vlm.prompting processes",
    "pipelines.vlm.engine_server": "pipelines.vlm.forwards pipelines.vlm.prompting pipelines.vlm.sampling processes",
    "pipelines.spatial": "pipelines.vlm.prompting",
    "pipelines.video_grounding": "pipelines.vlm.models pipelines.vlm.prompting processes rollout rollout.collectors",
    "pipelines.vlm": "ledger pipelines.spatial pipelines.vlm.forwards pipelines.vlm.models pipelines.vlm.prompt_sharing "
    "pipelines.vlm.prompting pipelines.vlm.sampling processes weights",
    "rewards": "",
    "rewards.shared": "weights",
    "rewards.answers": "",
    "rewards.images": "looking rewards.answers rewards.shared weights",
    "rewards.text": "processes rewards.answers rewards.shared rollout",
    "rewards.spatial": "rewards.answers rewards.shared rewards.text",
    "rewards.video": "rewards.answers rewards.shared rewards.spatial rewards.text",
    "rewards.clips": "looking.clips rewards.images rewards.judges rewards.shared",
    "rewards.edits": "rewards.images rewards.judges rewards.shared",
    "rewards.judges": "processes rewards.answers rewards.shared rollout rollout.outputs weights",
    "rewards.reward_models": "rewards.answers rewards.judges rewards.shared weights",
    "rewards.faithfulness": "rewards.answers rewards.judges rewards.shared rewards.spatial rewards.text rewards.video",
    "rewards.service": "processes rewards.shared rollout",
    "rewards.environments": "environments rewards.service rollout",
    "rewards.benchmarks": "rewards.answers rewards.shared rewards.spatial rewards.text rewards.video",
    "datasets.media": "",
    "datasets.shared": "datasets.media",
    "datasets.images": "datasets.shared",
    "datasets.spatial": "datasets.shared",
    "datasets.video": "datasets.media datasets.shared",
    "datasets.chat": "datasets.shared",
    "datasets.table": "datasets.chat datasets.media datasets.shared datasets.video",
    "datasets.worlds": "datasets.media",
}
"""Room -> rooms that it may import from, beside itself and the base. Another arrow is a decision: put it here, or move the code."""
ROOMS = {**{room: set(names.split()) for room, names in MAY_IMPORT.items()}, "base": set(), "doors": None}
FILES = {
    ".".join(path.relative_to(top).with_suffix("").parts).removesuffix("__init__").removesuffix("."): path
    for top, paths in [(ROOT / "grpo_mm", CORE), *((ROOT, (ROOT / name).rglob("*.py")) for name in FOLDERS)]
    for path in paths
}
"""Dotted path below the package -> file."""


def room_of(module: str) -> str:
    path = FILES[module]
    room = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return room or ("base" if module in BASE.split() else "doors")


def arrows() -> Iterator[tuple[str, str]]:
    """(module, module that it imports) within the package."""
    for module, path in FILES.items():
        for name in modules(ast.parse(path.read_text())):
            full = name.removeprefix("grpo_mm.")
            found = next((m for m in (full, full.rpartition(".")[0]) if m in FILES), None)
            if name.startswith("grpo_mm.") and found is not None:
                yield module, found


def test_every_room_is_in_the_table_and_says_what_may_not_come_in():
    found = {room_of(module) for module in FILES}
    assert found == set(ROOMS)
    for path in FILES.values():
        if path.name == "__init__.py":
            text = ast.get_docstring(ast.parse(path.read_text())) or ""
            assert path.parent == ROOT / "grpo_mm" or text.count("\n\n") == 1, (
                path
            )  # what lives here; what may not come in


def test_rooms_import_only_from_the_rooms_that_the_table_names():
    wrong = [
        f"{module} ({here}) imports {other} ({there})"
        for module, other in arrows()
        if (here := room_of(module)) != (there := room_of(other))
        and here != "doors"
        and there not in ROOMS[here] | {"base"}
    ]
    assert wrong == []


def test_the_table_has_no_arrow_that_nothing_needs():
    used = {(room_of(module), room_of(other)) for module, other in arrows()}
    assert [(a, b) for a, others in ROOMS.items() for b in others or () if (a, b) not in used] == []


def test_arrows_between_rooms_run_one_way():
    order = list(graphlib.TopologicalSorter({a: b for a, b in ROOMS.items() if b is not None}).static_order())
    assert set(order) == set(ROOMS) - {"doors"}


def test_arrows_between_modules_run_one_way():
    """An `__init__` hands on what its room holds, so it stands above it; nothing in the room may ask it."""
    graph: dict[str, set[str]] = {}
    for module, other in arrows():
        graph.setdefault(module, set()).add(other)
    graphlib.TopologicalSorter(graph).prepare()


def test_no_room_is_too_full_to_look_through():
    for room in ROOMS:
        inside = [p for m, p in FILES.items() if room_of(m) == room and p.name != "__init__.py"]
        assert len(inside) <= 20, (room, len(inside))
    tests: dict[str, int] = {}
    for path in (ROOT / "tests").rglob("*.py"):
        tests[path.parent.name] = tests.get(path.parent.name, 0) + 1
    assert max(tests.values()) <= 20, tests


def test_our_code_is_imported_by_its_full_name_only():
    """A bare `import rewards` works from the root of the checkout and nowhere else."""
    files = [*CORE, *(p for name in FOLDERS for p in (ROOT / name).rglob("*.py"))]
    bare = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        for name in modules(ast.parse(path.read_text()))
        if name.split(".")[0] in ("rewards", "pipelines", "None")
    ]
    assert bare == []


# ── the table of components ──


@pytest.mark.parametrize("entry", registry.table(), ids=lambda e: f"{e.role}-{e.kind}")
def test_every_line_of_the_table_leads_to_something(entry):
    if entry.role == "preset":
        assert entry.target == entry.config
    else:
        found = registry.lookup(entry.role, entry.kind)
        assert callable(found) and registry.kind_of(entry.role, found) == entry.kind
    assert not entry.config or (ROOT / entry.config).is_file()


def test_a_room_lists_its_own_kinds_and_no_others():
    for room in registry.ROOMS:
        for entry in importlib.import_module(room).KINDS:
            assert entry.role == "preset" or entry.target.startswith(f"{room}."), (room, entry)
    listing = {"grpo_mm." + room_of(m) for m, path in FILES.items() if "KINDS = (" in path.read_text()}
    assert listing == set(registry.ROOMS)


@pytest.mark.parametrize(
    ("role", "package"), [("advantage", "grpo_mm.advantages"), ("objective", "grpo_mm.objectives")]
)
def test_the_package_of_estimators_hands_on_every_one(role, package):
    names = {entry.target.partition(":")[2] for entry in registry.entries(role) if entry.target.startswith(package)}
    assert names <= set(importlib.import_module(package).__all__)


def test_no_kind_stands_twice_in_the_table():
    kinds = [(entry.role, entry.kind) for entry in registry.table()]
    assert len(set(kinds)) == len(kinds)


def test_every_role_that_a_config_asks_for_is_in_the_table():
    asked = set()
    for path in [*CORE, *(p for name in FOLDERS for p in (ROOT / name).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and getattr(node.func, "id", "") == "Role"
                and isinstance(node.args[0], ast.Constant)
            ):
                asked.add(node.args[0].value)
    assert {"policy", "engine", "reward", "advantage"} <= asked <= {entry.role for entry in registry.table()}
