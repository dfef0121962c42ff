"""Pictures and videos that rows bring, under whatever key: shown where it is clear what is meant, else refused by the key's name."""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from grpo_mm.datasets.media.media_files import ImageFile, VideoFile
from grpo_mm.datasets.media.written_media import file_name, is_data_url
from grpo_mm.datasets.shared.annotated_rows import picture
from grpo_mm.datasets.shared.row_check import text_problem
from grpo_mm.errors import ConfigError
from grpo_mm.media_words import media_key
from grpo_mm.outside import finite_number, plain, shown

Kind = Literal["image", "video"]
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
        own = {key: row[key] for key in row if key in keys and key not in left_alone and not _is_none(row[key])}
        if len(own) > 1 and any(value != next(iter(own.values())) for value in own.values()):
            raise ConfigError(f"{where}: {' and '.join(map(shown, own))} both hold {kind}s; wanted one of them.")
        for key, value in list(own.items())[:1]:
            values = value if isinstance(value, (list, tuple)) else [value]
            found[kind] = [medium(one, kind, folders[kind], f"{where}: {key}") for one in values]
    known = {*KEYS["image"], *KEYS["video"], *left_alone}
    if key := media_key({name: value for name, value in row.items() if name not in known}):
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
    if kind == "image":
        named = value.strip() if isinstance(value, str) else ""
        if isinstance(value, bytes | bytearray | memoryview) or (
            named and not text_problem(named) and "://" not in named
        ):
            return picture(value, folder, where)
        if is_data_url(named) or named[:7].lower() == "file://":
            return picture(value, folder, where)
    if isinstance(value, str) and not text_problem(value):
        name = file_name(value)
        if "://" in name:
            raise ConfigError(f"{where}: {shown(name, 80)} is an address; nothing is downloaded. Give a file name.")
        if kind == "video" and name.lower().endswith(STILL):
            raise ConfigError(f"{where}: {shown(name, 80)} is a picture, and stands where a video does. {NO_FRAMES}")
        if kind == "video" and not is_data_url(name):
            return VideoFile(str(Path(folder) / name), *window)
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
    """The text of a turn's content with a marker for each medium, and the media; None for one that another key of the row holds.

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
        held = [value for name, value in part.items() if name != "type" and value is not None]
        named = next((part[name] for name in (own, f"{own}_url", "url", "path") if part.get(name)), None)
        if named is None and (encoded := part.get("base64")):
            named = {"bytes": encoded}
        if named is None and held:
            raise ConfigError(f"{where}: {shown(part)} names no file; wanted it under {own!r}.")
        if own == "video" and isinstance(named, str):
            named = {"path": named} | {key: part[key] for keys in WINDOW for key in keys if key in part}
        media.append((own, None if named is None else medium(named, own, folders[own], where)))
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


def _is_none(value: Any) -> bool:
    return value is None or (isinstance(value, (str, list, tuple)) and not value)


def _inside(value: Mapping[str, Any], kind: Kind, where: str) -> Any:
    """The one name, address or bytes of an object."""
    held = {name: one for name, one in value.items() if not _is_none(one)}
    for name in ("bytes", "path", "url", "filename", "file_name", kind):
        if name in held:
            is_text = name == "bytes" and isinstance(held[name], str) and not is_data_url(held[name])
            return f"data:;base64,{held[name]}" if is_text else held[name]
    raise ConfigError(f"{where} is {shown(value, 80)}, wanted a file name ({kind}) under 'path'.")
