"""Stages that bring models and data into the store."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from alignment.config.stages.base import Finding, ModelRef, Outside, Stage, plural
from alignment.config.stages.fields import Fraction, Name, Positive, Strict
from alignment.config.stages.hygiene import Hygiene, hygiene_findings

_HUB = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
"""Name of a data set of the hub."""


class ModelSource(Strict):
    """Where a base model comes from."""

    def local(self) -> tuple[str, str] | None:
        """(key, path) of what lies on the user's own machine; None where nothing does."""
        return None


class HubModel(ModelSource):
    """A model fetched from the Hugging Face hub."""

    source: Literal["hub"]
    """A model of the Hugging Face hub; needs the network, or the hub's local cache."""
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


class FolderModel(ModelSource):
    """A model in a local folder, as transformers saves it; or an adapter, as PEFT and TRL do."""

    source: Literal["folder"]
    """A model that lies on this machine, or on a volume that every node sees."""
    path: str
    """A folder with config.json, safetensors weights and a tokenizer; with `base`, one with adapter_config.json. With
    `package`, relative to that installed package's folder."""
    package: str | None = None
    """Name of an installed Python package that carries the folder. The package is located, never imported."""
    base: Name | None = None
    """For a LoRA adapter: the stage that imports the full weights it was trained on. A tokenizer and a chat template
    beside the adapter count before the base's."""

    def local(self) -> tuple[str, str] | None:
        return None if self.package is not None else ("path", self.path)


class GgufModel(ModelSource):
    """A model in one GGUF file, by path or inside an installed package."""

    source: Literal["gguf"]
    """A GGUF file, unpacked into ordinary weights: what its quantisation lost stays lost."""
    file: str
    """Path of the .gguf file; with `package`, relative to that installed package's folder."""
    package: str | None = None
    """Name of an installed Python package that carries the file. The package is located, never imported."""

    def local(self) -> tuple[str, str] | None:
        return None if self.package is not None else ("file", self.file)


class TinyModel(ModelSource):
    """A model made on the spot from random weights, for tests: it learns, slowly, and knows nothing."""

    context: ClassVar[int] = 2048
    """Its context length, in tokens."""

    source: Literal["tiny"]
    """Random weights and a tokenizer made on the spot; nothing is downloaded."""
    hidden_size: Positive = 64
    """Width of the model; a multiple of twice `heads`."""
    layers: Positive = 2
    """Transformer layers."""
    heads: Positive = 4
    """Attention heads per layer."""
    vocab_size: Annotated[int, Field(ge=300, le=4096)] = 512
    """Tokens of the tokenizer and rows of the embedding; from 300, so that all bytes and ChatML's marks fit."""


AnyModelSource = Annotated[HubModel | FolderModel | GgufModel | TinyModel, Field(discriminator="source")]


@dataclass(frozen=True)
class ShippedTemplate:
    """A chat template by its name; its text is the package's."""

    name: str


def source_of(model: Any) -> Any:
    """What `source` says of what stands as `model` of an import, as a mapping or loaded."""
    return model.get("source") if isinstance(model, dict) else getattr(model, "source", None)


def names_endpoint(model: Any) -> bool:
    """Whether what stands as `model` of an import is asked over the network (endpoint.py)."""
    return bool(source_of(model) == "endpoint")


ROLES = ("reward", "embedder")
"""What `role` of an import may say: a model that is no language model."""
_ELSEWHERE = ("endpoint", "artifact")
"""Sources of models that are other classes' (endpoint.py, artifact.py)."""


