"""The other sub-commands, exit codes, and that starting loads nothing heavy."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from alignment import __version__
from alignment.config import load_run
from tests.cli.conftest import Call

HEAVY = ("torch", "transformers", "trl", "peft", "ray", "datasets", "accelerate", "pandas", "pyarrow", "gguf", "scipy")
ROWS = "".join(json.dumps({"prompt": f"Say {i}.", "completion": str(i)}) + "\n" for i in range(12))
RUN = """\
name: rows-only
store: runs
stages:
  - name: seed
    kind: import
    data: [{path: rows.jsonl, format: prompt-completion}]
    split: {by: ratio, ratios: {train: 0.5, test: 0.5}}
aims: [seed.rows_train >= 6, seed.rows_test > 100]
"""


@pytest.fixture
def run_file(call: Call) -> str:
    Path("rows.jsonl").write_text(ROWS)
    Path("run.yaml").write_text(RUN)
    return "run.yaml"


def test_version_and_help(call: Call) -> None:
    assert call("--version").out == f"kubealign {__version__}\n"
    said = call("-h")
    assert said.code == 0
    for command in ("init", "check", "plan", "run", "status", "report", "explain", "schema", "templates", "eval",
                    "infer", "models"):
        assert re.search(rf"^\W*{command}\b", said.out, re.MULTILINE), command
        assert call(command, "--help").code == 0
    assert call("chekc").code == 2


@pytest.mark.parametrize("arguments", [
    ["--help"], ["--version"], ["schema"], ["templates"], ["init", "new.yaml"], ["check", "run.yaml"],
    ["status", "run.yaml"], ["report", "run.yaml"], ["plan", "run.yaml"], ["explain"], ["explain", "format.squad"],
    ["models"], ["eval", "--help"],
], ids=lambda arguments: arguments[0])
def test_little_is_imported_and_nothing_heavy(arguments: list[str], run_file: str) -> None:
    """How fast it starts is for benchmarks/cli.py; what makes it slow is told by what it loads, on any machine."""
    code = ("import sys\nfrom alignment.cli.main import main\n"
            "try:\n    main()\nexcept SystemExit as ended:\n    assert not ended.code, ended.code\n"
            f"found = sorted(set(sys.modules) & set({HEAVY!r}))\nassert not found, found\n"
            "assert len(sys.modules) < 900, len(sys.modules)\n")  # torch alone is 1,200
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_run_status_report(run_file: str, call: Call) -> None:
    assert "0 of 1 stages finished; next: seed" in call("status", run_file).out
    first = call("run", run_file)
    assert first.code == 0, first.err
    assert "1 of 1 stages finished" in first.out
    assert "met" in first.out
    assert "MISSED" in first.out
    page = Path(first.out.split("report: ")[1].strip())
    assert "<html" in page.read_text()[:200]
    again = call("run", run_file)
    assert again.code == 0
    assert "finished before" in again.err
    status = call("status", run_file)
    assert "1 of 1 stages finished" in status.out
    assert "kubealign report run.yaml" in status.out
    for verb in ("status", "plan"):  # what is looked at is what is run next
        assert "run.yaml --set 'params.a=b c'" in call(verb, run_file, "--set", "params.a=b c").out
    page.unlink()
    assert call("report", run_file).out.strip() == str(page)
    assert page.exists()


def test_aims_decide_the_exit_code_only_when_asked(run_file: str, call: Call) -> None:
    assert call("run", run_file).code == 0
    assert call("run", run_file, "--strict-aims").code == 3
    assert call("run", run_file, "--strict-aims", "--set", "aims=[seed.rows_train >= 6]").code == 0


def test_one_stage(run_file: str, call: Call) -> None:
    Path(run_file).write_text(RUN.replace("aims:", "  - {name: base, kind: import, model: {source: tiny}}\naims:"))
    said = call("run", run_file, "--stage", "seed")
    assert said.code == 0
    assert "1 of 2 stages finished" in said.out
    assert "not made: base" in said.out
    unknown = call("run", run_file, "--stage", "sead")
    assert unknown.code == 2
    assert "seed, base" in unknown.err


@pytest.mark.parametrize("command", ["check", "plan", "run", "status", "report"])
def test_the_users_errors_end_with_two(command: str, run_file: str, call: Call) -> None:
    for breaks in (lambda: Path("rows.jsonl").unlink(), lambda: Path("run.yaml").write_text("name: ["),
                   lambda: Path("run.yaml").unlink()):
        breaks()
        said = call(command, run_file)
        assert said.code == 2, said
        assert said.err.startswith("error: ")
        assert "Traceback" not in said.err


def test_a_bug_of_ours_shows_its_traceback_and_ends_with_one(run_file: str) -> None:
    code = ("import alignment.pipeline as pipeline\npipeline.status = lambda run: 1 / 0\n"
            "from alignment.cli.main import main\nmain()")
    done = subprocess.run([sys.executable, "-c", code, "status", run_file], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError" in done.stderr


def test_interrupting_a_run(run_file: str) -> None:
    Path("rows.jsonl").unlink()
    os.mkfifo("rows.jsonl")  # reading it waits for a writer that never comes
    code = "from alignment.cli.main import main; import alignment.pipeline; print('up', flush=True); main()"
    running = subprocess.Popen(
        [sys.executable, "-c", code, "run", run_file], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell starts background jobs with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "up\n"
    with pytest.raises(subprocess.TimeoutExpired):
        running.wait(1.5)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=20)
    assert running.returncode == 130
    assert "run it again to resume" in err
    assert "Traceback" not in err


def test_schema_is_written_and_valid(call: Call) -> None:
    said = call("schema", "--out", "run.schema.json")
    assert said.code == 0
    schema = json.loads(Path("run.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    assert json.loads(call("schema").out) == schema
    assert "yaml-language-server" in said.out
    assert schema["$defs"]["Sft"]["properties"]["epochs"]["exclusiveMinimum"] == 0
    assert call("schema", "--out", "no/such/folder.json").code == 2


@pytest.mark.parametrize("recipe", ["qa", "sft", "dpo", "tiny"])
def test_recipes_fit_the_schema(recipe: str, call: Call) -> None:
    from alignment.cli.info import run_schema
    from alignment.config.yaml_file import parse_tree

    call("init", "r.yaml", "--recipe", recipe)
    tree = parse_tree(Path("r.yaml").read_text(), "r.yaml", "run", "")[0]
    jsonschema.validate(tree, run_schema(), cls=jsonschema.Draft202012Validator)
    assert load_run("r.yaml").name == "r"


def test_templates_are_listed(call: Call) -> None:
    from alignment.templates import names

    said = call("templates")
    assert all(re.search(rf"^{name} ", said.out, re.MULTILINE) for name in names())


def test_plan_names_finished_stages_and_what_is_an_estimate(run_file: str, call: Call) -> None:
    before = call("plan", run_file)
    assert before.code == 0
    assert "to do" in before.out
    assert "Estimates" in before.out
    call("run", run_file)
    assert re.search(r"^seed .* finished", call("plan", run_file).out, re.MULTILINE)
