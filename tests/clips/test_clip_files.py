"""Clips as files, rows of frames, sheets and players of a report."""

import io
import json
import re

import pytest
import torch
from PIL import Image

from grpo_mm.looking import samples
from grpo_mm.looking.clips import video_file
from grpo_mm.looking.clips.contact_sheet import contact_sheet, contact_sheets, one_size
from grpo_mm.looking.clips.shown import films_of, sources_of, tiles_of
from grpo_mm.looking.clips.video_file import clip_bytes, fitted, write_clip
from grpo_mm.looking.report.page import read_run, view, write_report
from grpo_mm.looking.samples import read_sheet, read_sheets, write_eval_sheet, write_rollout_sheet
from grpo_mm.types import Clip, Clips, Prompt

NAN = float("nan")


def clip(seed=0, frames=9, size=(48, 64), fps=8.0):
    """Soft blobs that drift, so that H.264 has an easy time."""
    small = torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(seed)) * 255
    picture = torch.nn.functional.interpolate(small, size, mode="bilinear")[0].to(torch.uint8)
    return Clip(torch.stack([picture.roll(2 * f, 2) for f in range(frames)]), fps)


def decoded(path):
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [torch.from_numpy(f.to_ndarray(format="rgb24")).permute(2, 0, 1) for f in container.decode(stream)]
        return torch.stack(frames), float(stream.average_rate)


needs_h264 = pytest.mark.skipif(video_file.ending() != ".mp4", reason="PyAV has no encoder for H.264 here")


# ── files ──


