"""What a reasoning claims about a scene of coloured shapes, and whether the scene's boxes and names bear it out.

No judge: claims are read by rules. They take time in proportion to the text and never raise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from grpo_mm.rewards.shared.prompt_target import target_of
from grpo_mm.rewards.spatial.box_coordinates import Coordinates, to_pixels
from grpo_mm.rewards.spatial.boxes import as_boxes, iou
from grpo_mm.types import Prompt

SHAPES = ("circle", "square", "triangle")
COLORS = ("red", "green", "blue", "yellow", "purple", "cyan")
STEPS = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}
"""Where the first thing lies as seen from the second; y grows downwards."""
SAME_BOX = 0.5
"""The IoU from which a claimed box is that of the thing."""


class Thing(NamedTuple):
    """Example: Thing("red", "circle"), or Thing(None, "circle") where no colour is named."""

    color: str | None
    shape: str


class Claim(NamedTuple):
    """Examples: Claim("relation", red_circle, "left", blue_square), Claim("count", circle, 2), Claim("color", circle, "red"),
    Claim("box", red_circle, (4, 10, 20, 26))."""

    kind: str
    about: Thing | None
    """None in a count: of what is asked about."""
    value: Any
    other: Thing | None = None
    """Of a relation; None: the other thing of the question."""


@dataclass
class _Reading:
    """What the words so far have opened."""

    thing: Thing | None = None
    """The last one, of which a colour, a box or a direction is said."""
    subject: Thing | None = None
    """What "it" means in the next clause, if not the last thing: "the circle is left of the square. It is red." """
    color: str | None = None
    number: float | None = None
    is_counted: bool = False
    """The number follows "there are" and the like."""
    relation: tuple[Thing, str] | None = None
    claims: list[Claim] = field(default_factory=list)

    def close(self, *, clause: bool) -> None:
        """A colour or number that no shape followed says something of what came before; at the end of a clause a relation
        without a second thing is to the other one."""
        if self.color is not None and self.thing is not None:
            self.claims.append(Claim("color", self.thing, self.color))
        if self.number is not None and self.is_counted:
            self.claims.append(Claim("count", None, self.number))
        if clause and self.relation is not None:
            self.claims.append(Claim("relation", *self.relation))
            self.relation = None
        if clause and self.subject is not None:
            self.thing, self.subject = self.subject, None
        self.color = self.number = None


_NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
_COORDINATE = r"\s*+\d{1,6}(?:\.\d{1,6})?+\s*+"
_TOKEN = re.compile(
    rf"[\[(](?P<box>{_COORDINATE},{_COORDINATE},{_COORDINATE},{_COORDINATE})[\])]"
    rf"|\b(?P<color>{'|'.join(COLORS)})\b"
    rf"|\b(?P<shape>{'|'.join(SHAPES)})s?\b"
    rf"|\b(?P<relation>{'|'.join(STEPS)})\b"
    rf"|\b(?P<number>\d{{1,4}}|{'|'.join(_NUMBERS)})\b(?!\.\d)"
    r"|(?P<end>[.;!?\n](?!\d)|\bso\b)",
    re.IGNORECASE,
)
_COUNTING = re.compile(r"\b(?:there (?:are|is)|total of|count is|number (?:of \w+ )?is|adds? up to)\s+$", re.IGNORECASE)


def claims_in(text: str) -> list[Claim]:
    """The claims in the order of the text, each once: saying it again adds nothing.

    Example: claims_in("the red circle is at [4, 10, 20, 26] so it is left of the blue square") holds the claims of a box
    and a relation.
    """
    now, end = _Reading(), -2
    for token in _TOKEN.finditer(text):
        follows = token.start() - end <= 1  # only a blank between
        end = token.end()
        kind, said = token.lastgroup, token[token.lastgroup].lower()
        if kind == "shape":
            _name(now, Thing(now.color if follows else None, said), follows=follows)
            continue
        if not (kind == "color" and follows and now.number is not None):
            now.close(clause=kind == "end")
        if kind == "color":
            now.color = said
        elif kind == "number":
            now.number = float(_NUMBERS.get(said) or said)
            now.is_counted = bool(_COUNTING.search(text[max(0, token.start() - 24) : token.start()]))
        elif now.thing is not None and kind == "box":
            now.claims.append(Claim("box", now.thing, tuple(map(float, said.split(",")))))
        elif now.thing is not None and kind == "relation":
            now.relation = (now.thing, said)
    now.close(clause=True)
    return list(dict.fromkeys(now.claims))


def _name(now: _Reading, thing: Thing, *, follows: bool) -> None:
    """A thing is named, with the colour and the number right before it."""
    if not follows:
        now.close(clause=False)
    if now.number is not None:
        now.claims.append(Claim("count", thing, now.number))
    if thing.color is not None:
        now.claims.append(Claim("color", Thing(None, thing.shape), thing.color))
    now.color = now.number = None
    if now.relation is not None and now.relation[0] != thing:
        now.claims.append(Claim("relation", *now.relation, thing))
        now.subject, now.relation = now.relation[0], None
    now.thing = thing


def can_check(prompt: Prompt) -> bool:
    """Whether the prompt's target has "boxes" (x1, y1, x2, y2 in pixels) and "box_names" that are all coloured shapes."""
    target = target_of(prompt)
    boxes, names = target.get("boxes"), target.get("box_names")
    return bool(boxes) and bool(names) and len(boxes) == len(names) and all(_thing(name) for name in names)


