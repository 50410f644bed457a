"""`infer`: a model's answers to a file of prompts, in its order, without a run file.

Builds the run file that imports both and answers, runs it, and joins the answers with the rows of the file. A row
without an answer stands in OUTPUT.bad.jsonl with the reason.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignment.cli import execute
from alignment.cli.eval import BaseOption, EngineOption, SaveOption, SetOption, StoreOption, TemplateOption
from alignment.cli.named import Named, Tree, stage_name
from alignment.cli.prompts import Asked, read_prompts
from alignment.cli.show import say
from alignment.cli.without_file import run_file
from alignment.config import load_run
from alignment.config.stages.fields import on_this_machine
from alignment.errors import ConfigError, DataError

if TYPE_CHECKING:
    from alignment.artifacts import Artifact

_SOURCE = "prompts"
_AGAIN = "duplicate-row:"


def infer(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="An artifact's key, RUN:STAGE, RUN.yaml:STAGE, the folder of a model or "
                                             "adapter, a GGUF file, OWNER/NAME of the hub, or an endpoint: "
                                             "https://host/v1#MODEL."),
    ],
    input: Annotated[
        str, typer.Option("--input", metavar="FILE", help="Prompts: JSON lines, CSV, TSV, or text with one a line.")
    ],
    output: Annotated[
        str,
        typer.Option("--output", metavar="FILE", help="JSON lines, one for each answer: row, id, prompt, answer, "
                                                      "finished, tokens."),
    ],
    prompt_field: Annotated[
        str | None,
        typer.Option("--prompt-field", help="Key or column of the prompt. Default: prompt, or messages."),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="System message of prompts that have none.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", help="Longest answer. Default: 128.")
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Answers per prompt.")] = 1,
    temperature: Annotated[
        float, typer.Option("--temperature", help="0 always takes the likeliest token.")
    ] = 0.0,
    template: TemplateOption = None,
    base: BaseOption = None,
    engine: EngineOption = None,
    store: StoreOption = "runs",
    save: SaveOption = None,
    overrides: SetOption = None,
) -> None:
    """Answer a file of prompts with a model; stopped, the same command goes on where it was."""
    source, target = on_this_machine(input), on_this_machine(output)
    bad_file = target.with_name(f"{target.name}.bad.jsonl")
    if target.absolute() == source.absolute() or target.is_dir():
        raise ConfigError("cannot be written to", where="--output", found=output, expected="a file of its own")
    asked, bad = read_prompts(source, prompt_field)
    if not asked:
        raise DataError("no row has a prompt", where=f"--input {input}", found=bad[:3],
                        hint="--prompt-field names the key or column")
    named = Named(store, template, base)
    name = named.model(model)
    stage: Tree = {"name": "answers", "kind": "infer", "model": name, "prompts": "data/all"}
    sampling = {**({} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}),
                **({"temperature": temperature} if temperature else {})}
    stage |= {"sampling": sampling} if sampling else {}
    stage |= {"n": n} if n != 1 else {}
    data: Tree = {"name": "data", "kind": "import", "max_bad": None, "split": {"by": "ratio", "ratios": {"all": 1.0}},
                  "data": [{"path": _kept(asked, source, store), "format": "prompt-only", "name": _SOURCE}]}
    data |= {} if system is None else {"system": system}
    file = run_file("infer", source.stem, [*named.written(), data, stage], overrides, store=store, save=save,
                    engine=engine)
    execute.run(file)
    from alignment import pipeline

    made = pipeline.status(load_run(file))
    rows, answers = made["data"], made["answers"]
    assert rows is not None
    assert answers is not None
    same = _repeated(asked, rows)
    written = _write(target, _lines(asked, answers, same))
    bad += list(_without(asked, rows, answers, same))
    _write(bad_file, sorted(bad, key=lambda row: int(row["row"])))
    say(f"{output}: {written} answers to {len({one.row for one in asked})} prompts"
        + (f", {len(same)} of which repeat an earlier one and have its answers" if same else "")
        + (f"; {len(bad)} rows without one, in {bad_file}" if bad else ""))


def _kept(asked: list[Asked], source: Path, store: str) -> str:
    """Path of the prompts as the run reads them: one file for each content, which a later start finds again."""
    from alignment.artifacts import cache_folder, digest_of

    content = "".join(json.dumps({"id": one.key, "prompt": one.prompt}, ensure_ascii=False) + "\n" for one in asked)
    name = f"{stage_name(f'infer-{source.stem}')[:31]}-{digest_of(content)[:8]}.jsonl"
    folder = cache_folder() / "prompts" if "://" in store else on_this_machine(store) / "prompts"
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8", newline="\n")
    except OSError as error:
        raise ConfigError(f"the prompts cannot be kept: {error}", where=str(path)) from error
    return str(path)


def _each(artifact: Artifact, name: str) -> Iterator[dict[str, Any]]:
    path = artifact.path() / name
    for line in path.open(encoding="utf-8") if path.exists() else ():
        yield json.loads(line)


def _repeated(asked: list[Asked], rows: Artifact) -> dict[str, str]:
    """Key of a row that repeats an earlier prompt, which the import keeps once -> key of that one."""
    return {asked[int(one["row"]) - 1].key: _key(one["reason"].rpartition(" ")[2]) for one in _each(rows, "bad.jsonl")
            if one["reason"].startswith(_AGAIN)}


def _lines(asked: list[Asked], answers: Artifact, same: dict[str, str]) -> Iterator[dict[str, Any]]:
    """One for each answer, in the order of the file."""
    said: dict[str, list[dict[str, Any]]] = {}
    for one in _each(answers, "answers.jsonl"):
        said.setdefault(_key(one["id"]), []).append(one)
    for row in asked:
        for one in said.get(same.get(row.key, row.key), ()):
            yield {"row": row.row, "id": row.id, "index": one["index"], "prompt": row.prompt, "answer": one["text"],
                   "finished": one["finished"], "tokens": one["tokens"]}


def _without(
    asked: list[Asked], rows: Artifact, answers: Artifact, same: dict[str, str],
) -> Iterator[dict[str, Any]]:
    """Rows of the file that the import or the model could not take, with the reason."""
    by_key: dict[str, list[Asked]] = {}
    for row in asked:
        by_key.setdefault(same.get(row.key, row.key), []).append(row)
    for one in _each(rows, "bad.jsonl"):
        if one["reason"].startswith(_AGAIN):
            continue
        row = asked[int(one["row"]) - 1]
        yield {"row": row.row, "id": row.id, "reason": one["reason"], "raw": row.prompt}
    for one in _each(answers, "bad.jsonl"):
        more = {key: one[key] for key in ("found", "index") if key in one}
        yield from ({"row": row.row, "id": row.id, "reason": one["reason"], "raw": row.prompt, **more}
                    for row in by_key[_key(one["id"])])


def _key(record: str) -> str:
    """Of a record's id, which the import made of the source's name and ours."""
    return record.removeprefix(f"{_SOURCE}-")


def _write(path: Path, lines: Iterable[dict[str, Any]]) -> int:
    """Whole or not at all; without lines there is no file. Returns how many."""
    texts = [json.dumps(line, ensure_ascii=False) + "\n" for line in lines]
    try:
        if not texts:
            path.unlink(missing_ok=True)
            return 0
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        part.write_text("".join(texts), encoding="utf-8", newline="\n")
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot be written: {error}", where=str(path)) from error
    return len(texts)
