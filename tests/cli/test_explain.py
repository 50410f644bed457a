"""`explain`: every path has an answer that fits a terminal; what is unknown is told with the nearest names."""

from __future__ import annotations

import re

import pytest

from alignment.cli.explain import lines
from alignment.config import KINDS
from alignment.reference.ask import GROUPS, find, groups, paths
from alignment.reference.pages import pages
from tests.cli.conftest import Call

TOPICS = {path: topic for topics in GROUPS.values() for path, topic in topics().items()}


def text(path: str, width: int) -> list[str]:
    return [line for _, line in lines(TOPICS[path], width)]


def documented(page: str) -> list[tuple[str, str, str]]:
    """(section, key, what is said of it) of a page's tables; the section as a path begins."""
    found, section = [], page.removesuffix(".md")
    for line in pages()[page].replace("\\|", "\0").splitlines():
        if line.startswith("#"):
            title = line.lstrip("#").strip()
            section = {"Groups": "group"}.get(title, title if title in GROUPS else section)
        elif (key := re.match(r"\| `([^`]+)`[^|]*\|", line)) is not None:
            text = line.rstrip("| ").rpartition("|")[2].strip()
            found.append((section, key[1], text.replace("&lt;", "<").replace("\0", "|")))
    return found


def test_without_a_path_it_lists_what_can_be_asked(call: Call) -> None:
    said = call("explain")
    assert said.code == 0, said.err
    for word in ("run", "profile", *(kind.tag for kind in KINDS), "format.NAME", "alpaca", "reward.NAME", "brevity",
                 "metric.NAME", "aim", "template.NAME", "qwen", "event.NAME", "manifest"):
        assert re.search(rf"\b{re.escape(word)}\b", said.out), word
    for path, _ in groups()[-1][1]:
        assert call("explain", path).code == 0, path


@pytest.mark.parametrize(("path", "words"), [
    ("sft.strategy", ["mapping (kind: lora | qlora | full | auto)", "default", "{kind: lora}", "keys with kind: lora",
                      "alpha"]),
    ("sft", ["kind: train, method: sft", "learning_rate", "[required]", "train_loss", "events"]),
    ("sample.sampling.top_p", ["number or [number, number]", "0.95"]),
    ("profile.cluster.worker", ["memory", "[8Gi]", "tolerations"]),
    ("profile.cluster.stages.rm.worker.gpus", ["whole number from 0 to 16"]),
    ("import-model.model.path", ["required", "only with", "source: folder"]),
    ("compute.workers", ["run.compute.workers", "whole number from 0"]),
    ("format.alpaca", ["instruction (needed)", '"output": "Nine metres."', '"type": "prompt-completion"']),
    ("format.columns", ["Context,Question,Type", "in the format {Type}", '"completion": "Question"}']),
    ("reward", ["method: reward", "reward functions", "evidence_style"]),
    ("reward.evidence_style", ["meta.passage", "0 to 1", "function: evidence_style"]),
    ("metric.exact_match", ["STAGE.MODEL.exact_match", "0 to 1", "higher"]),
    ("metric.train_loss", ["sft:", "dpo:", "lower"]),
    ("metric.train_rewards/accuracies", ["STAGE.train_rewards/accuracies"]),
    ("template.qwen", ["<|im_end|>", "<|im_start|>user"]),
    ("event.held_out", ["left_out"]),
    ("manifest.rows.dropped", ["by reason"]),
    ("model.source", ["A key of several mappings", "import-model.model.source", "import-endpoint.model.source"]),
    ("import-model.model.source", ["hub | folder | gguf | tiny", "source: gguf. A GGUF file"]),
    ("sampling.top_p", ["sample.sampling.top_p", "the same in judged-pairs, infer, evaluate"]),
    ("stages[2].strategy.alpha", ["train.strategy.alpha", "the same in sft, reward"]),
    ("rows", ["A key of several mappings", "train.rows", "evaluate.rows", "manifest.rows"]),
    ("reward.parts.brief.function", ["grpo.reward.parts.NAME.function", "a built-in one"]),
    ("aim", ["STAGE.METRIC OP NUMBER", "rm.eval_accuracy >= 0.8"]),
])
def test_a_path_is_explained(path: str, words: list[str], call: Call) -> None:
    said = call("explain", path)
    assert said.code == 0, said.err
    assert said.err == ""
    flat = " ".join(said.out.split())
    for word in words:
        assert word in flat, flat


@pytest.mark.parametrize(("path", "nearest"), [
    ("sft.stratgy", "sft.strategy"), ("top_p", "sample.sampling.top_p"), ("learning_rte", "sft.learning_rate"),
    ("format.alpacca", "format.alpaca"), ("template.qwem", "template.qwen"),
    ("profile.cluster.wrker", "profile.cluster.worker"),
    ("nonsense", "evaluate, evaluate-pairs, evaluate-harness, choose, export, format"), ("", "run, group, profile"),
])
def test_an_unknown_path_is_told_with_the_nearest(path: str, nearest: str, call: Call) -> None:
    said = call("explain", path)
    assert said.code == 2
    assert said.out == ""
    assert f"found:    '{path}'" in said.err
    assert nearest in said.err.partition("expected:")[2].partition("hint:")[0]


@pytest.mark.parametrize("width", [80, 60])
def test_every_answer_fits_and_breaks_no_word(width: int) -> None:
    words = {path: {word for line in text(path, 10_000) for word in line.split()} for path in TOPICS}
    for path in TOPICS:
        for line in text(path, width):
            # A longer line is one word (an image's name, a JSON string without blanks) behind its indent.
            assert len(line) <= width or len(line.split()) == 1, (path, line)
            assert set(line.split()) <= words[path], (path, line)


def test_every_path_is_its_own_and_says_something() -> None:
    assert sorted(paths()) == sorted(TOPICS)
    for path, topic in TOPICS.items():
        assert topic.path == path
        assert topic.text.strip(), path


DOCUMENTED = [(section, key, text) for page in ("run.md", "profile.md", "manifest.md")
              for section, key, text in documented(page)]


def test_every_documented_key_is_found_with_its_stage_and_without() -> None:
    assert len(DOCUMENTED) > 250
    for section, key, text in DOCUMENTED:
        known = find(f"{section}.{key}")
        assert text in known.text, (section, key)
        bare = find(key)
        if key.split(".")[0] in GROUPS:
            continue  # `template` and `reward` are what they are called first: a list of templates, a method
        listed = [path for part in bare.parts for path, _ in part.rows] if bare.path == key else []
        assert text in bare.text or known.path in listed or find(f"run.{key}") is bare, (section, key)


def test_every_documented_name_of_a_list_is_found() -> None:
    listed = {"formats.md": "format", "rewards.md": "reward", "templates.md": "template"}
    named = [f"{group}.{name}" for page, group in listed.items()
             for name in re.findall(r"^## (.+)$", pages()[page], re.MULTILINE)]
    named += [f"event.{name}" for name in re.findall(r"^\*\*([a-z_]+)\*\*", pages()["events.md"], re.MULTILINE)]
    named += [f"metric.{name}" for name in re.findall(r"^\| `([^`]+)`", pages()["metrics.md"], re.MULTILINE)]
    assert len(named) > 60
    for path in named:
        assert find(path).text, path


def test_the_pages_say_what_the_terminal_says() -> None:
    whole = " ".join(" ".join(pages().values()).replace("&lt;", "<").replace("\\|", "|").split())
    for path in ("sft.learning_rate", "sample.pairs", "profile.cluster.run_within", "manifest.files"):
        assert find(path).text.split("\n\n")[0] in whole, path
