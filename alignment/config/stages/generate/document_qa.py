"""Questions about passages of documents, and their answers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from alignment.config.prompts import PromptFile
from alignment.config.stages.base import Finding, RowsPlace
from alignment.config.stages.fields import Place, Positive, RowsRef, Strict
from alignment.config.stages.generate.base import Generate, Load, OwnPrompts, Slots, Whole, filled
from alignment.config.stages.sampling import Sampling

Share = Annotated[float, Field(ge=0, le=1)]
Branch = Literal["judgmental", "open"]
MOST_FOR_A_ROW = 8
"""Questions that are asked for to get one row, at most; of a teacher that loses more, a round leaves fewer rows."""


class QuestionLanguage(NamedTuple):
    """What the filters are in a language where a run file leaves them open."""

    min_words: int
    max_words: int
    refusals: tuple[str, ...]
    tokens: Literal["rouge", "words"]


LANGUAGES: dict[str, QuestionLanguage] = {
    # The 1,190 questions of XQuAD have 3 to 30 words in English, 5 to 56 characters in Chinese (xquad.en, xquad.zh).
    "en": QuestionLanguage(3, 60, ("as an ai", "language model", "i'm sorry", "i am sorry", "i cannot", "i can't",
                                   "i do not have access", "i don't have access"), "rouge"),
    "zh": QuestionLanguage(4, 100, ("人工智能助手", "作为一个人工智能", "作为一个AI", "作为AI",
                                    "语言模型", "抱歉", "对不起", "我无法", "我不能"), "words"),
}
"""Language -> the filters' defaults."""


class QuestionFilters(Strict):
    """What a question and its answer must be, in the order in which it is asked. Keys left out are the language's."""

    min_words: Whole | None = None
    """Fewest words of a question (in Chinese, characters): 3 in English, 4 in Chinese."""
    max_words: Positive | None = None
    """Most words of a question (in Chinese, characters): 60 in English, 100 in Chinese."""
    question_mark: bool = True
    """Whether a question must have a question mark. What follows the first one on its line is cut off, and counted."""
    form: bool = True
    """Whether a judgmental question must be one that yes or no answers (Is, Did, Can ...; 吗, 是否, 有没有 ...), and an
    open one must not."""
    own_language: Share = 0.5
    """At least this share of the words of a question, and of an answer that has letters, in the language's script; 0
    asks for none. It tells Chinese from English, and not English from French."""
    reason: bool = True
    """Whether a judgmental answer must give a reason after Yes or No."""
    refusals: tuple[str, ...] | None = None
    """An answer that begins with a sentence which says one of these is refused: `as an AI`, `I cannot`, ... An empty
    list allows all."""
    grounding: Share | None = None
    """At least this share of an answer's words that are in the passage or the question, words of under four letters
    left out; in Chinese, pairs of characters. Left out: not asked. 0.6 keeps answers taken from the passage."""


class DocumentPrompts(OwnPrompts):
    """Files of your own in place of those in configs/prompts/; configs/prompts/README.md has their slots."""

    slots: ClassVar[dict[str, Slots]] = {
        **dict.fromkeys(("judgmental_questions", "open_questions"),
                        (("passage", "questions", "next"), ("count", "last"))),
        **dict.fromkeys(("judgmental_answer", "open_answer"), (("passage", "question"), ())),
        **dict.fromkeys(("judgmental_seeds", "open_seeds"), ((), ())),
    }

    judgmental_questions: str | None = None
    """Asks for yes/no questions about a passage; needs {passage}, {questions} and {next}, may have {count}, {last}."""
    open_questions: str | None = None
    """Asks for other questions about it; slots as above."""
    judgmental_answer: str | None = None
    """Asks for yes or no, and why; needs {passage} and {question}."""
    open_answer: str | None = None
    """Asks for any other answer; needs {passage} and {question}."""
    judgmental_seeds: str | None = None
    """Yes/no questions to show, one a line; not read where `seeds` names rows."""
    open_seeds: str | None = None
    """Other questions to show, one a line; not read where `seeds` names rows."""


