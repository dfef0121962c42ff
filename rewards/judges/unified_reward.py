"""UnifiedReward: what its models are asked, how their answers read, and its score of a single picture.

The answers have the published format; the questions are in our own words, so a model that was trained on the original
ones may judge a little differently.

Sources: UnifiedReward, arXiv:2503.05236; UnifiedReward-Think, arXiv:2505.03318; CodeGoat24/UnifiedReward and
CodeGoat24/Pref-GRPO (fastvideo/rewards).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from grpo_mm.outside import parse_json
from grpo_mm.registry import Role
from grpo_mm.rewards.answers import tags
from grpo_mm.rewards.answers.numbers import read_number
from grpo_mm.rewards.answers.writing import unmarked
from grpo_mm.rewards.judges.asks_vlm import AsksVlm
from grpo_mm.rewards.judges.vlm import Question, answers_of
from grpo_mm.rewards.shared.pictures import takes_pictures
from grpo_mm.types import Prompt

FLEX_CATEGORIES = ("alignment", "quality", "aesthetics")
"""The categories of the flex form, as they are called in settings and metrics."""


@dataclass
class UnifiedReward(AsksVlm):
    """score = final score of the model / 5, so 0.2 to 1; NaN where there is no answer or no score in it.

    Deviates: Flow-GRPO shrinks pictures to 512 pixels before it asks; here they go as they are.
    """

    goldens: ClassVar[str] = "pictures"
    """What it is tried on (`grpo_mm/golden`)."""

    vlm: Annotated[Any, Role("vlm")]
    """Who is asked: kind transformers (a local model) or server."""

    @takes_pictures
    def __call__(self, items: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """uint8 [M, 3, H, W] and M prompts -> score [M]."""
        questions = [Question(point_question(prompt.text), (image,)) for image, prompt in zip(items, prompts)]
        scores = [parse_point(answer) for answer in answers_of(self.vlm, questions)]
        return {"score": torch.tensor([torch.nan if s is None else s / 5 for s in scores], dtype=torch.float32)}


def point_question(caption: str) -> str:
    """Asks for a score of one picture, for `parse_point`."""
    return f"""Rate a generated picture against the caption it was made from. Two things count:
1. Alignment: are the objects of the caption there, with the attributes and relations that it gives them?
2. Quality: is the picture clear, detailed, right in its colours and pleasant to look at?
First list the elements of the caption, one a line, as "element (type): value", where value is 1 if the picture shows it and 0 if not. Then end with one line "Final Score: s", where s is a number from 1 (bad) to 5 (excellent).
Text Caption: [{caption}]"""


def parse_point(answer: str | None) -> float | None:
    """The number after the last "Final Score:", if it lies in 1..5; also as "4/5" and "4 out of 5"; "1-5" and "4/10" are none."""
    found = list(_SCORE.finditer(unmarked(after_thinking(answer))))
    if not found:
        return None
    score = read_number(_OF_FIVE.sub("", found[-1][1]))
    return score if score is not None and 1 <= score <= 5 else None


_SCORE = re.compile(
    r"final\s{1,9}score(?:\s{0,3}(?:is|of|[:=\[(])){0,3}\s{0,3}(?=[+-]?\.?\d)([^\n]{1,40})", re.IGNORECASE
)
_OF_FIVE = re.compile(r"\s?(?:/|out of)\s?5(?![\d.])", re.IGNORECASE)


def think_question(caption: str) -> str:
    """Asks which of two pictures is better, for `parse_think`."""
    return f"""Two pictures, Image 1 and Image 2, were generated from one caption. Find out which is better.

Caption: [{caption}]

Score both from 1 to 10 in each of these dimensions:
1. Semantic consistency: does the picture show what the caption says?
2. Aesthetics: composition, use of colour, artistic expression.
3. Authenticity: realism and care in the details.
Where this caption calls for it, add one or two dimensions of your own. Give two to five short sentences of reasons for each score, then add up. Reasons and scores belong into the think block, the decision alone into the answer block, and nothing outside of them. No Markdown. This is the format:

