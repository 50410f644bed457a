"""Many rows at once, and only what is behind a control token anew: the ids and the errors of one row after another."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment import templates
from alignment.errors import DataError, KubeAlignError
from alignment.templates.encode import _control
from tests.templates import shapes, test_encode
from tests.templates.test_encode import assistant, user

TEXT = st.lists(st.sampled_from(
    ["a", "b", " yes", "\n", "\n\n", " ", ".", "#", "é", "東", "🙂", "\t", "<|im_end|>", "<|im_start|>", "</s>", "<s>",
     "[INST]", "[/INST]", "<|eot_id|>", "<|end_header_id|>"]), max_size=8).map("".join)


def ready(name: str) -> Any:
    """A tokenizer with a shipped template, or of a maker's family with its own."""
    return test_encode.ready(name) if name in templates.names() else shapes.ready(name)[0]


@functools.cache
def plodding(name: str) -> Any:
    """The same tokenizer, which encodes every text whole, by itself and through transformers."""
    tokenizer = copy.deepcopy(ready(name))
    _slow(tokenizer)
    return tokenizer


def _slow(tokenizer: Any) -> None:
    _control(tokenizer, tokenizer.get_chat_template()).__dict__.update(apart=False, _bare=False)


def outcome(call: Any) -> Any:
    """What a call gives, or the error that it raises."""
    try:
        return call()
    except KubeAlignError as error:
        return str(error)


@pytest.mark.parametrize("name", sorted({*templates.names(), *shapes.NAMES}))
@settings(max_examples=20, deadline=None)
@given(talks=st.lists(st.tuples(st.none() | TEXT, st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3)),
                      min_size=1, max_size=4))
def test_a_batch_has_the_ids_of_whole_texts_encoded_one_by_one(name: str, talks: list[Any]) -> None:
    tokenizer, slow = ready(name), plodding(name)
    _slow(slow)  # the cache of the tokenizer's control tokens is small
    assert _control(tokenizer, tokenizer.get_chat_template())._bare
    conversations = [
        [*([] if system is None else [{"role": "system", "content": system}]),
         *(turn for asked, said in turns for turn in (user(asked), assistant(said)))] for system, turns in talks]
    for steps, one in (
        (templates.conversing, templates.encode_conversation),
        (lambda tokenizer, talk: templates.prompting(tokenizer, talk[:-1]),
         lambda tokenizer, talk: templates.encode_prompt(tokenizer, talk[:-1])),
        (lambda tokenizer, talk: templates.completing(tokenizer, talk[:-1], talk[-1]),
         lambda tokenizer, talk: templates.encode_completion(tokenizer, talk[:-1], talk[-1])),
    ):
        together = templates.together(tokenizer, [steps(tokenizer, talk) for talk in conversations])
        assert [outcome(call) for call in together] == [
            outcome(functools.partial(one, slow, talk)) for talk in conversations]


@pytest.mark.parametrize("name", ["chatml", "smollm", "qwen"])
def test_only_what_is_behind_a_control_token_is_encoded_again(name: str) -> None:
    control, prompt = _control(ready(name), ready(name).get_chat_template()), [user("a long question " * 20)]
    assert control.apart
    steps = templates.completing(ready(name), prompt, "Yes.")
    wanted = next(steps)
    assert [text.count("question") for text, _ in wanted] == [0, 20]
    with pytest.raises(StopIteration) as end:
        steps.send(control.encode(wanted))
    assert end.value.value == templates.encode_completion(plodding(name), prompt, "Yes.")


@pytest.mark.parametrize("change", ["lstrip", "rstrip", "normalized", "single_word"])
def test_a_control_token_that_looks_beside_it_is_encoded_with_all_before_it(change: str) -> None:
    from tokenizers import AddedToken

    tokenizer = copy.deepcopy(ready("chatml"))
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|beside|>", **{change: True})]})
    assert not _control(tokenizer, tokenizer.get_chat_template()).apart
    talk = [user("a  b"), assistant("c")]
    assert templates.encode_conversation(tokenizer, talk) == templates.encode_conversation(ready("chatml"), talk)


def test_errors_come_in_the_turn_of_their_row() -> None:
    tokenizer, order = ready("llama2"), list[Any]()
    talks = [[user("a"), assistant("b")], [assistant("x"), assistant("y")], [user("c"), assistant("d")]]
    for call in templates.together(tokenizer, [templates.conversing(tokenizer, talk) for talk in talks]):
        order.append(outcome(call))
    assert [isinstance(made, str) for made in order] == [False, True, False]
    assert order[2] == templates.encode_conversation(tokenizer, talks[2])


def test_several_steps_of_a_row_ask_at_once_and_fail_as_one_would() -> None:
    tokenizer = ready("chatml")
    both = templates.gather([templates.completing(tokenizer, [user("q")], text) for text in ("a", "\nb")])
    wanted = next(both)
    assert len(wanted) == 4
    (call,) = templates.together(tokenizer, [templates.gather(
        [templates.completing(tokenizer, [user("q")], text) for text in ("a", "\nb")])])
    assert call() == [templates.encode_completion(tokenizer, [user("q")], text) for text in ("a", "\nb")]
    (call,) = templates.together(tokenizer, [templates.gather(
        [templates.completing(ready("llama2"), [assistant("q")], text) for text in ("a", "b")])])
    with pytest.raises(DataError):
        call()
