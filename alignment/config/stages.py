"""The stages of a run as frozen pydantic models: what a user may write, and nothing else.

Does not read files, resolve references or import torch. A new training strategy is one more member of
`Strategy`; a new method is one more member of `Method`; a new stage kind one more member of `Stage`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

NAME = r"^[a-z][a-z0-9-]{0,39}$"
Name = Annotated[str, Field(pattern=NAME)]
RowsRef = Annotated[
    str,
    Field(pattern=r"^[a-z][a-z0-9-]{0,39}/[a-z][a-z0-9_-]{0,39}$", description="STAGE/SPLIT, for example seed/train"),
]
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]


class Strict(BaseModel):
    """Unknown keys and wrong types are errors; instances never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


# --- import -------------------------------------------------------------------------------------------------


class HubModel(Strict):
    source: Literal["hub"]
    repo: str
    """Hub name, for example Qwen/Qwen2.5-0.5B-Instruct."""
    revision: str = "main"
    """Branch, tag or commit. The commit it resolves to is recorded in the manifest."""
    trust_remote_code: bool = False
    """Runs Python code from the repository. Allowed only with a revision that is a full commit hash."""

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        if self.trust_remote_code and not (len(self.revision) == 40 and set(self.revision) <= set("0123456789abcdef")):
            raise ValueError("trust_remote_code needs a revision that is a 40-digit commit hash")
        return self


class FolderModel(Strict):
    source: Literal["folder"]
    path: str
    """A folder with config.json, safetensors weights and a tokenizer."""


class GgufModel(Strict):
    source: Literal["gguf"]
    file: str
    """Path of the .gguf file; with `package`, relative to that installed package's folder."""
    package: str | None = None
    """Name of an installed Python package that carries the file. The package is located, never imported."""


class TinyModel(Strict):
    """A model made on the spot from random weights, for tests: it learns, slowly, and knows nothing."""

    source: Literal["tiny"]
    hidden_size: Positive = 64
    layers: Positive = 2
    heads: Positive = 4
    vocab_size: Annotated[int, Field(ge=300, le=4096)] = 512


ModelSource = Annotated[HubModel | FolderModel | GgufModel | TinyModel, Field(discriminator="source")]


class ImportModel(Strict):
    """Bring a base model into the store: safetensors weights, tokenizer and chat template in one folder."""

    kind: Literal["import"] = "import"
    name: Name
    model: ModelSource
    template: str | None = None
    """Name of a shipped chat template (`kubealign templates` lists them). Default: the model's own."""
    pad_token: str | None = None
    """An existing special token to pad with. Default: the model's own, if it differs from its end token."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Storage type of the weights."""


class Source(Strict):
    """One data file and how to read it."""

    path: str
    """File, or any fsspec URL. Relative paths start at the working directory."""
    format: Literal[
        "messages",
        "prompt-completion",
        "preference",
        "unpaired",
        "prompt-only",
        "passage-qa",
        "alpaca",
        "sharegpt",
        "sharegpt-preference",
        "hh-transcript",
        "pandalm",
        "squad",
        "boolq",
        "drop",
        "hotpotqa",
        "musique",
        "stack-exchange-paired",
        "columns",
    ]
    """Shape of the rows. `columns` reads CSV, Parquet or JSON lines with the names given in `columns`."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Only for format columns: our field -> the file's column, for example {prompt: question, completion: answer}."""
    take: Positive | None = None
    """At most so many rows (times the run's `scale`), drawn with the run's seed; splits are made after that."""
    name: Name | None = None
    """Names the source in counts and ids. Default: from the file's name."""


class FieldSplit(Strict):
    """The file says in one of its own fields which split a row belongs to."""

    by: Literal["field"]
    field: str = "split"
    names: tuple[str, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        return self.names


class RatioSplit(Strict):
    """Rows are divided at random by group (same passage, same group), so that no text crosses a split."""

    by: Literal["ratio"]
    ratios: dict[str, Fraction]

    @model_validator(mode="after")
    def _sum(self) -> Self:
        if not self.ratios or sum(self.ratios.values()) > 1 + 1e-9:
            raise ValueError("ratios must name at least one split and sum to at most 1")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.ratios)


