"""Records -> token columns: exactly the ids that are asked later, and every row that is left out has its reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment import templates
from alignment.config import TrainBase
from alignment.errors import DataError, ModelError
from alignment.records import Record
from alignment.training.prepare import IGNORED, Prepared, TooLong, cut_prompt, prepare
from tests.training.made import answered, assistant, preferred, stage, user

WHERE = "stage stage, rows data/train"
ASKED = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
TALK = [{"role": "system", "content": "Be brief."}, user("Who?"), assistant("Me."), user("And?"), assistant("You.")]
CUT, CUT_ANSWERS = "prompt truncated at the left", "cut at the left, with earlier answers"
NO_ROOM = "answer leaves no room for a prompt within max_length"
PREFERENCE = preferred("r", "Who?", "Me, of course.", "No.")
# Marks nothing of an answer that holds "secret"; no shipped template is so, but an imported one may be.
HALF_MARKED = (
    "{% for m in messages %}{% if m.role != 'assistant' or 'secret' in m.content %}"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% else %}{{ '<|im_start|>assistant\\n' }}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def made_of(records: list[Record], tokenizer: Any, of: TrainBase) -> Prepared:
    """The rows with the columns of the stage's own method."""
    from alignment.training.methods import method_of

    return prepare(records, tokenizer, of, WHERE, method_of(of).columns)


def changed_template(tokenizer: Any, template: str) -> Any:
    from copy import deepcopy

    changed = deepcopy(tokenizer)
    changed.chat_template = template
    return changed


def lower_casing(tokenizer: Any) -> Any:
    """The same tokenizer over text in lower case, as of an uncased model."""
    from copy import deepcopy

    from tokenizers import normalizers

    changed = deepcopy(tokenizer)
    changed.backend_tokenizer.normalizer = normalizers.Lowercase()
    return changed


# --- columns -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("record", "prompt", "answer"), [
    (answered("r", "Who?", "Me."), ASKED, "Me.<|im_end|>"),
    (answered("r", "Who?", ""), ASKED, "<|im_end|>"),
    (answered("r", "Who?", "\n\nMe. \n"), ASKED, "\n\nMe. \n<|im_end|>"),
    (preferred("r", "Who?", "Me.", "You."), ASKED, "Me.<|im_end|>"),
    (Record("r", "unpaired", prompt=[user("Who?")], completion="Me.", label=True), ASKED, "Me.<|im_end|>"),
    (Record("r", "messages", messages=TALK),
     "<|im_start|>system\nBe brief.<|im_end|>\n" + ASKED + "Me.<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n"
     "<|im_start|>assistant\n", "You.<|im_end|>"),
], ids=["answer", "empty answer", "answer in blanks", "preference", "unpaired", "messages"])
def test_completion_learns_the_last_answer_and_its_end_token(
    tokenizer: Any, record: Record, prompt: str, answer: str
) -> None:
    made = made_of([record], tokenizer, stage("sft"))
    (row,) = made.rows
    learned = [label for label in row["labels"] if label != IGNORED]
    start = len(row["labels"]) - len(learned)
    assert row["labels"] == [-100] * start + learned
    assert row["input_ids"][start:] == learned
    assert (tokenizer.decode(row["input_ids"][:start]), tokenizer.decode(learned)) == (prompt, answer)
    conversation = record.conversation()
    asked, answered_ids = templates.encode_completion(tokenizer, conversation[:-1], conversation[-1]["content"])
    assert row == {"row": 0, "input_ids": asked + answered_ids, "labels": [-100] * len(asked) + answered_ids}
    assert asked == templates.encode_prompt(tokenizer, conversation[:-1])
    assert (made.supervised, made.lengths) == (len(answered_ids), [len(asked) + len(answered_ids)])


