"""Typed reading of files: every error names the file and the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from save_deploy.errors import BundleError, SaveDeployError
from save_deploy.fields import Fields, check_word, parse_json, read_json, read_toml, shown


def fields(text: str) -> Fields:
    return parse_json(text, "manifest m.json", error=BundleError, hint="export again")


def test_values_of_the_right_kind() -> None:
    f = fields(
        '{"s": "a", "i": 3, "n": 2, "b": true, "l": ["x"], "v": [1, 2.5], "t": {"k": 1}, "r": [{}]}'
    )
    assert f.string("s", ("a", "b")) == "a" and f.integer("i", low=1, high=3) == 3
    assert f.number("n", 0, 2) == 2.0 and f.boolean("b") is True
    assert f.strings("l") == ("x",) and f.numbers("v") == (1.0, 2.5)
    assert f.table("t").integer("k") == 1 and len(f.tables("r")) == 1
    assert f.integer("missing", 7) == 7
    f.done()


@pytest.mark.parametrize(
    ("text", "read", "message"),
    [
        ('{"k": true}', lambda f: f.integer("k"), "k\n  got:      True\n  expected: an integer"),
        ('{"k": 1.0}', lambda f: f.integer("k"), "expected: an integer"),
        ('{"k": "1"}', lambda f: f.number("k"), "expected: a number"),
        ('{"k": 1e999}', lambda f: f.number("k"), "1e999 is too large"),
        ('{"k": 9}', lambda f: f.integer("k", low=1, high=8), "expected: 1 to 8"),
        ('{"k": -1}', lambda f: f.integer("k"), "expected: at least 0"),
        ('{"k": 1' + "0" * 4000 + "}", lambda f: f.integer("k"), "is too large"),
        ('{"k": null}', lambda f: f.string("k"), "expected: a string"),
        ("{}", lambda f: f.string("k"), "got:      nothing"),
        ('{"k": "fp61"}', lambda f: f.string("k", ("fp16", "int8")), "expected: fp16"),
        ('{"k": ["a", 1]}', lambda f: f.strings("k"), r"k\[1\]"),
        ('{"k": [1, NaN]}', lambda f: f.numbers("k"), "NaN is not a JSON number"),
        ('{"k": [1]}', lambda f: f.tables("k"), r"k\[0\]"),
        ('{"k": {"deep": []}}', lambda f: f.table("k").boolean("deep"), "k.deep"),
        ("[]", lambda f: f, "expected: a table"),
        ("[" * 100_000, lambda f: f, "nested too deeply|is not JSON"),
        ('{"kex": 1}', lambda f: (f.integer("key", 0), f.done()), "unknown key kex"),
    ],
)
def test_refusals_name_file_and_key(text: str, read, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BundleError, match=message) as caught:
        read(fields(text))
    assert "m.json" in str(caught.value) and "next:     export again" in str(caught.value)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(SaveDeployError, match="no such table"):
        read_json(path, what="table")
    path.write_bytes(b'\xef\xbb\xbf{"k": 1}')
    assert read_json(path, what="table").integer("k") == 1  # a byte order mark is no fault
    path.write_bytes(b'{"k": "\xff"}')
    with pytest.raises(SaveDeployError, match="cannot read table"):
        read_json(path, what="table")
    path.write_text("k = 1\n[t]\nv = 0.5\n")
    assert read_toml(path, what="recipe").table("t").number("v") == 0.5
    path.write_text("k = ")
    with pytest.raises(SaveDeployError, match="is not TOML"):
        read_toml(path, what="recipe")


def test_a_long_integer_is_shown_by_its_size() -> None:
    assert shown(10**30 - 1) == 30 * "9"
    assert shown(10**30) == shown(-(10**30)) == "an integer of 100 bits"


def test_a_huge_integer_is_told_by_its_size() -> None:
    """Its digits would take time: Python refuses to write more than 4,300 of them."""
    assert shown(2**99_999) == "an integer of 100000 bits"
    assert shown(10**29) == "1" + 29 * "0"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("1e400", "too large"),
        ("-1e400", "too large"),
        ("1" + 400 * "0", "too large"),
        ("1" + 5000 * "0", "too large"),
        (65 * "[" + 65 * "]", "deeper than 64"),
    ],
)
def test_what_no_other_reader_of_json_takes(value: str, said: str) -> None:
    """In a key that nobody asks for, too: the C++ runtime reads the same files."""
    with pytest.raises(SaveDeployError, match=said):
        parse_json(f'{{"extra": {value}}}', "table")
    fine = f'{{"a": 1e308, "b": 1{300 * "0"}, "c": {60 * "[" + 60 * "]"}}}'
    assert parse_json(fine, "table").values["a"] == 1e308


def test_words_of_options() -> None:
    """Of many words those similar to it, else all; the twin: a known word passes."""
    engines = ("rtx", "tensorrt", "none", "auto")
    many = (*engines, "cpu", "cuda")
    check_word("engine", "rtx", engines)
    for word, known, expected in (
        ("tensort", engines, ", ".join(engines)),
        ("tensort", many, "tensorrt"),
        ("steam", many, ", ".join(many)),
    ):
        with pytest.raises(BundleError) as caught:
            check_word("engine", word, known, BundleError)
        error = caught.value
        assert (error.what, error.got, error.expected) == ("unknown engine", word, expected)