Split = Annotated[FieldSplit | RatioSplit, Field(discriminator="by")]


class ImportData(Strict):
    """Read files into records, check every row, divide them into splits; bad rows are kept beside the good."""

    kind: Literal["import"] = "import"
    name: Name
    data: tuple[Source, ...] = Field(min_length=1)
    system: str | None = None
    """System message set before every prompt that has none."""
    passage_prompt: str = "{passage}\n\n{question}"
    """User message of the passage formats (passage-qa, squad, boolq, drop, ...)."""
    split: Split
    max_bad: Fraction | None = 0.1
    """The stage fails when more than this share of the rows is bad; null accepts any number."""


# --- train --------------------------------------------------------------------------------------------------


class Lora(Strict):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685)."""

    kind: Literal["lora"]
    r: Positive = 16
    alpha: Positive = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """`all-linear` (all but the output head) or module names; a name that matches nothing is an error."""


class Full(Strict):
    """Every weight is trained."""

    kind: Literal["full"]


Strategy = Annotated[Lora | Full, Field(discriminator="kind")]


class Checkpoints(Strict):
    every: Positive = 50
    """Optimizer steps between checkpoints (and evaluations, when eval_rows is given)."""
    keep: Positive = 2
    """How many are kept while training; the best is never thrown away."""
    final: Literal["last", "best"] = "last"
    """Which weights the stage publishes; `best` is judged by the loss on eval_rows."""


class TrainBase(Strict):
    kind: Literal["train"] = "train"
    name: Name
    model: Name
    """The stage whose model this one starts from. A LoRA start is continued, or merged by strategy full."""
    rows: tuple[RowsRef, ...] = Field(min_length=1)
    take: Positive | None = None
    """At most so many rows (times the run's scale), drawn with the run's seed."""
    eval_rows: RowsRef | None = None
    strategy: Strategy = Lora(kind="lora")
    epochs: Annotated[float, Field(gt=0)] = 1.0
    batch_size: Positive = 8
    """Rows per optimizer step over all workers; accumulation follows from it."""
    micro_batch_size: Positive = 8
    """Rows per forward pass on one worker, at most: less where batch_size is shared out over several workers."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    max_length: Positive = 1024
    """Tokens of prompt and answer together."""
    too_long: Literal["drop", "truncate-prompt", "error"] = "drop"
    """A row over max_length: dropped and counted, its prompt cut at the left and counted, or an error."""
    checkpoints: Checkpoints = Checkpoints()
    log_every: Positive = 1
    """Optimizer steps between lines of events.jsonl."""
    log_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    trl: dict[str, Any] = Field(default_factory=dict)
    """Passed to TRL's config of this method as it is, for example {warmup_steps: 10, beta: 0.2}."""


class Sft(TrainBase):
    """Supervised fine-tuning on messages, prompt-completion rows or the chosen side of preferences."""

    method: Literal["sft"]
    loss: Literal["completion", "assistant", "all"] = "completion"
    """Which tokens are learned: the last answer, every assistant turn, or everything."""
    packing: bool = False
    """Several rows in one sequence of max_length, without attention across rows."""


class Reward(TrainBase):
    """A scalar head on the backbone's last hidden state at the last real token (Bradley-Terry loss)."""

    method: Literal["reward"]


class Dpo(TrainBase):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290); the reference is `model`."""

    method: Literal["dpo"]
    reference: Literal["auto", "adapter", "precomputed"] = "auto"
    """How the reference's log-probabilities are had: a frozen copy of the start adapter, or computed once
    before training and cached by digest. auto: adapter for lora, precomputed for full."""

    @model_validator(mode="after")
    def _reference(self) -> Self:
        if self.reference == "adapter" and self.strategy.kind == "full":
            raise ValueError("reference: adapter needs strategy lora; with strategy full use precomputed")
        return self

    @property
    def reference_mode(self) -> Literal["adapter", "precomputed"]:
        if self.reference == "auto":
            return "precomputed" if self.strategy.kind == "full" else "adapter"
        return self.reference


Train = Annotated[Sft | Reward | Dpo, Field(discriminator="method")]


# --- sample -------------------------------------------------------------------------------------------------

Range = tuple[float, float]


class Sampling(Strict):
    """A value is fixed; a pair [low, high] is drawn uniformly for each sample, from the run's seed."""

    temperature: float | Range = 1.0
    top_p: float | Range = 1.0
    top_k: int | tuple[int, int] = 0
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    max_new_tokens: Positive = 128

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        limits = {"temperature": (0.0, 10.0), "top_p": (0.0, 1.0), "top_k": (0, 10**6)}
        for key, (low, high) in limits.items():
            value = getattr(self, key)
            ends = value if isinstance(value, tuple) else (value, value)
            if not (low <= ends[0] <= ends[1] <= high) or (key == "top_p" and ends[0] == 0):
                raise ValueError(f"{key}: {value} is outside {low}..{high}, or low is above high")
        return self


