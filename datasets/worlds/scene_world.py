"""The scene world: pictures of a few coloured shapes, with questions whose answers and boxes are known.

Relations, colours and numbers; answers are one word or digit. Questions of a split are about pairs of objects that no
other split asks about.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np

from grpo_mm.datasets.worlds.clip_world import COLORS, REQUESTS, Style, pairs
from grpo_mm.datasets.worlds.shape_world import BACKGROUND, SHAPES, Scene, Split, Thing, relation_holds, render
from grpo_mm.types import Prompt

QuestionType = Literal["relation", "color", "count"]
QUESTION_TYPES: tuple[QuestionType, ...] = ("relation", "color", "count")
RELATIONS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
"""Answer -> relation of the shape world."""
GRID = 3
CELL_PX = 28
SIZE_PX = GRID * CELL_PX
"""Each thing keeps to one cell of the grid, which is one visual token of Qwen2.5-VL."""
EDGE_PX = 4
"""Edges of things lie on multiples of that, so that a tiny model can tell boxes exactly; the rim of a cell, as wide, stays
bare and always shows where it lies."""
SIZES = (4, 5)
"""Width and height of things, in EDGE_PX."""
GROUND_SHADE = 90
"""Added to one channel at the far edges; things stay brighter."""
MOST_COUNTED = 3


@dataclass(frozen=True)
class Question:
    """Example: Question(scene, "relation", about=(0, 1)): where is the first thing seen from the second?"""

    scene: Scene
    kind: QuestionType
    about: tuple[int, ...]
    """The things whose boxes a good answer looks at, in the order in which it names them."""

    @property
    def things(self) -> list[Thing]:
        return [self.scene.things[index] for index in self.about]

    def text(self, style: Style) -> str:
        """The question stands before the picture: a small model then learns to look for what it was asked."""
        first = self.things[0]
        asked = {
            "relation": f"Where is the {_name(first)} seen from the {_name(self.things[-1])}?",
            "color": f"What color is the {first.shape}?",
            "count": f"How many {first.shape}s are there?",
        }[self.kind]
        return f"{asked}<image>{REQUESTS[style]}"

    @property
    def answer(self) -> str:
        if self.kind == "relation":
            return next(word for word, relation in RELATIONS.items() if relation_holds(*self.things, relation))
        return self.things[0].color if self.kind == "color" else str(len(self.about))

    @property
    def choices(self) -> tuple[str, ...]:
        """The answers that questions of this kind have."""
        return {
            "relation": tuple(RELATIONS),
            "color": COLORS,
            "count": tuple(str(number) for number in range(1, MOST_COUNTED + 1)),
        }[self.kind]

    @property
    def names(self) -> list[str]:
        return [_name(thing) if self.kind == "relation" else thing.shape for thing in self.things]


def box_px(thing: Thing) -> list[int]:
    """[x1, y1, x2, y2] of its outline, rounded to whole pixels of a picture of SIZE_PX."""
    half = thing.size / 2
    edges = (thing.x - half, thing.y - half, thing.x + half, thing.y + half)
    return [round(edge * SIZE_PX) for edge in edges]


def picture(scene: Scene) -> np.ndarray:
    """The scene as uint8 [SIZE_PX, SIZE_PX, 3] on ground that grows redder to the right and bluer downwards.

    So a patch tells where it lies: the rotary positions of a tiny model hardly tell cells apart.
    """
    image_HWC = render(scene, SIZE_PX)
    bare_HW = (image_HWC == BACKGROUND).all(axis=-1)
    shade = np.linspace(0, GROUND_SHADE, SIZE_PX).astype(np.uint8)
    image_HWC[..., 0] += bare_HW * shade[None, :]
    image_HWC[..., 2] += bare_HW * shade[:, None]
    return image_HWC


def demonstration(question: Question, style: Style, *, thought: str | None = None, answer: str | None = None) -> str:
    """An answer of that form with the true boxes; `thought` and `answer` instead of the true conclusion.

    Example: "<think> the circle is at <bbox>[4, 10, 20, 26]</bbox> so it is red </think><answer>red</answer>"
    """
    answer = answer or question.answer
    thought = thought or question.answer
    boxes = [f"<bbox>{box_px(thing)}</bbox>" for thing in question.things]
    names = question.names
    if question.kind == "relation":
        seen = f" the {names[0]} is at {boxes[0]} and the {names[1]} is at {boxes[1]}"
        so = f" so the {names[0]} is {thought}"
    elif question.kind == "color":
        seen, so = f" the {names[0]} is at {boxes[0]}", f" so it is {thought}"
    else:
        seen, so = f" {names[0]}s at {' and '.join(boxes)}", f" so there are {thought}"
    thinking = {
        "direct": "",
        "think": f"<think>{seen}{so} </think>",
        "rethink": f"<think>{seen} </think><rethink>{so} </rethink>",
    }[style]
    return f"{thinking}<answer>{answer}</answer>"


def random_question(split: Split, kind: QuestionType, rng: random.Random, *, most_things: int = 3) -> Question:
    """A scene of 2 to `most_things` things and a question of that kind about the first, or about the first two."""
    wanted = rng.randint(1, min(MOST_COUNTED, most_things))
    while True:
        scene = _random_scene(split, rng, most_things)
        same = _of_shape(scene, scene.things[0].shape)
        if kind == "count" and len(same) == wanted or kind == "color" and len(same) == 1:
            return Question(scene, kind, same)
        if kind == "relation" and any(relation_holds(*scene.things[:2], relation) for relation in RELATIONS.values()):
            return Question(scene, kind, (0, 1))


def _of_shape(scene: Scene, shape: str) -> tuple[int, ...]:
    """The things of that shape in reading order."""
    found = [index for index, thing in enumerate(scene.things) if thing.shape == shape]
    return tuple(sorted(found, key=lambda index: (int(scene.things[index].y * GRID), scene.things[index].x)))


def _random_scene(split: Split, rng: random.Random, most_things: int) -> Scene:
    """All things differ in color or shape; the first two are a pair of the split."""
    looks = list(rng.choice(pairs(split)))
    rng.shuffle(looks)
    others = [(color, shape) for color in COLORS for shape in SHAPES if (color, shape) not in looks]
    rng.shuffle(others)
    looks = looks[:most_things] + others[: rng.randint(0, max(most_things - 2, 0))]
    cells = rng.sample([(column, row) for column in range(GRID) for row in range(GRID)], len(looks))
    return Scene(tuple(_placed(color, shape, *cell, rng) for (color, shape), cell in zip(looks, cells)))


def _placed(color: str, shape: str, column: int, row: int, rng: random.Random) -> Thing:
    steps = CELL_PX // EDGE_PX
    size = rng.choice(SIZES)
    x, y = (cell * steps + rng.randint(1, steps - 1 - size) + size / 2 for cell in (column, row))
    return Thing(shape, color, x / (GRID * steps), y / (GRID * steps), size / (GRID * steps))


def _name(thing: Thing) -> str:
    return f"{thing.color} {thing.shape}"


@dataclass(frozen=True)
class SceneWorld:
    """Questions of one split; kinds take turns. The pictures are made in memory."""

    split: Split = "train"
    count: int = 1024
    style: Style = "think"
    question_types: tuple[QuestionType, ...] = QUESTION_TYPES

    is_drawn: ClassVar[bool] = True
    """Loading makes media."""

    def phrase(self, query: str) -> str:
        """A question of one's own, asked as these are."""
        return f"{query}<image>{REQUESTS[self.style]}"

    def load(self) -> list[Prompt]:
        return [self._prompt(index) for index in range(self.count)]

    def _prompt(self, index: int) -> Prompt:
        from PIL import Image

        kind = self.question_types[index % len(self.question_types)]
        question = random_question(self.split, kind, random.Random(f"scene_world/{self.split}/{kind}/{index}"))
        return Prompt(
            f"scene_world/{self.split}/{kind}/{index}",
            question.text(self.style),
            media=(Image.fromarray(picture(question.scene)),),
            target={
                "answer": question.answer,
                "answer_type": "numerical" if kind == "count" else "multiple choice",
                "choices": list(question.choices),
                "question_type": kind,
                "boxes": [box_px(thing) for thing in question.things],
                "box_names": question.names,
                "width": SIZE_PX,
                "height": SIZE_PX,
            },
            demo=demonstration(question, self.style),
            source="scene_world",
        )


