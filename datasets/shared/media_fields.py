"""Pictures and videos that rows bring, under whatever key: shown where it is clear what is meant, else refused by the key's name."""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_mm.datasets.media.encoded_picture import EncodedPicture
from grpo_mm.datasets.media.media_files import ImageFile, VideoFile
from grpo_mm.datasets.media.pictures import PictureError
from grpo_mm.datasets.media.written_media import file_name, is_data_url, written_bytes
from grpo_mm.datasets.shared.columns import cells
from grpo_mm.datasets.shared.markers import Kind
from grpo_mm.datasets.shared.row_check import text_problem
from grpo_mm.errors import ConfigError
from grpo_mm.media_words import media_key
from grpo_mm.outside import finite_number, plain, shown

KEYS: dict[Kind, tuple[str, ...]] = {
    "image": ("images", "image", "image_path", "image_paths", "img", "imgs", "img_path", "picture", "pictures"),
    "video": ("videos", "video", "video_path", "video_paths"),
}
"""Where rows of conversations have their media: one of these each."""
WINDOW = (("video_start", "start"), ("video_end", "end"))
"""Of an object that names a video: the seconds where its part begins and ends."""
STILL = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".ppm")
"""Endings of pictures that are no videos."""
NO_FRAMES = (
    "Frames of a video as a list of pictures are not read: give the video file, or put the pictures under 'images'."
)
SETTINGS = (
    "fps", "nframes", "min_frames", "max_frames", "min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width",
)  # fmt: skip
"""What parts of a turn say of sizes and rates, which the run's own settings decide."""
log = logging.getLogger(__name__)


def media_of(
    row: Mapping[str, Any], folders: Mapping[Kind, str], where: str, *, left_alone: Collection[str] = ()
) -> dict[Kind, list[ImageFile | VideoFile | Any]]:
    """The pictures and videos of a row of a conversation, by their kind, in order.

    A key of `KEYS` holds a file name below its folder, {"path": name}, a picture as bytes, as a data URL or in bare base64, or a
    list of these; null, "" and [] are none. {"path": name, "start": 1.0, "end": 2.5} is a part of a video.

    Args:
        left_alone: keys that hold no media of the question: the conversation, and what is for rewards only.

    Raises:
        ConfigError: any other key that holds media, two keys of one kind, or a value that is none of these.
    """
    found: dict[Kind, list[Any]] = {"image": [], "video": []}
    for kind, keys in KEYS.items():
        own = {key: row[key] for key in row if key in keys and key not in left_alone and not is_empty(row[key])}
        if len(own) > 1 and any(value != next(iter(own.values())) for value in own.values()):
            raise ConfigError(f"{where}: {' and '.join(map(shown, own))} both hold {kind}s; wanted one of them.")
        for key, value in list(own.items())[:1]:
            values = value if isinstance(value, (list, tuple)) else [value]
            found[kind] = [medium(one, kind, folders[kind], f"{where}: {key}") for one in values]
    known = {*KEYS["image"], *KEYS["video"], *left_alone}
    if key := media_key({name: value for name, value in cells(row) if name not in known}):
        raise ConfigError(
            f"{where}: {shown(key)} holds {shown(row[key], 60)}, which looks like a picture, video or sound and would not be shown. "
            f"Put pictures under 'images' and videos under 'videos', or name the key in `for_rewards` if only rewards want it."
        )
    return found


