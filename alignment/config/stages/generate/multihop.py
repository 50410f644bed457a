"""Questions over several paragraphs: comparisons that a teacher makes up, and the answers of rows from data sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from alignment.config.stages.base import Finding, RowsPlace
from alignment.config.stages.fields import Place, Positive, RowsRef
from alignment.config.stages.generate.base import Generate, Load, OwnPrompts, Slots, Whole
from alignment.config.stages.sampling import Sampling

Swap = Literal["entity", "attribute", "both"]
PROMPT = 450
"""Tokens of a shipped prompt for a comparison, about."""
PARAGRAPH = 120
"""Tokens of a paragraph and what is asked of it, about."""
Share = Annotated[float, Field(ge=0, le=1)]


class MultiHopPrompts(OwnPrompts):
    """Files of your own in place of configs/prompts/multihop-en/; configs/prompts/README.md has their slots."""

    slots: ClassVar[dict[str, Slots]] = {
        "categories": ((), ()),
        "comparison": (("category",), ("avoid",)),
        "answer": (("question", "paragraph"), ("no_answer",)),
        "sentence": (("question",), ("paragraph", "answer", "no_answer")),
        "reason": (("question", "paragraph"), ()),
        "thought": (("question", "paragraph"), ()),
        "final": (("question", "facts"), ()),
        "paragraph": (("entity", "attribute"), ("other",)),
    }

    categories: str | None = None
    """Kinds of things to compare, one a line; each request is about one of them."""
    comparison: str | None = None
    """Asks for a comparison in twelve labelled lines; needs {category}, may have {avoid}."""
    answer: str | None = None
    """Asks for the answer to a sub-question as a sentence; needs {question} and {paragraph}, may have {no_answer}."""
    sentence: str | None = None
    """Asks for the answer of a data set as a sentence; needs {question}, may have {paragraph}, {answer} (the set's own)
    and {no_answer}."""
    reason: str | None = None
    """Asks for the reason and then Yes or No; needs {question} and {paragraph}."""
    thought: str | None = None
    """Asks for a thought, the arithmetic and then the answer; needs {question} and {paragraph}."""
    final: str | None = None
    """Asks what follows from the answers to all sub-questions; needs {question} and {facts}."""
    paragraph: str | None = None
    """Asks for a paragraph about another attribute, for negatives; needs {entity} and {attribute}, may have {other}."""


class MultiHop(Generate):
    """Multi-hop questions after qa_expert (github.com/khaimt/qa_expert): comparisons of two things, made up in twelve
    labelled steps and answered again greedily; and reasons, thoughts and sentences for the answers of data sets."""

    tag: ClassVar[str] = "multihop"
    body = "alignment.distributed.generate.multihop:multihop_stage"

    recipe: Literal["multihop"]
    """`multihop`: questions that are answered over calls of `retrieve` (docs/multihop.md)."""
    rows: tuple[RowsRef, ...] = ()
    """Row sets whose answers are written out, each STAGE/SPLIT; their imports have `retrieve: true` or format multihop.
    A row is kept where what the teacher writes agrees with its own answer."""
    take: Positive = 1000
    """Comparisons that are wanted (times the run's scale); when so many are kept, no more are asked for."""
    prompts: MultiHopPrompts = MultiHopPrompts()
    """Prompt files of your own, by step; the others are those of configs/prompts/multihop-en/."""
    rounds: Whole = 100
    """At most so many rounds of requests for comparisons; 0 makes none, and only `rows` are answered."""
    requests_per_round: Positive = 8
    """Comparisons asked for in one round. The things that a round keeps are named as taken from the next round on."""
    patience: Positive = 5
    """After so many rounds in a row that keep nothing, no more are asked."""
    avoid: Whole = 10
    """So many things of the same category that were compared already are named in a request, to be left out."""
    comparison: Sampling = Sampling(temperature=1.0, max_new_tokens=1024)
    """How comparisons are drawn, and paragraphs about another attribute. What max_new_tokens cuts is refused."""
    answers: Sampling = Sampling(temperature=0.0, max_new_tokens=256)
    """How all answers are written: greedily, also those that a comparison brought already."""
    novelty: Share = 0.7
    """A comparison is new when the ROUGE-L F of its question against all that were kept is at most this."""
    min_agreement: Share = 0.0
    """A comparison is refused when one of its answers shares less (token F1) with the one that was drawn with it. 0, as
    in qa_expert: the greedy answers are taken, and how far they agree is a metric."""
    negatives: tuple[Swap, ...] = ("entity", "attribute", "both")
    """Which of a negative's paragraph is another: about the other thing, about another attribute (the teacher writes
    it), or about both (of another comparison)."""
    negative_share: Share = 0.2
    """Share of the comparisons that get a negative beside them, whose question nothing that is retrieved answers."""
    no_answer: Annotated[str, Field(min_length=1)] | None = None
    """What is learned where the paragraph does not answer. Left out: that the retrieved text does not answer this
    question, in English."""

    def shown(self) -> Iterator[RowsPlace]:
        return (RowsPlace(("rows", index), ref) for index, ref in enumerate(self.rows))

    @property
    def prompt_set(self) -> str:
        return "multihop-en"

    def samplings(self) -> Iterator[tuple[Place, Sampling]]:
        yield ("comparison",), self.comparison
        yield ("answers",), self.answers

    def requests(self, take: int) -> list[Load]:
        asked = self.rounds * self.requests_per_round
        if self.max_requests is not None:
            asked = min(asked, self.max_requests)
        take, answer = min(take, asked), self.answers.max_new_tokens
        negative = round(take * self.negative_share) if "attribute" in self.negatives else 0
        return [
            Load(asked, 0, False, self.comparison.max_new_tokens, own=PROMPT),
            Load(3 * take, 0, False, answer, own=PARAGRAPH),
            Load(negative, 0, False, self.comparison.max_new_tokens, own=PARAGRAPH),
            Load(0, 1, False, answer, per_row=1),
        ]

    @property
    def each(self) -> int:
        """Requests that one kept comparison needs more, at most."""
        return 3 + (self.negative_share > 0 and "attribute" in self.negatives)

    def findings(self) -> Iterator[Finding]:
        yield from super().findings()
        if not self.rounds and not self.rows:
            yield Finding(("rounds",), "makes no comparisons, and there are no rows to answer", 0,
                          "1 or more, or `rows`")
        if len(set(self.negatives)) < len(self.negatives):
            yield Finding(("negatives",), "names a swap twice", list(self.negatives), "each once")
        if self.negative_share and not self.negatives:
            yield Finding(("negative_share",), "is of no swap", self.negative_share, "0, or `negatives`")
        if self.rounds and not self.rows and self.max_requests is not None and self.max_requests <= self.each:
            yield Finding(("max_requests",), "is less than one comparison needs", self.max_requests,
                          f"{self.each + 1} or more: it is made up, and its answers are written again")

    def title(self) -> str:
        made = f"{self.take:,} comparisons" if self.rounds else ""
        return "generate · multihop, " + " and ".join(filter(None, (made, "answers" if self.rows else "")))