@needs_h264
@pytest.mark.parametrize(("size", "fps"), [((48, 64), 8.0), ((47, 63), 16.0), ((30, 44), 23.976), ((16, 16), 1.0)])
def test_a_clip_keeps_its_frames_its_order_and_its_rate(size, fps, tmp_path):
    given = clip(size=size, fps=fps)
    path = write_clip(tmp_path / "a.any", given)
    assert path == tmp_path / "a.mp4" and [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    found, rate = decoded(path)
    assert rate == pytest.approx(fps, rel=1e-3) and len(found) == 9
    found = found[:, :, : size[0], : size[1]]
    apart = (found.float() - given.frames_FCHW.float()).abs().mean((1, 2, 3))
    assert float(apart.max()) < 12, "lossy, and no other picture"


@needs_h264
def test_equal_clips_give_equal_bytes_and_others_do_not():
    one = [clip_bytes(clip(size=(96, 128), frames=17)) for _ in range(3)]
    assert len(set(one)) == 1 and clip_bytes(clip(seed=1, size=(96, 128), frames=17)) != one[0]
    assert b"Lavf" not in one[0], "no version of a library"


def test_without_an_encoder_it_is_an_animation_that_plays(tmp_path, monkeypatch):
    monkeypatch.setattr(video_file, "ending", lambda: ".webp")
    path = write_clip(tmp_path / "a.mp4", clip(fps=3.0, frames=4))
    assert path.suffix == ".webp"
    with Image.open(path) as animation:
        durations = []
        for f in range(animation.n_frames):
            animation.seek(f)
            animation.load()
            durations.append(animation.info["duration"])
        assert animation.n_frames == 4 and sum(durations) == pytest.approx(1333, abs=2) and animation.info["loop"] == 0
    assert clip_bytes(clip()) == clip_bytes(clip())


def test_larger_clips_are_scaled_down_in_their_shape():
    assert fitted(clip(size=(100, 200)).frames_FCHW, 50).shape == (9, 3, 25, 50)
    assert fitted(clip(size=(20, 10)).frames_FCHW, 50).shape == (9, 3, 20, 10)


@needs_h264
def test_small_clips_are_enlarged_for_a_sheet_and_stay_as_they_are_in_a_file(tmp_path):
    given = clip(size=(16, 24))
    (tmp_path / "sheet.mp4").write_bytes(clip_bytes(given))
    assert decoded(tmp_path / "sheet.mp4")[0].shape == (9, 3, 64, 96)
    assert decoded(write_clip(tmp_path / "file", given))[0].shape == (9, 3, 16, 24)


# ── rows of frames ──


def test_a_row_holds_the_first_and_the_last_frame_and_their_times():
    given = clip(size=(96, 128))
    sheet = contact_sheet(given, frames=3)
    assert sheet.shape == (3, 96 + 14, 3 * 130) and sheet.dtype == torch.uint8
    assert torch.equal(sheet[:, :96, :128], given.frames_FCHW[0])
    assert torch.equal(sheet[:, :96, 260:388], given.frames_FCHW[8])
    assert bool((sheet[:, 96:] < 200).any()), "times are written under the frames"
    slow = contact_sheet(Clip(given.frames_FCHW, 4.0), frames=3)
    assert torch.equal(slow[:, :96], sheet[:, :96]) and not torch.equal(slow[:, 96:], sheet[:, 96:])
    assert torch.equal(contact_sheet(given, frames=3), sheet)
    assert contact_sheet(clip(size=(24, 32)), frames=3).shape == sheet.shape, "small frames are enlarged"


def test_rows_of_several_sizes_and_of_nothing():
    plates = contact_sheets(Clips([clip(size=(48, 64)), None, clip(size=(20, 30), frames=1)]))
    assert plates.shape == (3, 3, 96 + 14, 4 * 130) and bool((plates[1] == 128).all())
    assert contact_sheets(Clips([None])).shape[0] == 1
    assert one_size([plates, plates[:1, :, :10, :300]]).shape == (4, 3, 110, 520)


# ── sheets ──


def rollout(folder, clips=None, sources=None, step=10):
    clips = Clips([clip(0), clip(1), None, clip(3)]) if clips is None else clips
    tiles = tiles_of(clips, max_px=256)
    return write_rollout_sheet(
        folder, step=step, images_MCHW=tiles.images, prompt_M=torch.tensor([0, 0, 1, 1]), prompts=["a", "b"],
        advantage_M=torch.tensor([-1.0, 1.0, NAN, 0.0]), rewards={"r": torch.tensor([0.1, 0.9, NAN, 0.5])},
        films=films_of([tiles]), sources=sources,
    )  # fmt: skip


def test_a_sheet_of_clips_names_a_file_for_each_and_is_read_again(tmp_path):
    sheet = read_sheet(rollout(tmp_path).with_suffix(".json"))
    best, worst = sheet.rows[0]
    assert best.film.read_bytes() == clip_bytes(clip(1), max_px=256) and best.advantage == 1.0
    assert worst.film.read_bytes() == clip_bytes(clip(0), max_px=256)
    assert [cell.film is None for cell in sheet.rows[1]] == [False, True], "a clip that came to nothing has no file"
    with Image.open(sheet.png) as png:
        assert png.size == (2 * (4 * 130 + 2), 2 * (110 + 2))


def test_equal_input_gives_equal_bytes(tmp_path):
    for name in ("one", "two"):
        rollout(tmp_path / name, sources=[torch.zeros(3, 9, 9, dtype=torch.uint8), None])
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert len(files) == 5
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


@pytest.mark.parametrize(
    "name", ["../../secret.mp4", "/etc/passwd", "clips/../x.mp4", "clips/a.svg", 7, "clips/none.mp4", ["x"]]
)
def test_a_file_elsewhere_is_not_followed(name, tmp_path):
    path = rollout(tmp_path).with_suffix(".json")
    found = json.loads(path.read_text())
    found["groups"][0]["cells"][0]["film"] = name
    path.write_text(json.dumps(found))
    assert read_sheet(path).rows[0][0].film is None


def test_sheets_of_before_are_read_as_they_were(tmp_path):
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    path = write_eval_sheet(
        tmp_path, name="eval_before", step=0, images_MCHW=images, prompts=["a", "b"], rewards={"r": torch.tensor([1.0, 2.0])}
    )  # fmt: skip
    words = json.loads(path.with_suffix(".json").read_text())
    assert "sources" not in words and set(words["cells"][0]) == {"prompt", "truth", "rewards"}
    assert all(cell.film is None and cell.source_px is None for cell in read_sheet(path.with_suffix(".json")).cells)


# ── the report ──


def a_run(folder, *, sources=None, ends=(0, 1)):
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text("seed: 0\nsteps: 10\n")
    rows = [{"step": 0, "eval/score": 0.1}, {"step": 10, "reward/r/mean": 0.5}, {"step": 10, "eval/score": 0.6}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rollout(folder / "samples", sources=sources)
    for name, step, seed in (("eval_before", 0, ends[0]), ("eval_after", 10, ends[1])):
        tiles = tiles_of(Clips([clip(seed), clip(seed + 5)]), max_px=480)
        write_eval_sheet(
            folder / "samples", name=name, step=step, images_MCHW=tiles.images, prompts=["a", "b"],
            rewards={"r": torch.tensor([0.1 + step, 0.2])}, films=tiles.films, sources=sources,
        )  # fmt: skip
    return folder


def test_held_out_clips_play_in_the_page_itself_and_rollouts_beside_it(tmp_path):
    run = a_run(tmp_path / "run")
    page = write_report(run).read_text()
    assert len(re.findall(r'<video [^>]*class="inside"[^>]*><source src="data:video/mp4;base64,', page)) == 4
    beside = re.findall(r'<source src="(samples/clips/[^"]+)"', page)
    assert len(beside) == 3 and all((run / name).is_file() for name in beside)
    assert "media-src data: file: 'self'" in page and "frames with their times" in page
    pair = view(read_run(run))["pictures"]["pairs"][0]
    assert pair["prompt"] == "a" and pair["before"]["film"]["inside"] and pair["source"] is None


def test_clips_for_which_the_page_has_no_room_are_played_from_beside_it(tmp_path, monkeypatch):
    from grpo_mm.looking.report import pictures

    run = a_run(tmp_path / "run")
    size = (run / "samples" / "clips" / "eval_before_000.mp4").stat().st_size
    monkeypatch.setattr(pictures, "FILM_BYTES", 2 * size * 4 / 3 + 300)
    pairs = view(read_run(run))["pictures"]["pairs"]
    assert [p[side]["film"]["inside"] for p in pairs for side in ("before", "after")] == [True, True, False, False]


def test_a_report_of_damaged_clips_says_nothing_false(tmp_path):
    run = a_run(tmp_path / "run")
    for path in (run / "samples" / "clips").iterdir():
        path.unlink()
    page = write_report(run).read_text()
    assert "<video" not in page and "data:image/jpeg" in page


# ── what stands in front ──


def test_the_picture_of_a_prompt_stands_in_front_of_its_row(tmp_path):
    source = torch.zeros(3, 30, 60, dtype=torch.uint8)
    source[0] = 255
    sheet = read_sheet(rollout(tmp_path, sources=[source, None]).with_suffix(".json"))
    assert sheet.rows[0][0].source_px == sheet.rows[0][1].source_px == (0, 0, 520, 110)
    assert all(cell.source_px is None for cell in sheet.rows[1]) and sheet.rows[1][0].box_px[0] == 522
    with Image.open(sheet.png) as png:
        assert png.getpixel((260, 55)) == (255, 0, 0) and png.getpixel((2, 55)) == (255, 255, 255)
        assert png.getpixel((260, 112 + 55)) == (255, 255, 255)


def test_a_report_shows_source_before_and_after(tmp_path):
    source = torch.zeros(3, 30, 60, dtype=torch.uint8)
    run = a_run(tmp_path / "run", sources=[source, None])
    pairs = {pair["prompt"]: pair for pair in view(read_run(run))["pictures"]["pairs"]}
    assert pairs["a"]["source"] is not None and pairs["b"]["source"] is None
    shown = Image.open(io.BytesIO(__import__("base64").b64decode(pairs["a"]["source"].partition(",")[2])))
    assert shown.size[0] == 2 * shown.size[1], "without the white of its tile"
    page = write_report(run).read_text()
    assert page.count('class="three"') == 1 and page.count('class="front"') == 1 and ">source<" in page


def test_sources_are_opened_and_kept_small(tmp_path, caplog):
    Image.new("RGB", (1024, 512), (9, 8, 7)).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    found = sources_of(
        [
            Prompt("a", "x", (str(tmp_path / "a.png"),)),
            Prompt("b", "x"),
            Prompt("c", "x", (str(tmp_path / "broken.png"),)),
        ]
    )
    assert (
        found[0].shape == (3, 128, 256)
        and found[0][:, 5, 5].tolist() == [9, 8, 7]
        and found[1] is None
        and found[2] is None
    )
    assert "'c'" in caplog.text and "cannot be opened" in caplog.text
    assert sources_of([Prompt("b", "x")]) is None
    assert samples.MAX_ROW_PX >= 4 * 130
    assert read_sheets(tmp_path) == []
