"""Prompts come out of files as they went in, and mixtures are a pure function of seed and step."""

import json
from collections import Counter
from pathlib import Path

import pytest

from grpo_mm.datasets.images.geneval import GenEvalPrompts
from grpo_mm.datasets.images.ocr import OcrPrompts
from grpo_mm.datasets.shared.files import PromptFile
from grpo_mm.datasets.shared.hub import HubPrompts
from grpo_mm.errors import ConfigError
from grpo_mm.rewards.images.ocr import quoted_text
from grpo_mm.rollout.prompt_stream import PhasedStream, PromptStream
from grpo_mm.types import Prompt


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_a_text_file_gives_one_prompt_a_line_and_skips_blank_lines(tmp_path):
    path = write(tmp_path, "zoo.txt", "\ufeffa cat\n\n  a dog, « très » grand \n\n")
    prompts = PromptFile(path).load()
    assert [(p.id, p.text, p.target) for p in prompts] == [
        ("zoo/0", "a cat", None),
        ("zoo/1", "a dog, « très » grand", None),
    ]


def test_other_columns_of_a_csv_become_the_target(tmp_path):
    path = write(tmp_path, "a.csv", 'index,prompt_en,note\n7,"a ""cat"",\nsleeping",nice\n9,a dog,\n')
    prompts = PromptFile(path).load()
    assert prompts[0].text == 'a "cat",\nsleeping' and prompts[0].target == {"index": "7", "note": "nice"}
    assert prompts[1].target == {"index": "9", "note": ""}
    assert [p.id for p in PromptFile(path, id_field="index").load()] == ["a/7", "a/9"]


def test_a_tsv_has_no_quoting(tmp_path):
    path = write(tmp_path, "p.tsv", 'Prompt\tNote\na 12" pizza\tsize\n"open\tstray\n')
    assert [(p.text, p.target) for p in PromptFile(path).load()] == [
        ('a 12" pizza', {"Note": "size"}),
        ('"open', {"Note": "stray"}),
    ]


def test_json_lines_and_json_lists_may_hold_objects_or_strings(tmp_path):
    rows = [{"caption": "a cat", "boxes": [[0, 1]]}, "a dog"]
    lines = write(tmp_path, "a.jsonl", "\n\n".join(map(json.dumps, rows)))
    whole = write(tmp_path, "b.json", json.dumps(rows))
    for path in (lines, whole):
        prompts = PromptFile(path).load()
        assert [p.text for p in prompts] == ["a cat", "a dog"]
        assert prompts[0].target == {"boxes": [[0, 1]]} and prompts[1].target is None
    assert len(PromptFile(whole, limit=1).load()) == 1


@pytest.mark.parametrize(
    ("name", "text", "settings", "message"),
    [
        ("a.txt", "\n \n", {}, "no prompt in this file"),
        ("a.jsonl", '{"prompt": "x"}\n{"prompt": \n', {}, "a.jsonl, line 2: not JSON"),
        ("a.jsonl", "[1, 2]", {}, "line 1: found .1, 2., wanted an object"),
        ("a.jsonl", '{"prompt": 3}', {}, "'prompt' is 3, wanted a text"),
        ("a.json", '{"prompt": "x"}', {}, "found a JSON dict, wanted a list"),
        ("a.json", '[{"prompt": "x"},\n{]', {}, "line 2: not JSON"),
        ("a.csv", "title,url\nx,y\n", {}, "found the fields 'title', 'url'; none is called prompt, text"),
        ("a.csv", "prompt,url\nx,y\n", {"text_field": "title"}, "no field 'title'; found 'prompt', 'url'"),
        ("a.csv", "prompt,id\nx,1\ny,1\n", {"id_field": "id"}, "line 3: id = '1' was used at .*line 2"),
        ("a.csv", "prompt,id\nx,1,2\n", {}, "line 2: found 3 columns, the header has 2"),
        ("a.tsv", "prompt\tid\nx\n", {}, "line 2: found 1 columns, the header has 2"),
        ("a.parquet", "", {}, "unknown suffix '.parquet'"),
        ("a.txt", "x", {"limit": 0}, "limit = 0"),
    ],
)
def test_a_broken_prompt_file_is_named_with_its_line(tmp_path, name, text, settings, message):
    path = write(tmp_path, name, text)
    with pytest.raises(ConfigError, match=message):
        PromptFile(path, **settings).load()


def test_a_file_that_is_not_utf8_is_told(tmp_path):
    (tmp_path / "a.txt").write_bytes("ein Bär".encode("latin-1"))
    with pytest.raises(ConfigError, match="a.txt: cannot be read as .txt in UTF-8"):
        PromptFile(str(tmp_path / "a.txt")).load()


