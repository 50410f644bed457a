"""Entry of the `kubealign` command: the sub-commands, and what every error becomes.

    kubealign init my-run.yaml --recipe qa
    kubealign check my-run.yaml
    kubealign run my-run.yaml
    kubealign submit my-run.yaml --profile dev-cpu

Exit codes: 0 done, 1 a bug of ours (with its traceback), 2 something to mend in the run, its data or the command
line (or a preflight that found it), 3 missed aims under --strict-aims, 130 interrupted.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated

import typer

from alignment import __version__
from alignment.cli import check, cluster, execute, explain, info, init, plan
from alignment.cli.show import complain
from alignment.errors import KubeAlignError
from alignment.exits import Exit

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


app.command("init")(init.init)
app.command("check")(check.check)
app.command("plan")(plan.plan)
app.command("run")(execute.run)
app.command("status")(execute.status)
app.command("report")(execute.report)
app.command("preflight")(cluster.preflight)
app.command("submit")(cluster.submit)
app.command("logs")(cluster.logs)
app.command("cancel")(cluster.cancel)
app.command("resume")(cluster.resume)
app.command("explain")(explain.explain)
app.command("schema")(info.schema)
app.command("templates")(info.templates)


def main() -> None:
    """Run the command line of this process; ends it with one of the exit codes above."""
    _settle_home()
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a letter shows another one, and nothing ends
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app()
    except KubeAlignError as error:
        complain(error)
        sys.exit(Exit.USER)


def _settle_home() -> None:
    """A user without home and name (a container's random uid) gets the cache's: Ray and torch end without them."""
    cache = os.environ.get("KUBEALIGN_CACHE")
    if cache and os.path.expanduser("~") == "~":
        os.environ["HOME"] = os.path.abspath(cache)
        os.environ.setdefault("USER", str(os.getuid()))


if __name__ == "__main__":
    main()
