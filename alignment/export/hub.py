"""An export's files -> one commit on the Hugging Face hub, or what that commit would be.

The commit's message names the artifact, so that a push that was cut short after the hub had it is found there and not
made again. What the hub says no to is one error, in its words and with what to do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from alignment.artifacts.work import sha256_of
from alignment.config.secrets import key_from
from alignment.config.stages.export import Push
from alignment.context import StageContext
from alignment.errors import ConfigError, StageError
from alignment.progress import console, waiting

DONE = "pushed.json"
"""In the stage's work folder, as soon as the hub has said yes."""
_HINTS = {
    401: "the token is not valid any more, or of another hub: make one at huggingface.co/settings/tokens",
    403: "the token may not write there: it needs the right to write to this repository or its owner",
    404: "no such owner, or none that this token may see",
    413: "a file is larger than the hub takes: a smaller shard_gb",
    429: "the hub asks for fewer requests: run again later, what was uploaded is not sent twice",
}


def message_of(key: str, forms: tuple[str, ...]) -> str:
    """The commit's title; the artifact's key is what a later attempt knows it by."""
    return f"KubeAlign {key}: {', '.join(forms)}"


def planned(push: Push, files: Mapping[str, Path], key: str, forms: tuple[str, ...]) -> dict[str, Any]:
    """What would be pushed: {repo, revision, private, commit, files: [{path, bytes, sha256}], bytes}."""
    listed = [{"path": name, "bytes": file.stat().st_size, "sha256": sha256_of(file)} for name, file in files.items()]
    return {"repo": push.repo, "revision": push.revision, "private": push.private, "dry_run": push.dry_run,
            "commit": message_of(key, forms), "files": listed, "bytes": sum(item["bytes"] for item in listed)}


def check_token(push: Push, stage: str) -> str | None:
    """The token, asked for before anything is made; None for a dry run. Raises ConfigError without one."""
    if push.dry_run:
        return None
    where = f"stage {stage}, push_to_hub.token_env"
    try:
        return key_from(push.token_env, where)
    except ConfigError as error:
        raise ConfigError("the hub's token is not in the environment", where=where, found=error.found, hint=error.hint,
                          expected="a token that may write, where the stage is made; or dry_run: true") from error


def pushed(
    context: StageContext, push: Push, plan: dict[str, Any], files: Mapping[str, Path], token: str
) -> dict[str, Any]:
    """The plan with what the hub made of it: `pushed_revision`, the commit, and `url`.

    Raises:
        StageError: the hub cannot be reached, or refuses.
    """
    kept = context.work / DONE
    where = f"stage {context.stage.name}, push_to_hub"
    done: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    if done.get("commit") == plan["commit"]:
        return plan | done
    api = HfApi(token=token)
    with _refused(push, where), waiting(lambda: f"stage {context.stage.name}: the hub is sent {push.repo}"):
        api.create_repo(push.repo, private=push.private, exist_ok=True)
        if push.revision != "main":
            api.create_branch(push.repo, branch=push.revision, exist_ok=True)
        earlier = next((commit for commit in api.list_repo_commits(push.repo, revision=push.revision)
                        if commit.title == plan["commit"]), None)
        if earlier is None:
            made = api.create_commit(
                push.repo, [CommitOperationAdd(name, file) for name, file in files.items()], revision=push.revision,
                commit_message=plan["commit"], commit_description=f"sha256 of the artifact: {context.digest}")
            commit = str(made.oid)
        else:
            commit = str(earlier.commit_id)
            console.print(f"  {context.stage.name}: the hub has this export already, commit {commit[:12]}")
    done = {"commit": plan["commit"], "pushed_revision": commit,
            "url": f"{api.endpoint}/{push.repo}/tree/{commit}"}
    kept.write_text(json.dumps(done), encoding="utf-8")
    return plan | done


@contextmanager
def _refused(push: Push, where: str) -> Iterator[None]:
    """The hub's and the network's noes as one error."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise StageError("the hub is switched off in this environment", where=where, found="HF_HUB_OFFLINE",
                         expected="the variable unset where the model is pushed, or dry_run: true") from error
    except HFValidationError as error:
        raise StageError("the hub has no repositories of this name", where=where, found=push.repo,
                         expected=str(error).splitlines()[0]) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        said = (error.server_message or str(error)).strip().splitlines()
        problem = {RepositoryNotFoundError: "the hub knows no such repository, or hides it from this token",
                   RevisionNotFoundError: "the repository has no such branch"}.get(
                       type(error), "the hub refuses the push")
        raise StageError(problem, where=where, found=f"{push.repo} at {push.revision}: {status}, "
                         f"{said[0] if said else 'no reason given'}",
                         expected=f"a token in {push.token_env} that may write to {push.repo.split('/')[0]}",
                         hint=_HINTS.get(status or 0, "the export is kept; run it again to push")) from error
    except Exception as error:
        if not _is_network(error):
            raise
        raise StageError(f"the hub cannot be reached: {type(error).__name__}: {error}", where=where, found=push.repo,
                         expected="a network that reaches the hub (HF_ENDPOINT)",
                         hint="run it again to push; or dry_run: true, and push the folder from elsewhere") from error


def _is_network(error: BaseException) -> bool:
    """Whether it is the HTTP library's, which huggingface_hub passes on as it is, or the system's."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore")
