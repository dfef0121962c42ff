"""Judges of two pictures: what a vision-language model is asked, how its answer reads, and who answers."""

import json
import math
import threading
from pathlib import Path

import pytest
import torch
from chat_server import ChatServer, levels_of, parts
from PIL import Image

from grpo_mm.config import typed_yaml as config
from grpo_mm.errors import ConfigError
from grpo_mm.processes import clock
from grpo_mm.rewards.images.image_quality import ImageQuality
from grpo_mm.rewards.judges.comparing import Pair, PointwiseJudge, ServerJudge, TransformersJudge
from grpo_mm.rewards.judges.unified_reward import (
    UnifiedReward,
    flex_question,
    parse_flex,
    parse_point,
    parse_think,
    point_question,
    think_question,
)
from grpo_mm.rewards.judges.vlm import Question, TransformersVlm
from grpo_mm.rewards.judges.vlm_server import ServerVlm
from grpo_mm.rewards.judges.win_rate import WinRate
from grpo_mm.rollout.function_reward import FunctionReward
from grpo_mm.types import Prompt


def plain(level: int, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.full((3, height, width), level, dtype=torch.uint8)


def pair(first: int, second: int, text: str = "a grey wall") -> Pair:
    return Pair(plain(first), plain(second), Prompt("p", text))


@pytest.fixture
def counts():
    """What is counted while the test runs."""
    old = clock._current
    yield clock.use(clock.Clock()).counts
    clock.use(old)


# ── what is asked, and how an answer reads ──


@pytest.mark.parametrize("question", [point_question, think_question, flex_question])
def test_a_question_holds_the_caption_letter_by_letter(question):
    assert 'a {red} "cat" [1] 50%' in question('a {red} "cat" [1] 50%')


def test_the_published_answer_format_is_asked_for():
    assert "Final Score: " in point_question("") and "element (type): value" in point_question("")
    think, flex = think_question(""), flex_question("")
    for words in ("<think>", "</think>", "<answer>Image 1 is better</answer>", "Semantic consistency", "Total score:"):
        assert words in think
    for key in ("categories", "name", "dims", "reason_1", "score_2", "cat_reason", "cat_winner", "reason", "winner"):
        assert f'"{key}"' in flex


@pytest.mark.parametrize(
    ("answer", "overall"),
    [
        ("<think>\n1. Semantic: Image 1 (9/10) ...\n</think>\n<answer>Image 1 is better</answer>", 1.0),
        ("<think>Image 1 is better in style.</think><answer>Image 2 is better</answer>", 0.0),
        ("so I thought. Image 1 is better?</think>\nImage 2 is better.", 0.0),
        ("Image 1 is better.", 1.0),
        ("**Image 2** is better", 0.0),
        ("image 2 is slightly better in both respects", 0.0),
        ("<answer>Image 1 is better</answer> wait, <answer>\nImage 2 is better.\n", 0.0),
        ("<answer>Image 1 is better. No: Image 2 is better</answer>", 0.0),
        ("Both images are equally good.", 0.5),
        ("<answer>tie</answer>", 0.5),
        ("<answer>Neither is better</answer>", 0.5),
        ("<answer>Image 1 is not better, the man wears a tie</answer>", None),
        ("<answer></answer>", None),
        ("<think>Image 1 is better because", None),
        ("Image 3 is better", None),
        ("", None),
        (None, None),
    ],
)
def test_the_last_statement_outside_of_the_reasoning_decides(answer, overall):
    assert parse_think(answer) == (None if overall is None else {"overall": overall})


def flex_answer(overall="Image 1", **winners) -> str:
    names = {"alignment": "A. Semantic Alignment & Accuracy", "quality": "Image Quality & Realism"}
    names |= {"aesthetics": "**C**: Aesthetics & Artistry", "own": "D. Legibility of the sign"}
    categories = [{"name": names[k], "dims": [], "cat_reason": "{...}", "cat_winner": w} for k, w in winners.items()]
    return json.dumps({"prompt": "x", "categories": categories, "reason": "...", "winner": overall}, indent=1)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (
            flex_answer("Image 2", alignment="Image 1", quality="Image 2", aesthetics="image 1", own="Image 2"),
            {"overall": 0, "alignment": 1, "quality": 0, "aesthetics": 1},
        ),
        (f"<think>{{hm}}</think>```json\n{flex_answer(quality='Image 2')}\n```", {"overall": 1, "quality": 0}),
        (flex_answer("Image 1/2", alignment="Image 1"), {"alignment": 1}),
        (flex_answer("tie", alignment="?"), {"overall": 0.5}),
        (flex_answer("none of them", alignment=None), None),
        ('{"winner": "Image 1", "categories": ["alignment", {"cat_winner": 1}]}', {"overall": 1}),
        (flex_answer()[:-1], None),
        ("[1, 2]", None),
        ("Image 1 is better", None),
        (None, None),
    ],
)
def test_flex_answers_are_read_strictly(answer, verdict):
    assert parse_flex(answer) == verdict


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("cat (animal): 1\nFinal Score: 4.25", 4.25),
        ("**Final Score:** 3", 3),
        ("Final Score: 2\n...\nfinal score = 5/5", 5),
        ("<think>Final Score: 2</think> none", None),
        ("Final Score: 7", None),
        ("Final Score: good", None),
        (None, None),
    ],
)
def test_the_final_score_is_read(answer, score):
    assert parse_point(answer) == score