class ImportModel(Stage):
    """Bring a base model into the store: safetensors weights, tokenizer and chat template in one folder."""

    tag: ClassVar[str] = "import-model"
    makes = "policy"
    known_by = "model"
    body = "alignment.inference.import_model:import_model"
    script = "import_stage"

    kind: Literal["import"] = "import"
    """`import` with `model` brings a base model."""
    model: AnyModelSource
    """Where the model comes from; `source` says which of four ways: hub, folder, gguf or tiny.
    With a fifth, `endpoint`, it is asked and not brought (import-endpoint); with `artifact` it is another run's."""
    template: str | None = None
    """Name of a shipped chat template (`kubealign templates` lists them). Default: the model's own."""
    new_tokens: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Special tokens that the model has not and the template writes: `["<|bof|>", "<|eof|>", "<|eot|>"]` for
    retrieval. Nothing is known of them until a stage trains the embeddings (modules_to_save, or strategy full)."""
    pad_token: str | None = None
    """An existing special token to pad with. Default: the model's own, if it differs from its end token."""
    special_tokens_in_text: Literal["as-text", "as-tokens", "refuse"] | None = None
    """A message that spells a special token, `<|im_end|>` for example: null and `as-text` encode its letters, `refuse`
    drops the row and counts it, `as-tokens` makes it that token, as other programs do. Holds for all later stages."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Storage type of the weights; those of an adapter stay as they are."""

    @classmethod
    def is_meant(cls, get: Callable[[str], Any]) -> bool:
        return (super().is_meant(get) and get("model") is not None and get("role") not in ROLES
                and source_of(get("model")) not in _ELSEWHERE)

    def findings(self) -> Iterator[Finding]:
        tokens = self.new_tokens or ()
        if any(not token.strip() for token in tokens) or len(set(tokens)) < len(tokens):
            yield Finding(("new_tokens",), "has an empty text, or one twice", list(tokens), "different texts")
        if tokens and self.base is not None:
            yield Finding(("new_tokens",), "an adapter has the tokens of its base", list(tokens),
                          "new_tokens of the stage that imports the base")

    @property
    def untaught(self) -> tuple[str, ...]:
        return self.new_tokens or ()

    @property
    def base(self) -> str | None:
        return self.model.base if isinstance(self.model, FolderModel) else None

    def model_refs(self) -> Iterator[ModelRef]:
        if self.base is not None:
            yield ModelRef(("model", "base"), self.base, "policy")

    def sources(self) -> tuple[Outside, ...]:
        local = self.model.local()
        found = Outside(("model",), self.model) if local is None else Outside(("model", local[0]), self.model, local[1])
        return (found,) if self.template is None else (
            found, Outside(("template",), ShippedTemplate(self.template)))

    @property
    def draws(self) -> bool:
        return isinstance(self.model, TinyModel)  # its weights; the others bring theirs

    def learned(self, scaled: Callable[[int | None], int | None]) -> dict[str, Any]:
        return {**super().learned(scaled), "model": {"source": self.model.source}}

    def title(self) -> str:
        if isinstance(self.model, HubModel):
            return f"import · {self.model.repo}"
        return f"import · {self.model.source} {'model' if self.base is None else f'adapter on {self.base}'}"


class ImportReader(Stage):
    """What imports of models have in common that read texts and write none."""

    tag: ClassVar[str] = "import-reader"
    known_by = "model"
    body = "alignment.inference.import_reader:import_reader"
    script = "import_stage"

    kind: Literal["import"] = "import"
    """`import` with `model` and `role` brings a model that is no language model."""
    model: Annotated[HubModel | FolderModel | TinyModel, Field(discriminator="source")]
    """Where the model comes from; `source` says which of three ways: hub, folder or tiny."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Storage type of the weights."""

    @classmethod
    def is_meant(cls, get: Callable[[str], Any]) -> bool:
        return (super().is_meant(get) and get("model") is not None and get("role") == cls.makes
                and source_of(get("model")) != "artifact")

    def sources(self) -> tuple[Outside, ...]:
        local = self.model.local()
        return (Outside(("model",), self.model) if local is None
                else Outside(("model", local[0]), self.model, local[1]),)

    @property
    def draws(self) -> bool:
        return isinstance(self.model, TinyModel)

    def learned(self, scaled: Callable[[int | None], int | None]) -> dict[str, Any]:
        return {**super().learned(scaled), "model": {"source": self.model.source}}

    def findings(self) -> Iterator[Finding]:
        if isinstance(self.model, FolderModel) and self.model.base is not None:
            yield Finding(("model", "base"), "is for an adapter of a language model", self.model.base, "a whole model")
        if isinstance(self.model, HubModel) and self.model.trust_remote_code:
            yield Finding(("model", "trust_remote_code"), "is offered for language models alone", True,
                          "a model that transformers itself knows")

    def title(self) -> str:
        named = self.model.repo if isinstance(self.model, HubModel) else f"{self.model.source} model"
        return f"import · {named} as {self.makes}"


