"""The control of seeing: the same questions about pictures that show nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np

from grpo_mm.datasets.media.encoded_picture import EncodedPicture
from grpo_mm.datasets.media.media_files import ImageFile
from grpo_mm.datasets.media.pictures import PictureError, as_shown, picture_size
from grpo_mm.errors import ConfigError
from grpo_mm.registry import Role
from grpo_mm.types import Prompt


@dataclass(frozen=True)
class Blanked:
    """Each prompt of another source with grey pictures of the same size; targets stay.

    What a model scores here it has from the words alone: evaluate a run with it (eval_prompts.NAME.use={kind: blanked, of: …}).
    """

    of: Annotated[Any, Role("prompts")]
    shade: int = 128
    """Of 255, in all channels."""

    def __post_init__(self) -> None:
        if not 0 <= self.shade <= 255:
            raise ConfigError(f"blanked: shade = {self.shade}; wanted 0 to 255.")

    def check(self) -> None:
        if hasattr(self.of, "check"):
            self.of.check()

    def load(self) -> list[Prompt]:
        """Raises ConfigError for a prompt with a video."""
        return [replace(p, media=tuple(self._blank(item, p.id) for item in p.media)) for p in self.of.load()]

    def _blank(self, item: Any, prompt_id: str) -> Any:
        from PIL import Image

        if isinstance(item, ImageFile | EncodedPicture):
            try:
                size = item.size() if isinstance(item, EncodedPicture) else picture_size(item.path)
            except PictureError:  # stays, so that its row fails by name
                return item
        elif isinstance(item, Image.Image):
            size = as_shown(item).size
        elif getattr(item, "ndim", 0) == 3:  # uint8 [3, H, W]
            size = tuple(item.shape[:0:-1])
        else:
            raise ConfigError(f"blanked: {prompt_id!r} shows {type(item).__name__}; wanted pictures only.")
        return Image.fromarray(np.full((size[1], size[0], 3), self.shade, dtype=np.uint8))
