"""YAML as the graph it is, and as what stands there."""

from __future__ import annotations

import pytest

from grpo_mm.config.typed_yaml import convert, read_yaml
from grpo_mm.config.yaml_text import LARGEST, BadYaml, parse_yaml
from grpo_mm.errors import ConfigError

LETTERS = "abcdefghijkl"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{own}: &{own} [{', '.join([f'*{above}'] * 9)}]\n" for above, own in zip(LETTERS, LETTERS[1:])
)
MERGES = "m0: &m0 {x: 1}\n" + "".join(
    f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}], k{i}: 1}}\n" for i in range(1, 9)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 300))
WIDE = f"a: &a {'x' * 90_000}\nb: [{', '.join(['*a'] * 100)}]"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (BOMB, "values, aliases followed"),
        (MERGES, "values, aliases followed"),
        (CHAIN, "levels, aliases followed"),
        (WIDE, "characters, aliases followed"),
        ("[" * 5000, "nested more than"),
        ("{a: " * 300, "nested more than"),
        ("".join(f"{' ' * i}a:\n" for i in range(300)), "nested more than"),
        ("a: &a [*a]", "holds itself"),
        ("a: &a {b: *a}", "holds itself"),
        ("a: &a {<<: *a}", "holds itself"),
        ("? &a [*a]\n: 1", "holds itself"),
        ("a: 1\na: 2", "'a' stands twice"),
        ("1: 1\n'1': 2", "'1' stands twice"),
        ("[a, b]: 1", "key is a list"),
        ("a: *b", "undefined alias"),
        ("a: 1\n---\nb: 2", "single document"),
        ("a:\n\t- b", "cannot start any token"),
        ("a: \0", "#x0000"),
        ('a: "\\0"', "NUL"),
        ('a: "\\ud83d"', "half of a character"),
        ("a: !!python/object/apply:os.system [x]", "tag"),
        ("a: !!binary aGk=", "tag"),
        ("a: !own x", "tag"),
        ("a: !!int x", "invalid literal"),
        ("a: !!bool maybe", "'maybe' is not of the type"),
        ("a: " + "9" * 5000, "4300 digits"),
    ],
)
def test_what_no_config_is_gets_a_sentence(text, wanted):
    with pytest.raises(BadYaml, match=wanted):
        parse_yaml(text)


def test_words_stay_what_stands_there():
    words = ["yes", "on", "Off", "0123", "0o17", "0b1", "1_0", "12:30:45", "2026-11-29", "1e3", "=", "1.2.3"]
    assert parse_yaml(f"[{', '.join(words)}]") == words
    numbers = parse_yaml("[1, -2, 0x1f, 1.5, .5, 1.0e-5, true, False, ~, null]")
    assert numbers == [1, -2, 31, 1.5, 0.5, 1e-5, True, False, None, None]


def test_an_alias_is_a_value_of_its_own():
    found = parse_yaml("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}")
    assert found["a"] == found["b"] and found["a"] is not found["b"] and found["c"] == {"x": 1, "y": 2}


def test_twice_as_many_keys_are_counted_once_each():
    assert len(parse_yaml("{" + ", ".join(f"k{i}: {i}" for i in range(5000)) + "}")) == 5000


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        ("steps: 1".encode("utf-16"), "UTF-16"),
        ("naïve: 1".encode("latin-1"), "not valid YAML.*UTF-8"),
        (b"a: " + b"x" * LARGEST, "more than 1,000,000 bytes"),
    ],
)
def test_a_file_of_other_bytes_is_refused_by_name(tmp_path, data, wanted):
    (tmp_path / "c.yaml").write_bytes(data)
    with pytest.raises(ConfigError, match=f"c.yaml.*{wanted}"):
        read_yaml(tmp_path / "c.yaml")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    (tmp_path / "c.yaml").write_bytes("steps: 1".encode("utf-8-sig"))
    assert read_yaml(tmp_path / "c.yaml") == {"steps": 1}


@pytest.mark.parametrize("parent", ["x" * 5000, "a\\0b", "nowhere.yaml", "..", "/dev/null"])
def test_an_inherited_name_that_is_no_file_is_refused(tmp_path, parent):
    (tmp_path / "c.yaml").write_text(f'inherit: "{parent}"\n')
    with pytest.raises(ConfigError):
        read_yaml(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("annotation", "value", "wanted"),
    [
        (bool, "yes", True), (bool, "Off", False), (str, "on", "on"), (str, "0123", "0123"), (str, "2026-11-29", "2026-11-29"),
        (float, "1e-5", 1e-5), (int, "1_000", 1000), (str | None, "12:30:45", "12:30:45"), (tuple[str, ...], ["no", "x"], ("no", "x")),
    ],
)  # fmt: skip
def test_the_field_says_what_a_word_means(annotation, value, wanted):
    assert convert(annotation, value, path="x") == wanted


@pytest.mark.parametrize(
    ("annotation", "value"),
    [(int, "0123"), (float, "007.5"), (int, "12:30"), (int, 10**30), (int, 1e30), (str, 123), (tuple[int, ...], ["010"]), (float, ".nan")],
)  # fmt: skip
def test_a_number_that_two_readers_take_for_two_is_refused(annotation, value):
    with pytest.raises(ConfigError):
        convert(annotation, value, path="x")


def test_a_home_folder_is_one_everywhere(monkeypatch):
    from grpo_mm.outside import expanded, place

    monkeypatch.setenv("HOME", "/home/me")
    assert convert(str, "~/x", path="p") == "/home/me/x" and convert(str | None, "~", path="p") == "/home/me"
    assert convert(tuple[str, ...], ["~/a", "b"], path="p") == ("/home/me/a", "b")
    for text in ("./~x", "a/~/b", "~nobody-at-all/x", "hf-hub:~/x", "~5 seconds", ""):
        assert expanded(text) == text
    with pytest.raises(ConfigError, match=r"no user 'nobody-at-all'. Write \./~nobody-at-all"):
        place("~nobody-at-all/x", what="runs_dir")


def test_a_real_folder_of_that_name_is_meant(tmp_path, monkeypatch):
    from grpo_mm.outside import place

    monkeypatch.chdir(tmp_path)
    (tmp_path / "~nobody-at-all").mkdir()
    assert str(place("~nobody-at-all/x", what="runs_dir")) == "~nobody-at-all/x"
