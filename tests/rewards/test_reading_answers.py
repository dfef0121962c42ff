"""How answers are written: every spelling is read for what it says or not at all, and by rewards and benchmarks alike."""

import itertools

import pytest

from grpo_mm.pipelines.vlm.answers import answer_tokens
from grpo_mm.rewards.answers.choices import folded, named_letter, read_letter, read_truth
from grpo_mm.rewards.answers.numbers import has_decimals, read_count, read_number, whole_number
from grpo_mm.rewards.answers.tags import after_thinking, answer_text, last_element, left_open
from grpo_mm.rewards.answers.times import numbers_in, readings_in, spans_in
from grpo_mm.rewards.answers.writing import normal_form, plain_signs, unmarked
from grpo_mm.rewards.benchmarks.grounded_qa import GroundedQa
from grpo_mm.rewards.benchmarks.spatial import Blink, Vsr
from grpo_mm.rewards.benchmarks.vsi_bench import VsiBench
from grpo_mm.rewards.images.ocr import quoted_text, target_text, text_similarity
from grpo_mm.rewards.spatial.box_coordinates import to_pixels
from grpo_mm.rewards.spatial.box_text import names_nothing, parse_boxes
from grpo_mm.rewards.spatial.boxes import as_boxes
from grpo_mm.rewards.spatial.detection_map import DetectionMap, mean_average_precision
from grpo_mm.rewards.spatial.spacer import SpacerAnswer
from grpo_mm.rewards.text.edit_similarity import edit_similarity
from grpo_mm.rewards.text.mean_relative_accuracy import MeanRelativeAccuracy
from grpo_mm.rewards.text.text_overlap import AnswerF1, words
from grpo_mm.rewards.text.typed_answer import TypedAnswer, same_choice, same_number, word_accuracy
from grpo_mm.rewards.video.timestamp_matching import parse_highlights
from grpo_mm.types import Prompt

# ── times ──

TIMES = {
    (80, 95): [
        "1 minute 20 seconds to 1 minute 35 seconds", "1m20s - 1m35s", "1 min. 20 sec. – 1 min. 35 sec.", "1m20 to 1m35",
        "1 minute and 20 seconds to 1 minute and 35 seconds", "1:20–1:35", "１：２０－１：３５", "00:01:20 --> 00:01:35,000",
        "1'20\" - 1'35\"", "PT1M20S to PT1M35S", "1:20 min to 1:35 min", "80 sec until 95 secs", "80秒到95秒", "1分20秒到1分35秒",
        "80秒から95秒まで", "80초에서 95초", "de 80 à 95 secondes", "de 80 a 95 segundos", "von 80 bis 95 Sekunden",
        "zwischen 80 und 95 s", "с 80 до 95 секунд", "between 80 and 95", "second 80 to second 95", "t=80 to t=95", "80..95",
        "(80, 95) seconds", "𝟖𝟎 to 𝟗𝟓", "**80** to **95**", "80000-95000 ms", "start: 80 s, end: 95 s", "80 to 95 (frames 160 to 190)",
    ],
    (80.5, 95.25): ["80,5 s bis 95,25 s", "80,5 - 95,25", "80½ s to 95¼ s", "80.5s–95.25s", "1:20.5 to 1:35.25"],
    (60, 120): ["1-2 minutes", "1 to 2 min", "[1, 2] minutes", "1 Minute bis 2 Minuten", "start: 1 minute, end: 2 minutes"],
    (90, 150): ["1.5 minutes to 2.5 minutes", "1½ min – 2½ min", "1,5 Minuten bis 2,5 Minuten"],
    (3720, 3780): ["from 1h 2m to 1h 3m", "1 hour 2 minutes to 1 hour 3 minutes", "1:02:00 - 1:03:00", "62 to 63 minutes"],
    (95, 80): ["95 to 80", "1:35 - 1:20"],
    (3, 7): ["t1=3, t2=7", "Clip 1: 3 s, 7 s", "第3秒到第7秒", r"not 2 to 5 but \boxed{3 \text{ to } 7}", "1. 3 to 7"],
    (1000, 1100): ["1'000 to 1'100", "1’000 s – 1’100 s"],
    (123456, 123460): ["1,23,456 to 1,23,460"],
    (1234.5, 1300): ["1,234.5 to 1,300", "1'234,5 s bis 1'300 s", "1.234,5 s bis 1.300,0 s"],
}  # fmt: skip