# ── a reward as a judge ──


class Brightness:
    """NaN above 200; counts the pictures that it scores."""

    def __init__(self):
        self.scored = []

    def __call__(self, items, prompts):
        level = items[:, 0, 0, 0].float()
        self.scored.append(len(items))
        return torch.where(level > 200, math.nan, level)


def test_a_reward_becomes_a_judge_with_a_margin():
    reward = Brightness()
    judge = PointwiseJudge(reward=reward, margin=2)
    verdicts = judge([pair(10, 20), pair(20, 10), pair(10, 12), pair(10, 13), pair(10, 250), pair(250, 250)])
    assert verdicts == [{"overall": 0.0}, {"overall": 1.0}, {"overall": 0.5}, {"overall": 0.0}, None, None]
    assert judge([]) == []


def test_each_picture_is_scored_once_however_many_pairs_it_is_in():
    reward = Brightness()
    images = torch.stack([plain(level) for level in (50, 10, 40, 20, 30)])
    judge = WinRate(judge=PointwiseJudge(reward=reward), both_orders=True)
    found = judge(images, [Prompt("p", "")] * 5, torch.zeros(5, dtype=torch.int64))
    assert found["score"].tolist() == [1, 0, 0.75, 0.25, 0.5] and reward.scored == [5]


def test_one_picture_may_have_another_score_for_another_prompt():
    image = plain(10)

    def length(images, prompts, metadata):
        return [len(text) for text in prompts]

    judge = PointwiseJudge(reward=length)
    assert judge([Pair(image, image, Prompt("a", "short")), Pair(image, plain(9), Prompt("b", "longer"))]) == [
        {"overall": 0.5},
        {"overall": 0.5},
    ]


def test_a_reward_that_raises_fails_only_the_comparisons_it_is_in():
    def picky(images, prompts, metadata):
        if any(image.getpixel((0, 0))[0] == 66 for image in images):
            raise RuntimeError("not this one")
        return [image.getpixel((0, 0))[0] for image in images]

    verdicts = PointwiseJudge(reward=picky)([pair(66, 1), pair(3, 2), pair(2, 66)])
    assert verdicts == [None, {"overall": 1.0}, None]


def test_the_judge_passes_check_and_device_on():
    judge = PointwiseJudge(reward=FunctionReward(path="no.such.module:function"))
    with pytest.raises(ConfigError, match="no module named"):
        WinRate(judge=judge).check()
    assert WinRate(judge=PointwiseJudge(reward=ImageQuality())).to("cpu") is not None


def test_a_pointwise_judge_wants_a_reward_of_single_pictures():
    with pytest.raises(ConfigError, match="compares pictures itself"):
        PointwiseJudge(reward=WinRate(judge=PointwiseJudge(reward=Brightness())))
    with pytest.raises(ConfigError, match="margin = -1"):
        PointwiseJudge(reward=Brightness(), margin=-1)


# ── a server ──


def brighter(levels, request) -> str:
    return f"<think>...</think><answer>Image {1 if levels[0] > levels[1] else 2} is better</answer>"


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running = []

    def start(answer) -> ChatServer:
        running.append(ChatServer(answer))
        return running[-1]

    yield start
    for server in running:
        server.close()


def judge_of(server, **settings) -> ServerJudge:
    return ServerJudge(**{"base_url": server.url, "model": "judge", "backoff_seconds": 0.001, **settings})


