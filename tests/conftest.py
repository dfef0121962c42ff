"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
if os.environ.get("ATEN_CPU_CAPABILITY") in ("avx2", "default"):
    # oneDNN asks the processor and not this setting, and its AVX-512 kernels want what torch has then left out.
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run in parallel, and tiny tensors gain nothing from threads
settings.register_profile("the same everywhere", derandomize=True, database=None, deadline=None)
settings.load_profile("the same everywhere")
ROOT = Path(__file__).parents[1]
ROOMS = [ROOT / "tests", *sorted(p for p in (ROOT / "tests").iterdir() if p.is_dir() and p.name != "__pycache__")]
sys.path[:0] = map(str, ROOMS)  # for helpers, and for tests that share theirs


LONGEST = (
    "test_published_configs", "test_exactness", "test_branching", "test_published_spatial", "test_resume", "test_forward_process",
    "test_published_video", "test_published_spatial_runs", "test_zoo_vision_language", "test_prefix_sharing", "test_cli",
)  # fmt: skip
"""Files that take longest come first, so that no process is left with one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(Path(item.path).stem, len(rank)))


@pytest.fixture(scope="session", autouse=True)
def own_settings(tmp_path_factory) -> None:
    """The key that signs run folders is made here and not in the home of whoever runs the tests."""
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("settings"))


@pytest.fixture(autouse=True)
def as_found() -> Iterator[None]:
    """A test that leaves another default dtype, device or folder fails itself, and not those that come after it."""
    torch = sys.modules.get("torch")
    folder, dtype = Path.cwd(), torch.get_default_dtype() if torch else None
    yield
    torch = sys.modules.get("torch")
    left = [] if torch is None or torch.get_default_dtype() == (dtype or torch.float32) else [torch.get_default_dtype()]
    if left:
        torch.set_default_dtype(dtype or torch.float32)
    if Path.cwd() != folder:
        left.append(Path.cwd())
        os.chdir(folder)
    if torch is not None and torch.get_default_device().type != "cpu":
        left.append(torch.get_default_device())
        torch.set_default_device(None)
    assert not left, f"left behind: {left}"


@pytest.fixture(scope="session")
def tiny_sd3(tmp_path_factory) -> str:
    """A random checkpoint in SD3.5 format."""
    from tiny_models import build_sd3

    return str(build_sd3(tmp_path_factory.mktemp("models") / "sd3"))


@pytest.fixture(scope="session")
def tiny_flux(tmp_path_factory) -> str:
    """A random checkpoint in FLUX.1-dev format."""
    from tiny_models import build_flux

    return str(build_flux(tmp_path_factory.mktemp("models") / "flux"))


@pytest.fixture(scope="session")
def checkpoints(tiny_sd3, tiny_flux, tmp_path_factory) -> dict[str, str]:
    """Kind of flow model -> a random checkpoint in its format."""
    from tiny_families import BUILDERS

    folder = tmp_path_factory.mktemp("families")
    return {"sd3": tiny_sd3, "flux": tiny_flux} | {kind: str(build(folder / kind)) for kind, build in BUILDERS.items()}


@pytest.fixture
def by_number(monkeypatch):
    """Tokens follow from the random numbers alone: at the edge of two probabilities rounding, which is another in another
    batch and on another machine, may move a draw. What the network makes of the tokens is compared within rounding."""

    import torch

    from grpo_mm.pipelines.vlm.sampling import generation

    def pick(logprob_nV, uniform_n, greedy_n, *, top_p):
        allowed = torch.nonzero(~(logprob_nV == -torch.inf).any(0)).flatten()
        return allowed[(uniform_n * len(allowed)).long()]

    monkeypatch.setattr(generation, "pick", pick)