<think>
1. Semantic consistency:
    Image 1 (n/10) - reasons;
    Image 2 (n/10) - reasons
2. Aesthetics:
    Image 1 (n/10) - reasons;
    Image 2 (n/10) - reasons
3. Authenticity:
    Image 1 (n/10) - reasons;
    Image 2 (n/10) - reasons
Total score:
Image 1: n+n+n=sum
Image 2: n+n+n=sum
</think>
<answer>Image 1 is better</answer> or <answer>Image 2 is better</answer>"""


def edit_pair_question(instruction: str) -> str:
    """Asks which of two edits of one picture is better, for `parse_think`; the pictures are the source, Image 1, Image 2."""
    return f"""The first picture was edited by one instruction, twice; the second picture is Image 1, the third is Image 2. Find out which edit is better.

Instruction: [{instruction}]

Score both from 1 to 10 in each of these dimensions:
1. Instruction: is everything done that it asks, and where it asks?
2. Keeping: is all else as it was in the first picture?
3. Quality: is it without seams, smears and broken shapes?
Give two short sentences of reasons for each score, then add up. Reasons and scores belong into the think block, the decision alone into the answer block, and nothing outside of them. No Markdown. This is the format:

<think>
1. Instruction: Image 1 (n/10) - reasons; Image 2 (n/10) - reasons
2. Keeping: Image 1 (n/10) - reasons; Image 2 (n/10) - reasons
3. Quality: Image 1 (n/10) - reasons; Image 2 (n/10) - reasons
Total score:
Image 1: n+n+n=sum
Image 2: n+n+n=sum
</think>
<answer>Image 1 is better</answer> or <answer>Image 2 is better</answer>"""


def clip_pair_question(caption: str, frames: tuple[int, int], seconds: tuple[float, float]) -> str:
    """Asks which of two clips is better, for `parse_think`; the pictures are frames of the first, then of the second."""
    return f"""Two videos were generated from one caption. The first {frames[0]} pictures are frames of Video 1 ({seconds[0]:.2f} seconds long), the other {frames[1]} are frames of Video 2 ({seconds[1]:.2f} seconds long), evenly spread and in their order. Find out which video is better.

Caption: [{caption}]

Score both from 1 to 10 in each of these dimensions:
1. Alignment: does it show what the caption says, the movement it names among it?
2. Motion: does what moves go on from frame to frame as it would in the world, without jumps, and without standing still where the caption moves?
3. Quality: is each frame clear and free of faults, and do things keep their shape and colour?
Give two short sentences of reasons for each score, then add up. Reasons and scores belong into the think block, the decision alone into the answer block, and nothing outside of them. No Markdown. This is the format:

<think>
1. Alignment: Video 1 (n/10) - reasons; Video 2 (n/10) - reasons
2. Motion: Video 1 (n/10) - reasons; Video 2 (n/10) - reasons
3. Quality: Video 1 (n/10) - reasons; Video 2 (n/10) - reasons
Total score:
Video 1: n+n+n=sum
Video 2: n+n+n=sum
</think>
<answer>Video 1 is better</answer> or <answer>Video 2 is better</answer>"""


_STATEMENT = re.compile(
    r"\b(?:image|video)\s*([12])\W{0,4}\s*is\s+(?:the\s+|clearly\s+|slightly\s+|much\s+)?better\b"
    r"|\bequally\s+(?:good|bad)\b|\bneither\s+(?:image\s+|one\s+)?is\s+better\b|^[^\w\n]*+(?:tie|draw)[^\w\n]*+$",
    re.IGNORECASE | re.MULTILINE,
)


def parse_think(answer: str | None) -> dict[str, float] | None:
    """{"overall": 1.0 if image 1 is better, 0.0 if image 2, 0.5 for a tie}; None if the answer decides nothing.

    Read is the last answer block, or what follows the reasoning if there is none; the last statement in it holds.
    Reasoning that was cut off decides nothing, whatever it says on the way.
    """
    blocks = re.findall(r"<answer>(.*?)(?:</answer>|$)", answer or "", re.DOTALL | re.IGNORECASE)
    statements = list(_STATEMENT.finditer(blocks[-1] if blocks else after_thinking(answer)))
    if not statements:
        return None
    winner = statements[-1][1]
    return {"overall": 0.5 if winner is None else float(winner == "1")}


def flex_question(caption: str) -> str:
    """Asks which of two pictures is better in each category and overall, for `parse_flex`."""
    return f"""Two pictures, Image 1 and Image 2, were generated from one caption. Compare them category by category.

