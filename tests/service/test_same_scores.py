"""A served reward gives what the same reward gives here, bit for bit."""

import pytest
import torch
from PIL import Image
from served import Served

from grpo_mm.config import typed_yaml
from grpo_mm.errors import ConfigError
from grpo_mm.registry import lookup
from grpo_mm.rewards.images.image_quality import ImageQuality
from grpo_mm.rewards.judges.comparing import PointwiseJudge
from grpo_mm.rewards.judges.win_rate import WinRate
from grpo_mm.rewards.service.remote import Remote
from grpo_mm.rollout.function_reward import FunctionReward
from grpo_mm.rollout.prompt_check import check_prompts
from grpo_mm.rollout.scoring import Scorer, Scoring
from grpo_mm.types import Prompt


def level_of_clip(clips, prompts, metadata):
    return {"score": [float(clip.float().mean()) for clip in clips], "frames": [len(clip) for clip in clips]}


def of_the_prompt(texts, prompts, ids, sources, target, media):
    """Whatever of a prompt is read: exactly what was sent."""
    found = []
    for text, prompt, name, source, one, pictures in zip(texts, prompts, ids, sources, target, media):
        assert type(one["span"]) is tuple and one[3] == "three" and one["nan"] != one["nan"]
        assert one["boxes"].dtype.name == "float32" and pictures[0].getpixel((0, 0)) == (7, 8, 9)
        found.append(len(text) + len(prompt) / 3 + len(name) + len(source) + float(one["boxes"].sum()) + one["span"][0])
    return found


SPAN = {"span": [2.0, 6.5], "spans": [[2.0, 6.5]], "duration": 10.0, "answer": "B", "question_type": "multiple choice"}
TEXTS = [
    "<think>it begins late</think><answer>2.5 to 6.5 seconds</answer>",
    "<think>no</think><answer>B</answer>",
    "from 0 to 3",
    "",
    "<answer>the end\u2028 \U0001f600 Ω</answer>",
    "B",
    "<think>x</think><answer>9 to 12</answer>",
]
TEXT_REWARDS = {
    name: lookup("reward", name)()
    for name in (
        "temporal_iou",
        "tag_format",
        "answer_f1",
        "typed_answer",
        "repetition",
        "response_length",
        "peer_similarity",
    )
}
PICTURE_REWARDS = {
    "image_quality": ImageQuality(),
    "jpeg": lookup("reward", "jpeg")(),
    "shape_world": lookup("reward", "shape_world")(),
    "win_rate": WinRate(judge=PointwiseJudge(ImageQuality())),
}
OTHERS = {
    "clip": FunctionReward("test_same_scores:level_of_clip"),
    "prompt": FunctionReward("test_same_scores:of_the_prompt"),
}


@pytest.fixture(scope="module")
def served():
    one = Served(TEXT_REWARDS | PICTURE_REWARDS | OTHERS)
    yield one
    one.close()


def both(served, name, use, items, prompts, **settings):
    """The scores here, and those from the server."""
    settings |= {"scope": getattr(use, "scope", "output")}
    group = torch.tensor([prompts.index(prompt) for prompt in prompts])
    found = []
    for one in (use, Remote(served.url, name, **settings)):
        scoring = Scoring({name: Scorer(one)}, torch.device("cpu"))
        found.append((scoring(items, prompts, group)[name], scoring.first_error.get(name), scoring.applied(prompts)))
    return found


def same(one, other):
    assert one.keys() == other.keys()
    for part in one:
        assert one[part].dtype == other[part].dtype == torch.float32
        assert torch.equal(one[part].view(torch.int32), other[part].view(torch.int32)), part


def text_prompts():
    made = [
        Prompt("p/0", "when?", target=SPAN, source="own"),
        Prompt("p/1", "which?", target={"answer": "B", "question_type": "multiple choice"}),
        Prompt("p/2", "what?", target=None),
    ]
    return [made[i] for i in (0, 0, 0, 1, 1, 2, 2)]


@pytest.mark.parametrize("batch", [2, None])
@pytest.mark.parametrize("name", TEXT_REWARDS)
def test_texts(served, name, batch):
    (here, error, applied), (there, error_there, applied_there) = both(
        served, name, TEXT_REWARDS[name], TEXTS, text_prompts(), batch=batch
    )
    same(here, there)
    assert (error is None) == (error_there is None) and applied == applied_there


