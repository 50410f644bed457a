"""`eval`: models of any run, folder or hub on new data, without a run file.

Builds the run file that imports them and evaluates, and runs it.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated

import typer

from alignment.cli import execute
from alignment.cli.named import Named, Tree, columns_of
from alignment.cli.seen_format import format_of, metric_of
from alignment.cli.show import say
from alignment.cli.without_file import run_file
from alignment.config.stages.evaluate import USUAL
from alignment.errors import ConfigError

Models = Annotated[
    list[str],
    typer.Argument(metavar="MODEL...", help="An artifact's key, RUN:STAGE, RUN.yaml:STAGE, the folder of a model "
                                            "or adapter, a GGUF file, OWNER/NAME of the hub, or an endpoint: "
                                            "https://host/v1#MODEL."),
]
StoreOption = Annotated[
    str, typer.Option("--store", metavar="DIR|URL", help="Where artifacts are, and what is made goes.")
]
BaseOption = Annotated[
    str | None,
    typer.Option("--base", metavar="MODEL", help="What an adapter's folder stands on, where its config does not say "
                                                 "it, or that is not there."),
]
TemplateOption = Annotated[
    str | None,
    typer.Option("--template", metavar="NAME", help="A shipped chat template (kubealign templates), for models that "
                                                    "are imported anew."),
]
EngineOption = Annotated[str | None, typer.Option("--engine", help="transformers, vllm or auto.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other key of the run that is built: eval.language=de, "
                                                    "data.max_bad=0.5, compute.device=cpu."),
]
SaveOption = Annotated[str | None, typer.Option("--save", metavar="RUN.yaml", help="Keep the run file there.")]


def evaluate(
    models: Models,
    data: Annotated[
        str,
        typer.Option("--data", metavar="FILE", help="Rows with reference answers: a file or URL, or KEY/SPLIT or "
                                                    "RUN:STAGE/SPLIT of a run."),
    ],
    format: Annotated[
        str | None, typer.Option("--format", help="Shape of the rows. Default: as the keys of the first one tell it.")
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option("--columns", help="prompt=COLUMN,completion=COLUMN: for CSV, Parquet and JSON lines of any keys."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="MODEL", help="The baseline of win rates. Default: the first MODEL."),
    ] = None,
    score_function: Annotated[
        str | None,
        typer.Option("--score-function", help="A reward function, for a column and win rates (kubealign explain "
                                              "reward)."),
    ] = None,
    score_model: Annotated[
        str | None, typer.Option("--score-model", metavar="MODEL", help="A reward model, for win rates.")
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option("--metrics", help="Columns by name, with commas: exact_match,f1,bleu (kubealign explain "
                                       "evaluate.metrics). Default: the usual ones."),
    ] = None,
    pairs: Annotated[
        bool,
        typer.Option("--pairs", help="The rows are pairs, and each MODEL is a reward model that is held to them."),
    ] = False,
    take: Annotated[int | None, typer.Option("--take", help="At most so many rows, drawn.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", help="Longest answer. Default: 128.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="System message of rows that have none.")] = None,
    template: TemplateOption = None,
    base: BaseOption = None,
    engine: EngineOption = None,
    store: StoreOption = "runs",
    save: SaveOption = None,
    overrides: SetOption = None,
) -> None:
    """Evaluate models on new data, without a run file: a table, and a report."""
    named = Named(store, template, base)
    source: Tree = {}
    if columns is not None:
        if format not in (None, "columns"):
            raise ConfigError("is for format columns alone", where="--columns", found=f"--format {format}",
                              expected="one of both")
        source = {"format": "columns", "columns": columns_of(columns)}
    elif format is not None:
        source = {"format": format}
    rows, split = named.rows(data, "data", **source)
    if "data" in rows and not source:
        rows["data"][0]["format"] = format_of(data)
        say(f"{data}: format {rows['data'][0]['format']}, by the keys of its first row (--format says another)")
    if system is not None:
        if "rows" in rows:
            raise ConfigError("rows of a run have their messages already", where="--system", expected="a file's rows")
        rows["system"] = system
    if pairs:
        given = {"--against": against, "--metrics": metrics, "--max-new-tokens": max_new_tokens,
                 "--score-model": score_model}
        if void := [name for name, value in given.items() if value is not None]:
            raise ConfigError("is for models that answer", where=void[0], found="--pairs", expected="one of both")
    role = "reward" if pairs else None
    names = [named.model(text, role) for text in ([] if against is None else [against]) + models]
    if len(set(names)) < len(names):
        raise ConfigError("a model is named twice", where="MODEL", found=[*models, *([against] if against else [])],
                          expected="each once")
    stage: Tree = {"name": "eval", "kind": "evaluate", "rows": f"data/{split}"}
    stage |= {} if take is None else {"take": take}
    if pairs:
        stage["judges"] = {name: {"model": name} for name in names} | (
            {} if score_function is None else {"function": {"function": score_function}})
    else:
        made_for = metric_of(data, rows["data"][0]) if metrics is None and "data" in rows else None
        stage |= _answered(named, names, score_function, score_model, metrics, max_new_tokens, made_for)
    file = run_file("eval", PurePosixPath(data).stem, [*named.written(), rows, stage], overrides, store=store,
                    save=save, engine=engine)
    execute.run(file)
    say(f"run file: {file}")


def _answered(
    named: Named, names: list[str], score_function: str | None, score_model: str | None, metrics: str | None,
    max_new_tokens: int | None, made_for: tuple[str, str] | None,
) -> Tree:
    """What an evaluation of models that answer has beside its rows."""
    score = {**({} if score_function is None else {"function": score_function}),
             **({} if score_model is None else {"model": named.model(score_model, "reward")})}
    stage: Tree = {"models": names, **({"score": score} if score else {})}
    silent = any(one["model"]["source"] == "endpoint" for one in named.written())
    if metrics is not None:
        stage["metrics"] = [name.strip() for name in metrics.split(",") if name.strip()]
    elif silent:
        say("an endpoint tells no log-probabilities, so there is no perplexity")
        stage["perplexity"] = False
    if made_for is not None:
        metric, why = made_for
        say(f"metric {metric} beside the usual ones: {why} (--metrics names others)")
        stage["metrics"] = [metric, *(name for name in USUAL if name != "perplexity" or not silent)]
        stage.pop("perplexity", None)
    stage |= {} if max_new_tokens is None else {"sampling": {"max_new_tokens": max_new_tokens}}
    return stage
