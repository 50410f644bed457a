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
    ("profile.cluster.wrker", "profile.cluster.worker"), ("nonsense", "sample, evaluate, choose, format"),
    ("", "run, group, profile"),
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


def test_the_pages_say_what_the_terminal_says() -> None:
    whole = " ".join(" ".join(pages().values()).replace("&lt;", "<").replace("\\|", "|").split())
    for path in ("sft.learning_rate", "sample.pairs", "profile.cluster.run_within", "manifest.files"):
        assert find(path).text.split("\n\n")[0] in whole, path