class DocumentQa(Generate):
    """Question answering over documents (the Qwen QA system): a teacher asks yes/no and open questions about passages,
    after the pattern of seed questions, and answers them; what is malformed or not new is refused, with the reason."""

    tag: ClassVar[str] = "document-qa"
    body = "alignment.distributed.generate.document_qa:document_qa_stage"

    recipe: Literal["document_qa"]
    """`document_qa`: questions about passages, and answers. Defaults are the Qwen QA system's."""
    passages: tuple[RowsRef, ...] = Field(min_length=1)
    """Row sets whose passages are asked about, each STAGE/SPLIT: of an import of documents, or rows with a passage
    (formats squad, passage-qa, boolq, ...), whose own questions and answers are not shown."""
    seeds: tuple[RowsRef, ...] = ()
    """Row sets whose questions are shown as examples; one that is answered by yes or no is judgmental. Left out: those
    of the prompt files."""
    take: Positive = 1000
    """Rows that are wanted (times the run's scale), a question with its answer each; when so many are kept, no more
    are asked for."""
    language: Literal["en", "zh"] = "en"
    """Language of passages, prompts and filters: English or Chinese."""
    prompts: DocumentPrompts = DocumentPrompts()
    """Prompt files of your own, by step; the others are those of configs/prompts/document_qa-LANGUAGE/."""
    passage_prompt: str = "{passage}\n\n{question}"
    """User message of the rows that are made; as in an import of passages."""
    judgmental_share: Share = 0.5
    """Share of the requests that ask for yes/no questions. The system has both branches and no number: as many of
    either."""
    rounds: Positive = 20
    """At most so many rounds. What a round keeps can be shown as an example from the next round on."""
    questions_per_round: Positive = 2000
    """Questions that a round asks for; where fewer rows are wanted, so many as will leave these by what was kept of
    earlier rounds, at most eight for a row."""
    questions_per_request: Positive = 4
    """New questions that one request asks for, all about one passage; passages take turns in a drawn order."""
    patience: Positive = 2
    """After so many rounds in a row that keep no row, no more are asked."""
    demonstrations: Positive = 8
    """Questions that a request shows; there must be at least as many seeds of its branch."""
    machine_demonstrations: Whole = 4
    """Of these at most so many that the teacher made itself, as far as there are any; the others are seeds."""
    stop_at_blank_line: bool = True
    """A response is cut at its first blank line. Chat models set blank lines between items: false for them."""
    questions: Sampling = Sampling(temperature=0.7, top_p=0.5, presence_penalty=2.0, max_new_tokens=1024)
    """How questions are drawn. A response that max_new_tokens cuts is refused as a whole."""
    filters: QuestionFilters = QuestionFilters()
    """What a question must be before its novelty is asked, and what its answer must be."""
    novelty: Share = 0.7
    """A question is new when its ROUGE-L F against every seed and every question kept before is at most this."""
    novelty_tokens: Literal["rouge", "words"] | None = None
    """What ROUGE-L compares: `rouge` as rouge_score has it (ASCII words), `words` with every Chinese character as one.
    Default: rouge in English, words in Chinese, of which rouge_score would leave nothing."""
    similar: Whole = 10
    """So many of the most similar questions are kept with each row, with their ROUGE-L F and the mean over the pool."""
    answers: Sampling = Sampling(temperature=0.0, presence_penalty=1.5, max_new_tokens=1024)
    """How questions are answered; an answer that max_new_tokens cuts is refused."""

    @model_validator(mode="after")
    def _settled(self) -> Self:
        own = LANGUAGES[self.language]
        object.__setattr__(self, "filters", filled(self.filters, own._asdict()))  # frozen from here on
        object.__setattr__(self, "novelty_tokens", self.novelty_tokens or own.tokens)
        return self

    @property
    def branches(self) -> tuple[Branch, ...]:
        """Kinds of questions that are asked for."""
        shares: dict[Branch, float] = {"judgmental": self.judgmental_share, "open": 1 - self.judgmental_share}
        return tuple(branch for branch, share in shares.items() if share > 0)

    def shown(self) -> Iterator[RowsPlace]:
        yield from (RowsPlace(("passages", index), ref) for index, ref in enumerate(self.passages))
        yield from (RowsPlace(("seeds", index), ref) for index, ref in enumerate(self.seeds))

    @property
    def prompt_set(self) -> str:
        return f"document_qa-{self.language}"

    def prompt_files(self) -> tuple[PromptFile, ...]:
        """Those that are read: seeds of files only where no rows are named."""
        return tuple(file for file in super().prompt_files()
                     if file.step.partition("_")[0] in self.branches and not (self.seeds and "_seeds" in file.step))

    def samplings(self) -> Iterator[tuple[Place, Sampling]]:
        yield ("questions",), self.questions
        yield ("answers",), self.answers

    def requests_of_round(self, wanted: int, kept: float = 1.0) -> int:
        """Requests of a round that is to leave `wanted` rows, or as many questions as a round asks for.

        Args:
            kept: rows by questions that were asked for, so far.
        """
        questions = math.ceil(wanted / max(kept, 1 / MOST_FOR_A_ROW) - 1e-9)
        return -(-min(questions, self.questions_per_round) // self.questions_per_request)

    def requests(self, take: int) -> list[Load]:
        asked = self.requests_of_round(take) + (self.rounds - 1) * self.requests_of_round(take, 0.0)
        answered = min(asked * self.questions_per_request, self.rounds * take)
        if self.max_requests is not None:
            asked = min(asked, self.max_requests)
            answered = min(answered, self.max_requests - min(asked, -(-take // self.questions_per_request)))
        return [Load(asked, 1, False, self.questions.max_new_tokens),
                Load(answered, 1, False, self.answers.max_new_tokens)]

    def findings(self) -> Iterator[Finding]:
        yield from super().findings()
        if self.machine_demonstrations >= self.demonstrations:
            yield Finding(("machine_demonstrations",), "leaves no place for a seed", self.machine_demonstrations,
                          f"less than demonstrations, {self.demonstrations}")
        low, high = self.filters.min_words or 0, self.filters.max_words or 0
        if low > high:
            yield Finding(("filters", "min_words"), "is above max_words, so no question is kept", low,
                          f"at most {high}")
        if self.max_requests is not None and self.max_requests < 2:
            yield Finding(("max_requests",), "is less than one row needs", self.max_requests,
                          "2 or more: questions are asked for, and each is answered")
        if missing := [slot for slot in ("{passage}", "{question}") if slot not in self.passage_prompt]:
            yield Finding(("passage_prompt",), f"lacks {' and '.join(missing)}", self.passage_prompt,
                          "a text with {passage} and {question}")
        unread = {file.step for file in super().prompt_files() if file.path} - {
            file.step for file in self.prompt_files()}
        for step in sorted(unread):
            yield Finding(("prompts", step), "is not read: `seeds` names rows, or judgmental_share leaves its branch "
                                             "out", getattr(self.prompts, step), "no such key")

    def title(self) -> str:
        return f"generate · document_qa {self.language}, {self.take:,} rows"
