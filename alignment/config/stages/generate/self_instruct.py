"""Self-Instruct: new tasks after the pattern of seed tasks, with their examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from alignment.config.stages.base import Finding, RowsPlace
from alignment.config.stages.fields import Place, Positive, RowsRef, Strict
from alignment.config.stages.generate.base import Generate, Load, OwnPrompts, Slots, Whole, filled
from alignment.config.stages.sampling import Sampling


class Language(NamedTuple):
    """What the filters are in a language where a run file leaves them open."""

    min_words: int
    max_words: int
    forbidden: tuple[str, ...]
    starts: tuple[str, ...]
    ascii_first: bool
    tokens: Literal["rouge", "words"]


LANGUAGES: dict[str, Language] = {
    # Wang et al. 2022: more than 3 words, at most 150; the words that ask for another modality.
    "en": Language(4, 150, ("image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps",
                            "draw", "plot", "go to"), ("Write a program",), True, "rouge"),
    # Characters. BELLE's 175 seed tasks have 5 to 148 of them where the English ones have 3 to 66 words.
    "zh": Language(5, 300, ("图像", "图片", "图表", "照片", "截图", "文件", "地图", "绘制", "绘图", "画出", "画一",
                            "前往"),
                   ("编写程序", "编写一个程序", "写一个程序", "写一段程序"), False, "words"),
}
"""Language -> the filters' defaults."""


class Filters(Strict):
    """What a proposed instruction must be, in the order in which it is asked. Keys left out are the language's."""

    min_words: Whole | None = None
    """Fewest words (in Chinese, characters): 4 in English, as the reference keeps more than 3; 5 in Chinese."""
    max_words: Positive | None = None
    """Most words (in Chinese, characters): 150 in English, 300 in Chinese."""
    forbidden: tuple[str, ...] | None = None
    """Words of tasks that need more than text: image, graph, file, map, draw, go to, ... Latin ones as whole words,
    others wherever they stand. An empty list allows all."""
    starts: tuple[str, ...] | None = None
    """Beginnings that are refused: `Write a program`, which many answers start with and few finish."""
    punctuation_first: bool = False
    """Whether an instruction may begin with a sign of punctuation."""
    ascii_first: bool | None = None
    """Whether the first character has to be ASCII: true in English, as in the reference; false in Chinese."""
    own_language: Annotated[float, Field(ge=0, le=1)] = 0.5
    """At least this share of the words in the language's script (Latin, or Chinese characters); 0 asks for none. It
    tells Chinese from English, and not English from French."""


class Prompts(OwnPrompts):
    """Files of your own in place of those in configs/prompts/; configs/prompts/README.md has their slots."""

    slots: ClassVar[dict[str, Slots]] = {
        "instructions": (("tasks", "next"), ("last",)),
        "classification": (("examples", "instruction"), ()),
        "output_first": (("examples", "instruction"), ("count",)),
        "input_first": (("examples", "instruction"), ("count",)),
    }

    instructions: str | None = None
    """Asks for new tasks after numbered ones; needs {tasks} and {next}, may have {last}."""
    classification: str | None = None
    """Asks whether a task is a classification; needs {examples} and {instruction}."""
    output_first: str | None = None
    """Asks for a classification's examples, label before input; needs {examples} and {instruction}."""
    input_first: str | None = None
    """Asks for other tasks' examples, input before output; needs {examples} and {instruction}."""