@dataclass(frozen=True)
class SceneLessons:
    """Draws a picture with several questions and answers of one form about it, a part of which may be wrong."""

    split: Split = "train"
    questions: int = 2
    question_types: tuple[QuestionType, ...] = QUESTION_TYPES
    styles: dict[str, float] = field(default_factory=lambda: {"direct": 3, "think": 8, "rethink": 1})
    """How often each form of answer is asked for."""
    most_things: int = 3
    wrong_answer: float = 0.0
    """Probability that thought and answer draw a wrong conclusion from the true boxes, the next of the choices: a slip that is
    always the same may become what a model is surest of."""
    disagreement: float = 0.0
    """Probability that the answer is not what the thought concluded."""

    def __call__(self, rng: random.Random) -> tuple[np.ndarray, list[tuple[str, str]]]:
        """uint8 [1, H, W, 3] and (question, answer) pairs."""
        question = random_question(self.split, rng.choice(self.question_types), rng, most_things=self.most_things)
        style = rng.choices(list(self.styles), weights=self.styles.values())[0]
        asked = [self._demonstrated(one, style, rng) for one in self._asked(question, rng)]
        return picture(question.scene)[None], asked

    def _asked(self, question: Question, rng: random.Random) -> Sequence[Question]:
        """The question, and others about the same scene; only the first is sure to be of a pair of the split."""
        asked = [question]
        while len(asked) < self.questions:
            asked.append(self._another(question, rng))
        return asked

    def _another(self, question: Question, rng: random.Random) -> Question:
        things = question.scene.things
        if question.kind == "relation" and rng.random() < 0.5:
            return replace(question, about=question.about[::-1])
        if "count" in self.question_types:
            same = _of_shape(question.scene, rng.choice(things).shape)
            if len(same) == 1 and "color" in self.question_types and rng.random() < 0.5:
                return Question(question.scene, "color", same)
            if len(same) <= MOST_COUNTED:
                return Question(question.scene, "count", same)
        return question

    def _demonstrated(self, question: Question, style: Style, rng: random.Random) -> tuple[str, str]:
        thought = question.answer
        if rng.random() < self.wrong_answer:
            thought = question.choices[(question.choices.index(thought) + 1) % len(question.choices)]
        answer = thought
        if rng.random() < self.disagreement:
            answer = rng.choice([choice for choice in question.choices if choice != thought])
        return question.text(style), demonstration(question, style, thought=thought, answer=answer)