class ImportReward(ImportReader):
    """Bring somebody else's reward model: a sequence classifier with one label, which scores a prompt with its
    answer. It serves wherever a reward model of a train stage does."""

    tag: ClassVar[str] = "import-reward"
    makes = "reward"

    role: Literal["reward"]
    """`reward`: a sequence classifier with one label, whose number is the score."""
    template: str | None = None
    """Name of a shipped chat template for a model that scores conversations. Left out: the model's own; a model
    without any reads a pair of texts: all turns of the prompt, a line each, and the answer."""

    def sources(self) -> tuple[Outside, ...]:
        return super().sources() + (() if self.template is None else (
            Outside(("template",), ShippedTemplate(self.template)),))


class ImportEmbedder(ImportReader):
    """Bring a model that makes vectors of texts: BERT, MiniLM, or any other that transformers' AutoModel loads."""

    tag: ClassVar[str] = "import-embedder"
    makes = "embedder"

    role: Literal["embedder"]
    """`embedder`: a model whose hidden states stand for a text."""


class Source(Strict):
    """One data file, or data set of the hub, and how to read it."""

    path: str | None = None
    """File, or any fsspec URL. Relative paths start at the working directory. Either this or `hub`."""
    hub: str | None = None
    """Name of a data set of the Hugging Face hub, openai/gsm8k for example; needs the network. Runs no script of it."""
    config: str | None = None
    """With `hub`: which of the data set's configurations (subsets). Default: its only one."""
    split: str | None = None
    """With `hub`: which of its splits, for example train or train[:5%]. `split` of the stage divides what comes in."""
    revision: str | None = None
    """With `hub`: branch, tag or commit. Default: main. The commit it resolves to is recorded in the manifest."""
    streaming: bool | None = None
    """With `hub`: read rows as they arrive, without a copy of the data set in the hub library's cache."""
    format: Literal[
        "messages",
        "prompt-completion",
        "preference",
        "unpaired",
        "prompt-only",
        "passage-qa",
        "alpaca",
        "self-instruct",
        "sharegpt",
        "sharegpt-preference",
        "hh-transcript",
        "pandalm",
        "auto-j",
        "reward-bench",
        "ultrafeedback-binarized",
        "squad",
        "boolq",
        "drop",
        "hotpotqa",
        "musique",
        "multihop",
        "stack-exchange-paired",
        "votes",
        "columns",
    ]
    """Shape of the rows. `columns` reads CSV, Parquet or JSON lines by what `columns` says."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Only for format columns: our field -> the file's column, for example {prompt: question, completion: answer}, or a
    text with columns in braces, for example "{Type}: {Context}"; braces that are meant are doubled."""
    take: Positive | None = None
    """At most so many rows (times the run's `scale`), drawn with the run's seed; splits are made after that."""
    take_unanswerable: Positive | None = None
    """At most so many (times `scale`) of the rows of kind unanswerable (of SQuAD 2.0, of MuSiQue); `take` is then for
    the others alone."""
    name: Name | None = None
    """Names the source in counts and ids. Default: from the file's name."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("a source is either a file (path) or a data set of the hub (hub): one of the two")
        if self.hub is None and (keys := [key for key in ("config", "split", "revision", "streaming")
                                          if getattr(self, key) is not None]):
            raise ValueError(f"{', '.join(keys)} of a file: for a data set of the hub (hub) alone")
        if self.hub is not None and not _HUB.fullmatch(self.hub):
            raise ValueError(f"hub: {self.hub!r} is no name of a data set; expected OWNER/NAME, not its URL")
        if self.hub is not None and self.split is None:
            raise ValueError("hub needs split: which of the data set's splits is read, for example train")
        return self

    @property
    def place(self) -> str:
        """What it is, for people: the path as it was written, or hub:OWNER/NAME/CONFIG/SPLIT@REVISION."""
        if self.path is not None:
            return self.path
        parts = filter(None, (self.hub, self.config, self.split))
        return f"hub:{'/'.join(parts)}@{self.revision or 'main'}"


TIED = ("pandalm", "auto-j", "ultrafeedback-binarized", "preference")
"""Formats whose rows may be ties."""
RETRIEVED = ("squad", "boolq", "drop", "hotpotqa", "musique", "passage-qa", "multihop")
"""Formats of rows that retrieve: true can make, or that are so already."""


class FieldSplit(Strict):
    """The file says in one of its own fields which split a row belongs to."""

    by: Literal["field"]
    """`field`: every row says itself where it belongs."""
    field: str = "split"
    """The field of a row that names its split."""
    names: tuple[str, ...]
    """The splits that are wanted, for example [train, dev, test]. A row with another value is a bad row."""

    @property
    def splits(self) -> tuple[str, ...]:
        return self.names


class RatioSplit(Strict):
    """Rows are divided at random by group (same passage, same group), so that no text crosses a split."""

    by: Literal["ratio"]
    """`ratio`: rows are drawn, with the run's seed."""
    ratios: dict[str, Fraction]
    """Split -> share of the rows, for example {train: 0.8, dev: 0.1, test: 0.1}; in which order does not matter. Where
    they sum to less than 1, the rest is left out and counted."""

    @model_validator(mode="after")
    def _sum(self) -> Self:
        if not self.ratios or sum(self.ratios.values()) > 1 + 1e-9:
            raise ValueError("ratios must name at least one split and sum to at most 1")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.ratios)

    @property
    def cut(self) -> dict[str, float]:
        """Largest first, then by name: the rows are cut in this order, which no program that sorts keys changes."""
        return dict(sorted(self.ratios.items(), key=lambda item: (-item[1], item[0])))


