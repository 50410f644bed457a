"""`check`: what is wrong outside the run file is found before anything starts, all at once, at its line."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import pytest

from alignment.records.few import Few
from tests.cli.conftest import Call

SEED = """\
name: one
store: {store}
stages:
  - name: seed
    kind: import
    data:
      - {{path: {path}, format: {format}}}
    split: {{by: ratio, ratios: {{train: 0.5, test: 0.5}}}}
"""


def _rows(path: str, rows: list[object]) -> None:
    Path(path).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def _good(count: int) -> list[object]:
    return [{"instruction": f"Say {index}.", "input": "", "output": f"{index}"} for index in range(count)]


def _write(path: str = "rows.jsonl", format: str = "alpaca", store: str = "runs", more: str = "") -> None:
    Path("run.yaml").write_text(SEED.format(path=path, format=format, store=store) + more)


def test_good_rows_are_counted(call: Call) -> None:
    _rows("rows.jsonl", [*_good(20), "{broken"])
    _write()
    said = call("check", "run.yaml")
    assert said.code == 0
    assert "10 train, 10 test, 1 bad rows: broken-json (1)" in said.out
    assert said.out.endswith("ok\n")
    assert not Path("runs").exists(), "checking writes nothing"


def test_keys_that_nothing_reads_are_named(call: Call) -> None:
    _rows("rows.jsonl", [{**row, "why": "x", **({"rank": 3} if index else {})}  # type: ignore[dict-item]
                         for index, row in enumerate(_good(20))])
    _write()
    said = call("check", "run.yaml")
    assert said.code == 0
    assert "keys that nothing reads: why (20), rank (19)" in said.out
    _rows("rows.jsonl", [{f"key{n}": 1 for n in range(10)} | row for row in _good(20)])  # type: ignore[operator]
    assert "key7 (20) and 2 more" in call("check", "run.yaml").out


def test_a_pattern_with_an_unknown_slot_is_an_error_with_the_columns(call: Call) -> None:
    Path("rows.csv").write_text("Context,Question\n" + "".join(f"text {n},ask {n}\n" for n in range(9)))
    _write(path="rows.csv", format="columns, columns: {prompt: 'On {Topic}: {Context}', completion: Question}")
    said = call("check", "run.yaml")
    assert said.code == 2
    assert "the file has no column Topic" in said.err
    assert "Context" in said.err
    _write(path="rows.csv", format="columns, columns: {prompt: 'On {Context}', completion: Question}")
    assert call("check", "run.yaml").code == 0


@pytest.mark.parametrize(("rows", "format", "problem"), [
    ([], "alpaca", "the file is empty"),
    ([*_good(4), "{broken", "{broken"], "alpaca", "2 of 6 rows are bad"),
    ([{"question": "x"}] * 3, "alpaca", "3 of 3 rows are bad"),
    (_good(3), "preference", "3 of 3 rows are bad"),
    (_good(3), "squad", "not valid JSON"),
    (_good(1), "alpaca", "has no rows"),
])
def test_unusable_rows(rows: list[object], format: str, problem: str, call: Call) -> None:
    _rows("rows.jsonl", rows)
    _write(format=format)
    said = call("check", "run.yaml")
    assert said.code == 2
    assert problem in said.err
    assert re.search(r"run\.yaml:[678] \(stages\[0\]\.", said.err)


def test_missing_file_names_what_lies_near(call: Call) -> None:
    _rows("rows2.jsonl", _good(2))
    _write()
    said = call("check", "run.yaml")
    assert said.code == 2
    assert "run.yaml:7 (stages[0].data[0])" in said.err
    assert "does not exist" in said.err
    assert "rows2.jsonl" in said.err


def test_a_large_file_is_left_to_its_stage(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    _rows("rows.jsonl", ["{broken"])
    _write()
    monkeypatch.setattr("alignment.checks.seen.READ_LIMIT", 3)
    said = call("check", "run.yaml")
    assert said.code == 0
    assert "not read now: rows.jsonl" in said.out


def test_a_few_rows_of_a_large_file_are_looked_at(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    _rows("rows.jsonl", [*_good(300), *["{broken"] * 3])
    _write()
    monkeypatch.setattr("alignment.checks.seen.READ_LIMIT", 3)
    monkeypatch.setattr("alignment.checks.looked.Few", partial(Few, whole=100, few=50))
    said = call("check", "run.yaml")
    assert said.code == 0
    assert "looked at 50 of 303 rows of rows.jsonl" in said.out
    _rows("rows.jsonl", [*_good(100), *["{broken"] * 203])
    said = call("check", "run.yaml")
    assert said.code == 0, "what a few rows show is no proof"
    assert re.search(r"looked at 50 of 303 rows of rows.jsonl: \d+ are bad, and at most 10.0% may be \(max_bad\): "
                     r"broken-json", " ".join(f"{said.out} {said.err}".split()))


def test_a_remote_file_is_left_to_its_stage(call: Call) -> None:
    _write(path='"memory://nowhere/rows.jsonl"')
    said = call("check", "run.yaml")
    assert said.code == 0
    assert "not read now" in said.out


def test_store_below_a_file(call: Call) -> None:
    _rows("rows.jsonl", _good(9))
    Path("file").write_text("")
    _write(store="file/sub")
    said = call("check", "run.yaml")
    assert said.code == 2
    assert "run.yaml:2 (store)" in said.err
    assert "a file is in the way" in said.err


@pytest.mark.parametrize(("model", "problem"), [
    ("{source: folder, path: nowhere}", "does not exist"),
    ("{source: folder, path: empty}", "lacks config.json, weights (*.safetensors), a tokenizer"),
    ("{source: gguf, file: nowhere.gguf}", "does not exist"),
    ("{source: gguf, file: x.gguf}", "not a GGUF file"),
    ("{source: gguf, package: no_such_package, file: x.gguf}", "package that carries the model is not installed"),
])
def test_models(model: str, problem: str, call: Call) -> None:
    _rows("rows.jsonl", _good(9))
    Path("empty").mkdir()
    Path("x.gguf").write_bytes(b"PK..")
    _write(more=f"  - {{name: base, kind: import, model: {model}}}\n")
    said = call("check", "run.yaml")
    assert said.code == 2
    assert "run.yaml:9 (stages[1].model)" in said.err
    assert problem in said.err


def test_everything_wrong_comes_at_once(call: Call) -> None:
    Path("file").write_text("")
    _write(store="file/sub", more="""\
  - {name: base, kind: import, model: {source: tiny}, template: chatmll}
  - {name: sft, kind: train, method: sft, model: base, rows: [seed/train]}
  - {name: rs, kind: sample, model: sft, prompts: [seed/train], score: {function: evidence_stile}}
  - {name: eval, kind: evaluate, models: [base], rows: seed/test, score: {function: "nowhere.at_all:score"}}