class SelfInstruct(Generate):
    """Self-Instruct (Wang et al. 2022, arXiv:2212.10560): a teacher proposes tasks after seed tasks, says which are
    classifications, and writes their examples; what is malformed or not new is refused, with the reason."""

    tag: ClassVar[str] = "self-instruct"
    body = "alignment.distributed.generate.self_instruct:self_instruct_stage"

    recipe: Literal["self_instruct"]
    """`self_instruct`: new tasks after the pattern of the seeds. Defaults are the paper's."""
    seeds: tuple[RowsRef, ...] = Field(min_length=1)
    """Row sets with the seed tasks, each STAGE/SPLIT. Format self-instruct keeps instruction and examples apart; of
    other rows the one user's turn is the instruction and the answer its output."""
    take: Positive = 1000
    """Tasks that are wanted (times the run's scale); when so many are kept, no more are asked for. The paper made
    52,000."""
    language: Literal["en", "zh"] = "en"
    """Language of seeds, prompts and filters: English or Chinese."""
    prompts: Prompts = Prompts()
    """Prompt files of your own, by step; the others are those of configs/prompts/self_instruct-LANGUAGE/."""
    rounds: Positive = 100
    """At most so many rounds. What a round keeps can be shown as an example from the next round on."""
    requests_per_round: Positive = 8
    """Requests for new tasks in one round: more are faster, fewer let new tasks come in sooner."""
    patience: Positive = 5
    """After so many rounds in a row that keep nothing, no more are asked."""
    demonstrations: Annotated[int, Field(ge=2)] = 8
    """Tasks that a request for new ones shows; there must be at least as many seeds."""
    machine_demonstrations: Whole = 2
    """Of these at most so many that the teacher made itself, as far as there are any; the others are seeds."""
    last_item: Positive | None = 16
    """A response is cut where an item of this number begins; null reads all items."""
    stop_at_blank_line: bool = True
    """A response is cut at its first blank line, as in the reference. Chat models set blank lines between items: false
    for them."""
    instructions: Sampling = Sampling(temperature=0.7, top_p=0.5, presence_penalty=2.0, max_new_tokens=1024)
    """How new tasks are drawn. A response that max_new_tokens cuts is refused as a whole."""
    filters: Filters = Filters()
    """What a proposed instruction must be before its novelty is asked."""
    novelty: Annotated[float, Field(ge=0, le=1)] = 0.7
    """An instruction is new when its ROUGE-L F against every seed and every task kept before is at most this."""
    novelty_tokens: Literal["rouge", "words"] | None = None
    """What ROUGE-L compares: `rouge` as rouge_score has it (ASCII words), `words` with every Chinese character as one.
    Default: rouge in English, words in Chinese, of which rouge_score would leave nothing."""
    similar: Whole = 10
    """So many of the most similar tasks are kept with each row, with their ROUGE-L F and the mean over the pool."""
    classification_examples: Positive = 8
    """Seeds shown when a task's kind is asked, as even a share of classifications as there are."""
    classification: Sampling = Sampling(temperature=0.0, max_new_tokens=8)
    """How a task's kind is answered: yes or no. Anything else counts as no, as in the reference, and is counted."""
    instance_examples: Positive = 4
    """Seeds of the task's kind that are shown when its examples are asked for."""
    instances: Sampling = Sampling(temperature=0.0, presence_penalty=1.5, max_new_tokens=350)
    """How examples are written; the last of an answer that max_new_tokens cuts is refused."""
    max_instances: Positive = 5
    """Examples of a task that are kept, drawn with the run's seed; each becomes a row."""

    @model_validator(mode="after")
    def _settled(self) -> Self:
        own = LANGUAGES[self.language]
        object.__setattr__(self, "filters", filled(self.filters, own._asdict()))  # frozen from here on
        object.__setattr__(self, "novelty_tokens", self.novelty_tokens or own.tokens)
        return self

    def shown(self) -> Iterator[RowsPlace]:
        return (RowsPlace(("seeds", index), ref) for index, ref in enumerate(self.seeds))

    @property
    def prompt_set(self) -> str:
        return f"self_instruct-{self.language}"

    def samplings(self) -> Iterator[tuple[Place, Sampling]]:
        yield ("instructions",), self.instructions
        yield ("classification",), self.classification
        yield ("instances",), self.instances

    def requests(self, take: int) -> list[Load]:
        asked = self.rounds * self.requests_per_round
        if self.max_requests is not None:
            asked = min(asked, self.max_requests)
            take = min(take, self.max_requests // 3)
        return [
            Load(asked, self.demonstrations, False, self.instructions.max_new_tokens),
            Load(take, self.classification_examples, False, self.classification.max_new_tokens),
            Load(take, self.instance_examples, True, self.instances.max_new_tokens),
        ]

    def findings(self) -> Iterator[Finding]:
        yield from super().findings()
        if self.machine_demonstrations >= self.demonstrations:
            yield Finding(("machine_demonstrations",), "leaves no place for a seed", self.machine_demonstrations,
                          f"less than demonstrations, {self.demonstrations}")
        if self.last_item is not None and self.last_item <= self.demonstrations + 1:
            yield Finding(("last_item",), "leaves no place for a new task", self.last_item,
                          f"over {self.demonstrations + 1}: the first new task is number {self.demonstrations + 1}")
        low, high = self.filters.min_words or 0, self.filters.max_words or 0
        if low > high:
            yield Finding(("filters", "min_words"), "is above max_words, so no task is kept", low, f"at most {high}")
        if self.max_requests is not None and self.max_requests < 3:
            yield Finding(("max_requests",), "is less than one task needs", self.max_requests,
                          "3 or more: a task is proposed, classified, and its examples are written")

    def title(self) -> str:
        return f"generate · self_instruct {self.language}, {self.take:,} tasks"
