"""Which questions an evaluation asks: test rows with ids of their own, unseen, within every model's token limit.

Counts tokens with the models' tokenizers and loads no weights. What is left out is named with its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from alignment.config import Evaluate
from alignment.context import StageContext
from alignment.errors import DataError, KubeAlignError, ModelError, StageError
from alignment.evaluation.held_out import HeldOut
from alignment.evaluation.results import Question, question_of
from alignment.inference.draws import choose
from alignment.inference.generator import open_engine
from alignment.records import Record
from alignment.records.importers.retrieval import paragraphs_of


@dataclass(frozen=True)
class Chosen:
    """The questions to ask, in the split's order.

    Attributes:
        bad: lines of bad.jsonl, one for each row left out: source, row, reason, found, raw.
        dropped: rows that are not asked, by reason.
    """

    questions: list[Question]
    bad: list[dict[str, Any]]
    dropped: dict[str, int]


def check_ids(records: Sequence[Record], where: str) -> None:
    """Raise DataError when two rows have one id: their answers could not be told apart."""
    twice = [id_ for id_, count in Counter(record.id for record in records).items() if count > 1]
    if twice:
        raise DataError(f"{len(twice)} ids stand on more than one row, so answers cannot be told apart", where=where,
                        found=twice[:3], expected="one id per row",
                        hint="give the sources of the import stage different names")


def choose_questions(context: StageContext, stage: Evaluate, held_out: HeldOut) -> Chosen:
    """Unseen rows that every model can be asked, at most `take`.

    Raises DataError when every prompt is over the limit; where templates refuse every row, the first refusal.
    """
    questions = [question_of(record, stage.retrieve is not None) for record in held_out.kept]
    long, refused = _lengths(context, stage, questions)
    if stage.retrieve is not None and stage.retrieve.corpus is None:
        refused |= {q.id: DataError("no passages to retrieve from", found=f"a row of type {q.record.type}",
                                    where=f"stage {stage.name}, rows {stage.rows}",
                                    expected="rows of an import with retrieve: true, or retrieve.corpus")
                    for q in questions if not paragraphs_of(q.record)}
    fitting = [question for question in questions if question.id not in long and question.id not in refused]
    if not fitting and len(refused) == len(questions) > 0:
        raise next(iter(refused.values()))
    if not fitting:
        raise DataError("every prompt is over max_prompt_tokens", where=f"stage {stage.name}",
                        found=f"{len(long)} prompts of {min(long.values())} tokens or more, {len(refused)} that a "
                              "template refuses",
                        expected=f"at most {stage.longest_prompt} tokens", hint="raise max_prompt_tokens")
    chosen = choose(fitting, context.run.scaled(stage.take), context.run.seed)
    left = [(record, f"seen before ({reason})", seen_id) for record, seen_id, reason in held_out.dropped]
    left += [(q.record, refused[q.id].problem, str(refused[q.id].found)) for q in questions if q.id in refused]
    left += [(q.record, "prompt over max_prompt_tokens", str(long[q.id])) for q in questions
             if q.id in long and q.id not in refused]
    bad = [{"source": stage.rows, "row": record.id, "reason": reason, "found": found, "raw": asdict(record)}
           for record, reason, found in left]
    dropped = dict(Counter(reason for _, reason, _ in left))
    if len(fitting) > len(chosen):
        dropped["not taken"] = len(fitting) - len(chosen)
    return Chosen(chosen, bad, dropped)


def answered_by_all(stage: Evaluate, chosen: Chosen, failed: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Chosen:
    """Without the questions that an endpoint gave no answer to: models are compared over the same rows.

    Args:
        failed: model -> row id -> {"reason", "found", ...}.

    Raises:
        StageError: no question is left.
    """
    if not any(failed.values()):
        return chosen
    asked = {question.id: question for question in chosen.questions}
    first: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for model, rows in failed.items():
        for row, why in rows.items():
            first.setdefault(row, (model, why))
    bad = [{"source": stage.rows, "row": row, "reason": why["reason"], "found": f"{model}: {why['found']}",
            "raw": asdict(asked[row].record)} for row, (model, why) in first.items()]
    left = [question for question in chosen.questions if question.id not in first]
    if not left:
        raise StageError("no question was answered by every model", where=f"stage {stage.name}",
                         found=dict(Counter(line["reason"] for line in bad)),
                         hint="; ".join(f"row {line['row']}: {line['found']}" for line in bad[:3]))
    dropped = Counter(chosen.dropped) + Counter(line["reason"] for line in bad)
    return Chosen(left, chosen.bad + bad, dict(dropped))


def _lengths(
    context: StageContext, stage: Evaluate, questions: Sequence[Question]
) -> tuple[dict[str, int], dict[str, KubeAlignError]]:
    """Rows that not every evaluated model can be asked, by id.

    Returns: (prompt tokens of rows over max_prompt_tokens; the error of rows that a template refuses).
    """
    longest: dict[str, int] = {}
    refused: dict[str, KubeAlignError] = {}
    for name in stage.models:
        with open_engine(context, name) as engine:
            for question in questions:
                try:
                    asked = question.prompt if stage.retrieve is None else engine.offered(question.prompt)
                    tokens = engine.prompt_tokens(asked)
                    if stage.asks_likelihoods and question.reference is not None:
                        engine.answer_tokens(question.before, question.reference)
                except (DataError, ModelError) as error:  # training and sampling leave such a row out as well
                    refused.setdefault(question.id, error)
                else:
                    longest[question.id] = max(tokens, longest.get(question.id, 0))
    return {id_: tokens for id_, tokens in longest.items() if tokens > stage.longest_prompt}, refused
