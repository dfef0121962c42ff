"""The layout that keeps four top-level folders one import package; each of these has broken a way of running it."""

from __future__ import annotations

import ast
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


def modules(tree: ast.AST, *, everywhere: bool) -> Iterator[str]:
    """Names of what is imported at module level, or also inside functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif everywhere or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from modules(node, everywhere=everywhere)


def crossings(files: list[Path], forbidden: tuple[str, ...], *, everywhere: bool) -> list[str]:
    prefixes = tuple(f"grpo_mm.{name}" for name in forbidden)
    return [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        for name in modules(ast.parse(path.read_text()), everywhere=everywhere)
        if name.startswith(prefixes) and name.removeprefix("grpo_mm.").split(".")[0] in forbidden
    ]


def test_the_core_imports_no_pipeline_reward_or_dataset():
    assert len(CORE) > 30
    assert crossings(CORE, FOLDERS, everywhere=False) == []


@pytest.mark.parametrize("name", FOLDERS)
def test_pipelines_rewards_and_datasets_do_not_import_each_other(name):
    others = tuple(other for other in FOLDERS if other != name)
    assert crossings(list((ROOT / name).rglob("*.py")), others, everywhere=True) == []


def test_our_code_is_imported_by_its_full_name_only():
    """A bare `import rewards` works from the root of the checkout and nowhere else."""
    files = [*CORE, *(p for name in FOLDERS for p in (ROOT / name).rglob("*.py"))]
    bare = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        for name in modules(ast.parse(path.read_text()), everywhere=True)
        if name.split(".")[0] in ("rewards", "pipelines", "None")
    ]
    assert bare == []


# ── the table of components ──


@pytest.mark.parametrize("entry", registry.TABLE, ids=lambda e: f"{e.role}-{e.kind}")
def test_every_line_of_the_table_leads_to_something(entry):
    if entry.role == "preset":
        assert entry.target == entry.config
    else:
        found = registry.lookup(entry.role, entry.kind)
        assert callable(found) and registry.kind_of(entry.role, found) == entry.kind
    assert not entry.config or (ROOT / entry.config).is_file()


def test_no_kind_stands_twice_in_the_table():
    kinds = [(entry.role, entry.kind) for entry in registry.TABLE]
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
    assert {"policy", "engine", "reward", "advantage"} <= asked <= {entry.role for entry in registry.TABLE}