@pytest.mark.parametrize(("text", "span"), [(text, span) for span, texts in TIMES.items() for text in texts])
def test_a_span_is_read_in_its_units(text, span):
    assert spans_in(text) == [pytest.approx(span)]


@pytest.mark.parametrize(
    "text",
    [
        "80s", "frame 12", "frame 12 to frame 40", "frames 12-40", "2–5%", "20 percent to 40 percent", "0.2 of the video",
        "0.2 to 0.5 of the video", "at second five", "five to 10 seconds", "five seconds to 10 seconds, then 20",
        "one minute 20 seconds to 1 minute 35 seconds", "half a minute to 2 minutes", "−5 to 10", "-5 to -2", "(3, -7)",
        "2023-05-12", "12/05/2023 to 13/05/2023", "1/2 to 5, then 10", "1 min to 90", "80 to 1 minute 35 seconds",
        "1 minute 20 to 1 minute 35", "2 minutes 75 seconds to 4 minutes", "start 1, end 2 minutes", "minute 2 to minute 3",
        "30 to 2 minutes", "1:20 PM to 1:35 PM", "5th to 9th", "1_000 to 2_000", "0x10 to 0x20", "10**4 to 10**5", "10² to 10³",
        "1 000 to 1 200", "x2 to x5", "3D to 5D", "1.2.3 to 5", "20% to 50", "1:20:30:05 to 2:00", "00:00:03;12 to 00:00:07;00", "0:03,5 - 0:07,5",
        "1'20 to 1'35", "1分半到2分", "2 to 3 o'clock", "½ to ²",
    ],
)  # fmt: skip
def test_no_span_is_made_of_what_is_no_time_or_cannot_be_told(text):
    assert spans_in(text) == []


def test_what_is_no_time_does_not_hide_a_span():
    assert (
        spans_in("16:9, 12 fps, 90% sure: 3 to 7") == [(3, 7)] == spans_in("The 2nd man comes at 3 s and leaves at 7 s")
    )
    assert spans_in("0:10 to 20 s, then 0:30 to 40 s") == [(10, 20), (30, 40)]
    assert spans_in("at 0:05; 0:10 to 0:20") == [(10, 20)]
    assert numbers_in("82 s, 1m24s, 86") == [82, 84, 86] and readings_in("-1, 3, 4/5") == [None, 3, None]
    assert parse_highlights("82, 84 with scores -1, 3") == [(82, 0), (84, 3)]


# ── choices ──

