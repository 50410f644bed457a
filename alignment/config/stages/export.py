"""Export: a model of the run as folders and files that other programs load, its card, and its way to the hub."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from alignment.config.stages.base import Finding, ModelRef, RowsPlace, Stage
from alignment.config.stages.fields import FORMS, Dtype, Fraction, Name, Place, Positive, RowsRef, Strict

Form = Literal["safetensors", "adapter", "gguf", "nf4", "fp8"]
GgufType = Literal["f32", "f16", "bf16", "q8_0"]
Stored = Literal["float32", "bfloat16", "float16"]
ELSEWHERE = frozenset({"awq", "gptq"})
"""Forms that llm-compressor makes."""
BOUNDS: dict[str, tuple[float, float]] = {
    "float32": (1e-4, 0.999), "float16": (1e-3, 0.99), "bfloat16": (1e-2, 0.95), "q8_0": (2e-2, 0.9), "nf4": (0.5, 0.6),
    "fp8": (0.2, 0.7),
}
"""What weights are stored as -> the most KL in nats per token, and the least share of equal top-1 tokens."""
SHARD_GB, ROWS, TOKENS = 5.0, 16, 256
"""Defaults of shard_gb, take and max_tokens."""
GGUF_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Values of `model_type` that a GGUF file is made for."""
_REPO = r"^[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}$"
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
FORMS[_REPO] = "OWNER/NAME of the hub: my-org/my-model"
FORMS[_VARIABLE] = "the name of an environment variable: HF_TOKEN"


def _made_here(value: object) -> object:
    if isinstance(value, str) and value in ELSEWHERE:
        raise ValueError(f"{value} is made by llm-compressor, which does not install beside this transformers (it asks "
                         "for 5.17 at most). Export safetensors, and run llm-compressor over that folder in an "
                         "environment of its own")
    return value


def _one_branch(value: str) -> str:
    if value.startswith("refs/") or ".." in value or any(letter.isspace() for letter in value):
        raise ValueError("revision is a branch of the repository: main, v2")
    return value


class Push(Strict):
    """Where on the Hugging Face hub an export goes."""

    repo: Annotated[str, Field(pattern=_REPO)]
    """OWNER/NAME. It is made where it is not there."""
    private: bool = True
    """Whether a repository that has to be made is private; one that is there stays as it is."""
    revision: Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_one_branch)] = "main"
    """Branch that gets the commit; it is made where it is not there."""
    dry_run: bool = False
    """Lists files, sizes and the commit, and asks nobody: neither token nor network is needed."""
    token_env: Annotated[str, Field(pattern=_VARIABLE)] = "HF_TOKEN"
    """Environment variable with a token that may write. On a cluster the profile's env_from names the Secret."""


class Dataset(Strict):
    """What the model card says of a data set, beside its digest and its rows."""

    licence: Annotated[str, Field(min_length=1)] | None = None
    """Its licence, as the hub writes it: cc-by-sa-4.0, mit."""
    hub: Annotated[str, Field(min_length=1)] | None = None
    """Its name on the hub, where it has one: OWNER/NAME."""


