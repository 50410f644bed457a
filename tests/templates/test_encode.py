"""Training ids are inference ids: properties of every shipped template, and refusals."""

from __future__ import annotations

import functools

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from alignment import templates
from alignment.errors import DataError, ModelError
from tests.templates.tokenizers import FAMILIES, small

TEXT = st.text(st.sampled_from("ab yes\n\n\n  .#é東🙂\t:"), max_size=24)
NO_MARKERS = ("{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
              "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")


@functools.cache
def ready(name: str):
    tokenizer = small(name)
    tokenizer.chat_template = templates.fitted(name, tokenizer)
    return tokenizer


def user(text: str):
    return {"role": "user", "content": text}


def assistant(text: str):
    return {"role": "assistant", "content": text}


def rendered(name: str, answer: str) -> str:
    """What the maker's format makes of an answer, end token included."""
    end, cut = FAMILIES[name][2], answer.rstrip(" ")
    return {
        "llama2": f" {answer.strip()} {end}", "llama3": answer.strip() + end,
        "retrieval": f" {answer}{end}", "mistral-v1": (f" {answer}" if answer else "") + end,
        **dict.fromkeys(("mistral", "mistral-v7"), (f" {cut}" if cut else "") + end),
        **dict.fromkeys(("mistral-tekken", "mistral-v7-tekken"), cut + end),
    }.get(name, answer + end)


@pytest.mark.parametrize("name", templates.names())
@settings(max_examples=60, deadline=None)
@given(questions=st.lists(TEXT, min_size=1, max_size=3), answers=st.lists(TEXT, min_size=3, max_size=3),
       system=st.none() | TEXT)
def test_a_prompt_is_a_prefix_and_the_mask_is_the_answers(name, questions, answers, system) -> None:
    tokenizer = ready(name)
    answers = answers[: len(questions)]
    start = [] if system is None else [{"role": "system", "content": system}]
    turns = [turn for pair in zip(map(user, questions), map(assistant, answers), strict=True) for turn in pair]
    messages = [*start, *turns]
    ids, mask = templates.encode_conversation(tokenizer, messages)
    assert len(ids) == len(mask)
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(messages, tokenize=False)
    prompt, answer = templates.encode_completion(tokenizer, messages[:-1], answers[-1])
    assert prompt == templates.encode_prompt(tokenizer, messages[:-1])
    assert ids[: len(prompt) + len(answer)] == prompt + answer
    assert mask[len(prompt):] == [1] * len(answer) + [0] * (len(ids) - len(prompt) - len(answer))
    assert answer[-1] == tokenizer.eos_token_id
    assert answer[-1] in templates.stop_ids(tokenizer)
    spans, run = [], []
    for index, learned in zip([*ids, -1], [*mask, 0], strict=True):
        if learned:
            run.append(index)
        elif run:
            # After a token that is no blank, since a tokenizer of SentencePiece's kind takes the first blank away.
            spans.append(tokenizer.decode([tokenizer.eos_token_id, *run]).removeprefix(tokenizer.eos_token))
            run = []
    assert spans == [rendered(name, text) for text in answers]
    # Mistral moves the system message to the newest question.
    assume(name not in ("mistral", "mistral-tekken") or system is None)
    for turn in range(1, len(turns), 2):
        early = templates.encode_prompt(tokenizer, [*start, *turns[:turn]])
        assert ids[: len(early)] == early
        assert mask[len(early)] == 1


@pytest.mark.parametrize("name", templates.names())
def test_one_bos_where_the_maker_wants_one(name: str) -> None:
    tokenizer = ready(name)
    ids = templates.encode_prompt(tokenizer, [user("yes or no")])
    if FAMILIES[name][1] is None:
        assert tokenizer.bos_token_id is None
        assert tokenizer.decode(ids[:1]) in ("<|im_start|>", "s", "system")
    else:
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize(("name", "family", "count"), [
    ("alpaca", "chatml", 0), ("llama2", "smollm", 0), ("llama2", "qwen", 0), ("alpaca", "llama2", 1),
])
def test_a_template_is_fitted_to_the_tokenizers_bos(name: str, family: str, count: int) -> None:
    """A foreign template gets or loses its BOS by what the tokenizer's maker does with plain text."""
    tokenizer = small(family)
    if family == "smollm":
        tokenizer.bos_token = "<|im_start|>"  # as SmolLM2's maker calls it, though it adds none
    text = templates.fitted(name, tokenizer)
    assert templates.name_of(text) == name
    shown = tokenizer.apply_chat_template([user("x")], chat_template=text, tokenize=False)
    assert shown.count(tokenizer.bos_token or "<s>") == count


