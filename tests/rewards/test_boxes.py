"""Overlap of boxes, matching, conversion to pixels: formulas by hand, against slow loops and against other libraries."""

import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_mm.errors import ConfigError
from grpo_mm.rewards.spatial.box_coordinates import to_pixels
from grpo_mm.rewards.spatial.box_matching import greedy_by_confidence, greedy_by_score, hungarian
from grpo_mm.rewards.spatial.box_reading import BoxReading
from grpo_mm.rewards.spatial.boxes import as_boxes, ciou, dual_iou, giou, in_order, iou, union_iou
from grpo_mm.types import Prompt

INF, NAN = math.inf, math.nan
PREDICTED = as_boxes([(0, 0, 10, 5), (20, 20, 30, 30), (50, 50, 60, 60)])
REFERENCES = as_boxes([(0, 0, 10, 10), (20, 20, 30, 30)])
MEASURES = {"iou": (iou, 0, 1), "giou": (giou, -1, 1), "ciou": (ciou, -1.5, 1)}


def one(measure, box, other, **settings) -> float:
    return measure(as_boxes([box]), as_boxes([other]), **settings).item()


def random_boxes(rng: random.Random, count: int, size: int = 20):
    return [[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in _quads(rng, count, size)]


def _quads(rng, count, size):
    return [[rng.randint(0, size) for _ in range(4)] for _ in range(count)]


# ── two boxes ──


def test_complete_iou_of_the_fixture():
    assert one(ciou, (0, 0, 10, 5), (0, 0, 10, 10)) == pytest.approx(0.465502, abs=1e-6)
    assert one(ciou, (50, 50, 60, 60), (0, 0, 10, 10)) == pytest.approx(-0.694444, abs=1e-6)


@pytest.mark.parametrize(
    ("box", "other", "value", "generalised"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1, 1),
        ((0, 0, 10, 5), (0, 0, 10, 10), 0.5, 0.5),
        ((0, 0, 10, 10), (5, 5, 15, 15), 25 / 175, 25 / 175 - 50 / 225),
        ((0, 0, 1, 1), (2, 0, 3, 1), 0, -1 / 3),
        ((0, 0, 1, 1), (1, 0, 2, 1), 0, 0),  # they touch
        ((-5, -5, 5, 5), (-5, -5, 5, 0), 0.5, 0.5),  # negative corners are plain numbers
        ((0, 0, 10, 0), (0, 0, 10, 10), 0, 0),  # empty
    ],
)
def test_iou_and_generalised_iou_by_hand(box, other, value, generalised):
    assert one(iou, box, other) == pytest.approx(value)
    assert one(giou, box, other) == pytest.approx(generalised)


def test_inclusive_corners_count_both_border_pixels():
    assert one(iou, (0, 0, 9, 4), (0, 0, 9, 9), inclusive=True) == 0.5
    assert one(iou, (0, 0, 9, 4), (0, 0, 9, 9)) == pytest.approx(4 / 9)
    assert one(iou, (3, 3, 3, 3), (3, 3, 3, 3), inclusive=True) == 1  # one pixel
    assert one(iou, (0, 0, 9, 9), (9, 9, 18, 18), inclusive=True) == pytest.approx(1 / 199)
    assert one(iou, (0, 0, 9, 9), (11, 0, 20, 9), inclusive=True) == 0


ODD = [
    (10, 0, 0, 10),
    (0, 10, 10, 0),
    (NAN, 0, 1, 1),
    (0, 0, 1, NAN),
    (0, 0, INF, INF),
    (-INF, -INF, INF, INF),
    (0, 0, 1e300, 1),
]


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("box", ODD)
def test_with_a_box_that_is_not_valid_every_measure_is_at_its_least(name, box):
    measure, least, _ = MEASURES[name]
    assert one(measure, box, (0, 0, 10, 10)) == one(measure, (0, 0, 10, 10), box) == one(measure, box, box) == least


@pytest.mark.parametrize("name", MEASURES)
def test_empty_boxes_give_numbers(name):
    measure, least, most = MEASURES[name]
    empty = [(5, 5, 5, 5), (0, 5, 10, 5), (5, 0, 5, 10), (0, 0, 0, 0)]
    values = measure(as_boxes(empty), as_boxes([*empty, (0, 0, 10, 10)]))
    assert values.isfinite().all() and (values >= least).all() and (values <= 0).all()