Caption: [{caption}]

The categories are
A. Semantic Alignment & Accuracy: subjects, actions and constraints of the caption.
B. Image Quality & Realism: technical execution, physical logic, clarity.
C. Aesthetics & Artistry: artistic appeal, harmony of colours, composition.
If the caption has a trait that none of them covers, add a category D after these. In each, choose three to five sub-dimensions in which these two pictures differ most. Share out exactly 10 points between the pictures in each sub-dimension, and point to what you see in them as the reason.

Answer with one JSON object of this form and nothing else; a winner is "Image 1" or "Image 2":
{{
  "prompt": "the caption",
  "categories": [
    {{
      "name": "category",
      "dims": [
        {{"name": "sub-dimension", "reason_1": "...", "reason_2": "...", "score_1": n, "score_2": n}}
      ],
      "cat_reason": "...",
      "cat_winner": "Image k"
    }}
  ],
  "reason": "...",
  "winner": "Image k"
}}"""


def parse_flex(answer: str | None) -> dict[str, float] | None:
    """Like `parse_think`, with the winners of the categories beside "overall"; None if there is no JSON or no winner.

    What has no readable winner is left out, and counts one half where win rates are made. Deviates from the released
    code, which leaves a comparison without a category out of that category's average, tells categories apart by the
    exact words of each answer, and lets a fourth one in if it comes early.
    """
    text = after_thinking(answer)
    try:
        data = parse_json(_CONTROL.sub(" ", text[text.index("{") : text.rindex("}") + 1]))
    except ValueError:  # no braces, or no JSON between them
        return None
    if not isinstance(data, Mapping):
        return None
    winners = {"overall": data.get("winner")}
    categories = data.get("categories")
    for entry in categories if isinstance(categories, list) else ():
        if isinstance(entry, Mapping):
            winners.setdefault(_category(str(entry.get("name", ""))), entry.get("cat_winner"))
    winners.pop("", None)
    found = {name: _winner(str(winner)) for name, winner in winners.items()}
    return {name: value for name, value in found.items() if value is not None} or None


_CONTROL = re.compile(r"[\x00-\x1f]")
"""Line ends within texts, which JSON does not allow and models write."""


def _category(name: str) -> str:
    """The name in our settings, "" for a category of the model's own."""
    words = {"alignment": "alignment|semantic", "quality": "quality|realism", "aesthetics": "aesthetic|artistry"}
    return next((ours for ours, pattern in words.items() if re.search(pattern, name, re.IGNORECASE)), "")


def _winner(text: str) -> float | None:
    named = set(re.findall(r"\bimage\s*([12])\b(?!\s*/)", text, re.IGNORECASE))  # "Image 1/2" is the form, unfilled
    if len(named) == 1:
        return float(named == {"1"})
    return 0.5 if not named and re.fullmatch(r"\W*(?:tie|draw|equal|both|neither)\W*", text, re.IGNORECASE) else None


def after_thinking(answer: str | None) -> str:
    """What follows the reasoning; "" if the reasoning has no end."""
    return tags.after_thinking(answer or "")