def medium(value: Any, kind: Kind, folder: str, where: str) -> ImageFile | VideoFile | Any:
    """One picture or video.

    Raises:
        ConfigError: an address on the network, or something that is no name and no picture.
    """
    window: tuple[float | None, float | None] = (None, None)
    if isinstance(value, Mapping):
        window = video_window(value, where) if kind == "video" else window
        value = _inside(value, kind, where)
    if isinstance(value, bytearray | memoryview):
        value = bytes(value)
    if isinstance(value, str):
        value = _decoded(value, kind, where)
    if isinstance(value, str) and not text_problem(value):
        name = file_name(value)
        if "://" in name:
            raise ConfigError(f"{where}: {shown(name, 80)} is an address; nothing is downloaded. Give a file name.")
        if kind == "image":
            return ImageFile(str(Path(folder) / name))
        if name.lower().endswith(STILL):
            raise ConfigError(f"{where}: {shown(name, 80)} is a picture, and stands where a video does. {NO_FRAMES}")
        return VideoFile(str(Path(folder) / name), *window)
    if kind == "image" and (isinstance(value, bytes) or hasattr(value, "to_pybytes")):
        return _encoded(value, where)
    if kind == "image" and hasattr(value, "convert"):
        return value
    if isinstance(value, bytes) or hasattr(value, "to_pybytes"):
        raise ConfigError(
            f"{where} holds the bytes of a {kind}; wanted the name of a file. Set `unpack` of {{kind: table}} to a folder for them."
        )
    advice = NO_FRAMES if kind == "video" and isinstance(value, list) else ""
    raise ConfigError(
        f"{where} is {shown(value, 80)}, wanted a file name ({kind}), or a list of file names. {advice}".rstrip()
    )


def video_window(value: Mapping[str, Any], where: str) -> tuple[float | None, float | None]:
    """Start and end in seconds of an object that names a video; None where it says nothing.

    Raises:
        ConfigError: they are no seconds in order, or two keys say one of them.
    """
    found: list[float | None] = []
    for keys in WINDOW:
        held = {key: value[key] for key in keys if value.get(key) is not None}
        if len(held) > 1:
            raise ConfigError(f"{where}: {' and '.join(map(shown, held))} say the same; wanted one of them.")
        found += [None] if not held else [finite_number(one) for one in held.values()]
        if held and (found[-1] is None or found[-1] < 0):
            raise ConfigError(
                f"{where}: {shown(next(iter(held)))} is {shown(next(iter(held.values())))}, wanted seconds from 0 on."
            )
    start, end = found
    if end is not None and not (start or 0.0) < end:
        raise ConfigError(
            f"{where}: the part of a video from {start or 0.0:g} s to {end:g} s; wanted an end after its start."
        )
    return start, end


def content_parts(
    content: Any, folders: Mapping[Kind, str], where: str
) -> tuple[str, list[tuple[Kind, ImageFile | VideoFile | Any | None]]]:
    """The text of a turn's content with a marker for each medium, and the media; None for one that another key of the row holds, or
    its number there ("index", from 0).

    A content is a text, or a list of {"type": "text", "text": …}, {"type": "image", "image": name}, {"type": "image_url",
    "image_url": {"url": name}}, {"type": "video", "video": name, "video_start": 1.0, "video_end": 2.5}, and {"type": "image"} alone.

    Raises:
        ConfigError: a part of another form, or a marker in the texts of a list that has media.
    """
    if isinstance(content, str):
        return content, []
    if not isinstance(content, list):
        raise ConfigError(f"{where}: the content of a turn is {shown(content)}; wanted a text or a list of parts.")
    texts: list[str] = []
    media: list[tuple[Kind, Any]] = []
    for part in content:
        part = _typed(part)
        if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
            raise ConfigError(f"{where}: a part of a turn is {shown(part)}; wanted an object with a type.")
        kind = part["type"]
        if kind in ("text", "input_text") and isinstance(part.get("text"), str):
            if key := media_key({name: value for name, value in part.items() if name not in ("type", "text")}):
                raise ConfigError(
                    f"{where}: a part that is text holds {shown(key)} as well; give it a part of its own."
                )
            texts.append(part["text"])
            continue
        own: Kind | None = next((k for k in KEYS if kind in (k, f"{k}_url", f"input_{k}")), None)
        if own is None:
            raise ConfigError(f"{where}: a part of a turn has the type {shown(kind)}; wanted text, image or video.")
        for name in SETTINGS:
            if part.get(name) is not None:
                _say_ignored(name)
        cut = next((name for name in ("video_start", "video_end") if part.get(name) is not None), None)
        if own != "video" and cut:
            raise ConfigError(f"{where}: {shown(part)} is no video, but has {cut!r}.")
        held = [value for name, value in part.items() if name not in ("type", "index") and value not in (None, "")]
        named = next((part[name] for name in (own, f"{own}_url", "url", "path") if part.get(name)), None)
        if named is None and (encoded := part.get("base64")):
            named = {"bytes": encoded}
        if named is None and held:
            raise ConfigError(f"{where}: {shown(part)} names no file; wanted it under {own!r}.")
        if own == "video" and isinstance(named, str):
            named = {"path": named} | {key: part[key] for keys in WINDOW for key in keys if key in part}
        index = part.get("index")
        place = index if type(index) is int and named is None else None
        media.append((own, place if named is None else medium(named, own, folders[own], where)))
        texts.append(f"<{own}>")
    text = "".join(texts)
    if media and sum(text.count(f"<{kind}>") for kind in KEYS) != len(media):
        raise ConfigError(f"{where}: a text of {plain(text, 80)!r} holds a marker beside the parts that are media.")
    return text, media