def check_claims(text: str, prompt: Prompt, *, coordinates: Coordinates = "absolute") -> tuple[int, int, int]:
    """(right, wrong, of something the target does not tell) claims.

    The target tells of the things of the question only: of others nothing is known, not that they are absent. Directions
    hold if the thing's middle lies that way, and by at least half of what it lies to either side of it.

    Args:
        coordinates: of the boxes in the text; those of the target are in pixels of the original picture.

    Raises:
        ValueError: the target lacks a size that the conversion of coordinates needs.
    """
    target = target_of(prompt)
    found = [_holds(_in_pixels(claim, prompt, coordinates), target) for claim in claims_in(text)]
    return found.count(True), found.count(False), found.count(None)


def _in_pixels(claim: Claim, prompt: Prompt, coordinates: Coordinates) -> Claim:
    if claim.kind != "box":
        return claim
    return claim._replace(value=tuple(to_pixels(as_boxes([claim.value]), coordinates, prompt)[0].tolist()))


def _thing(name: str) -> Thing | None:
    *color, shape = str(name).lower().split() or [""]
    if shape not in SHAPES or len(color) > 1 or any(word not in COLORS for word in color):
        return None
    return Thing(color[0] if color else None, shape)


def _holds(claim: Claim, target: Mapping[str, Any]) -> bool | None:
    known = [_thing(name) for name in target["box_names"]]
    asked = target.get("question_type")
    if claim.kind == "count":
        counted = asked == "count" and (claim.about is None or claim.about == known[0])
        return claim.value == len(known) if counted else None
    places = list(_named(claim.about, known))
    if claim.kind == "color":
        if asked == "color" and claim.about.shape == known[0].shape:  # the only one of its shape
            return claim.value == target.get("answer")
        colors = {known[place].color for place in places} if claim.about.color is not None else set()
        return None if not colors or None in colors else claim.value in colors
    if not places:
        return None
    boxes = as_boxes(target["boxes"])
    if claim.kind == "box":
        return bool((iou(as_boxes([claim.value]), boxes[places]) >= SAME_BOX).any())
    others = [place for place in range(len(known)) if place not in places] if claim.other is None else [
        *_named(claim.other, known)
    ]  # fmt: skip
    if len(places) != 1 or len(others) != 1 or places == others:
        return None
    step_x, step_y = STEPS[claim.value]
    middle_R2 = (boxes[:, :2] + boxes[:, 2:]) / 2
    dx, dy = (middle_R2[places[0]] - middle_R2[others[0]]).tolist()
    along, across = dx * step_x + dy * step_y, abs(dx * step_y) + abs(dy * step_x)
    return along > 0 and 2 * along >= across


def _named(thing: Thing, known: list[Thing]) -> Iterator[int]:
    """Places of the known things that the words may mean."""
    for place, other in enumerate(known):
        if thing.shape == other.shape and (thing.color is None or other.color is None or thing.color == other.color):
            yield place
