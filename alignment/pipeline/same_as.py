"""Whether a run would make again what a manifest tells of, and if not, every difference.

What the digest is made of decides what is made: config, dtype, seed, sources, inputs. Where it is computed and with
which libraries decides its last bits, and with workers the order of sums: the same in law. Makes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fsspec.core import url_to_fs
from pydantic import ValidationError

from alignment.artifacts import Manifest
from alignment.config import AnyStage, Run
from alignment.config.arithmetic import settled_here
from alignment.errors import ArtifactError, ConfigError
from alignment.pipeline.keys import Key, keys
from alignment.pipeline.run import computed_on, versions
from alignment.planner.auto import resolved

_ABSENT = object()
_WHERE = ("device", "workers", "engine", "processor")
"""What is compared of `compute`; its dtype is a part of the digest."""
_SENT = ("workers", "engine")
"""What is known of it before a pod is there."""


@dataclass(frozen=True)
class Comparison:
    """One manifest against a run's stage.

    Attributes:
        key: of the manifest.
        made: what makes another artifact of it, in words; empty where the digests are equal.
        computed: what may change the last bits.
    """

    key: str
    stage: str
    made: list[str]
    computed: list[str]

    @property
    def same(self) -> bool:
        return not self.made and not self.computed


def same_as(run: Run, where: str, *, here: bool = True) -> list[Comparison]:
    """The manifest against the run's stage that is meant, then those of its inputs that differ, as far as they lie
    beside it.

    Args:
        where: manifest.json, or the artifact's folder; a path or an fsspec URL.
        here: the run would be computed on this machine; else device and libraries are an image's, and not known.

    Raises:
        ArtifactError: no manifest can be read there, or one of an older format.
        ConfigError: the run has no such stage.
        DataError, ModelError: a source of the run cannot be read.
    """
    run = settled_here(resolved(run)[0])
    known = keys(run)
    manifest = _read(where)
    folder = where.removesuffix("/manifest.json").rstrip("/").rpartition("/")[0] or "."
    waiting, done, met = [(manifest, _meant(run, known, manifest))], list[Comparison](), {manifest.key}
    while waiting:
        manifest, stage = waiting.pop(0)
        done.append(_compared(run, stage, known[stage.name], manifest, here=here))
        for (name, key), own in zip(manifest.inputs.items(), stage.inputs(), strict=False):
            if key == known[own].key or key in met:
                continue
            met.add(key)
            try:
                waiting.append((_read(f"{folder}/{key}"), run.stage(own)))
            except ArtifactError:
                done[-1].made.append(f"input {name}: {key} there, {known[own].key} here; its manifest is not beside it")
    return done


def _compared(run: Run, stage: AnyStage, key: Key, manifest: Manifest, *, here: bool) -> Comparison:
    there, compute = ({name: value for name, value in found.items() if name in (_WHERE if here else _SENT)}
                      for found in (manifest.compute, computed_on(run, stage)))
    return Comparison(
        manifest.key, stage.name, list(_differences(manifest.parts, key.parts)),
        [*_differences(there, compute), *(_differences(manifest.versions, versions()) if here else ())])


def _differences(there: Any, here: Any, place: str = "") -> Iterator[str]:
    """`KEY: VALUE there, VALUE here` for each leaf that differs."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for name in dict.fromkeys([*there, *here]):
            yield from _differences(there.get(name, _ABSENT), here.get(name, _ABSENT),
                                    f"{place}.{name}" if place else name)
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for index, pair in enumerate(zip(there, here, strict=True)):
            yield from _differences(*pair, f"{place}[{index}]")
    elif there != here:
        yield f"{place}: {_text(there)} there, {_text(here)} here"


def _text(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    head, slash, split = value.partition("/") if isinstance(value, str) else ("", "", "")
    if len(head) == 64 and set(head) <= set("0123456789abcdef"):  # a digest, perhaps of rows
        return f"{head[:12]}{slash}{split}"
    return repr(value)


def _meant(run: Run, known: Mapping[str, Key], manifest: Manifest) -> AnyStage:
    """The stage of the same digest; else the one of the same kind that is called so; else the only one of that kind."""
    kind = manifest.key.rpartition("-")[0]
    alike = [stage for stage in run.stages if stage.tag == kind]
    found = ([stage for stage in alike if known[stage.name].digest == manifest.digest]
             or [stage for stage in alike if stage.name == manifest.stage] or alike)
    if len(found) > 1 and known[found[0].name].digest == manifest.digest:
        return found[0]
    if len(found) != 1:
        raise ConfigError("no stage of the run can be told to be meant", where="--same-as",
                          found=f"{manifest.key}, made by a stage {manifest.stage}",
                          expected=f"a stage of that name, or one alone, of kind {kind}")
    return found[0]


def _read(where: str) -> Manifest:
    url = where if where.endswith(".json") else f"{where.rstrip('/')}/manifest.json"
    try:
        fs, path = url_to_fs(url)
        return Manifest.model_validate_json(fs.cat_file(path))
    except (OSError, ValueError, ImportError) as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise ArtifactError(f"no manifest can be read: {problem}", where=url,
                            expected="manifest.json of a finished artifact, or its folder") from error