@pytest.mark.parametrize("name", PICTURE_REWARDS)
def test_pictures(served, name):
    pictures = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    target = {"shape": "circle", "color": "red"}
    made = [Prompt("a", "a red circle", target=target), Prompt("b", "a blue square", target=None)]
    prompts = [made[i] for i in (0, 1, 0, 1, 0, 1)]
    (here, error, applied), (there, error_there, applied_there) = both(
        served, name, PICTURE_REWARDS[name], pictures, prompts, batch=3
    )
    same(here, there)
    assert (error is None) == (error_there is None) and applied == applied_there
    assert there["score"].isfinite().any() or name == "shape_world"


@pytest.mark.parametrize("stacked", [True, False])
def test_clips(served, stacked):
    generator = torch.Generator().manual_seed(1)
    clips = [torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8, generator=generator) for _ in range(5)]
    clips = torch.stack(clips) if stacked else [*clips[:4], clips[4][:1]]
    (here, *_), (there, *_) = both(
        served, "clip", OTHERS["clip"], clips, [Prompt(f"c{i}", "x") for i in range(5)], batch=2
    )
    same(here, there)
    assert here["frames"].tolist() == ([2.0] * 5 if stacked else [2, 2, 2, 2, 1])


def test_all_of_a_prompt_arrives(served):
    import numpy as np

    target = {"span": (1.5, 2), 3: "three", "nan": float("nan"), "boxes": np.float32([[0.1, 0.2]]), "$": None}
    picture = Image.new("RGB", (4, 4), (7, 8, 9))
    prompts = [
        Prompt(f"q{i}", "how?", (picture,), ({"role": "system", "content": "be"},), target, source="s")
        for i in range(3)
    ]
    (here, error, _), (there, error_there, _) = both(served, "prompt", OTHERS["prompt"], ["a", "bb", "ccc"], prompts)
    same(here, there)
    assert here["score"].isfinite().all() and error is error_there is None


def test_groups_stay_whole_however_they_are_cut(served):
    prompts = [Prompt(f"g{i}", f"group {i}") for i in range(3)]
    rows = [prompts[i] for i in (0, 1, 2, 0, 1, 2, 0, 1)]
    pictures = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    for batch in (1, 5, None):
        (here, *_), (there, *_) = both(served, "win_rate", PICTURE_REWARDS["win_rate"], pictures, rows, batch=batch)
        same(here, there)
    assert len(set(here["score"].tolist())) > 1


def test_whether_it_applies_is_asked_for_all_prompts_at_once(served):
    prompts = [Prompt(f"many/{i}", "when?", target=SPAN if i % 2 else None) for i in range(150)]
    remote = Remote(served.url, "temporal_iou")
    before = len(served.paths)
    check_prompts({"own": prompts}, {"t": Scorer(remote)}, shows_media=False, engine="x")
    assert served.paths[before:] == ["/health", "/applies", "/applies", "/applies"]
    local = TEXT_REWARDS["temporal_iou"]
    assert [remote.applies_to(p) for p in prompts] == [local.applies_to(p) for p in prompts]
    assert len(served.paths) == before + 4


def test_a_config_names_it(served):
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Holder:
        rewards: dict[str, Scorer]

    plain = {"rewards": {"far": {"use": {"kind": "remote", "url": served.url, "reward": "jpeg", "batch": 2}}}}
    use = typed_yaml.build(Holder, plain).rewards["far"].use
    assert use == Remote(served.url, "jpeg", batch=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward": "jpg"}, "serves no reward 'jpg'; it serves "),
        ({"scope": "set"}, "scope = set, but .* says of 'jpeg': 'output'"),
        ({"url": "http://127.0.0.1:9", "timeout_seconds": 0.5}, "is not there: .*no answer within 0.5 seconds"),
        ({"url": "http://me:secret@host"}, "user name or a password"),
        ({"url": "ftp://host"}, "wanted the like of"),
        ({"token_env": "NOT_SET_ANYWHERE"}, "'NOT_SET_ANYWHERE', which holds the token, is not set"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_sampled(served, settings, message):
    remote = Remote(**{"url": served.url, "reward": "jpeg"} | settings)
    with pytest.raises(ConfigError, match=message):
        Scoring({"far": Scorer(remote)}, torch.device("cpu")).load(leave=False)
