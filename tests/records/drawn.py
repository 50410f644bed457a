"""What hypothesis draws for the tests of the records room, a good row of every format, and short ways to import one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from alignment.records import Message, Record, RecordType
from alignment.records.importers import BadRow, Options, Row, import_rows
from alignment.records.importers.rows import RowError, blank

quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Settings of every property here: few examples, and no clock, because the machine may be busy."""


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def system(content: str) -> Message:
    return {"role": "system", "content": content}


texts = st.text(st.characters(exclude_categories=["Cs"]))
words = texts.filter(lambda text: not blank(text))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=6,
)
json_objects = st.dictionaries(texts, json_values, max_size=4)
message_lists = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": texts}), max_size=4
)
records = st.builds(
    Record, id=texts, type=st.sampled_from(get_args(RecordType)), prompt=message_lists, completion=st.none() | texts,
    rejected=st.none() | texts, messages=message_lists, label=st.none() | st.booleans(), meta=json_objects,
)  # fmt: skip
"""Records of any type with any fields, whether they make sense or not."""


@st.composite
def sound_records(draw: st.DrawFn) -> Record:
    """Records that pass the common checks, with the fields of their type filled and no others. Passages are of
    documents and come from no file of rows."""
    kind = draw(st.sampled_from([kind for kind in get_args(RecordType) if kind != "passage"]))
    turns = st.builds(lambda role, content: {"role": role, "content": content},
                      st.sampled_from(["user", "assistant", "tool"]), words)  # fmt: skip
    prompt = [*draw(st.lists(st.builds(system, words), max_size=1)), *draw(st.lists(turns, max_size=3)),
              draw(st.builds(user, words))]  # fmt: skip
    answer = draw(words)
    if kind == "messages":
        return Record("1", kind, messages=[*prompt, assistant(answer)])
    if kind == "prompt-only":
        return Record("1", kind, prompt)
    if kind in ("preference", "tie"):
        return Record("1", kind, prompt, answer, "not so: " + answer)
    return Record("1", kind, prompt, answer, label=draw(st.booleans()) if kind == "unpaired" else None)


GOOD: dict[str, dict[str, Any]] = {
    "messages": {"messages": [user("Hello"), assistant("Hi.")]},
    "prompt-completion": {"prompt": "Say it.", "completion": "It."},
    "preference": {"prompt": [user("Say it.")], "chosen": [assistant("It.")], "rejected": "No."},
    "unpaired": {"messages": [user("Say it."), assistant("It.")], "label": False},
    "prompt-only": {"prompt": "Say it."},
    "alpaca": {"instruction": "Add.", "input": "1 and 2", "output": "3", "system": "Be brief."},
    "self-instruct": {"id": "seed_1", "instruction": "Add.", "is_classification": False,
                      "instances": [{"input": "1 and 2", "output": "3"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi."}]},
    "sharegpt-preference": {"conversations": [{"from": "human", "value": "Hello"}],
                            "chosen": {"from": "gpt", "value": "Hi."}, "rejected": {"from": "gpt", "value": "No."}},
    "hh-transcript": {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes.", "rejected": "\n\nHuman: Hi\n\nAssistant: No."},
    "pandalm": {"idx": 3, "instruction": "Add.", "input": "1", "response1": "3", "response2": "4", "annotator1": 2,
                "annotator2": 2, "annotator3": 1},
    "auto-j": {"scenario": "chatting", "label": 0, "prompt": "How?", "response 1": "So.", "response 2": "Not so."},
    "reward-bench": {"id": 7, "subset": "hep-go", "prompt": "How?", "chosen": "So.", "chosen_model": "human",
                     "rejected": "Not so.", "rejected_model": "gpt-4"},
    "ultrafeedback-binarized": {"prompt": "How?", "prompt_id": "p", "chosen": [assistant("So.")],
                                "rejected": "Not so.", "score_chosen": 8.0, "score_rejected": 7},
    "stack-exchange-paired": {"qid": 5, "question": "How?", "response_j": "So.", "response_k": "Not so."},
    "votes": {"messages": [user("How?")], "chosen": assistant("So."), "rejected": assistant("Not so."),
              "models": {"a": "dpo", "b": "base"}, "vote": "b", "time": "2026-01-01T12:00:00Z"},
    "passage-qa": {"id": "a", "passage": "Ann sang.", "question": "Who sang?", "answer": "Ann", "rejected": "Bob"},
    "squad": {"id": "b", "context": "Ann sang.", "question": "Who?", "answers": [{"text": "Ann"}, {"text": "she"}]},
    "boolq": {"question": "is it blue", "passage": "It is blue.", "answer": True},
    "drop": {"query_id": "c", "passage": "Ann sang on 3 May.", "question": "When?",
             "answer": {"number": "", "spans": [], "date": {"day": "3", "month": "May", "year": ""}},
             "validated_answers": [{"number": "", "spans": ["May"], "date": {}}]},
    "hotpotqa": {"_id": "d", "question": "Who?", "answer": "Ann", "type": "bridge",
                 "context": [["Ann", ["Ann sang. ", "Often."]], ["Bob", ["Bob ran."]]]},
    "musique": {"id": "2hop__1_2", "question": "Who?", "answer": "Ann", "answer_aliases": ["Anna"],
                "answerable": True, "paragraphs": [{"title": "Ann", "paragraph_text": "Ann sang."}]},
    "multihop": {"id": "e", "src": "gen_qa.json", "question": "Did both sing?", "final_answer": "Ann alone did.",
                 "answer": None, "sub_questions": [
                     {"question": "Did Ann sing?", "answer": "yes", "long_answer": "Ann sang.", "unanswerable": False,
                      "paragraph": "Ann sang."},
                     {"question": "Did Bob sing?", "answer": None, "long_answer": "Bob did not.",
                      "paragraph": "Bob only ran."}]},
}  # fmt: skip
"""Format -> a good row of it."""


def imported(format: str, values: list[Any], options: Options | None = None) -> list[Record | BadRow]:
    """What rows in memory become; the source is called s."""
    return list(import_rows([Row(n, value) for n, value in enumerate(values, 1)], format, "s", options or Options()))


def good(format: str, value: dict[str, Any], options: Options | None = None) -> Record:
    """The record that one row becomes."""
    [made] = imported(format, [value], options)
    assert isinstance(made, Record), made
    return made


def bad(format: str, value: Any, options: Options | None = None) -> BadRow:
    """The bad row that one row becomes."""
    [made] = imported(format, [value], options)
    assert isinstance(made, BadRow), made
    return made


def without(row: dict[str, Any], *fields: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in fields}


@st.composite
def damaged(draw: st.DrawFn, row: Any) -> Any:
    """A row with one value, at any depth, taken out or replaced with any JSON value."""
    places: list[tuple[Any, ...]] = [()]
    for place in places:  # grows as it goes down
        value = row
        for key in place:
            value = value[key]
        keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        places += [(*place, key) for key in keys]
    target = draw(st.sampled_from(places))
    new = draw(st.none() | json_values)

    def rebuilt(value: Any, place: tuple[Any, ...]) -> Any:
        if not place:
            return new
        if isinstance(value, dict):
            return {key: rebuilt(item, place[1:]) if key == place[0] else item for key, item in value.items()}
        return [rebuilt(item, place[1:]) if index == place[0] else item for index, item in enumerate(value)]

    return rebuilt(row, target)


def slug_of(call: Callable[[], object]) -> str:
    """The slug of the RowError that a call raises; "" when it raises none."""
    try:
        call()
    except RowError as error:
        return error.slug
    return ""
