"""Scorers in environments of their own: made once, asked over a pipe, and gone with the run."""

import logging
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from wheels import wheel, without_an_index

from grpo_mm.config.run_config import read
from grpo_mm.environments import building
from grpo_mm.environments.requirements import requirements, shipped
from grpo_mm.environments.words import line
from grpo_mm.errors import ConfigError, UserError
from grpo_mm.rewards.environments.components import as_json, from_json
from grpo_mm.rewards.images.image_quality import ImageQuality
from grpo_mm.rewards.judges.comparing import PointwiseJudge
from grpo_mm.rewards.judges.win_rate import WinRate
from grpo_mm.rollout.function_reward import FunctionReward
from grpo_mm.rollout.scoring import Scorer, Scoring, check_isolated
from grpo_mm.types import Prompt

MODULE = """
import time
from dataclasses import dataclass

def scores(texts, metadata):
    import sys, tinyscore
    assert "pytest" not in sys.modules
    return {"score": [float(len(text) + m["span"][0]) for text, m in zip(texts, metadata)], "version": [tinyscore.VERSION] * len(texts)}

def odd_ones(texts):
    if any(text == "bad" for text in texts):
        raise ZeroDivisionError("a bad text")
    return [float(len(text)) for text in texts]

def sleeps(texts):
    time.sleep(60)

@dataclass
class Needs:
    package: str
    def check(self):
        import importlib.util
        from grpo_mm.errors import ConfigError
        if importlib.util.find_spec(self.package) is None:
            raise ConfigError(f"{self.package} is not installed")
    def __call__(self, items, prompts):
        return [float(item.float().mean()) for item in items]
"""
SPAN = {"span": (2, 3)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A cache, wheels and a user's module, without a way to any index."""
    folder = tmp_path_factory.mktemp("environments")
    (folder / "wheels").mkdir()
    for version in ("1.5", "2.5"):
        wheel(folder / "wheels", version)
    (folder / "scorer_of_mine.py").write_text(textwrap.dedent(MODULE))
    (folder / "mine.txt").write_text("# mine\nTinyScore == 1.5  # not the newest\n")
    with pytest.MonkeyPatch.context() as patch:
        without_an_index(patch, folder)
        patch.syspath_prepend(str(folder))
        yield folder


def scorer(place, use, **settings):
    use = FunctionReward(f"scorer_of_mine:{use}") if isinstance(use, str) else use
    return Scorer(use, environment=str(place / "mine.txt"), **settings)


@pytest.fixture
def scoring(place):
    made = []

    def make(**scorers):
        made.append(Scoring(scorers, torch.device("cpu")))
        return made[-1]

    yield make
    for one in made:
        for isolated in one._isolated.values():
            isolated.end()


def test_it_scores_with_the_version_that_its_file_pins(place, scoring, caplog):
    one = scoring(a=scorer(place, "scores"), b=scorer(place, "odd_ones"))
    with caplog.at_level(logging.INFO):
        one.load(leave=False)
    assert caplog.text.count("making the environment mine") == 1  # two rewards, one environment
    prompts = [Prompt(f"p{i}", "x", target=SPAN) for i in range(3)]
    found = one(["a", "half \ud800", "ccc"], prompts)
    assert found["a"]["version"].nan_to_num(-1).tolist() == [1.5, -1, 1.5]
    assert found["a"]["score"].nan_to_num(-1).tolist() == [3, -1, 5]  # what cannot be sent fails alone
    assert "holds half of a character and cannot be sent" in one.first_error["a"]
    scores, errors = one.ask("b", ["aa", "bad", "b"], prompts)
    assert scores["score"].nan_to_num(-1).tolist() == [2, -1, 1] and "ZeroDivisionError: a bad text" in errors[0]
    assert "is there" in line(requirements(str(place / "mine.txt")))


def test_what_cannot_be_made_there_is_refused_when_it_is_loaded(place, scoring):
    from scorer_of_mine import Needs

    one = scoring(a=scorer(place, Needs("no_such_package_at_all")))
    with pytest.raises(UserError, match="reward 'a'.*no_such_package_at_all is not installed"):
        one.load(leave=False)


def test_scores_of_our_own_rewards_are_the_same_there(place, scoring):
    pictures = torch.randint(0, 256, (6, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    prompts = [Prompt(f"g{i % 2}", f"group {i % 2}") for i in range(6)]
    group = torch.tensor([0, 1, 0, 1, 0, 1])
    win = WinRate(judge=PointwiseJudge(ImageQuality()))
    here = Scoring({"win": Scorer(win)}, torch.device("cpu"))(pictures, prompts, group)["win"]
    there = scoring(win=scorer(place, win))(pictures, prompts, group)["win"]
    assert here.keys() == there.keys() and all(torch.equal(here[part], there[part]) for part in here)


def test_one_that_is_too_slow_is_killed(place, scoring):
    one = scoring(a=scorer(place, "sleeps", timeout_seconds=0.5))
    one.load(leave=False)
    scores, errors = one.ask("a", ["x"], [Prompt("p", "x")])
    assert scores["score"].isnan().all() and errors == [
        "no answer for 1 outputs within 0.5 seconds: its process was killed"
    ]
    assert one._isolated["a"]._process is None


def test_it_ends_with_the_run_also_when_that_is_killed(place):
    code = f"""
import sys, torch
sys.path.insert(0, {str(place)!r})
from grpo_mm.rollout.function_reward import FunctionReward
from grpo_mm.rollout.scoring import Scorer, Scoring
one = Scoring({{"a": Scorer(FunctionReward("scorer_of_mine:odd_ones"), environment={str(place / "mine.txt")!r})}}, torch.device("cpu"))
one.load(leave=False)
print(one._isolated["a"]._process.popen.pid, flush=True)
sys.stdin.read()
"""
    run = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        child = int(run.stdout.readline())
        os.kill(child, 0)
        run.send_signal(signal.SIGKILL)
        run.wait(20)
        until = time.monotonic() + 20
        while _runs(child) and time.monotonic() < until:
            time.sleep(0.05)
        assert not _runs(child)
    finally:
        run.kill()
        run.wait(20)


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_changed_file_makes_a_new_one_and_a_half_made_one_is_made_again(place):
    file = place / "changing.txt"
    file.write_text("tinyscore==1.5\n")
    first = building.made(requirements(str(file)))
    file.write_text("tinyscore==2.5\n")
    second = building.made(requirements(str(file)))
    assert first != second

    def version(python):
        return subprocess.check_output([python, "-c", "import tinyscore; print(tinyscore.VERSION)"], text=True).strip()

    assert (version(first), version(second)) == ("1.5", "2.5")
    (second.parents[1] / building.READY).unlink()
    assert not building.is_ready(requirements(str(file)))
    assert building.made(requirements(str(file))) == second and building.is_ready(requirements(str(file)))


def test_two_that_ask_at_once_make_it_once(place):
    (place / "shared.txt").write_text("tinyscore==2.5\n")
    code = f"""
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
from grpo_mm.environments.building import made
from grpo_mm.environments.requirements import requirements
print(made(requirements({str(place / "shared.txt")!r})))
"""
    ranks = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks)
    assert sum("making the environment" in one for one in said) == 1
    assert len({one.splitlines()[-1] for one in said}) == 1


@pytest.mark.parametrize(
    ("pins", "message"),
    [
        ("tinyscore==9.9\n", r"environment \w+ \(.*pip cannot install it \(exit code 1\): ERROR: .*tinyscore==9.9.*`grpo-mm environment"),
        ("tinyscore\n", "line 1: 'tinyscore'; wanted name==version"),
        ("tinyscore>=1\n", "wanted name==version"),
        ("--pre\n", "wanted name==version"),
        ("a @ https://x.y/a.whl\n", "wanted name==version"),
        ("# nothing\n", "names no package"),
        ("a==1\nA==2\n", "names a twice"),
        ("a" * 70_000, "has more than 65536 bytes"),
    ],
)  # fmt: skip
def test_what_no_environment_can_be_made_of_is_one_sentence(place, pins, message):
    file = place / "wrong.txt"
    file.write_text(pins)
    with pytest.raises(UserError, match=message) as error:
        building.made(requirements(str(file)))
    assert "\n" not in str(error.value)


def test_one_that_pins_torch_stands_alone_and_lacks_what_it_does_not_name(place, scoring):
    """Without torch in reach: the sentence of the process there, not a traceback."""
    file = place / "alone.txt"
    file.write_text("tinyscore==1.5\ntorch==0.0.1\n")
    assert requirements(str(file)).stands_alone and not requirements(str(place / "mine.txt")).stands_alone
    wanted = requirements(str(file))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(building.place_of(wanted))], check=True)
    import json

    (building.place_of(wanted) / building.READY).write_text(json.dumps(building._mark(wanted)))
    one = scoring(a=Scorer(FunctionReward("scorer_of_mine:odd_ones"), environment=str(file)))
    with pytest.raises(UserError, match="reward 'a'.*its environment lacks torch, which serving a reward needs"):
        one.load(leave=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"environment": "hpsv33"}, "'hpsv33' does not ship with the package; there are .*hpsv3"),
        ({"environment": "./none.txt"}, "no such file"),
    ],
)
def test_an_environment_that_there_is_not(settings, message):
    with pytest.raises(ConfigError, match=message):
        check_isolated({"a": Scorer(ImageQuality(), **settings)})