class Export(Stage):
    """A model as other programs load it: merged, converted, compared with what was trained, with a card; pushed."""

    tag: ClassVar[str] = "export"
    makes = "policy"
    body = "alignment.export.make:export_stage"
    script = "export"
    says_names = True  # the card does
    bfloat16_on = frozenset({"gpu"})

    kind: Literal["export"] = "export"
    """`export`: a model as folders and files that other programs load."""
    model: Name
    """The model to export: of a train, import or choose stage."""
    form: Annotated[tuple[Annotated[Form, BeforeValidator(_made_here)], ...], Field(min_length=1)] = ("safetensors",)
    """safetensors: whole weights, adapter merged. adapter: the adapter alone, as PEFT writes it. gguf: llama.cpp's
    files. nf4: four bits (bitsandbytes). fp8: eight bits, as vLLM serves them (compressed-tensors). The last three are
    made from the merged weights."""
    merge_into: Literal["original", "dequantised"] | None = None
    """The base under the adapter: as it is stored, or as its four bits say. Default: what the adapter was trained over
    (dequantised for qlora); the other is another model, and the comparison says how far off."""
    weights: Stored | None = None
    """Storage type of the merged weights. Default: as the base is stored."""
    gguf: Annotated[tuple[GgufType, ...], Field(min_length=1)] | None = None
    """Types of the GGUF files, one file each. Default: q8_0."""
    shard_gb: Annotated[float, Field(gt=0)] | None = None
    """Largest file of safetensors, in GB. Default: 5."""
    base_model: Annotated[str, Field(min_length=1)] | None = None
    """What adapter_config.json and the card call the base: a hub name, or a path there. Default: its hub name and
    commit where it came from the hub, else its place in the store, as a path from the adapter's folder."""
    rows: RowsRef | None = None
    """STAGE/SPLIT whose conversations compare the export with the trained model. Default: a few built-in prompts."""
    take: Positive | None = None
    """Rows that are compared (times the run's scale), evenly from the split. Default: 16."""
    max_tokens: Positive | None = None
    """Tokens of a row that are compared, its first. Default: 256."""
    max_kl: Annotated[float, Field(gt=0)] | None = None
    """Most KL from the trained model, in nats per token, for each form. Default by what weights are stored as:
    float32 1e-4, float16 1e-3, bfloat16 1e-2, q8_0 2e-2, nf4 0.5, fp8 0.2. Beyond it the stage fails."""
    min_top1: Fraction | None = None
    """Least share of positions where the likeliest token is the same. Default: float32 0.999, float16 0.99,
    bfloat16 0.95, q8_0 0.9, nf4 0.6, fp8 0.7. Below it the stage fails."""
    evaluations: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    """Evaluate stages whose results the model card quotes, with their intervals."""
    licence: Annotated[str, Field(min_length=1)] | None = None
    """Licence of the model, as the hub writes it: apache-2.0, llama2. Left out, the card says that none is stated."""
    datasets: dict[Name, Dataset] | None = None
    """Import stage of data -> licence and hub name for the card: {seed: {licence: mit, hub: OWNER/NAME}}."""
    limits: str | None = None
    """What the model is not meant for and does badly, in your words; stands in the card."""
    push_to_hub: Push | None = None
    """Pushes the exported files to the Hugging Face hub. The commit is recorded in the manifest."""
    dtype: Dtype | None = None
    """Arithmetic of the comparison. Left out: compute.dtype, whose auto is bfloat16 on a GPU, else float32. Weights are
    merged in float32 always."""

    @property
    def draws(self) -> bool:
        return False

    @property
    def stands_for(self) -> tuple[str, ...]:
        return () if self.whole else (self.model,)  # an adapter alone is the model's, under another name

    @property
    def whole(self) -> bool:
        """Whether merged weights are made."""
        return set(self.form) != {"adapter"}

    def model_refs(self) -> Iterator[ModelRef]:
        yield ModelRef(("model",), self.model, "policy")

    def row_refs(self) -> Iterator[RowsPlace]:
        if self.rows is not None:
            yield RowsPlace(("rows",), self.rows)

    def kept_apart(self) -> Iterator[RowsPlace]:
        return self.row_refs()  # they are compared on; nothing learns from them

    def quotes(self) -> Iterator[tuple[Place, str]]:
        return ((("evaluations", index), name) for index, name in enumerate(self.evaluations or ()))

    def names(self) -> Iterator[Place]:
        yield from super().names()
        yield from (place for place, _ in self.quotes())

    def findings(self) -> Iterator[Finding]:
        for key, values in (("form", self.form), ("gguf", self.gguf or ()), ("evaluations", self.evaluations or ())):
            if len(set(values)) < len(values):
                yield Finding((key,), "names one twice", list(values), "each once")
        if self.gguf is not None and "gguf" not in self.form:
            yield Finding(("gguf",), "types of files that are not asked for", list(self.gguf), "gguf in `form`")
        for key in ("merge_into", "weights", "shard_gb"):
            if not self.whole and (found := getattr(self, key)) is not None:
                yield Finding((key,), "nothing is merged for an adapter alone", found, "safetensors in `form`")
        if self.rows is None and self.take is not None:
            yield Finding(("take",), "takes of rows that are not named", self.take, "`rows: STAGE/SPLIT`")

    def compared_forms(self) -> tuple[str, ...]:
        """Names of what is held against the trained model, as metrics have them."""
        whole = ("safetensors",) if self.whole else ()
        files = tuple(f"gguf_{kind}" for kind in self.gguf or ("q8_0",)) if "gguf" in self.form else ()
        return (*whole, *(form for form in ("adapter", "nf4", "fp8") if form in self.form), *files)

    @property
    def shard_bytes(self) -> int:
        """Largest file of safetensors."""
        return max(1, round((self.shard_gb or SHARD_GB) * 1e9))

    def bounds(self, *rounded: str) -> tuple[float, float]:
        """Most KL and least top-1 agreement of a form, by the coarsest of what its weights were rounded to on their
        way: stored as, made from, compared in."""
        each = [BOUNDS[one] for one in rounded]
        return self.max_kl or max(kl for kl, _ in each), self.min_top1 or min(top1 for _, top1 in each)

    def title(self) -> str:
        where = "" if self.push_to_hub is None else f" to {self.push_to_hub.repo}"
        return f"export · {', '.join(self.form)}{where}" + (
            " (dry run)" if self.push_to_hub is not None and self.push_to_hub.dry_run else "")