def test_a_missing_prompt_file_is_found_before_the_run(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        PromptFile(str(tmp_path / "none.txt")).check()


GENEVAL = [
    {
        "tag": "counting",
        "include": [{"class": "dog", "count": 2}],
        "exclude": [{"class": "dog", "count": 3}],
        "prompt": "2",
    },
    {
        "tag": "position",
        "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}],
        "prompt": "p",
    },
]


def test_geneval_metadata_become_targets(tmp_path):
    path = write(tmp_path, "g.jsonl", "\n".join(map(json.dumps, GENEVAL)))
    first, second = GenEvalPrompts(path).load()
    assert first.id == "g/0" and first.target == {k: v for k, v in GENEVAL[0].items() if k != "prompt"}
    assert second.target["exclude"] == []
    assert [p.id for p in GenEvalPrompts(path, tags=["position"]).load()] == ["g/1"]
    with pytest.raises(ConfigError, match="found the tags .'counting', 'position'."):
        GenEvalPrompts(path, tags=["colours"]).load()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x"}, "line 1: no 'include' clause"),
        ({"prompt": "x", "include": [{"class": "dog", "count": 0}]}, "a 'count' of at least 1"),
        ({"prompt": "x", "include": [{"class": "dog", "count": 1, "position": ["above", 0]}]}, "an earlier clause"),
    ],
)
def test_what_is_not_geneval_metadata_is_refused(tmp_path, row, message):
    with pytest.raises(ConfigError, match=message):
        GenEvalPrompts(write(tmp_path, "g.jsonl", json.dumps(row))).load()


def test_the_first_quoted_span_is_the_text_to_render(tmp_path):
    path = write(tmp_path, "o.txt", 'A sign "OPEN" and "CLOSED"\nA "" or "Step 1, it\'s" there\n')
    prompts = OcrPrompts(path).load()
    assert [p.target for p in prompts] == [{"text": "OPEN"}, {"text": "Step 1, it's"}]
    assert [quoted_text(p.text) for p in prompts] == ["OPEN", "Step 1, it's"]
    with pytest.raises(ConfigError, match="o/0: no .text. in double quotes"):
        OcrPrompts(write(tmp_path, "o.txt", 'A 12" pizza\n')).load()


def test_a_local_hugging_face_dataset_gives_prompts(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = {"caption": ["a cat", "a dog", "an owl"], "key": ["x", "y", "z"], "count": [1, 2, 3]}
    datasets.disable_progress_bars()
    saved = str(tmp_path / "animals")
    datasets.DatasetDict(train=datasets.Dataset.from_dict(rows)).save_to_disk(saved)
    prompts = HubPrompts(saved, id_field="key", limit=2).load()
    assert [(p.id, p.text, p.target) for p in prompts] == [
        ("animals/x", "a cat", {"count": 1}),
        ("animals/y", "a dog", {"count": 2}),
    ]
    folder = tmp_path / "lines"
    folder.mkdir()
    write(folder, "train.jsonl", "\n".join(json.dumps(dict(zip(rows, row))) for row in zip(*rows.values())))
    assert HubPrompts(str(folder), target_fields=[]).load()[2] == Prompt(id="lines/2", text="an owl")
    with pytest.raises(ConfigError, match="no such folder"):
        HubPrompts(str(tmp_path / "none")).check()
    with pytest.raises(ConfigError, match="no split 'test'; found 'train'"):
        HubPrompts(saved, split="test").load()
    with pytest.raises(ConfigError, match="test"):
        HubPrompts(str(folder), split="test").load()
    with pytest.raises(ConfigError, match="no field 'title'; found 'caption', 'key', 'count'"):
        HubPrompts(saved, text_field="title").load()


def prompts_of(name: str, size: int) -> list[Prompt]:
    return [Prompt(id=f"{name}/{i}", text=f"{name} {i}") for i in range(size)]


def take(stream: PromptStream, steps: range, count: int, seed: int = 0) -> list[Prompt]:
    return [prompt for step in steps for prompt in stream.batch(step, count, seed)]


def test_equal_weights_share_thirty_prompts_fifteen_to_fifteen():
    stream = PromptStream({"a": prompts_of("a", 40), "b": prompts_of("b", 40)}, {"a": 0.5, "b": 0.5})
    assert Counter(p.source for p in take(stream, range(10), 3)) == {"a": 15, "b": 15}


@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.2), (7, 5, 3, 1, 1), (1, 1, 1), (0.9, 0.05, 0.05), (1, 0)])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_every_source_keeps_to_its_weight_at_every_step(weights, count):
    names = "abcde"[: len(weights)]
    stream = PromptStream({n: prompts_of(n, 50) for n in names}, dict(zip(names, weights)))
    seen = Counter()
    for step in range(60):
        batch = stream.batch(step, count, seed=1)
        assert len(batch) == count
        seen.update(p.source for p in batch)
        for name, weight in zip(names, weights):
            assert abs(seen[name] - weight / sum(weights) * count * (step + 1)) <= len(weights) / 2
    if count * 60 * weights[-1] / sum(weights) % 1 == 0:
        assert seen[names[-1]] == count * 60 * weights[-1] / sum(weights)