@pytest.mark.parametrize("name", MEASURES)
def test_no_boxes_give_an_empty_table(name):
    measure = MEASURES[name][0]
    assert measure(as_boxes([]), REFERENCES).shape == (0, 2) and measure(PREDICTED, as_boxes([])).shape == (3, 0)


coordinate = st.one_of(st.floats(), st.floats(-1e17, 1e17), st.integers(-50, 50).map(float))
any_boxes = st.lists(st.tuples(*[coordinate] * 4), min_size=1, max_size=4).map(as_boxes)


@pytest.mark.parametrize("name", MEASURES)
@settings(max_examples=100)
@given(boxes=any_boxes, others=any_boxes)
def test_measures_are_symmetric_and_bounded_whatever_the_numbers(name, boxes, others):
    measure, least, most = MEASURES[name]
    values = measure(boxes, others)
    assert ((values >= least) & (values <= most)).all()  # so none is NaN
    assert torch.allclose(values, measure(others, boxes).T, rtol=0, atol=1e-9)
    assert (giou(boxes, others) <= iou(boxes, others)).all() and (ciou(boxes, others) <= iou(boxes, others)).all()


def test_a_box_with_itself_is_one_and_scale_and_shift_change_nothing():
    boxes = as_boxes([box for box in random_boxes(random.Random(0), 40) if box[0] < box[2] and box[1] < box[3]])
    for measure, _, _ in MEASURES.values():
        table = measure(boxes, boxes)
        assert torch.allclose(table.diagonal(), torch.ones(len(boxes), dtype=torch.float64))
        assert torch.allclose(table, measure(3 * boxes - 7, 3 * boxes - 7))


def test_generalised_and_complete_iou_are_those_of_torchvision():
    ops = pytest.importorskip("torchvision.ops")
    rng = random.Random(1)
    boxes, others = (as_boxes([[a, b, c + 1, d + 2] for a, b, c, d in random_boxes(rng, 60)]) for _ in range(2))
    assert torch.allclose(iou(boxes, others), ops.box_iou(boxes, others))
    assert torch.allclose(giou(boxes, others), ops.generalized_box_iou(boxes, others))
    assert torch.allclose(ciou(boxes, others), ops.complete_box_iou(boxes, others), atol=1e-6)  # it adds 1e-7 below


# ── sets of boxes ──


def test_dual_iou_of_the_fixture():
    assert dual_iou(PREDICTED, REFERENCES) == (0.75, 0.5, 0.625)


def test_without_boxes_recall_and_precision_are_zero():
    assert dual_iou(as_boxes([]), REFERENCES) == dual_iou(PREDICTED, as_boxes([])) == (0, 0, 0)


def test_boxes_without_end_raise_recall_and_lower_precision():
    everywhere = as_boxes([(x, y, x + 10, y + 10) for x in range(0, 100, 5) for y in range(0, 100, 5)])
    recall, precision, mean = dual_iou(everywhere, REFERENCES)
    assert recall == 1 and precision < 0.05 and mean < 0.625


def raster(boxes, size: int = 20):
    covered = torch.zeros(size, size, dtype=torch.bool)
    for x1, y1, x2, y2 in boxes:
        covered[y1:y2, x1:x2] = True
    return covered


def test_union_iou_counts_the_pixels_that_a_raster_counts():
    rng = random.Random(2)
    for _ in range(60):
        boxes, others = (random_boxes(rng, rng.randint(0, 6)) for _ in range(2))
        own, other = raster(boxes), raster(others)
        covered = (own | other).sum().item()
        wanted = (own & other).sum().item() / covered if covered else 0
        assert union_iou(as_boxes(boxes), as_boxes(others)) == pytest.approx(wanted)


def test_union_iou_of_fractions_and_odd_boxes():
    halves = as_boxes([(0, 0, 0.5, 1), (0.25, 0, 1, 1)])
    assert union_iou(halves, as_boxes([(0, 0, 1, 1)])) == pytest.approx(1)
    assert union_iou(as_boxes(ODD), REFERENCES) == 0 == union_iou(as_boxes([]), as_boxes([]))
    assert union_iou(torch.cat([PREDICTED, as_boxes(ODD)]), REFERENCES) == 0.5
    assert union_iou(PREDICTED, torch.cat([as_boxes(ODD), REFERENCES])) == 0.5


