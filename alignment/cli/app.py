"""The sub-commands of `kubealign`, by name.

    kubealign init my-run.yaml --recipe qa
    kubealign check my-run.yaml
    kubealign run my-run.yaml
    kubealign submit my-run.yaml --profile dev-cpu
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from alignment import __version__
from alignment.cli import (
    chat,
    check,
    cluster,
    compare,
    data,
    eval,
    execute,
    explain,
    export,
    infer,
    info,
    init,
    lineage,
    models,
    plan,
    probe,
    rollback,
    serve,
)
from alignment.cli.show import debuggable

app = typer.Typer(
    name="kubealign", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Align language models: one YAML file is one run, from seed data to an evaluated model.",
    epilog="Start with: kubealign init my-run.yaml --recipe qa",
)


def _version(asked: bool) -> None:
    if asked:
        print(f"kubealign {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Options before the sub-command."""


_COMMANDS: dict[str, Callable[..., None]] = {
    "init": init.init, "check": check.check, "plan": plan.plan, "probe": probe.probe, "run": execute.run,
    "eval": eval.evaluate, "infer": infer.infer, "models": models.models, "lineage": lineage.lineage,
    "export": export.export, "chat": chat.chat,
    "status": execute.status, "report": execute.report, "compare": compare.compare, "serve": serve.serve,
    "preflight": cluster.preflight, "submit": cluster.submit, "logs": cluster.logs,
    "cancel": cluster.cancel, "resume": cluster.resume, "rollback": rollback.rollback, "explain": explain.explain,
    "schema": info.schema, "templates": info.templates,
}
for name, command in _COMMANDS.items():
    app.command(name)(debuggable(command))
app.add_typer(data.app, name="data")
