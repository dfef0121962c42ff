"""Videos are decoded once, kept within bounds, and told apart by what is in them."""

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("av")

from PIL import Image
from tiny_videos import number_of, write_video

from grpo_mm.config.typed_yaml import build
from grpo_mm.datasets.media.frame_folder import FrameFolder
from grpo_mm.datasets.media.frame_store import FrameStore
from grpo_mm.datasets.media.media_files import FrameSampling, ImageFile, VideoError, VideoFile

SMALL = FrameSampling(frames=4, min_pixels_frame=1, multiple_of=1)
LARGE = FrameSampling(frames=4, min_pixels_frame=512 * 512, max_pixels_total=None)
"""4 frames of at least 0.75 MiB."""


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> VideoFile:
    return VideoFile(write_video(tmp_path_factory.mktemp("videos") / "a.mp4"))


def counts(store: FrameStore) -> tuple[int, int, int]:
    return store.counts.hits, store.counts.folder_hits, store.counts.misses


def test_a_second_request_is_not_decoded(video):
    store = FrameStore(SMALL)
    first = store.get(video)
    assert [number_of(picture) for picture in first.frames_FCHW] == [0, 12, 25, 37]
    assert store.get(video) is first and store.load(video) is first and counts(store) == (2, 0, 1)


def test_crop_sampling_and_decoder_make_other_frames(video):
    store = FrameStore(SMALL)
    store.get(video)
    cropped = store.get(replace(video, start=1.0))
    assert [number_of(picture) for picture in cropped.frames_FCHW] == [25, 31, 37, 43]
    assert len(store.get(video, replace(SMALL, frames=2)).time_F) == 2
    assert counts(store) == (0, 0, 3)
    keys = {FrameStore(SMALL, decoder=d)._key(video, SMALL) for d in ("auto", "pyav")}
    assert len(keys) == 2


def test_a_copy_is_the_same_video_and_a_replaced_file_another(video, tmp_path):
    store = FrameStore(SMALL)
    first = store.get(video)
    copy = tmp_path / "copy.mp4"
    shutil.copy(video.path, copy)
    assert store.get(VideoFile(str(copy))) is first and counts(store) == (1, 0, 1)
    write_video(copy, first_number=100)
    assert number_of(store.get(VideoFile(str(copy))).frames_FCHW[0]) == 100 and counts(store) == (1, 0, 2)


def test_memory_is_bounded_and_the_least_recently_used_leave(video):
    store = FrameStore(LARGE, memory_mib=7)
    size = store.get(video).num_bytes
    assert 3.0 < size / 2**20 < 3.5  # two fit, three do not
    crops = [replace(video, start=k / 10) for k in range(3)]
    store.get(crops[0])
    store.get(crops[1])
    store.get(crops[0])
    store.get(crops[2])  # pushes out crops[1]
    assert store._bytes <= 7 * 2**20 and len(store._kept) == 2
    before = store.counts.misses
    store.get(crops[0])
    assert store.counts.misses == before
    store.get(crops[1])
    assert store.counts.misses == before + 1
    tiny = FrameStore(LARGE, memory_mib=1)
    assert torch.equal(tiny.get(video).frames_FCHW, tiny.get(video).frames_FCHW) and counts(tiny) == (0, 0, 2)
    assert tiny._bytes == 0


def test_frames_outlive_the_process_in_a_folder(video, tmp_path):
    made = FrameStore(SMALL, folder=str(tmp_path / "frames")).get(video)
    store = FrameStore(SMALL, folder=str(tmp_path / "frames"))
    read = store.get(video)
    assert counts(store) == (0, 1, 0)
    for name in ("frames_FCHW", "time_F", "index_F"):
        assert torch.equal(getattr(read, name), getattr(made, name))
        assert getattr(read, name).dtype == getattr(made, name).dtype
    for name in ("fps", "duration", "source_fps", "decoder"):
        assert getattr(read, name) == getattr(made, name)