def test_smollm_bos_is_no_second_token() -> None:
    """SmolLM2 calls <|im_start|> its BOS and adds none: the prompt begins with exactly one."""
    tokenizer = small("smollm")
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.chat_template = templates.fitted("smollm", tokenizer)
    ids = templates.encode_prompt(tokenizer, [user("x")])
    assert tokenizer.chat_template == templates.source("smollm")
    assert ids[:2].count(tokenizer.bos_token_id) == 1


def test_without_markers_answers_can_be_learned_but_not_conversations() -> None:
    tokenizer = small("chatml")
    tokenizer.chat_template = NO_MARKERS
    prompt, answer = templates.encode_completion(tokenizer, [user("a")], "\n\nyes")
    assert prompt == templates.encode_prompt(tokenizer, [user("a")])
    assert tokenizer.decode(answer) == "\n\nyes<|im_end|>"
    with pytest.raises(ModelError) as error:
        templates.encode_conversation(tokenizer, [user("a"), assistant("b")])
    assert templates.template_hash(NO_MARKERS) in str(error.value)
    assert "template: NAME" in str(error.value)
    assert templates.same_rendering(tokenizer, NO_MARKERS, templates.source("chatml"))


def test_trls_qwen_markers_open_before_the_header_ends() -> None:
    """The newline after `assistant` belongs to the prompt, whatever a template's markers say."""
    from tests.templates.tokenizers import package_file

    tokenizer = small("qwen")
    path = package_file("trl", "chat_templates", "qwen2_5_training.jinja")
    tokenizer.chat_template = path.read_text(encoding="utf-8")
    messages = [user("a"), assistant("\n\nyes")]
    ids, mask = templates.encode_conversation(tokenizer, messages)
    prompt, answer = templates.encode_completion(tokenizer, messages[:1], "\n\nyes")
    assert ids[: len(prompt) + len(answer)] == prompt + answer
    assert mask == [0] * len(prompt) + [1] * len(answer) + [0] * (len(ids) - len(prompt) - len(answer))


@pytest.mark.parametrize(("template", "match"), [
    ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "ends no answer with a special token"),
    ("{% for m in messages %}{{ messages|length ~ m.content }}<|im_end|>{% endfor %}", "renders a prompt differently"),
])
def test_a_template_that_cannot_be_learned_is_refused(template: str, match: str) -> None:
    tokenizer = small("chatml")
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match=match):
        templates.encode_completion(tokenizer, [user("a")], "b")


def test_refused_roles_are_the_datas_fault() -> None:
    with pytest.raises(DataError, match="alternate") as error:
        templates.encode_prompt(ready("mistral"), [user("a"), user("b")])
    assert error.value.found == ["user", "user"]


def test_no_template_at_all() -> None:
    with pytest.raises(ModelError, match="no chat template"):
        templates.encode_prompt(small("chatml"), [user("a")])


def test_names_sources_and_hash() -> None:
    assert set(templates.names()) == set(FAMILIES) == set(templates.shipped())
    assert all(templates.has_generation_markers(templates.source(name)) for name in templates.names())
    assert len({templates.template_hash(templates.source(name)) for name in templates.names()}) == len(FAMILIES)
    assert templates.template_hash("x") == "2d711642b726b044"
    assert templates.name_of("{{ messages }}") == "own"
    with pytest.raises(ModelError, match="no chat template has this name") as error:
        templates.source("chatlm")
    assert "chatml" in str(error.value)
