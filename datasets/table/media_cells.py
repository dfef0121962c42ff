"""Media of a cell: names of files, addresses of them in lists and texts, encoded pictures, Hugging Face's features."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from grpo_mm.datasets.media.encoded_picture import EncodedPicture
from grpo_mm.datasets.media.media_files import ImageFile, VideoFile
from grpo_mm.datasets.media.pictures import picture_format
from grpo_mm.datasets.shared.annotated_rows import written
from grpo_mm.datasets.shared.markers import Kind
from grpo_mm.datasets.shared.media_fields import is_empty, medium
from grpo_mm.datasets.table.media_folder import PICTURES
from grpo_mm.datasets.video.grounding import EXTENSIONS, find_video
from grpo_mm.errors import ConfigError
from grpo_mm.outside import BadJson, parse_json, shown


class MediaCells:
    """Opens nothing: makes of each cell what the media of a prompt hold.

    Names are relative to `folder`; without one to the source's own, or to the working folder if the first file lies there.
    """

    def __init__(self, folder: str | None, *, beside: str, unpack: str | None) -> None:
        self.folder, self.beside, self.unpack = folder, beside, unpack

    def read(self, value: Any, kind: Kind, where: str) -> list[Any]:
        """The pictures or videos of a cell, in order; [] for an empty one. Raises ConfigError as `medium`."""
        if isinstance(value, str) and value.strip().startswith("["):
            value = _list_of(value, where)
        values = value if isinstance(value, (list, tuple)) else [value]
        return [self._one(one, kind, where) for one in values if not is_empty(one)]

    def base(self, name: str) -> str:
        """The folder that names are relative to, found out with the first of them."""
        if self.folder is None:
            lies_beside = find_video(self.beside, name, EXTENSIONS) is not None
            self.folder = "." if not lies_beside and find_video(".", name, EXTENSIONS) is not None else self.beside
        return self.folder

    def _one(self, value: Any, kind: Kind, where: str) -> Any:
        name = value.get("path") if isinstance(value, Mapping) else value
        if kind == "video" and isinstance(name, str) and Path(name).suffix.lower() in PICTURES:
            raise ConfigError(
                f"{where}: {shown(name, 80)} is a picture, where a video is wanted. Frames as a list are not read as a video; put them "
                "under `images`, or write a video."
            )
        data = value.get("bytes") if isinstance(value, Mapping) else value
        if self.unpack is not None and (isinstance(data, bytes) or hasattr(data, "to_pybytes")):
            return self._unpacked(data, name if isinstance(name, str) else "", kind)
        base = self.base(name.strip()) if isinstance(name, str) and len(name) < 1000 else self.folder or self.beside
        found = medium(value, kind, base, where)
        if isinstance(found, EncodedPicture) and self.unpack is not None:
            return self._unpacked(found.encoded, "", kind)
        if isinstance(found, VideoFile) and Path(found.path).suffix.lower() not in EXTENSIONS:
            path = find_video(".", found.path, EXTENSIONS)
            return found if path is None else replace(found, path=path)
        return found

    def _unpacked(self, data: Any, name: str, kind: Kind) -> ImageFile | VideoFile:
        encoded = data if isinstance(data, bytes) else data.to_pybytes()
        suffix = picture_format(encoded).lower() if kind == "image" else Path(name).suffix.lstrip(".") or "mp4"
        path = written(encoded, Path(self.unpack or "."), suffix)
        return ImageFile(path) if kind == "image" else VideoFile(path)


def _list_of(text: str, where: str) -> Any:
    """Of a table of text: "['a.png', 'b.png']"."""
    for read in (parse_json, ast.literal_eval):
        try:
            return read(text.strip())
        except (BadJson, ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise ConfigError(f"{where} is {shown(text, 80)}, wanted the name of a file, or a list of names.")