class Scorer(Strict):
    """How good an answer is: a reward model's scalar, a plain function's value, or a weighted sum of both."""

    model: Name | None = None
    """A stage of method reward."""
    function: str | None = None
    """A built-in reward function, or package.module:function of your own."""
    model_weight: float = 1.0
    function_weight: float = 1.0

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.model is None and self.function is None:
            raise ValueError("give model, function, or both")
        return self


class Sample(Strict):
    """N answers per prompt, scored and joined by row id: best-of-N rows and preference pairs."""

    kind: Literal["sample"] = "sample"
    name: Name
    model: Name
    """The newest model: its answers are judged."""
    previous: Name | None = None
    """The model before; needed for pairs: newest-previous."""
    prompts: tuple[RowsRef, ...] = Field(min_length=1)
    take: Positive | None = None
    """At most so many prompts (times the run's scale)."""
    n: Positive = 4
    sampling: Sampling = Sampling()
    first: Sampling | None = None
    """Sampling of each prompt's first answer, where it differs from the others."""
    score: Scorer
    pairs: Literal["max-min", "newest-previous"] = "max-min"
    min_margin: Annotated[float, Field(ge=0)] = 0.0
    """A pair is made only when chosen scores more than rejected by over this much."""
    min_score: float | None = None
    """An answer is a good example (a best-of-N row, the chosen side of a pair) only with at least this score."""
    batch_size: Positive = 32
    """Prompts in one generation batch (times n sequences)."""
    max_prompt_tokens: Positive = 1024

    @model_validator(mode="after")
    def _needs(self) -> Self:
        if self.pairs == "newest-previous" and self.previous is None:
            raise ValueError("pairs: newest-previous needs `previous`")
        if self.pairs == "max-min" and self.n < 2:
            raise ValueError("pairs: max-min needs n of 2 or more")
        return self


# --- evaluate -----------------------------------------------------------------------------------------------


class Evaluate(Strict):
    """Answers of each model to a held-out split, measured; no stage before may have seen the split."""

    kind: Literal["evaluate"] = "evaluate"
    name: Name
    models: tuple[Name, ...] = Field(min_length=1)
    """In the order of the table, the start model first."""
    rows: RowsRef
    take: Positive | None = None
    sampling: Sampling = Sampling(temperature=0.0)
    score: Scorer | None = None
    """Reward model and/or function for scores and win rates; a function also gives its own column."""
    compare: tuple[tuple[Name, Name], ...] = ()
    """Win rates to report, [challenger, baseline]. Default: every later model against the first."""
    answer_pattern: str | None = None
    """Regular expression whose group `answer` is compared for exact match and F1. Default: the whole text."""
    perplexity: bool = True
    """Perplexity of the reference answers under each model."""
    overlap: Literal["error", "drop"] = "error"
    """A test row that a stage has seen, by id or by text: an error, or dropped and counted."""
    bootstrap: Annotated[int, Field(ge=100)] = 2000
    batch_size: Positive = 32
    max_prompt_tokens: Positive = 1024


def stage_tag(value: Any) -> str | None:
    """Discriminator of a stage: `import` has two shapes, told apart by their one required key."""

    def get(key: str) -> Any:
        return value.get(key) if isinstance(value, dict) else getattr(value, key, None)

    kind = get("kind")
    if kind == "import":
        return "import-model" if get("model") is not None else "import-data"
    if kind == "train":
        method = get("method")
        return method if isinstance(method, str) else "train"
    return kind if isinstance(kind, str) else None