def _typed(part: Any) -> Any:
    """A part with its type: a text, and {"text": …}, {"image": …} and {"video": …} alone say it themselves."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, Mapping) and "type" not in part:
        named = [name for name in ("text", "image", "video") if part.get(name) is not None]
        return {"type": named[0], **part} if len(named) == 1 else part
    return part


@functools.cache
def _say_ignored(name: str) -> None:
    log.warning(
        "parts of turns hold %s, which is not followed: policy.media.sampling and policy.image_pixels decide for all rows",
        shown(name),
    )


def check_markers(markers: Sequence[str], found: Mapping[Kind, Sequence[Any]], where: str) -> None:
    """Raises ConfigError unless the questions have a marker for each of the media, or none at all."""
    for kind, items in found.items():
        count = sum(marker == kind for marker in markers)
        if count != len(items) and (markers or count):
            raise ConfigError(f"{where}: {count} markers <{kind}> for {len(items)} files.")


def _decoded(text: str, kind: Kind, where: str) -> str | bytes:
    """The bytes of a data URL or of a picture in bare base64; any other text as it is."""
    try:
        data = written_bytes(text) if kind == "image" or is_data_url(text.strip()) else None
    except ValueError as error:
        raise ConfigError(
            f"{where}: {shown(text, 60)} is a {'picture' if kind == 'image' else kind} that cannot be decoded: {error}."
        ) from error
    return text if data is None else data


def _encoded(value: Any, where: str) -> EncodedPicture:
    """Looked at no further than its head: what is damaged behind it fails when it is shown, as a file does."""
    found = EncodedPicture(value, where)
    if value[:4] in (b"\x89PNG", b"GIF8", b"RIFF") or value[:3] == b"\xff\xd8\xff":
        return found  # a view of a large table stays one
    try:
        found.size()
    except PictureError as error:
        raise ConfigError(f"{where}: {len(found.encoded)} bytes that are no picture: {error.reason}.") from error
    return found


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing: null, "", []; whatever the types of others make of `==`."""
    return value is None or (isinstance(value, (str, list, tuple)) and not value)


def _inside(value: Mapping[str, Any], kind: Kind, where: str) -> Any:
    """The one name, address or bytes of an object."""
    held = {name: one for name, one in value.items() if not is_empty(one)}
    for name in ("bytes", "path", "url", "filename", "file_name", kind):
        if name in held:
            is_text = name == "bytes" and isinstance(held[name], str) and not is_data_url(held[name])
            return f"data:;base64,{held[name]}" if is_text else held[name]
    raise ConfigError(f"{where} is {shown(value, 80)}, wanted a file name ({kind}) under 'path'.")