@pytest.mark.parametrize(("loss", "learned"), [
    ("completion", "You.<|im_end|>"),
    ("assistant", "Me.<|im_end|>You.<|im_end|>"),
    ("all", "<|im_start|>system\nBe brief.<|im_end|>\n" + ASKED + "Me.<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n"
            "<|im_start|>assistant\nYou.<|im_end|>\n"),
])
def test_the_loss_says_which_tokens_of_a_conversation_are_learned(tokenizer: Any, loss: str, learned: str) -> None:
    made = made_of([Record("r", "messages", messages=TALK)], tokenizer, stage("sft", loss=loss))
    (row,) = made.rows
    kept = [label for label in row["labels"] if label != IGNORED]
    assert tokenizer.decode(kept) == learned
    assert made.supervised == len(kept)
    assert made.lengths == [len(row["input_ids"])] == [len(row["labels"])]
    if loss != "completion":
        ids, mask = templates.encode_conversation(tokenizer, TALK)
        assert row["input_ids"] == ids
        wanted = ids if loss == "all" else [i if m else -100 for i, m in zip(ids, mask, strict=True)]
        assert row["labels"] == wanted
        assert tokenizer.decode(ids) == tokenizer.apply_chat_template(TALK, tokenize=False)


LEFT_OUT = "a turn is marked as not to be learned, and loss: all learns everything"
LAST = "the last answer is marked as not to be learned, and loss: completion learns it alone"


@pytest.mark.parametrize(("loss", "marked", "learned"), [
    ("assistant", (2,), "You.<|im_end|>"), ("assistant", (4,), "Me.<|im_end|>"),
    ("assistant", (2, 4), "no supervised token"),
    ("completion", (2,), "You.<|im_end|>"), ("completion", (4,), LAST),
    ("all", (2,), LEFT_OUT), ("all", (4,), LEFT_OUT),
])
def test_a_turn_that_is_not_to_be_learned_is_context_or_the_row_goes(
    tokenizer: Any, loss: str, marked: tuple[int, ...], learned: str
) -> None:
    talk = [{**turn, "learn": False} if at in marked else turn for at, turn in enumerate(TALK)]
    records = [Record("m", "messages", messages=talk), answered("r", "?", "x")]
    made = made_of(records, tokenizer, stage("sft", loss=loss))
    if made.ids == ["r"]:
        assert made.dropped == [("m", learned)]
        return
    row = made.rows[0]
    assert tokenizer.decode([label for label in row["labels"] if label != IGNORED]) == learned
    plain = made_of([Record("m", "messages", messages=TALK)], tokenizer, stage("sft", loss=loss)).rows[0]
    assert row["input_ids"] == plain["input_ids"]


@pytest.mark.parametrize(("method", "names"), [
    ("reward", ("chosen_ids", "rejected_ids")), ("dpo", ("prompt_ids", "chosen_ids", "rejected_ids")),
])
def test_both_sides_of_a_preference_answer_the_same_prompt(
    tokenizer: Any, method: str, names: tuple[str, ...]
) -> None:
    made = made_of([PREFERENCE], tokenizer, stage(method))
    prompt, chosen = templates.encode_completion(tokenizer, [user("Who?")], "Me, of course.")
    again, rejected = templates.encode_completion(tokenizer, [user("Who?")], "No.")
    assert prompt == again
    shared = prompt if method == "reward" else []
    wanted = {"row": 0, "prompt_ids": prompt, "chosen_ids": shared + chosen, "rejected_ids": shared + rejected}
    assert made.rows == [{name: wanted[name] for name in ("row", *names)}]
    assert tokenizer.decode(shared + chosen).endswith("Me, of course.<|im_end|>")
    assert made.supervised == len(chosen) + len(rejected)
    assert made.lengths == [len(prompt) + len(chosen), len(prompt) + len(rejected)]


def test_tokens_and_lengths_are_summed_over_the_rows_that_are_kept(tokenizer: Any) -> None:
    records = [answered("a", "Who?", "Me."), Record("b", "prompt-only", prompt=[user("Who?")]),
               answered("c", "Who are you?", "No one.")]
    sizes = [templates.encode_completion(tokenizer, records[i].prompt, str(records[i].completion)) for i in (0, 2)]
    made = made_of(records, tokenizer, stage("sft"))
    assert made.supervised == sum(len(answer) for _, answer in sizes)
    assert made.lengths == [len(prompt) + len(answer) for prompt, answer in sizes]


