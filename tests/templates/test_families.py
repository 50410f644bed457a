"""A model that always answers rightly is right under every family's template, and stops where its maker says."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

from alignment import templates
from alignment.errors import DataError, ModelError
from alignment.inference.engine import Engine
from alignment.inference.requests import Draw, Request
from alignment.rewards import exact_match
from alignment.sampling.answers import Answer
from tests.templates.shapes import NAMES, SHAPES, ready
from tests.templates.tokenizers import package_file

SPELLED = ("</s>", "<s>", "[INST]", "[/INST]", "<|im_end|>", "<|im_start|>", "<|eot_id|>", "<|end|>", "<end_of_turn>",
           "<|end_of_text|>", "<|END_OF_TURN_TOKEN|>", "<｜User｜>", "<|endoftext|>", "<eos>", "<unk>")
LETTERS = ["a", "b", "yes", " ", "  ", "\n", "é", "東", "🙂", ".", "<", "|", ">", "<|", "[", *SPELLED]
TEXT = st.lists(st.sampled_from(LETTERS), max_size=8).map("".join)
SAID = TEXT.map(str.strip).filter(bool)
"""Answers without outer blanks, which some templates take away."""


class Oracle(LlamaForCausalLM):
    """A model that knows, for each prompt, the tokens that its template teaches as the answer. One prompt at a time."""

    answers: dict[tuple[int, ...], list[int]]

    def forward(self, input_ids: Any = None, **given: Any) -> Any:
        out = super().forward(input_ids=input_ids, **given)
        if input_ids.shape[1] > 1:
            self.left = list(self.answers[tuple(input_ids[0].tolist())])
        logits = torch.zeros_like(out.logits)
        logits[:, -1, self.left.pop(0)] = 99.0
        return SimpleNamespace(logits=logits)


@cache
def oracle(name: str) -> Engine:
    tokenizer, _ = ready(name)
    model = Oracle(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=4096)).eval()
    return Engine(model, tokenizer)


def asked(name: str, prompt: list[dict[str, str]], text: str) -> Any:
    engine = oracle(name)
    before, said = templates.encode_completion(engine.tokenizer, prompt, text)
    engine.model.answers = {tuple(before): said}
    (completion,), = engine.generate([Request("row", prompt, (Draw(temperature=0.0, max_new_tokens=len(said) + 9),))])
    return completion


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["Yes.", "two\n\n  lines, é東🙂", "a </s><|im_end|>[/INST] b<end_of_turn>"])
def test_a_model_that_answers_rightly_scores_one(name: str, text: str) -> None:
    said = asked(name, [user("a"), assistant("b"), user("Which?")], text)
    assert (said.text, said.finished) == (text, True)
    assert Answer("row", "newest", 0, said.text, len(said.ids), said.finished, score=1.0).learnable
    assert exact_match(said.text, [text]) == 1.0


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15)
@given(question=TEXT, early=SAID, text=SAID)
def test_a_right_answer_is_right_to_the_letter(name: str, question: str, early: str, text: str) -> None:
    tokenizer, end = ready(name)
    for prompt in ([user(question)], [user("a"), assistant(early), user(question)]):
        before, answer = templates.encode_completion(tokenizer, prompt, text)
        assert before == templates.encode_prompt(tokenizer, prompt)
        assert answer[-1] == tokenizer.convert_tokens_to_ids(end) == templates.end_id(tokenizer)
        assert answer[-1] in templates.stop_ids(tokenizer)
        assert not set(answer[:-1]) & set(templates.stop_ids(tokenizer)), "an answer would end before its end"
        assert templates.decode_answer(tokenizer, answer[:-1]) == text
        measured_before, measured = templates.encode_answer(tokenizer, prompt, text)
        assert measured_before + measured == before + answer
        assert tokenizer.decode(measured, skip_special_tokens=True).strip() == text


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15)
@given(system=TEXT, question=TEXT)
def test_a_message_writes_no_control_token(name: str, system: str, question: str) -> None:
    """Whatever is asked, the special tokens of a prompt are those of a harmless one."""
    tokenizer, _ = ready(name)
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    special -= {tokenizer.convert_tokens_to_ids("<unk>")}

    def marks(*messages: dict[str, str]) -> list[int]:
        return [index for index in templates.encode_prompt(tokenizer, list(messages)) if index in special]

    assert marks(user(question)) == marks(user("x"))
    try:
        wanted = marks({"role": "system", "content": "x"}, user("x"))
    except DataError:
        return  # a family without system messages
    assert marks({"role": "system", "content": system}, user(question)) == wanted


@pytest.mark.parametrize("name", SHAPES)
def test_generation_stops_on_the_makers_tokens_too(name: str) -> None:
    tokenizer, end = ready(name)
    wanted = {*SHAPES[name].stops, end, tokenizer.eos_token}
    assert wanted <= set(tokenizer.convert_ids_to_tokens(templates.stop_ids(tokenizer)))


@pytest.mark.parametrize("name", ["qwen3", "qwen3, special marks", "think"])
def test_an_empty_block_of_reasoning_is_no_part_of_an_answer(name: str) -> None:
    tokenizer, _ = ready(name)
    answer = templates.encode_completion(tokenizer, [user("a")], "Yes.")[1]
    assert tokenizer.decode(answer) == "<think>\n\n</think>\n\nYes.<|im_end|>", "it is learned"
    assert tokenizer.decode(templates.encode_answer(tokenizer, [user("a")], "Yes.")[1]) == "Yes.<|im_end|>"

    def said(text: str) -> str:
        return templates.decode_answer(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])

    assert said("<think>\n\n</think>\n\nYes.") == said("Yes.") == "Yes."
    assert said("<think>\n\n</think>\n\n  Yes.") == "  Yes.", "blanks of the answer stay"
    if name != "qwen3, special marks":  # whose first mark is left out of every text, as special tokens are
        assert said("<think></think>Yes.") == "Yes.", "other blanks within the block make no answer"
        thought = "<think>\nHm.\n</think>\n\nYes."
        assert said(thought) == thought, "that is the model's own"


def test_what_is_cut_keeps_what_it_said() -> None:
    tokenizer, _ = ready("shipped llama2")
    ids = tokenizer(" a b ", add_special_tokens=False)["input_ids"]
    assert templates.decode_answer(tokenizer, ids, finished=True) == "a b"
    assert templates.decode_answer(tokenizer, ids, finished=False) == "a b "


@pytest.mark.parametrize(("spelled", "refused"), [("<|im_end|>", True), ("<|im_end", False), ("<think>", False)])
def test_a_text_that_spells_a_token_can_be_refused(spelled: str, refused: bool) -> None:
    tokenizer = SHAPES["qwen3"].tokenizer()
    templates.Convention("refuse").put_on(tokenizer)
    for prompt, answer in (([user(spelled)], "x"), ([user("x")], spelled)):
        if refused:
            with pytest.raises(DataError, match="spells a special token") as error:
                templates.encode_completion(tokenizer, prompt, answer)
            assert error.value.found == [spelled]
        else:
            assert templates.encode_completion(tokenizer, prompt, answer)


@pytest.mark.parametrize("file", ["deepseekv3.jinja", "deepseek_r1_distill.jinja"])
def test_a_prompt_that_opens_a_thought_which_no_answer_keeps_is_refused(file: str) -> None:
    """DeepSeek-R1's: it asks after `<think>` and writes answers without."""
    tokenizer = SHAPES["deepseek"].tokenizer()
    tokenizer.chat_template = package_file("trl", "chat_templates", file).read_text(encoding="utf-8")
    with pytest.raises(ModelError, match="renders a prompt differently"):
        templates.stop_ids(tokenizer)


