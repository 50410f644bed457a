"""A run as it travels to a cluster: run.yaml, resolved for a profile, and the local data files that it reads.

All of it lies in one ConfigMap that pods mount at `RUN_FOLDER`. Paths of local files become `files/N/BASENAME`; a
stage's key covers the base name and the content only, so digests stay those of the laptop. Absolute paths and URLs are
left alone: they must mean the same in the pods. Talks to no cluster.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.artifacts import digest_of
from alignment.cluster.manifests.labels import labels
from alignment.config import Profile, Run, parse_run
from alignment.config.stages.fields import on_this_machine
from alignment.config.yaml_nodes import dotted
from alignment.config.yaml_text import dump
from alignment.errors import ConfigError, ConfigErrors, DataError

LIMIT = 900 * 1024
"""Bytes of run.yaml and files together; a ConfigMap holds 1 MiB."""
RUN_LIMIT = 128 * 1024
"""Bytes of run.yaml alone: its files travel beside it."""
RUN_FILE = "run.yaml"
_NAMED = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
"""A DNS subdomain, which is a label's value too."""
_INSIDE = re.compile(r"files/([0-9]+)/[^/]+")


@dataclass(frozen=True)
class Bundle:
    """run.yaml's text, and file contents by their path beside it (`files/N/BASENAME`)."""

    run_yaml: str
    files: dict[str, bytes]

    @property
    def digest(self) -> str:
        """sha256 (hex) of everything in it."""
        return digest_of([self.run_yaml, {path: hashlib.sha256(data).hexdigest() for path, data in self.files.items()}])

    def name_for(self, run: str) -> str:
        """Name of the ConfigMap with it: another content is another name."""
        return f"{run}-{self.digest[:8]}"


def sources(run: Run) -> dict[str, str]:
    """Local data files that a run reads: path as it stands in the run -> path in the bundle, in order.

    Paths that are in a bundle already stay, so a bundled run gives the same answer as the one that it came from.
    """
    paths = [item.path for stage in run.stages for item in stage.sources() if item.travels and item.path]
    local = [path for path in dict.fromkeys(paths)
             if not path.startswith("/") and "://" not in path and "::" not in path]
    taken = {match[1] for path in local if (match := _INSIDE.fullmatch(path))}
    free = (str(number) for number in itertools.count() if str(number) not in taken)
    return {path: path if _INSIDE.fullmatch(path) else f"files/{next(free)}/{path.rsplit('/', 1)[-1]}"
            for path in local}


def located(run: Run, folder: Path | None = None) -> Run:
    """The run with its local data files where the bundle has them: relative, or below the folder it was unpacked to."""
    paths = {path: inside if folder is None else str(folder / inside) for path, inside in sources(run).items()}
    return run.model_copy(update={"stages": tuple(stage.relocated(paths) for stage in run.stages)})


def bundle(run: Run, profile: Profile) -> Bundle:
    """Read what the run needs and resolve it for the profile.

    Raises:
        ConfigErrors: a name or a model's path that cannot go to a cluster.
        ConfigError: the files are too large for a ConfigMap.
        DataError: a file cannot be read.
    """
    findings = list(_refused(run))
    if findings:
        raise ConfigErrors(findings)
    text = dump(located(profile.applied(run)).model_dump(mode="json"))
    if len(text.encode()) > RUN_LIMIT:
        raise ConfigError("the run file is too large to travel", where=f"run {run.name}",
                          found=f"{len(text.encode()) // 1024} KiB, resolved",
                          expected=f"at most {RUN_LIMIT // 1024} KiB", hint="put long texts into data files")
    found = {inside: _read(path) for path, inside in sources(run).items()}
    sizes = {RUN_FILE: len(text.encode()), **{path: len(found[inside]) for path, inside in sources(run).items()}}
    if sum(sizes.values()) > LIMIT:
        largest = sorted(sizes, key=lambda path: -sizes[path])
        raise ConfigError(
            "the run's local files are too large to travel with it", where=f"run {run.name}",
            found=", ".join(f"{path}: {sizes[path] / 1024:.0f} KiB" for path in largest),
            expected=f"at most {LIMIT // 1024} KiB together",
            hint="put the large ones on storage and write s3://BUCKET/FILE in the run, or an absolute path on the "
                 "profile's volume",
        )
    return Bundle(text, found)