def test_the_server_gets_pictures_prompt_and_settings(serve, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    server = serve(brighter)
    judge = judge_of(server, api_key_env="JUDGE_KEY", max_new_tokens=77, extra_body={"seed": 3}, concurrency=1)
    assert judge([pair(200, 100, "a {wall}"), pair(5, 90)]) == [{"overall": 1.0}, {"overall": 0.0}]
    first = server.requests[0]
    assert first["path"] == "/v1/chat/completions" and first["authorization"] == "Bearer secret"
    assert (first["model"], first["max_tokens"], first["temperature"], first["seed"]) == ("judge", 77, 0, 3)
    *images, text = parts(first)
    assert levels_of(first) == [200, 100] and len(images) == 2
    assert text == {"type": "text", "text": think_question("a {wall}")}


def test_win_rates_over_a_server_with_many_questions_under_way(serve, counts):
    pairs = threading.Barrier(2, timeout=60)  # no answer before another question is under way
    server = serve(lambda levels, request: (pairs.wait(), brighter(levels, request))[1])
    reward = config.build(
        WinRate,
        {"judge": {"kind": "server", "base_url": server.url + "/", "model": "judge", "concurrency": 4}},
    )
    images = torch.stack([plain(level) for level in (50, 10, 40, 20, 30)])
    found = reward(images, [Prompt("p", "grey")] * 5, torch.zeros(5, dtype=torch.int64))
    assert found["score"].tolist() == [1, 0, 0.75, 0.25, 0.5] and found["failed"].tolist() == [0] * 5
    assert len(server.requests) == 10 and 1 < server.most_at_once <= 4
    assert counts["judge_calls"] == 10 and counts["vlm_failures"] == 0


def test_passing_failures_are_tried_again(serve, counts):
    trouble = iter([(500, "oops"), (429, "slow down"), (200, "no json"), (200, '{"choices": []}')])
    server = serve(lambda levels, request: next(trouble, None) or brighter(levels, request))
    assert judge_of(server, retries=4)([pair(2, 1)]) == [{"overall": 1.0}]
    assert len(server.requests) == 5 and counts["vlm_failures"] == 0


def test_lasting_failures_are_none_and_counted_and_cost_the_others_nothing(serve, counts, caplog):
    def answer(levels, request):
        if levels == [66, 1]:
            return 503, "gone for good"
        if levels == [77, 1]:
            return 200, '{"choices": [{"message": {"content": null}}]}'
        return "I cannot say." if levels == [88, 1] else brighter(levels, request)

    server = serve(answer)
    judge = judge_of(server, retries=2)
    assert judge([pair(66, 1), pair(2, 1), pair(77, 1), pair(88, 1)]) == [None, {"overall": 1.0}, None, None]
    asked = [levels_of(request) for request in server.requests]
    assert (asked.count([66, 1]), asked.count([77, 1]), asked.count([88, 1])) == (3, 3, 1)
    assert counts["vlm_failures"] == 2
    judge([pair(66, 1)])
    assert [r.getMessage() for r in caplog.records if "got no answer" in r.getMessage()] == [
        f"{server.url}: 2 of 4 questions got no answer; the first: status 503: gone for good"
    ]


def test_a_status_that_will_not_pass_is_not_tried_again(serve, counts):
    server = serve(lambda levels, request: (404, "no such model"))
    assert judge_of(server)([pair(2, 1)]) == [None]
    assert len(server.requests) == 1 and counts["vlm_failures"] == 1


def test_a_slow_answer_is_given_up(serve, counts):
    release = threading.Event()
    server = serve(lambda levels, request: (release.wait(60 if levels == [66, 1] else 0), brighter(levels, request))[1])
    verdicts = judge_of(server, timeout_seconds=2, retries=1)([pair(66, 1), pair(2, 1)])
    release.set()
    assert verdicts == [None, {"overall": 1.0}]  # who waits for the slow one gets a verdict on it too
    assert [levels_of(request) for request in server.requests].count([66, 1]) == 2


def test_a_server_that_is_not_there_fails_every_comparison_and_raises_nothing(serve):
    server = serve(brighter)
    server.close()
    reward = WinRate(judge=judge_of(server, retries=1))
    found = reward(torch.stack([plain(1), plain(2)]), [Prompt("p", "")] * 2, torch.zeros(2, dtype=torch.int64))
    assert found["score"].isnan().all() and found["failed"].tolist() == [1, 1]


def test_it_works_inside_a_running_event_loop(serve):
    import asyncio

    server = serve(brighter)

    async def notebook():
        return judge_of(server)([pair(2, 1)])

    assert asyncio.run(notebook()) == [{"overall": 1.0}]


def test_the_flex_form_over_a_server(serve):
    def answer(levels, request):
        assert "cat_winner" in parts(request)[-1]["text"]
        return flex_answer("Image 1", alignment="Image 2", aesthetics="Image 2")

    judge = judge_of(serve(answer), form="flex")
    assert judge.categories == ("alignment", "quality", "aesthetics")
    assert judge([pair(2, 1)]) == [{"overall": 1.0, "alignment": 0.0, "aesthetics": 0.0}]
    assert judge_of(serve(answer)).categories == ()


def test_the_pointwise_score_over_a_server_is_a_fifth_of_the_answer(serve):
    server = serve(lambda levels, request: f"Final Score: {levels[0] / 50}" if levels[0] < 255 else "no idea")
    reward = config.build(UnifiedReward, {"vlm": {"kind": "server", "base_url": server.url, "model": "judge"}})
    reward.to("cpu").check()
    images = torch.stack([plain(level) for level in (50, 250, 255, 100)])
    found = reward(images, [Prompt("p", "grey")] * 4)["score"]
    assert found.nan_to_num(-1).tolist() == pytest.approx([0.2, 1, -1, 0.4])
    assert config.build(UnifiedReward, config.dump(reward)) == reward
    assert parts(server.requests[0])[-1]["text"] == point_question("grey")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "localhost:8080/v1"}, "wanted http://host:port/v1"),
        ({"base_url": "ftp://host/v1"}, "wanted http://host:port/v1"),
        ({"base_url": "http:///v1"}, "wanted http://host:port/v1"),
        ({"base_url": "http://my host/v1"}, "wanted http://host:port/v1"),
        ({"base_url": "http://host:80a/v1"}, "is no address"),
        ({"base_url": "http://host/v1?key=1"}, "leave out what follows the path"),
        ({"base_url": "http://me:pass@host/v1"}, "which a run folder would show"),
        ({"base_url": "http://host/v1/chat/completions"}, "leave out /chat/completions"),
        ({"api_key_env": "NO_SUCH_KEY_OF_OURS"}, "no such environment variable"),
        ({"timeout_seconds": 0}, "timeout_seconds = 0"),
        ({"retries": -1}, "retries = -1"),
        ({"concurrency": 0}, "concurrency = 0, wanted 1 or more"),
        ({"jpeg_quality": 0}, "jpeg_quality = 0"),
    ],
)
def test_a_server_that_cannot_work_is_refused_before_the_run(settings, message):
    with pytest.raises(ConfigError, match=message):
        WinRate(judge=ServerJudge(**{"base_url": "http://host/v1", "model": "judge", **settings})).check()