Ask = tuple[Literal["color", "shape"], Literal["box", "color", "shape"]]
"""What a thing is named by, and what is asked of it."""


@dataclass(frozen=True)
class LookupLessons:
    """Draws a picture of one or two things that differ in what they are named by, and asks the same of each, in short answers.

    That both are asked for about one picture teaches to look for the thing that is named, instead of any.
    """

    split: Split = "train"
    asks: tuple[Ask, ...] = (("color", "box"),)
    things: int = 2

    def __call__(self, rng: random.Random) -> tuple[np.ndarray, list[tuple[str, str]]]:
        """uint8 [1, H, W, 3] and (question, answer) pairs, one for each thing."""
        named_by, wanted = rng.choice(self.asks)
        while True:
            scene = _random_scene(self.split, rng, self.things)
            if len({getattr(thing, named_by) for thing in scene.things}) == len(scene.things):
                break
        return picture(scene)[None], [_looked_up(thing, named_by, wanted) for thing in scene.things]


def _looked_up(thing: Thing, named_by: str, wanted: str) -> tuple[str, str]:
    name = thing.shape if named_by == "shape" else f"{thing.color} object"
    asked = f"Where is the {name}?" if wanted == "box" else f"What {wanted} is the {name}?"
    told = f"<bbox>{box_px(thing)}</bbox>" if wanted == "box" else getattr(thing, wanted)
    return f"{asked}<image>{REQUESTS['direct']}", f"<answer>{told}</answer>"
