"""The data formats of import data: which fields of a row are read, which it needs, and one example of each.

The importers take a row apart in code, so their fields are declared here. The record that comes out is never written
down: `made` runs the example through the importer, as a file. A test takes each field out of each example and sees
that it is needed exactly where this says so.
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.records import Record
from alignment.records.importers import BadRow, Options, read_source

Json = dict[str, Any]


@dataclass(frozen=True)
class Field:
    """A field of a row.

    Attributes:
        needed: a row like the example without it is a bad row.
    """

    name: str
    needed: bool
    text: str


@dataclass(frozen=True)
class Format:
    """A format of `data.format`.

    Attributes:
        text: what it is for, and what is special about it.
        fields: of one row; those that every format has, COMMON, are not repeated.
        row: an example row.
        whole: the file's content around the rows, where a file is one JSON document; None for a row a line.
        columns: for format `columns` alone, the key `columns` of the source; the example is then a CSV file.
    """

    text: str
    fields: tuple[Field, ...]
    row: Json
    whole: Json | None = None
    columns: dict[str, str] | None = None


COMMON = (
    Field("id", False, "Text or a whole number, unique in the file; _id, idx and query_id are read as well. Without "
                       "one the row's number is taken. A record's id is SOURCE-ID."),
    Field("group", False, "Rows of one group stay in one split. The passage formats take the passage where it is "
                          "missing."),
    Field("kind", False, "A kind of row; evaluate reports its measures by kind, too. A passage format that knows the "
                         "kind says it itself."),
    Field("meta", False, "An object that is kept with the record, for reward functions of your own."),
    Field("system", False, "A system message, set before the conversation. A row whose conversation has another one "
                           "is a bad row."),
)
"""Fields that a row of any format may have; others are counted or refused (records/importers/keys.py)."""

_TURNS = ("list of {role, content}, role one of system, user, assistant, tool; content is text, or a list of "
          "{type: text, text}, which are joined")
_PROMPT = f"What is asked: text, or a conversation ({_TURNS}) that ends with the user."
_ANSWER = ("Text, or turns that end with the assistant's; turns before that belong to the prompt, and what prompt has "
           "already is not put twice: they may be the whole conversation, its end, or what follows. Where they "
           "disagree with prompt the row is a bad row.")
_CALLING = (" A turn of the assistant may have tool_calls and reasoning_content, a tool's name and tool_call_id; where "
            "the template ignores them, every stage drops the row, and counts it.")
_FLAGS = (" weight, loss_mask, loss, train or training of an assistant's turn says whether it is learned (1, true) or "
          "context only (0, false), for sft with loss: assistant; a part of a weight makes a bad row.")
_TOOLS = Field("tools", False, "What may be called: list of {type, function: {name, description, parameters}}, or of "
                               "what stands under function, or either as JSON text. Where the template ignores tools, "
                               "every stage drops the row, and counts it.")
_PASSAGE, _QUESTION = Field("passage", True, "The text that the question is about."), Field("question", True, "Text.")
_TALK = [{"role": "user", "content": "How deep is the harbour?"}, {"role": "assistant", "content": "Nine metres."}]
_HARBOUR = "The harbour is nine metres deep. It freezes in most winters."

FORMATS: dict[str, Format] = {
    "messages": Format(
        "Whole conversations; the last turn is the answer. For sft, where loss: assistant learns every turn.",
        (Field("messages", True, f"The conversation: {_TURNS}.{_CALLING}{_FLAGS}"), _TOOLS,
         Field("parallel_tool_calls", False, "OpenAI's: false where no turn may call several tools at once; a row "
                                             "whose turns do is a bad row. No template says it to a model.")),
        {"messages": _TALK},
    ),
    "prompt-completion": Format(
        "A prompt and the answer to learn, or in evaluation the reference.",
        (Field("prompt", True, _PROMPT + " Not needed where completion brings its own turns."),
         Field("completion", True, _ANSWER), _TOOLS),
        {"prompt": "How deep is the harbour?", "completion": "Nine metres."},
    ),
    "preference": Format(
        "A better and a worse answer to one prompt. For reward and dpo; sft learns the chosen one. A row of ours that "
        "says `type: tie` is a bad row, or with the stage's `ties: keep` a tie again.",
        (Field("prompt", True, _PROMPT + " Not needed where chosen and rejected are whole conversations."),
         Field("chosen", True, "The better answer. " + _ANSWER + " `completion` is read in its place."),
         Field("rejected", True, "The worse answer, likewise."), _TOOLS),
        {"prompt": "How deep is the harbour?", "chosen": "Nine metres.", "rejected": "I would have to guess."},
    ),
    "unpaired": Format(
        "Single answers, each marked as wanted or not.",
        (Field("prompt", True, _PROMPT), Field("completion", True, _ANSWER),
         Field("messages", False, f"Instead of completion, the whole conversation: {_TURNS}."),
         Field("label", True, "true: the answer is wanted; false: it is not."), _TOOLS),
        {"prompt": "How deep is the harbour?", "completion": "Nine metres.", "label": True},
    ),
    "prompt-only": Format(
        "Prompts without answers, for sample.",
        (Field("prompt", True, _PROMPT), _TOOLS),
        {"prompt": "How deep is the harbour?"},
    ),
    "alpaca": Format(
        "Instructions (Alpaca, Dolly-like sets). Instruction, blank line and input make the user's message.",
        (Field("instruction", True, "What is asked."), Field("input", False, "What it is asked of; may be empty."),
         Field("output", True, "The answer."),
         Field("history", False, "list of [instruction, response]: the turns before."), _TOOLS),
        {"instruction": "Answer in two words.", "input": "How deep is the harbour?", "output": "Nine metres."},
    ),
    "self-instruct": Format(
        "Seed tasks of Self-Instruct (Wang et al. 2022, arXiv:2212.10560), for a stage of kind generate. The first "
        "example makes the row, as Alpaca's; a teacher is shown all of them.",
        (Field("instruction", True, "The task."),
         Field("instances", True, "list of {input, output}: examples of it; input may be empty."),
         Field("is_classification", False, "Whether the answer is one of a few labels.")),
        {"instruction": "Say whether the boat is seaworthy.", "is_classification": True,
         "instances": [{"input": "Her hull leaks.", "output": "no"}]},
    ),
    "sharegpt": Format(
        "Conversations in ShareGPT's names.",
        (Field("conversations", True, "list of {from, value}; from is human, user, gpt, assistant, chatgpt, model, "
                                      "function_call (value is a call or a list of them, as JSON), system, "
                                      "observation or tool." + _FLAGS), _TOOLS),
        {"conversations": [{"from": "human", "value": "How deep is the harbour?"},
                           {"from": "gpt", "value": "Nine metres."}]},
    ),
    "sharegpt-preference": Format(
        "A ShareGPT conversation with two answers to its last turn.",
        (Field("conversations", True, "list of {from, value} up to the answer."),
         Field("chosen", True, "{from, value}: the better answer."),
         Field("rejected", True, "{from, value}: the worse answer."), _TOOLS),
        {"conversations": [{"from": "human", "value": "How deep is the harbour?"}],
         "chosen": {"from": "gpt", "value": "Nine metres."},
         "rejected": {"from": "gpt", "value": "I would have to guess."}},
    ),
    "hh-transcript": Format(
        "hh-rlhf: two transcripts that differ in the last assistant turn alone (Bai et al. 2022, arXiv:2204.05862).",
        (Field("chosen", True, "The whole transcript, turns begun by `\\n\\nHuman: ` and `\\n\\nAssistant: `."),
         Field("rejected", True, "The same with the worse last answer."),
         Field("prompt", False, "The transcript up to and with the last `Assistant:`; chosen and rejected may then be "
                                "the answers alone.")),
        {"chosen": "\n\nHuman: How deep is the harbour?\n\nAssistant: Nine metres.",
         "rejected": "\n\nHuman: How deep is the harbour?\n\nAssistant: I would have to guess."},
    ),
    "pandalm": Format(
        "PandaLM's test set: two answers and three annotators' votes. The majority decides; rows without one, and "
        "ties, are bad rows. With the stage's `ties: keep` ties are rows of type tie, and meta.votes says who voted "
        "how.",
        (Field("instruction", True, "What is asked."), Field("input", False, "What it is asked of; may be empty."),
         Field("response1", True, "An answer."), Field("response2", True, "The other answer."),
         *(Field(f"annotator{number}", True, "0: a tie; 1: response1 is better; 2: response2.")
           for number in (1, 2, 3))),
        {"instruction": "How deep is the harbour?", "input": "", "response1": "I would have to guess.",
         "response2": "Nine metres.", "annotator1": 2, "annotator2": 2, "annotator3": 0},
    ),
    "auto-j": Format(
        "Auto-J's pairs (Li et al. 2023, arXiv:2310.05470): two answers, and which is better. The scenario becomes the "
        "row's kind. A tie is a bad row, or with the stage's `ties: keep` a row of type tie.",
        (Field("prompt", True, "What is asked: text."), Field("response 1", True, "An answer."),
         Field("response 2", True, "The other answer."),
         Field("label", True, "0: response 1 is better; 1: response 2; 2: a tie."),
         Field("scenario", False, "The kind of question.")),
        {"scenario": "open_question", "label": 1, "prompt": "How deep is the harbour?",
         "response 1": "I would have to guess.", "response 2": "Nine metres."},
    ),
    "reward-bench": Format(
        "RewardBench's pairs (Lambert et al. 2024, arXiv:2403.13787). The subset becomes the row's kind and stands in "
        "its id, meta.section is the section that it belongs to, meta.models says who answered.",
        (Field("prompt", True, _PROMPT), Field("chosen", True, "The better answer: text, or turns."),
         Field("rejected", True, "The worse answer."), Field("subset", True, "alpacaeval-easy, hep-python, ..."),
         Field("chosen_model", False, "Who gave the better answer."),
         Field("rejected_model", False, "Who gave the worse answer.")),
        {"id": 30, "subset": "hep-python", "prompt": "How deep is the harbour?", "chosen": "Nine metres.",
         "chosen_model": "human", "rejected": "I would have to guess.", "rejected_model": "gpt-4"},
    ),
    "ultrafeedback-binarized": Format(
        "Pairs with a score for each answer, as UltraFeedback's binarized sets have them (Cui et al. 2023, "
        "arXiv:2310.01377). Equal scores are a tie: a bad row, or with the stage's `ties: keep` a row of type tie.",
        (Field("prompt", True, _PROMPT + " Not needed where chosen and rejected are whole conversations."),
         Field("chosen", True, "The better answer. " + _ANSWER), Field("rejected", True, "The worse answer, likewise."),
         Field("score_chosen", True, "A number."),
         Field("score_rejected", True, "A number; one above score_chosen makes a bad row."),
         Field("prompt_id", False, "Rows of one prompt are one group.")),
        {"prompt": "How deep is the harbour?", "prompt_id": "p7",
         "chosen": "Nine metres.", "rejected": "I would have to guess.", "score_chosen": 8.5, "score_rejected": 3.0},
    ),
    "stack-exchange-paired": Format(
        "Two answers to a question of a forum, the one with more votes first; the rows of one qid are one group.",
        (Field("question", True, "The question."), Field("response_j", True, "The answer with more votes."),
         Field("response_k", True, "The other."), Field("qid", False, "Number of the question.")),
        {"qid": 7, "question": "How deep is the harbour?", "response_j": "Nine metres.",
         "response_k": "I would have to guess."},
    ),
    "votes": Format(
        "What people found better on the page of `kubealign serve`, as it keeps them: a conversation, two answers, a "
        "vote. Ties, and answers that are both bad, are bad rows, counted apart.",
        (Field("messages", True, f"The conversation up to the answers: {_TURNS}."),
         Field("chosen", True, "The better answer, one turn of the assistant; null where the vote is for none."),
         Field("rejected", True, "The other, likewise."),
         Field("models", True, "{a, b}: who gave which; the record's meta says chosen_by and rejected_by."),
         Field("vote", True, "a or b: which is chosen; tie, or bad where neither is any good."),
         Field("time", False, "When it was cast.")),
        {"messages": _TALK[:1], "chosen": _TALK[1],
         "rejected": {"role": "assistant", "content": "I would have to guess."},
         "models": {"a": "dpo", "b": "base"}, "vote": "a", "time": "2026-01-01T12:00:00Z"},
    ),
    "passage-qa": Format(
        "Questions about a passage, KubeAlign's own form. With `rejected` the row is a preference, else a "
        "prompt-completion.",
        (_PASSAGE, _QUESTION, Field("answer", True, "The answer, which is also the reference."),
         Field("rejected", False, "A worse answer."),
         Field("type", False, "The kind of question; read before `kind`.")),
        {"passage": _HARBOUR, "question": "How deep is it?", "answer": "Nine metres.",
         "rejected": "I would have to guess.", "type": "open"},
    ),
    "squad": Format(
        "SQuAD 1.1 and 2.0 as its makers give it out: one JSON document (Rajpurkar et al. 2016, arXiv:1606.05250). The "
        "fields are those of one entry of `qas`. A question with is_impossible has no answer: prompt-only; with the "
        "stage's `unanswerable` it has that. Rows of the hub's (squad, squad_v2), with answers as {text: [...]}, are "
        "read as well; there an empty list says that a question is impossible.",
        (Field("context", True, "The passage; it stands once, beside qas."), _QUESTION,
         Field("answers", True, "list of {text}; every text is an accepted reference."),
         Field("is_impossible", False, "true: the passage does not say; answers must then be empty.")),
        {"question": "How deep is it?", "id": "q1", "answers": [{"text": "nine metres", "answer_start": 15}]},
        whole={"data": [{"title": "Harbours", "paragraphs": [{"context": _HARBOUR, "qas": ["ROW"]}]}]},
    ),
    "boolq": Format(
        "Yes-or-no questions (Clark et al. 2019, arXiv:1905.10044); the answer becomes Yes or No.",
        (_PASSAGE, _QUESTION, Field("answer", True, "true or false.")),
        {"question": "does the harbour freeze", "passage": _HARBOUR, "answer": True},
    ),
    "drop": Format(
        "Questions that need counting (Dua et al. 2019, arXiv:1903.00161): one JSON document, by passage. The fields "
        "are those of one entry of `qa_pairs`.",
        (Field("passage", True, "The passage; it stands once, beside qa_pairs."), _QUESTION,
         Field("answer", True, "{number}, {spans} or {date: {day, month, year}}; the first that is filled counts."),
         Field("validated_answers", False, "list of further accepted answers.")),
        {"question": "How many metres deep is it?", "query_id": "q1", "answer": {"number": "9", "spans": []}},
        whole={"harbour_1": {"passage": _HARBOUR, "qa_pairs": ["ROW"]}},
    ),
    "hotpotqa": Format(
        "Questions over several paragraphs, distractors among them (Yang et al. 2018, arXiv:1809.09600); all of them "
        "make the passage. The hub's columnar form of context is read as well.",
        (Field("context", True, "list of [title, [sentences]]."), _QUESTION, Field("answer", True, "Text."),
         Field("type", False, "The kind: bridge or comparison.")),
        {"_id": "q1", "question": "How deep is the harbour of Bremen's port?", "answer": "nine metres",
         "context": [["Bremen", ["Its port is called Haven."]], ["Haven", ["The harbour is nine metres deep."]]],
         "type": "bridge"},
    ),
    "musique": Format(
        "Questions of two to four hops (Trivedi et al. 2022, arXiv:2108.00573). One that is not answerable has no "
        "answer: prompt-only; with the stage's `unanswerable` it has that.",
        (Field("paragraphs", True, "list of {title, paragraph_text}."), _QUESTION,
         Field("answer", True, "Text; not read where answerable is false."),
         Field("answer_aliases", False, "list of further accepted answers."),
         Field("answerable", False, "false: the paragraphs do not say.")),
        {"id": "2hop__1_2", "question": "How deep is the harbour of Bremen's port?", "answer": "nine metres",
         "answer_aliases": ["9 m"], "answerable": True,
         "paragraphs": [{"title": "Bremen", "paragraph_text": "Its port is called Haven."},
                        {"title": "Haven", "paragraph_text": "The harbour is nine metres deep."}]},
    ),
    "multihop": Format(
        "Questions that are answered over calls of `retrieve`, as qa_expert has them (docs/multihop.md): conversations "
        "in which each call carries the long answer before it.",
        (_QUESTION, Field("final_answer", True, "The answer that is given in the end."),
         Field("sub_questions", True, "list of {question, paragraph, long_answer, answer, unanswerable}; with several, "
                                      "or multihop, each needs its long_answer."),
         Field("answer", False, "The answer in a few words, for evaluation."),
         Field("src", False, "Where the row comes from; without a kind, the kind."),
         Field("multihop", False, "Whether the answers are summed up; with one sub-question only."),
         Field("meta_info", False, "Kept as it is."), Field("tag", False, "Kept as it is.")),
        {"src": "gen_qa.json", "question": "Is the harbour of Haven deeper than that of Varde?",
         "final_answer": "Haven's is deeper, by three metres.", "answer": None,
         "sub_questions": [
             {"question": "How deep is the harbour of Haven?", "answer": None, "unanswerable": False,
              "long_answer": "The harbour of Haven is nine metres deep.", "paragraph": _HARBOUR},
             {"question": "How deep is the harbour of Varde?", "answer": None, "unanswerable": False,
              "long_answer": "The harbour of Varde is six metres deep.",
              "paragraph": "Varde's harbour is six metres deep and was built in 1874."}]},
    ),
    "columns": Format(
        "Any CSV, TSV, Parquet or JSON-lines file whose columns have other names, or must first be put together. The "
        "source's `columns` gives each of our fields a column's name, or a text with {Column} slots, which each row "
        "fills with its own cells; {{ and }} are braces. A row with a blank cell in a slot is a bad row, a slot that "
        "is no column an error. The fields decide what a row is: messages; passage, question, answer; instruction, "
        "output; prompt, chosen, rejected; prompt, completion, label; prompt, completion; or prompt. A label in CSV "
        "is true, false, yes, no, 1 or 0.",
        (Field("our field", True, "Of one of those formats, and what they may have besides: system, for example."),),
        {"Context": "Der Hafen ist neun Meter tief. In den meisten Wintern friert er zu.",
         "Question": "Wie tief ist der Hafen?", "Type": "open"},
        columns={"system": "You write questions of the type {Type}.",
                 "prompt": "You will see a text. Ask a question about it, in the format {Type}.\n### Input:\n{Context}",
                 "completion": "Question"},
    ),
}
"""By the name in `data.format`, in the order in which a reader looks for one."""


def text_of(name: str, row: Json) -> str:
    """The content of a file of format `name` that holds one row."""
    made = FORMATS[name]
    if made.columns is not None:
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows([row.keys(), row.values()])
        return file.getvalue()
    if made.whole is None:
        return json.dumps(row, ensure_ascii=False) + "\n"
    return json.dumps(_filled(made.whole, row), ensure_ascii=False, indent=1) + "\n"


def made(name: str, row: Json | None = None) -> Record | BadRow:
    """What the importer makes of a file with one row; the example, if none is given."""
    form = FORMATS[name]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / ("example.csv" if form.columns is not None else "example.jsonl")
        file.write_text(text_of(name, form.row if row is None else row), encoding="utf-8", newline="\n")
        (found,) = read_source(str(file), name, "example", Options(), form.columns)
    return found


def _filled(node: Any, row: Json) -> Any:
    if node == "ROW":
        return row
    if isinstance(node, dict):
        return {key: _filled(value, row) for key, value in node.items()}
    return [_filled(item, row) for item in node] if isinstance(node, list) else node
