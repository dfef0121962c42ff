"""A picture whose file lies within another: in a table, a data URL, a memory-mapped data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from grpo_mm.datasets.media.pictures import PictureError, open_picture, picture_size


@dataclass(frozen=True, eq=False)
class EncodedPicture:
    """The bytes of a picture file as they lie there; decoded when they are shown, and not kept decoded.

    Example: EncodedPicture(b"\\x89PNG…", name="train.parquet, row 3: image")
    """

    data: Any
    """bytes, or a buffer of pyarrow, which may be a view of a memory-mapped file."""
    name: str
    """Where it stands, for messages."""

    @property
    def encoded(self) -> bytes:
        return self.data if isinstance(self.data, bytes) else self.data.to_pybytes()

    def open(self) -> Any:
        """As `open_picture`; raises PictureError, which names the place."""
        return self._named(open_picture)

    def size(self) -> tuple[int, int]:
        """As `picture_size`; raises PictureError, which names the place."""
        return self._named(picture_size)

    def _named(self, read: Any) -> Any:
        try:
            return read(self.encoded)
        except PictureError as error:
            raise PictureError(self.name, error.reason) from error

    def __deepcopy__(self, memo: Any) -> EncodedPicture:
        return self  # nothing in it can be changed
