"""The pictures, clips, edits and writings that scorers are tried on: drawn by whole numbers, so that their bytes are the same everywhere.

They have what goes wrong with scorers: three sizes and shapes that are not square, colours that differ when red and blue are exchanged,
lines of one and three pixels that another resize mixes otherwise, texts that fit one of them each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from grpo_mm.types import Clip, Clips, Prompt

SIZES = ((192, 256), (256, 176), (160, 320))
"""Height and width of the three."""
TEXTS = (
    "a red disc to the left of a blue square on a pale floor",
    "three green bars under a yellow sky",
    "an orange triangle on a black and white checkerboard",
)
EDITS = ("Make the disc green.", "Turn the yellow sky violet.", "Take the triangle away.")
WORDS = (("OPEN 24", "OPEN 24", 1), ("GRPO", "GRPO 42", 4), ("CAFE", "CAFE", 2))
"""What is written, what is asked for, and how many pixels a square of a letter has."""
CLIP_FRAMES, CLIP_FPS = 8, 8.0


@dataclass(frozen=True)
class Subject:
    """One that is scored: items of one output, and its prompt."""

    items: Any
    """uint8 [1, 3, H, W], or `Clips` of one."""
    prompt: Prompt


def subjects(kind: str) -> list[Subject]:
    """Three of a kind: pictures, edits, clips or writings."""
    return KINDS[kind]()


def _pictures() -> list[Subject]:
    return [Subject(picture(i)[None], Prompt(f"golden/{i}", TEXTS[i])) for i in range(3)]


def _edits() -> list[Subject]:
    found = []
    for i, instruction in enumerate(EDITS):
        prompt = Prompt(f"golden/{i}", instruction, (_pil(picture(i)),))
        found.append(Subject(picture(i, edited=True)[None], prompt))
    return found


def _clips() -> list[Subject]:
    texts = ("a red disc rolls to the right", "the green bars sink", "the triangle moves over the checkerboard")
    found = []
    for i, text in enumerate(texts):
        frames = torch.stack([picture(i, moved=4 * f) for f in range(CLIP_FRAMES)])
        found.append(Subject(Clips([Clip(frames, CLIP_FPS)]), Prompt(f"golden/{i}", text)))
    return found


def _writings() -> list[Subject]:
    return [
        Subject(written(word, scale=scale)[None], Prompt(f"golden/{i}", f'a sign that says "{asked}"'))
        for i, (word, asked, scale) in enumerate(WORDS)
    ]


KINDS: dict[str, Callable[[], list[Subject]]] = {
    "pictures": _pictures, "edits": _edits, "clips": _clips, "writings": _writings,
}  # fmt: skip


def picture(number: int, *, moved: int = 0, edited: bool = False) -> Tensor:
    """uint8 [3, H, W]; moved: what stands in front, by so many pixels; edited: as `EDITS` asks."""
    height, width = SIZES[number]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    if number == 0:
        canvas = _shade((214, 204, 190), x // 4 + y // 3)
        disc = (x - 74 - moved) ** 2 + (y - 96) ** 2 < 52**2
        canvas = _paint(canvas, disc, (40, 170, 60) if edited else (208, 32, 38))
        canvas = _paint(canvas, (x - 74 - moved) ** 2 + (y - 96) ** 2 < 9**2, (250, 240, 230))
        canvas = _paint(canvas, (x > 152) & (x < 232) & (y > 62) & (y < 142), (28, 56, 190))
        return _paint(canvas, (y > 160) & (x % 2 == 0), (120, 96, 80))  # lines of one pixel
    if number == 1:
        canvas = _shade((150, 60, 190) if edited else (240, 206, 60), y // 3)
        canvas = _paint(canvas, y > 150, (96, 84, 70))
        for left, top in ((20, 70), (70, 96), (120, 52)):
            bar = (x >= left) & (x < left + 34) & (y > top + moved) & (y < 214)
            canvas = _paint(canvas, bar, (34, 140, 66))
            canvas = _paint(canvas, bar & ((x + y) % 6 < 3), (88, 196, 110))  # lines of three
        return canvas
    board = (x // 8 + y // 8) % 2 == 0
    canvas = _paint(_shade((12, 14, 20), x * 0), board, (244, 244, 240))
    if edited:
        return canvas
    inside = (y > 30) & (y < 136) & ((x - 130 - moved).abs() * 2 < (y - 30))
    return _paint(canvas, inside, (236, 130, 28))


def written(word: str, *, scale: int = 6) -> Tensor:
    """uint8 [3, H, W]: dark letters of 5 × 7 squares on a pale plate."""
    plate = torch.zeros(7, 6 * len(word) - 1, dtype=torch.bool)
    for i, letter in enumerate(word):
        for row, bits in enumerate(LETTERS[letter]):
            for column in range(5):
                plate[row, 6 * i + column] = bool(bits >> (4 - column) & 1)
    mask = plate.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    mask = torch.nn.functional.pad(mask, (24, 24, 24, 24))
    y, x = torch.meshgrid(torch.arange(mask.shape[0]), torch.arange(mask.shape[1]), indexing="ij")
    return _paint(_shade((236, 232, 220), x // 8 + y // 8), mask, (30, 34, 90))


def _shade(colour: tuple[int, int, int], by: Tensor) -> Tensor:
    """A colour that darkens with `by`, which is [H, W] of whole numbers."""
    flat = torch.tensor(colour)[:, None, None].expand(3, *by.shape)
    return (flat - by[None] // torch.tensor([2, 3, 4])[:, None, None]).clamp(0, 255).to(torch.uint8)


def _paint(canvas: Tensor, where: Tensor, colour: tuple[int, int, int]) -> Tensor:
    return torch.where(where[None], torch.tensor(colour, dtype=torch.uint8)[:, None, None], canvas)


def _pil(picture_CHW: Tensor) -> Any:
    from PIL import Image

    return Image.fromarray(picture_CHW.permute(1, 2, 0).contiguous().numpy())


LETTERS = {
    "A": (14, 17, 17, 31, 17, 17, 17), "C": (14, 17, 16, 16, 16, 17, 14), "E": (31, 16, 16, 30, 16, 16, 31),
    "F": (31, 16, 16, 30, 16, 16, 16), "G": (14, 17, 16, 23, 17, 17, 15), "N": (17, 25, 21, 19, 17, 17, 17),
    "O": (14, 17, 17, 17, 17, 17, 14), "P": (30, 17, 17, 30, 16, 16, 16), "R": (30, 17, 17, 30, 20, 18, 17),
    "2": (14, 17, 1, 2, 4, 8, 31), "4": (2, 6, 10, 18, 31, 2, 2), " ": (0,) * 7,
}  # fmt: skip
"""Seven rows of five bits each."""


# What scorers are wrong by, done to what they are shown.


def _exchanged_colours(all_of: list[Subject]) -> list[Subject]:
    return [_shown(one, lambda pixels: pixels.flip(-3)) for one in all_of]


def _rough_resize(all_of: list[Subject]) -> list[Subject]:
    """Every second pixel twice, as a resize by the nearest pixel leaves it."""

    def rough(pixels: Tensor) -> Tensor:
        half = pixels[..., ::2, ::2]
        return half.repeat_interleave(2, -1).repeat_interleave(2, -2)[..., : pixels.shape[-2], : pixels.shape[-1]]

    return [_shown(one, rough) for one in all_of]


def _other_texts(all_of: list[Subject]) -> list[Subject]:
    return [
        replace(one, prompt=replace(one.prompt, text=other.prompt.text))
        for one, other in zip(all_of, [*all_of[1:], all_of[0]])
    ]


def _reversed_time(all_of: list[Subject]) -> list[Subject]:
    return [_shown(one, lambda pixels: pixels.flip(0)) for one in all_of]


def _exchanged_pictures(all_of: list[Subject]) -> list[Subject]:
    """The edited picture where the source should be, and the other way round."""
    import numpy as np

    found = []
    for one in all_of:
        source = torch.from_numpy(np.array(one.prompt.media[0])).permute(2, 0, 1)[None].contiguous()
        found.append(Subject(source, replace(one.prompt, media=(_pil(one.items[0]),))))
    return found


def _shown(one: Subject, change: Callable[[Tensor], Tensor]) -> Subject:
    """With other pixels, those of the prompt's picture too."""
    import numpy as np

    media = tuple(
        _pil(change(torch.from_numpy(np.array(medium)).permute(2, 0, 1)).contiguous()) for medium in one.prompt.media
    )
    if isinstance(one.items, Clips):
        items: Any = Clips(replace(clip, frames_FCHW=change(clip.frames_FCHW).contiguous()) for clip in one.items)
    else:
        items = change(one.items).contiguous()
    return Subject(items, replace(one.prompt, media=media))


FAULTS: dict[str, tuple[tuple[str, ...], str, Callable[[list[Subject]], list[Subject]]]] = {
    "colours": (("pictures", "edits", "clips", "writings"), "red and blue exchanged", _exchanged_colours),
    "resize": (("pictures", "edits", "clips", "writings"), "a rough resize (nearest pixel)", _rough_resize),
    "texts": (("pictures", "edits", "clips", "writings"), "the text of another picture", _other_texts),
    "time": (("clips",), "the frames in reverse", _reversed_time),
    "order": (("edits",), "source and edited picture exchanged", _exchanged_pictures),
}
"""Name -> kinds it can be done to, in words, how."""
