"""The run that a migration writes: its parts, filled in by a tool's table, and what they make together."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from pydantic import ValidationError

from alignment.cli.migrate.carried import Reading
from alignment.config.stages import METHODS
from alignment.errors import ConfigError
from alignment.templates import library

PLACEHOLDER = "rows.jsonl"


@dataclass
class Target:
    """Parts of a run, in our keys.

    Attributes:
        model: of the import stage; `base` has its other keys.
        start: folder of an adapter that the training continues.
        sources, held_sources: data sources to learn from, and to measure the loss on.
        held: share of the rows that is held out instead.
        train: keys of the train stage beside strategy and trl.
        trl: key -> (value, the path that it came from).
        said: what the file leaves out and the tool decides otherwise than we do, in words.
    """

    method: str = "sft"
    model: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=dict)
    start: str | None = None
    sources: list[dict[str, Any]] = field(default_factory=list)
    held_sources: list[dict[str, Any]] = field(default_factory=list)
    held: float = 0.0
    system: str | None = None
    train: dict[str, Any] = field(default_factory=dict)
    checkpoints: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=lambda: {"kind": "full"})
    trl: dict[str, tuple[Any, str]] = field(default_factory=dict)
    compute: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    reward_rows: bool = False
    said: list[str] = field(default_factory=list)

    def run(self, name: str) -> dict[str, Any]:
        """The run as a file has it."""
        start, stages = "base", [{"name": "base", "kind": "import", "model": self.model, **self.base}]
        if self.start is not None:
            start = "start"
            stages.append({"name": "start", "kind": "import",
                           "model": {"source": "folder", "path": self.start, "base": "base"}})
        told = {} if self.system is None else {"system": self.system}
        ratios = {"train": round(1 - self.held, 9), "dev": self.held} if self.held else {"train": 1.0}
        if not self.sources:
            self.said.append(f"no data set could be carried: {PLACEHOLDER} is a placeholder for yours")
        stages.append({"name": "data", "kind": "import", "data": self.sources or [
            {"path": PLACEHOLDER, "format": "messages"}], **told, "split": {"by": "ratio", "ratios": ratios}})
        held = "data/dev" if self.held else None
        if self.held_sources:
            held = "held/dev"
            stages.append({"name": "held", "kind": "import", "data": self.held_sources, **told,
                           "split": {"by": "ratio", "ratios": {"dev": 1.0}}})
        if self.reward_rows:
            stages += [{"name": "pairs", "kind": "import", "data": [{"path": "preferences.jsonl",
                                                                     "format": "preference"}],
                        "split": {"by": "ratio", "ratios": {"train": 1.0}}},
                       {"name": "rm", "kind": "train", "method": "reward", "model": "base", "rows": ["pairs/train"]}]
        stages.append(self._trained(start, held))
        return {"name": name, "seed": self.seed, "store": "runs",
                **({"compute": self.compute} if self.compute else {}), "stages": stages}

    def _trained(self, start: str, held: str | None) -> dict[str, Any]:
        if (every := self.checkpoints.get("every")) and (log := self.train.get("log_every")) and every % log:
            self.train["log_every"] = math.gcd(every, log)
            self.said.append(f"log_every: {self.train['log_every']}, since checkpoints ({every} steps) lie on log "
                             f"lines, which the file has every {log}")
        if held is None and self.checkpoints.get("final") == "best":
            self.checkpoints["final"] = "last"
            self.said.append("checkpoints.final: last, since no rows are held out to judge the best by")
        made = {"name": self.method, "kind": "train", "method": self.method, "model": start, "rows": ["data/train"],
                **({"eval_rows": held} if held else {}), "strategy": self.strategy, **self.train,
                **({"checkpoints": self.checkpoints} if self.checkpoints else {})}
        return {**made, **({"trl": trl} if (trl := {key: value for key, (value, _) in self.trl.items()}) else {})}

    def settle(self, read: Reading) -> None:
        """Take out of `trl` what the method would refuse there, and say so of its key."""
        kind = next(kind for kind in METHODS if kind.tag == self.method)
        if self.strategy["kind"] == "qlora" and "optim" not in self.trl:
            self.trl["optim"] = ("adamw_torch", "optim")
            self.said.append("trl.optim: adamw_torch, as there; qlora's own default here is paged_adamw_8bit")
        while True:
            made = self._trained("base", "data/dev" if self.held or self.held_sources else None)
            made = {**made, "rows": tuple(made["rows"]), "strategy": _frozen(made["strategy"])}
            try:
                stage = kind.model_validate(_frozen(made))
            except ValidationError:
                return  # said of the whole run, where it is loaded
            findings = [one for one in stage.findings() if one.place[:1] == ("trl",)]
            if not findings:
                return
            for one in findings:
                key = str(one.place[1])
                if key in self.trl:
                    _, path = self.trl.pop(key)
                    read.correct(path, None, f"under trl, {key} {one.problem}: {one.expected}")


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: item if key == "trl" else _frozen(item) for key, item in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def model_source(named: str) -> dict[str, Any]:
    """A model's folder, where it is written as a path, else its name on the hub."""
    if named.startswith(("/", "./", "../", "~")) or len(PurePosixPath(named).parts) != 2:
        return {"source": "folder", "path": named}
    return {"source": "hub", "repo": named}


