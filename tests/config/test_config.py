"""YAML to typed objects and back, and everything that is refused before a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
import yaml

from grpo_mm import registry
from grpo_mm.advantages import Clamp, GroupNorm, KeepExtremes, WeightedSum
from grpo_mm.config.run_config import RunConfig, Scorer, Source, Updates, differences, plain, read
from grpo_mm.config.typed_yaml import Role, build, convert, dump, merge, override, read_yaml
from grpo_mm.errors import ConfigError
from grpo_mm.looking.watch import Watched
from grpo_mm.objectives import ClippedRatio, Kl, RatioNorm
from grpo_mm.weights.snapshots import Ema

CONFIGS = Path(__file__).parents[2] / "configs"


@dataclass(frozen=True)
class Optimiser:
    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["constant", "linear"] = "constant"


@dataclass(frozen=True)
class Settings:
    steps: int
    optim: Optimiser = field(default_factory=Optimiser)
    ema: Optimiser | None = None
    stages: tuple[Annotated[Any, Role("advantage")], ...] = ()
    kernel: Annotated[Any, Role("sampler")] = "ode"
    parts: dict[str, Optimiser] = field(default_factory=dict)
    sources: tuple[str, ...] | None = None
    flag: bool = False


def refusal(call, *args, **kwargs) -> str:
    """The message of the ConfigError that the call ends in: one paragraph."""
    with pytest.raises(ConfigError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def write(tmp_path):
    def write_file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write_file


# ── files ──


def test_a_file_inherits_from_one_beside_it_key_by_key(write):
    write("base.yaml", "steps: 10\nengine: {kind: flow, steps: 8, noise: {kind: all, level: 0.7}}\nlist: [1, 2]\n")
    child = write("child.yaml", "inherit: base.yaml\nengine: {noise: {level: 0.5}}\nlist: [3]\nname: child\n")
    assert read_yaml(child) == {
        "steps": 10,
        "name": "child",
        "list": [3],
        "engine": {"kind": "flow", "steps": 8, "noise": {"kind": "all", "level": 0.5}},
    }


def test_an_empty_mapping_takes_away_what_the_parent_says(write):
    write("base.yaml", "watch: {a: {use: x}}\nengine: {noise: {level: 1, kind: window}}\nsteps: 3\n")
    child = write("child.yaml", "inherit: base.yaml\nwatch: {}\nengine: {noise: {}}\n")
    assert read_yaml(child) == {"watch": {}, "engine": {"noise": {}}, "steps": 3}
    assert read_yaml(child, ["watch={b: {use: y}}"])["watch"] == {"b": {"use": "y"}}


def test_a_second_inheritance_is_refused_with_both_names(write):
    write("a.yaml", "steps: 1\n")
    write("b.yaml", "inherit: a.yaml\n")
    message = refusal(read_yaml, write("c.yaml", "inherit: b.yaml\n"))
    assert "inherits b.yaml, which itself inherits 'a.yaml'" in message and "One level is allowed" in message


def test_a_missing_file_names_those_that_are_there(write):
    there = write("flow.yaml", "steps: 1\n")
    assert str(there) in refusal(read_yaml, there.with_name("flo.yaml"))
    assert "no config file" in refusal(read_yaml, there.parent / "nowhere" / "x.yaml")
    assert "base.yaml" in refusal(read_yaml, write("child.yaml", "inherit: base.yaml\n"))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a: [1\n", "not valid YAML"),
        ("- 1\n", "holds list"),
        ("", "holds NoneType"),
        ("steps: 1\nsteps: 2\n", "the key 'steps' stands twice"),
        ("engine: {steps: 1, steps: 1}\n", "the key 'steps' stands twice"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(write, text, wanted):
    message = refusal(read_yaml, write("x.yaml", text))
    assert wanted in message and "x.yaml" in message


def test_another_kind_replaces_all_settings_of_the_one_below():
    below = {"noise": {"kind": "window", "size": 3}, "engine": {"kind": "flow", "steps": 8}}
    above = {"noise": {"kind": "all", "level": 0.7}, "engine": {"kind": "flow", "eval_steps": 20}}
    assert merge(below, above) == {
        "noise": {"kind": "all", "level": 0.7},
        "engine": {"kind": "flow", "steps": 8, "eval_steps": 20},
    }


def test_merging_changes_neither_side():
    below, above = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merge(below, above) == {"a": {"b": 1, "c": 2}}
    assert below == {"a": {"b": 1}} and above == {"a": {"c": 2}}


# ── overrides ──


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("steps=7", {"steps": 7}),
        (
            "optim.lr=1e-5",
            {"optim": {"lr": "1e-5", "betas": [0.9, 0.99]}},
        ),  # YAML 1.1 reads a text; the field makes it 1e-5
        ("optim.betas.1=0.5", {"optim": {"lr": 0.1, "betas": [0.9, 0.5]}}),
        ("stages.0.eps=0", {"stages": [{"kind": "group_norm", "eps": 0}]}),
        ("new.deep.key=[1, 2]", {"new": {"deep": {"key": [1, 2]}}}),
        ("optim={lr: 3}", {"optim": {"lr": 3, "betas": [0.9, 0.99]}}),
        ("ema=null", {"ema": None}),
        ("name=a=b", {"name": "a=b"}),
        ("name=", {"name": ""}),
    ],
)
def test_an_override_sets_one_value(text, wanted):
    mapping = {"steps": 1, "optim": {"lr": 0.1, "betas": [0.9, 0.99]}, "stages": [{"kind": "group_norm"}]}
    assert override(mapping, text) == mapping | wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("steps", "not of the form key.sub=value"),
        ("=3", "not of the form key.sub=value"),
        ("steps=[1", "not valid YAML"),
        ("name.first=x", "name is 'run', a plain value; set name itself"),
        ("steps.x.y=1", "steps is 1 and has no keys; set steps itself"),
        ("ema.decay=1", "ema is None and has no keys; set ema itself"),
        ("stages.2.eps=1", "'2' is no index of a list with 1 entries"),
        ("stages.last=1", "'last' is no index of a list with 1 entries"),
    ],
)
def test_an_override_that_has_no_place_is_refused(text, wanted):
    message = refusal(override, {"name": "run", "steps": 1, "ema": None, "stages": [{"kind": "clamp"}]}, text)
    assert wanted in message and repr(text) in message


def test_overrides_lie_above_the_file(write):
    path = write("x.yaml", "steps: 1\noptim: {lr: 0.5}\n")
    assert build(Settings, read_yaml(path, ["optim.lr=1e-5", "steps=3"])) == Settings(steps=3, optim=Optimiser(lr=1e-5))


# ── building ──


def test_what_is_left_out_is_the_default():
    assert build(Settings, {"steps": 3}) == Settings(steps=3)


def test_nested_settings_lists_and_components_are_built():
    found = build(
        Settings,
        {
            "steps": 3,
            "optim": {"betas": [0, 1]},
            "ema": {},
            "stages": ["weighted_sum", {"kind": "group_norm", "ddof": 1}],
            "kernel": "cps",
            "parts": {"a": {"lr": 2}},
            "sources": ["x"],
        },
    )
    assert found.optim.betas == (0.0, 1.0) and found.ema == Optimiser() and found.parts == {"a": Optimiser(lr=2)}
    assert found.stages == (WeightedSum(), GroupNorm(ddof=1)) and found.sources == ("x",)
    assert found.kernel is registry.lookup("sampler", "cps")


def test_a_single_component_may_stand_for_a_list_of_one():
    assert build(Settings, {"steps": 1, "stages": {"kind": "clamp", "limit": 2}}).stages == (Clamp(2),)


@pytest.mark.parametrize(
    ("mapping", "wanted"),
    [
        ({}, ["the key 'steps' is missing"]),
        ({"steps": 1, "optm": {}}, ["unknown key 'optm'", "Did you mean 'optim'?", "Known keys: steps, optim"]),
        (
            {"steps": 1, "optim": {"learning_rate": 1}},
            ["optim: unknown key 'learning_rate'", "Known keys: lr, betas, schedule"],
        ),
        ({"steps": "many"}, ["steps: found 'many'", "valid integer"]),
        ({"steps": 1.5}, ["steps: found 1.5", "integer"]),
        ({"steps": 1, "flag": "perhaps"}, ["flag: found 'perhaps'", "boolean"]),
        ({"steps": 1, "optim": {"schedule": "cosine"}}, ["optim.schedule: found 'cosine'", "'constant' or 'linear'"]),
        ({"steps": 1, "optim": {"betas": [1]}}, ["optim.betas: found [1]"]),
        ({"steps": 1, "optim": 3}, ["optim: found 3, wanted a mapping with the keys lr, betas, schedule"]),
        ({"steps": 1, "parts": [1]}, ["parts: found [1], wanted a mapping of names"]),
        ({"steps": 1, "parts": {"a": {"lr": "x"}}}, ["parts.a.lr: found 'x'"]),
        (
            {"steps": 1, "stages": [{"kind": "groupnorm"}]},
            ["stages.0: unknown advantage kind 'groupnorm'", "'group_norm'?"],
        ),
        (
            {"steps": 1, "stages": [{"eps": 1}]},
            ["stages.0: the key 'kind' is missing", "there are: group_norm, "],
        ),
        ({"steps": 1, "stages": [3]}, ["stages.0: found 3, wanted a mapping with `kind` (advantage)"]),
        ({"steps": 1, "stages": [{"kind": 3}]}, ["stages.0: kind is 3, wanted a name (advantage)"]),
        (
            {"steps": 1, "stages": ["clamp", {"kind": "clamp", "max": 1}]},
            ["stages.1: unknown key 'max'", "Known keys: limit"],
        ),
        ({"steps": 1, "stages": {"kind": "keep_extremes", "keep": 3}}, ["stages.0: keep = 3", "even number"]),
        ({"steps": 1, "kernel": {"kind": "cps", "eta": 1}}, ["kernel: cps takes no settings, found eta"]),
        ([1], ["the config: found [1], wanted a mapping"]),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place_and_what_would_fit(mapping, wanted):
    message = refusal(build, Settings, mapping)
    for text in wanted:
        assert text in message


def test_own_code_is_named_by_its_module(tmp_path, monkeypatch):
    (tmp_path / "own_stages.py").write_text(
        "from dataclasses import dataclass\n\n\n@dataclass(frozen=True)\nclass Halve:\n    times: int = 1\n\n    def __call__(self, table):\n        return table\n\n\n"
        "class Plain:\n    def __call__(self, items, prompts):\n        return [0.0]\n\n\ndef judge(items, prompts):\n    return [0.0]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (stage,) = build(Settings, {"steps": 1, "stages": [{"kind": "own_stages:Halve", "times": 3}]}).stages
    assert type(stage).__name__ == "Halve" and stage.times == 3
    assert dump(stage, role="advantage") == {"kind": "own_stages:Halve", "times": 3}
    judge = convert(Annotated[Any, Role("reward")], "own_stages:judge", path="rewards.judge")
    assert judge(None, None) == [0.0] and dump(judge, role="reward") == "own_stages:judge"
    plain_object = convert(Annotated[Any, Role("reward")], "own_stages:Plain", path="x")
    assert type(plain_object).__name__ == "Plain" and dump(plain_object, role="reward") == "own_stages:Plain"
    assert "Did you mean 'Halve'?" in refusal(registry.load, "own_stages:Halv")
    assert "no module named 'own_stagez'" in refusal(registry.load, "own_stagez:Halve")


def test_an_import_that_fails_inside_own_code_shows_itself(tmp_path, monkeypatch):
    (tmp_path / "own_broken.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    message = refusal(registry.load, "own_broken:Thing")
    assert "No module named 'not_installed_anywhere'" in message and "own_broken.py, line 1" in message


def test_writing_out_and_reading_in_is_a_fixed_point():
    settings = Settings(
        steps=3,
        optim=Optimiser(lr=1e-5, betas=(0.5, 0.6)),
        ema=Optimiser(),
        sources=("x", "y"),
        stages=(GroupNorm(ddof=1), KeepExtremes(4), Clamp()),
        kernel=registry.lookup("sampler", "cps"),
        parts={"a": Optimiser()},
    )
    written = dump(settings)
    assert build(Settings, yaml.safe_load(yaml.safe_dump(written))) == settings
    assert dump(build(Settings, written)) == written
    assert written["stages"][0]["kind"] == "group_norm" and written["stages"][0]["eps"] == 1e-4  # defaults included
    assert written["kernel"] == "cps"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("[!a]*/*.yaml")), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_config_survives_being_written_out(path):
    own = yaml.safe_load(path.read_text())
    parent = yaml.safe_load((path.parent / own["inherit"]).read_text()) if "inherit" in own else {}
    data = parent.get("data", {}) | own.get("data", {})
    written = plain(read(path, [f"data.{name}=somewhere.json" for name, value in data.items() if value is None]))
    again = build(RunConfig, yaml.safe_load(yaml.safe_dump(written)))
    assert plain(again) == written and not differences(written, plain(again))


def test_differences_name_the_keys():
    a = {"steps": 1, "optim": {"lr": 1, "eps": 2}}
    assert differences(a, {"steps": 1, "optim": {"lr": 3, "eps": 2}, "name": "x"}) == [
        "name: None there, 'x' here",
        "optim.lr: 1 there, 3 here",
    ]


# ── contradictions of a run ──


@dataclass(frozen=True)
class FakePolicy:
    provides: frozenset[str] = frozenset({"logprobs", "std"})

    def check(self) -> None:
        pass


@dataclass(frozen=True)
class FakeEngine:
    provides = frozenset({"logprobs", "std", "dt", "ref_logprobs", "mean_shift_old", "mean_shift_ref"})

    def actions(self) -> int:
        return 3

    def check(self, policy, *, group_size, training_steps) -> None:
        pass

    def pictures(self, group_size) -> int:
        return group_size

    def table_columns(self, group_size) -> dict[str, torch.Tensor]:
        sample = torch.arange(group_size)
        return {"sample": sample, "action": torch.full_like(sample, -1), "tag": torch.zeros_like(sample)}


@dataclass(frozen=True)
class FakePrompts:
    def load(self):
        return ()


def judge(items, prompts):
    return [0.0] * len(prompts)


GOOD = RunConfig(
    name="run",
    policy=FakePolicy(),
    engine=FakeEngine(),
    prompts={"shapes": Source(FakePrompts())},
    rewards={"judge": Scorer(judge)},
    steps=2,
    prompts_per_step=4,
    group_size=4,
)


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_a_run_that_can_run_is_not_refused(world):
    GOOD.check(world=world)
    replace(GOOD, updates=Updates("action", 3), device="cpu").check(world=world)


two = {"judge": Scorer(judge), "other": Scorer(judge, weight=0.5)}

REFUSED = {
    "empty name": (dict(name=""), "name is ''"),
    "name with a folder": (dict(name="a/b"), "name is 'a/b'"),
    "no steps": (dict(steps=0), "steps = 0; wanted at least 1"),
    "group of one": (dict(group_size=1), "group_size = 1, but the advantage .* needs at least 2"),
    "no updates": (dict(updates=Updates("group", 0)), "updates.count = 0"),
    "prompts do not divide": (
        dict(prompts_per_step=5, updates=Updates("group", 2)),
        "prompts_per_step = 5 does not divide into updates.count = 2 parts.* multiple of 2, or updates.by=action",
    ),
    "more updates than actions": (
        dict(updates=Updates("action", 4)),
        "updates.count = 4 by action, but a row trains 3 actions. Use at most 3",
    ),
    "two components left": (
        dict(rewards=two, advantage=(GroupNorm(),)),
        r"leave 2 components \(judge, other\).*weighted_sum",
    ),
    "extremes of two": (
        dict(rewards=two, advantage=(GroupNorm(), KeepExtremes(2))),
        "2 components.*weighted_sum.* before it",
    ),
    "unknown column": (
        dict(advantage=(GroupNorm(key=("prompt", "stratum")),)),
        "compares by .*'stratum'.* no column 'stratum'; it has",
    ),
    "value not provided": (
        dict(objective=(RatioNorm(),)),
        "needs dt, gaussian_logprobs, mean_shift_old, which the policy does not provide; with this engine it provides logprobs, std",
    ),
    "no reference": (dict(objective=(ClippedRatio(), Kl())), "needs ref_logprobs, which the policy does not provide"),
    "no prompts": (dict(prompts={}), "at least one entry each under `prompts`"),
    "no rewards": (dict(rewards={}), "each under `prompts`, `rewards`"),
    "rewards of weight 0": (dict(rewards={"judge": Scorer(judge, weight=0)}), "every reward has weight 0; .*`watch`"),
    "unknown source": (
        dict(rewards={"judge": Scorer(judge, sources=("shape",))}),
        "reward 'judge' applies to source 'shape'; there are: shapes",
    ),
    "source without a reward": (
        dict(
            prompts=GOOD.prompts | {"words": Source(FakePrompts())},
            rewards={"judge": Scorer(judge, sources=("shapes",))},
        ),
        "no reward applies to the prompts of source 'words'",
    ),
    "watched and optimised": (dict(watch={"judge": Watched(judge)}), "'judge'.* under both `rewards` and `watch`"),
    "sources of weight 0": (dict(prompts={"shapes": Source(FakePrompts(), weight=0)}), "weights of the prompt sources"),
    "no objective": (dict(objective=()), "objective"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_contradiction_stops_before_any_model_is_loaded(name):
    change, wanted = REFUSED[name]
    with pytest.raises(ConfigError, match=wanted) as caught:
        replace(GOOD, **change).check()
    assert "\n" not in str(caught.value)


def test_rows_that_do_not_divide_over_the_processes_are_refused_with_the_numbers():
    config = replace(GOOD, prompts_per_step=2, group_size=3, updates=Updates("group", 2))
    config.check(world=3)
    wanted = "1 prompts × group_size 3 = 3 rows per update do not divide over 2 processes.* a multiple of 4"
    with pytest.raises(ConfigError, match=wanted):
        config.check(world=2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_cuda_is_refused_where_there_is_none():
    with pytest.raises(
        ConfigError, match="device is 'cuda', but torch sees no CUDA device. Use device=cpu or device=auto"
    ):
        replace(GOOD, device="cuda").check()


@pytest.mark.parametrize("settings", [dict(decay=1.0), dict(decay=-0.1), dict(every_updates=0)], ids=str)
def test_averages_that_never_change_or_never_come_are_refused(settings):
    assert "wanted a decay in [0, 1), at least 1" in refusal(build, Ema, settings)


def test_a_reference_is_kept_only_if_a_term_reads_it():
    assert not GOOD.needs_reference
    assert replace(GOOD, objective=(ClippedRatio(), Kl("gaussian"))).needs_reference


def test_a_file_with_a_contradiction_is_named(write):
    assert "run.yaml: the config: unknown key 'stepz'" in refusal(read, write("run.yaml", "stepz: 3\n"))


def test_a_users_paths_stand_in_one_place(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        'data: {folder: here, count: 3}\nprompts: {a: {use: {path: "${data.folder}/x.json", limit: "${data.count}"}}}\n'
    )
    assert read_yaml(path)["prompts"]["a"]["use"] == {"path": "here/x.json", "limit": 3}
    assert read_yaml(path, ["data.folder=/there"])["prompts"]["a"]["use"]["path"] == "/there/x.json"


def test_a_path_that_was_not_given_is_asked_for(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text('data: {videos: null, other: 1}\nname: "${data.videos}"\n')
    assert "set data.videos=… (there are: other, videos)" in refusal(read_yaml, path)
    path.write_text('name: "${data.videos}"\n')
    assert "no `data` at all" in refusal(read_yaml, path)
