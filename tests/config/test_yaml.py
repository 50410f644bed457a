"""YAML by the core rules of 1.2: what is a number, what is text, what is refused, and aliases within bounds."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.config import Sft, load_profile, load_run, parse_run
from alignment.config.yaml_file import LARGEST, parse_tree
from alignment.config.yaml_text import ALIASED, DEPTH, dump
from alignment.errors import ConfigErrors


def read(text: str) -> Any:
    return parse_tree(text, "f.yaml", "run", "")[0]


def refused(text: str) -> str:
    with pytest.raises(ConfigErrors) as caught:
        read(text)
    return str(caught.value)


@pytest.mark.parametrize(("text", "value"), [
    ("10", 10), ("-3", -3), ("+3", 3), ("0", 0), ("0o10", 8), ("0x1F", 31), ("1e-4", 1e-4), ("1E5", 1e5), (".5", 0.5),
    ("5.", 5.0), ("01.5", 1.5), ("0.0", 0.0), ("0e5", 0.0), (".inf", math.inf), ("-.Inf", -math.inf), ("true", True),
    ("FALSE", False), ("null", None), ("~", None), ("", None), ("9" * 300, int("9" * 300)),
])
def test_what_is_no_text(text: str, value: object) -> None:
    found = read(f"a: {text}")["a"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("text", [
    "yes", "no", "on", "off", "y", "N", "Yes", "tRUE", "1:30", "12:30:45", "1_000", "0b101", "2026-01-01",
    "2026-01-01T10:00:00Z", "=", "<<", "1e", "e5", "--3", "0o8", "0xg", "nULL", "inf", "nan", "1,000", "0x", "+", ".",
    "12e", "1.2.3", "0o", "-0x10", "5 GB", "\u0661\u0662",
])
def test_what_is_text(text: str) -> None:
    assert read(f"a: {text}") == {"a": text}
    assert read(f"a: ['{text}', \"{text}\"]") == {"a": [text, text]}


@pytest.mark.parametrize("text", ["010", "0123", "-010", "+00", "08", "007", "00"])
def test_a_leading_zero_is_refused_wherever_it_stands(text: str) -> None:
    for file in (f"a: {text}", f"a: [1, {text}]", f"a: {{b: {{c: {text}}}}}", f"a: !!int {text}"):
        said = refused(file)
        assert f"found:    {text}" in said
        assert f'"{text}"' in said
    assert read(f"a: '{text}'\nb: !!str {text}\n{text}: c") == {"a": text, "b": text, text: "c"}


@pytest.mark.parametrize("text", ["1e999", "-1e999", "5e10000", "1e-999", "0.1e-500", "1" * 5000])
def test_a_number_out_of_range_is_refused(text: str) -> None:
    assert "no computer holds" in refused(f"a: {text}")


@settings(deadline=None)
@given(st.from_regex(r"[-+0-9a-fxo_:.eETZ]{1,12}", fullmatch=True))
def test_what_two_readers_read_apart_as_numbers_is_refused_or_text(text: str) -> None:
    try:
        mine = read(f"a: {text}")["a"]
    except ConfigErrors:
        return
    theirs = yaml.safe_load(f"a: {text}")["a"]
    if isinstance(mine, int) and isinstance(theirs, int):
        assert mine == theirs
    assert isinstance(mine, str | int | float)
    if isinstance(mine, str):
        assert mine == text


TEXTS = st.text(max_size=12) | st.sampled_from(
    ["1e-4", "010", "0o10", "0x10", "1_000", "no", "2026-01-01", "12:30", "=", "<<", "~", "", "null", "${a}", "a\x85b",
     "0b1", "\ufeff", ".inf", "- a", "a: b", "#", "!x", "&a", "*a", "\t", "\u2028"])
TREES = st.recursive(TEXTS | st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none(),
                     lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
                     max_leaves=8)


@settings(deadline=None)
@given(st.dictionaries(TEXTS, TREES, max_size=4))
def test_what_is_dumped_is_read_again_by_us_and_by_everybody(tree: dict[str, Any]) -> None:
    assert read(dump(tree)) == tree
    assert yaml.safe_load(dump(tree)) == tree


# --- aliases, merge keys, tags ---


@pytest.mark.parametrize(("text", "problem"), [
    ("a: &a [*a]", "f.yaml:1: not valid YAML: an alias lies within"), ("a: &a {b: *a}", "an alias lies within"),
    ("a: &a [[[*a]]]", "an alias lies within"), ("a: &a {<<: *a}", "an alias lies within"),
    ("a: *b", "undefined alias"), ("a: " + "[" * DEPTH + "]" * DEPTH, f"nested more than {DEPTH} deep"),
    ("a: " + "[" * 50_000, f"nested more than {DEPTH} deep"), ("{a: " * 5000, f"nested more than {DEPTH} deep"),
    ("a: &a0 [x]\n" + "".join(f"b{i}: &a{i + 1} [*a{i}]\n" for i in range(200)), f"nested more than {DEPTH} deep"),
    ("a: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"b{i}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(9)), f"more than {ALIASED:,} values"),
    (f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 1000)}]", f"more than {ALIASED:,} values"),
    ("a: &a0 {k: v}\n" + "".join(
        f"b{i}: &a{i + 1} {{{', '.join(f'k{j}: *a{i}' for j in range(10))}}}\n" for i in range(20)), "more than"),
    ("a: &x 1\n<<: *x", "<< takes a mapping"), ("<<: [1]", "<< takes a mapping"),
    ("a: !!binary aGk=", "says what this value is"), ("a: !!timestamp 2026-01-01", "says what"), ("a: !x [1]", "!x"),
    ("a: !!set {b}", "means nothing here"), ("a: !!int x", "says what"), ("a: !!python/name:os.system", "says what"),
    ("a: 1\n---\nb: 2", "single document"), ("a: 1\n\tb: 2", "not with tabs"),
    ("a: {b: ${c}}", 'in quotes: "${name}"'), ("a: \x07", "U+0007"),
    ("a: {b: 1, b: 2}", "stands twice"), ("? [x]\n: y", "a key is no text"), ("%YAML 3.0\n---\na: 1", "not valid YAML"),
])
def test_refused_quickly_and_clearly(text: str, problem: str) -> None:
    start = time.monotonic()
    assert problem in refused(text)
    assert time.monotonic() - start < 5, "under a second, but on a busy machine"


def test_aliases_and_merge_keys_are_spelled_out() -> None:
    found = read("a: &a {r: 4, s: [1]}\nb: *a\nc: {<<: *a, r: 8}\nd: {<<: [{r: 1}, {r: 2, t: 3}], u: 4}\n"
                 "e: {r: 9, <<: *a}")
    assert found == {"a": {"r": 4, "s": [1]}, "b": {"r": 4, "s": [1]}, "c": {"r": 8, "s": [1]},
                     "d": {"r": 1, "t": 3, "u": 4}, "e": {"r": 9, "s": [1]}}


def test_an_override_of_what_an_alias_shares_changes_one_place(run_text: str) -> None:
    text = run_text.replace("learning_rate: 1e-4", "strategy: &s {kind: lora, r: 4}").replace(
        "    model: sft\n    rows: [seed/train]", "    model: sft\n    rows: [seed/train]\n    strategy: *s")
    with pytest.raises(ConfigErrors, match="r: 8"):  # rm continues sft's adapter
        parse_run(text, overrides=["sft.strategy.r=8"])
    assert parse_run(text, overrides=["sft.strategy.r=8", "rm.strategy.r=8", "dpo.strategy={kind: lora, r: 8}"])


def test_bytes_at_the_start_and_ends_of_lines(tmp_path: Path, run_text: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(("\ufeff" + run_text.replace("\n", "\r\n")).encode())
    assert load_run(file) == parse_run(run_text)


@pytest.mark.parametrize(("content", "problem"), [
    (b"a: 1\n" * LARGEST, "is larger than"), ("name: x".encode("utf-16"), "not UTF-8 text (byte 0)"),
    (b"name: caf\xe9", "not UTF-8 text (byte 9)"),
])
def test_files_that_are_none(content: bytes, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    for load in (load_run, load_profile):
        with pytest.raises(ConfigErrors, match=re.escape(problem)):
            load(file)


def test_a_device_without_an_end() -> None:
    with pytest.raises(ConfigErrors, match="is larger than"):
        load_run("/dev/zero")


# --- parameters and overrides ---


@pytest.mark.parametrize(("params", "value", "learned"), [
    ("{lr: 3e-5}", "${lr}", 3e-5), ("{lr: 3e-5}", '"${lr}"', 3e-5), ("{lr: 1}", "${lr}", 1.0),
    ("{a: 3e-5, lr: '${a}'}", "${lr}", 3e-5),
])
def test_a_parameter_alone_keeps_its_type(params: str, value: str, learned: float, run_text: str) -> None:
    text = run_text.replace("{rows: rows.jsonl, rate: 1e-4}", params).replace("${rows}", "rows.jsonl")
    sft = parse_run(text.replace("learning_rate: 1e-4", f"learning_rate: {value}")).stage("sft")
    assert isinstance(sft, Sft)
    assert sft.learning_rate == learned


def test_a_parameter_within_text_is_the_text_that_was_written(run_text: str) -> None:
    text = run_text.replace("rate: 1e-4}", "rate: 1e-4, version: 1.10, yes: 0x10}").replace(
        "store: runs", "store: runs\ndescription: v${version} at ${rate}, ${yes}")
    assert parse_run(text).description == "v1.10 at 1e-4, 0x10"


@pytest.mark.parametrize(("params", "value", "said"), [
    ("{lr: '3e-5'}", "${lr}", "found:    '3e-5' (of ${lr})"), ("{lr: fast}", "${lr}", "found:    fast (of ${lr})"),
    ("{lr: [1]}", "${lr}", "unknown parameter"), ("{lr: '${lr}'}", "${lr}", "unknown parameter"),
    ("{lr: 2}", "1${lr}", "found:    12"),
])
def test_a_wrong_parameter_is_told_where_it_is_used(params: str, value: str, said: str, run_text: str) -> None:
    text = run_text.replace("{rows: rows.jsonl, rate: 1e-4}", params).replace("${rows}", "rows.jsonl")
    with pytest.raises(ConfigErrors) as caught:
        parse_run(text.replace("learning_rate: 1e-4", f"learning_rate: {value}"))
    assert said in str(caught.value)


@pytest.mark.parametrize(("override", "said"), [
    ("sft.batch_size=010", "found:    010"), ("sft.epochs=1:30", "found:    1:30"), ("name=123", '"123"'),
    ("sft.batch_size=1_000", "in digits: 1000"), ("description=best #1", "would be a comment"),
    ("sft.trl=&a [*a]", "an alias lies within"), ("sft.batch_size=1e3", "in digits: 1000"), ("seed=#1", "comment"),
    ("sft.epochs=", "found:    nothing"), ("stages.99999999999999999999.name=a", "not a place"),
    ("sft.\u00b2=1", "unknown key"), ("seed.data.\u00b2.path=a", "not a place"), ("sft.packing=yes", "false: true"),
])
def test_overrides_follow_the_same_rules_and_are_named_themselves(override: str, said: str, run_text: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        parse_run(run_text, "my.yaml", [override])
    assert said in str(caught.value)
    assert f"--set {override}" in str(caught.value)
    assert "my.yaml" not in str(caught.value)


def test_an_override_keeps_the_order_of_splits(run_text: str) -> None:
    run = parse_run(run_text, overrides=["seed.split.ratios.train=0.5"])
    assert run.stages[1].splits() == ("train", "test")
