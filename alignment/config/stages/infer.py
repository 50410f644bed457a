"""Inference: answers of one model to prompts, unscored, for use elsewhere. Nothing is learned from them here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from alignment.config.stages.base import Finding, ModelRef, RowsPlace, plural
from alignment.config.stages.evaluate import Greedy
from alignment.config.stages.fields import Dtype, Name, Positive, RowsRef
from alignment.config.stages.sampling import Answering


class Infer(Answering):
    """Answers of a model to every prompt of a row set, in its order: answers.jsonl."""

    tag: ClassVar[str] = "infer"
    makes = "files"
    body = "alignment.distributed.infer:infer_stage"
    script = "infer"
    on_workers = True
    bfloat16_on = frozenset({"gpu", "cpu"})

    kind: Literal["infer"] = "infer"
    """`infer`: a model answers prompts; nothing is scored."""
    model: Name
    """Who answers."""
    prompts: RowsRef
    """STAGE/SPLIT to answer. Answers that the rows may have are not shown to the model."""
    n: Positive = 1
    """Answers per prompt."""
    sampling: Greedy = Greedy()
    """How answers are drawn. Temperature 0 unless given: the same answers each time."""
    batch_size: Positive = 32
    """Prompts in one batch (times n sequences). Lower it when the GPU runs out of memory."""
    max_prompt_tokens: Positive | None = None
    """A prompt of more tokens is not asked; it is counted and kept in bad.jsonl. Default: 1024, or what the model's
    context length leaves beside max_new_tokens, where that is less."""
    dtype: Dtype | None = None
    """Arithmetic of the model. Left out: compute.dtype, whose auto is bfloat16 where the hardware has it, else float32
    (and float32 on a cluster's CPUs); what is settled is part of what the stage is."""

    def model_refs(self) -> Iterator[ModelRef]:
        yield ModelRef(("model",), self.model, "policy", asked=True)

    def row_refs(self) -> Iterator[RowsPlace]:
        yield RowsPlace(("prompts",), self.prompts)

    def findings(self) -> Iterator[Finding]:
        if self.n > 1 and self.sampling.greedy:
            yield Finding(("n",), f"all {self.n} answers to a prompt are the same", self.n,
                          "1, or sampling with a temperature above 0")

    def title(self) -> str:
        return f"infer · {plural(self.n, 'answer')} a prompt"