def test_what_only_this_process_has_cannot_go_there(place):
    with pytest.raises(ConfigError, match="reward 'a'.*cannot make .* again"):
        check_isolated({"a": scorer(place, WinRate(judge=object()))})
    with pytest.raises(ConfigError, match="defined in the script that was started or inside a function"):
        check_isolated({"a": scorer(place, WinRate(judge=lambda pairs: pairs))})


def test_extras_of_a_package_are_installed_too(tmp_path):
    plain, more = tmp_path / "a.txt", tmp_path / "b/a.txt"
    more.parent.mkdir()
    plain.write_text("some_package==1.0\nother==2\n")
    more.write_text("some_package[fast, small]==1.0  # why\nother==2\n")
    found = requirements(str(more))
    assert found.lines == ["some-package[fast, small]==1.0", "other==2"]
    assert found.pins == requirements(str(plain)).pins and found.key != requirements(str(plain)).key


def test_settings_come_back_as_they_went():
    for use in (WinRate(judge=PointwiseJudge(ImageQuality())), FunctionReward("a:b", timeout_seconds=2.0)):
        assert from_json(as_json("a", use)) == use


def test_the_files_that_ship_can_be_read():
    assert {"hpsv3", "video_align", "edit_reward", "clip", "ocr"} <= set(shipped())
    for name in shipped():
        assert (
            requirements(name).pins
            and "is not there yet" in line(requirements(name))
            or "is there" in line(requirements(name))
        )


def test_show_says_which_reward_uses_which(place, tmp_path):
    from grpo_mm.tools.show import shown_lines

    config = "configs/quickstart/flow.yaml"
    name = next(iter(read(config).rewards))
    lines = list(shown_lines(config, [f"rewards.{name}.environment={place / 'mine.txt'}"], memory=False))
    assert any(text.startswith(f"{name} runs in the environment mine: tinyscore 1.5") for text in lines)