""")
    said = call("check", "run.yaml", "--set", "compute.workers=3")
    assert said.code == 2
    found = ((7, "does not exist"), (9, "chat template"), (10, "shared out"), (11, "not a reward function"),
             (12, "module is not installed"), (2, "in the way"))
    for line, problem in found:
        assert re.search(rf"run\.yaml:{line} .*{problem}", said.err), (line, problem, said.err)
    assert "evidence_style" in said.err
    assert "chatml" in said.err


TRACKED = """\
  - {name: base, kind: import, model: {source: tiny}}
  - {name: sft, kind: train, method: sft, model: base, rows: [seed/train], log_to: [tensorboard, wandb]}
"""


@pytest.mark.parametrize("trains", [True, False])
def test_a_tracker_that_is_not_installed_is_known_where_this_machine_trains(
    call: Call, monkeypatch: pytest.MonkeyPatch, trains: bool
) -> None:
    from alignment.checks import machine

    monkeypatch.setattr(machine, "lacks_tracker", lambda tool: tool == "wandb")
    if not trains:
        monkeypatch.setattr(machine, "known_keys", lambda config: None)
    _rows("rows.jsonl", _good(9))
    _write(more=TRACKED)
    said = call("check", "run.yaml")
    assert said.code == (2 if trains else 0)
    assert ("run.yaml:10 (stages[2].log_to[1]): wandb is not installed" in said.err) is trains
    assert "tensorboard" not in said.err


def test_the_image_of_a_cluster_has_trackers_of_its_own(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignment.checks import machine
    from alignment.cli.check import mistakes
    from alignment.config import load_profile, load_run

    monkeypatch.setattr(machine, "lacks_tracker", lambda tool: True)
    _rows("rows.jsonl", _good(9))
    _write(more=TRACKED)
    profile = load_profile("dev-cpu")
    found = mistakes(load_run(Path("run.yaml")), "run.yaml", profile)
    assert not [error for error in found if "not installed" in error.problem]


def test_lm_head_takes_no_adapter(call: Call) -> None:
    _rows("rows.jsonl", _good(9))
    _write(more=TRACKED.replace("log_to: [tensorboard, wandb]", "strategy: {kind: lora, targets: [q_proj, lm_head]}"))
    said = call("check", "run.yaml")
    assert said.code == 2
    assert "run.yaml:10 (stages[2].strategy.targets): lm_head takes no adapter" in said.err


def test_overrides_count(call: Call) -> None:
    _rows("other.jsonl", _good(8))
    _write()
    assert call("check", "run.yaml").code == 2
    Path("run.yaml").write_text(Path("run.yaml").read_text().replace("path: rows.jsonl", "path: '${data}'")
                                + "params: {data: rows.jsonl}\n")
    assert call("check", "run.yaml").code == 2
    assert call("check", "run.yaml", "--set", "params.data=other.jsonl").code == 0


def test_findings_of_the_file_itself(call: Call) -> None:
    _write(more="  - {name: base, kind: import, model: {source: tiny, [bold]x: 1}}\n")
    said = call("check", "run.yaml")
    assert said.code == 2
    assert said.err.startswith("error: run.yaml:9")
    _write(more="aims: ['[red]not an aim[/red]']\n")
    said = call("check", "run.yaml")
    assert "[red]not an aim[/red]" in said.err, "brackets are the user's text, not markup"
    assert said.out == ""
