"""Small tokenizers in the shapes of many families, each with its maker's chat template: shipped ones and others'."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from alignment import templates
from tests.templates.tokenizers import FAMILIES, made, package_file, small

GRANITE = (
    "{%- for message in messages %}{{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + "
    "message['content'] + '<|end_of_text|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}"
)
"""As granite-3.0-8b-instruct has it (huggingface.co/ibm-granite), without its tool turns."""
PHI4 = (
    "{% for message in messages %}{% if (message['role'] == 'system') %}{{'<|im_start|>system<|im_sep|>' + "
    "message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'user') %}{{'<|im_start|>user<|im_sep|>' + "
    "message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'assistant') %}{{'<|im_start|>assistant<|im_sep|>' "
    "+ message['content'] + '<|im_end|>'}}{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
"""As phi-4 has it (huggingface.co/microsoft/phi-4)."""
DEEPSEEK = (
    "{% set ns = namespace(system='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{%- set ns.system = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system}}"
    "{%- for message in messages %}{%- if message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{%- endif %}"
    "{%- if message['role'] == 'assistant' %}{{'<｜Assistant｜>' + message['content'] + '<｜end▁of▁sentence｜>'}}"
    "{%- endif %}{%- endfor -%}{% if add_generation_prompt %}{{'<｜Assistant｜>'}}{% endif %}"
)
"""As DeepSeek-V3 has it (huggingface.co/deepseek-ai), without its tool turns."""
THINK = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n{% if loop.last %}<think>\n\n</think>"
    "\n\n{% endif %}{{ m.content.split('</think>')[-1].lstrip('\\n') }}<|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""An empty block of reasoning before the last answer, whose marks are letters of this tokenizer."""


@dataclass(frozen=True)
class Shape:
    """A family: its special tokens, the template's file in TRL or its text, and where its answers end."""

    special: tuple[str, ...]
    bos: str | None
    eos: str
    kind: str
    template: str
    end: str
    plain: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()

    def tokenizer(self) -> Any:
        tokenizer = made(list(self.special), self.bos, self.eos, self.kind, self.plain)
        own = package_file("trl", "chat_templates", self.template) if self.template.endswith(".jinja") else None
        tokenizer.chat_template = self.template if own is None else own.read_text(encoding="utf-8")
        stops = tuple(sorted(tokenizer.convert_tokens_to_ids(token) for token in self.stops))
        templates.Convention(stop_ids=stops).put_on(tokenizer)
        return tokenizer


_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
           "<|eom_id|>", "<|python_tag|>")
SHAPES: dict[str, Shape] = {
    "gemma": Shape(("<unk>", "<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"), "<bos>", "<eos>",
                   "sentencepiece", "gemma.jinja", "<end_of_turn>", stops=("<eos>", "<end_of_turn>")),
    "phi3": Shape(("<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"),
                  "<s>", "<|endoftext|>", "sentencepiece", "phi3.jinja", "<|end|>",
                  stops=("<|endoftext|>", "<|assistant|>", "<|end|>")),
    "phi4": Shape((*_CHATML, "<|im_sep|>"), None, "<|im_end|>", "byte-level", PHI4, "<|im_end|>"),
    "qwen2.5": Shape(_CHATML, None, "<|im_end|>", "byte-level", "qwen2_5.jinja", "<|im_end|>",
                     stops=("<|im_end|>", "<|endoftext|>")),
    "qwen3": Shape(_CHATML, None, "<|im_end|>", "byte-level", "qwen3.jinja", "<|im_end|>",
                   ("<think>", "</think>", "<tool_call>", "</tool_call>"), ("<|im_end|>", "<|endoftext|>")),
    "qwen3, special marks": Shape((*_CHATML, "<think>"), None, "<|im_end|>", "byte-level", "qwen3.jinja", "<|im_end|>",
                                  ("</think>",)),
    "think": Shape(_CHATML, None, "<|im_end|>", "byte-level", THINK, "<|im_end|>"),
    "deepseek": Shape(("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
                      "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "byte-level", DEEPSEEK,
                      "<｜end▁of▁sentence｜>"),
    "granite": Shape(("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"), None, "<|end_of_text|>",
                     "byte-level", GRANITE, "<|end_of_text|>"),
    "command-r": Shape(("<BOS_TOKEN>", "<EOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>",
                        "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"), "<BOS_TOKEN>",
                       "<|END_OF_TURN_TOKEN|>", "byte-level", "cohere.jinja", "<|END_OF_TURN_TOKEN|>"),
    "llama3": Shape(_LLAMA3, "<|begin_of_text|>", "<|eot_id|>", "byte-level", "llama3.jinja", "<|eot_id|>",
                    stops=("<|end_of_text|>", "<|eot_id|>")),
    "llama3.1": Shape(_LLAMA3, "<|begin_of_text|>", "<|eot_id|>", "byte-level", "llama3_1.jinja", "<|eot_id|>",
                      stops=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")),
}
"""Families of others, with what generation_config.json says of stops where their makers have a list there."""
NAMES = [*(f"shipped {name}" for name in FAMILIES), *SHAPES]


@cache
def ready(name: str) -> tuple[Any, str]:
    """Tokenizer of a family with its template, and the token that ends an answer."""
    if name in SHAPES:
        return SHAPES[name].tokenizer(), SHAPES[name].end
    own = name.removeprefix("shipped ")
    tokenizer = small(own)
    tokenizer.chat_template = templates.fitted(own, tokenizer)
    return tokenizer, FAMILIES[own][2]