def test_rows_name_their_records_by_place_whatever_was_dropped_between(tokenizer: Any) -> None:
    records = [Record("x", "prompt-only", prompt=[user("?")]), answered("a", "1?", "one"),
               Record("y", "prompt-only", prompt=[user("?")]), answered("b", "2?", "two"), answered("a", "3?", "three")]
    made = made_of(records, tokenizer, stage("sft"))
    assert made.ids == ["a", "b", "a"]
    assert [row["row"] for row in made.rows] == [0, 1, 2]
    texts = [tokenizer.decode([label for label in row["labels"] if label != IGNORED]) for row in made.rows]
    assert texts == ["one<|im_end|>", "two<|im_end|>", "three<|im_end|>"]
    assert [row for row, _ in made.dropped] == ["x", "y"]


# --- reasons -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "record", "reason"), [
    ("sft", Record("bad", "unpaired", prompt=[user("?")], completion="x", label=False),
     "unpaired with an unwanted answer"),
    ("sft", Record("bad", "unpaired", prompt=[user("?")], completion="x"), "unpaired with an unwanted answer"),
    ("sft", Record("bad", "prompt-only", prompt=[user("?")]), "prompt-only has no answer to learn"),
    ("sft", Record("bad", "messages"), "messages has no answer to learn"),
    ("sft", Record("bad", "messages", messages=[user("?"), assistant("x"), user("!")]),
     "the last turn is not the assistant's"),
    ("sft", Record("bad", "prompt-completion", prompt=[user("?")]), "the last turn is not the assistant's"),
    *[(method, record, reason) for method in ("reward", "dpo") for record, reason in [
        (answered("bad", "?", "x"), "prompt-completion is no preference"),
        (Record("bad", "messages", messages=TALK), "messages is no preference"),
        (Record("bad", "prompt-only", prompt=[user("?")]), "prompt-only is no preference"),
        (Record("bad", "unpaired", prompt=[user("?")], completion="x", label=True), "unpaired is no preference"),
        (Record("bad", "preference", prompt=[user("?")], completion="x"), "preference without a rejected answer"),
        (Record("bad", "preference", prompt=[user("?")], rejected="x"), "preference without a chosen answer"),
        (preferred("bad", "?", "one two", "one two"), "chosen equals rejected"),
        (preferred("bad", "?", "one two", " one two\n"), "chosen equals rejected"),
    ]],
])
def test_a_row_that_cannot_serve_is_dropped_with_its_reason(
    tokenizer: Any, method: str, record: Record, reason: str
) -> None:
    made = made_of([record, PREFERENCE], tokenizer, stage(method))
    assert made.dropped == [("bad", reason)]
    assert made.ids == ["r"]
    alone = made_of([PREFERENCE], tokenizer, stage(method))
    assert (made.rows, made.supervised, made.lengths) == (alone.rows, alone.supervised, alone.lengths)


@pytest.mark.parametrize("method", ["reward", "dpo"])
def test_answers_that_differ_in_text_but_not_in_tokens_are_no_preference(tokenizer: Any, method: str) -> None:
    records = [preferred("bad", "Who?", "ME", "me"), PREFERENCE]
    assert made_of(records, tokenizer, stage(method)).ids == ["bad", "r"]
    made = made_of(records, lower_casing(tokenizer), stage(method))
    assert made.dropped == [("bad", "chosen and rejected are the same tokens")]
    assert made.ids == ["r"]


def test_a_conversation_of_which_the_template_marks_nothing_is_dropped(tokenizer: Any) -> None:
    marked = changed_template(tokenizer, HALF_MARKED)
    records = [answered("bad", "Who?", "a secret"), answered("r", "Who?", "Me.")]
    made = made_of(records, marked, stage("sft", loss="assistant"))
    assert (made.ids, made.dropped) == (["r"], [("bad", "no supervised token")])
    assert made_of(records, marked, stage("sft", loss="all")).ids == ["bad", "r"]


def test_no_row_at_all_says_what_came_in_and_why_it_went(tokenizer: Any) -> None:
    records = [answered("a", "?", "x"), answered("b", "?", "y"), preferred("c", "?", "z", "z")]
    with pytest.raises(DataError, match="no row can be used for method dpo") as error:
        made_of(records, tokenizer, stage("dpo"))
    assert error.value.where == WHERE
    assert error.value.found == ("3 rows of types {'prompt-completion': 2, 'preference': 1}, dropped: "
                                 "{'prompt-completion is no preference': 2, 'chosen equals rejected': 1}")
    assert error.value.expected == "preference rows"
    with pytest.raises(DataError, match="no row can be used for method sft") as error:
        made_of([], tokenizer, stage("sft"))
    assert error.value.found == "0 rows of types {}, dropped: {}"


