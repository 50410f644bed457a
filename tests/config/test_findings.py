"""Every kind of finding: the line, the key, what was found and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignment.config import load_run, parse_run
from alignment.errors import ConfigError, ConfigErrors

CASES = [
    # (name, text to replace, by what, the text whose line is named, part of the problem, found, part of expected)
    ("unknown key", "    learning_rate: 1e-4", "    learning_rat: 1e-4", "learning_rat:", "an unknown key",
     "learning_rat", "perhaps learning_rate"),
    ("unknown key on top", "store: runs", "stor: runs", "stor:", "an unknown key", "stor", "perhaps store"),
    ("unknown key in a model", "{source: tiny}", "{source: tiny, layer: 3}", "{source: tiny", "an unknown key",
     "layer", "perhaps layers"),
    ("missing key", "    model: base\n", "", "- name: sft", "a key is missing", None, "model:"),
    ("wrong type", "learning_rate: 1e-4", "learning_rate: fast", "learning_rate:", "not a number", "fast", None),
    ("text for a number", "learning_rate: 1e-4", "learning_rate: '1e-4'", "learning_rate:", "not a number", "1e-4",
     "without quotes: 1e-4"),
    ("out of range", "learning_rate: 1e-4", "learning_rate: 0", "learning_rate:", "too small", 0, "more than 0"),
    ("unknown method", "method: reward", "method: rewards", "- name: rm", "not a stage", None, None),
    ("unknown kind", "kind: evaluate", "kind: eval", "- name: eval", "not a stage", None, None),
    ("unknown model source", "{source: tiny}", "{source: tinny}", "{source: tinny}", "not one of the values", "tinny",
     "perhaps tiny"),
    ("bad stage name", "name: rm\n", "name: RM\n", "name: RM", "not of the right form", "RM", "a letter first"),
    ("later stage", "model: base\n    rows", "model: dpo\n    rows", "model: dpo", "comes later", "dpo", "one of base"),
    ("unknown stage", "model: base\n    rows", "model: bose\n    rows", "model: bose", "does not come before it",
     "bose", "one of base"),
    ("rows as a model", "model: base\n    rows", "model: seed\n    rows", "model: seed", "makes a language model",
     "seed", "base"),
    ("policy as a reward model", "score: {model: rm}", "score: {model: sft}", "score:", "method reward", "sft", "rm"),
    ("later rows", "rows: [seed/train]\n    learning", "rows: [rs/best]\n    learning", "rows: [rs/best]",
     "comes later", "rs/best", "seed/train"),
    ("unknown split", "rows: seed/test", "rows: seed/tset", "rows: seed/tset", "no stage makes", "seed/tset",
     "seed/test"),
    ("rows without a split", "rows: seed/test", "rows: seed", "rows: seed\n", "not of the right form", "seed",
     "seed/train"),
    ("same name twice", "aims:", "  - {name: sft, kind: import, model: {source: tiny}}\naims:", "- {name: sft",
     "same name", "sft", "a name of its own"),
    ("not an aim", "[eval.dpo.f1 > eval.base.f1]", "[eval.dpo.f1 is good]", "aims:", "not an aim",
     "eval.dpo.f1 is good", "STAGE.METRIC"),
    ("aim on no stage", "> eval.base.f1", "> evil.base.f1", "aims:", "unknown stage", "evil.base.f1", "eval"),
    ("batches", "learning_rate: 1e-4", "batch_size: 6\n    micro_batch_size: 4", "batch_size: 6",
     "no multiple of micro_batch_size", 6, "4"),
    ("best without eval rows", "learning_rate: 1e-4", "checkpoints: {final: best}", "checkpoints:", "needs eval_rows",
     "best", "eval_rows"),
    ("checkpoints between log lines", "learning_rate: 1e-4", "log_every: 4\n    checkpoints: {every: 6}",
     "checkpoints:", "no multiple of log_every", 6, "4"),
    ("adapters of two shapes", "method: dpo\n", "method: dpo\n    strategy: {kind: lora, r: 4}\n", "strategy:",
     "continues the adapter", "r: 4", "r: 16"),
    ("adapters over two bases", "method: dpo\n", "method: dpo\n    strategy: {kind: qlora}\n", "strategy:",
     "continues the adapter", 'kind: "qlora"', 'kind: "lora"'),
    ("adapters of two shapes, in lists", "method: dpo\n",
     "method: dpo\n    strategy: {kind: lora, targets: [q_proj], modules_to_save: [lm_head]}\n", "strategy:",
     "continues the adapter", 'targets: ["q_proj"], modules_to_save: ["lm_head"]',
     'targets: "all-linear", modules_to_save: null'),
    ("compares what is not there", "rows: seed/test", "compare: [[dpo, sft]]\n    rows: seed/test", "compare:",
     "not evaluated", "sft", "base, dpo"),
    ("a model twice", "[base, dpo]", "[base, base]", "models:", "twice", None, "once"),
    ("pattern", "rows: seed/test", "answer_pattern: '('\n    rows: seed/test", "answer_pattern:",
     "no regular expression", "(", None),
    ("pattern without its group", "rows: seed/test", "answer_pattern: 'x'\n    rows: seed/test", "answer_pattern:",
     "no group named answer", "x", "(?P<answer>...)"),
    ("ratios over one", "test: 0.2", "test: 0.3", "split:", "sum to at most 1", None, None),
    ("scorer of nothing", "score: {model: rm}", "score: {}", "score:", "give model, function or judge", None, None),
    ("newest-previous alone", "score: {model: rm}", "score: {model: rm}\n    pairs: newest-previous", "- name: rs",
     "needs `previous`", None, None),
    ("one answer per prompt", "score: {model: rm}", "score: {model: rm}\n    n: 1", "- name: rs", "n of 2", None, None),
    ("range upside down", "score: {model: rm}", "score: {model: rm}\n    sampling: {top_p: [0.9, 0.1]}", "sampling:",
     "low is above high", None, None),
    ("full with an adapter reference", "method: dpo\n",
     "method: dpo\n    strategy: {kind: full}\n    reference: adapter\n", "- name: dpo", "precomputed", None, None),
    ("remote code unpinned", "{source: tiny}", "{source: hub, repo: a/b, trust_remote_code: true}", "{source: hub",
     "40-digit commit hash", None, None),
    ("ours under trl", "learning_rate: 1e-4", "trl: {seed: 3}", "trl:", "not under trl", "seed", "the run's seed"),
    ("no such key of TRL", "learning_rate: 1e-4", "trl: {warmup_step: 3}", "trl:", "no such key", "warmup_step",
     "warmup_steps"),
    ("unknown parameter", "${rows}", "${row}", "${row}", "an unknown parameter", "${row}", "rows"),
]


def _line(text: str, part: str) -> int:
    assert text.count(part) >= 1, part
    return text[: text.index(part)].count("\n") + 1


@pytest.mark.parametrize(("name", "old", "new", "at", "problem", "found", "expected"), CASES, ids=[c[0] for c in CASES])
def test_finding(
    name: str, old: str, new: str, at: str, problem: str, found: object, expected: str | None, run_text: str
) -> None:
    assert run_text.count(old) == 1 or old.startswith("    model: base"), f"{name}: the case must change one place"
    text = run_text.replace(old, new, 1)
    with pytest.raises(ConfigErrors) as caught:
        parse_run(text, "my.yaml")
    [finding] = caught.value.findings
    assert problem in finding.problem
    assert finding.where is not None
    assert finding.where.split(" ")[0] == f"my.yaml:{_line(text, at)}", finding
    if found is not None:
        assert str(finding.found) == str(found)
    if expected is not None:
        assert expected in str(finding.expected)
    assert "my.yaml:" in str(caught.value)


def test_all_findings_come_at_once_in_one_message(run_text: str) -> None:
    text = run_text.replace("learning_rate: 1e-4", "learning_rate: fast").replace("source: tiny", "source: tiny, x: 1")
    with pytest.raises(ConfigErrors) as caught:
        parse_run(text, "my.yaml")
    assert len(caught.value.findings) == 2
    assert str(caught.value).count("my.yaml:") == 2


def test_all_references_come_at_once(run_text: str) -> None:
    text = run_text.replace("model: sft", "model: nix").replace("seed/test", "seed/nix")
    with pytest.raises(ConfigErrors) as caught:
        parse_run(text)
    assert [finding.found for finding in caught.value.findings] == ["nix", "nix", "nix", "seed/nix"]


@pytest.mark.parametrize(("text", "where", "problem"), [
    ("name: a\nname: b\nstages: []\n", "f.yaml:2", "stands twice"),
    ("name: a\nstages:\n  - name: x\n    name: y\n", "f.yaml:4", "stands twice"),
    ("name: [a\n", "f.yaml:2", "not valid YAML"),
    ("- a\n", "f.yaml:1", "is a mapping"),
    ("", "f.yaml:1", "is a mapping"),
    ("name: a\nstages: []\n", "f.yaml:2 (stages)", "too few"),
    ("name: !!python/object/apply:os.system [x]\n", "f.yaml:1", "not valid YAML"),
    ("name: a\nparams: 3\nstages: [x]\n", "f.yaml:2 (params)", "not a mapping"),
    ("name: a\nstages: 3\n", "f.yaml:2 (stages)", "not a list"),
    ("name: a\n? [b]\n: c\n", "f.yaml:2", "not valid YAML"),
    ("base: &b {name: x}\nname: a\n<<: *nowhere\n", "f.yaml:3", "not valid YAML"),
])
def test_broken_files(text: str, where: str, problem: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        parse_run(text, "f.yaml")
    places = [(finding.where, finding.problem) for finding in caught.value.findings]
    assert any(place == where and problem in text for place, text in places), places


@pytest.mark.parametrize("content", [None, b"\xff\xfe\xfa"], ids=["missing", "not UTF-8"])
def test_unreadable_file(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        load_run(file)
    assert str(file) in str(caught.value)
