"""Which recorded rows a model is held to: an evaluation's of the store, or, where none measured it, answers that are
made from its artifact now, once, by transformers with the adapter merged. Opens models for the latter alone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite

from alignment.artifacts import Artifact, Store
from alignment.config import Compute
from alignment.errors import ArtifactError, DataError
from alignment.inference.live.opened import merged_policy, reward_model
from alignment.inference.proof_rows import FILE, ProofRow, Row, ScoreRow, read, rows_of, written
from alignment.progress import console

PROMPTS = (
    "What is the capital of France, and what is it known for?",
    "Write one sentence about the sea.",
    "What is 12 + 7? Then multiply the result by 3 and say how you did it.",
    "请用一句话介绍你自己。",
    "List three colours, one to a line.",
    "Translate into German: The boat lies by the gate.",
    "def area(radius):\n    # complete this function\n",
    "A passage says: the lamp was bought in 1912 and broke in 1920. How old was it when it broke?",
)
TOKENS = 32
_SHORT = ("bfloat16", "float16")
_ANSWER = "I do not know, but I would like to help."


@dataclass(frozen=True)
class Record:
    """Rows and where they come from, in words.

    Attributes:
        rounded: whether the artifact's weights are those of the model that was asked, stored in 16 bits since.
    """

    rows: list[Row]
    source: str
    rounded: bool = False


def find(artifact: Artifact) -> Record | None:
    """The newest rows that an evaluation of the artifact's store wrote about it, or, where it is another form of one
    model (an export, the chosen one of several rounds), about that model."""
    return find_all([artifact])[0]


def find_all(artifacts: Iterable[Artifact]) -> list[Record | None]:
    """What `find` finds of each artifact; a store's evaluations are read once for all of them."""
    evaluations: dict[str, list[Artifact]] = {}
    rows: dict[str, list[Row]] = {}
    found = []
    for artifact in artifacts:
        url = artifact.store.url
        if url not in evaluations:
            evaluations[url] = _evaluations(artifact.store)
        found.append(_newest(artifact, evaluations[url], rows))
    return found


def _evaluations(store: Store) -> list[Artifact]:
    """Those that recorded rows, the newest first."""
    found = []
    for key in store.listed():
        if not key.startswith("evaluate-"):
            continue
        try:
            evaluation = store.find(key)
        except ArtifactError:  # damaged: whoever asks for it hears of it
            continue
        if evaluation is not None and FILE in evaluation.manifest.files:
            found.append(evaluation)
    return sorted(found, key=lambda one: one.manifest.finished, reverse=True)


def _newest(artifact: Artifact, evaluations: Iterable[Artifact], rows: dict[str, list[Row]]) -> Record | None:
    """Args: rows: of evaluations, by URL, as far as they were read; gets those that are read here."""
    keys = _same_answers(artifact)
    for evaluation in evaluations:
        if not keys & {*evaluation.manifest.inputs.values()}:
            continue
        if evaluation.url not in rows:
            rows[evaluation.url] = read(evaluation.path() / FILE)
        own = [row for row in rows[evaluation.url] if row.model in keys]
        if own:
            mine = any(row.model == artifact.key for row in own)
            return Record(own, evaluation.key, not mine and artifact.manifest.facts.get("weights") in _SHORT)
    return None


def make(artifact: Artifact, compute: Compute, *, reward: bool) -> Record:
    """Rows made now from the artifact, and kept in the store; says that no evaluation vouches for them.

    Raises:
        ModelError: the model cannot be loaded.
    """
    console.print(f"! {artifact.key}: no evaluation of its store recorded what it answers, so its answers are made now "
                  "from the artifact, by transformers; that shows that serving changes nothing, not that the artifact "
                  "is what was measured", markup=False)
    rows = list[Row](_scores(artifact, compute) if reward else _answers(artifact, compute))
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in written(rows))
    artifact.store.write_served_file(artifact.key, FILE, lines)
    return Record(rows, "made from the artifact before it was served")


def _answers(artifact: Artifact, compute: Compute) -> Iterable[ProofRow]:
    prompts = [[{"role": "user", "content": text}] for text in PROMPTS]
    with merged_policy(artifact, compute) as model:
        told = model.told(prompts, TOKENS)
        return rows_of([f"built-in-{number}" for number in range(len(prompts))], prompts, told, TOKENS, artifact.key,
                       model.made_by)


def _scores(artifact: Artifact, compute: Compute) -> Iterable[ScoreRow]:
    prompts = [[{"role": "user", "content": text}] for text in PROMPTS]
    with reward_model(artifact, compute) as model:
        scores = model.score([(prompt, _ANSWER) for prompt in prompts])
    if not all(map(isfinite, scores)):
        raise DataError("the reward model gives no finite score for plain texts", where=artifact.url, found=scores)
    return [ScoreRow(f"built-in-{number}", artifact.key, prompt, _ANSWER, score, compute.dtype)
            for number, (prompt, score) in enumerate(zip(prompts, scores, strict=True))]


def _same_answers(artifact: Artifact) -> set[str]:
    """Keys of artifacts that are the same model."""
    facts = artifact.manifest.facts
    others = [facts["chosen"]["artifact"] if "chosen" in facts else None, facts.get("exported")]
    return {artifact.key, *(str(key) for key in others if key)}