LETTER_B = [
    "B", "b", "(B)", "(b)", "[B]", "B.", "B)", "B:", "B!", "Ｂ", "𝐁", "Ⓑ", "B。", "**B**", "__B__", "`B`", "*B*", "$B$", "“B”", "'B'", "- B",
    "<b>B</b>", "<strong>B</strong>", r"\boxed{B}", r"$\boxed{\text{B}}$", r"\(\boxed{B}\)", r"\text{B}", r"\mathbf{B}", "B\u200b", "【B】",
    "**B.** a dog", "B) …", "B: a dog", "B - a dog", "B – a dog", "(B) a dog", "B, because it is left", "Answer: B", "**Answer:** B", "answer is B",
    "The answer is (B).", "the correct option is B.", "option b", "Option B", "答案是B", "Antwort: B", "The final answer is $\\boxed{B}$.",
    "B because A is wrong", "B\n\nExplanation: Option A shows a dog.", "```\nB\n```", '{"answer": "B"}', '["B"]', "answer:B", "B is correct",
    "Answer = B", "b) a dog", "B (right)", "I choose B", "It is B.", "The answer should be B", "Die richtige Antwort ist B", "La réponse est B",
    "La respuesta correcta es B", "正解はBです", "정답은 B입니다", "故选：B", "Here (A) sits left, so the answer is B.", r"(A) is left, so \boxed{B}",
    "Is it (A)? No, it is (B).", "The answer is B which is left", "So (B), yes (B).", "Answer is (B), not (A).", "(B) no\n\nThe cat sits (A) left of it.", "The answer is B because it is red",
]  # fmt: skip
NO_LETTER = [
    "", "A dog", "I think…", "not B", "It is not (B)", "(B) is wrong", "B isn't right", "The answer is not B", "B or C", "B/C", "B, C", "A, B and C",
    "A and B", "A ou B", "(A) or (B)", "(A)(B)", "(A) sits left, so the answer is B.", "both", "both (A) and (B)", "Neither (A) nor (B)", "B. a dog or C. a cat", "A. left\nB. right",
    "The answer is B and C", "(B) and (C)", "Answer: A? No, B", "不选B", "A\n\nThe answer is B.", "A\nB\nC", "The answer is (A)... no, (B).",
    "D is right of B", "Answer: A dog", r"\boxed{A} or \boxed{B}", "I think (B), or perhaps C", "В", "β", "E", "(E)", "Yes", "B B", "none", "the answer is a mystery", "B?",
]  # fmt: skip
CHOICES = ["left", "right", "up", "down"]
ASKED = Prompt(
    "0", "?", target={"answer": "(B)", "benchmark": "blink", "choices": CHOICES, "task": "x", "spans": [[0, 1]]}
)


@pytest.mark.parametrize(("text", "letter"), [*((t, "B") for t in LETTER_B), *((t, None) for t in NO_LETTER)])
def test_a_letter_is_read_by_rewards_and_benchmarks_alike(text, letter):
    assert read_letter(text, 4) == letter == Blink().read(f"<think>(A)</think><answer>{text}</answer>", ASKED)
    scored = float(letter == "B")
    wrapped = f"<think>(A)</think><answer>{text}</answer>"
    assert same_choice(text, "(B)") == scored == TypedAnswer()([wrapped], [ASKED])["score"].item()
    assert GroundedQa().is_right(wrapped, ASKED) == bool(scored)
    if letter is None:
        assert not any(same_choice(text, f"({other})") for other in "ABCD")


def test_the_text_of_an_option_is_its_letter_where_the_options_are_known():
    assert read_letter("Right!", CHOICES) == "B" == read_letter("right", ["A. left", "B. right"])
    assert (
        same_choice("right", "(B)", CHOICES) == 1 == TypedAnswer()(["<answer>right</answer>"], [ASKED])["score"].item()
    )
    assert (
        same_choice("right", "(B)") == 0 == same_choice("A", "left", CHOICES)
    )  # a word is asked for, and a letter no word


def test_a_thought_is_no_answer():
    texts = ["<think>it is (B)", "<think>it is (B)</think>", "it is (B)</think> (A)"]
    assert [TypedAnswer()([text], [ASKED])["score"].item() for text in texts] == [0, 0, 0]
    assert TypedAnswer()(["<think>it is (A)</think> (B)"], [ASKED])["score"].item() == 1


@pytest.mark.parametrize(
    ("text", "truth"),
    [("Yes, it is", True), ("**No**", False), ("Ｙｅｓ", True), ("yes or no", None), ("Yes/No", None), ("Yes\nno", None), ("not true", None),
     ("是的", True), ("不是", False), ("Ja.", True), ("nein", False), ("Sí", True), ("нет", False), ("はい", True), ("Answer: no", False),
     ("No idea", None), ("No answer", None), ("No. 5", None), ("yes but actually no", None), ("Non-stop", None), ("是不是", None)],
)  # fmt: skip
def test_yes_and_no_are_read_alike(text, truth):
    assert read_truth(text) is truth
    assert Vsr().read(text, ASKED) == {True: "YES", False: "NO", None: None}[truth]
    assert [same_choice(text, answer) for answer in ("yes", "no")] == [float(truth is True), float(truth is False)]


def test_an_annotation_names_its_option():
    assert [named_letter(t) for t in ("(C)", "C", "C. unwrap it", "unwrap", "A dog", "")] == [
        "C",
        "C",
        "C",
        None,
        None,
        None,
    ]
    assert folded(" “Yes.” ") == "yes" and folded(".5") == ".5" and folded("cafe\u0301") == folded("CAFÉ")