@pytest.mark.parametrize("damage", [b"", b"\x10\x00\x00\x00\x00\x00\x00\x00nonsense"])
def test_a_broken_file_in_the_folder_is_made_again(video, tmp_path, damage):
    made = FrameStore(SMALL, folder=str(tmp_path)).get(video)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for data in (damage, whole[: len(whole) // 2]):
        file.write_bytes(data)
        store = FrameStore(SMALL, folder=str(tmp_path))
        assert torch.equal(store.get(video).frames_FCHW, made.frames_FCHW) and counts(store) == (0, 0, 1)
        again = FrameStore(SMALL, folder=str(tmp_path))
        assert torch.equal(again.get(video).frames_FCHW, made.frames_FCHW) and counts(again) == (0, 1, 0)


def test_the_folder_is_bounded_and_left_clean(video, tmp_path):
    frames = FrameStore(LARGE).get(video)
    folder = FrameFolder(str(tmp_path), limit_bytes=7 * 2**20)
    left, young = tmp_path / "x.1.1.part", tmp_path / "y.1.1.part"
    for part in (left, young):
        part.write_bytes(b"half")
    os.utime(left, (0, 0))
    for number, key in enumerate("abc"):
        folder.put(key, frames)
        if (tmp_path / f"{key}.safetensors").exists():
            os.utime(tmp_path / f"{key}.safetensors", (1000 + number, 1000 + number))
        if key == "b":
            assert folder.get("a") is not None  # used now, so "b" is the oldest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "c.safetensors", "y.1.1.part"]
    assert folder.get("b") is None


def test_a_folder_that_cannot_be_written_does_not_stop_the_run(video, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    store = FrameStore(SMALL, folder=str(tmp_path / "file"))
    assert len(store.get(video).time_F) == 4 and "not kept" in caplog.text


@pytest.mark.parametrize("damage", [False, True])
def test_a_folder_of_others_that_is_read_only_is_used(video, tmp_path, monkeypatch, damage):
    made = FrameStore(SMALL, folder=str(tmp_path)).get(video)
    (file,) = tmp_path.iterdir()
    if damage:
        file.write_bytes(b"nonsense")

    def refuse(*args, **kwargs):
        raise PermissionError(1, "Operation not permitted")

    for name in ("utime", "unlink", "replace"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    store = FrameStore(SMALL, folder=str(tmp_path))
    assert torch.equal(store.get(video).frames_FCHW, made.frames_FCHW) and file.exists()
    assert counts(store) == ((0, 0, 1) if damage else (0, 1, 0))


def test_a_video_that_failed_is_named_and_not_tried_again(video, tmp_path, caplog):
    path = tmp_path / "broken.mp4"
    path.write_bytes(Path(video.path).read_bytes()[:2000])
    store = FrameStore(SMALL)
    for _ in range(3):
        with pytest.raises(VideoError, match="broken.mp4"):
            store.get(VideoFile(str(path)))
    assert (store.counts.misses, store.counts.failures, store.counts.refusals) == (1, 1, 2)
    assert list(store.failures) == [str(path)] and caplog.text.count("broken.mp4") == 1
    shutil.copy(video.path, path)
    assert len(store.get(VideoFile(str(path))).time_F) == 4


def test_a_missing_video_is_counted_and_read_once_it_is_there(video, tmp_path):
    late = VideoFile(str(tmp_path / "late.mp4"))
    store = FrameStore(SMALL)
    for _ in range(2):
        with pytest.raises(VideoError, match="late.mp4: no such file"):
            store.get(late)
    assert store.failures == {late.path: "no such file"} and store.counts.failures == 1 and store.counts.misses == 0
    shutil.copy(video.path, late.path)
    assert len(store.get(late).time_F) == 4 and store.failures == {}


def test_threads_that_want_the_same_frames_decode_them_once(video, monkeypatch):
    import grpo_mm.datasets.media.frame_store as module

    read = module.read_video

    def slow(*args, **kwargs):
        time.sleep(0.2)
        return read(*args, **kwargs)

    monkeypatch.setattr(module, "read_video", slow)
    store = FrameStore(SMALL)
    crops = [replace(video, start=k / 10) for k in range(3)]
    with ThreadPoolExecutor(12) as pool:
        results = list(pool.map(store.get, crops * 8))
    assert counts(store) == (21, 0, 3)
    assert all(result is results[number % 3] for number, result in enumerate(results))
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(store.get, VideoFile(__file__)) for _ in range(4)]
        assert all(isinstance(future.exception(), VideoError) for future in asked)
    assert store.counts.misses == 4 and not store._underway


def test_media_of_a_prompt_are_opened(video, tmp_path):
    store = FrameStore(SMALL)
    Image.new("RGBA", (8, 6), (255, 0, 0, 128)).save(tmp_path / "a.png")
    picture = store.load(ImageFile(str(tmp_path / "a.png")))
    assert (picture.mode, picture.size) == ("RGB", (8, 6))
    array = np.zeros((3, 4, 4), np.uint8)
    assert store.load(array) is array
    for bad in (ImageFile(str(tmp_path / "none.png")), ImageFile(video.path)):
        with pytest.raises(OSError):
            store.load(bad)


def test_a_store_is_made_from_a_config():
    store = build(FrameStore, {"sampling": {"frames": 8, "multiple_of": 32}, "memory_mib": 64, "decoder": "pyav"})
    assert store.sampling == FrameSampling(frames=8, multiple_of=32) and store.decoder == "pyav"