@given(st.permutations(range(5)))
def test_order_and_repetition_of_boxes_do_not_change_a_union(order):
    boxes = as_boxes(random_boxes(random.Random(3), 5))
    assert union_iou(boxes[list(order)], REFERENCES) == pytest.approx(union_iou(boxes, REFERENCES))
    assert union_iou(boxes[[*order, 0, 0]], REFERENCES) == pytest.approx(union_iou(boxes, REFERENCES))


def test_boxes_in_order_are_the_same_boxes():
    boxes = as_boxes(random_boxes(random.Random(4), 9))
    assert in_order(boxes).tolist() == in_order(boxes.flip(0)).tolist() == sorted(boxes.tolist())


# ── matching ──


def test_hungarian_matching_has_the_largest_total_of_all_assignments():
    rng = random.Random(5)
    for _ in range(40):
        rows, columns = rng.randint(1, 4), rng.randint(1, 4)
        score = torch.tensor([[rng.uniform(-1, 1) for _ in range(columns)] for _ in range(rows)])
        pairs = hungarian(score)
        assert len(pairs) == min(rows, columns) == len({r for r, _ in pairs}) == len({w for _, w in pairs})
        tall = score if rows >= columns else score.T
        best = max(
            sum(tall[r, w].item() for w, r in enumerate(chosen))
            for chosen in itertools.permutations(range(tall.shape[0]), tall.shape[1])
        )
        assert sum(score[pair].item() for pair in pairs) == pytest.approx(best)


def test_matching_of_ties_and_of_odd_scores_is_always_the_same():
    ties = torch.ones(3, 3)
    assert hungarian(ties) == hungarian(ties.clone()) and len(hungarian(ties)) == 3
    odd = torch.tensor([[NAN, 1.0], [2.0, -INF]])
    assert hungarian(odd) == [(0, 1), (1, 0)]
    assert hungarian(torch.zeros(0, 3)) == [] == hungarian(torch.zeros(3, 0))


def test_the_most_confident_box_takes_its_reference_first():
    score = torch.tensor([[0.9, 0.6], [0.8, 0.0]])
    assert greedy_by_confidence(score, [0.2, 0.7], threshold=0.5) == [(0, 1), (1, 0)]
    assert greedy_by_confidence(score, [0.7, 0.2], threshold=0.5) == [(0, 0)]
    assert greedy_by_confidence(score, [0.5, 0.5], threshold=0.5) == [(0, 0)]  # the first of equals
    assert greedy_by_confidence(score, [NAN, 0.1], threshold=0.5) == [(0, 1), (1, 0)]  # NaN comes last
    assert greedy_by_confidence(torch.tensor([[NAN, 0.6]]), [1], threshold=0.5) == [(0, 1)]


def test_a_match_at_the_threshold_counts_unless_more_is_wanted():
    score = torch.tensor([[0.5]], dtype=torch.float64)
    assert greedy_by_confidence(score, [1], threshold=0.5) == []
    assert (
        greedy_by_confidence(score, [1], threshold=0.5, strict=False)
        == [(0, 0)]
        == greedy_by_score(score, threshold=0.5)[0:1]
    )


def test_the_best_pair_is_made_first():
    score = torch.tensor([[0.7, 0.9], [0.8, 0.85]], dtype=torch.float64)
    assert greedy_by_score(score, threshold=0.5) == [(0, 1), (1, 0)]
    assert greedy_by_score(score, threshold=0.85) == [(0, 1)]
    assert greedy_by_score(torch.full((2, 2), NAN), threshold=0.5) == []


# ── pixels of the original picture ──


def prompt(**target) -> Prompt:
    return Prompt("7", "where?", target=target)


@pytest.mark.parametrize(
    ("coordinates", "written"),
    [("absolute", (28, 56, 56, 112)), ("unit", (0.1, 0.2, 0.2, 0.4)), ("thousand", (100, 200, 200, 400))],
)
def test_every_system_of_coordinates_leads_to_the_same_pixels(coordinates, written):
    seen = prompt(width=1000, height=500, resized_width=280, resized_height=280)
    assert to_pixels(as_boxes([written]), coordinates, seen)[0].tolist() == pytest.approx([100, 100, 200, 200])


