"""Which revision of a run's models is served: another one, or the newest again. Writes one annotation of its
AlignmentRun; the operator does the rest.
"""

from __future__ import annotations

from alignment.cluster.client.client import Client
from alignment.cluster.client.refusals import cluster_error
from alignment.cluster.manifests.alignment_run import SERVE, ServedRevision, ServingStatus, annotation, status_of
from alignment.errors import ConfigError


def rollback(client: Client, run: str, to: int | None = None, *, latest: bool = False) -> list[str]:
    """Pin a revision, or with `latest` take the pin away.

    Args:
        to: the revision. Default: the one before the one that answers; where the newest is wanted and another answers,
            that one.

    Returns:
        What was done, in sentences.

    Raises:
        ClusterError: there is no such AlignmentRun.
        ConfigError: nothing of it is served, or there is no such revision.
    """
    body = client.find("AlignmentRun", run) if client.has("AlignmentRun") else None
    if body is None:
        raise cluster_error("no AlignmentRun of this name", where=f"namespace {client.namespace}", found=run,
                            hint="kubectl get alignmentruns; or name another namespace with -n")
    serving, pinned = status_of(body).serving, annotation(body, SERVE)
    if latest:
        client.patch("AlignmentRun", run, {"metadata": {"annotations": {SERVE: None}}})
        done = [f"run {run}: " + ("the newest revision is served from now on" if pinned else
                                  "it was not pinned; the newest revision is what it serves, or tries to")]
        if serving is None or not serving.history:
            return [*done, "! nothing of it was served yet"]
        return [*done, *_before(serving.history[-1])]
    if serving is None or not serving.history:
        raise ConfigError("nothing of this run was served yet, so there is nothing to go back to", where="rollback",
                          found=f"AlignmentRun {run}", hint="`serve:` in the run file says what is served")
    target = _revision(serving, to)
    client.patch("AlignmentRun", run, {"metadata": {"annotations": {SERVE: str(target.number)}}})
    models = ", ".join(f"{name}={key}" for name, key in target.models.items())
    until = "" if serving.revision is None else "; it answers already" if serving.revision == target.number else (
        f"; revision {serving.revision} answers until it is proved")
    return [f"run {run}: revision {target.number} is to be served ({models}){until}", *_before(target)]


def _before(revision: ServedRevision) -> list[str]:
    return [f"! revision {revision.number} did not prove its models before"] if revision.proved is False else []


def _revision(serving: ServingStatus, to: int | None) -> ServedRevision:
    known = {one.number: one for one in serving.history}
    listed = ", ".join(f"{number}{'' if one.proved is not False else ' (not proved)'}" for number, one in known.items())
    if to is not None:
        if to not in known:
            raise ConfigError("no such revision", where="--to", found=to, expected=f"one of {listed}")
        return known[to]
    answers = serving.revision
    # Of a pinned one that is still to come up, what answers is what one goes back from: asked twice is the same.
    if answers is not None and answers in known and answers != serving.wanted and serving.pinned is None:
        return known[answers]
    now = answers or serving.wanted or 0
    below = [one for one in serving.history if one.number < now and one.proved is not False]
    if not below:
        raise ConfigError("there is no revision before the one that is served", where="rollback",
                          found=f"revision {now}", expected=f"--to one of {listed}")
    return below[-1]