@pytest.mark.parametrize(("size", "count"), [(10, 3), (23, 7), (24, 8), (8, 8), (9, 8), (15, 8), (100, 1), (1000, 32)])
def test_an_epoch_has_every_prompt_once_and_a_batch_none_twice(size, count):
    stream = PromptStream({"a": prompts_of("a", size)})
    ids = [p.id for p in take(stream, range(size), count)]
    for start in range(0, len(ids), count):
        assert len(set(ids[start : start + count])) == count
    # size batches are `count` epochs; in between, no prompt is an epoch ahead of another.
    assert set(Counter(ids).values()) == {count}
    for step in range(size):
        seen = Counter(ids[: step * count])
        assert max(seen.values(), default=0) <= -(-step * count // size)


def test_epochs_of_a_large_source_come_in_different_orders():
    stream = PromptStream({"a": prompts_of("a", 40)})
    first, second, third = ([p.id for p in take(stream, range(4 * e, 4 * e + 4), 10)] for e in range(3))
    assert sorted(first) == sorted(second) == sorted(third)
    assert len({tuple(first), tuple(second), tuple(third)}) == 3


def test_a_batch_depends_on_seed_and_step_only():
    def stream():
        return PromptStream({"a": prompts_of("a", 30), "b": prompts_of("b", 5)}, {"a": 2, "b": 1})

    walked = stream()
    batches = [walked.batch(step, 6, seed=3) for step in range(40)]
    assert stream().batch(37, 6, seed=3) == batches[37] == walked.batch(37, 6, seed=3)
    assert walked.batch(37, 6, seed=4) != batches[37]
    swapped = PromptStream({"b": prompts_of("b", 5), "a": prompts_of("a", 30)}, {"b": 1, "a": 2})
    assert swapped.batch(37, 6, seed=3) == batches[37]


def test_a_late_step_costs_no_more_than_the_first():
    stream = PromptStream({"a": prompts_of("a", 7), "b": prompts_of("b", 1000)})
    assert len(stream.batch(10**9, 8, seed=0)) == 8


def test_a_source_smaller_than_its_share_repeats_under_new_ids():
    batch = PromptStream({"a": prompts_of("a", 2)}).batch(0, 4, seed=0)
    assert sorted(p.id for p in batch) == ["a/0", "a/0#2", "a/1", "a/1#2"]
    assert {p.text for p in batch if p.id == "a/1#2"} == {"a 1"}


def test_sources_with_the_same_ids_are_told_apart():
    stream = PromptStream({"train": prompts_of("x", 3), "more": prompts_of("x", 3), "own": prompts_of("y", 3)})
    ids = {p.id for p in take(stream, range(3), 3)}
    assert ids == {f"{s}/x/{i}" for s in ("train", "more") for i in range(3)} | {f"y/{i}" for i in range(3)}


@pytest.mark.parametrize(
    ("sources", "weights", "message"),
    [
        ({"a": prompts_of("a", 1)}, {"b": 1.0}, "weights are given for .'b'., the sources are .'a'."),
        ({"a": []}, {"a": 1.0}, "'a' is empty"),
        ({"a": prompts_of("a", 1)}, {"a": -1.0}, "wanted a number of at least 0"),
        ({"a": prompts_of("a", 1)}, {"a": 0.0}, "all weights are 0"),
        ({"a": prompts_of("a", 1) * 2}, {"a": 1.0}, "uses the id 'a/0' more than once"),
    ],
)
def test_a_mixture_that_cannot_be_drawn_is_refused(sources, weights, message):
    with pytest.raises(ConfigError, match=message):
        PromptStream(sources, weights)


def test_sources_follow_each_other_in_phases():
    sources = {"a": prompts_of("a", 9), "b": prompts_of("b", 9)}
    stream = PhasedStream(sources, {"a": 1, "b": 1}, {"a": (0, 3), "b": (2, None)})
    drawn = [{p.source for p in stream.batch(step, 4, seed=0)} for step in range(5)]
    assert drawn == [{"a"}, {"a"}, {"a", "b"}, {"b"}, {"b"}]
    alone = PromptStream({"b": prompts_of("b", 9)}, {"b": 1})
    assert [p.id for p in stream.batch(4, 4, seed=0)] == [p.id for p in alone.batch(1, 4, seed=0)]


def test_without_phases_the_stream_is_what_it_was():
    sources, weights = {"a": prompts_of("a", 9), "b": prompts_of("b", 7)}, {"a": 2.0, "b": 1.0}
    phased = PhasedStream(sources, weights, {"a": (0, None), "b": (0, None)})
    assert [phased.batch(s, 4, 1) for s in range(6)] == [
        PromptStream(sources, weights).batch(s, 4, 1) for s in range(6)
    ]


def test_a_step_without_a_source_is_refused():
    with pytest.raises(ConfigError, match="no prompt source is drawn in step 3"):
        PhasedStream({"a": prompts_of("a", 9)}, {"a": 1.0}, {"a": (0, 3)}).batch(3, 2, seed=0)
