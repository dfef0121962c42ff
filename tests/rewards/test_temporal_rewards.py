"""Temporal IoU, timestamp matching, typed answers, format and length: formulas by hand, then the reward objects."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo_mm.errors import ConfigError
from grpo_mm.rewards.text.response_length import ResponseLength
from grpo_mm.rewards.text.tag_format import TagFormat
from grpo_mm.rewards.text.typed_answer import (
    TypedAnswer,
    answer_accuracy,
    longest_common_subsequence,
    mean_rouge,
    relative_closeness,
    rouge_l,
    rouge_n,
    same_choice,
    same_number,
    word_accuracy,
)
from grpo_mm.rewards.video.temporal_iou import (
    TemporalIou,
    hull_iou,
    merged,
    set_iou,
    timestamp_aware_iou,
    union_iou,
)
from grpo_mm.rewards.video.timestamp_matching import TimestampMatching, timestamp_matching
from grpo_mm.rollout.safe_call import score_safely
from grpo_mm.types import Prompt

INF, NAN = math.inf, math.nan


def prompt(**target) -> Prompt:
    return Prompt("0", "when?", target=target)


# ── temporal IoU ──


def test_published_fixture():
    assert hull_iou((10, 20), (12, 22)) == pytest.approx(0.666667, abs=1e-6)
    assert set_iou((10, 20), (12, 22)) == pytest.approx(0.666667, abs=1e-6)
    assert timestamp_aware_iou((10, 20), (12, 22), 60) == pytest.approx(0.622963, abs=1e-6)


@pytest.mark.parametrize("iou", [hull_iou, set_iou])
@pytest.mark.parametrize(
    ("span", "reference", "value"),
    [
        ((0, 10), (0, 10), 1),
        ((0, 5), (0, 10), 0.5),
        ((0, 4), (6, 10), 0),
        ((0, 5), (5, 10), 0),
        ((20, 10), (10, 20), 0),  # reversed
        ((5, 5), (0, 10), 0),  # zero length
        ((5, 5), (5, 5), 1),  # unless the annotation is that point too
        ((5, 5), (6, 6), 0),
        ((0, INF), (0, 10), 0),
        ((-INF, INF), (0, 10), 0),
        ((NAN, 10), (0, 10), 0),
        ((0, NAN), (0, 10), 0),
        ((0, INF), (0, INF), 0),
        ((INF, INF), (INF, INF), 0),
    ],
)
def test_iou_by_hand_and_of_odd_spans(iou, span, reference, value):
    assert iou(span, reference) == value
    assert timestamp_aware_iou(span, reference, 100) == pytest.approx(
        value * (1 - abs(span[1] - reference[1]) / 100 if value else 1)
    )


spans = st.tuples(st.floats(0, 100), st.floats(0, 100))


@given(spans, spans)
def test_both_definitions_agree_and_are_bounded(span, reference):
    value = hull_iou(span, reference)
    assert 0 <= value <= 1 and value == pytest.approx(set_iou(span, reference), abs=1e-9)
    assert value == hull_iou(reference, span) and value == pytest.approx(union_iou([span], [reference]), abs=1e-9)
    assert 0 <= timestamp_aware_iou(span, reference, 100) <= value


def test_an_error_longer_than_the_clip_is_no_bonus():
    assert timestamp_aware_iou((0, 200), (90, 110), 50) == 0  # both factors are negative


def test_union_iou_merges_first():
    assert merged([(5, 8), (0, 3), (2, 4), (4, 4.5), (9, 9), (7, 6), (0, INF)]) == [(0, 4.5), (5, 8)]
    # 0-4 and 10-12 against 2-11: shared 2 + 1, covered 4 + 2 + 9 - 3
    assert union_iou([(0, 3), (1, 4), (10, 12)], [(2, 11)]) == pytest.approx(3 / 12)
    assert union_iou([(0, 4)] * 3, [(0, 2), (2, 4)]) == 1
    assert union_iou([], [(0, 4)]) == union_iou([(4, 0)], [(0, 4)]) == union_iou([(5, 5)], [(5, 5), (6, 9)]) == 0


def test_union_iou_agrees_with_counting_seconds():
    rng = random.Random(0)
    for _ in range(200):
        sides = [[tuple(sorted(rng.sample(range(30), 2))) for _ in range(rng.randint(1, 4))] for _ in range(2)]
        own, other = ({second for s, e in side for second in range(s, e)} for side in sides)
        assert union_iou(*sides) == pytest.approx(len(own & other) / len(own | other))


def test_the_reward_says_what_it_scored():
    texts = ["<answer>10 to 20</answer>", "<answer>12 to 22</answer>", "<answer>soon</answer>", "20 to 10", "10 to 20"]
    prompts = [prompt(spans=[[12, 22]])] * 4 + [prompt(answer="(A)")]
    reward = TemporalIou()
    assert [reward.applies_to(p) for p in prompts] == [True] * 4 + [False]
    scores = reward(texts, prompts)
    assert scores["score"][:4].tolist() == pytest.approx([2 / 3, 1, 0, 0])
    assert scores["parse_failed"][:4].tolist() == [0, 0, 1, 0]
    assert scores["r1_at_0.5"][:4].tolist() == [1, 1, 0, 0] and scores["r1_at_0.7"][:4].tolist() == [0, 1, 0, 0]
    assert all(part[4].isnan() and part.shape == (5,) for part in scores.values())


def test_strict_thresholds_want_more():
    texts, prompts = ["0 to 5"], [prompt(spans=[[0, 10]])]
    assert TemporalIou()(texts, prompts)["r1_at_0.5"].item() == 1
    assert TemporalIou(strict=True)(texts, prompts)["r1_at_0.5"].item() == 0


def test_first_last_and_all_spans_are_choices():
    texts, prompts = ["0 to 5 and then 10 to 20"], [prompt(spans=[[0, 5], [10, 20]])]
    for annotated, pick in (([0, 5], "first"), ([10, 20], "last")):
        assert TemporalIou(pick=pick)(texts, [prompt(spans=[annotated])])["score"].item() == 1
        assert TemporalIou(pick=pick)(texts, prompts)["score"].item() == 1  # the nearest annotation counts
    assert TemporalIou("union")(texts, [prompt(spans=[[0, 20]])])["score"].item() == pytest.approx(15 / 20)


def test_the_glue_element_is_read_where_the_tag_says_so():
    text = "<answer>(C)</answer><glue>[(0, 4), (10, 12)]</glue>"
    reward = TemporalIou("union", tag="glue")
    assert reward([text], [prompt(spans=[[0, 4], [10, 12]])])["score"].item() == 1


def test_the_timestamp_aware_reward_logs_plain_iou_beside_it():
    target = {"spans": [[12, 22]], "duration": 60}
    scores = TemporalIou("timestamp_aware")(["10 to 20"], [prompt(**target)])
    assert scores["score"].item() == pytest.approx(0.622963, abs=1e-6)
    assert scores["iou"].item() == pytest.approx(2 / 3) and scores["r1_at_0.5"].item() == 1
    without = prompt(spans=[[12, 22]])
    assert not TemporalIou("timestamp_aware").applies_to(without) and TemporalIou().applies_to(without)
    assert TemporalIou("timestamp_aware")(["10 to 20"], [without])["score"].isnan().all()


def test_reversed_and_tagless_texts_follow_their_options():
    prompts = [prompt(spans=[[10, 20]])]
    assert TemporalIou(swap_reversed=True)(["20 to 10"], prompts)["score"].item() == 1
    assert TemporalIou(require_tag=True)(["10 to 20"], prompts)["parse_failed"].item() == 1
    assert TemporalIou(tag=None)(["<answer>no</answer> 10 to 20"], prompts)["score"].item() == 1


def test_an_unknown_kind_is_named():
    with pytest.raises(ConfigError, match="iou = 'giou'.*wanted an iou of hull, set, timestamp_aware, union"):
        TemporalIou("giou")


# ── timestamp matching ──


def test_timestamp_matching_by_hand():
    # precision 2/3, recall 1/2: F2 = 5 · (1/3) / (4 · 2/3 + 1/2) = 10/19; WMSE = (16 · 1 + 4 · 4) / 20
    scores = timestamp_matching({40: 3, 41: 4, 50: 1}, {40: 4, 41: 2, 42: 3, 43: 3, 50: 0})
    assert scores["f"] == pytest.approx(10 / 19) and scores["saliency"] == pytest.approx(1 / (1 + 32 / 20))
    assert scores["score"] == pytest.approx(0.6 * 10 / 19 + 0.4 / 2.6)


def test_the_same_highlights_are_worth_one_and_others_nothing():
    assert timestamp_matching({1: 2, 5: 3}, {1: 2, 5: 3})["score"] == pytest.approx(1)
    assert timestamp_matching({2: 2}, {1: 2, 5: 3})["score"] == 0 == timestamp_matching({}, {1: 2})["score"]
    assert timestamp_matching({1: INF}, {1: 2})["score"] == pytest.approx(0.6)  # right time, absurd score
    with pytest.raises(ValueError, match="wanted at least one highlight"):
        timestamp_matching({1: 2}, {1: 0})


def test_recall_counts_for_more_than_precision():
    assert timestamp_matching({1: 2}, {1: 2, 2: 2})["f"] < timestamp_matching({1: 2, 2: 2}, {1: 2})["f"]


def test_highlights_are_scored_on_the_grid_of_clips():
    text = "<answer>The highlights are at 82 and 84.4 seconds. Their saliency scores are 3, 2.</answer>"
    by_second = {"82": 3, "84": 2}
    as_list = [0.0] * 41 + [3, 2] + [None] * 32
    prompts = [prompt(saliency=by_second), prompt(saliency=as_list), prompt(saliency=[0, 0]), prompt(spans=[[1, 2]])]
    scores = TimestampMatching()([text] * 4, prompts)
    assert scores["score"][:2].tolist() == pytest.approx([1, 1]) and scores["score"][2:].isnan().all()
    assert TimestampMatching(keys="clips")([text], [prompt(saliency={41: 3, 42: 2})])["score"].item() == pytest.approx(
        1
    )
    failed = TimestampMatching()(["none"], prompts[:1])
    assert failed["score"].item() == 0 and failed["parse_failed"].item() == 1


# ── answers ──


@pytest.mark.parametrize(
    ("prediction", "answer", "value"),
    [
        ("(C)", "(C)", 1),
        (" C ", "(C)", 1),
        ("c", "(C)", 1),
        ("C.", "C", 1),
        ("C. unwrap it", "(C)", 1),
        ("(C) unwrap it", "C", 1),
        ("unwrap it", "unwrap it", 1),
        ("YES", "yes", 1),
        ("Yes.", "yes", 1),
        (' "Yes" ', "yes", 1),
        ("**No**", "no", 1),
        ("yes, no", "yes", 0),
        ("Not", "no", 0),
        (".5", "5", 0),
        ("-5", "5", 0),
        (".", "no", 0),
        ("(D)", "(C)", 0),
        ("A dog", "A", 0),
        ("(A) or (C)", "(C)", 0),
        ("", "(C)", 0),
    ],
)
def test_choices(prediction, answer, value):
    assert same_choice(prediction, answer) == value


@pytest.mark.parametrize(
    ("prediction", "answer", "value"),
    [
        ("3", "3", 1),
        ("3.141", "3.144", 1),
        ("3.14", "3.15", 0),
        ("1,234", "1234", 1),
        ("3", "3.0", 0),  # one has a decimal point
        ("three", "3", 0),
        ("nan", "nan", 0),
        ("1_0", "10", 0),
        ("1e999", "1e999", 0),
    ],
)
def test_numbers(prediction, answer, value):
    assert same_number(prediction, answer) == value


def test_word_accuracy_is_one_minus_the_error_rate():
    assert word_accuracy("the cat sat", "the cat sat") == 1
    assert word_accuracy("the cat sit down", "the cat sat") == pytest.approx(1 - 2 / 3)
    assert word_accuracy("", "the cat") == 0 == word_accuracy("a b c d", "the cat") == word_accuracy("x", "")
    assert word_accuracy("", "") == 1


def test_rouge_by_hand():
    own, other = [text.split() for text in ("the cat sat on the mat", "the cat lay on a mat")]
    assert rouge_n(own, other, 1) == pytest.approx(4 / 6)  # the, cat, on, mat
    assert rouge_n(own, other, 2) == pytest.approx(1 / 5)  # the cat
    assert rouge_l(own, other) == pytest.approx(4 / 6)
    assert mean_rouge("The cat sat on the mat.", "the cat lay on a mat") == pytest.approx((4 / 6 + 1 / 5 + 4 / 6) / 3)
    assert mean_rouge("", "the cat") == 0 and mean_rouge("The Cat", "the cat!") == 1
    assert rouge_n(["a"] * 3, ["a"], 1) == pytest.approx(2 / 4)  # a repeated word counts once


def table_lcs(a, b) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        above, row = row, [0]
        for j, y in enumerate(b):
            row.append(above[j] + 1 if x == y else max(above[j + 1], row[j]))
    return row[-1]


@given(st.lists(st.sampled_from("abc"), max_size=70), st.lists(st.sampled_from("abc"), max_size=70))
def test_the_longest_common_subsequence_agrees_with_its_table(a, b):
    assert longest_common_subsequence(a, b) == table_lcs(a, b)


def test_closeness_is_relative():
    assert relative_closeness("8", "10") == pytest.approx(0.8) and relative_closeness("-50", "10") == 0
    assert relative_closeness("about 10", "10") == 0 and relative_closeness("1,000", "1000") == 1
    assert relative_closeness("0", "0") == 1 and relative_closeness("1", "0") == 0


def test_each_row_is_scored_by_its_own_type():
    rows = [
        ("<answer>C</answer>", {"answer": "(C)", "answer_type": "multiple choice"}, 1),
        ("<answer>8</answer>", {"answer": 10, "answer_type": "regression"}, 0.8),
        ("<answer>8</answer>", {"answer": 10, "answer_type": "numerical"}, 0),
        ("<answer>open late</answer>", {"answer": "open", "answer_type": "OCR"}, 0),
        ("<answer>open late now</answer>", {"answer": "open late", "answer_type": "ocr"}, 0.5),
        ("<answer>the cat</answer>", {"answer": "the cat", "answer_type": "free-form"}, 1),
        ("so (C)? <answer>no</answer>", {"answer": "(C)"}, 0),
        ("C", {"answer": "(C)"}, 1),
        ("C", {"spans": [[0, 1]]}, NAN),
    ]
    texts, targets, wanted = zip(*rows)
    scores = TypedAnswer()(texts, [prompt(**target) for target in targets])
    assert scores["score"].tolist() == pytest.approx(list(wanted), nan_ok=True)
    assert scores["parse_failed"].tolist() == pytest.approx([0] * 7 + [1, NAN], nan_ok=True)
    assert TypedAnswer(require_tag=True)(["C"], [prompt(answer="(C)")])["score"].item() == 0
    assert TypedAnswer(tag=None)(["C"], [prompt(answer="(C)")])["score"].item() == 1


def test_an_unknown_type_fails_its_row_and_says_so():
    prompts = [prompt(answer="x", answer_type="haiku"), prompt(answer="x")]
    scores, errors = score_safely(TypedAnswer(), ["x", "x"], prompts)
    assert scores["score"].isnan().tolist() == [True, False]
    assert "answer_type = 'haiku'; wanted one of 'multiple choice'" in errors[0]
    with pytest.raises(ConfigError, match="default_type"):
        TypedAnswer(default_type="haiku")
    assert answer_accuracy("1.50", 1.5, "numerical") == 1


# ── length, and what all rewards share ──


def test_the_band_includes_its_ends():
    reward = ResponseLength(low=2, high=3)
    scores = reward(["a", "a b", "a b c", "a b c d", ""], [None] * 5)
    assert scores["score"].tolist() == [0, 1, 1, 0, 0] and scores["length"].tolist() == [1, 2, 3, 4, 0]
    with pytest.raises(ConfigError, match="low = 3, high = 2"):
        ResponseLength(low=3, high=2)


def test_length_is_counted_in_tokens_of_a_tokenizer(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, ",": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(tmp_path / "tokenizer")
    reward = ResponseLength(low=3, high=3, tokenizer=str(tmp_path / "tokenizer"))
    assert reward(["a, a", "a a"], [None] * 2)["score"].tolist() == [1, 0]
    with pytest.raises(ConfigError, match="folder without tokenizer_config.json"):
        ResponseLength(tokenizer=str(tmp_path)).check()


@pytest.mark.parametrize("reward", [TemporalIou(), TimestampMatching(), TypedAnswer(), TagFormat(), ResponseLength()])
def test_every_reward_takes_no_rows_and_prompts_without_a_target(reward):
    assert all(part.shape == (0,) for part in reward([], []).values())
    scores, errors = score_safely(reward, ["x"], [Prompt("0", "?")])
    assert errors == [] and torch.isnan(scores["score"]).item() != reward.applies_to(Prompt("0", "?"))