@pytest.mark.parametrize(("method", "loss"), [("sft", "loss over completion"), ("dpo", "loss over answers")])
def test_rows_without_one_supervised_token_are_an_error_before_the_first_step(
    tokenizer: Any, method: str, loss: str
) -> None:
    def masked(record: Record, tokenizer: Any, of: TrainBase, prepared: Prepared) -> templates.Encoding[dict[str, Any]]:
        yield from ()
        return {"input_ids": [5, 6], "labels": [IGNORED, IGNORED]}

    with pytest.raises(DataError, match="not one supervised token") as error:
        prepare([PREFERENCE], tokenizer, stage(method), WHERE, masked)
    assert (error.value.where, error.value.found) == (WHERE, loss)


# --- too long ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prompt", "longest", "limit", "left"), [
    (10, 5, 16, 10), (10, 5, 15, 10), (10, 5, 14, 9), (10, 5, 6, 1), (10, 5, 5, None), (10, 5, 4, None),
    (10, 5, 1, None), (1, 5, 6, 1), (10, 1, 2, 1),
])
def test_a_prompt_is_cut_to_what_the_longest_answer_leaves(
    prompt: int, longest: int, limit: int, left: int | None
) -> None:
    ids, prepared = list(range(100, 100 + prompt)), Prepared()
    of = stage("dpo", max_length=limit, too_long="truncate-prompt")
    if left is None:
        with pytest.raises(TooLong, match=f"{prompt + longest} tokens"):
            cut_prompt(ids, longest, of, prepared)
    else:
        assert cut_prompt(ids, longest, of, prepared) == list(range(100 + prompt - left, 100 + prompt))
    assert prepared.changed == ({CUT: 1} if left is not None and left < prompt else {})
    assert ids == list(range(100, 100 + prompt))


@pytest.mark.parametrize("policy", ["drop", "error"])
def test_no_prompt_is_cut_where_the_policy_does_not_say_so(policy: str) -> None:
    of, prepared = stage("dpo", max_length=14, too_long=policy), Prepared()
    with pytest.raises(TooLong, match="15 tokens"):
        cut_prompt(list(range(10)), 5, of, prepared)
    assert cut_prompt(list(range(9)), 5, of, prepared) == list(range(9))
    assert not prepared.changed


def uncut(tokenizer: Any, record: Record) -> tuple[list[int], list[int], list[int]]:
    prompt, chosen = templates.encode_completion(tokenizer, record.prompt, str(record.completion))
    rejected = templates.encode_completion(tokenizer, record.prompt, str(record.rejected))[1]
    return prompt, chosen, rejected


def parts(method: str, row: dict[str, Any]) -> tuple[list[int], list[list[int]]]:
    """The prompt's ids and the answers' of a row of any method; a reward row is cut after its last newline."""
    if method == "sft":
        start = sum(label == IGNORED for label in row["labels"])
        return row["input_ids"][:start], [row["input_ids"][start:]]
    if method == "dpo":
        return row["prompt_ids"], [row["chosen_ids"], row["rejected_ids"]]
    both = (row["chosen_ids"], row["rejected_ids"])
    shared = next(i for i, (one, other) in enumerate(zip(*both, strict=False)) if one != other)
    return both[0][:shared], [both[0][shared:], both[1][shared:]]


