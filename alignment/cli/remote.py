"""`status`, `report` and `logs` of a run on a cluster: what the storage has, and what is at work.

The storage says which stages are finished; live objects only say what the others are doing.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from alignment import interrupt
from alignment.cli.options import as_typed
from alignment.cli.output import page_of, status_json
from alignment.cli.show import duration, say, table
from alignment.config import Profile, Run
from alignment.config.stops import standing_of
from alignment.errors import ConfigError
from alignment.progress import console

if TYPE_CHECKING:
    from alignment.cluster.client.client import Client
    from alignment.cluster.storage.truth import Truth


Command = TypeVar("Command", bound=Callable[..., None])


def unwound(leaves: str = "") -> Callable[[Command], Command]:
    """Around a command that makes things in a cluster for itself: Ctrl-C lets it take them away, and ends it then; what
    it has started for the user goes on.

    Args:
        leaves: what to say of that.
    """
    def around(command: Command) -> Command:
        @functools.wraps(command)
        def wrapped(*arguments: Any, **named: Any) -> None:
            interrupt.leaves(leaves)
            with interrupt.unwinding():
                try:
                    command(*arguments, **named)
                except KeyboardInterrupt:
                    interrupt.end()
        return cast(Command, wrapped)
    return around


def progress(text: str) -> None:
    """One sentence to stderr, where it does not mix with what a command prints."""
    console.print(text, markup=False)


def connect(namespace: str | None, context: str | None, *, must_exist: bool = True) -> Client:
    """A client for the cluster, in a namespace that exists (unless `must_exist` is False).

    Raises:
        ConfigError: the Kubernetes client is not installed here.
        ClusterError: no kubeconfig, no such context or namespace, no API server.
    """
    try:
        from alignment.cluster.client.client import Client, needs_namespace
    except ImportError as error:
        raise ConfigError(f"the Kubernetes client is not installed here: {error}", where="--profile",
                          hint="pip install 'kubealign[cluster]'") from error
    client = Client(namespace, context, say=progress)
    if must_exist:
        needs_namespace(client)
    return client


@unwound()
def remote_status(
    run: Run, profile: Profile, *, namespace: str | None, context: str | None, as_json: bool
) -> None:
    """Every stage: finished (by the storage), or what the cluster does about it."""
    client = connect(namespace, context)
    from alignment.cluster.watch.live import live_states

    truth = _truth(run, profile, client)
    manifests, works = truth.look()
    live = live_states(client, run.name)
    if as_json:
        tree = json.loads(status_json(profile.applied(run), manifests, works))
        for stage in tree["stages"]:
            stage["live"] = live.get(stage["name"])
        tree["serving"] = live.get("", {}).get("serving")
        print(json.dumps(tree, ensure_ascii=False))
        return
    spared = standing_of(run.stops(), manifests).unneeded
    rows = []
    for stage in run.stages:
        made, now = manifests[stage.name], live.get(stage.name, {})
        if made is not None:
            written = ", ".join(f"{count} {name}" for name, count in made.rows.written.items())
            rows.append((stage.name, "finished", written, duration(made.seconds), made.digest[:12], ""))
        else:
            work = works.get(stage.name)
            notes = (str(work) if work is not None and work.progress is not None else "", now.get("note", ""))
            state = now.get("state") or (work.state if work is not None else "not finished")
            if stage.name in spared:
                state, notes = "not needed", (spared[stage.name], "")
            rows.append((stage.name, state, "", "", "", "; ".join(note for note in notes if note)))
    table(("stage", "state", "rows", "time", "artifact", "note"), rows, right=("time",))
    unmade = [name for name, made in manifests.items() if made is None]
    say(f"\n{len(manifests) - len(unmade)} of {len(manifests)} stages finished, in {truth.url}")
    own = live.get("", {})
    if own:
        say(own["note"])
    if own.get("serving"):
        _say_serving(own["serving"], as_typed(run.name, None, client.namespace, context, None))
        if own["serving"].get("revision") is not None and own["state"] in ("Pending", "Running", "Waiting"):
            say(f"the run is {own['state']}: models that become others are the next revision, once it has succeeded")
    elif own.get("serves"):
        say("nothing is served yet: the operator has not looked at it")
    elif run.serve is not None and spared.keys() >= set(unmade):
        say(f"nothing is served: submit it with --target run, or `kubealign serve` on a machine that has {truth.url}")


def _say_serving(serving: dict[str, Any], again: str) -> None:
    """What is served, as the operator says it in the AlignmentRun's status.

    Args:
        again: the run's name and where it is, as a shell takes them.
    """
    answers, wanted, count = serving.get("revision"), serving.get("wanted"), serving.get("replicas")
    unknown = "a revision that nobody knows" if count else "nothing"
    say(f"\nserving: {serving['state']}, " + (unknown if answers is None else f"revision {answers}") + " answers"
        + (f" ({count} replica{'s' if count > 1 else ''})" if count else "")
        + (f" at {serving['endpoint']}" if serving.get("endpoint") else ""))
    if serving.get("message"):
        say(f"  {serving['message']}")
    if serving.get("models"):
        said = {True: "proved", False: "NOT proved",
                None: "none, as asked" if serving.get("reason") == "Unproved" else "no proof seen"}
        table((f"revision {wanted}", "artifact", "proof", "rows", "most off", "note"), [
            (one["name"], one["artifact"], said[one.get("proved")], str(one.get("rows", "")),
             f"{one['mostOff']:.2g}" if "mostOff" in one else "", one.get("message", ""))
            for one in serving["models"]], right=("rows", "most off"))
    earlier = [one for one in serving.get("history", ()) if one["number"] != wanted]
    if earlier:
        say("other revisions: " + "; ".join(
            f"{one['number']} ({', '.join(f'{name}={key}' for name, key in one['models'].items())}, {one['when']}"
            + (", not proved" if one.get("proved") is False else "") + ")" for one in earlier))
    ways = [*(["--to NUMBER"] if earlier else []), *(["--latest"] if serving.get("pinned") else [])]
    if ways:
        say(f"  kubealign rollback {again} {' or '.join(ways)}")


@unwound()
def remote_report(
    run: Run, profile: Profile, typed: str, *, namespace: str | None, context: str | None, printed: bool
) -> None:
    """Render the report where the storage is; with `printed` to stdout, else into a file beside the caller.

    Args:
        typed: `submit FILE OPTIONS`, for the commands on the page.
    """
    truth = _truth(run, profile, connect(namespace, context))
    if truth.near:
        print(page_of(profile.applied(run), typed, printed=printed))
        return
    page = truth.report(typed)
    if printed:
        print(page, end="")
        return
    path = Path(f"{run.name}-report.html")
    path.write_text(page, encoding="utf-8")
    progress(f"in the storage: {truth.url}/runs/{run.name}/report.html")
    print(path)


def remote_logs(
    run: Run, profile: Profile, *, namespace: str | None, context: str | None, stage: str | None, follow: bool
) -> None:
    """Output of the stages at work, from their pods; where none is, of all from the storage."""
    client = connect(namespace, context)
    from alignment.cluster.watch.live import last_words, live_jobs
    from alignment.cluster.watch.logs import Follower
    from alignment.cluster.watch.wait import wait_ray_job

    has_jobs = client.has("RayJob")
    live = live_jobs(client, run.name, stage) if has_jobs else []
    if not live:
        text = _truth(run, profile, client).logs(stage)
        if not text and has_jobs:  # a stage may fail before it has a log of its own
            text = "".join(f"--- {name}, attempt {attempt}\n{words.rstrip()}\n"
                           for name, attempt, words in last_words(client, run.name, stage))
        print(text, end="")
        if not text:
            progress("nothing was printed yet: no pod of this run is there, and the storage has no log of it")
        return
    if stage is None:
        progress("of the stages at work; with --stage NAME that of another, from the storage")
    for name, attempt, job in live:
        print(f"--- {name}, attempt {attempt}", flush=True)
        follower = Follower(client, job, lambda line: print(line, flush=True))
        if follow and (name, attempt, job) == live[-1]:
            end = wait_ray_job(client, job, on_change=lambda words, _: progress(words))
            progress(f"{name}: {end.how}")
        follower.end()


def _truth(run: Run, profile: Profile, client: Client) -> Truth:
    from alignment.cluster.storage.truth import Truth

    return Truth(run, profile, client, progress)
