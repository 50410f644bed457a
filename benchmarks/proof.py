"""What the proof's bounds for bfloat16 stand on: how far honest serving is from its record, and how far faults are.

    python -m benchmarks.proof NAME=MODEL... [--store runs] [--earlier NAME=CHECKPOINT]... [--reward NAME=MODEL]
                               [--random] [--tokens 32] [--device cpu] [--no-vllm]

Each policy (a key, RUN:STAGE or an artifact's folder) is recorded in float32 and in bfloat16, as an evaluation records
it (transformers, the adapter merged, eight rows in one batch), over the rows of its evaluation and over the built-in
prompts. Then the same is served, adapters unmerged: in bfloat16 by transformers in batches of 8 and of 3 and by vLLM,
and in float32 where the record is bfloat16. That is honest and has to pass. The faults are the base under the adapter's
name, a checkpoint of an earlier step (PEFT's folder, kept while the stage trained), half and nine tenths of the
adapter's alpha, and half of one tensor set to zero. `--random` adds two random models, sure of what they say, with a
random adapter each.

Of each comparison: `most`, the least bound of a token with which all rows pass (log-probabilities, and half the gap of
a greedy choice that fell to the runner-up; infinite where another token came), and `mean`, over all tokens compared. A
fault is seen where it is beyond either bound. `--reward` compares a reward model's scores likewise. Prints tables, and
puts the measurement into benchmarks/results/proof.json beside those of other devices.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import torch
from peft import set_peft_model_state_dict
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from alignment.artifacts import Artifact
from alignment.config import Compute
from alignment.inference.generator import scorer_of
from alignment.inference.info import base_key
from alignment.inference.live.asked import Broken, Grown, Heard, Question
from alignment.inference.live.opened import LiveModel, merged_policy, open_live
from alignment.inference.proof_rows import ProofRow, ScoreRow, rows_of
from alignment.inference.requests import Draw, Token
from alignment.pipeline.named import named
from alignment.serving import records
from alignment.serving.compared import BFLOAT16, SCORE
from benchmarks.decided import decided

RESULTS = Path(__file__).parent / "results" / "proof.json"
DTYPES = ("float32", "bfloat16")
BATCHES = (8, 3)
SAID = ("I do not know, but I would like to help.", "Paris.")
"""Answers that a reward model scores beside those of its evaluation."""
Found = dict[str, Any]
Rows = list[ProofRow]


def main() -> None:
    options = _options()
    found, scores = list[Found](), list[Found]()
    with tempfile.TemporaryDirectory() as place:
        policies = dict(_artifact(text, options.store) for text in options.models)
        if options.random:
            policies |= decided(Path(place))
        for name, artifact in policies.items():
            found += _policy(name, artifact, options)
            print(f"{name}: measured", flush=True)
            _keep(found, scores, options)
        for text in options.reward:
            scores += _scores(*_artifact(text, options.store), options)
            _keep(found, scores, options)
    _show(found, scores)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("models", nargs="*", metavar="NAME=MODEL")
    parser.add_argument("--store", default="runs")
    parser.add_argument("--earlier", action="append", default=[], metavar="NAME=CHECKPOINT")
    parser.add_argument("--reward", action="append", default=[], metavar="NAME=MODEL")
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--tokens", type=int, default=records.TOKENS, help="of an answer, at most")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--no-vllm", action="store_true")
    return parser.parse_args()


def _artifact(text: str, store: str) -> tuple[str, Artifact]:
    name, _, what = text.partition("=")
    found = named(what or name, store, makes=("policy", "reward"))
    assert isinstance(found, Artifact)
    return name, found


# --- policies ------------------------------------------------------------------------------------------------


def _policy(name: str, artifact: Artifact, options: argparse.Namespace) -> list[Found]:
    """Each comparison of one model, honest and faulty."""
    recorded = {dtype: _recorded(artifact, _compute(options, dtype), options.tokens) for dtype in DTYPES}
    found: list[Found] = []

    def compare(what: str, fault: bool, engine: str, dtype: str, served: dict[str, list[list[Token]]]) -> None:
        for kept, sets in recorded.items():
            if not (kept == dtype == "float32"):
                for rows, answers in served.items():
                    found.append({"model": name, "what": what, "fault": fault, "recorded": kept, "engine": engine,
                                  "served": dtype, "rows": rows, **_needed(sets[rows], answers)})

    prompts = {rows: made for rows, made in recorded["float32"].items() if made}
    bfloat16 = _compute(options, "bfloat16")
    for batch in BATCHES:
        with _live(artifact, bfloat16, batch) as live:
            compare(f"batches of {batch}", False, "transformers", "bfloat16", _answers(live, prompts))
            for fault, plant in _faults(name, live, options) if batch == BATCHES[0] else ():
                with plant() as adapter:
                    compare(fault, True, "transformers", "bfloat16", _answers(live, prompts, adapter))
    with _live(artifact, _compute(options, "float32"), 8) as live:
        compare("batches of 8", False, "transformers", "float32", _answers(live, prompts))
    if not options.no_vllm:
        with _live(artifact, bfloat16.model_copy(update={"engine": "vllm"}), 8) as live:
            compare("vllm", False, "vllm", "bfloat16", _answers(live, prompts))
    return found


def _compute(options: argparse.Namespace, dtype: str) -> Compute:
    return Compute.model_validate({"device": options.device, "dtype": dtype, "engine": "transformers"})


def _recorded(artifact: Artifact, compute: Compute, tokens: int) -> dict[str, Rows]:
    """What an evaluation would record of the model: its own rows, where one measured it, and the built-in prompts."""
    record = records.find(artifact)
    own = [row for row in record.rows if isinstance(row, ProofRow)] if record else []
    asked = {"built-in": ([[{"role": "user", "content": text}] for text in records.PROMPTS], tokens)}
    if own:
        asked["evaluation"] = [row.messages for row in own], min(own[0].most, tokens)
    with merged_policy(artifact, compute) as model:
        return {rows: rows_of([f"{rows}-{n}" for n in range(len(prompts))], prompts, model.told(prompts, most), most,
                              artifact.key, model.made_by) for rows, (prompts, most) in asked.items()}


@contextmanager
def _live(artifact: Artifact, compute: Compute, batch: int) -> Iterator[LiveModel]:
    [(_, live)] = open_live([artifact], compute, longest=2048, rows=batch)
    if not isinstance(live, LiveModel):
        raise live
    try:
        yield live
    finally:
        live.engine.close()


def _answers(live: LiveModel, asked: dict[str, Rows], adapter: str | None = "its own") -> dict[str, list[list[Token]]]:
    """Greedy answers to the recorded prompts, all asked at once, by name of the rows."""
    adapter = live.adapter if adapter == "its own" else adapter
    return {name: [wait() for wait in [_ask(live, row, adapter) for row in rows]] for name, rows in asked.items()}


def _ask(live: LiveModel, row: ProofRow, adapter: str | None) -> Callable[[], list[Token]]:
    tokens, ended, broken = list[Token](), Event(), list[str]()

    def hear(heard: Heard) -> None:
        if isinstance(heard, Grown):
            tokens.extend(heard.tokens)
        elif isinstance(heard, Broken):
            broken.append(heard.words)
        if isinstance(heard, Broken) or heard.ended:
            ended.set()

    live.engine.ask(Question(tuple(row.prompt), Draw(temperature=0.0, max_new_tokens=row.most), adapter, 0), hear)

    def wait() -> list[Token]:
        ended.wait()
        if broken:
            raise SystemExit(f"no answer: {broken[0]}")
        return tokens

    return wait


def _needed(rows: Rows, answers: Sequence[Sequence[Token]]) -> Found:
    """The least bounds with which this would pass, and where the distance lies."""
    off, ties, others = list[float](), list[float](), 0
    for row, tokens in zip(rows, answers, strict=True):
        ids = [token.id for token in tokens]
        place = next((at for at, (a, b) in enumerate(zip(row.answer, ids, strict=False)) if a != b),
                     min(len(ids), len(row.answer)))
        off += [abs(a - (token.log_prob or 0.0)) for a, token in zip(row.log_probs[:place], tokens, strict=False)]
        if place < max(len(ids), len(row.answer)):
            if place < min(len(ids), len(row.answer)) and ids[place] == row.runners_up[place]:
                ties.append(row.gaps[place])
            else:
                others += 1
    most = math.inf if others else max([*off, *(gap / 2 for gap in ties)], default=0.0)
    total = sum(len(row.answer) for row in rows)
    return {"most": _rounded(most), "mean": _rounded(sum(off) / max(len(off), 1)),
            "most_off": _rounded(max(off, default=0.0)), "widest_tie": _rounded(max(ties, default=0.0)),
            "ties": len(ties), "other_tokens": others, "compared": round(len(off) / total, 3), "tokens": total}


def _rounded(value: float) -> float:
    return value if math.isinf(value) else round(value, 6)


# --- planted faults ------------------------------------------------------------------------------------------

Plant = Callable[[], Any]


def _faults(name: str, live: LiveModel, options: argparse.Namespace) -> Iterator[tuple[str, Plant]]:
    """Name of each fault, and a context within which the served model has it; it gives the adapter to ask."""
    engine: Any = live.engine
    weights = dict(engine._model.named_parameters())
    for fault, one in _tensors(weights, f".lora_B.{live.adapter}" if live.adapter else ""):
        yield fault, partial(_halved, one, live.adapter)
    if live.adapter is None:
        return
    yield "base", partial(_nothing, None)
    for share in (0.5, 0.9):
        yield f"{share:g} of alpha", partial(_scaled, engine._model, live.adapter, share)
    for text in options.earlier:
        model, _, folder = text.partition("=")
        if model == name:
            yield Path(folder).name, partial(_instead, engine._model, live.adapter, Path(folder))


def _tensors(weights: Mapping[str, torch.Tensor], part: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Some tensors that a fault damages: of the first, a middle and the last layer."""
    layers = 1 + max(int(number) for key in weights for number in key.split(".") if number.isdigit())
    for layer, module in ((0, "q_proj"), (layers // 2, "q_proj"), (layers // 2, "down_proj"), (layers - 1, "up_proj")):
        for key, value in weights.items():
            if f".{layer}." in key and key.endswith(f"{module}{part}.weight"):
                yield f"half of {module} {layer} of the {'adapter' if part else 'weights'}", value


@contextmanager
def _nothing(adapter: str | None) -> Iterator[str | None]:
    yield adapter


@contextmanager
def _halved(weight: torch.Tensor, adapter: str | None) -> Iterator[str | None]:
    """The second half of a tensor's rows is zero."""
    kept = weight.data.clone()
    weight.data[len(kept) // 2:] = 0
    try:
        yield adapter
    finally:
        weight.data.copy_(kept)


@contextmanager
def _scaled(model: Any, adapter: str, share: float) -> Iterator[str]:
    some = [value for key, value in model.named_parameters() if f".lora_B.{adapter}." in key]
    for value in some:
        value.data.mul_(share)
    try:
        yield adapter
    finally:
        for value in some:
            value.data.div_(share)


@contextmanager
def _instead(model: Any, adapter: str, folder: Path) -> Iterator[str]:
    """The adapter's weights of another step."""
    kept = {key: value.data.clone() for key, value in model.named_parameters() if f".{adapter}." in key}
    set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"), adapter_name=adapter)
    try:
        yield adapter
    finally:
        for key, value in model.named_parameters():
            if key in kept:
                value.data.copy_(kept[key])


# --- scores --------------------------------------------------------------------------------------------------


def _scores(name: str, artifact: Artifact, options: argparse.Namespace) -> Iterator[Found]:
    """How far a reward model's scores are from those in float32, honest and faulty."""
    record = records.find(artifact)
    items = [(row.messages, row.answer) for row in (record.rows if record else ()) if isinstance(row, ScoreRow)]
    items += [([{"role": "user", "content": text}], said) for text in records.PROMPTS for said in SAID]
    with scorer_of(artifact, _compute(options, "float32")) as model:
        recorded = model.score(items)
    with scorer_of(artifact, _compute(options, "bfloat16")) as model:
        yield _apart(name, "together", False, recorded, model.score(items))
        yield _apart(name, "one by one", False, recorded, [model.score([item])[0] for item in items])
        weights = dict(model._ready().model.named_parameters())  # type: ignore[attr-defined]
        for fault, one in _tensors(weights, ""):
            with _halved(one, None):
                yield _apart(name, fault, True, recorded, model.score(items))
        for text in options.earlier:
            of, _, folder = text.partition("=")
            if of == name:
                with tempfile.TemporaryDirectory() as place:
                    other = _with_weights(artifact, Path(folder), Path(place))
                    with scorer_of(other, _compute(options, "bfloat16")) as earlier:
                        yield _apart(name, Path(folder).name, True, recorded, earlier.score(items))


def _with_weights(artifact: Artifact, checkpoint: Path, place: Path) -> Artifact:
    """The artifact in a store of its own, with a checkpoint's weights for its own."""
    from alignment.artifacts import Store

    base = base_key(artifact)
    for key in (artifact.key, base):
        shutil.copytree(Path(artifact.store.root, "artifacts", key), place / "artifacts" / key)
    shutil.copy(checkpoint / "adapter_model.safetensors", place / "artifacts" / artifact.key / "model")
    return Artifact(Store(str(place)), artifact.manifest)


def _apart(name: str, what: str, fault: bool, recorded: list[float], served: list[float]) -> Found:
    """By how much, over the score's size where that is above 1: what the bound is held against."""
    off = [abs(a - b) / max(1.0, abs(a)) for a, b in zip(recorded, served, strict=True)]
    return {"model": name, "what": what, "fault": fault, "most": _rounded(max(off)),
            "mean": _rounded(sum(off) / len(off)), "rows": len(off), "spread": _rounded(max(recorded) - min(recorded))}


# --- results -------------------------------------------------------------------------------------------------


def _seen(one: Found) -> bool:
    return bool(one["most"] > BFLOAT16.most or one["mean"] > BFLOAT16.mean or one["compared"] < 0.5)


def _show(found: list[Found], scores: list[Found]) -> None:
    console = Console()
    columns = ("model", "what", "rows", "engine", "recorded", "served", "most", "mean", "compared")
    for fault in (False, True):
        table = Table(*columns, "seen" if fault else "passes", title="Faults" if fault else "Honest")
        for one in found:
            if one["fault"] == fault:
                table.add_row(*(f"{one[key]:.3g}" if isinstance(one[key], float) else one[key] for key in columns),
                              "yes" if _seen(one) == fault else "NO")
        console.print(table)
    table = Table("model", "what", "most", "mean", "fault", "as it should be", title="Scores")
    for one in scores:
        table.add_row(one["model"], one["what"], f"{one['most']:.3g}", f"{one['mean']:.3g}", str(one["fault"]),
                      "yes" if (one["most"] > SCORE["bfloat16"]) == one["fault"] else "NO")
    console.print(table)


def _keep(policies: list[Found], scores: list[Found], options: argparse.Namespace) -> None:
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    machine = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    kept[options.device] = {"machine": machine, "torch": torch.__version__, "policies": policies, "scores": scores}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