def config_map(
    bundle: Bundle, *, name: str, namespace: str, owner: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The ConfigMap that holds a bundle. Immutable: another content is another name.

    Args:
        owner: an ownerReference, so that it goes with its owner.
    """
    run = parse_run(bundle.run_yaml, RUN_FILE)
    return {
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace, "labels": labels(run.name),
                     **({"ownerReferences": [owner]} if owner else {})},
        "immutable": True,
        "data": {RUN_FILE: bundle.run_yaml},
        "binaryData": {_key(path): base64.b64encode(data).decode() for path, data in bundle.files.items()},
    }


def items(run: Run) -> list[dict[str, str]]:
    """Where the keys of a run's ConfigMap go in a mounted volume."""
    return [{"key": RUN_FILE, "path": RUN_FILE},
            *({"key": _key(path), "path": path} for path in sources(run).values())]


def unpack(config_map: dict[str, Any], folder: Path) -> Path:
    """Write a ConfigMap's run.yaml and files below `folder`, as pods see them; returns run.yaml's path.

    Data files in run.yaml are relative to `folder`: see `located`.

    Raises:
        ConfigError: it holds no bundle, or not all of one.
    """
    where = f"ConfigMap {config_map['metadata']['name']}"
    text, binary = (config_map.get("data") or {}).get(RUN_FILE), config_map.get("binaryData") or {}
    if text is None:
        raise ConfigError(f"the ConfigMap has no {RUN_FILE}", where=where, found=sorted(config_map.get("data") or {}))
    for path in sources(parse_run(text, f"{where}, {RUN_FILE}")).values():
        if _key(path) not in binary:
            raise ConfigError("the ConfigMap lacks a file of its run", where=where, found=sorted(binary),
                              expected=f"{_key(path)} for {path}", hint="submit the run again")
        target = folder / path
        if target.name in ("", "..") or target.parent.parent.parent != folder:
            raise ConfigError("no file can have this name", where=where, found=path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(base64.b64decode(binary[_key(path)], validate=True))
    written = folder / RUN_FILE
    written.write_text(text, encoding="utf-8", newline="")
    return written


def _refused(run: Run) -> list[ConfigError]:
    """What works on this machine and cannot on another."""
    findings = []
    for kind, name in (("run", run.name), *(("stage", stage.name) for stage in run.stages)):
        if not _NAMED.fullmatch(name):
            findings.append(ConfigError("no object of Kubernetes can have this name", where=f"{kind} {name}",
                                        found=name, expected="a letter or digit at both ends, and beside each dot"))
    for stage in run.stages:
        for item in stage.sources():
            if item.path is None or item.travels or item.path.startswith("/"):
                continue
            findings.append(ConfigError(
                "a model on this machine is not sent to a cluster", where=f"stage {stage.name}, {dotted(item.place)}",
                found=item.path,
                expected="an absolute path that the pods have (on the profile's volume), or source hub",
                hint="copy it to the volume once, or run the import with a profile of this machine against the same "
                     "store"))
    return findings


def _read(path: str) -> bytes:
    plain = on_this_machine(path)
    if plain.name in ("", "..") or not plain.is_file():
        raise DataError("the data file does not exist", where=str(plain.absolute()), found=path,
                        expected="a file that can be read", hint="relative paths start at the working directory")
    try:
        return plain.read_bytes()
    except OSError as error:
        raise DataError(f"the data file cannot be read: {error}", where=str(plain.absolute()), found=path) from error


def _key(path: str) -> str:
    """Key of a file in the ConfigMap: readable, of the few characters that are allowed, and one for each path."""
    clean = re.sub(r"[^A-Za-z0-9._-]", "_", path.rsplit("/", 1)[-1])[-60:]
    return f"file-{hashlib.sha256(path.encode()).hexdigest()[:8]}-{clean}"
