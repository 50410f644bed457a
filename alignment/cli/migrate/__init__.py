"""Runs from other tools' files: LLaMA-Factory's, Axolotl's and TRL's training YAML -> a run file of ours.

Pure functions from the keys of a file to the keys of a run, one table for each tool, and a list of what became of each
key: `carried.py` sees that every key is said of once. Reads no data and no model, and asks nobody. What the file leaves
out and the tool decides otherwise than we do is written out, and said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from alignment.cli.migrate import axolotl, llama_factory, trl
from alignment.cli.migrate.carried import Carried, Reading
from alignment.cli.migrate.target import Target
from alignment.errors import ConfigError

_MARKS = {
    llama_factory.TOOL: ("stage", "finetuning_type", "cutoff_len", "lora_rank", "lora_target"),
    axolotl.TOOL: ("base_model", "sequence_len", "num_epochs", "val_set_size"),
    trl.TOOL: ("dataset_name", "dataset_config", "dataset_train_split", "use_peft", "completion_only_loss",
               "assistant_only_loss", "report_to"),
}
"""Tool -> keys by which it is known."""

_LOST = "what it belongs to was not carried, or is not what this method has"


@dataclass(frozen=True)
class Migrated:
    """A run, and how it came about.

    Attributes:
        run: keys of a run file.
        carried: of each key of the other tool's file, in its order.
        said: what the file leaves out and the tool decides otherwise than we do.
    """

    tool: str
    run: dict[str, Any]
    carried: tuple[Carried, ...]
    said: tuple[str, ...]


def tool_of(given: Mapping[str, Any], file: str) -> str:
    """Whose file it is, by its keys. Raises ConfigError where no tool's keys, or several tools', are in it."""
    if isinstance(given.get("stages"), list):
        raise ConfigError("is a run file already", where=file, found="stages", expected="a file of "
                          f"{', '.join(_MARKS)}", hint=f"kubealign check {file}")
    found = {tool: [key for key in keys if key in given] for tool, keys in _MARKS.items()}
    model = {llama_factory.TOOL: "model_name_or_path", axolotl.TOOL: "base_model", trl.TOOL: "model_name_or_path"}
    known = [tool for tool, keys in found.items() if keys and model[tool] in given]
    if len(known) > 1 and llama_factory.TOOL in known and found[llama_factory.TOOL]:
        known = [tool for tool in known if tool != trl.TOOL]  # it has transformers' keys, too
    if len(known) != 1:
        seen = ", ".join(list(map(str, given))[:12]) or "no keys"
        marks = [f"{tool}: {model[tool]} and one of {', '.join(keys)}" for tool, keys in _MARKS.items()]
        raise ConfigError("is no training file that is known" if not known else "is a file of several tools",
                          where=file, found=seen, expected="; ".join(marks))
    return known[0]


def migrate(
    given: Mapping[str, Any], file: str, name: str, *, processes: int = 1, method: str | None = None,
    infos: Mapping[str, Any] | None = None, folder: str | None = None, deepspeed: Mapping[str, Any] | None = None,
) -> Migrated:
    """A run from the keys of another tool's file.

    Args:
        file: its name, for errors.
        name: the run's.
        processes: how many the tool was started with, over which batches are counted.
        method: for TRL, whose files do not say it.
        infos: what LLaMA-Factory's dataset_info.json holds; None where it is not there.
        folder: where it was found, as its data files are to be named; None: as the file says.
        deepspeed: what the file holds that the key `deepspeed` names; None where it cannot be read.

    Raises:
        ConfigError: it is nobody's file, does what nothing here does, or has a value of the wrong type.
    """
    tool = tool_of(given, file)
    if method is not None and tool != trl.TOOL:
        raise ConfigError("is for files of TRL: this one says it itself", where="--method", found=method, expected="no "
                          "--method")
    read, into = Reading(given), Target()
    try:
        if tool == llama_factory.TOOL:
            llama_factory.migrate(read, into, processes=processes, infos=infos, folder=folder, deepspeed=deepspeed)
        elif tool == axolotl.TOOL:
            axolotl.migrate(read, into, given=given, processes=processes, deepspeed=deepspeed)
        else:
            trl.migrate(read, into, given=given, processes=processes, method=method, deepspeed=deepspeed)
    except ConfigError as error:
        where = error.where if str(error.where).startswith("--") else f"{file} ({error.where})"
        raise ConfigError(error.problem, where=where, found=error.found, expected=error.expected,
                          hint=error.hint) from error
    into.settle(read)
    run = into.run(name)
    told = (replace(one, to=f"{into.method}.{one.to}") if (one.to or "").startswith(("strategy.", "method")) else one
            for one in read.told())
    # The report is held to the run itself: what is said to stand in it does.
    held = (one if one.to is None or _stands(run, one.to) else replace(one, to=None, note=_LOST) for one in told)
    return Migrated(tool, run, tuple(held), tuple(dict.fromkeys(into.said)))


def _stands(run: Mapping[str, Any], place: str) -> bool:
    """Whether a run has a value at STAGE.KEY... or KEY..., in any item of a list on the way."""
    first, *rest = place.split(".")
    nodes = [stage for stage in run["stages"] if stage["name"] == first] or [run.get(first)]
    for part in rest:
        items = [item for node in nodes for item in (node if isinstance(node, list) else [node])]
        nodes = [item[part] for item in items if isinstance(item, dict) and part in item]
    return any(node is not None for node in nodes)