def test_a_tokenizer_in_python_keeps_text_as_text_too() -> None:
    tokenizer = ByT5Tokenizer(extra_ids=0)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = templates.source("chatml")
    assert not tokenizer.is_fast
    text = "a<|im_end|></s>é\n"
    ids = templates.encode_prompt(tokenizer, [user(text)])
    marks = set(tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "</s>"]))
    assert [index in marks for index in ids].count(True) == 3
    letters = [byte + 3 for byte in f"user\n{text}".encode()]
    assert ids[1 : 1 + len(letters)] == letters, "ByT5's ids are bytes after three special tokens"


def test_a_special_token_that_a_template_looks_for_is_no_silent_change() -> None:
    """Hidden from the template, it would be rendered as if it were not there."""
    tokenizer = SHAPES["granite"].tokenizer()
    looks = "{% if '<|end_of_text|>' in messages[0]['content'] %}{{ '<|end_of_text|>' }}{% endif %}"
    tokenizer.chat_template = looks + tokenizer.chat_template
    prompt = [user("a<|end_of_text|>b")]
    with pytest.raises(DataError, match="looks for") as error:
        templates.encode_completion(tokenizer, prompt, "Yes.")
    assert "as-tokens" in str(error.value.hint)
    assert templates.encode_completion(tokenizer, [user("ab")], "Yes.")
    templates.Convention("as-tokens").put_on(tokenizer)
    before, _ = templates.encode_completion(tokenizer, prompt, "Yes.")
    assert before.count(tokenizer.eos_token_id) == 3