# ── numbers ──

WHOLE = {
    "1,000": 1000, "1.000,5": 1000.5, "3,5": 3.5, "−3": -3, "+3": 3, "１２": 12, "٣": 3, "½": 0.5, "2½": 2.5, "2 1/2": 2.5, "1/2": 0.5, "1e3": 1000,
    r"\boxed{\frac{1}{2}}": 0.5, "$12$": 12, "**12**": 12, "3.": 3, ".5": 0.5, "1'000": 1000, "1\u202f000": 1000, "0,125": 0.125, "1.234": 1.234,
    "1.234.567": 1234567, "12 cups": None, "about 12": None, "twelve": None, "12%": None, "NaN": None, "inf": None, "1/0": None, "0x10": None,
    "10**400": None, "10²": None, "10^3": None, "1e999": None, "1_000": None, "3,5,7": None, "1.2.3": None, "3-5": None, "1:20": None, "": None,
    "3×10^4": None, "1 000": None, "--3": None, "12,34,567": 1234567, "1,23,456.5": 123456.5, r"-\frac{1}{2}": -0.5, r"2\frac{1}{2}": 2.5,
    "5 million": 5000000, "3万": 30000, "2 dozen": 24, "5 hundredths": None, r"2 + 3 = \boxed{5}": 5, r"\boxed{2} or \boxed{3}": None, "3万5千": None,
}  # fmt: skip


@pytest.mark.parametrize(("text", "value"), WHOLE.items())
def test_a_number_is_read_as_it_is_written_or_not_at_all(text, value):
    assert whole_number(text) == value
    if value is not None:
        assert same_number(text, repr(float(value)) if has_decimals(text) else str(value)) == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12 cups", 12), ("about 12", 12), ("3.5 m (11 ft)", 3.5), ("12 m²", 12), ("−3 degrees", -3), ("约3米", 3), ("3 cups on 2 tables", 3),
        ("between 3 and 5", None), ("3 to 5", None), ("3-5", None), ("3 or 4", None), ("3 (or 4)", None), ("not 3", None), ("x2", None),
        ("12k", None), ("1/0 m", None), ("10**400", None), ("2*3", None), ("3 x 10^4", None), ("1:20", None), ("none", None), ("", None),
        (">5", None), ("≤ 5", None), (r"\geq 5", None), ("under 5", None), ("up to 5", None), ("5+", None), ("5 or more", None), ("5以上", None),
        ("至少5", None), ("mindestens 5", None), ("au moins 5", None), ("menos de 5", None), ("не менее 5", None), ("nicht 5", None),
        ("zwischen 3 und 5", None), ("entre 3 y 5", None), ("de 3 a 5", None), ("от 3 до 5", None), ("3から5", None), ("3에서 5", None),
        ("5, maybe 6", None), ("2 + 3 = 5", None), ("2+3=5", None), ("minus 5", -5), ("5M", None), ("3D", None), ("5 Mio", 5e6), ("5千克", 5),
        ("3亿", 3e8), ("5 thousand steps", 5000), (r"so 3 and 4, \boxed{7}", 7), ("<b>5</b>", 5), ("3 lamps over 5 tables", 3),
    ],
)  # fmt: skip
def test_the_number_of_a_text_is_the_same_in_rewards_and_benchmarks(text, value):
    asked = Prompt("0", "?", target={"answer": "12", "answer_type": "numerical", "question_type": "object_counting"})
    wrapped = f"<answer>{text}</answer>"
    assert read_number(text) == value
    read = VsiBench(official=False).read(wrapped, asked)
    assert (None if read is None else float(read)) == value
    held_out = VsiBench(official=False)([wrapped], [asked])["overall"]
    for reward in (MeanRelativeAccuracy(), SpacerAnswer()):
        scores = reward([wrapped], [asked])
        assert scores["score"].item() == pytest.approx(held_out)
    assert MeanRelativeAccuracy()([wrapped], [asked])["parse_failed"].item() == float(value is None)


