"""Pictures and videos as rows write them: every reader reads the same texts the same way, parts of videos included."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

import numpy as np
import pytest
import torch
from odd_media import encoded, quarters, seen

from grpo_mm.datasets.chat.messages import Messages
from grpo_mm.datasets.media.frame_store import FrameStore
from grpo_mm.datasets.media.media_files import ImageFile, VideoFile
from grpo_mm.datasets.media.pictures import PictureError, open_picture
from grpo_mm.datasets.shared import media_fields
from grpo_mm.datasets.shared.annotated_rows import annotated_rows, picture
from grpo_mm.datasets.shared.media_fields import medium
from grpo_mm.errors import ConfigError

FORMS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF")
DATA = encoded(quarters(), "PNG")
CODE = base64.b64encode(DATA).decode()
NAMES = {
    "a.png": "a.png", " a.png\n": "a.png", "file://{folder}/a.png": "a.png", "file:{folder}/a.png": "a.png",
    "file://localhost{folder}/a.png": "a.png", "FILE://{folder}/a%20b.png": "a b.png", "file://{folder}/c%20d.png": "c%20d.png",
}  # fmt: skip
URLS = {
    "as it should be": f"data:image/png;base64,{CODE}", "in capitals": f"DATA:image/png;BASE64,{CODE}", "with blanks": f"  data:image/png;base64,{CODE}\n",
    "without padding": f"data:image/png;base64,{CODE.rstrip('=')}", "for addresses": f"data:image/png;base64,{base64.urlsafe_b64encode(DATA).decode()}",
    "escaped": f"data:image/png;base64,{quote(CODE)}", "in lines": "data:image/png;base64," + base64.encodebytes(DATA).decode(),
    "with a charset": f"data:image/png;charset=utf-8;base64,{CODE}", "bare": CODE, "bare in lines": base64.encodebytes(DATA).decode(),
    "bytes as a text": {"bytes": CODE, "path": None},
}  # fmt: skip


def both(value, folder):
    yield FrameStore().load(picture(value, str(folder), "row 1"))
    yield FrameStore().load(medium(value, "image", str(folder), "row 1"))


@pytest.mark.parametrize("name", URLS)
def test_a_picture_in_base64_is_shown(name, tmp_path):
    assert [seen(shown) for shown in both(URLS[name], tmp_path)] == ["RGBW"] * 2
    if isinstance(URLS[name], str) and name.startswith(("as", "in c", "with")) and not URLS[name].startswith(" "):
        assert seen(open_picture(URLS[name])) == "RGBW"


@pytest.mark.parametrize("form", FORMS)
def test_bare_base64_is_known_by_its_head(form, tmp_path):
    assert [seen(shown) for shown in both(base64.b64encode(encoded(quarters(), form)).decode(), tmp_path)] == [
        "RGBW"
    ] * 2


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_are_shown_whatever_holds_them(kind, tmp_path):
    assert [seen(shown) for shown in both(kind(DATA), tmp_path)] == ["RGBW"] * 2
    assert seen(FrameStore().load(kind(DATA))) == "RGBW"


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_that_of_one_file_for_all(name, tmp_path):
    for file in ("a.png", "a b.png", "c%20d.png"):
        (tmp_path / file).write_bytes(DATA)
    value = name.format(folder=tmp_path)
    wanted = str(tmp_path / NAMES[name])
    assert picture(value, str(tmp_path), "row 1") == medium(value, "image", str(tmp_path), "row 1") == ImageFile(wanted)
    assert medium(value.replace("png", "mp4"), "video", str(tmp_path), "row 1").path.startswith(str(tmp_path))


@pytest.mark.parametrize(
    "name", ["/9j/pictures/of/a/folder/with/a/long/name/of/more/than/sixty/characters/1.jpg", "iVBORw0KGgo"]
)
def test_a_name_that_begins_like_base64_is_a_name(name, tmp_path):
    assert isinstance(picture(name, str(tmp_path), "row 1"), ImageFile)


def read(folder, part):
    row = {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "?"}]}]}
    (folder / "rows.jsonl").write_text(json.dumps(row))
    return Messages(str(folder / "rows.jsonl"), folder="v").load()[0].media


@pytest.mark.parametrize(
    ("told", "start", "end"),
    [
        ({"video_start": 1, "video_end": 2.5}, 1.0, 2.5), ({"video_start": 1}, 1.0, None), ({"end": 3}, None, 3.0),
        ({"start": 0, "end": 3}, 0.0, 3.0), ({"video_start": None, "video_end": None}, None, None), ({}, None, None),
    ],
)  # fmt: skip
def test_the_part_of_a_video_that_a_turn_names_is_shown_alone(tmp_path, told, start, end):
    assert read(tmp_path, {"type": "video", "video": "a.mp4"} | told) == (VideoFile("v/a.mp4", start, end),)
    assert read(tmp_path, {"type": "video", "video": {"path": "a.mp4"} | told}) == (VideoFile("v/a.mp4", start, end),)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"video": "a.mp4", "video_start": "00:01"}, "wanted seconds"), ({"video": "a.mp4", "video_end": -1}, "wanted seconds"),
        ({"video": "a.mp4", "video_start": 3, "video_end": 2}, "an end after its start"),
        ({"video": "a.mp4", "video_start": 3, "start": 3}, "say the same"),
        ({"video": "a.png"}, "is a picture, and stands where a video does"), ({"video": ["1.jpg", "2.jpg"]}, "Frames of a video as a list"),
    ],
)  # fmt: skip
def test_what_is_no_part_of_a_video_is_refused(tmp_path, part, message):
    with pytest.raises(ConfigError, match=rf"rows.jsonl, line 1.*{message}"):
        read(tmp_path, {"type": "video"} | part)


def test_sizes_that_a_turn_asks_for_are_not_followed_aloud(tmp_path, caplog):
    media_fields._say_ignored.cache_clear()
    assert read(tmp_path, {"type": "video", "video": "a.mp4", "total_pixels": 9000}) == (VideoFile("v/a.mp4"),)
    assert "total_pixels" in caplog.text


UPRIGHT = quarters()
ARRAYS = {
    "[H, W, 3]": (UPRIGHT, "RGBW"), "upside down": (UPRIGHT[::-1], "BWRG"), "a tensor": (torch.from_numpy(UPRIGHT), "RGBW"),
    "[H, W, 4]": (np.dstack([UPRIGHT, np.where(UPRIGHT[..., :1] > 200, 0, 255).astype(np.uint8)]), "WGBW"),
    "[H, W]": (np.kron([[0, 255], [255, 0]], np.ones((8, 8))).astype(np.uint8), "KWWK"),
    "[H, W, 1]": (np.kron([[0, 255], [255, 0]], np.ones((8, 8))).astype(np.uint8)[..., None], "KWWK"),
    "16 bits": (np.kron([[0, 65535], [65535, 0]], np.ones((8, 8))).astype(np.uint16), "KWWK"),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_is_shown_whatever_its_axes(name):
    array, wanted = ARRAYS[name]
    assert seen(FrameStore().load(array)) == wanted


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 8, 3), (2, 8, 8), (0, 8, 3), (5,)])
def test_other_arrays_stay_as_they_are(shape):
    array = np.zeros(shape, np.uint8)
    assert FrameStore().load(array) is array
    backwards = np.arange(24, dtype=np.uint8).reshape(3, 2, 4)[:, ::-1]
    assert np.array_equal(torch.as_tensor(FrameStore().load(backwards)).numpy(), backwards)


@pytest.mark.parametrize(
    "feature", [{"bytes": DATA, "path": None}, {"bytes": DATA, "path": "gone.png"}, {"path": "{folder}/a.png"}]
)
def test_what_datasets_keep_of_a_picture_is_shown(feature, tmp_path):
    (tmp_path / "a.png").write_bytes(DATA)
    path = feature["path"] and feature["path"].format(folder=tmp_path)
    assert seen(FrameStore().load(feature | {"path": path})) == "RGBW"
    with pytest.raises(PictureError, match="neither bytes nor a path"):
        FrameStore().load({"bytes": None, "path": None})


@pytest.mark.parametrize(("suffix", "between"), [(".tsv", "\t"), (".csv", ",")])
def test_a_table_holds_pictures_in_base64_of_any_length(suffix, between, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    code = base64.b64encode(encoded(noise, "PNG")).decode()
    path = tmp_path / f"rows{suffix}"
    path.write_text(f"index{between}image\n1{between}{code}\n")
    ((_, row),) = annotated_rows(str(path))
    assert len(code) > 1 << 18 and np.array_equal(np.asarray(picture(row["image"], "", "row 1")), noise)