# ── a local model ──

ANSWER = ("<answer>", "Image 1 is better", "</answer>")


def build_vlm(folder: Path, *, script: tuple[str, ...] = ()) -> str:
    """A random Qwen2.5-VL checkpoint whose tokens are bytes; with a `script` it says these words, whatever it sees."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    tokens.add_tokens([AddedToken(word, normalized=False) for word in script])
    special = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, eos_token="<|im_end|>", pad_token="<|endoftext|>", additional_special_tokens=special
    )
    start, vision_start, vision_end, image, video = tokenizer.convert_tokens_to_ids(special)
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'image' %}"
        "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    pixels = {"min_pixels": 28 * 28, "max_pixels": 56 * 56}
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**pixels), tokenizer, Qwen2VLVideoProcessor(), chat_template=template
    )
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "initializer_range": 0.3}
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    model = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                **small, "vocab_size": len(tokenizer), "num_hidden_layers": 2, "num_attention_heads": 2,
                "num_key_value_heads": 1, "bos_token_id": start, "eos_token_id": end, "pad_token_id": pad,
                "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
            },
            vision_config={**small, "depth": 2, "num_heads": 2, "out_hidden_size": 16, "fullatt_block_indexes": [1]},
            image_token_id=image, video_token_id=video, vision_start_token_id=vision_start, vision_end_token_id=vision_end,
        )
    )  # fmt: skip
    if script:
        said = [tokenizer.encode("\n")[0], *tokenizer.convert_tokens_to_ids(list(script)), end]
        language = model.model.language_model
        for layer in language.layers:  # nothing is added to the embedding of the last token
            torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
            torch.nn.init.zeros_(layer.mlp.down_proj.weight)
        with torch.no_grad():
            directions = torch.nn.functional.normalize(language.embed_tokens.weight, dim=-1)
            for now, then in zip(said, said[1:]):
                model.lm_head.weight[then] = 10 * directions[now]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def random_vlm(tmp_path_factory) -> str:
    return build_vlm(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="module")
def scripted_vlm(tmp_path_factory) -> str:
    return build_vlm(tmp_path_factory.mktemp("scripted_vlm"), script=ANSWER)


def noise(seed: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def test_answers_of_a_local_model_do_not_depend_on_the_batch(random_vlm):
    vlm = TransformersVlm(random_vlm, max_new_tokens=12, batch_size=4)
    images = [noise(i, 40 + 8 * i, 56) for i in range(6)]
    questions = [Question("what? " * (1 + 3 * i), tuple(images[i : i + 1 + i % 2])) for i in range(5)]
    together = vlm.ask(questions)
    assert together == [vlm.ask([question])[0] for question in questions]
    assert len(set(together)) == 5 and all(together)
    again = Question(questions[0].text, (images[3],))
    assert vlm.ask([again]) != together[:1]  # it sees the picture


def test_a_local_model_is_asked_greedily_through_its_own_template(random_vlm):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(random_vlm)
    image = noise(0, 40, 56)
    text = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>what?<|im_end|>\n<|im_start|>assistant\n"
    inputs = processor(
        text=[text], images=[Image.fromarray(image.permute(1, 2, 0).numpy())], return_tensors="pt", padding=True
    )
    model, length = AutoModelForImageTextToText.from_pretrained(random_vlm).eval(), inputs["input_ids"].shape[1]
    said = []
    for _ in range(5):  # greedy, without a cache
        ids = torch.cat([inputs["input_ids"], torch.tensor([said], dtype=torch.int64)], dim=1)
        kinds = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(said)))
        with torch.no_grad():
            logits = model(
                input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=kinds,
                pixel_values=inputs["pixel_values"], image_grid_thw=inputs["image_grid_thw"],
            ).logits  # fmt: skip
        said.append(int(logits[0, -1].argmax()))
    assert length > 20
    answer = TransformersVlm(random_vlm, max_new_tokens=5).ask([Question("what?", (image,))])
    assert answer == processor.batch_decode([said], skip_special_tokens=True)


def test_a_local_judge_from_a_config_to_win_rates(scripted_vlm):
    judge = {"kind": "transformers", "model": scripted_vlm, "max_new_tokens": 8, "batch_size": 3}
    images, prompts = torch.stack([noise(i, 28, 28) for i in range(3)]), [Prompt("p", "noise")] * 3
    group = torch.zeros(3, dtype=torch.int64)
    reward = config.build(WinRate, {"judge": judge}).to("cpu")
    reward.check()
    found = reward(images, prompts, group)
    assert found["score"].tolist() == [1, 0.5, 0] and found["failed"].tolist() == [0, 0, 0]
    both = config.build(WinRate, {"judge": judge, "both_orders": True})(images, prompts, group)
    assert both["score"].tolist() == [0.5] * 3 and both["swapped_disagree"].tolist() == [1] * 3


def test_a_model_that_talks_nonsense_fails_its_comparisons(random_vlm):
    judge = TransformersJudge(random_vlm, max_new_tokens=4)
    assert judge([pair(1, 2), pair(3, 4)]) == [None, None]
    score = UnifiedReward(vlm=TransformersVlm(random_vlm, max_new_tokens=4))(plain(1)[None], [Prompt("p", "")])["score"]
    assert score.isnan().all()


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="no such folder"):
        TransformersJudge("./no/such/folder").check()
    with pytest.raises(ConfigError, match="batch_size = 0"):
        TransformersVlm("m", batch_size=0)
    with pytest.raises(ConfigError, match="the key 'vlm' is missing"):
        config.build(UnifiedReward, {})
    with pytest.raises(ConfigError, match="unknown key 'colour'"):
        config.build(ServerVlm, {"base_url": "http://h/v1", "model": "m", "colour": 1})