def test_absolute_coordinates_without_a_resized_size_are_pixels_already():
    assert to_pixels(as_boxes([(1, 2, 3, 400)]), "absolute", prompt()).tolist() == [[1, 2, 3, 400]]
    assert to_pixels(as_boxes([(-1, 2, 3, 400)]), "absolute", prompt(width=84, height=90)).tolist() == [[0, 2, 3, 90]]


def test_an_infinite_box_does_not_become_the_entire_picture():
    boxes = to_pixels(as_boxes([(0, 0, INF, INF), (NAN, 0, 1, 1)]), "absolute", prompt(width=84, height=84))
    assert boxes.isnan().all() and (iou(boxes, as_boxes([(0, 0, 84, 84)])) == 0).all()


@pytest.mark.parametrize(
    ("coordinates", "target"),
    [
        ("unit", {}),
        ("thousand", {"width": 10}),
        ("thousand", {"width": 0, "height": 5}),
        ("absolute", {"resized_width": 28, "resized_height": 28}),
        ("absolute", {"width": 10, "height": 10, "resized_width": 28}),
        ("unit", {"width": "10", "height": 10}),
    ],
)
def test_a_size_that_is_missing_is_named_with_its_prompt(coordinates, target):
    with pytest.raises(ValueError, match="'7'.*(width|height)"):
        to_pixels(PREDICTED, coordinates, prompt(**target))


SIZES = [(84, 84), (640, 480), (333, 500), (1920, 1080), (50, 400), (29, 31), (4000, 3000)]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_boxes_on_the_processors_own_grid_come_back_to_the_original(width, height):
    """The sizes come from the processor: its grid of patches says what the model saw."""
    from PIL import Image
    from transformers import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    least, largest = 56 * 56, 28 * 28 * 256
    resized_height, resized_width = smart_resize(height, width, 28, least, largest)
    processor = Qwen2VLImageProcessor(size={"shortest_edge": least, "longest_edge": largest})
    grid = processor(images=Image.new("RGB", (width, height)), return_tensors="pt")["image_grid_thw"][0]
    assert (grid[1] * 14, grid[2] * 14) == (resized_height, resized_width)
    row = prompt(width=width, height=height, resized_width=resized_width, resized_height=resized_height)
    box = [0.1 * width, 0.2 * height, 0.7 * width, 0.9 * height]
    seen = [box[0] * resized_width / width, box[1] * resized_height / height]
    seen += [box[2] * resized_width / width, box[3] * resized_height / height]
    assert to_pixels(as_boxes([seen]), "absolute", row)[0].tolist() == pytest.approx(box)
    rounded = to_pixels(as_boxes([[round(edge) for edge in seen]]), "absolute", row)
    slack = 0.5 * max(width / resized_width, height / resized_height)
    assert (rounded - as_boxes([box])).abs().max() <= slack + 1e-9


def test_a_thing_is_found_where_the_resized_picture_shows_it():
    """Painted at a known place, resized as the processor does, found by its colour, converted back."""
    import numpy as np
    from PIL import Image
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    width, height, box = 500, 333, [100, 50, 300, 200]
    picture = np.zeros((height, width, 3), np.uint8)
    picture[box[1] : box[3], box[0] : box[2]] = 255
    resized_height, resized_width = smart_resize(height, width, 28, 56 * 56, 28 * 28 * 64)
    seen = np.asarray(Image.fromarray(picture).resize((resized_width, resized_height), Image.Resampling.BICUBIC))
    ys, xs = np.nonzero(seen[..., 0] > 127)
    row = prompt(width=width, height=height, resized_width=resized_width, resized_height=resized_height)
    found = to_pixels(as_boxes([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]]), "absolute", row)
    assert one(iou, found[0].tolist(), box) > 0.97
    assert resized_width < 0.8 * width  # so that reading them as original pixels would fail


@pytest.mark.parametrize(
    "setting",
    [{"form": "xml"}, {"coordinates": "percent"}, {"reversed_corners": "swap"}, {"most": 0}, {"merge_iou": 2}],
)
def test_an_unknown_setting_is_named(setting):
    with pytest.raises(ConfigError, match=f"{next(iter(setting))} = .*wanted"):
        BoxReading(**setting)
