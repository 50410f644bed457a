"""`rollback`: an earlier revision of a run's served models, or the newest again.

    kubealign rollback RUN.yaml -n align            # the one before
    kubealign rollback RUN -n align --to 2
    kubealign rollback RUN -n align --latest
"""

from __future__ import annotations

from typing import Annotated

import typer

from alignment.cli.options import Context, KnownProfile, Namespace, Overrides, as_typed, load
from alignment.cli.remote import connect, unwound
from alignment.cli.show import say
from alignment.errors import ConfigError


@unwound()
def rollback(
    run: Annotated[str, typer.Argument(metavar="RUN|RUN.yaml", help="The run's name, or its file.")],
    to: Annotated[int | None, typer.Option(min=1, help="This revision. Default: the one before the one that answers.")
                  ] = None,
    latest: Annotated[bool, typer.Option("--latest", help="Serve the newest revision again, and each that follows.")
                      ] = False,
    profile: KnownProfile = None,
    namespace: Namespace = None,
    context: Context = None,
    overrides: Overrides = None,
) -> None:
    """Serve an earlier revision of a run's models. It stays, whatever the run makes, until `--latest`."""
    if latest and to is not None:
        raise ConfigError("a revision and the newest one cannot both be served", where="--to, --latest", found=to)
    name = load(run, overrides, profile, resolve=False)[0].name if run.endswith((".yaml", ".yml")) else run
    client = connect(namespace, context)
    from alignment.cluster.submit.rollback import rollback as go_back

    for sentence in go_back(client, name, to, latest=latest):
        say(sentence)
    again = as_typed(run, profile, client.namespace, context, overrides)
    if not latest:
        say(f"it stays over edits of the run; the newest again: kubealign rollback {again} --latest")
    if run != name:
        say(f"  kubealign status {again}")