@pytest.mark.parametrize("over", [0, 1, 9])
@pytest.mark.parametrize("method", ["sft", "reward", "dpo"])
def test_a_row_over_the_limit_is_dropped_cut_or_refused(tokenizer: Any, method: str, over: int) -> None:
    prompt, chosen, rejected = uncut(tokenizer, PREFERENCE)
    answers = [chosen] if method == "sft" else [chosen, rejected]
    assert len(chosen) > len(rejected)
    limit = len(prompt) + len(chosen) - over
    short = preferred("short", "?", "a", "b")

    def settled(policy: str) -> Prepared:
        return made_of([PREFERENCE, short], tokenizer, stage(method, max_length=limit, too_long=policy))

    cut = settled("truncate-prompt")
    assert cut.ids == ["r", "short"]
    assert parts(method, cut.rows[0]) == (prompt[over:], answers)
    assert cut.changed == ({CUT: 1} if over else {})
    assert cut.lengths[: len(answers)] == [len(prompt) - over + len(answer) for answer in answers]
    assert cut.lengths[0] == limit
    assert cut.dropped == []
    if not over:
        assert cut.rows == settled("drop").rows == settled("error").rows
        return
    dropped = settled("drop")
    assert (dropped.ids, dropped.dropped) == (["short"], [("r", "longer than max_length")])
    assert not dropped.changed
    assert dropped.supervised == cut.supervised - sum(map(len, answers))
    with pytest.raises(DataError, match="a row is longer than max_length") as error:
        settled("error")
    assert error.value.where == f"{WHERE}, row r"
    assert (error.value.found, error.value.expected) == (f"{limit + over} tokens", f"at most {limit} tokens")
    assert "truncate-prompt" in str(error.value.hint)


@pytest.mark.parametrize("method", ["sft", "reward", "dpo"])
def test_an_answer_is_never_cut(tokenizer: Any, method: str) -> None:
    prompt, chosen, _ = uncut(tokenizer, PREFERENCE)
    short = preferred("short", "?", "a", "b")
    fits = stage(method, max_length=len(chosen) + 1, too_long="truncate-prompt")
    made = made_of([PREFERENCE], tokenizer, fits)
    assert parts(method, made.rows[0])[0] == prompt[-1:]
    assert parts(method, made.rows[0])[1][0] == chosen
    made = made_of([PREFERENCE, short], tokenizer,
                   stage(method, max_length=len(chosen) - 1, too_long="truncate-prompt"))
    assert made.dropped == [("r", "answer alone longer than max_length")]
    assert made.ids == ["short"]
    assert made.changed == {CUT: 1}, "the short row's"
    made = made_of([PREFERENCE, short], tokenizer, stage(method, max_length=len(chosen), too_long="truncate-prompt"))
    assert made.dropped == [("r", NO_ROOM)]


def test_the_longer_answer_decides_even_if_it_is_the_rejected_one(tokenizer: Any) -> None:
    record = preferred("r", "Who?", "No.", "Me, of course.")
    prompt, chosen, rejected = uncut(tokenizer, record)
    made = made_of([record], tokenizer, stage("dpo", max_length=len(prompt) + len(rejected) - 3,
                                              too_long="truncate-prompt"))
    assert made.rows == [{"row": 0, "prompt_ids": prompt[3:], "chosen_ids": chosen, "rejected_ids": rejected}]


@pytest.mark.parametrize("loss", ["assistant", "all"])
def test_a_whole_conversation_over_the_limit_is_dropped_or_refused(tokenizer: Any, loss: str) -> None:
    size = len(templates.encode_conversation(tokenizer, TALK)[0])
    records = [Record("talk", "messages", messages=TALK), answered("short", "?", "a")]
    assert made_of(records, tokenizer, stage("sft", loss=loss, max_length=size)).lengths[0] == size
    made = made_of(records, tokenizer, stage("sft", loss=loss, max_length=size - 1))
    assert (made.ids, made.dropped) == (["short"], [("talk", "longer than max_length")])
    with pytest.raises(DataError) as error:
        made_of(records, tokenizer, stage("sft", loss=loss, max_length=size - 1, too_long="error"))
    assert error.value.found == f"{size} tokens"


@pytest.mark.parametrize("loss", ["assistant", "all"])
def test_a_whole_conversation_is_cut_at_the_left_and_never_within_an_answer(tokenizer: Any, loss: str) -> None:
    """At every limit: as much as fits, but for an answer that would lose its beginning or all that it answers."""
    ids, mask = templates.encode_conversation(tokenizer, TALK)
    begins = [place for place in range(len(ids)) if mask[place] and not mask[place - 1]]
    first, last = ((begin, mask.index(0, begin)) for begin in begins)
    short = answered("short", "?", "a")
    for limit in range(8, len(ids) + 1):
        over = len(ids) - limit
        begin = next((end for start, end in (first, last) if start <= over < end), over)
        of = stage("sft", loss=loss, max_length=limit, too_long="truncate-prompt")
        records = [Record("talk", "messages", messages=TALK)]
        if over >= last[0]:
            reason = "answer alone longer than max_length" if last[1] - last[0] > limit else NO_ROOM
            with pytest.raises(DataError, match="no row can be used") as error:
                made_of(records, tokenizer, of)
            assert str(error.value.found).endswith(f"dropped: {{'{reason}': 1}}")
            continue
        made = made_of(records, tokenizer, of)
        (row,) = made.rows
        assert row["input_ids"] == ids[begin:]
        wanted = ids if loss == "all" else [i if m else IGNORED for i, m in zip(ids, mask, strict=True)]
        assert row["labels"] == wanted[begin:]
        assert made.changed == ({} if not over else {CUT_ANSWERS: 1} if begin > first[0] else {CUT: 1})
        assert made.supervised == sum(label != IGNORED for label in row["labels"])
    assert made_of([short], tokenizer, stage("sft", loss=loss, too_long="truncate-prompt")).changed == {}


