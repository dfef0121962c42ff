"""Real prompt files and a real detector, from a folder outside the repository; skipped where there is none."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from linear_time import no_more_than

from grpo_mm.datasets.images.geneval import GenEvalPrompts
from grpo_mm.datasets.images.ocr import OcrPrompts
from grpo_mm.datasets.shared.files import PromptFile
from grpo_mm.errors import ConfigError
from grpo_mm.rewards.images.detectors import OnnxDetector
from grpo_mm.rewards.images.geneval import GenEvalReward, score_detections
from grpo_mm.rollout.prompt_stream import PromptStream
from grpo_mm.types import Prompt

DATA = Path(os.environ.get("GRPO_MM_TEST_DATA") or Path(__file__).parents[2] / "../shared/data")
PROMPTS, FASTESTDET = DATA / "prompts", DATA / "weights/fastestdet"
pytestmark = [pytest.mark.realdata, pytest.mark.skipif(not DATA.is_dir(), reason=f"no folder {DATA}")]

COMPBENCH = ("color", "shape", "texture", "spatial", "3d_spatial", "numeracy", "non_spatial", "complex")
COUNTS = {
    "geneval/evaluation_metadata.jsonl": 553,
    "geneval/generation_prompts.txt": 553,
    "geneval/object_names.txt": 80,
    "flow_grpo/geneval_test_metadata.jsonl": 2212,
    "flow_grpo/geneval_unseen_objects_test_metadata.jsonl": 1024,
    "flow_grpo/ocr_test.txt": 1018,
    "flow_grpo/pickscore_test.no_people.txt": 941,
    "flow_cps_edit/counting_edit_test_metadata.jsonl": 112,
    "drawbench/drawbench.txt": 200,
    "parti/PartiPrompts.tsv": 1632,
    **{f"t2i_compbench/{name}_train.txt": 700 for name in COMPBENCH},
    **{f"t2i_compbench/{name}_val.txt": 300 for name in COMPBENCH},
    "t2i_compbench/new_objects.txt": 101,
    "dpg_bench/dpg_bench_prompts.jsonl": 1065,
    "unigenbench/test_prompts_en.csv": 600,
    "unigenbench/test_prompts_en_long.csv": 600,
    "unigenbench/train_prompt.txt": 10_000,
    "vbench/VBench_full_info.json": 946,
    "vbench/all_dimension.txt": 946,
}


@pytest.mark.parametrize("name", COUNTS)
def test_every_prompt_file_gives_its_rows(name):
    prompts = PromptFile(str(PROMPTS / name)).load()
    assert len(prompts) == COUNTS[name] == len({p.id for p in prompts})


def test_fields_of_real_files_arrive():
    parti = PromptFile(str(PROMPTS / "parti/PartiPrompts.tsv")).load()
    assert set(parti[0].target) == {"Category", "Challenge", "Note"} and any('"' in p.text for p in parti)
    dpg = PromptFile(str(PROMPTS / "dpg_bench/dpg_bench_prompts.jsonl"), id_field="id").load()
    assert dpg[2].id == "dpg_bench_prompts/10" and dpg[2].target is None
    vbench = PromptFile(str(PROMPTS / "vbench/VBench_full_info.json")).load()
    lines = PromptFile(str(PROMPTS / "vbench/all_dimension.txt")).load()
    assert [p.text for p in vbench] == [p.text for p in lines] and "temporal_flickering" in vbench[0].target[
        "dimension"
    ]
    unigen = PromptFile(str(PROMPTS / "unigenbench/test_prompts_en.csv"), id_field="index").load()
    assert unigen[599].id == "test_prompts_en/599" and set(unigen[0].target) == {"sub_dims_en"}


def test_geneval_splits_are_geneval_metadata():
    tags = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}
    path = str(PROMPTS / "geneval/evaluation_metadata.jsonl")
    for tag, count in tags.items():
        assert len(GenEvalPrompts(path, tags=[tag]).load()) == count
    for name in ("geneval_test_metadata", "geneval_unseen_objects_test_metadata"):
        assert len(GenEvalPrompts(str(PROMPTS / f"flow_grpo/{name}.jsonl")).load()) == COUNTS[f"flow_grpo/{name}.jsonl"]
    assert len(GenEvalPrompts(str(PROMPTS / "flow_cps_edit/counting_edit_test_metadata.jsonl")).load()) == 112


def test_nothing_found_scores_nothing_on_every_geneval_prompt():
    for prompt in GenEvalPrompts(str(PROMPTS / "flow_grpo/geneval_test_metadata.jsonl")).load():
        scores = score_detections([], prompt.target)
        assert scores["score"] == scores["strict"] == 0


def test_every_ocr_prompt_names_its_text():
    prompts = OcrPrompts(str(PROMPTS / "flow_grpo/ocr_test.txt")).load()
    assert len(prompts) == 1018 and prompts[0].target == {"text": "Spring Collection 2024"}
    assert all(p.target["text"] == p.text.split('"')[1] for p in prompts)


def test_a_mixture_of_real_sources_is_drawn_quickly():
    names = ("flow_grpo/ocr_test.txt", "unigenbench/train_prompt.txt", "drawbench/drawbench.txt")
    stream = PromptStream({n: PromptFile(str(PROMPTS / n)).load() for n in names}, dict(zip(names, (5, 3, 1))))
    stream.batch(0, 48, seed=0)
    with no_more_than(5):
        batches = [stream.batch(step, 48, seed=0) for step in range(100)]
    assert all(len({p.id for p in batch}) == 48 for batch in batches)


def photograph(name: str) -> torch.Tensor:
    data = pytest.importorskip("skimage.data")
    image = {"motorcycle": lambda: data.stereo_motorcycle()[0]}.get(name, getattr(data, name, None))()
    return torch.from_numpy(np.ascontiguousarray(image[..., :3])).permute(2, 0, 1)


@pytest.fixture(scope="module")
def detector() -> OnnxDetector:
    pytest.importorskip("onnxruntime")
    return OnnxDetector(str(FASTESTDET / "FastestDet.onnx"), str(FASTESTDET / "coco.names"))


# Boxes by eye on the photographs.
@pytest.mark.parametrize(
    ("name", "label", "box"),
    [
        ("astronaut", "person", (20, 0, 500, 512)),
        ("chelsea", "cat", (60, 0, 451, 300)),
        ("coffee", "cup", (160, 40, 440, 330)),
        ("motorcycle", "motorbike", (60, 60, 700, 480)),
    ],
)
def test_a_real_detector_finds_the_obvious_object(detector, name, label, box):
    image = photograph(name)
    best = max(detector(image[None])[0], key=lambda d: d.score)
    assert best.label == label and best.score > 0.5
    assert overlap(best.box_xyxy_px, box) > 0.5


def overlap(a, b) -> float:
    width, height = (max(0, min(a[k + 2], b[k + 2]) - max(a[k], b[k])) for k in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def test_detections_do_not_depend_on_the_batch(detector):
    images = torch.stack([photograph("astronaut"), photograph("astronaut").flip(2)])
    together, alone = detector(images), detector(images[1:])[0]
    assert [(d.label, d.box_xyxy_px) for d in together[1]] == [(d.label, d.box_xyxy_px) for d in alone]
    # A mirrored picture has mirrored boxes, nearly.
    left, right = (max(found, key=lambda d: d.score).box_xyxy_px for found in together)
    assert left[0] == pytest.approx(512 - right[2], abs=40)


def test_geneval_scores_photographs(detector):
    reward = GenEvalReward(detector, threshold=0.5)
    reward.check()
    wanted = {
        "cat": {"tag": "single_object", "include": [{"class": "cat", "count": 1}]},
        "dog": {"tag": "single_object", "include": [{"class": "dog", "count": 1}]},
    }
    cat = photograph("chelsea").expand(2, -1, -1, -1)
    scores = reward(cat, [Prompt(name, name, target=target) for name, target in wanted.items()])
    assert scores["score"].tolist() == [1, 0] == scores["strict"].tolist()
    bike = {"tag": "colors", "include": [{"class": "motorcycle", "count": 1, "color": "red"}]}
    found = reward(photograph("motorcycle")[None], [Prompt("0", "a red motorcycle", target=bike)])
    assert found["count"].item() == 1


def test_names_must_fit_the_graph(detector, tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    with pytest.raises(ConfigError, match=r"2 names in .* want one map with 7 channels"):
        OnnxDetector(detector.path, str(tmp_path / "names.txt"))(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
