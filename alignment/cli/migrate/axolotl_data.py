"""Axolotl's data sets -> our sources (its docs on dataset formats and preference formats)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignment.cli.migrate.carried import UNKNOWN, Reading
from alignment.cli.migrate.target import Target

_OF_PAIRS = {
    "intel": {"system": "system", "prompt": "question", "chosen": "chosen", "rejected": "rejected"},
    "argilla": {"prompt": "instruction", "chosen": "chosen_response", "rejected": "rejected_response"},
    "icr": {"prompt": "input", "chosen": "chosen", "rejected": "rejected"},
    "prompt_pairs": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
}
"""Second word of a preference type -> its columns under our names."""
_FILES = (".json", ".jsonl", ".parquet", ".csv", ".gz", ".zst")


class _Refused(Exception):
    """A data set has no counterpart here."""


def datasets(read: Reading, into: Target, given: Mapping[str, Any]) -> None:
    """Fill in sources, held-out sources and, from their kinds, what is learned of a row."""
    several = plain = False
    for key, sources in (("datasets", into.sources), ("test_datasets", into.held_sources)):
        for index, entry in enumerate(_entries(given.get(key))):
            at = f"{key}[{index}]"
            try:
                made, form = _source(read, at, entry, into)
            except _Refused as error:
                for path in read.left(f"{at}."):
                    read.leave(path, f"the data set is not carried: {error}")
                continue
            sources.append(made)
            several |= form == "talk"
            plain |= form == "alpaca"
            _lost(read, at)
    held = read.number("val_set_size", "data.split.ratios.dev")
    if held is not None and held >= 1:
        read.correct("val_set_size", None, "a number of rows: splits are shares here (data.split.ratios)")
    elif held and into.held_sources:
        read.correct("val_set_size", None, "test_datasets are held out already")
    elif held:
        into.held = held
    elif held is not None:
        read.correct("val_set_size", None, "no rows are held out of these")
    _loss(read, into, several)
    if plain and "template" not in into.base and not several:
        into.base["template"] = "alpaca"
        into.said.append("base.template: alpaca, since Axolotl writes rows of type alpaca into Alpaca's text and not "
                         "into the model's chat template. Ours has no `### Input:`, and no line break after `### "
                         "Response:`")


def _entries(value: Any) -> list[Mapping[str, Any]]:
    return [entry if isinstance(entry, Mapping) else {} for entry in value] if isinstance(value, list) else []


def _loss(read: Reading, into: Target, several: bool) -> None:
    everything = read.flag("train_on_inputs", "sft.loss")
    if into.method != "sft":
        if everything is not None:
            read.correct("train_on_inputs", None, "is for sft alone: of pairs the answers alone are learned")
        return
    if everything:
        into.train["loss"] = "all"
        read.correct("train_on_inputs", "sft.loss", "all: everything is learned")
    elif several:
        into.train["loss"] = "assistant"
        if everything is None:
            into.said.append("loss: assistant, as Axolotl learns every turn of the assistant and no input "
                             "(train_on_inputs is false there, too, where it is left out)")
        else:
            read.correct("train_on_inputs", "sft.loss", "assistant: every turn of the assistant, no input")
    elif everything is None:
        into.said.append("loss: completion, as train_on_inputs is false in Axolotl where it is left out")
    else:
        into.train["loss"] = "completion"
        read.correct("train_on_inputs", "sft.loss", "completion: the answer alone, ours by default")


def _source(read: Reading, at: str, entry: Mapping[str, Any], into: Target) -> tuple[dict[str, Any], str]:
    """(source, talk | alpaca | pairs)"""
    kind = entry.get("type")
    if isinstance(kind, Mapping):
        shape, form = _own_type(read, at, kind, into.method)
    else:
        shape, form = _shape(read, at, "" if kind is None else str(kind), into)
    return {**_place(read, at, entry), **shape}, form


def _place(read: Reading, at: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    path = str(entry.get("path") or "")
    if not path:
        raise _Refused("it has no path")
    files = entry.get("data_files")
    if files is not None:
        first = files[0] if isinstance(files, list) and files else files
        if not isinstance(first, str) or (isinstance(files, list) and len(files) > 1):
            raise _Refused("data_files names several files: write one source for each")
        read.take(f"{at}.path", "data.data.path", "data_files names the file")
        read.take(f"{at}.data_files", "data.data.path")
        return {"path": first if "/" in first or path == "json" else f"{path}/{first}"}
    local = path.startswith(("/", "./", "../", "~")) or path.endswith(_FILES) or "://" in path or "/" not in path
    if local:
        read.take(f"{at}.path", "data.data.path", "" if path.endswith(_FILES) else "a folder: name its file")
        if entry.get("split") is not None:
            read.leave(f"{at}.split", "a file has no splits")
        return {"path": path}
    read.take(f"{at}.path", "data.data.hub")
    made = {"hub": path, "split": str(read.take(f"{at}.split", "data.data.split") or "train")}
    for theirs, ours in (("name", "config"), ("revision", "revision")):
        if (value := read.take(f"{at}.{theirs}", f"data.data.{ours}")) is not None:
            made[ours] = str(value)
    return made


def _shape(read: Reading, at: str, kind: str, into: Target) -> tuple[dict[str, Any], str]:
    first, _, second = kind.partition(".")
    if into.method != "sft":
        return _pairs(read, at, kind, second, into)
    if kind in ("alpaca", "alpaca_w_system"):
        read.take(f"{at}.type", "data.data.format")
        return {"format": "alpaca"}, "alpaca"
    if first == "sharegpt" or kind == "chat_template":
        return _talk(read, at, first), "talk"
    raise _Refused(f"no format here reads rows of type {kind or 'null'}")


def _talk(read: Reading, at: str, kind: str) -> dict[str, Any]:
    sharegpt = kind == "sharegpt"
    field = read.take(f"{at}.field_messages", "data.data.columns.messages") or (
        "conversations" if sharegpt else "messages")
    role = read.take(f"{at}.message_property_mappings.role", "data.data.format") or read.take(
        f"{at}.message_field_role", "data.data.format")
    content = read.take(f"{at}.message_property_mappings.content", "data.data.format") or read.take(
        f"{at}.message_field_content", "data.data.format")
    read.take(f"{at}.type", "data.data.format")
    parts = (role or ("from" if sharegpt else "role"), content or ("value" if sharegpt else "content"))
    if parts == ("from", "value") and field == "conversations":
        return {"format": "sharegpt"}
    if parts != ("role", "content"):
        raise _Refused(f"turns are {{{parts[0]}, {parts[1]}}} under {field}: formats here read {{role, content}}, and "
                       "{from, value} under conversations")
    return {"format": "messages"} if field == "messages" else {"format": "columns", "columns": {"messages": str(field)}}


def _pairs(read: Reading, at: str, kind: str, second: str, into: Target) -> tuple[dict[str, Any], str]:
    if into.method == "kto":
        raise _Refused(f"no format here reads KTO rows of type {kind or 'null'}: format columns takes prompt, "
                       "completion, label")
    if second in _OF_PAIRS:
        read.take(f"{at}.type", "data.data.columns", "the chat template is the base's, whatever the type's name says")
        return {"format": "columns", "columns": _OF_PAIRS[second]}, "pairs"
    if second == "ultra":
        read.take(f"{at}.type", "data.data.format", "the chat template is the base's, whatever the type's name says")
        return {"format": "preference"}, "pairs"
    raise _Refused(f"no format here reads preferences of type {kind or 'null'}")


def _own_type(read: Reading, at: str, kind: Mapping[str, Any], method: str) -> tuple[dict[str, Any], str]:
    """A type that is spelled out by its fields, where no text of its own stands around them."""
    fields = {str(key).removeprefix("field_"): str(value) for key, value in kind.items()
              if str(key).startswith("field_") and value is not None}
    wanted = {"sft": {"instruction": "instruction", "input": "input", "output": "output", "system": "system"},
              "kto": {"prompt": "prompt", "completion": "completion", "label": "label", "system": "system"}}.get(
        method, {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected", "system": "system"})
    needed = [key for key in wanted if key not in ("input", "system") and key not in fields]
    if needed:
        raise _Refused(f"its type names no field_{needed[0]}")
    for key in fields:
        if key in wanted:
            read.take(f"{at}.type.field_{key}", f"data.data.columns.{wanted[key]}")
    for path in read.left(f"{at}.type."):
        read.leave(path, "a text around the fields: rows are turns of the chat template here, so write it with "
                         "{Column} slots under `columns`")
    return {"format": "columns", "columns": {wanted[key]: column for key, column in fields.items() if key in wanted}}, (
        "alpaca" if method == "sft" else "pairs")


def _lost(read: Reading, at: str) -> None:
    """What else is said of a data set that was carried."""
    for path in read.left(f"{at}."):
        key = path.removeprefix(f"{at}.").split(".")[0].split("[")[0]
        why = {
            "ds_type": "a file is known by its content", "trust_remote_code": "scripts of data sets are not run",
            "shards": "`take` of a source draws rows", "shards_idx": "`take` of a source draws rows",
            "preprocess_shards": "says how it is computed, not what",
            "chat_template": "one template holds for all rows: template of the base",
            "chat_template_jinja": "one template holds for all rows: template of the base",
            "conversation": "the chat template is the base's", "split_thinking": "the chat template decides",
            "roles": "roles are known by their usual names, and an unknown one makes a bad row",
            "roles_to_train": "the assistant's turns are learned (`loss`)",
            "train_on_eos": "every learned turn ends with its end token",
            "drop_system_message": "system messages are kept",
            "message_field_training": "a turn's own weight, loss_mask or train is read",
            "message_field_training_detail": "a turn is learned as a whole or not at all",
            "message_property_mappings": "a turn has the parts that its format names",
            "field_tools": "tools stand under `tools`", "field_system": "a system message stands under `system`",
        }.get(key, UNKNOWN)
        read.leave(path, why)