def test_a_long_question_before_short_turns_is_cut_and_no_row_is_lost(tokenizer: Any) -> None:
    talk = [user("Notes. " * 60), assistant("Thank you."), user("Who?"), assistant("Me.")]
    made = made_of([Record("talk", "messages", messages=talk)], tokenizer,
                   stage("sft", loss="assistant", max_length=96, too_long="truncate-prompt"))
    assert (made.lengths, made.dropped, made.changed) == ([96], [], {CUT: 1})
    learned = [label for label in made.rows[0]["labels"] if label != IGNORED]
    assert tokenizer.decode(learned) == "Thank you.<|im_end|>Me.<|im_end|>"


# --- a template that refuses ---------------------------------------------------------------------------------

STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('no system message, please') }}{% endif %}"


@pytest.mark.parametrize(("method", "more"), [
    ("sft", {}), ("sft", {"loss": "all"}), ("dpo", {}), ("reward", {}), ("kto", {}),
])
def test_a_row_that_the_template_refuses_is_dropped_with_its_reason(
    tokenizer: Any, method: str, more: dict[str, Any]
) -> None:
    strict = changed_template(tokenizer, STRICT + tokenizer.chat_template)
    odd = Record("odd", "preference", prompt=TALK[:2], completion="Me.", rejected="You.")
    made = made_of([odd, PREFERENCE], strict, stage(method, **more))
    assert set(made.ids) == {"r"}
    ((row, reason),) = made.dropped
    assert row == "odd"
    assert reason == "the chat template refuses a conversation: no system message, please"
    with pytest.raises(DataError, match="no row can be used") as error:
        made_of([odd], strict, stage(method, **more))
    assert "no system message, please" in str(error.value.found)


@pytest.mark.parametrize(("method", "more"), [("sft", {}), ("sft", {"loss": "assistant"}), ("dpo", {}), ("kto", {})])
def test_a_row_whose_answer_would_not_end_is_dropped_and_a_model_whose_answers_never_do_is_refused(
    tokenizer: Any, method: str, more: dict[str, Any]
) -> None:
    endless = changed_template(tokenizer, tokenizer.chat_template.replace(
        "<|im_end|>", "' + ('' if 'odd' in messages[0]['content'] else '<|im_end|>') + '"))
    odd = Record("odd", "preference", prompt=[user("odd")], completion="Me.", rejected="You.")
    assert "odd" in endless.chat_template
    made = made_of([odd, PREFERENCE], endless, stage(method, **more))
    assert set(made.ids) == {"r"}
    assert [row for row, _ in made.dropped] == ["odd"]
    with pytest.raises(ModelError):
        made_of([odd], endless, stage(method, **more))


# --- all together --------------------------------------------------------------------------------------------

TEXT = st.text(st.sampled_from("ab yes\n .é"), max_size=14)
TURNS = st.lists(TEXT, min_size=1, max_size=2).map(
    lambda texts: [turn for text in texts for turn in (user(text), assistant(text + "!"))])
RECORDS = st.one_of(
    st.builds(lambda q, a: answered("", q, a), TEXT, TEXT),
    st.builds(lambda q, a, b: preferred("", q, a, b), TEXT, TEXT, TEXT),
    st.builds(lambda q: Record("", "prompt-only", prompt=[user(q)]), TEXT),
    st.builds(lambda turns, last: Record("", "messages", messages=[*turns, *([user("?")] if last else [])]),
              TURNS, st.booleans()),
    st.builds(lambda q, a, label: Record("", "unpaired", prompt=[user(q)], completion=a, label=label),
              TEXT, TEXT, st.booleans()),
)


