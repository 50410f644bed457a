"""Which recorded rows a model is held to: an evaluation's of the store, or, where none measured it, answers that are
made from its artifact now, once, by transformers with the adapter merged. Opens models for the latter alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite

from alignment.artifacts import Artifact, Store
from alignment.config import Compute
from alignment.errors import ArtifactError, ConfigError, DataError
from alignment.inference.generator import Pooling, embedder_of, scorer_of
from alignment.inference.info import role_of
from alignment.inference.live.opened import merged_policy
from alignment.inference.proof_rows import FILE, ProofRow, Row, ScoreRow, VectorRow, read, rows_of, written
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
MOST_TOKENS = 8192
"""Of a text, where a model does not say how many it takes."""
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


@dataclass(frozen=True)
class Reading:
    """How an embedder's vectors are made of its last hidden layer, and who says so.

    Attributes:
        pooling, normalise: as `Embedder.embed` has them.
    """

    pooling: Pooling
    normalise: bool
    source: str


def reading_of(artifact: Artifact, pooling: Pooling | None) -> Reading:
    """As it was asked for, or as the newest stage of the artifact's store that reads vectors of it does.

    Raises:
        ConfigError: it was not, and none does: the model itself does not say.
    """
    if pooling is not None:
        return Reading(pooling, True, "as asked")
    found = []
    for reader in _readers(artifact, ("evaluate-", "select-coverage-")):
        config = reader.manifest.config
        own = config if "embedder" in config else config.get("retrieve") or {}
        if reader.manifest.inputs.get(own.get("embedder", "")) == artifact.key:
            found.append((reader.manifest.finished, reader.key, own))
    if not found:
        raise ConfigError("no stage of the store says which of the embedder's states stands for a text",
                          where=artifact.url, expected="--pooling cls or mean (in a run's serve: pooling)",
                          hint="as the model was made: its card, or 1_Pooling/config.json beside it, says which")
    _, key, own = max(found, key=lambda one: one[:2])
    return Reading(own["pooling"], bool(own.get("normalise", True)), f"as {key} reads it")


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
        store = artifact.store
        if store.url not in evaluations:
            recorded = [one for one in _stages(store, ("evaluate-",)) if FILE in one.manifest.files]
            evaluations[store.url] = sorted(recorded, key=lambda one: one.manifest.finished, reverse=True)
        found.append(_newest(artifact, evaluations[store.url], rows))
    return found


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


def make(artifact: Artifact, compute: Compute, pooling: Pooling | None = None) -> Record:
    """Rows made now from the artifact, and kept in the store; says that no evaluation vouches for them.

    Args:
        pooling: of an embedder, as for `reading_of`.

    Raises:
        ConfigError: as `reading_of`.
        ModelError: the model cannot be loaded.
    """
    console.print(f"! {artifact.key}: no evaluation of its store recorded what it answers, so its answers are made now "
                  "from the artifact, by transformers; that shows that serving changes nothing, not that the artifact "
                  "is what was measured", markup=False)
    rows = list[Row](_made(artifact, compute, pooling))
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in written(rows))
    artifact.store.write_served_file(artifact.key, FILE, lines)
    return Record(rows, "made from the artifact before it was served")


def _made(artifact: Artifact, compute: Compute, pooling: Pooling | None) -> Iterable[Row]:
    match role_of(artifact):
        case "embedder":
            return _vectors(artifact, compute, reading_of(artifact, pooling))
        case "reward":
            return _scores(artifact, compute)
        case _:
            return _answers(artifact, compute)


def _vectors(artifact: Artifact, compute: Compute, reading: Reading) -> Iterable[VectorRow]:
    with embedder_of(artifact, compute) as model:
        most = model.context_length or MOST_TOKENS
        vectors, cut = model.embed(PROMPTS, pooling=reading.pooling, max_tokens=most, normalise=reading.normalise)
    return [VectorRow(f"built-in-{number}", artifact.key, text, [float(value) for value in vector], reading.pooling,
                      reading.normalise, compute.dtype)
            for number, (text, vector) in enumerate(zip(PROMPTS, vectors, strict=True)) if number not in cut]


def _answers(artifact: Artifact, compute: Compute) -> Iterable[ProofRow]:
    prompts = [[{"role": "user", "content": text}] for text in PROMPTS]
    with merged_policy(artifact, compute) as model:
        told = model.told(prompts, TOKENS)
        return rows_of([f"built-in-{number}" for number in range(len(prompts))], prompts, told, TOKENS, artifact.key,
                       model.made_by)


def _scores(artifact: Artifact, compute: Compute) -> Iterable[ScoreRow]:
    prompts = [[{"role": "user", "content": text}] for text in PROMPTS]
    with scorer_of(artifact, compute) as model:
        scores = model.score([(prompt, _ANSWER) for prompt in prompts])
    if not all(map(isfinite, scores)):
        raise DataError("the reward model gives no finite score for plain texts", where=artifact.url, found=scores)
    return [ScoreRow(f"built-in-{number}", artifact.key, prompt, _ANSWER, score, compute.dtype)
            for number, (prompt, score) in enumerate(zip(prompts, scores, strict=True))]


def _readers(artifact: Artifact, kinds: tuple[str, ...]) -> list[Artifact]:
    """Finished stages of the artifact's store, of some kinds, that read it or what it is another form of."""
    keys = _same_answers(artifact)
    return [reader for reader in _stages(artifact.store, kinds) if keys & {*reader.manifest.inputs.values()}]


def _stages(store: Store, kinds: tuple[str, ...]) -> Iterator[Artifact]:
    """The finished stages of some kinds; one that is damaged is left out: whoever asks for it hears of it."""
    for key in store.listed():
        if key.startswith(kinds):
            with suppress(ArtifactError):
                if (found := store.find(key)) is not None:
                    yield found


def _same_answers(artifact: Artifact) -> set[str]:
    """Keys of artifacts that are the same model."""
    facts = artifact.manifest.facts
    others = [facts["chosen"]["artifact"] if "chosen" in facts else None, facts.get("exported")]
    return {artifact.key, *(str(key) for key in others if key)}
