"""Conversations as prompts: turns, where media stand, and rows that are broken."""

from __future__ import annotations

import json

import pytest
from test_vlm_chat import text_of
from tiny_vlm import clip, picture, policy

from grpo_mm.datasets.chat.messages import Messages
from grpo_mm.datasets.media.media_files import ImageFile, VideoFile
from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.vlm.prompting.chat import Chat
from grpo_mm.types import Prompt

USER = {"role": "user", "content": "what is it"}


def rows(tmp_path, *found) -> Messages:
    path = tmp_path / "chat.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in found))
    return Messages(str(path), folder="media")


def test_a_row_is_a_prompt_with_its_turns_media_target_and_demonstration(tmp_path):
    turns = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "<video> and <image>"},
        {"role": "assistant", "content": "A dog."},
        {"role": "user", "content": "when is <image> seen"},
        {"role": "assistant", "content": "<answer>1 to 2</answer>"},
    ]
    row = {
        "id": 7,
        "messages": turns,
        "images": ["a.png", "b.png"],
        "videos": ["c.mp4"],
        "spans": [[1, 2]],
        "answer": "x",
    }
    (prompt,) = rows(tmp_path, row).load()
    assert (prompt.id, prompt.text, prompt.demo) == ("chat/7", "when is <image> seen", "<answer>1 to 2</answer>")
    assert prompt.media == (VideoFile("media/c.mp4"), ImageFile("media/a.png"), ImageFile("media/b.png"))
    assert [turn["role"] for turn in prompt.messages] == ["system", "user", "assistant"]
    assert prompt.target == {"spans": [[1, 2]], "answer": "x"}


def test_turns_become_the_chat_and_media_stand_at_their_markers():
    p = policy(chat=Chat(system="Look"))
    image, video = "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"
    told = ({"role": "user", "content": "is <image> red"}, {"role": "assistant", "content": "yes"})
    asked = Prompt("a", "and <video>", media=(picture(), clip(4)), messages=told)
    assert text_of(p, p.encode(asked)) == (
        f"<|im_start|>system\nLook<|im_end|>\n<|im_start|>user\nis {image} red<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
        f"<|im_start|>user\nand {video}<|im_end|>\n<|im_start|>assistant\n"
    )
    own = Prompt("b", "why", media=(picture(),), messages=({"role": "system", "content": "Be red"}, *told[1:], USER))
    text = text_of(p, p.encode(own))
    assert text.startswith("<|im_start|>system\nBe red<|im_end|>") and "Look" not in text
    assert f"user\n{image}what is it" in text and text.count(image) == 1  # before the first question


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, "one of a user"),
        ({"messages": [{"role": "tool", "content": "x"}, USER]}, "wanted turns with a role"),
        ({"messages": [{"role": "user", "content": 3}]}, "wanted turns with a role"),
        ({"messages": [USER, {"role": "system", "content": "x"}, USER]}, "only at the start"),
        ({"messages": [USER], "images": [3]}, "a list of file names"),
        (
            {"messages": [{"role": "user", "content": "<image> <image>"}], "images": ["a.png"]},
            "2 markers <image> for 1 files",
        ),
        ({"images": []}, "messages"),
    ],
)
def test_a_broken_row_is_named(tmp_path, row, message):
    with pytest.raises(ConfigError, match=message) as refused:
        rows(tmp_path, {"messages": [USER]}, row).load()
    assert "line 2" in str(refused.value)


def test_ids_are_unique_and_a_limit_holds(tmp_path):
    assert len(Messages(rows(tmp_path, *({"messages": [USER]} for _ in range(5))).path, limit=2).load()) == 2
    with pytest.raises(ConfigError, match="stands twice"):
        rows(tmp_path, *({"id": "a", "messages": [USER]} for _ in range(2))).load()