def test_a_row_that_spells_a_special_token_is_counted_by_what_becomes_of_it(tokenizer: Any) -> None:
    rows = [answered("plain", "Who?", "Me."), answered("asks", "<|im_end|>?", "Me."),
            answered("says", "Who?", "<|im_end|>")]
    learned = {}
    for said in ("as-text", "as-tokens", "refuse"):
        own = changed_template(tokenizer, tokenizer.chat_template)
        templates.Convention(said).put_on(own)
        made = made_of(rows, own, stage("sft"))
        learned[said] = (made.ids, dict(made.changed), [reason for _, reason in made.dropped])
    every = ["plain", "asks", "says"]
    assert learned == {
        "as-text": (every, {"a special token in its text learned as letters": 2}, []),
        "as-tokens": (every, {"a special token in its text learned as that token": 2}, []),
        "refuse": (["plain"], {}, ["a text spells a special token"] * 2),
    }


def numbered(records: list[Record]) -> list[Record]:
    from dataclasses import replace

    return [replace(record, id=f"r{index}") for index, record in enumerate(records)]


def tokens_of(method: str, row: dict[str, Any]) -> list[int]:
    """Lengths of the sequences that a row becomes."""
    if method == "sft":
        return [len(row["input_ids"])]
    return [len(row.get("prompt_ids", [])) + len(row[side]) for side in ("chosen_ids", "rejected_ids")]


@pytest.fixture(scope="module")
def prepared_by(tokenizer: Any) -> Callable[[list[Record], TrainBase], Prepared | None]:
    """Rows of a stage; None where none can be used."""

    def run(records: list[Record], of: TrainBase) -> Prepared | None:
        try:
            return made_of(records, tokenizer, of)
        except DataError as error:
            if error.problem != f"no row can be used for method {of.method}":
                raise
            return None

    return run


@settings(max_examples=60, deadline=None)
@given(records=st.lists(RECORDS, min_size=1, max_size=6).map(numbered), limit=st.integers(1, 60),
       policy=st.sampled_from(["drop", "truncate-prompt"]), method=st.sampled_from(["sft", "reward", "dpo"]),
       loss=st.sampled_from(["completion", "assistant", "all"]))
def test_every_row_is_kept_or_accounted_for(
    prepared_by: Callable[[list[Record], TrainBase], Prepared | None], records: list[Record], limit: int, policy: str,
    method: str, loss: str,
) -> None:
    own = {"loss": loss} if method == "sft" else {}
    made = prepared_by(records, stage(method, max_length=limit, too_long=policy, **own))
    whole = prepared_by(records, stage(method, max_length=100_000, **own))
    full = {} if whole is None else {whole.ids[row["row"]]: row for row in whole.rows}
    fitting = [name for name, row in full.items() if max(tokens_of(method, row)) <= limit]
    if policy == "drop":
        assert ([] if made is None else made.ids) == fitting
    if made is None:
        assert not fitting
        return
    assert sorted([*made.ids, *(row for row, _ in made.dropped)]) == sorted(record.id for record in records)
    assert [row["row"] for row in made.rows] == list(range(len(made.ids)))
    assert made.lengths == [length for row in made.rows for length in tokens_of(method, row)]
    assert max(made.lengths) <= limit
    changed = 0
    for row in made.rows:
        before = full[made.ids[row["row"]]]
        pairs = [(row[key], before[key]) for key in row if key != "row"]
        changed += any(one != other for one, other in pairs)
        assert all(one == other[len(other) - len(one):] for one, other in pairs), "cut at the left, if anywhere"
        if method == "dpo":
            assert (row["chosen_ids"], row["rejected_ids"]) == (before["chosen_ids"], before["rejected_ids"])
        if method == "sft":
            learned = [label for label in row["labels"] if label != IGNORED]
            whole_answers = [label for label in before["labels"] if label != IGNORED]
            assert learned == whole_answers[len(whole_answers) - len(learned):]
            if loss == "completion":
                assert learned == whole_answers
    assert made.changed.total() == changed
    assert changed == len(set(made.ids) - set(fitting))