@pytest.mark.parametrize(
    ("text", "count"),
    [("twelve", 12), ("the red one", None), ("no one", None), ("one hundred", None), ("twenty-one", None), ("one cup", 1), ("1,000", 1000), ("½", 0.5),
     ("none", 0), ("none of the above", None), ("not two", None), ("at least two", None), ("two thirds", None), ("two billion", None),
     ("3 or four", None), ("two-thirds", None), ("minus two", None)],
)  # fmt: skip
def test_counts_in_words(text, count):
    assert read_count(text) == count


# ── boxes ──

NOTHING = Prompt("0", "?", target={"boxes": [], "width": 96, "height": 48})
ONE = Prompt("1", "?", target={"boxes": [[1, 2, 30, 40]], "width": 96, "height": 48})


@pytest.mark.parametrize(
    "text",
    ['[{"bbox_2d": [1, 2, 30, 40]}]', '```json\n{"bbox": [1, 2, 30, 40]}\n```', '{"boxes": [[1, 2, 30, 40]]}', '{"bbox": "1,2,30,40"}',
     "{'Position': '[1, 2, 30, 40]'}", '{"bounding_box": [１，２，３０，４０]}', '{"box": [30, 40, 1, 2]}', '{"bboxes": [[1, 2, 30, 40]]}'],
)  # fmt: skip
def test_a_listed_box_is_read_under_each_of_its_keys(text):
    found = DetectionMap()([f"<answer>{text}</answer>"], [ONE])
    assert found["score"].item() == 1 and found["boxes"].item() == 1


@pytest.mark.parametrize(
    ("text", "nothing"),
    [("[]", 1), ("[ ]", 1), ("```json\n[]\n```", 1), ('{"boxes": []}', 1), ("None", 1), ("", 0), ("[[]]", 0), ("{}", 0), ("[1, 2, 30, 40]", 0),
     ("a cat at (1,2),(30,40)", 0), ('{"bbox": "1,2,30,40"}', 0), ("<box>(1,2),(30,40)</box>", 0), ('{"bbox": [NaN, 1, 2, 3]}', 0), ("nothing [", 0),
     ('{"bbox": ' + "[" * 500 + "]" * 500 + "}", 0), ("there is none, I think", 0)],
)  # fmt: skip
@pytest.mark.parametrize("version", ["map", "od_length", "weighted"])
def test_only_an_empty_list_says_that_there_is_nothing(text, nothing, version):
    assert names_nothing(text) == bool(nothing)
    assert DetectionMap(version=version)([f"<answer>{text}</answer>"], [NOTHING])["score"].item() == nothing


def test_boxes_of_other_coordinates_meet_nothing():
    for coordinates, box in (
        ("unit", [0, 0, 96, 48]),
        ("thousand", [0, 0, 5000, 5000]),
        ("absolute", [0, 0, 1000, 1000]),
    ):
        assert to_pixels(as_boxes([box]), coordinates, ONE).isnan().all()
    assert to_pixels(as_boxes([[0, 0, 1.02, 1.0]]), "unit", ONE).tolist() == [[0, 0, 96, 48]]


def test_a_confidence_is_read_whole_or_not():
    said = {'"90%"': 0.9, "0.9": 0.9, "0,9": None, "1e999": None, '"high"': None}
    assert {
        t: parse_boxes(f'{{"bbox": [1,2,3,4], "confidence": {t}}}', form="json")[0].confidence for t in said
    } == said


def test_average_precision_takes_its_thresholds():
    iou_RW = as_boxes([[0.6, 0, 0, 0]])[:, :1]
    assert mean_average_precision(iou_RW, ["x"], ["x"]) == pytest.approx(0.3)
    assert mean_average_precision(iou_RW, ["x"], ["x"], thresholds=(0.5,)) == 1
    with pytest.raises(ValueError, match="thresholds is empty"):
        mean_average_precision(iou_RW, ["x"], ["x"], thresholds=())


# ── elements ──


