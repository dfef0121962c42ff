"""What a config names as `package.module:Name` and is no component of its role; sizes that no machine holds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from grpo_mm import registry
from grpo_mm.config.run_config import read
from grpo_mm.config.sizes import check_sizes
from grpo_mm.config.typed_yaml import component
from grpo_mm.errors import ConfigError
from grpo_mm.registry import Role

OWN = """
from dataclasses import dataclass
class Needs:
    def __init__(self, a): pass
class Raises:
    def __init__(self): raise RuntimeError("no " * 9999)
class Leaves:
    def __init__(self): raise SystemExit(3)
@dataclass
class Late:
    x: int = 1
    def __post_init__(self): self.y = {}["gone"]
@dataclass
class Unknown:
    x: "Nowhere" = 1
class Nothing: pass
def function(*a): return 0
number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    for name, text in {"own_parts": OWN, "own_raises": "1 / 0", "own_leaves": "import sys; sys.exit(0)", "own_syntax": "def (",
                       "own_import": "import nowhere_at_all"}.items():  # fmt: skip
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    "kind",
    [
        ":x", "..x:y", "x:", ":", "a b:c", "own_parts:", "own_parts:absent", "own_parts:Needs", "own_parts:Raises", "own_parts:Leaves",
        "own_parts:Late", "own_parts:Unknown", "own_parts:Nothing", "own_parts:number", "own_raises:x", "own_leaves:x", "own_syntax:x",
        "own_import:x", "x" * 5000, f"{'x' * 5000}:y", "x\x00:y", "os:path", "grpo_mm.objectives:Nothing", "own_parts:Nothing.x", "\x1b[2J:x",
    ],
)  # fmt: skip
def test_what_cannot_be_a_reward_is_refused_in_a_line(own, kind):
    with pytest.raises(ConfigError) as caught:
        component(Role("reward"), kind, path="rewards.r.use")
    assert len(str(caught.value)) < 2500 and not {"\x1b", "\0"} & set(str(caught.value))


@pytest.mark.parametrize(
    "role", ["engine", "policy", "objective", "prompts", "strategy", "sketch", "benchmark", "tree", "noise"]
)
def test_a_function_plays_no_role_that_asks_for_more(own, role):
    with pytest.raises(ConfigError, match=role):
        component(Role(role), "own_parts:function", path="x")


@pytest.mark.parametrize("role", sorted({entry.role for entry in registry.table()} - {"preset"}))
def test_a_listed_component_of_another_role_is_named(role):
    other = (
        "grpo_mm.objectives.clipped_ratio:ClippedRatio"
        if role != "objective"
        else "grpo_mm.advantages.baselines.group_norm:GroupNorm"
    )
    with pytest.raises(ConfigError, match="is a component of the role"):
        component(Role(role), other, path="x")


def test_every_listed_component_has_what_its_role_needs():
    for entry in registry.table():
        if entry.role == "preset":
            continue
        target = registry.load(entry.target)
        absent = [
            n for n in registry.NEEDED.get(entry.role, ("__call__",)) if n != "__call__" and not hasattr(target, n)
        ]
        fields = set(getattr(target, "__dataclass_fields__", ()))
        assert not set(absent) - fields, entry


def test_code_that_only_a_run_folder_names_is_not_imported(own):
    with registry.only_known("runs/x"):
        component(Role("objective"), "clipped_ratio", path="x")
        for role, value in (
            ("reward", "own_raises:x"),
            ("reward", {"kind": "function", "path": "own_raises:x"}),
            ("sketch", "os:getcwd"),
        ):
            with pytest.raises(ConfigError, match="add --trust"):
                component(Role(role), value, path="x")
    with registry.only_known("runs/x", named=["rewards.r.use=own_parts:function"]):
        component(Role("reward"), "own_parts:function", path="x")


@pytest.mark.parametrize(
    "text",
    [
        "group_size=99999999999", "steps=1e30", "steps=99999999999", "prompts_per_step=100000000", "engine.steps=1000000",
        "policy.height=100000000", "policy.micro_batch=100000000", "optim.lr=1e39", "updates.passes=1000000", "threads=1000000",
        "evaluation.show=10000000000", "policy.lora.rank=10000000", "seed=1e40", f"name={'é' * 100}{'é'}", f"name={'🙂' * 60}",
    ],
)  # fmt: skip
def test_a_size_that_no_machine_holds_is_refused_first(text):
    with pytest.raises(ConfigError):
        read("configs/quickstart/flow.yaml", [text]).check_settings()


def test_the_published_sizes_are_within_the_bounds():
    config = read("configs/quickstart/flow.yaml")
    check_sizes(config)
    check_sizes(replace(config, name="é" * 100))


@pytest.mark.parametrize(
    "target", ["__main__:red", "__main__:<lambda>", "own_parts:made.<locals>.inside", "nb:<lambda>.<locals>.<lambda>"]
)
def test_what_was_handed_over_in_python_is_said_to_be_lost(target):
    with pytest.raises(
        ConfigError, match=r"was handed over in Python, by a script or a notebook.*name it anew, such as my_rewards:"
    ):
        registry.load(target)


@pytest.mark.parametrize(("key", "wanted"), [("inhert", "Did you mean 'inherit'"), ("inherits", "Did you mean 'inherit'"),
                                             ("extends", "here it is inherit"), ("_base_", "here it is inherit")])  # fmt: skip
def test_the_one_key_that_is_no_setting_is_found_too(key, wanted):
    with pytest.raises(ConfigError, match=wanted):
        read({key: "quickstart/flow.yaml"})
