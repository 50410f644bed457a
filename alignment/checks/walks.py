"""Whether the models of an evaluation can retrieve as it asks, as far as run file, templates and rows tell."""

from __future__ import annotations

from statistics import median

from alignment.checks.seen import Sight, Wrong
from alignment.checks.told import WHOLE
from alignment.config import Evaluate, Run
from alignment.errors import ConfigError
from alignment.records import Record
from alignment.records.importers.retrieval import paragraphs_of, question_turns


def walkable(run: Run, sight: Sight, stage: Evaluate) -> Wrong:
    """Templates without calls, rows or a corpus without passages, and calls that no prompt has room for."""
    if stage.retrieve is None:
        return
    for index, name in enumerate(stage.models):
        text = sight.templates.get(name)
        if text is not None and "tool_calls" not in text and not WHOLE.search(text):
            yield ("models", index), ConfigError(
                "the model's chat template writes no calls, so it can ask for no passage", found=name,
                expected="a model whose template does: `template: retrieval` on its import",
                hint="docs/multihop.md says what such a model is trained on")
    test = sight.rows.get(stage.rows)
    pool = test if stage.retrieve.corpus is None else sight.rows.get(stage.retrieve.corpus)
    if test is None or pool is None:
        return
    with_passages = [record for record in pool if paragraphs_of(record)]
    if not with_passages:
        place = ("rows",) if stage.retrieve.corpus is None else ("retrieve", "corpus")
        yield place, ConfigError("no row has a passage that could be retrieved", found=f"{len(pool)} rows",
                                 expected="rows of an import with retrieve: true, of a passage format or of documents")
        return
    if stage.retrieve.corpus is None and len(with_passages) < len(test):
        sight.warn(stage.name, f"{len(test) - len(with_passages)} of {len(test)} rows have no passages to retrieve and "
                               "will be left out")
    if any(run.stage(name).endpoint is None for name in stage.models):
        yield from _roomy(sight, stage, test, with_passages)


def _roomy(sight: Sight, stage: Evaluate, test: list[Record], pool: list[Record]) -> Wrong:
    """A word is a token or more, whatever the tokenizer: what has more words than there is room for is over it."""
    assert stage.retrieve is not None
    steps, most = stage.retrieve.steps, stage.longest_prompt
    questions = [sum(_words(turn["content"]) for turn in question_turns(record)) for record in test]
    texts = sorted(_words(one.text) for record in pool for one in paragraphs_of(record))
    found = [sum(texts[:stage.retrieve.top_k]), round(stage.retrieve.top_k * median(texts))]
    # A call has at least its name and a query.
    least, usual = (length + steps * (few + 2) for length, few in ((min(questions), found[0]),
                                                                   (round(median(questions)), found[1])))
    said = f"{steps} calls of {stage.retrieve.top_k}"
    if least > most:
        yield ("retrieve", "steps"), ConfigError(
            "so many calls never fit the prompt, whatever the tokenizer",
            found=f"{said}, {least} tokens or more with the shortest question and passages",
            expected=f"at most {most} tokens (max_prompt_tokens)", hint="fewer steps, a smaller top_k, or a higher "
                                                                        "max_prompt_tokens")
    elif usual > most:
        sight.warn(stage.name, f"{said} take {usual} words with passages of the usual length, and a prompt may have "
                               f"{most} tokens: rows that call so often will end by context-overflow")


def _words(text: str) -> int:
    return len(text.split())
