"""An engine of the tests' own: answers by a function of the prompt, and remembers what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

from alignment.inference.requests import Completion, Item, Request
from alignment.records import Message

Answer = Callable[[Request], tuple[str, bool]]
"""Request -> (text, whether it ended by itself)."""


class Scripted:
    """A `Generator` whose answers are scripted. A prompt's words are its tokens."""

    def __init__(self, answer: Answer, stop_after: int | None = None) -> None:
        self.answer, self.stop_after = answer, stop_after
        self.asked: list[str] = []

    @property
    def made_by(self) -> dict[str, str]:
        return {"engine": "scripted"}

    @property
    def ahead(self) -> bool:
        return False

    def begin(self, requests: Sequence[Request]) -> None: ...

    def load(self) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...

    def prompt_tokens(self, prompt: list[Message]) -> int:
        return len(prompt[-1]["content"].split())

    def answer_tokens(self, prompt: list[Message], answer: str) -> int:
        return len(answer.split())

    def generate(
        self, requests: Sequence[Request], on_progress: Callable[[int], None] | None = None
    ) -> list[list[Completion]]:
        if self.stop_after is not None and len(self.asked) + len(requests) > self.stop_after:
            raise KeyboardInterrupt
        self.asked += [request.id for request in requests]
        answers = [self.answer(request) for request in requests]
        return [[Completion(text, [0] * len(text.split()), finished)] for text, finished in answers]

    def log_probs(self, items: Sequence[Item]) -> list[tuple[float, int]]:
        raise NotImplementedError


VERBS = ("Describe", "Compare", "Invent", "Explain", "Rewrite", "Summarise", "Translate", "Criticise")
NOUNS = ("ferry", "lighthouse", "orchard", "violin", "glacier", "bakery", "senate", "comet", "pharmacy", "desert",
         "loom")


def good_teacher(request: Request) -> tuple[str, bool]:
    """Answers as one would wish: three new tasks, No, and an example in the form that is asked for."""
    if request.id.endswith("-kind"):
        return "No", True
    if request.id.endswith("-examples"):
        return f"Example 1\nInput: the {request.id}\nOutput: said about {request.id}", True
    number = sum(map(ord, request.id)) + 7 * len(request.id)
    return "\n".join(
        f"{9 + index}. {VERBS[(number + index) % 8]} the {NOUNS[(number * 3 + index) % 11]} beside a "
        f"{NOUNS[(number + 5 * index) % 11]} for {VERBS[(number * 5 + 3 * index) % 8].lower()}rs of {request.id} "
        f"{index}"
        for index in range(3)), True


class SeveralAnswers(Scripted):
    """The same with an answer to each draw of a request: (request, index of the draw) -> (text, whether it ended)."""

    def __init__(self, answer: Callable[[Request, int], tuple[str, bool]], stop_after: int | None = None) -> None:
        super().__init__(lambda request: ("", True), stop_after)
        self.each = answer
        self.prompts: list[str] = []

    def generate(
        self, requests: Sequence[Request], on_progress: Callable[[int], None] | None = None
    ) -> list[list[Completion]]:
        super().generate(requests)
        self.prompts += [request.prompt[-1]["content"] for request in requests]
        answers = [[self.each(request, index) for index in range(len(request.draws))] for request in requests]
        return [[Completion(text, [0] * len(text.split()), finished) for text, finished in own] for own in answers]
