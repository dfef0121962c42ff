import json

import pytest
import torch
from PIL import Image

from grpo_mm.looking.samples import GAP_PX, MAX_COLUMNS, read_sheets, write_eval_sheet, write_rollout_sheet

GREYS = (10, 60, 110, 160, 210)


def flat_images(greys=GREYS, height=8, width=8):
    """One evenly grey image per entry, so that a tile tells which image it is."""
    return torch.tensor(greys, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, height, width).contiguous()


def rollout(folder, **changes):
    """Five images: three samples of prompt 0, two of prompt 1."""
    settings = {
        "step": 10,
        "images_MCHW": flat_images(),
        "prompt_M": torch.tensor([0, 1, 0, 1, 0]),
        "prompts": ["a cat", "a dog"],
        "advantage_M": torch.tensor([-1.0, 0.5, 2.0, -0.5, -1.5]),
        "rewards": {"shape": torch.tensor([0.1, 0.6, 0.9, 0.4, 0.0])},
    }
    return write_rollout_sheet(folder, **(settings | changes))


def grey_of(sheet, cell):
    with Image.open(sheet.png) as png:
        return png.crop(cell.box_px).getpixel((3, 3))[0]


def test_sheet_sorts_cells_by_advantage(tmp_path):
    assert rollout(tmp_path) == tmp_path / "step_000010.png"
    (sheet,) = read_sheets(tmp_path)
    assert [[cell.advantage for cell in row] for row in sheet.rows] == [[2.0, -1.0, -1.5], [0.5, -0.5]]
    assert [[grey_of(sheet, cell) for cell in row] for row in sheet.rows] == [[110, 10, 210], [60, 160]]
    assert [row[0].prompt for row in sheet.rows] == ["a cat", "a dog"]
    assert sheet.rows[0][0].rewards == {"shape": 0.9}


def test_a_group_may_be_shorter_than_the_others(tmp_path):
    path = rollout(tmp_path)
    with Image.open(path) as png:
        assert png.size == (3 * (8 + GAP_PX), 2 * (8 + GAP_PX))
        assert png.getpixel((2 * (8 + GAP_PX) + 3, 8 + GAP_PX + 3)) == (255, 255, 255)


def test_missing_advantage_comes_last_and_is_null(tmp_path):
    path = rollout(tmp_path, advantage_M=torch.tensor([-1.0, 0.5, float("nan"), -0.5, -1.5]))
    (sheet,) = read_sheets(tmp_path)
    assert [cell.advantage for cell in sheet.rows[0]] == [-1.0, -1.5, None]
    assert "NaN" not in path.with_suffix(".json").read_text()


def test_unscored_reward_is_null(tmp_path):
    path = rollout(tmp_path, rewards={"shape": torch.tensor([float("nan"), 1.0, float("inf"), 0.0, 0.5])})
    text = path.with_suffix(".json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert [cell.rewards["shape"] for cell in read_sheets(tmp_path)[0].rows[0]] == [None, None, 0.5]


def test_json_tells_the_layout(tmp_path):
    found = json.loads(rollout(tmp_path).with_suffix(".json").read_text())
    assert (found["step"], found["kind"], found["tile_px"], found["columns"]) == (10, "rollout", [8, 8], 3)
    assert found["groups"][1]["cells"][0] == {"advantage": 0.5, "rewards": {"shape": 0.6}}


def test_equal_input_gives_equal_bytes(tmp_path):
    for name in ("a", "b"):
        rollout(tmp_path / name)
        rollout(tmp_path / name)
    for ending in ("png", "json"):
        assert (tmp_path / f"a/step_000010.{ending}").read_bytes() == (
            tmp_path / f"b/step_000010.{ending}"
        ).read_bytes()


def test_nothing_half_written_stays_behind(tmp_path):
    rollout(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000010.json", "step_000010.png"]


def test_only_the_first_groups_are_shown(tmp_path):
    rollout(tmp_path, max_groups=1)
    assert [row[0].prompt for row in read_sheets(tmp_path)[0].rows] == ["a cat"]


def test_a_wide_group_keeps_its_best_and_its_worst(tmp_path):
    many = MAX_COLUMNS + 6
    rollout(
        tmp_path,
        images_MCHW=flat_images([7] * many, 2, 2),
        prompt_M=torch.zeros(many, dtype=torch.int64),
        advantage_M=torch.arange(many, dtype=torch.float32),
        rewards={},
    )
    (sheet,) = read_sheets(tmp_path)
    advantages = [cell.advantage for cell in sheet.cells]
    assert len(advantages) == MAX_COLUMNS and sheet.row_sizes == (many,)
    assert advantages[0] == many - 1 and advantages[-1] == 0


def test_large_images_become_tiles_of_256(tmp_path):
    rollout(tmp_path, images_MCHW=flat_images(height=256, width=512))
    (sheet,) = read_sheets(tmp_path)
    left, top, right, bottom = sheet.rows[0][1].box_px
    assert (right - left, bottom - top) == (256, 128)
    assert grey_of(sheet, sheet.rows[0][1]) == 10


def test_grey_images_are_written_as_colour(tmp_path):
    rollout(tmp_path, images_MCHW=flat_images()[:, :1])
    (sheet,) = read_sheets(tmp_path)
    assert grey_of(sheet, sheet.rows[0][0]) == 110


def test_eval_sheet_keeps_the_order_of_the_prompts(tmp_path):
    prompts = [f"prompt {i}" for i in range(5)]
    write_eval_sheet(
        tmp_path,
        name="eval_before",
        step=0,
        images_MCHW=flat_images(),
        prompts=prompts,
        rewards={"shape": torch.linspace(0, 1, 5)},
    )
    (sheet,) = read_sheets(tmp_path)
    assert (sheet.name, sheet.kind, sheet.step) == ("eval_before", "eval", 0)
    assert [cell.prompt for cell in sheet.cells] == prompts
    assert [grey_of(sheet, cell) for cell in sheet.cells] == list(GREYS)
    assert [cell.rewards["shape"] for cell in sheet.cells] == [0, 0.25, 0.5, 0.75, 1]


def test_an_evaluation_without_pictures_is_an_empty_sheet(tmp_path):
    write_eval_sheet(tmp_path, name="eval_after", step=3, images_MCHW=flat_images()[:0], prompts=[], rewards={})
    assert read_sheets(tmp_path)[0].cells == []


def test_sheets_come_by_step_and_damaged_ones_are_left_out(tmp_path):
    for step in (20, 3, 100, 7):
        rollout(tmp_path, step=step)
    (tmp_path / "step_000003.json").write_text('{"step": 3, "kin')
    (tmp_path / "step_000007.png").unlink()
    assert [sheet.step for sheet in read_sheets(tmp_path)] == [20, 100]
    assert read_sheets(tmp_path / "no such folder") == []


def test_misaligned_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match="advantage_M has 4 entries for 5 images"):
        rollout(tmp_path, advantage_M=torch.zeros(4))
    with pytest.raises(ValueError, match="wanted torch.uint8"):
        rollout(tmp_path, images_MCHW=flat_images().float())
    assert not list(tmp_path.iterdir())