def test_elements_are_found_in_any_case_and_with_blanks():
    for text in (
        "<answer>x</answer>",
        "<Answer>x</ANSWER>",
        "< answer >x</ answer>",
        "<answer>y</answer><answer>x</answer><answer>z",
        "<answer>y<answer>x</answer>",
    ):
        assert last_element(text, "answer") == "x" == answer_text(text, "answer")


def test_what_follows_the_thinking():
    texts = {
        "<think>a</think> b": " b",
        "a</think>b": "b",
        "<think>a": "",
        "x": "x",
        "<think>a</think>b<think>c</think>d": "d",
        "a</think><think>b": "",
    }
    assert {text: after_thinking(text) for text in texts} == texts
    assert left_open("user: ?\nassistant:\n<think>\n") == "<think>\n" and left_open(
        "<think>\n\n</think>\n\n"
    ) == "" == left_open("x<|a|>\n")


def test_tokens_of_the_answer_are_those_of_the_element_that_rewards_read():
    pieces = ("<answer>", "</answer>", "<Answer>", "a", "b c")
    for text in map("".join, itertools.product(pieces, repeat=4)):
        found = answer_tokens(list(map(ord, text)), lambda ids: "".join(map(chr, ids)))
        inner = last_element(text, "answer")
        assert (text[found[0] : found[1]] if found else None) == (inner or None), text


# ── texts ──


@pytest.mark.parametrize(
    ("recognised", "target"),
    [
        ("OPENNOW", "OPEN\nNOW"), ("OPENNOW", "OPEN\tNOW"), ("OPENNOW", "OPEN\u00a0NOW"), ("OPEN\u3000NOW", "open now"), ("CAFÉ", "CAFE\u0301"),
        ("LET'S GO", "LET’S GO"), ("LET´S", "LET'S"), ("ＯＰＥＮ", "open"), ("ﬁsh", "fish"), ("co\u00adop", "coop"), ("zero\u200bwidth", "zero width"),
        ("“hi”", '"hi"'), ("a–b", "a-b"), ("42", "42"), ("…", "..."), ("İstanbul", "i̇stanbul"),
    ],
)  # fmt: skip
def test_texts_that_look_alike_are_alike(recognised, target):
    assert text_similarity(recognised, target) == 1 == text_similarity(target, recognised)


def test_overlap_and_distances_are_of_normal_forms():
    assert edit_similarity("CAFÉ", "CAFE\u0301") == 1 == word_accuracy("CAFÉ LET’S", "CAFE\u0301 LET'S")
    assert words("ﬁsh co\u00adop CAFE\u0301") == words("fish coop café")
    assert normal_form("plain") == "plain" and normal_form("É") == normal_form("E\u0301")
    f1 = AnswerF1()(
        ["42", "x", "CAFÉ", "x"], [Prompt("0", "?", target={"answer": a}) for a in (42, 0, ["tea", "CAFE\u0301"], None)]
    )["score"]
    assert f1[:3].tolist() == [1, 0, 1] and f1[3].isnan()


def test_the_text_to_render_is_a_text_a_number_or_quoted():
    assert (
        target_text(Prompt("0", "a sign", target={"text": 42})) == "42"
        and target_text(Prompt("0", "x", target={"text": 1.5})) == "1.5"
    )
    assert [quoted_text(f"a sign {q}") for q in ('"OPEN"', "“OPEN”", "„OPEN“", "«OPEN»", "「OPEN」")] == ["OPEN"] * 5
    assert target_text(Prompt("0", 'a "sign"', target={"text": "\u200b \n"})) == "sign" and quoted_text('" "') is None
    for odd in (["A"], {"a": 1}, True, float("nan")):
        with pytest.raises(ValueError, match="wanted a text or a number"):
            target_text(Prompt("0", 'a "sign"', target={"text": odd}))


def test_signs_are_made_plain_and_none_that_matters_is_lost():
    assert (
        plain_signs("１０² ½ −3") == "10^ .5 -3"
        and unmarked("10**400") == "10**400"
        and unmarked("snake_case") == "snake_case"
    )
    assert unmarked(r"\dfrac{10}{25}") == "10/25" and unmarked(r"1{,}000") == "1,000" and unmarked("2 * 3") == "2 * 3"