def base_model(read: Reading, into: Target, key: str, revision: str) -> None:
    """The model that is trained. Raises ConfigError where the file names none."""
    named = read.word(key, "base.model")
    if not named:
        raise ConfigError("the file names no model", where=key, expected="a name of the hub, or a folder")
    into.model = model_source(named)
    if into.model["source"] == "hub":
        if (commit := read.word(revision, "base.model.revision")) is not None:
            into.model["revision"] = commit
    else:
        read.leave(revision, "a folder has no revisions")
    read.leave("trust_remote_code", "code of a model's repository runs only with a revision that is a commit: set both "
                                    "on base.model, where the model needs it")


def base_template(read: Reading, into: Target, key: str, own: tuple[str, ...] = ()) -> None:
    """The chat template that a key names, where one of ours has its name; `own` are names of the model's own."""
    named = read.word(key, "base.template")
    if named is None:
        return
    if named in own:
        read.correct(key, None, "the model's own is used where `template` is left out")
    elif named in library.names():
        into.base["template"] = named
        read.correct(key, "base.template", "our template of this name: compare rows with `kubealign data show`, "
                                           "default system messages may differ")
    else:
        read.correct(key, None, f"no template of this name is shipped ({', '.join(library.names())}): the model's own "
                                "is used; compare rows with `kubealign data show`")


def left(read: Reading, why: Mapping[str, str]) -> None:
    """Say of the keys that are still left why they are not carried, and of everything below them."""
    for path in read.left():
        if (said := why.get(re.split(r"[.\[]", path, maxsplit=1)[0])) is not None:
            read.leave(path, said)


def batches(into: Target, per_device: int, accumulation: int, processes: int) -> None:
    """batch_size and micro_batch_size of the rows of a pass, the passes of a step and the processes side by side."""
    into.train["batch_size"] = per_device * accumulation * processes
    into.train["micro_batch_size"] = per_device
    if processes > 1:
        into.compute = {"workers": processes, "gpus_per_worker": 1.0, **into.compute}


def sharded(read: Reading, into: Target, path: str, file: Mapping[str, Any] | None) -> None:
    """compute.sharding of a DeepSpeed file, by what it holds, or where it cannot be read by its name.

    Args:
        path: the key that names it.
        file: its content.
    """
    named = str(read.peek(path))
    stage = (file or {}).get("zero_optimization", {}).get("stage") if file is not None else next(
        (int(sign[-1]) for sign in ("z2", "z3", "zero2", "zero3", "z1", "zero1", "z0", "zero0") if sign in
         PurePosixPath(named).name.replace("_", "").replace("-", "").lower()), None)
    text = json.dumps(file) if file is not None else named
    offload = "offload_param" in text or ("offload" in text and file is None)
    if file is None and stage is not None:
        origin = "by its name, since the file is not there; "
    elif file is None:
        read.leave(path, "names a file that is not there: `compute.sharding` says what workers share out")
        return
    else:
        origin = ""
    if not stage:
        read.leave(path, "without a ZeRO stage there is nothing to share out")
        return
    sharding = "zero3-offload" if offload and stage == 3 else f"zero{stage}"
    into.compute = {"workers": 1, "gpus_per_worker": 1.0, **into.compute, "sharding": sharding}
    read.take(path, "compute.sharding", f"{origin}{sharding}; the file's sizes are not carried: `compute.deepspeed` "
                                        "takes them")


def one_of(value: str, known: Mapping[str, str], key: str, tool: str) -> str:
    """What a word of the tool is here. Raises ConfigError where we have no such thing."""
    if value not in known:
        raise ConfigError(f"there is nothing here that does what {tool}'s {key} {value} does", where=key, found=value,
                          expected="one of " + ", ".join(known))
    return known[value]