Split = Annotated[FieldSplit | RatioSplit, Field(discriminator="by")]


class ImportData(Stage):
    """Read files into records, check every row, divide them into splits; bad rows are kept beside the good."""

    tag: ClassVar[str] = "import-data"
    makes = "rows"
    brings_data = True
    # 1 dropped keys of rows unsaid, took blank cells for values, and cut words at combining marks (splits, overlap).
    revision = 2
    body = "alignment.data.import_data:import_data"
    script = "import_stage"

    kind: Literal["import"] = "import"
    """`import` with `data` and without `model` reads data files."""
    data: tuple[Source, ...] = Field(min_length=1)
    """The files, each with its format. A row whose text an earlier file held already is a bad row."""
    system: str | None = None
    """System message set before every prompt that has none."""
    passage_prompt: str = "{passage}\n\n{question}"
    """User message of the passage formats (passage-qa, squad, boolq, drop, ...)."""
    unanswerable: str | None = None
    """Answer of the questions whose passage does not answer them (squad, musique), for example "The passage does not
    say.". Left out: they have none, so that a stage may ask them but none learns from them."""
    hygiene: Hygiene | None = None
    """Near duplicates, other languages and personal data: rows left out, or changed, and counted."""
    retrieve: bool | None = None
    """true: rows of passage formats become conversations that call `retrieve` for their passages (docs/multihop.md);
    passage_prompt is then not read."""
    ties: Literal["keep"] | None = None
    """`keep`: a pair that was judged a tie becomes a row of type tie, and pairs say each annotator's vote where the
    file does: to evaluate judges by; nothing learns from a tie. Left out: it is a bad row, with the reason tie."""
    split: Split
    """How rows are divided into the row sets that later stages name as STAGE/SPLIT; `by` says which way."""
    max_bad: Fraction | None = 0.1
    """The stage fails when more than this share of the rows is bad; null accepts any number. Rows that `hygiene` leaves
    out do not count."""

    @classmethod
    def is_meant(cls, get: Callable[[str], Any]) -> bool:
        return super().is_meant(get) and all(get(key) is None for key in ("model", "documents", "rows"))

    def splits(self) -> tuple[str, ...]:
        return self.split.splits

    def findings(self) -> Iterator[Finding]:
        if self.unanswerable is not None and not any(source.format in ("squad", "musique") for source in self.data):
            yield Finding(("unanswerable",), "no source has questions that are marked as unanswerable",
                          self.unanswerable, "a source of format squad or musique, or to be left out")
        elif self.unanswerable is not None and not self.unanswerable.strip():
            yield Finding(("unanswerable",), "is an answer without text", self.unanswerable, "a text")
        if self.ties is not None and not any(source.format in TIED for source in self.data):
            yield Finding(("ties",), "no source has rows that may be ties", self.ties,
                          f"a source of format {', '.join(TIED)}, or to be left out")
        yield from hygiene_findings(self.hygiene)
        if self.retrieve:
            yield from self._unretrievable()

    def _unretrievable(self) -> Iterator[Finding]:
        for index, source in enumerate(self.data):
            if source.format not in RETRIEVED:
                yield Finding(("data", index, "format"), "has no passage that could be retrieved", source.format,
                              f"with retrieve: true one of {', '.join(RETRIEVED)}")
        for key in ("passage_prompt", "unanswerable"):
            # Not model_fields_set: a run that comes back from a manifest has every key set.
            if (value := getattr(self, key)) != type(self).model_fields[key].default:
                yield Finding((key,), "is not read with retrieve: true", value, "one of the two keys")

    @property
    def parted(self) -> bool:
        return isinstance(self.split, RatioSplit)

    def sources(self) -> tuple[Outside, ...]:
        return tuple(Outside(("data", index, "hub" if source.path is None else "path"), source, source.path,
                             travels=source.path is not None) for index, source in enumerate(self.data))

    @property
    def draws(self) -> bool:
        return isinstance(self.split, RatioSplit) or any(
            (source.take, source.take_unanswerable) != (None, None) for source in self.data)

    def mended(self) -> dict[str, int]:
        # Rows were cut in the order in which the file has the ratios, which the digest does not know.
        # Of HotpotQA's supporting paragraphs those with a colon in their title were left out of what is retrieved.
        lacked = self.retrieve and any(source.format in ("hotpotqa", "musique") for source in self.data)
        return (super().mended() | ({"split-order": 2} if len(self.splits()) > 1 and self.parted else {})
                | ({"retrieved": 2} if lacked else {}))

    def relocated(self, paths: Mapping[str, str]) -> Self:
        return self.model_copy(update={"data": tuple(
            source if source.path is None else
            source.model_copy(update={"path": paths.get(source.path, source.path)}) for source in self.data)})

    def learned(self, scaled: Callable[[int | None], int | None]) -> dict[str, Any]:
        config = super().learned(scaled)
        for source, entry in zip(self.data, config["data"], strict=True):
            if source.path is not None:
                entry["path"] = source.path.rsplit("/", 1)[-1]  # names rows; the folder does not matter
            entry["take"] = scaled(source.take)
            entry.pop("streaming", None)  # how rows come in, not which
            if source.take_unanswerable is not None:
                entry["take_unanswerable"] = scaled(source.take_unanswerable)
        return config

    def title(self) -> str:
        files = [source for source in self.data if source.path is not None]
        hub = [str(source.hub) for source in self.data if source.path is None]
        return "import · " + ", ".join([*([plural(len(files), "file")] if files else []), *hub])
